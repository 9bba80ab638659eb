"""DeepLIFT's rescale rule on chains of small layers, for all pairs of a cell and a background row.

For one pair, a chain of affine and elementwise layers is a linear map from the difference of
inputs to the difference of outputs (Shrikumar et al., ICML 2017; averaged over a background it
approximates Shapley values, Lundberg & Lee, NeurIPS 2017): affine layers multiply by their
weights, elementwise ones by the secant ``(f(a) - f(b)) / (a - b)``. Everything narrow is computed
here pair by pair; the wide products with the input (`InputSide`) and the output (`add_absolute`)
come after the average over the background.

Letters in shapes: C cells, B background rows, R outputs of a chain, H width of the wide first
layer, J features of a block. Activations are C x 1 x width (cells) and (1 or C) x B x width
(background), multipliers C x R x B x width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional

from ._network import Dropout

Values = Any  # rows x features: scipy's CSR matrix or array, or a dense array
Rows = NDArray[np.intp]

#: Below this difference of inputs a secant gives way to the derivative (shap's threshold).
TINY = 1e-6
#: Source x target features of a block of the last wide product, rewritten in cache cell after cell.
_BLOCK, _BLOCK_ON_DEVICE = (512, 512), (4096, 8192)
#: Strengths ranked at a time.
_RANKED = 2**22

_POINTWISE: tuple[type[nn.Module], ...] = (
    *(nn.LeakyReLU, nn.ReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU),
    *(nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus),
)


def precise(device: torch.device) -> torch.dtype:
    """Type of activations and secants: float64, as secants of close values lose half the digits."""
    return torch.float32 if device.type == "mps" else torch.float64


def secant(function: Callable[[Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Slope of an elementwise function from `a` to `b`; its derivative where they almost agree."""
    delta = a - b
    slope = (function(a) - function(b)) / delta
    tiny = delta.abs() < TINY
    if bool(tiny.any()):
        with torch.enable_grad():
            middle = ((a + b) / 2)[tiny].detach().requires_grad_()
            (derivative,) = torch.autograd.grad(function(middle).sum(), middle)
        slope[tiny] = derivative
    return slope


class Step(NamedTuple):
    """A layer with a rule.

    `pull` turns multipliers of its output, given what cells and background fed in, into those of
    its input; `push` turns the multipliers by which its input depends on something into those by
    which its output does.
    """

    forward: Callable[[Tensor], Tensor]
    pull: Callable[[Tensor, Tensor, Tensor], Tensor]
    push: Callable[[Tensor, Tensor, Tensor], Tensor]


def _linear(layer: nn.Linear) -> Step:
    dtype = precise(layer.weight.device)
    weight = layer.weight.detach().to(dtype)
    bias = None if layer.bias is None else layer.bias.detach().to(dtype)
    return Step(
        lambda x: functional.linear(x, weight, bias),
        lambda v, cells, background: v @ weight.to(v.dtype),
        lambda v, cells, background: v @ weight.T.to(v.dtype),
    )


def _batch_norm(layer: nn.BatchNorm1d, mean: Tensor, variance: Tensor) -> Step:
    """At inference a fixed scale and shift per unit."""
    dtype = precise(mean.device)
    scale = (variance.to(dtype) + layer.eps).rsqrt()
    if layer.weight is not None:
        scale = scale * layer.weight.detach().to(dtype)
    shift = -mean.to(dtype) * scale
    if layer.bias is not None:
        shift = shift + layer.bias.detach().to(dtype)

    def multiply(v: Tensor, cells: Tensor, background: Tensor) -> Tensor:
        return v * scale.to(v.dtype)

    return Step(lambda x: x * scale + shift, multiply, multiply)


def _pointwise(layer: nn.Module) -> Step:
    def forward(x: Tensor) -> Tensor:
        return layer(x.clone())  # type: ignore[no-any-return]  # a copy: the layer may work in place

    def multiply(v: Tensor, cells: Tensor, background: Tensor) -> Tensor:
        return v * secant(forward, cells, background).unsqueeze(1).to(v.dtype)

    return Step(forward, multiply, multiply)


