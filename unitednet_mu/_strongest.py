"""The strongest pairs of a matrix that is never held, and their values as sparse matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

RowsAt = slice | Tensor  # of a matrix: from, to, or their numbers

#: Values ranked at a time.
_RANKED = 2**20
#: Values looked at to guess a floor, and how many of them have to lie beyond it.
_SAMPLED, _FEWEST_SAMPLED = 2**19, 64


class Strongest(NamedTuple):
    """Rows, columns and values of pairs, in row-major order."""

    row: Tensor
    column: Tensor
    value: Tensor


def strongest(values: Callable[[RowsAt], Tensor], shape: tuple[int, int], k: int) -> Strongest:
    """Find the `k` values that are largest in size; zeros never.

    Parameters
    ----------
    values
        Gives those of some rows, a slice or their numbers; may use the same memory each time.
    shape
        Rows and columns in all.
    """
    floor = _likely_floor(values, shape, k)
    found, where = _largest_beyond(values, shape, k, floor)
    if floor and len(where) < k:  # the sample promised too much
        found, where = _largest_beyond(values, shape, k, 0.0)
    where, order = where.sort()
    return Strongest(where // shape[1], where % shape[1], found[order])


def _likely_floor(values: Callable[[RowsAt], Tensor], shape: tuple[int, int], k: int) -> float:
    """Return a size that rather more than `k` values exceed, judged by some rows; 0 if unsure."""
    n_rows = _SAMPLED // shape[1]
    expected = 2 * k * n_rows // shape[0]
    if n_rows >= shape[0] or not _FEWEST_SAMPLED <= expected < n_rows * shape[1]:
        return 0.0
    rows = torch.from_numpy(np.linspace(0, shape[0] - 1, n_rows).astype(int))
    return float(values(rows).flatten().abs().topk(expected).values[-1])


def _largest_beyond(
    values: Callable[[RowsAt], Tensor], shape: tuple[int, int], k: int, floor: float
) -> tuple[Tensor, Tensor]:
    """Up to `k` values larger in size than `floor`, and their positions in the flattened matrix."""
    height = max(1, _RANKED // shape[1])
    best: list[Tensor] = []
    where: list[Tensor] = []
    n_found, size = 0, torch.empty(0)
    for start in range(0, shape[0], height):
        block = values(slice(start, start + height)).flatten()
        size = torch.abs(block, out=size.to(block).resize_(len(block)))
        index = _above(size, floor)
        best.append(block[index])
        where.append(index + start * shape[1])
        n_found += len(index)
        if n_found > 4 * k or (n_found > k and start + height >= shape[0]):
            found, places = torch.cat(best), torch.cat(where)
            sizes, order = torch.topk(found.abs(), k, sorted=False)
            best, where, n_found = [found[order]], [places[order]], k
            floor = float(sizes.min())
    return torch.cat(best), torch.cat(where)


def _above(values: Tensor, floor: float) -> Tensor:
    """Positions of values above `floor`."""
    if values.device.type == "cpu":  # numpy's search takes a quarter of the time of torch's
        return torch.from_numpy(np.flatnonzero(values.numpy() > floor))
    return torch.nonzero(values > floor).squeeze(1)


def as_csr(
    values: Sequence[Tensor], row: Tensor, column: Tensor, shape: tuple[int, int]
) -> list[sparse.csr_matrix]:
    """Values of the same pairs as sparse matrices."""
    index = row.cpu().numpy(), column.cpu().numpy()
    return [sparse.csr_matrix((one.cpu().numpy(), index), shape) for one in values]
