"""Which cells are trained on and which are held out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from _prepare import Prepared
from scipy.spatial import cKDTree
from sklearn.model_selection import StratifiedKFold

#: Positions of the cells to train on and of the cells held out.
Split = tuple[np.ndarray, np.ndarray]

N_FOLDS = 5
_STRIPS = 5  # the tissue is cut into this many times as many blocks


def folds(data: Prepared, seed: int) -> list[Split]:
    """Five splits with a fifth of the cells held out in each, every cell once.

    Cells are drawn at random, of every label its share. Cells of a tissue are held out by blocks,
    and cells next to a block are not trained on: neighbours resemble each other, and what is
    computed from neighbours (a niche) would give them away.
    """
    if data.coordinates is not None:
        return _tissue_folds(data.coordinates, seed)
    splitter = StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed)
    with few_members():
        return list(splitter.split(np.zeros(len(data)), data.labels))


def by_batch(data: Prepared, seed: int) -> list[Split]:
    """Each batch held out in turn; :func:`folds` where there are none."""
    if data.batches is None:
        return folds(data, seed)
    return [
        (np.flatnonzero(data.batches != name), np.flatnonzero(data.batches == name))
        for name in np.unique(data.batches)
    ]


@contextmanager
def few_members() -> Iterator[None]:
    """Let labels with fewer cells than folds pass without scikit-learn's warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        yield


def _tissue_folds(coordinates: np.ndarray, seed: int) -> list[Split]:
    blocks = _strip(coordinates[:, 0]) * _STRIPS + _strip(coordinates[:, 1])
    order = np.random.default_rng(seed).permutation(_STRIPS**2)
    fold = order[blocks] % N_FOLDS
    nearest = cKDTree(coordinates).query(coordinates, 2)[0][:, 1]
    margin = 2 * float(np.median(nearest))
    splits = []
    for number in range(N_FOLDS):
        test, rest = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        distance = cKDTree(coordinates[test]).query(coordinates[rest])[0]
        splits.append((rest[distance > margin], test))
    return splits


def _strip(values: np.ndarray) -> np.ndarray:
    """Cut values into strips of equal numbers of cells."""
    edges = np.quantile(values, np.linspace(0, 1, _STRIPS + 1)[1:-1])
    return np.searchsorted(edges, values, side="right")
