"""The trained model that travels in the MuData."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mudata import MuData

from .._keys import DEFAULT_STEM
from ._slots import fit_command, stored

if TYPE_CHECKING:
    from .._model import Model


def model(mdata: MuData, *, key_added: str = DEFAULT_STEM) -> Model:
    """Trained model stored in a MuData.

    Parameters
    ----------
    mdata
        A MuData fitted by `tl.fit`.
    key_added
        The stem that the results were stored under.

    Returns
    -------
    Model
        The torch-level object, built anew from ``.uns[key_added]["model"]``; changing it changes
        nothing that is stored.

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        No model is stored.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False)
    >>> model = un.get.model(mdata)
    >>> model.modality_names
    ['rna', 'adt']
    >>> model.save("model.safetensors")
    """
    found = stored(mdata, "model", key_added=key_added, run=fit_command(key_added))
    from .._model import Model  # here, so that reading tables never imports torch

    return Model.from_dict(found)
