"""Predict one modality from others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mudata import MuData

from .. import _results
from .._keys import DEFAULT_STEM, check_key_added
from .._model import Model, as_list
from .._validate import check_mudata, is_predicted
from ._common import resolve_model
from ._explain_cost import available_memory


def predict_modality(
    mdata: MuData,
    *,
    source: str | Sequence[str],
    target: str,
    transform_batch: str | None = None,
    model: Model | None = None,
    device: str = "auto",
    progress: bool = True,
    key_added: str = DEFAULT_STEM,
    copy: bool = False,
) -> MuData | None:
    """Predict a modality for every cell that has the source, measured there or not.

    Parameters
    ----------
    mdata
        Cells; features are matched to the model's by name.
    source
        Modality to predict from, or several: each cell uses those of them that it has. The target
        itself may be among them (denoising).
    target
        Modality to predict.
    transform_batch
        As which batch to predict, one in which the target was measured; by default the mean over
        these. Only for models trained with `batch_key`.
    model
        Model to use instead of the one stored in `mdata`.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    progress
        Whether to show a progress bar, once it has taken two seconds.
    key_added
        Stem of the names in `mdata`.
    copy
        Return a changed copy, and leave `mdata` as it is.

    Returns
    -------
    None, or the changed copy with ``copy=True``. Written:

    ``.mod["<target>_from_<source>"]`` : AnnData
        ``.X`` float32, cells with the source x target features, in the target's units
        (probabilities where it is binary). ``.var_names`` are
        ``"<target>_from_<source>:<feature>"``; ``.var["feature"]`` has the plain name,
        ``.var["expected_r"]`` and ``.var["expected_r_within_groups"]`` the Pearson r on held-out
        cells of the training data. ``.var["error_q05"]`` and ``.var["error_q95"]``, added to the
        prediction, bound an interval that nine of ten measurements fall into, over cells like the
        held-out ones (split conformal prediction, made wider where the training on all cells moved
        the predictions). All four are of the sources that the cells here have, and of the worst of
        them where cells differ in that; NaN where that was not measured (fewer than 20 held-out
        cells, several sources that are not all others, or denoising), and with `transform_batch`,
        as they are of the mean over batches. Embeddings of `mdata` are copied into its ``.obsm``.
        ``.uns["unitednet_prediction"]`` marks it, and says what it was predicted from and as which
        batch; it is never trained on.
    ``.uns["unitednet"]["version"]`` : str
        Version of this package; marks the stem as its own.

    Raises
    ------
    TypeError
        `mdata` is not a MuData, or `model` not a model.
    ValueError
        An unknown modality or batch; no cell has the source; a measured modality bears the name;
        the prediction does not fit into memory, found before anything is computed; `mdata` on disk
        is a view or to be copied.

    Warns
    -----
    UserWarning
        A modality looks like raw counts, and those that the model was trained on did not. One of
        the model's is missing, and one that it does not know has its features.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False)
    >>> un.tl.predict_modality(mdata, source="rna", target="adt")
    >>> mdata["adt_from_rna"].var["feature"].iloc[0] == mdata["adt"].var_names[0]
    True
    """
    check_mudata(mdata, copy=copy)
    keys = check_key_added(mdata, key_added)
    found = resolve_model(model, mdata, key_added, device)
    sources = as_list(source)
    for name in sources:
        found.modality_index(name, "source")
    if not sources or len(set(sources)) != len(sources):
        raise ValueError(f"source: expected one or several different modalities, found {sources}.")
    aim = found.modality_index(target, "target")
    name = keys.predicted(sources, target)
    if name in mdata.mod and not is_predicted(name, mdata.mod[name]):
        raise ValueError(
            f"modality {name!r} exists and was not made by this package. Rename it, or use "
            "key_added."
        )
    held = mdata.obsm.get(name)
    # mudata's note of a modality's cells, left behind where it was dropped
    left = getattr(held, "dtype", None) == np.dtype(bool)
    if held is not None and name not in mdata.mod and not left:
        raise ValueError(
            f"modality {name!r} would overwrite .obsm[{name!r}]. Rename that, or use key_added."
        )
    data = found.open(mdata, sources)
    n_known = int(data.observed.any(1).sum())
    _check_room(len(data), n_known, len(found.info.modalities[aim].features), target)
    values = found.predict(
        data, sources, target, transform_batch=transform_batch, progress=progress
    )
    result = _results.target_of(mdata, copy)
    _results.write_prediction(
        result,
        keys,
        found,
        sources,
        target,
        values,
        data.observed[:, [found.modality_index(name, "source") for name in sources]],
        transform_batch=transform_batch,
        is_stored=model is None,
    )
    return result if copy else None


def _check_room(n_cells: int, n_known: int, n_features: int, target: str) -> None:
    """Refuse what memory cannot hold: values of all cells, and a copy where some have no source."""
    copied = n_known if n_known < n_cells else 0
    needed, room = 4.0 * (n_cells + copied) * n_features, available_memory()
    if needed > room:
        raise ValueError(
            f"target: expected a prediction that fits into memory, found {n_known} cells "
            f"x {n_features} features of {target!r}, {needed / 2**30:.3g} GiB, where "
            f"{room / 2**30:.3g} GiB are free. Predict the cells in parts, from files that hold "
            "some of them each, with model=unitednet_mu.get.model(mdata)."
        )
