"""How unlike the cells of a reference a cell is, judged by its codes."""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from ._data import Dataset
from ._model import Model

Array = NDArray[np.float64]

#: Share of the covariance that is replaced by a multiple of the identity.
_SHRINKAGE = 0.03
_BLOCK = 4096
#: Reference cells that novelty is judged by, at most.
_REFERENCE_CELLS = 20_000
#: Reference cells that typical distances are taken from, at least.
_FEWEST_CELLS = 20
#: Turns a median absolute deviation into the standard deviation of a normal distribution.
_MAD_TO_SD = 1.4826


class Familiarity:
    """What the codes of a reference look like, group by group.

    The relative Mahalanobis distance (Ren et al. 2021): the distance to a group, with a covariance
    shared by all groups, less the distance to the reference as a whole. A softmax is as sure of
    cells far from everything as of any others; a distance is not. Distances are taken modality by
    modality and averaged over those that a cell has, so the groups of all modalities must agree;
    the nearest group counts. What is typical differs with the modalities that are there, so a cell
    is judged by the reference's cells that have its modalities, as if they had no other; where
    there are fewer than twenty of these, by all cells of the reference as they are.

    Parameters
    ----------
    codes
        Of the reference, cells x modalities x n_latent; NaN where a cell lacks a modality.
    groups
        Number of each cell's group.
    """

    def __init__(self, codes: NDArray[np.float32], groups: NDArray[np.intp]) -> None:
        self._groups = np.unique(groups)
        self._parts = [_Part(codes[:, m], groups, self._groups) for m in range(codes.shape[1])]
        self._codes, self._has = codes, _measured(codes)

    @classmethod
    def of(cls, model: Model, reference: Dataset, seed: int) -> Self:
        """Learn what a reference looks like to a model, in the groups that the model gives it.

        Of more than 20,000 cells so many are drawn; their order changes nothing.
        """
        cells = reference.canonical
        if len(cells) > _REFERENCE_CELLS:
            drawn = np.random.default_rng(seed).choice(len(cells), _REFERENCE_CELLS, replace=False)
            cells = cells[np.sort(drawn)]
        encoded = model.encode(reference.subset(cells))
        return cls(encoded.codes, encoded.logits.argmax(1))

    def novelty(self, codes: NDArray[np.float32]) -> NDArray[np.float32]:
        """How far cells are from the reference's groups.

        Returns
        -------
        Robust standard deviations of the reference's own cells from their median, one a cell: about
        0 for a cell like most of them. NaN for a cell without any modality.
        """
        found, has = np.full(len(codes), np.nan, np.float32), _measured(codes)
        of_reference = self._has.sum(0) > 1
        for pattern in np.unique(has[:, of_reference], axis=0):
            cells = (has[:, of_reference] == pattern).all(1)
            if pattern.any():
                centre, spread = self._typical(np.flatnonzero(of_reference)[pattern])
                found[cells] = (self._distance(codes[cells]) - centre) / spread
        return found

    def _typical(self, modalities: NDArray[np.intp]) -> tuple[float, float]:
        """Median distance of the reference's cells judged by these modalities, and its spread."""
        able = self._has[:, modalities].all(1)
        codes = self._codes
        if able.sum() >= _FEWEST_CELLS:
            codes = np.full_like(self._codes[able], np.nan)
            codes[:, modalities] = self._codes[able][:, modalities]
        distance = self._distance(codes)
        centre = float(np.nanmedian(distance))
        return centre, max(_MAD_TO_SD * float(np.nanmedian(np.abs(distance - centre))), 1e-12)

    def _distance(self, codes: NDArray[np.float32]) -> Array:
        nearest = np.full(len(codes), np.nan)
        for start in range(0, len(codes), _BLOCK):
            block = codes[start : start + _BLOCK].astype(np.float64)
            total, counted = np.zeros((2, len(block), len(self._groups)))
            for m, part in enumerate(self._parts):
                distance = part.relative_distance(block[:, m])
                known = ~np.isnan(distance)
                total[known] += distance[known]
                counted += known
            mean = np.where(counted > 0, total / np.maximum(counted, 1), np.inf).min(1)
            nearest[start : start + _BLOCK] = np.where(np.isfinite(mean), mean, np.nan)
        return nearest


class _Part:
    """One modality's centres and covariances."""

    def __init__(
        self, codes: NDArray[np.float32], groups: NDArray[np.intp], names: NDArray[np.intp]
    ) -> None:
        here = ~np.isnan(codes).any(1)
        x, groups = codes[here].astype(np.float64), groups[here]
        self._of_any, self._n_groups = len(x) > 1, len(names)
        if not self._of_any:
            return
        self._mean = x.mean(0)
        self._centres = np.full((len(names), x.shape[1]), np.nan)
        within = x.copy()
        for k, name in enumerate(names):
            mine = groups == name
            if mine.any():
                self._centres[k] = x[mine].mean(0)
                within[mine] -= self._centres[k]
        self._within, self._whole = _root(within), _root(x - self._mean)

    def relative_distance(self, x: Array) -> Array:
        """Cells x groups; NaN for cells or groups that lack the modality."""
        from sklearn.metrics import pairwise_distances

        out = np.full((len(x), self._n_groups), np.nan)
        here = ~np.isnan(x).any(1)
        if not self._of_any or not here.any():
            return out
        known = ~np.isnan(self._centres).any(1)
        to_groups = pairwise_distances(
            _whitened(self._within, x[here]), _whitened(self._within, self._centres[known])
        )
        to_whole = np.square(_whitened(self._whole, x[here] - self._mean)).sum(1)
        out[np.ix_(here, known)] = np.square(to_groups) - to_whole[:, None]
        return out


def _measured(codes: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Cells x modalities."""
    return np.asarray(~np.isnan(codes).any(2), dtype=bool)


def _root(deviations: Array) -> Array:
    """Cholesky factor of the shrunk covariance."""
    covariance = deviations.T @ deviations / len(deviations)
    size = max(float(np.trace(covariance)) / len(covariance), 1e-12)
    shrunk = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * size * np.eye(len(covariance))
    return np.asarray(np.linalg.cholesky(shrunk), np.float64)


def _whitened(root: Array, x: Array) -> Array:
    return np.asarray(solve_triangular(root, x.T, lower=True).T)
