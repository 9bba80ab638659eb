"""Embeddings and groups."""

from __future__ import annotations

from mudata import MuData

from .. import _results
from .._compat import warn_user
from .._keys import DEFAULT_STEM, check_key_added
from .._leave_out import leave_one_out
from .._model import Model
from .._validate import check_mudata
from ._common import resolve_model


def integrate(
    mdata: MuData,
    *,
    model: Model | None = None,
    device: str = "auto",
    progress: bool = True,
    key_added: str = DEFAULT_STEM,
    copy: bool = False,
) -> MuData | None:
    """Embed all cells jointly, and identify the group of each.

    A cell's code is the weighted mean over the modalities it has, weights renormalised.

    Parameters
    ----------
    mdata
        Cells; features are matched to the model's by name. Modalities may be missing.
    model
        Model to use instead of the one stored in `mdata`.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    progress
        Whether to show a progress bar, once it has taken two seconds.
    key_added
        Stem of all names in `mdata`.
    copy
        Return a changed copy, and leave `mdata` as it is.

    Returns
    -------
    None, or the changed copy with ``copy=True``. Written:

    ``.obsm["X_unitednet"]`` : float32, cells x n_latent
        Fused embedding; NaN for cells that have none of the model's modalities.
    ``mdata[mod].obsm["X_unitednet"]`` : float32, cells x n_latent
        That modality's own code.
    ``.obs["unitednet_group"]`` : category
        Group identified by the head.
    ``.obs["unitednet_group_confidence"]`` : float32
        Its probability: of a model with labels, calibrated on held-out cells as if all labels were
        equally common. Of groups found without labels it says how sharply the head cuts, and may be
        near 1 where there are no groups at all.
    ``.obsm["unitednet_probabilities"]`` : float32, cells x groups
        Probabilities of all groups.
    ``.uns["unitednet"]["groups"]`` : str array
        Names of the groups.
    ``.uns["unitednet"]["labels_key"]`` : str
        Column of labels that the model learned its groups from; empty where it found them.
    ``.uns["unitednet"]["modality_effects"]`` : DataFrame
        Groups x modalities, float64: the mean drop of the probability of the group when that
        modality is left out, over the group's cells that have it and another one; NaN where there
        are none.
    ``.uns["unitednet"]["version"]`` : str
        Version of this package; marks the stem as its own.

    Raises
    ------
    TypeError
        `mdata` is not a MuData, or `model` not a model.
    ValueError
        No model is stored, features of the model are missing, or `mdata` on disk is a view or to be
        copied.

    Warns
    -----
    UserWarning
        A modality looks like raw counts, and those that the model was trained on did not. One of
        the model's is missing, and one that it does not know has its features. Another model than
        `model` is stored in `mdata` under this stem, and stays there.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False)
    >>> un.tl.integrate(mdata)
    >>> mdata.obsm["X_unitednet"].shape
    (60, 32)
    """
    check_mudata(mdata, copy=copy)
    keys = check_key_added(mdata, key_added)
    found = resolve_model(model, mdata, key_added, device)
    if model is not None and _results.holds_another(mdata, keys, found):
        warn_user(
            f"integrate: another model than the one given is stored in .uns[{keys.uns!r}]. The "
            "embedding and the groups are now the given one's, while explain and predict_modality "
            "go on with the stored one. Give key_added to keep the two apart."
        )
    encoded = found.encode(mdata, progress=progress)
    effects = leave_one_out(found, encoded)
    result = _results.target_of(mdata, copy)
    _results.write_embedding(result, keys, found, encoded, effects)
    return result if copy else None
