"""Significance of relevance from refits on cells some of whose features are shuffled.

Each refit gives, for the features shuffled in it, values that are of chance, in a network that has
learned from all the others. A feature is compared with its own such values, after Tusher et al.,
PNAS 98, 5116 (2001): how far it stands above their mean, over their standard deviation plus the
typical one. What a single feature has are few values; those of all features of a group, each
standardised in the same way by the other refits, make one null distribution (pooled).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ._data import Dataset
from ._matrix import Shuffled

Array = NDArray[Any]

#: A refit shuffles one of so many parts of the features, in turn.
PARTS = 2
#: Least null values of a feature: a standard deviation of all but one takes two.
FEWEST = 3


def shuffled(
    data: Dataset, modalities: Sequence[int], groups: Array | None, number: int, seed: int
) -> Iterator[tuple[Dataset, list[Array]]]:
    """Yield data in which a part of the features are read from other cells.

    All features of the part come from one other cell, so that they vary together as before; it has
    the same modalities and is of the same batch and, with `groups`, group.

    Parameters
    ----------
    data
        All cells; what is drawn depends on their names, not on their order.
    modalities
        Whose features are shuffled.
    groups
        Group of each cell, not to be crossed; None shuffles across groups.
    number
        How many; every feature is shuffled in one of `PARTS` in a row.
    seed
        Of the draws.

    Yields
    ------
    The data, and per modality of `modalities` which features are shuffled.
    """
    cells = data.canonical
    columns = [data.batches[:, None], data.observed, *([] if groups is None else [groups[:, None]])]
    stratum = np.unique(np.hstack(columns)[cells], axis=0, return_inverse=True)[1].ravel()
    before = cells[np.argsort(stratum, kind="stable")]
    sizes = [len(data.sources[m].spec.features) for m in modalities]
    parts: list[Array] = []
    for position, sequence in enumerate(np.random.SeedSequence(seed).spawn(number)):
        rng = np.random.default_rng(sequence)
        if position % PARTS == 0:
            parts = [rng.permutation(size) % PARTS for size in sizes]
        partner = np.arange(len(data))
        partner[before] = cells[np.lexsort((rng.random(len(cells)), stratum))]
        chosen = [part == position % PARTS for part in parts]
        yield _with_partners(data, dict(zip(modalities, chosen, strict=True)), partner), chosen


def _with_partners(data: Dataset, chosen: dict[int, Array], partner: Array) -> Dataset:
    sources = list(data.sources)
    for m, columns in chosen.items():
        source = sources[m]
        has = data.observed[:, m]
        rows = np.arange(int(source.rows.max(initial=-1)) + 1)
        rows[source.rows[has]] = source.rows[partner[has]]
        sources[m] = replace(source, matrix=Shuffled(source.matrix, rows, columns))
    return Dataset(data.obs_names, sources, data.labels, data.batches)


@dataclass(frozen=True)
class Null:
    """Null values of some features, or pairs of features, in one group.

    Parameters
    ----------
    drawn
        Refits x tests; NaN where the refit did not shuffle the feature.
    blocks
        Per test the number, from 0 on, of the block within which values are of one scale.
    """

    drawn: Array
    blocks: Array

    def take(self, tests: Array) -> Null:
        """Return those of some tests, by position."""
        return Null(self.drawn[:, tests], self.blocks[tests])


def p_values(observed: Array, null: Null, pool: Null) -> NDArray[np.float64]:
    """One-sided p-values: the share of pooled null values that are as large, or larger.

    Parameters
    ----------
    observed
        Value of each test.
    null
        The tests' own null values.
    pool
        Those that make the null distribution, of the same refits; may be `null` itself. Every block
        of the tests has some here.

    Returns
    -------
    Float64 per test; NaN where it was not observed, or has fewer than three null values.
    """
    moments = _Moments.of(pool.drawn)
    distances = []
    for row in pool.drawn:
        others = moments.without(row)  # as an observed value is none of those it is compared with
        distances.append(_distance(row, others, others.typical_sd(pool.blocks)[pool.blocks]))
    by_chance = np.concatenate(distances)
    by_chance = np.sort(by_chance[~np.isnan(by_chance)])
    own = _Moments.of(null.drawn)
    found = _distance(observed, own, moments.typical_sd(pool.blocks)[null.blocks])
    reached = len(by_chance) - np.searchsorted(by_chance, found, side="left")
    known = (own.n >= FEWEST) & ~np.isnan(found)
    return np.where(known, (1 + reached) / (1 + len(by_chance)), np.nan)


def q_values(p: Array, n_tests: int | None = None) -> NDArray[np.float64]:
    """False-discovery rate by Benjamini and Hochberg; NaN stays NaN and is no test.

    Parameters
    ----------
    p
        p-values, float64.
    n_tests
        Number of tests, where these are only some: the others count as not significant at all.
    """
    from scipy.stats import false_discovery_control

    q = np.full(p.shape, np.nan)
    known = ~np.isnan(p)
    if known.any():
        more = 1.0 if n_tests is None else n_tests / int(known.sum())
        q[known] = np.minimum(1.0, more * false_discovery_control(p[known]))
    return q


@dataclass(frozen=True)
class _Moments:
    """Number, mean and sum of squared deviations of each test's null values."""

    n: Array
    mean: Array
    squares: Array

    @classmethod
    def of(cls, values: Array) -> _Moments:
        n = (~np.isnan(values)).sum(0)
        mean = np.nansum(values, 0, dtype=np.float64) / np.maximum(n, 1)
        return cls(n, mean, np.nansum((values - mean) ** 2, 0))

    def without(self, row: Array) -> _Moments:
        """Moments without one value of each test; tests that lack it stay as they are."""
        there = ~np.isnan(row)
        apart = np.where(there, row - self.mean, 0.0)
        n = self.n - there
        mean = self.mean - apart / np.maximum(n, 1)
        squares = self.squares - apart**2 * self.n / np.maximum(n, 1)
        return _Moments(n, mean, np.maximum(squares, 0.0))

    @property
    def sd(self) -> Array:
        """Standard deviations, NaN of fewer than two values."""
        return np.where(self.n > 1, np.sqrt(self.squares / np.maximum(self.n - 1, 1)), np.nan)

    def typical_sd(self, blocks: Array) -> Array:
        """Median standard deviation of each block; NaN of a block without any."""
        medians = pd.Series(self.sd).groupby(blocks).median()
        return np.asarray(medians.reindex(range(blocks.max() + 1)))


def _distance(values: Array, moments: _Moments, typical: Array) -> Array:
    """How far values stand above the mean, in units that do not vanish with a chance small sd."""
    unit = moments.sd + typical
    above = np.asarray(values - moments.mean, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        # null values that do not vary at all: anything above them is infinitely far
        return np.where((unit == 0) & (above == 0), 0.0, above / unit)
