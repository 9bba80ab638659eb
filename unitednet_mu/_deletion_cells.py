"""Cells to learn from and cells to judge on, for the held-out deletion test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mudata import MuData
from numpy.typing import NDArray

from ._matrix import matrix_of, to_dense
from ._validate import as_names, obs_column, unknown_name

Floats = NDArray[np.float64]

#: Share of cells held out where none are given.
HELD_OUT = 0.3
#: Cells of a group, and of all others, that are needed on either side.
FEWEST_CELLS = 10


@dataclass(frozen=True)
class Matrix:
    """One modality's values of the cells judged, and the place of each feature."""

    matrix: Any
    place: dict[str, int]

    @classmethod
    def of(
        cls, mdata: MuData, name: str, layers: tuple[str | None, str | None], rows: Any
    ) -> Matrix:
        matrix, features = matrix_of(mdata.mod[name], name, *layers)
        values = matrix[rows]
        # columns are what is taken from here on
        values = values.tocsc() if hasattr(values, "tocsc") else values
        return cls(values, {str(feature): j for j, feature in enumerate(features)})

    def take(self, rows: NDArray[np.intp], features: Sequence[str]) -> Floats:
        for feature in features:
            if feature not in self.place:
                raise ValueError(unknown_name("feature", feature, self.place))
        columns = self.matrix[:, [self.place[feature] for feature in features]]
        return np.asarray(to_dense(columns)[rows], np.float64)


@dataclass(frozen=True)
class Cells:
    """Cells that have a group and all modalities that are read."""

    sources: dict[str, Matrix]
    target: Matrix | None
    groups: NDArray[Any]
    batches: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        mdata: MuData,
        modalities: Sequence[str],
        target: str | None,
        labels_key: str,
        batch_key: str | None,
        layers: dict[str, tuple[str | None, str | None]],
    ) -> Cells:
        every = [*modalities, *([] if target is None else [target])]
        for name in every:
            if name not in mdata.mod:
                raise ValueError(unknown_name("modality", name, mdata.mod))
        codes, names = as_names(obs_column(mdata, labels_key, "labels_key"))
        batches = np.zeros(mdata.n_obs, np.int64)
        if batch_key is not None:
            batches = as_names(obs_column(mdata, batch_key, "batch_key"))[0]
        rows = {name: mdata.mod[name].obs_names.get_indexer(mdata.obs_names) for name in every}
        able = (codes >= 0) & (batches >= 0) & np.all([where >= 0 for where in rows.values()], 0)
        if batch_key is not None and len(np.unique(batches[able])) < 2:
            raise ValueError(
                f"batch_key={batch_key!r}: expected at least two batches, to hold one out, found "
                f"{len(np.unique(batches[able]))}."
            )
        read = {
            name: Matrix.of(mdata, name, layers.get(name, (None, None)), where[able])
            for name, where in rows.items()
        }
        held = None if target is None else read[target]
        sources = {name: read[name] for name in modalities}
        return cls(sources, held, names[codes[able]], batches[able])

    def sizes(self) -> dict[str, int]:
        """Return how many cells each group has."""
        names, counts = np.unique(self.groups, return_counts=True)
        return {str(name): int(n) for name, n in zip(names, counts, strict=True)}

    @property
    def strata(self) -> NDArray[np.intp]:
        """Group of each cell by number; those too small to be judged are one."""
        _, codes, counts = np.unique(self.groups, return_inverse=True, return_counts=True)
        strata = np.where(counts[codes] < FEWEST_CELLS, len(counts), codes)
        if (strata == len(counts)).sum() == 1:  # cannot be divided
            strata[strata == len(counts)] = int(counts.argmax())
        return strata.astype(np.intp)


@dataclass(frozen=True)
class Side:
    """Some of the cells."""

    cells: Cells
    rows: NDArray[np.intp]

    def within(self, group: str) -> Side:
        """Those of a group."""
        return Side(self.cells, self.rows[self.cells.groups[self.rows] == group])

    def values(self, features: Sequence[tuple[str, str]]) -> Floats:
        """Cells x features, each named with its modality."""
        return np.hstack(
            [
                self.cells.sources[name].take(self.rows, [f for mod, f in features if mod == name])
                for name in dict.fromkeys(mod for mod, _ in features)
            ]
        )

    def answer(self, group: str, target_feature: str | None) -> Floats:
        """Return what is to be predicted: whether a cell is of the group, or a target feature."""
        if target_feature is None or self.cells.target is None:
            return np.asarray(self.cells.groups[self.rows] == group, np.float64)
        return self.cells.target.take(self.rows, [target_feature])[:, 0]

    def most_variable(self, modality: str, number: int) -> list[tuple[str, str]]:
        """Features of a modality with the largest variance."""
        from sklearn.preprocessing import StandardScaler

        source = self.cells.sources[modality]
        variance = StandardScaler(with_mean=False).fit(source.matrix[self.rows]).var_
        names = list(source.place)
        return [(modality, names[j]) for j in np.argsort(-variance, kind="stable")[:number]]


@dataclass(frozen=True)
class Split:
    """Cells to learn from and to judge on, and how many random sets to draw."""

    train: Side
    test: Side
    n_random: int


def splits(
    train: Cells, test: Cells | None, n_repeats: int, seed: int, batch_key: str | None
) -> Iterator[Split]:
    """Yield splits: the one that is given, or draws of whole batches, or of every group's share."""
    from sklearn.model_selection import GroupShuffleSplit, StratifiedShuffleSplit

    every = np.arange(len(train.groups))
    if test is not None:
        sides = Side(train, every), Side(test, np.arange(len(test.groups)))
        yield Split(*sides, n_repeats)
        return
    if batch_key is None:
        draw = StratifiedShuffleSplit(n_repeats, test_size=HELD_OUT, random_state=seed)
        drawn = draw.split(every, train.strata)
    else:
        whole = GroupShuffleSplit(n_repeats, test_size=HELD_OUT, random_state=seed)
        drawn = whole.split(every, groups=train.batches)
    for learn, judge in drawn:
        yield Split(Side(train, learn), Side(train, judge), 1)
