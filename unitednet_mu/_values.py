"""Rows of a modality in a mini-batch, sparse ones kept sparse, and their products with weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
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
    """Rows of a sparse modality less one dense row, float32, on the CPU.

    A row is a bag of features, and its product with weights the sum of their rows of the weights:
    ``embedding_bag`` does that three times as fast as products of CSR matrices, of scipy or torch.

    Parameters
    ----------
    matrix
        CSR, cells x features.
    offset
        What is taken from every row; None for nothing.
    """

    def __init__(self, matrix: Any, offset: Tensor | None = None) -> None:
        self.matrix = sparse.csr_matrix(matrix, dtype=np.float32)
        self.offset = offset
        self.shape: tuple[int, int] = self.matrix.shape
        self._transposed: Any = None

    @staticmethod
    def pays(block: Any) -> bool:
        """Whether a block of rows, CSR, is large and sparse enough to be kept so."""
        size = block.shape[0] * block.shape[1]
        return bool(size >= _FEWEST_VALUES and block.nnz <= _MOST_FILLED * size)

    def __len__(self) -> int:
        return self.shape[0]

    def standardised(self, mean: Tensor, scale: Tensor) -> SparseRows:
        """Return (x - mean) / scale of rows that have no offset yet."""
        data = self.matrix.data / scale.numpy()[self.matrix.indices]
        parts = data, self.matrix.indices, self.matrix.indptr
        return SparseRows(sparse.csr_matrix(parts, shape=self.shape, copy=False), mean / scale)

    def product(self, weight: Tensor) -> Tensor:
        """Product with `weight`, features x columns."""
        found = _bags(self.matrix, weight)
        return found if self.offset is None else found.sub_(self.offset @ weight)

    def product_with_rows(self, weight: Tensor) -> Tensor:
        """Product with `weight`, columns x features.

        Blocks of columns are turned and multiplied, all in the same memory.
        """
        found = weight.new_empty(len(self), len(weight))
        size = max(_CPU_BLOCK // max(self.shape[1], 1) // 16, 1) * 16
        memory = weight.new_empty(self.shape[1] * min(size, len(weight)))
        for start in range(0, len(weight), size):
            part = slice(start, min(start + size, len(weight)))
            shape = self.shape[1], part.stop - start
            turned = memory[: shape[0] * shape[1]].view(shape)
            found[:, part] = self.product(turned.copy_(weight[part].T))
        return found

    def add_transposed(self, values: Tensor, out: Tensor, factor: float) -> None:
        """Add to `out` the product of the transpose, features x cells, with `values`, times factor.

        Blocks of features that fit the caches: the whole product is never held.
        """
        if self._transposed is None:
            self._transposed = self.matrix.T.tocsr()
        values, total = values.contiguous(), values.sum(0)
        size = max(_CPU_BLOCK // 4 // max(values.shape[1], 1), 1)
        for start in range(0, self.shape[1], size):
            part = slice(start, min(start + size, self.shape[1]))
            block = _bags(self._transposed, values, part)
            if self.offset is not None:
                block.addr_(self.offset[part], total, alpha=-1)
            out[part].add_(block, alpha=factor)

    def dense(self, part: slice = slice(None)) -> Tensor:
        """Rows, all or some, as a dense tensor."""
        found = torch.from_numpy(self.matrix[part].toarray())
        return found if self.offset is None else found.sub_(self.offset)

    def squares(self) -> Tensor:
        """Sum of squares of every row."""
        own = self.matrix.astype(np.float64)
        found = np.asarray(own.multiply(own).sum(1)).ravel()
        if self.offset is not None:
            offset = self.offset.numpy().astype(np.float64)
            found = found - 2 * (own @ offset) + offset @ offset
        return torch.from_numpy(found.astype(np.float32))


Values = Tensor | SparseRows


def _bags(matrix: Any, weight: Tensor, rows: slice | None = None) -> Tensor:
    """Product of a CSR matrix, or some of its rows, with `weight`."""
    ends = matrix.indptr if rows is None else matrix.indptr[rows.start : rows.stop + 1]
    stored = slice(ends[0], ends[-1])
    if stored.start == stored.stop:
        return weight.new_zeros(len(ends) - 1, weight.shape[1])
    return F.embedding_bag(
        torch.from_numpy(matrix.indices[stored]),
        weight.contiguous(),
        torch.from_numpy(ends - ends[0]),
        mode="sum",
        per_sample_weights=torch.from_numpy(matrix.data[stored]),
        include_last_offset=True,
    )


def squares(x: Values) -> Tensor:
    """Sum of squares of every row."""
    return x.square().sum(1) if isinstance(x, Tensor) else x.squares()


def add_transposed(x: Values, values: Tensor, out: Tensor, factor: float) -> None:
    """Add to `out` the product of the transpose of rows with `values`, times a factor."""
    if isinstance(x, Tensor):
        out.addmm_(x.T, values, alpha=factor)
    else:
        x.add_transposed(values, out, factor)


def product(x: Values, weight: Tensor) -> Tensor:
    """Product of rows with `weight`, features x columns; the weights learn."""
    if isinstance(x, Tensor):
        return x @ weight
    found: Tensor = _Product.apply(x, weight)  # type: ignore[no-untyped-call]
    return found


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: SparseRows, weight: Tensor) -> Tensor:
        ctx.rows, ctx.weight = rows, weight
        return rows.product(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        memory, found = gradient_memory(ctx.weight)
        ctx.rows.add_transposed(gradient, memory, 1.0)
        return None, found


def linear(x: Values, layer: nn.Linear) -> Tensor:
    """Put rows through a linear layer that reads their features; the layer learns."""
    if isinstance(x, Tensor):
        return cast("Tensor", layer(x))
    found: Tensor = _Linear.apply(x, layer.weight)  # type: ignore[no-untyped-call]
    return found + layer.bias


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: SparseRows, weight: Tensor) -> Tensor:
        ctx.rows, ctx.weight = rows, weight
        return rows.product_with_rows(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        memory, found = gradient_memory(ctx.weight)
        ctx.rows.add_transposed(gradient, memory.T, 1.0)
        return None, found


def dropped_linear(x: SparseRows, layer: nn.Linear, draws: Tensor, kept: int) -> Tensor:
    """Put rows, some of whose values are dropped, through a linear layer; the layer learns.

    Blocks of rows are made dense, dropped and multiplied; backward they are made once more, from
    the draws, which are all that is held. (To drop only values that are stored would be cheaper,
    but held-out losses fell more slowly: tried with peaks, of which 0.4 % are not zero.)

    Parameters
    ----------
    draws
        A random byte per value, cells x features; values whose byte is below `kept` are kept, and
        multiplied by 256 / `kept`.
    """
    found: Tensor = _Dropped.apply(x, layer.weight, draws, kept)  # type: ignore[no-untyped-call]
    return found + layer.bias


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: SparseRows, weight: Tensor, draws: Tensor, kept: int) -> Tensor:
        ctx.weight, ctx.of_blocks = weight, (rows, draws, kept)
        out = weight.new_empty(len(rows), len(weight))
        for part, block in _dropped_blocks(*ctx.of_blocks):
            torch.mm(block, weight.T, out=out[part])
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        memory, found = gradient_memory(ctx.weight)
        turned = memory.new_zeros(memory.T.shape)  # to add up this way takes half the time
        for part, block in _dropped_blocks(*ctx.of_blocks):
            turned.addmm_(block.T, gradient[part])
        memory.add_(turned.T)
        return None, found, None, None


def _dropped_blocks(rows: SparseRows, draws: Tensor, kept: int) -> Iterator[tuple[slice, Tensor]]:
    size = block_rows(rows.shape[1], draws.device)
    for start in range(0, len(rows), size):
        part = slice(start, min(start + size, len(rows)))
        block = rows.dense(part)
        yield part, block.mul_((draws[part] < kept).to(block.dtype).mul_(256 / kept))


def gradient_memory(weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return where a gradient is to be added, and what autograd is to be told of it.

    For the backward pass of a layer that learns, by ``loss.backward()``: that of a parameter goes
    where its gradient is kept, from step to step. Memory that a process has newly asked for can
    cost more than the product that fills it.
    """
    if not weight.is_leaf:
        found = torch.zeros_like(weight)
        return found, found
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad, None
