"""Which features make a group, and which features of one modality drive those of another in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from mudata import MuData
from tqdm.auto import tqdm

from .. import _results
from .._data import Dataset
from .._explain import ExplainSample, cross_relevance, group_relevance
from .._keys import DEFAULT_STEM, check_key_added
from .._model import Model
from .._sample import choose_sample
from .._validate import as_names, check_mudata, obs_column, unknown_name
from ._common import resolve_model

#: Pairs of features beyond which only the strongest are kept by default.
_DENSE_PAIRS = 250_000


def explain(
    mdata: MuData,
    *,
    source: str | None = None,
    target: str | None = None,
    groupby: str | None = None,
    n_cells: int = 50,
    n_background: int = 50,
    cells: Sequence[str] | None = None,
    background: Sequence[str] | None = None,
    output: Literal["logits", "probabilities"] = "logits",
    top_k: int | Literal["auto"] | None = "auto",
    transform_batch: str | None = None,
    model: Model | None = None,
    random_state: int = 0,
    device: str = "auto",
    progress: bool = True,
    key_added: str = DEFAULT_STEM,
    copy: bool = False,
) -> MuData | None:
    """Attribute groups to features, or one modality's features to another's, group by group.

    DeepLIFT's rescale rule against a background, averaged over it: what ``shap.DeepExplainer`` computes, an
    approximation of Shapley values that adds up exactly to the output. Without `source` and `target`, group
    identification is explained with all modalities as joint input; with both, each feature of the target is
    explained by all features of the source.

    Parameters
    ----------
    mdata
        Cells; features are matched to the model's by name.
    source, target
        Explain the prediction of `target` from `source`; both or neither.
    groupby
        Column with the group of each cell (names as in the model); by default the group that the head
        identifies. Relevance of a group is averaged over that group's own cells only.
    n_cells
        Largest number of cells explained per group, drawn at random.
    n_background
        Number of background cells, drawn evenly over groups.
    cells, background
        Names of the cells to explain, and of the background, instead of drawing them.
    output
        Of group identification: ``"logits"`` (centred over groups) or ``"probabilities"``.
    top_k
        Of cross-modal relevance: number of strongest pairs kept per group; ``"auto"`` keeps all up to
        250,000 pairs, and that many beyond; ``None`` keeps all.
    transform_batch
        As which batch to decode; by default the even mixture of the batches that measured the target.
    model
        Model to use instead of the one stored in `mdata`.
    random_state
        Seed of the sample and background.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    progress
        Whether to show a progress bar.
    key_added
        Stem of the names in `mdata`.
    copy
        Return a changed copy, and leave `mdata` as it is.

    Returns
    -------
    None, or the changed copy with ``copy=True``. Without `source` and `target` written:

    ``.uns["unitednet"]["relevance"]`` : dict
        Group and feature names, and per modality ``signed`` and ``absolute`` float32 matrices, features x
        groups: the mean over the group's cells of the attribution to that group's output, and of its absolute
        value. NaN where no cell of the group has the modality. ``params`` holds the sample, the background
        and the additivity gap.
    ``mdata[mod].varm["unitednet_relevance"]``, ``["unitednet_relevance_abs"]`` : float32
        The same, features x groups.

    With them:

    ``.uns["unitednet"]["cross_relevance"]["<target>_from_<source>"]`` : dict
        Names, and per group (by its position) sparse float32 matrices, source x target features, ``signed``
        and ``absolute``: change of the target in its units (binary targets: in the logit) that a feature's
        departure from the background accounts for.

    Raises
    ------
    TypeError
        `mdata` is not a MuData, or `model` not a model.
    ValueError
        Only one of `source` and `target`, unknown names, or no cell or background with the modalities.
    RuntimeError
        Attributions do not add up to the output.

    Notes
    -----
    Shrikumar et al. 2017 (rescale rule), Lundberg & Lee 2017 (averaging over a background).

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False)
    >>> un.tl.explain(mdata, progress=False)
    >>> un.get.relevance(mdata, n_top=3).shape[0]
    6
    """
    check_mudata(mdata)
    keys = check_key_added(mdata, key_added)
    if (source is None) != (target is None):
        raise ValueError(f"expected both source and target, or neither, found {source!r} and {target!r}.")
    if output not in ("logits", "probabilities"):
        raise ValueError(unknown_name("output", output, ("logits", "probabilities")))
    found = resolve_model(model, mdata, key_added, device)
    data = found.open(mdata)
    needed = [found.modality_index(source, "source")] if source is not None else list(range(len(data.sources)))
    groups = _groups(mdata, data, found, groupby)
    sample = choose_sample(
        data,
        groups,
        needed,
        n_cells=n_cells,
        n_background=n_background,
        cells=cells,
        background=background,
        seed=random_state,
    )
    params = {
        "cells": np.asarray(data.obs_names[sample.cells], dtype=str),
        "background": np.asarray(data.obs_names[sample.background], dtype=str),
        "groupby": groupby or "",
        "random_state": int(random_state),
    }
    result = _results.target_of(mdata, copy)
    with tqdm(total=len(sample.cells), desc="explain", unit="cell", disable=not progress) as bar:

        def advance(done: int) -> None:
            bar.update(done - bar.n)

        if source is None or target is None:
            explained, rows = (_as_sample(data, found, part, groups, None) for part in (sample.cells, sample.background))
            whole = group_relevance(found.network, explained, rows, output=output, progress=advance)
            params |= {"output": output, "gap": float(whole.gap), "n_cells": whole.n_cells}
            _results.write_relevance(result, keys, found, whole.signed, whole.absolute, params)
        else:
            found.modality_index(target, "target")
            batch = _batch_mixture(found, target, transform_batch)
            explained, rows = (_as_sample(data, found, part, groups, batch) for part in (sample.cells, sample.background))
            kept = _top_k(found, source, target, top_k)
            pair = cross_relevance(
                found.network,
                needed[0],
                found.modality_index(target, "target"),
                explained,
                rows,
                top_k=kept,
                progress=advance,
            )
            params |= {"gap": float(pair.gap), "n_cells": pair.n_cells, "top_k": kept or 0}
            absolute = pair.absolute if pair.absolute is not None else []
            _results.write_cross_relevance(
                result, keys, found, source, target, pair.signed, absolute, params
            )
    return result if copy else None


def _groups(mdata: MuData, data: Dataset, model: Model, groupby: str | None) -> np.ndarray:
    """Group of each cell as a position among the model's groups, -1 where it has none."""
    if groupby is None:
        logits = model.encode(data).logits
        return np.where(np.isnan(logits).any(1), -1, np.nan_to_num(logits).argmax(1))
    codes, names = as_names(obs_column(mdata, groupby, "groupby"))
    known = {name: index for index, name in enumerate(model.info.groups)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(unknown_name(f"groupby={groupby!r}: group", unknown[0], known))
    return np.append([known[name] for name in names], -1).astype(np.int64)[codes]


def _as_sample(
    data: Dataset, model: Model, cells: np.ndarray, groups: np.ndarray, batch: np.ndarray | None
) -> ExplainSample:
    """Values of `cells` as the engine takes them: all cells as rows, those without the modality empty."""
    x: list[Any] = []
    for m, source in enumerate(data.sources):
        has = data.observed[cells, m]
        if not has.any():
            x.append(None)
            continue
        where = np.where(has, np.cumsum(has) - 1, 0)  # rows of cells that lack the modality are never read
        x.append(source.sparse_or_dense(cells[has])[where])
    rows = None if batch is None else np.repeat(batch[None], len(cells), 0)
    return ExplainSample(x, data.observed[cells], groups[cells], rows, len(model.info.groups))


def _batch_mixture(model: Model, target: str, transform_batch: str | None) -> np.ndarray | None:
    vectors = model.batch_vectors(target, transform_batch)
    if not model.network.n_batches:
        return None
    return torch.mean(vectors, 0).cpu().numpy()  # type: ignore[no-any-return]


def _top_k(model: Model, source: str, target: str, top_k: int | str | None) -> int | None:
    widths = [len(model.info.modalities[model.modality_index(n, "modality")].features) for n in (source, target)]
    if top_k == "auto":
        return None if widths[0] * widths[1] <= _DENSE_PAIRS else _DENSE_PAIRS
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"top_k: expected 'auto', None or an integer >= 1, found {top_k!r}.")
    return top_k