def compile_layers(layer: nn.Module) -> list[Step]:
    """Rules of `layer` in order; a sequence is unrolled, what has no effect at inference vanishes.

    Raises
    ------
    NotImplementedError
        A layer has no rule; the message names it.
    """
    kind = type(layer)  # exact: a subclass may compute something else
    if kind is nn.Sequential:
        return [step for child in layer.children() for step in compile_layers(child)]
    if kind in (nn.Identity, nn.Dropout, Dropout):
        return []
    if kind in _POINTWISE:
        return [_pointwise(layer)]
    if isinstance(layer, nn.Linear) and kind is nn.Linear:
        return [_linear(layer)]
    if isinstance(layer, nn.BatchNorm1d) and kind is nn.BatchNorm1d:
        if layer.running_mean is not None and layer.running_var is not None:
            return [_batch_norm(layer, layer.running_mean, layer.running_var)]
    raise NotImplementedError(
        f"explain: the layer {layer} has no DeepLIFT rule, attributions would not add up. Expected "
        "Linear, BatchNorm1d with running statistics, Dropout, Identity, Sequential or one of "
        f"{[pointwise.__name__ for pointwise in _POINTWISE]}."
    )


class Trace(NamedTuple):
    """What each step of a chain read, and what the chain gave."""

    inputs: list[Tensor]
    output: Tensor


def trace(steps: Sequence[Step], x: Tensor) -> Trace:
    """Run a chain and keep what every step read."""
    inputs = []
    for step in steps:
        inputs.append(x)
        x = step.forward(x)
    return Trace(inputs, x)


def pull_back(steps: Sequence[Step], v: Tensor, cells: Trace, background: Trace) -> Tensor:
    """Carry multipliers of a chain's output (C x R x B x out, broadcastable) to its input."""
    v = v.expand(len(cells.output), -1, background.output.shape[1], -1)
    inputs = zip(steps, cells.inputs, background.inputs, strict=True)
    for step, of_cells, of_background in reversed(list(inputs)):
        v = step.pull(v, of_cells, of_background)
    return v


def push_forward(steps: Sequence[Step], v: Tensor, cells: Trace, background: Trace) -> Tensor:
    """Carry multipliers for a chain's input (C x R x B x in, broadcastable) to its output.

    R numbers what the input depends on; where it is narrower than the output, this takes less than
    to pull the multipliers of every output back.
    """
    v = v.expand(len(cells.output), -1, background.output.shape[1], -1)
    for step, of_cells, of_background in zip(steps, cells.inputs, background.inputs, strict=True):
        v = step.push(v, of_cells, of_background)
    return v


