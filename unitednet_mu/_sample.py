"""Which cells are explained, and against which background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ._compat import warn_user
from ._data import Dataset
from ._validate import unknown_name


@dataclass(frozen=True)
class Sample:
    """Positions of the cells to explain and of the background."""

    cells: np.ndarray
    background: np.ndarray


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
        Modalities that are explained: a cell needs one of them, a background cell all of them.
        Where no cell to explain has all, background is drawn for each largest set that one has.
    n_cells
        Largest number of cells per group.
    n_background
        Largest number of background cells (of each such set), evenly over groups.
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
        chosen = _draw(able, groups, n_cells, rng)
    else:
        chosen = _named(data, cells, able, "cells")
    named = None if background is None else _named(data, background, order, "background")
    parts = []
    for largest in _largest(has[chosen]):
        pool = order[(has[order] | ~largest).all(1)]
        if named is None:
            per_group = -(-n_background // len(np.unique(groups[pool])))
            parts.append(rng.permutation(_draw(pool, groups, per_group, rng))[:n_background])
        elif np.isin(named, pool).any():
            parts.append(named)
        else:
            names = [data.sources[m].spec.name for m in np.asarray(modalities)[largest]]
            raise ValueError(
                f"background: expected a cell with {names}, as cells to explain have, found none."
            )
    # each once, in an order that does not depend on that of the cells
    return Sample(chosen, np.array(list(dict.fromkeys(np.concatenate(parts).tolist())), np.intp))


def warn_of_one_group(groups: np.ndarray, names: Sequence[str]) -> None:
    """Warn where all cells are of one group: what makes it a group is then not told.

    Parameters
    ----------
    groups
        Group of each cell of the data, -1 where it has none.
    names
        Of all groups.
    """
    found = np.unique(groups[groups >= 0])
    if len(found) == 1 and len(names) > 1:
        warn_user(
            f"all cells are of one group, {names[int(found[0])]!r}, and so is the background: "
            "relevance tells what sets single cells apart from it, not what makes a group. Explain "
            "an object that has cells of other groups (and name those of interest with cells=), or "
            "pass background=."
        )


def _largest(has: np.ndarray) -> list[np.ndarray]:
    """Different rows (sets of modalities) that are not part of another."""
    patterns = np.unique(has, axis=0)
    return [p for p in patterns if (patterns[:, p].all(1)).sum() == 1]


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
