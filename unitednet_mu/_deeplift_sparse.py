"""Attributions to a hidden layer where values and background are mostly zero.

A feature's attribution is what its value in the cell gives, less what its values in the background
do: each is worked out only where it is not zero. Letters in shapes as in `_deeplift`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ._deeplift import block_shape
from ._deeplift_input import InputSide

#: Largest share of a background that is not zero.
_MOST_FILLED = 0.2
#: Attributions that are held at a time.
_HELD = 2**22


def is_mostly_zero(side: InputSide) -> bool:
    """Whether attributions are best found this way; a GPU is faster with what is dense."""
    background = side.background
    filled = torch.count_nonzero(background) <= _MOST_FILLED * background.numel()
    return side.device.type == "cpu" and not side.shift.any() and bool(filled)


def sparse_attributions(
    side: InputSide, values: Tensor, inner: Tensor, outer: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Attributions of each cell, averaged over the background, in blocks of features.

    Arguments are those of `InputSide.attributions_through`. Features that the background does not
    have come cell by cell, for those that have them.

    Yields
    ------
    Which cells (C), indices of features (J) and attributions, C x R x J.
    """
    n_cells, _, n_pairs, n_outputs = outer.shape
    mean = outer.flatten(1, 2).mT @ inner.flatten(1, 2) / n_pairs
    in_background = (side.background != 0).any(0)
    width, size = block_shape(side.device)[0], max(_HELD // (n_cells * n_outputs), 1)
    for shared in _parts(in_background, size):
        block = values.new_zeros(n_cells, len(shared), n_outputs)
        for pair, row in enumerate(side.background[:, shared] / -n_pairs):
            there = torch.nonzero(row).squeeze(1)
            given = _given(side, shared[there], row[there])
            block.index_add_(1, there, _through(given, inner[:, :, pair], outer[:, :, pair]))
        for cell, row in enumerate(values[:, shared]):
            there = torch.nonzero(row).squeeze(1)
            given = _given(side, shared[there], row[there])
            block[cell].index_add_(0, there, given @ mean[cell].mT)
        parts = zip(shared.split(width), block.split(width, 1), strict=True)
        yield from ((slice(None), features, part.mT) for features, part in parts)
    for cell, row in enumerate(values):
        for features in _parts((row != 0) & ~in_background, width):
            given = _given(side, features, row[features]) @ mean[cell].mT
            yield slice(cell, cell + 1), features, given.mT.unsqueeze(0)


def _parts(wanted: Tensor, size: int) -> Sequence[Tensor]:
    """Where `wanted` is true, in parts of a size."""
    indices = torch.nonzero(wanted).squeeze(1)
    return indices.split(size) if len(indices) else ()


def _given(side: InputSide, features: Tensor, values: Tensor) -> Tensor:
    """Return what values of features give to the wide layer's outputs, J x H."""
    return side.by_feature[features].mul_(values[:, None])


def _through(given: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """Attributions, C x J x R, by the order of products that takes less.

    `inner` and `outer` are multipliers on both sides of the code, C x L x H and C x L x R.
    """
    n_latent, n_hidden, n_outputs = inner.shape[1], inner.shape[2], outer.shape[2]
    if n_latent * (n_hidden + n_outputs) < n_hidden * n_outputs:
        return given @ inner.mT @ outer
    return given @ (outer.mT @ inner).mT
