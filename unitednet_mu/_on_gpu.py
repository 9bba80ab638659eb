"""Matrices kept on a GPU, or sent there block by block: as they are stored, made dense there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ._compat import is_sparse
from ._matrix import Source, row_bytes
from ._stored import ahead

T = TypeVar("T")

#: Share of the free memory that matrices may take; the rest is for training.
_SHARE = 0.5
#: Bytes of a value of a sparse matrix, with its column, and of a dense one.
_SPARSE_BYTES, _DENSE_BYTES = 8, 4


class OnGPU:
    """A matrix on a device, as CSR where it is sparse; rows of it come out dense.

    Parameters
    ----------
    matrix
        CSR or array, cells x features.
    device
        Where it is to be.
    pinned
        Whether it goes by way of pinned memory: not waited for, but copied once more.
    """

    def __init__(self, matrix: Any, device: torch.device, *, pinned: bool = False) -> None:
        self.shape: tuple[int, int] = matrix.shape
        self.device = device
        send = sent if pinned else _sent_at_once
        self._starts = matrix.indptr.astype(np.int64) if is_sparse(matrix) else None
        values = matrix.data if is_sparse(matrix) else np.asarray(matrix)
        self._values = send(values.astype(np.float32, copy=False), device)
        if is_sparse(matrix):
            self._columns = send(matrix.indices.astype(np.int32, copy=False), device)

    @staticmethod
    def size(matrix: Any) -> int:
        """Bytes that a matrix takes there."""
        if is_sparse(matrix):
            return int(matrix.nnz) * _SPARSE_BYTES
        return int(np.prod(matrix.shape)) * _DENSE_BYTES

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        """Rows at these positions, dense, float32."""
        if self._starts is None:
            return self._values[sent(rows, self.device)]
        starts, stops = self._starts[rows], self._starts[rows + 1]
        lengths = stops - starts
        n_values = int(lengths.sum())
        before = np.cumsum(lengths) - lengths
        of_rows = sent(np.stack([lengths, starts - before]), self.device)
        row = torch.arange(len(rows), device=self.device)
        row = row.repeat_interleave(of_rows[0], output_size=n_values)
        at = torch.arange(n_values, device=self.device) + of_rows[1][row]
        out = torch.zeros(len(rows) * self.shape[1], device=self.device)
        # added, since CSR may hold a value in parts
        out.index_add_(0, row * self.shape[1] + self._columns[at], self._values[at])
        return out.view(len(rows), self.shape[1])


def sent(values: np.ndarray, device: torch.device) -> Tensor:
    """Return values on a device; a GPU gets them when it comes to that, which is not waited for."""
    found = torch.from_numpy(np.ascontiguousarray(values))
    if device.type != "cuda":
        return found.to(device)
    return found.pin_memory().to(device, non_blocking=True)


def _sent_at_once(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


def free_bytes(device: torch.device) -> float:
    """Bytes of a GPU's memory that matrices may take."""
    return float(torch.cuda.mem_get_info(device)[0]) * _SHARE


def kept(sources: Iterable[Source], device: torch.device, n_bytes: float) -> list[Source]:
    """Return the same sources, those in memory kept on a device as far as so many bytes hold."""
    found = []
    for source in sources:
        if source.matrix is not None and not row_bytes(source.matrix):
            plain = isinstance(source.matrix, np.ndarray) or is_sparse(source.matrix)
            own = source if plain else source.compact()  # a view has to be copied to be sent
            if OnGPU.size(own.matrix) <= n_bytes:
                n_bytes -= OnGPU.size(own.matrix)
                source = replace(own, matrix=OnGPU(own.matrix, device))
        found.append(source)
    return found


def made_ahead(blocks: Iterator[T], device: torch.device) -> Iterator[T]:
    """Yield what `blocks` yields, none of it None; a thread makes the next one on the GPU."""
    stream = torch.cuda.current_stream(device)  # what the caller waits for; a thread has its own

    def made() -> Iterator[T]:
        while True:
            with torch.cuda.stream(stream):
                block = next(blocks, None)
            if block is None:
                return
            yield block

    return ahead(made())
