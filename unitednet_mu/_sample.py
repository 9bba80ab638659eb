"""Which cells are explained, and against which background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ._compat import warn_user
from ._data import Dataset
from ._validate import unknown_name

#: Fewer background cells than this are worth a warning, where more were asked for.
_FEW_BACKGROUND = 10


@dataclass(frozen=True)
class Sample:
    """Which cells are explained, and what they are compared with.

    Attributes
    ----------
    cells, background
        Positions of the cells to explain, and of the background.
    compared
        By the modalities that a cell has, of those explained (bool, one for each of the model's, as
        bytes): positions in `background` of the cells drawn for it. Empty where the background was
        named: every cell is compared with all of it that have what it has.
    """

    cells: np.ndarray
    background: np.ndarray
    compared: Mapping[bytes, np.ndarray] = field(default_factory=dict)


def choose_sample(
    data: Dataset,
    groups: np.ndarray,
    modalities: Sequence[int],
    *,
    n_cells: int,
    n_background: int,
    cells: Sequence[str] | None,
    background: Sequence[str] | None,
    seed: int,
) -> Sample:
    """Draw cells evenly over groups, or take those that are named.

    Parameters
    ----------
    data
        All cells.
    groups
        Group of each cell, -1 where it has none.
    modalities
        Modalities that are explained: a cell needs one of them. Background is drawn for each set of
        them that cells to explain have, from all cells that have these.
    n_cells
        Number of cells per group with each modality, if there are as many.
    n_background
        Largest number of background cells for each such set, evenly over groups.
    cells, background
        Names instead.
    seed
        Of the draw; it depends on the names of the cells, not on their order.

    Raises
    ------
    ValueError
        Unknown names, or nothing to draw from.
    """
    rng = np.random.default_rng(seed)
    has = data.observed[:, list(modalities)]
    order = data.canonical
    able = order[has[order].any(1) & (groups[order] >= 0)]
    if not len(able):
        raise ValueError("expected cells with a group and a modality to explain, found none.")
    if cells is None:
        chosen = _draw_of_each_modality(able, has, groups, n_cells, rng)
    else:
        chosen = _named(data, cells, able, "cells")
    patterns = np.unique(has[chosen], axis=0)
    pools = [order[(has[order] | ~pattern).all(1)] for pattern in patterns]
    if background is not None:
        named = _named(data, background, order, "background")
        for pattern, pool in zip(patterns, pools, strict=True):
            if not np.isin(named, pool).any():
                names = [data.sources[m].spec.name for m in np.asarray(modalities)[pattern]]
                raise ValueError(
                    f"background: expected a cell with {names}, as cells to explain have, found "
                    "none."
                )
        return Sample(chosen, named)
    parts = []
    for pool in pools:
        per_group = -(-n_background // len(np.unique(groups[pool])))
        parts.append(rng.permutation(_draw(pool, groups, per_group, rng))[:n_background])
    # each once, in an order that does not depend on that of the cells
    whole = np.array(list(dict.fromkeys(np.concatenate(parts).tolist())), np.intp)
    compared = {}
    for pattern, part in zip(patterns, parts, strict=True):
        mask = np.zeros(data.observed.shape[1], dtype=bool)
        mask[list(modalities)] = pattern
        compared[mask.tobytes()] = np.flatnonzero(np.isin(whole, part))
    return Sample(chosen, whole, compared)


def warn_of_background(
    sample: Sample, data: Dataset, groups: np.ndarray, names: Sequence[str], n_background: int
) -> None:
    """Warn where cells are compared with cells of one group, or with very few.

    Parameters
    ----------
    sample
        Cells and background, drawn.
    data
        All cells.
    groups
        Group of each cell of the data, -1 where it has none.
    names
        Of all groups.
    n_background
        How many background cells were asked for.
    """
    found = np.unique(groups[groups >= 0])
    if len(found) == 1 and len(names) > 1:
        warn_user(
            f"all cells are of one group, {names[int(found[0])]!r}, and so is the background: "
            "relevance tells what sets single cells apart from it, not what makes a group. Explain "
            "an object that has cells of other groups (and name those of interest with cells=), or "
            "pass background=."
        )
        return
    for mask in sample.compared:
        has = np.frombuffer(mask, dtype=bool)
        pool = (data.observed | ~has).all(1)
        what = [source.spec.name for source, one in zip(data.sources, has, strict=True) if one]
        of = np.unique(groups[pool])
        if len(of) == 1 and len(names) > 1:
            group = names[int(of[0])] if of[0] >= 0 else "none"
            warn_user(
                f"cells with {what} are compared with cells of one group only, {group!r}, as no "
                "other has all of these: relevance of that group's own features is then too small. "
                "Leave modalities out that only some groups have (fit(modalities=[...])), or read "
                "relevance of cells with fewer modalities (cells=)."
            )
        elif pool.sum() < min(_FEW_BACKGROUND, n_background):
            warn_user(
                f"cells with {what} are compared with {pool.sum()} cells, all that have these: "
                "relevance depends much on which these are."
            )


def _draw_of_each_modality(
    cells: np.ndarray, has: np.ndarray, groups: np.ndarray, per_group: int, rng: np.random.Generator
) -> np.ndarray:
    """Cells of each group, and so many more that every modality has as many, or all there are."""
    parts = []
    for k in np.unique(groups[cells]):
        part = rng.permutation(cells[groups[cells] == k])
        taken = np.arange(len(part)) < per_group
        for of in has[part].T:
            missing = max(per_group - int((taken & of).sum()), 0)
            taken[np.flatnonzero(of & ~taken)[:missing]] = True
        parts.append(part[taken])
    return np.concatenate(parts)


def _draw(
    cells: np.ndarray, groups: np.ndarray, per_group: int, rng: np.random.Generator
) -> np.ndarray:
    parts = [cells[groups[cells] == k] for k in np.unique(groups[cells])]
    return np.concatenate([rng.permutation(part)[:per_group] for part in parts])


def _named(data: Dataset, names: Sequence[str], able: np.ndarray, argument: str) -> np.ndarray:
    wanted = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    if not wanted:
        raise ValueError(f"{argument}: expected names of cells, found none.")
    positions = data.obs_names.get_indexer(pd.Index(wanted))
    if (positions < 0).any():
        missing = wanted[int(np.argmax(positions < 0))]
        raise ValueError(unknown_name(f"{argument}: cell", missing, data.obs_names))
    useless = positions[~np.isin(positions, able)]
    if len(useless):
        name = data.obs_names[useless[0]]
        raise ValueError(f"{argument}: cell {name!r} lacks a group or a modality to explain.")
    return positions