def softmax_multipliers(cells: Tensor, background: Tensor, groups: Tensor) -> Tensor:
    """Multipliers of the logits for the probability of each cell's own group, C x 1 x B x groups.

    The probability is taken as ``p_k = 1 / sum_l exp(z_l - z_k)``: differences of logits,
    elementwise exponential, sum, elementwise reciprocal. The rescale rule through these four is
    complete (it adds up to the difference of probabilities) and, unlike an elementwise treatment
    of softmax, does not change when one number is added to all logits. With probabilities `p` of
    the cell and `q` of the background, the multiplier of ``z_l - z_k`` comes to ``-(p_l q_k - q_l
    p_k)`` over its difference.

    Parameters
    ----------
    cells, background
        Logits, C x 1 x groups and 1 x B x groups.
    groups
        Number of each cell's group.
    """
    own = groups.view(-1, 1, 1).expand(-1, background.shape[1], 1)
    p, q = torch.softmax(cells, 2).expand(-1, own.shape[1], -1), torch.softmax(background, 2)
    q = q.expand(len(own), -1, -1)
    p_own, q_own = p.gather(2, own), q.gather(2, own)
    delta = cells - background
    delta = delta - delta.gather(2, own)
    tiny = delta.abs() < TINY
    slope = (p * q_own - q * p_own) / delta.masked_fill(tiny, 1.0)
    slope = torch.where(tiny, (p * q * p_own * q_own).sqrt(), slope).scatter(2, own, 0.0)
    return (-slope).scatter(2, own, slope.sum(2, keepdim=True)).unsqueeze(1)


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

    def values(self, x: Values, rows: Rows) -> Tensor:
        """Rows of `x` relative to `shift`, rows x features."""
        values = dense_rows(x, rows) - self.shift
        return torch.as_tensor(values, dtype=self.dtype, device=self.device)

    def hidden(self, values: Tensor) -> Tensor:
        """Output of the wide layer, rows x H."""
        return (values @ self.weight.T).to(self.offset.dtype) + self.offset

    def _blocks(self, x: Tensor, width: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Features not zero throughout: indices, weights, cells' values."""
        active = torch.nonzero((x != 0).any(0) | (self.background != 0).any(0)).squeeze(1)
        for start in range(0, len(active), width):
            features = active[start : start + width]
            yield features, self.weight[:, features], x[:, features]

    def _of_background(self, features: Tensor, weight: Tensor) -> Tensor:
        """``b_j W_hj``, BH x J."""
        return (self.background[:, None, features] * weight).flatten(0, 1)

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
        for features, weight, x in self._blocks(values, block_shape(self.device)[0]):
            of_background = self._of_background(features, weight)
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
        for features, weight, x in self._blocks(values, block_shape(self.device)[0]):
            through = inner @ weight
            through.mul_((x[:, None] - self.background[:, features])[:, None])
            yield features, torch.bmm(to_outputs, through.flatten(1, 2))

    def summed_attributions(self, values: Tensor, maps: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Sum over cells of `attributions` (R x J), without any single cell's.

        The background's term needs the sum of the maps only, the cells' is one product over cells.
        """
        n_outputs, n_hidden = maps.shape[1], maps.shape[3]
        mean = maps.mean(2).flatten(1)
        stack = (maps.sum(0) / maps.shape[2]).flatten(1)
        for features, weight, x in self._blocks(values, 128):
            of_background = self._of_background(features, weight)
            weighted = (x.T @ mean).view(-1, n_outputs, n_hidden)
            block = torch.bmm(weighted, weight.T.unsqueeze(2)).squeeze(2).T
            yield features, block.addmm(stack, of_background, alpha=-1)


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
        self.background = self.trace(self.side.background, 0)

    def trace(self, values: Tensor, pair: int = 1) -> Trace:
        """Activations up to the code; the other side of the pairs is dimension `pair`."""
        hidden = self.side.hidden(values).unsqueeze(pair)
        inputs, code = trace(self.steps, hidden[..., : self.n_hidden])
        return Trace(inputs, code + hidden[..., self.n_hidden :] if self.linear_path else code)

    def pull(self, v: Tensor, cells: Trace) -> Tensor:
        """Multipliers of the wide layer's output (C x R x B x H) from those of the code."""
        deep = pull_back(self.steps, v, cells, self.background)
        maps = torch.cat([deep, v], 3) if self.linear_path else deep
        return maps.to(self.side.dtype)


def block_shape(device: torch.device) -> tuple[int, int]:
    """Source and target features of a block of the last wide product."""
    return _BLOCK if device.type == "cpu" else _BLOCK_ON_DEVICE


def add_absolute(total: Tensor, features: Tensor, block: Tensor, weight: Tensor) -> None:
    """Add each cell's absolute relevance to `total` (source x target features).

    Parameters
    ----------
    total
        Changed in place, at the rows `features` (J).
    block
        Attributions to the last hidden layer, C x R x J.
    weight
        Of the last layer, R x target features.
    """
    width, first, last = block_shape(total.device)[1], int(features[0]), int(features[-1]) + 1
    for start in range(0, weight.shape[1], width):
        part = weight[:, start : start + width]
        one = total.new_empty(len(features), part.shape[1])
        several = torch.zeros_like(one)
        for cell in block:
            torch.mm(cell.T, part, out=one)
            several.add_(one.abs_())
        if last - first == len(features):  # contiguous, in place at less cost
            total[first:last, start : start + width] += several
        else:
            total[:, start : start + width].index_add_(0, features, several)


def strongest(
    strength: Callable[[int, int], Tensor], shape: tuple[int, int], k: int
) -> tuple[Tensor, Tensor]:
    """Rows and columns of the `k` largest values above zero, in row-major order.

    Parameters
    ----------
    strength
        Gives the values of the rows from a start to a stop.
    shape
        Rows and columns in all.
    """
    height = max(1, _RANKED // shape[1])
    best, where, floor = torch.empty(0), torch.empty(0, dtype=torch.long), 0.0
    for start in range(0, shape[0], height):
        values = strength(start, min(start + height, shape[0])).flatten()
        index = torch.nonzero(values > floor).squeeze(1)
        best = torch.cat([best.to(values), values[index]])
        where = torch.cat([where.to(index), index + start * shape[1]])
        if len(best) > k:
            best, order = torch.topk(best, k)
            where, floor = where[order], float(best[-1])
    where = where.sort().values
    return where // shape[1], where % shape[1]
