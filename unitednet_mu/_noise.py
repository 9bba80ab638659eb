"""How much of a modality's input training should drop, found from the data."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from ._data import Dataset
from ._matrix import Source, to_dense

Array = NDArray[np.float64]

_MAX_CELLS = 2000
_FEWEST_CELLS = 20
_BLOCK = 2048
_PENALTIES = np.logspace(-1, 7, 41)
#: Eigenvalues smaller than this share of the largest are rounding errors.
_RANK = 1e-10
#: So are standard deviations smaller than this share of the largest value.
_ROUNDING = 1e-10
_LARGEST = 0.9
#: Where nothing can be found out: one modality only, or too few cells that have two.
_DEFAULT = 0.5


def choose_input_dropout(data: Dataset, cells: NDArray[np.intp], seed: int) -> list[float]:
    """Share of input features to drop in each modality.

    Dropping a share `p` of standardised inputs adds, in expectation, the penalty p / (1 - p) times
    the squared weights to a linear map's mean squared error (Wager et al. 2013): ridge regression
    with a penalty of n p / (1 - p) for n cells. `p` is set so that this is the penalty with which
    ridge regression predicts the other modalities best, by generalised cross-validation (Golub,
    Heath and Wahba 1979). Many noisy features are dropped often, few and clean ones hardly ever.
    It is found with some of the cells where there are many, and taken to grow with the square root
    of their number: from 1,000 to 4,000 cells it grew by powers between 0 and 2/3 in two sets.

    Parameters
    ----------
    data
        All cells.
    cells
        Positions of the training cells; nothing else is read, and of these at most 2,000 a pair of
        modalities.
    seed
        Of their draw.

    Returns
    -------
    One share in [0, 0.9] a modality; 0.5 where no other shares at least 20 cells with it.
    """
    cells = np.random.default_rng(seed).permutation(cells)
    grams = _Grams(data)
    shares = []
    for m in range(len(data.sources)):
        scores = np.zeros(len(_PENALTIES))
        for other in range(len(data.sources)):
            both = cells[data.observed[cells][:, [m, other]].all(1)]
            if other == m or len(both) < _FEWEST_CELLS:
                continue
            both = both[:_MAX_CELLS]
            scores += cross_validation_scores(*grams.spectrum(m, both), grams.of(other, both))
        n = int(data.observed[cells, m].sum())
        penalty = _PENALTIES[int(scores.argmin())] * np.sqrt(max(n / _MAX_CELLS, 1.0))
        shares.append(min(penalty / (penalty + n), _LARGEST) if scores.any() else _DEFAULT)
    return shares


def cross_validation_scores(values: Array, vectors: Array, target: Array) -> Array:
    """Generalised cross-validation of ridge regression, one score a penalty.

    Parameters
    ----------
    values, vectors
        Eigenvalues and eigenvectors (in columns) of the source's Gram matrix; those left out are
        zero.
    target
        Gram matrix of the target, cells x cells, of centred features as the source's: the sum over
        its features of squared projections is all that the scores need.

    Returns
    -------
    Mean squared error over the squared share of free dimensions, relative to the target's variance.
    """
    n, rank = vectors.shape
    variance = float(np.trace(target))
    if not variance > 0:  # nothing to predict
        return np.zeros(len(_PENALTIES))
    power = np.einsum("ij,ij->j", vectors, target @ vectors) / variance
    left = _PENALTIES[:, None] / (values.clip(0)[None, :] + _PENALTIES[:, None])
    free = (left.sum(1) + n - rank - 1) / n  # the mean takes one dimension
    error = left**2 @ power + max(1 - power.sum(), 0.0)
    return np.asarray(error / np.maximum(free, 1e-12) ** 2)


class _Grams:
    """Gram matrices of standardised features, kept for pairs that have the same cells."""

    def __init__(self, data: Dataset) -> None:
        self._data = data
        self._kept: dict[tuple[int, bytes], Array] = {}
        self._spectrum: tuple[tuple[int, bytes], tuple[Array, Array]] | None = None

    def of(self, m: int, cells: NDArray[np.intp]) -> Array:
        """Gram matrix of modality `m` over `cells`, each of which has it."""
        key = m, cells.tobytes()
        if key not in self._kept:
            if len(self._kept) > 2 * len(self._data.sources):  # pairs that differ in their cells
                self._kept.clear()
            self._kept[key] = _gram(self._data.sources[m], cells)
        return self._kept[key]

    def spectrum(self, m: int, cells: NDArray[np.intp]) -> tuple[Array, Array]:
        """Its eigenvalues and eigenvectors, zeros perhaps left out; the last asked for are kept."""
        key = m, cells.tobytes()
        if self._spectrum is None or self._spectrum[0] != key:
            source = self._data.sources[m]
            narrow = len(source.spec.features) < len(cells)
            found = _thin_spectrum(source, cells) if narrow else eigh(self.of(m, cells))
            self._spectrum = key, found
        return self._spectrum[1]


def _thin_spectrum(source: Source, cells: NDArray[np.intp]) -> tuple[Array, Array]:
    """Do the same with products of features, where they are fewer than the cells."""
    x = np.hstack(list(_standardised(source, cells)))
    values, directions = eigh(x.T @ x)
    there = values > _RANK * values[-1]
    return values[there], x @ (directions[:, there] / np.sqrt(values[there]))


def _gram(source: Source, cells: NDArray[np.intp]) -> Array:
    gram = np.zeros((len(cells), len(cells)))
    for block in _standardised(source, cells):
        gram += block @ block.T
    return gram


def _standardised(source: Source, cells: NDArray[np.intp]) -> Iterator[Array]:
    """Yield blocks of standardised features."""
    rows = source.sparse_or_dense(cells)
    for start in range(0, rows.shape[1], _BLOCK):
        block = to_dense(rows[:, start : start + _BLOCK]).astype(np.float64)
        spread = block.std(0)
        varies = spread > _ROUNDING * np.abs(block).max(0)
        yield (block - block.mean(0)) / np.where(varies, spread, 1)
