"""Aligned cells (in memory or on disk, sparse, some without a modality) to mini-batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ._compat import is_sparse, warn_user
from ._matrix import ModalitySpec as ModalitySpec
from ._matrix import Source, Stacked, kind_of, row_bytes
from ._matrix import to_dense as to_dense
from ._on_gpu import OnGPU, free_bytes, kept, made_ahead, sent
from ._ranks import Ranks
from ._stored import ahead
from ._values import SparseRows, Values

#: Of cells on disk so many bytes are read at a time; of these there may be four at once: cells in
#: use, those read meanwhile, and copies while rows are put in order.
_BUFFER_BYTES = 2**27
#: Stretches of the file that cells read together come from, in a random order.
_STRETCHES = 128
#: Largest matrix that is made dense for training, 64 MiB.
_FEW_VALUES = 2**24
#: Seconds that must have gone by for a progress bar to be worth showing.
_BAR_AFTER = 2.0

_Block = TypeVar("_Block", bound=tuple[Any, ...])


@dataclass
class Batch:
    """A mini-batch: per modality the values of the cells that have it, and where these cells stand.

    Of several processes each has the values of its own cells, and all else of all.

    Attributes
    ----------
    x
        Per modality float32 (its cells x features) in the user's units, as sparse rows where the
        matrix is sparse and that pays, or None where no cell has it.
    rows
        Per modality the positions of its cells in the batch.
    observed
        Bool, cells x modalities.
    labels, batches
        int64 per cell, -1 where unknown.
    complete
        Whether every cell has every modality.
    """

    x: list[Values | None]
    rows: list[Tensor]
    observed: Tensor
    labels: Tensor
    batches: Tensor
    complete: bool

    def __len__(self) -> int:
        return len(self.observed)


@dataclass
class Dataset:
    """Aligned view of the modalities of a MuData; rows follow `obs_names`.

    Attributes
    ----------
    obs_names
        Names of all cells.
    sources
        One per modality of the model.
    labels, batches
        int64 per cell, -1 where unknown.
    """

    obs_names: pd.Index
    sources: list[Source]
    labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    batches: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def __post_init__(self) -> None:
        n = len(self.obs_names)
        self.observed = np.stack([source.rows >= 0 for source in self.sources], 1)
        self.labels = self.labels if len(self.labels) else np.full(n, -1, np.int64)
        self.batches = self.batches if len(self.batches) else np.full(n, -1, np.int64)

    def __len__(self) -> int:
        return len(self.obs_names)

    @property
    def canonical(self) -> np.ndarray:
        """Cells that have any modality, by name, so that the order in the file changes nothing."""
        order = np.argsort(self.obs_names.to_numpy().astype(str), kind="stable")
        return order[self.observed[order].any(1)]

    def subset(self, cells: np.ndarray) -> Dataset:
        """`cells` only (positions); nothing is copied but their positions, labels and batches."""
        sources = [replace(source, rows=source.rows[cells]) for source in self.sources]
        return Dataset(self.obs_names[cells], sources, self.labels[cells], self.batches[cells])

    def batch(
        self,
        cells: np.ndarray,
        device: torch.device,
        own: tuple[Dataset, np.ndarray] | None = None,
    ) -> Batch:
        """Mini-batch of `cells` (positions), whose values `own` has (a dataset, positions there).

        By default they are this dataset's; several processes have each its own cells'.
        """
        observed = self.observed[cells]
        data, here = own or (self, cells)
        x: list[Values | None] = []
        for m, source in enumerate(data.sources):
            has = here[data.observed[here, m]]
            x.append(_values_of(source, has, device) if observed[:, m].any() else None)
        rows = [np.flatnonzero(has) for has in observed.T]
        return Batch(
            x,
            [sent(where, device) for where in rows],
            sent(observed, device),
            sent(self.labels[cells], device),
            sent(self.batches[cells], device),
            complete=bool(observed.all()),
        )

    def at_hand(self, device: torch.device) -> Dataset:
        """Return the same cells, ready to be read many times.

        A GPU keeps what is in memory and fits there. Elsewhere small sparse matrices are made
        dense once, not at every step.
        """
        if device.type == "cuda":
            return replace(self, sources=kept(self.sources, device, free_bytes(device)))
        sources = [replace(source, matrix=_made_dense(source.matrix)) for source in self.sources]
        return replace(self, sources=sources)

    def restricted(self, modalities: Sequence[int]) -> Dataset:
        """All cells, observed in these modalities only."""
        nothing = np.full(len(self), -1, np.int64)
        sources = [
            source if m in modalities else Source(source.spec, None, nothing)
            for m, source in enumerate(self.sources)
        ]
        return Dataset(self.obs_names, sources, self.labels, self.batches)

    # ------------------------------------------------------------------ cells on disk

    def cells_read(self, size: int) -> int:
        """How many cells are read from disk at a time, in mini-batches of `size`; 0 in memory."""
        of_a_cell = sum(row_bytes(source.matrix) for source in self.sources)
        return int(max(_BUFFER_BYTES / of_a_cell // size, 1) * size) if of_a_cell else 0

    def in_file_order(self, cells: np.ndarray) -> np.ndarray:
        """`cells` as they are best read: in the order of the file if it takes several readings."""
        if not 0 < self.cells_read(1) < len(cells):
            return cells
        stored = [source.rows[cells] for source in self.sources if row_bytes(source.matrix)]
        return cells[np.lexsort(stored[::-1])]

    def shuffled(self, cells: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
        """`cells` in random order, for mini-batches of `size`.

        Cells on disk that take several readings are shuffled in two steps: contiguous stretches of
        the file come in random order, and cells that are read together, from 128 stretches, are
        shuffled among themselves.
        """
        together = self.cells_read(size)
        if not 0 < together < len(cells):
            return cells[rng.permutation(len(cells))]
        stretch = max(1, together // _STRETCHES)
        cells = self.in_file_order(cells)
        starts = rng.permutation(np.arange(0, len(cells), stretch))
        cells = np.concatenate([cells[start : start + stretch] for start in starts])
        parts = (cells[start : start + together] for start in range(0, len(cells), together))
        return np.concatenate([rng.permutation(part) for part in parts])

    def loaded(self, cells: np.ndarray) -> Dataset:
        """`cells` only (positions), their values in memory."""
        subset = self.subset(cells)
        return replace(subset, sources=[source.compact() for source in subset.sources])

    def blocks_of(
        self, cells: np.ndarray, size: int
    ) -> Iterator[tuple[np.ndarray, Dataset, np.ndarray]]:
        """Consecutive blocks of at most `size` cells.

        Yields
        ------
        Their positions; a dataset with their values in memory, and their positions there. What is
        on disk is read many blocks at a time, and ahead.
        """
        together = self.cells_read(size)
        if not together:
            for start in range(0, len(cells), size):
                block = cells[start : start + size]
                yield block, self, block
            return
        parts = (cells[start : start + together] for start in range(0, len(cells), together))
        for part, data in ahead((part, self.loaded(part)) for part in parts):
            for start in range(0, len(part), size):
                here = np.arange(start, min(start + size, len(part)))
                yield part[here], data, here

    def batches_of(
        self, cells: np.ndarray, size: int, device: torch.device, ranks: Ranks | None = None
    ) -> Iterator[tuple[np.ndarray, Batch]]:
        """Consecutive mini-batches of at most `size` cells, with the positions of all of these.

        Of several processes each gets, and reads, its part; `size` is a multiple of their number.
        For a GPU the next one is made ahead, unless all values are there.
        """
        batches = self._batches_of(cells, size, device, ranks or Ranks())
        there = all(isinstance(source.matrix, OnGPU | None) for source in self.sources)
        return made_ahead(batches, device) if device.type == "cuda" and not there else batches

    def _batches_of(
        self, cells: np.ndarray, size: int, device: torch.device, ranks: Ranks
    ) -> Iterator[tuple[np.ndarray, Batch]]:
        blocks = [cells[start : start + size] for start in range(0, len(cells), size)]
        none = np.empty(0, np.intp)
        mine = np.concatenate([none, *(block[ranks.part(len(block))] for block in blocks)])
        parts = self.blocks_of(mine, size // ranks.size)
        for block in blocks:
            # the last mini-batch may be too small for this process to have a part
            _, data, here = (
                next(parts) if len(block[ranks.part(len(block))]) else (none, self, none)
            )
            yield block, self.batch(block, device, (data, here))


def counted(blocks: Iterable[_Block], n_cells: int, what: str, progress: bool) -> Iterator[_Block]:
    """Count cells, which come first in every block, in a progress bar if it takes a while."""
    with tqdm(total=n_cells, desc=what, unit="cell", delay=_BAR_AFTER, disable=not progress) as bar:
        for block in blocks:
            yield block
            bar.update(len(block[0]))


def _made_dense(matrix: Any) -> Any:
    small = is_sparse(matrix) and matrix.shape[0] * matrix.shape[1] <= _FEW_VALUES
    return to_dense(matrix).astype(np.float32) if small else matrix


def _values_of(source: Source, cells: np.ndarray, device: torch.device) -> Values:
    """Values of `cells`, each of which has the modality; sparse on the CPU where that pays."""
    block = source.sparse_or_dense(cells)
    if isinstance(block, Tensor):
        return block
    if device.type == "cuda":
        return OnGPU(block, device, pinned=True)[np.arange(len(cells))]
    if device.type == "cpu" and is_sparse(block) and SparseRows.pays(block):
        return SparseRows(block)
    return torch.from_numpy(np.ascontiguousarray(to_dense(block), dtype=np.float32)).to(device)


def check_values(data: Dataset) -> None:
    """Check what a model is about to read, in one pass: values are finite, and like its own.

    Raises
    ------
    ValueError
        NaN or infinite values; others than 0 and 1 where the model was trained on these.

    Warns
    -----
    UserWarning
        Raw counts where the model was trained on something else.
    """
    for source in data.sources:
        if source.matrix is None:
            continue
        spec = source.spec
        kind = kind_of(source.matrix, pd.Index(spec.features), spec.name)
        if spec.likelihood == "binary" and not kind.binary:
            raise ValueError(
                f"modality {spec.name!r}: expected values 0 and 1 only, as the model was trained "
                "on, found others. Prepare it as that was, by unitednet_mu.pp.atac for instance."
            )
        if kind.counts and not spec.counts:
            warn_user(
                f"modality {spec.name!r} looks like raw counts, unlike the values that the model "
                "was trained on. Prepare it with unitednet_mu.pp as these were."
            )


def concatenate(first: Dataset, second: Dataset) -> Dataset:
    """Put `second` below `first`, both opened with the same modalities; nothing is copied."""
    sources = []
    for a, b in zip(first.sources, second.sources, strict=True):
        n_upper = int(a.rows.max(initial=-1)) + 1
        rows = np.concatenate([a.rows, np.where(b.rows >= 0, b.rows + n_upper, -1)])
        matrix = a.matrix if b.matrix is None else b.matrix  # a part may lack the modality
        if a.matrix is not None and b.matrix is not None:
            matrix = Stacked(a.matrix, b.matrix, n_upper)
        sources.append(Source(a.spec, matrix, rows))
    names = pd.Index(
        [f"0 {name}" for name in first.obs_names] + [f"1 {name}" for name in second.obs_names]
    )
    labels = np.concatenate([first.labels, second.labels])
    return Dataset(names, sources, labels, np.concatenate([first.batches, second.batches]))
