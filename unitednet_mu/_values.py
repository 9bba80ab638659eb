"""Rows of a modality in a mini-batch, sparse ones kept sparse, and their products with weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F

#: Values of a block that is worked on at once: on the CPU what stays in its caches.
_CPU_BLOCK, _DEVICE_BLOCK = 2**20, 2**27
#: Fewest values, and largest share of them that are not zero, for a sparse product to be faster
#: than a dense one: measured at 64 and 288 columns, it breaks even at 0.2 to 0.3.
_FEWEST_VALUES, _MOST_FILLED = 2**18, 0.15


def block_rows(n_features: int, device: torch.device) -> int:
    """Rows of a block of so many features."""
    values = _CPU_BLOCK if device.type == "cpu" else _DEVICE_BLOCK
    return max(16, values // max(n_features, 1))


class SparseRows:
    """Rows of a sparse modality in the user's units, float32, on the CPU.

    A row is a bag of features, and its product with weights the sum of their rows of the weights:
    ``embedding_bag`` does that three times as fast as products of CSR matrices, of scipy or torch.

    Parameters
    ----------
    matrix
        CSR, cells x features.
    """

    def __init__(self, matrix: Any) -> None:
        self.matrix = sparse.csr_matrix(matrix, dtype=np.float32)
        self.shape: tuple[int, int] = self.matrix.shape
        self._transposed: Any = None

    @staticmethod
    def pays(block: Any) -> bool:
        """Whether a block of rows, CSR, is large and sparse enough to be kept so."""
        size = block.shape[0] * block.shape[1]
        return bool(size >= _FEWEST_VALUES and block.nnz <= _MOST_FILLED * size)

    def __len__(self) -> int:
        return self.shape[0]

    def product(self, weight: Tensor) -> Tensor:
        """Product with `weight`, features x columns."""
        return _bags(self.matrix, weight)

    def transposed_product(self, values: Tensor) -> Tensor:
        """Product of the transpose, features x cells, with `values`, cells x columns."""
        if self._transposed is None:
            self._transposed = self.matrix.T.tocsr()
        return _bags(self._transposed, values)

    def dense(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows from `start` to `stop` as a dense tensor."""
        return torch.from_numpy(self.matrix[start:stop].toarray())

    def squares(self, mean: Tensor, scale: Tensor) -> Tensor:
        """Sum of squares of every standardised row."""
        m, s = (one.numpy().astype(np.float64) for one in (mean, scale))
        own = self.matrix.astype(np.float64).power(2) @ (1 / s**2) - 2 * (self.matrix @ (m / s**2))
        return torch.from_numpy((own + ((m / s) ** 2).sum()).astype(np.float32))


Values = Tensor | SparseRows


def _bags(matrix: Any, weight: Tensor) -> Tensor:
    indices, offsets = (torch.from_numpy(one) for one in (matrix.indices, matrix.indptr))
    if not len(indices):
        return weight.new_zeros(matrix.shape[0], weight.shape[1])
    return F.embedding_bag(
        indices,
        weight.contiguous(),
        offsets,
        mode="sum",
        per_sample_weights=torch.from_numpy(matrix.data),
        include_last_offset=True,
    )


def standardised_product(rows: SparseRows, weight: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Product of standardised rows with `weight`, features x columns; nothing is made dense.

    ((x - mean) / scale) W is x (W / scale) minus a row that is the same for all cells.
    """
    found: Tensor = _Standardised.apply(rows, weight, mean, scale)  # type: ignore[no-untyped-call]
    return found


class _Standardised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: SparseRows, weight: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        ctx.rows = rows
        ctx.save_for_backward(mean, scale)
        columns = (weight / scale[:, None]).contiguous()
        return rows.product(columns).sub_(mean @ columns)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        mean, scale = ctx.saved_tensors
        found = ctx.rows.transposed_product(gradient)
        found.addr_(mean, gradient.sum(0), alpha=-1).div_(scale[:, None])
        return None, found, None, None


def raw_product(rows: SparseRows, weight: Tensor) -> Tensor:
    """Product of rows in the user's units with `weight`, features x columns."""
    found: Tensor = _Raw.apply(rows, weight)  # type: ignore[no-untyped-call]
    return found


class _Raw(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: SparseRows, weight: Tensor) -> Tensor:
        ctx.rows = rows
        return rows.product(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, ctx.rows.transposed_product(gradient)


def dropped_product(
    rows: SparseRows, weight: Tensor, mean: Tensor, scale: Tensor, draws: Tensor, kept: int
) -> Tensor:
    """Product of standardised rows, some of whose values are dropped, with `weight`.

    Blocks of rows are made dense, standardised, dropped and multiplied; backward they are made once
    more, from the draws, which are all that is held.

    Parameters
    ----------
    weight
        Features x columns.
    draws
        A random byte per value, cells x features; values whose byte is below `kept` are kept, and
        multiplied by 256 / `kept`.
    """
    found: Tensor = _Dropped.apply(rows, weight, mean, scale, draws, kept)  # type: ignore[no-untyped-call]
    return found


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: SparseRows,
        weight: Tensor,
        mean: Tensor,
        scale: Tensor,
        draws: Tensor,
        kept: int,
    ) -> Tensor:
        ctx.of_blocks = rows, mean, scale, draws, kept
        out = weight.new_empty(len(rows), weight.shape[1])
        for part, block in _dropped_blocks(*ctx.of_blocks):
            torch.mm(block, weight, out=out[part])
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        found = gradient.new_zeros(ctx.of_blocks[0].shape[1], gradient.shape[1])
        for part, block in _dropped_blocks(*ctx.of_blocks):
            found.addmm_(block.T, gradient[part])
        return None, found, None, None, None, None


def _dropped_blocks(rows: SparseRows, mean: Tensor, scale: Tensor, draws: Tensor, kept: int) -> Any:
    size = block_rows(rows.shape[1], mean.device)
    for start in range(0, len(rows), size):
        part = slice(start, min(start + size, len(rows)))
        block = rows.dense(part.start, part.stop).sub_(mean).div_(scale)
        yield part, block.mul_((draws[part] < kept).to(block.dtype).mul_(256 / kept))
