"""DeepLIFT through the wide first layer of an encoder, for sparse or dense values.

Letters in shapes as in `_deeplift`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn

from ._deeplift import (
    Rows,
    Trace,
    Values,
    block_shape,
    compile_layers,
    precise,
    pull_back,
    trace,
)


def dense_rows(x: Values, rows: Rows) -> NDArray[np.float64]:
    """Copy rows of a sparse or dense matrix, dense and in float64."""
    picked = x[rows]
    picked = picked if isinstance(picked, np.ndarray) else picked.toarray()
    return np.asarray(picked, dtype=np.float64)


class InputSide:
    """The wide first layer of one modality, from the user's units, and its background.

    The standardiser ``(x - mean) / scale`` is folded into the weights, so sparse input stays what
    it is: features that are zero in a chunk of cells and in the background are skipped. Values are
    taken relative to `shift`, zero for sparse input and the background's mean for dense. That
    changes only the rounding, as ``(x - shift) - (b - shift)`` is ``x - b``.

    Parameters
    ----------
    layer
        The wide layer, H outputs.
    mean, scale
        The standardiser's, per feature.
    x, rows
        The background's values in the user's units, and the rows that serve.
    sparse_cells
        Whether the cells to explain are sparse.
    """

    def __init__(
        self,
        layer: nn.Linear,
        mean: Tensor,
        scale: Tensor,
        x: Values,
        rows: Rows,
        sparse_cells: bool,
    ) -> None:
        if type(layer) is not nn.Linear:
            raise NotImplementedError(f"explain: expected a Linear first layer, found {layer}.")
        self.device, self.dtype = layer.weight.device, layer.weight.dtype
        exact = precise(self.device)
        values = dense_rows(x, rows)
        by_zero = sparse_cells or sparse.issparse(x)
        self.shift = np.zeros(values.shape[1]) if by_zero else values.mean(0)
        weight = layer.weight.detach().to(exact) / scale.to(exact)
        shift = torch.as_tensor(self.shift, dtype=exact, device=self.device)
        self.offset = weight @ (shift - mean.to(exact))
        if layer.bias is not None:
            self.offset = self.offset + layer.bias.detach().to(exact)
        self.weight = weight.to(self.dtype)
        self.background = self.values(x, rows)
        self.of_background = self.hidden(self.background)

    @cached_property
    def by_feature(self) -> Tensor:
        """Weights, features x H: those of one feature side by side in memory."""
        return self.weight.T.contiguous()

    def values(self, x: Values, rows: Rows) -> Tensor:
        """Rows of `x` relative to `shift`, rows x features."""
        values = dense_rows(x, rows) - self.shift
        return torch.as_tensor(values, dtype=self.dtype, device=self.device)

    def hidden(self, values: Tensor) -> Tensor:
        """Output of the wide layer, rows x H."""
        return (values @ self.weight.T).to(self.offset.dtype) + self.offset

    def blocks(self, x: Tensor, width: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield features not zero throughout: indices, weights, cells' values."""
        active = torch.nonzero((x != 0).any(0) | (self.background != 0).any(0)).squeeze(1)
        for start in range(0, len(active), width):
            features = active[start : start + width]
            yield features, self.weight[:, features], x[:, features]

    def attributions(self, values: Tensor, maps: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Attributions of each cell, averaged over the background, in blocks of features.

        ``mean_b (x_j - b_j) W_hj M_brh = x_j W_hj mean_b(M_brh) - mean_b(b_j W_hj M_brh)``, summed
        over h: each term is one matrix product for all cells and outputs of a block.

        Parameters
        ----------
        values
            Of the cells, C x features, as `values` gives them.
        maps
            Multipliers of the wide layer's output, C x R x B x H.

        Yields
        ------
        Indices of features (J) and attributions, C x R x J.
        """
        mean = maps.mean(2).flatten(0, 1)
        stack = (maps / maps.shape[2]).flatten(2).flatten(0, 1)
        for features, weight, x in self.blocks(values, block_shape(self.device)[0]):
            of_background = (self.background[:, None, features] * weight).flatten(0, 1)
            block = (mean @ weight).view(*maps.shape[:2], -1).mul_(x.unsqueeze(1))
            block.flatten(0, 1).addmm_(stack, of_background, alpha=-1)
            yield features, block

    def attributions_through(
        self, values: Tensor, inner: Tensor, outer: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """`attributions` through a narrow layer, whose multipliers are never multiplied out.

        ``mean_b sum_l O_brl sum_h I_blh W_hj (x_j - b_j)``, from the right: what each pair's
        features give to the narrow layer, then what that gives to the outputs.

        Parameters
        ----------
        values
            Of the cells, C x features, as `values` gives them.
        inner
            Multipliers of the wide layer's output for the narrow layer, C x L x B x H.
        outer
            Multipliers of the narrow layer for the outputs, C x L x B x R.

        Yields
        ------
        Indices of features (J) and attributions, C x R x J.
        """
        n_cells, _, n_pairs, n_outputs = outer.shape
        to_outputs = (outer / n_pairs).reshape(n_cells, -1, n_outputs).transpose(1, 2)
        for features, weight, x in self.blocks(values, block_shape(self.device)[0]):
            through = inner @ weight
            through.mul_((x[:, None] - self.background[:, features])[:, None])
            yield features, torch.bmm(to_outputs, through.flatten(1, 2))


class SummedAttributions:
    """Sum over cells of `InputSide.attributions`, without any single cell's.

    A cell adds ``x_j W_hj mean_b(M_brh)``, for those of its features that are not zero. So do the
    background's rows, turned round, once for all cells: their term needs the sum of the maps only.

    Parameters
    ----------
    side
        The wide layer.
    total
        Where attributions are added, features x R.
    """

    def __init__(self, side: InputSide, total: Tensor) -> None:
        self._side, self._total, self.n_cells = side, total, 0
        self._maps = total.new_zeros(())

    def add(self, values: Tensor, inner: Tensor, outer: Tensor) -> None:
        """Add cells; arguments are those of `InputSide.attributions_through`.

        Means over the background and sums over cells are products themselves: the multipliers of
        single pairs of a cell and a background row are never multiplied out.
        """
        mean = outer.flatten(1, 2).mT @ inner.flatten(1, 2) / inner.shape[2]
        for row, multipliers in zip(values, mean, strict=True):
            self._add_row(row, multipliers)
        of_cells = outer.flatten(0, 1).permute(1, 2, 0) @ inner.flatten(0, 1).transpose(0, 1)
        self._maps = self._maps + of_cells
        self.n_cells += len(values)

    def subtract_background(self) -> None:
        """Take away the background's term of all cells added, after the last of them."""
        of_background = (self._maps / -len(self._maps)).to(self._side.weight)
        for row, multipliers in zip(self._side.background, of_background, strict=True):
            self._add_row(row, multipliers)

    def _add_row(self, row: Tensor, multipliers: Tensor) -> None:
        """Add a row's features, given multipliers of the wide layer's output (R x H)."""
        for features in torch.nonzero(row).squeeze(1).split(block_shape(self._side.device)[0]):
            through = self._side.by_feature.index_select(0, features).mul_(row[features, None])
            self._total.index_add_(0, features, (through @ multipliers.T).to(self._total.dtype))


class EncoderChain:
    """One encoder, from the user's values to the code, and its background.

    Parameters
    ----------
    encoder
        Its `wide` layer's first `n_hidden` outputs feed `deep`, any others add to the code.
    standardiser
        With `mean` and `scale`.
    x, rows, sparse_cells
        As in `InputSide`.
    """

    def __init__(
        self, encoder: Any, standardiser: Any, x: Values, rows: Rows, sparse_cells: bool
    ) -> None:
        mean, scale = standardiser.mean, standardiser.scale
        self.side = InputSide(encoder.wide, mean, scale, x, rows, sparse_cells)
        self.n_hidden, self.steps = encoder.n_hidden, compile_layers(encoder.deep)
        self.linear_path = self.side.weight.shape[0] > self.n_hidden
        self.background = self._from_wide(self.side.of_background.unsqueeze(0))

    def trace(self, values: Tensor) -> Trace:
        """Activations of cells up to the code, C x 1 x width."""
        return self._from_wide(self.side.hidden(values).unsqueeze(1))

    def trace_between(self, values: Tensor, shares: Tensor) -> Trace:
        """Activations at points between the background (share 0) and cells (1), C x B x width."""
        of_background = self.side.of_background
        departure = self.side.hidden(values)[:, None] - of_background
        return self._from_wide(of_background + shares.to(departure)[..., None] * departure)

    def totals(self, values: Tensor, maps: Tensor) -> Tensor:
        """Each pair's attributions summed over features, C x R x B, from `maps` (C x R x B x H)."""
        departure = self.side.hidden(values)[:, None] - self.side.of_background
        return torch.einsum("crbh,cbh->crb", maps, departure.to(maps))

    def _from_wide(self, hidden: Tensor) -> Trace:
        inputs, code = trace(self.steps, hidden[..., : self.n_hidden])
        return Trace(inputs, code + hidden[..., self.n_hidden :] if self.linear_path else code)

    def pull(self, v: Tensor, cells: Trace, background: Trace) -> Tensor:
        """Multipliers of the wide layer's output (C x R x B x H) from those of the code."""
        deep = pull_back(self.steps, v, cells, background)
        maps = torch.cat([deep, v], 3) if self.linear_path else deep
        return maps.to(self.side.dtype)
