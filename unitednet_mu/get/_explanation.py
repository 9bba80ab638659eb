"""Attributions of single cells as shap's own object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .._compat import is_sparse
from .._validate import is_one
from ._slots import choose, texts

if TYPE_CHECKING:
    from shap import Explanation


def check_no_n_top(n_top: int | None) -> None:
    """Refuse `n_top` together with ``as_explanation=True``: an explanation has all features."""
    if n_top is not None:
        raise ValueError(
            f"n_top={n_top} is for the table; with as_explanation=True leave it out, and pass "
            "max_display to shap's plots."
        )


def build_explanation(
    entry: Mapping[str, Any],
    *,
    run: str,
    features: Mapping[str, Sequence[str]],
    output: str | Sequence[str] | None,
    what: str,
    in_groups: Sequence[str] | None = None,
) -> Explanation:
    """Return stored attributions of single cells as a :class:`shap.Explanation`.

    Parameters
    ----------
    entry
        What `tl.explain` stored, with ``per_cell``.
    run
        The call that stores it, for the message.
    features
        Names of the features, by modality: those to include.
    output, what
        The output or outputs, all that are stored by default, and what one is called. A single name
        gives cells x features, otherwise there is a third axis.
    in_groups
        Only cells of these groups.

    Raises
    ------
    ValueError
        Nothing is stored for single cells, the output is not, or no cell is left.
    """
    if "per_cell" not in entry:
        raise ValueError(
            f"as_explanation needs attributions of single cells, which are not stored; run {run} "
            "first."
        )
    stored = entry["per_cell"]
    outputs = texts(stored["outputs"])
    chosen = [outputs.index(name) for name in choose(outputs, output, f"{what} kept of every cell")]
    cells = pd.Index(texts(entry["params"]["cells"]))
    blocks = {name: stored["modalities"].get(name) for name in features}
    rows = {
        name: np.full(len(cells), -1) if block is None else _positions(block, cells)
        for name, block in blocks.items()
    }
    wanted = np.any([place >= 0 for place in rows.values()], axis=0)
    if in_groups is not None:
        wanted &= np.isin(texts(entry["params"]["cell_groups"]), list(in_groups))
    if not wanted.any():
        raise ValueError(
            f"expected explained cells with one of the modalities {list(features)}"
            + ("" if in_groups is None else f" in the groups {list(in_groups)}")
            + ", found none."
        )
    parts = [
        _filled(blocks[name], rows[name][wanted], len(names), chosen)
        for name, names in features.items()
    ]
    values = np.concatenate([part[0] for part in parts], axis=1)
    base = np.reshape(stored["base_values"], (len(cells), len(outputs)))[wanted][:, chosen]
    single = output is not None and is_one(output)
    from shap import Explanation  # here, so that tables never import shap

    return Explanation(
        values=values[..., 0] if single else values,
        base_values=base[:, 0] if single else base,
        data=np.concatenate([part[1] for part in parts], axis=1),
        instance_names=list(cells[wanted]),
        feature_names=_distinct(features),
        output_names=str(output) if single else [outputs[k] for k in chosen],
    )


def _positions(block: Mapping[str, Any], cells: pd.Index) -> NDArray[np.intp]:
    """Row of each cell in a modality's block, -1 where it lacks the modality."""
    return np.asarray(pd.Index(texts(block["cells"])).get_indexer(cells))


def _filled(
    block: Mapping[str, Any] | None, rows: NDArray[np.intp], n_features: int, outputs: list[int]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Attributions and values; 0 and NaN for cells without the modality, to which it adds none."""
    values = np.zeros((len(rows), n_features, len(outputs)), np.float32)
    has = rows >= 0
    if block is None or not has.any():
        return values, np.full((len(rows), n_features), np.nan, np.float32)
    n_stored = len(texts(block["cells"]))
    found = np.reshape(block["values"], (n_stored, n_features, -1))[rows[has]]
    values[has] = found[:, :, outputs]
    picked = block["data"][rows[has]]
    picked = picked.toarray() if is_sparse(picked) else np.asarray(picked)
    data = np.full((len(rows), n_features), np.nan, np.result_type(np.float32, picked.dtype))
    data[has] = picked
    return values, data


def _distinct(features: Mapping[str, Sequence[str]]) -> list[str]:
    """Names of features, with the modality where two modalities share one."""
    often = Counter(name for names in features.values() for name in names)
    return [
        name if often[name] == 1 else f"{modality}:{name}"
        for modality, names in features.items()
        for name in names
    ]
