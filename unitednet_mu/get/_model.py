"""The trained model that travels in the MuData."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from mudata import MuData

from .._keys import DEFAULT_STEM
from ._slots import fit_command, stored

if TYPE_CHECKING:
    from .._model import Model


def model(mdata: MuData | str | PathLike[str], *, key_added: str = DEFAULT_STEM) -> Model:
    """Trained model stored in a MuData, or in a file of its own.

    Parameters
    ----------
    mdata
        A MuData fitted by `tl.fit`, or the path of a file that the model's ``save`` wrote.
    key_added
        The stem that the results were stored under. Not read with a path.

    Returns
    -------
    Model
        The torch-level object, built anew from ``.uns[key_added]["model"]``; changing it changes
        nothing that is stored. On the CPU; functions move it to the device they run on.

    Raises
    ------
    TypeError
        `mdata` is neither.
    ValueError
        No model is stored; the file is none of this package, or it is damaged.
    FileNotFoundError
        There is no such file.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False)
    >>> model = un.get.model(mdata)
    >>> model.modality_names
    ['rna', 'adt']
    >>> model.save("model.safetensors")
    >>> un.get.model("model.safetensors").modality_names
    ['rna', 'adt']
    """
    from .._model import Model  # here, so that reading tables never imports torch

    if isinstance(mdata, str | PathLike):
        return Model.load(Path(mdata))
    return Model.from_dict(stored(mdata, "model", key_added=key_added, run=fit_command(key_added)))
