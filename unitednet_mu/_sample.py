"""Which cells are explained, and against which background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
    n_cells
        Largest number of cells per group.
    n_background
        Number of background cells in all.
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
    complete = order[has[order].all(1)]
    if not len(able):
        raise ValueError("expected cells with a group and a modality to explain, found none.")
    if not len(complete):
        raise ValueError("background: expected cells that have all explained modalities, found none.")
    if n_cells < 1 or n_background < 1:
        raise ValueError(f"expected n_cells and n_background >= 1, found {n_cells} and {n_background}.")
    n_groups = len(np.unique(groups[complete]))
    chosen = _named(data, cells, able, "cells") if cells is not None else _draw(able, groups, n_cells, rng)
    if background is not None:
        return Sample(chosen, _named(data, background, complete, "background"))
    per_group = -(-n_background // n_groups)
    drawn = _draw(complete, groups, per_group, rng)
    return Sample(chosen, np.sort(rng.permutation(drawn)[:n_background]))


def _draw(cells: np.ndarray, groups: np.ndarray, per_group: int, rng: np.random.Generator) -> np.ndarray:
    parts = [cells[groups[cells] == k] for k in np.unique(groups[cells])]
    return np.concatenate([rng.permutation(part)[:per_group] for part in parts])


def _named(data: Dataset, names: Sequence[str], able: np.ndarray, argument: str) -> np.ndarray:
    positions = data.obs_names.get_indexer(list(names))
    if (positions < 0).any():
        missing = [name for name, position in zip(names, positions, strict=True) if position < 0]
        raise ValueError(unknown_name(f"{argument}: cell", missing[0], data.obs_names))
    useless = positions[~np.isin(positions, able)]
    if len(useless):
        raise ValueError(
            f"{argument}: cell {data.obs_names[useless[0]]!r} lacks a group or a modality to explain."
        )
    return positions
