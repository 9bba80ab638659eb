"""Losses of wide decoders, without the decoded values of a whole mini-batch ever being held.

Both losses of a decoded value p and a true one x are A(p) - x p, up to a constant and with
A(p) = p**2 / 2 (doubled) for the squared error, A(p) = log(1 + exp(p)) for binary cross-entropy at
the logit. The last layer is linear, p = h W + b, so that the second part needs x W only, one
product for all codes that are decoded and a sparse one where x is sparse; so does the first where
A is quadratic: its sum over features is a quadratic form of h. Where it is not, values are decoded
in blocks that fit the caches, and gradients are computed along with the losses, as there the values
are at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._network import Discriminator
from ._values import (
    Values,
    add_transposed,
    block_rows,
    gradient_memory,
    product,
    squares,
)

#: Rows, features, and their values.
_Block = tuple[slice, slice, Tensor]
#: Numbers between 1/2 and 1 whose product is sure to be no less than the smallest float32.
_FACTORS = 64


@dataclass(frozen=True)
class Wide:
    """What a decoder's last layer reads of some cells, and that layer.

    Attributes
    ----------
    hidden
        Rows x width.
    weight, bias
        Features x width, and features.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor

    def decoded(self) -> Tensor:
        """Decode all rows at once."""
        return nn.functional.linear(self.hidden, self.weight, self.bias)

    def detached(self) -> Wide:
        """Return the same, from which nothing learns."""
        return Wide(self.hidden.detach(), self.weight.detach(), self.bias.detach())


def squared_errors(
    wide: Wide,
    x: Values,
    gather: Callable[[Tensor], Tensor],
    scatter: Callable[[Tensor], Tensor],
) -> Tensor:
    """Sum over features of squared errors, by the quadratic form; one value a row.

    Parameters
    ----------
    x
        True values, cells x features.
    gather, scatter
        From cells to rows, each being decoded once or more; and sums of rows back to cells.
    """
    found: Tensor = _SquaredErrors.apply(  # type: ignore[no-untyped-call]
        wide.hidden, wide.weight, wide.bias, x, gather, scatter
    )
    return found


class _SquaredErrors(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        x: Values,
        gather: Callable[[Tensor], Tensor],
        scatter: Callable[[Tensor], Tensor],
    ) -> Tensor:
        form = hidden @ (weight.T @ weight)
        slope = weight.T @ bias - gather(product(x, weight))
        form.add_(slope, alpha=2)
        of_bias = bias @ bias - 2 * gather(product(x, bias[:, None]))[:, 0]
        found = (form * hidden).sum(1) + of_bias + gather(squares(x))
        ctx.save_for_backward(hidden, form.sub_(slope))
        ctx.of_layer, ctx.x, ctx.scatter = (weight, bias), x, scatter
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, slope = ctx.saved_tensors
        weight, bias = ctx.of_layer
        twice = 2 * gradient
        found: list[Tensor | None] = [None, None, None]
        if ctx.needs_input_grad[0]:
            found[0] = slope * twice[:, None]
        weighted = hidden * twice[:, None]
        total = weighted.sum(0)
        if ctx.needs_input_grad[1]:
            of_cells = ctx.scatter(weighted)
            memory, found[1] = gradient_memory(weight)
            memory.addmm_(weight, hidden.T @ weighted).addr_(bias, total)
            add_transposed(ctx.x, of_cells, memory, -1.0)
        if ctx.needs_input_grad[2]:
            memory, found[2] = gradient_memory(bias)
            memory.addmv_(weight, total).add_(bias * twice.sum())
            of_cells = ctx.scatter(twice[:, None])
            add_transposed(ctx.x, of_cells, memory[:, None], -1.0)
        return *found, None, None, None


def log_partition(
    wide: Wide, weights: Tensor, judge: Discriminator | None, judged: Tensor, n_judged: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over features of log(1 + exp(p)), and how far a discriminator believes sigmoid(p).

    Parameters
    ----------
    wide
        Rows to decode.
    weights
        Of each row in the total.
    judge
        Whose weights do not learn here.
    judged
        Weight of each row's squared distance of the score from 1 in the total.
    n_judged
        How many rows are judged; they come first.

    Returns
    -------
    Total, from which the decoder learns; the values of each row, and its squared distance from 1,
    from which nothing does.
    """
    learns = torch.is_grad_enabled()  # inside the function it never is
    found: tuple[Tensor, Tensor, Tensor] = _LogPartition.apply(  # type: ignore[no-untyped-call]
        wide.hidden, wide.weight, wide.bias, weights, judge, judged, n_judged, learns
    )
    return found


class _LogPartition(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        weights: Tensor,
        judge: Discriminator | None,
        judged: Tensor,
        n_judged: int,
        learns: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        learns = learns and any(ctx.needs_input_grad[:3])
        values, distances = (hidden.new_zeros(len(hidden)) for _ in range(2))
        slopes = [torch.zeros_like(one) for one in (hidden, weight, bias)] if learns else []
        # a discriminator reads all features of a cell
        blocks = _blocks_of_features if judge is None else _blocks_of_rows
        for rows, features, p in blocks(hidden, weight, bias):
            values[rows] += p.clamp_min(0).sum(1)
            p.sigmoid_()
            values[rows] -= _sum_log_larger(p)
            slope = None
            if judge is not None and rows.start < n_judged:
                score = _score(judge, p, 1.0, judged[rows])
                distances[rows] = score.distances
                slope = torch.mm(score.slope, judge.first.weight).mul_(p)
                slope.addcmul_(slope, p, value=-1)
            if learns:
                p.mul_(weights[rows, None])
                if slope is not None:
                    p.add_(slope)
                slopes[0][rows].addmm_(p, weight[features])
                slopes[1][features].addmm_(p.T, hidden[rows])
                slopes[2][features] += p.sum(0)
        ctx.save_for_backward(*slopes)
        ctx.of_layer = weight, bias
        ctx.mark_non_differentiable(values, distances)
        return weights @ values + judged @ distances, values, distances

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden, *of_layer = ctx.saved_tensors
        found: list[Tensor | None] = [hidden * gradient, None, None]
        for number, (parameter, slope) in enumerate(zip(ctx.of_layer, of_layer, strict=True), 1):
            if ctx.needs_input_grad[number]:
                memory, found[number] = gradient_memory(parameter)
                memory.addcmul_(slope, gradient)
        return *found, None, None, None, None, None


def fake_distances(wide: Wide, judge: Discriminator, weights: Tensor) -> Tensor:
    """Weighted sum of the squared scores of sigmoid(p), from which the discriminator learns."""
    wide = wide.detached()
    found: Tensor = _FakeDistances.apply(  # type: ignore[no-untyped-call]
        (wide.hidden, wide.weight, wide.bias), judge, weights, *judge.parameters()
    )
    return found


class _FakeDistances(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        wide: tuple[Tensor, Tensor, Tensor],
        judge: Discriminator,
        weights: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        total = weights.new_zeros(())
        slopes = [torch.zeros_like(one) for one in parameters]
        for part, _, p in _blocks_of_rows(*wide):
            score = _score(judge, p.sigmoid_(), 0.0, weights[part])
            total += weights[part] @ score.distances
            slopes[0].addmm_(score.slope.T, p)
            slopes[1].add_(score.slope.sum(0))
            for slope, more in zip(slopes[2:], score.of_rest, strict=True):
                slope.add_(more)
        ctx.save_for_backward(*slopes)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *(slope * gradient for slope in ctx.saved_tensors)


@dataclass(frozen=True)
class _Score:
    """Squared distances of scores from a goal; gradients of their weighted sum."""

    distances: Tensor
    slope: Tensor
    of_rest: tuple[Tensor, ...]


def _score(judge: Discriminator, x: Tensor, goal: float, weights: Tensor) -> _Score:
    """Scores of `x`; gradients at what the first layer gives, and of the later ones' weights."""
    first, rest = judge.first, judge.rest
    hidden = first(x).detach().requires_grad_()
    with torch.enable_grad():
        distances = (rest(hidden) - goal).square()[:, 0]
        wanted = [hidden, *(p for p in rest.parameters() if p.requires_grad)]
        slope, *of_rest = torch.autograd.grad(weights @ distances, wanted)
    return _Score(distances.detach(), slope, tuple(of_rest))


def _blocks_of_rows(hidden: Tensor, weight: Tensor, bias: Tensor) -> Iterator[_Block]:
    """All features of some rows at a time, decoded into the same memory, and where they stand."""
    size = block_rows(len(weight), weight.device)
    memory = hidden.new_empty(min(size, len(hidden)), len(weight))
    columns = weight.T.contiguous()  # a fifth faster than to read the weights across
    for start in range(0, len(hidden), size):
        rows = slice(start, min(start + size, len(hidden)))
        out = memory[: rows.stop - start]
        yield rows, slice(None), torch.addmm(bias, hidden[rows], columns, out=out)


def _blocks_of_features(hidden: Tensor, weight: Tensor, bias: Tensor) -> Iterator[_Block]:
    """All rows of some features at a time; wide weights are read once, not for every block."""
    size = block_rows(len(hidden), weight.device)
    memory = hidden.new_empty(len(hidden) * min(size, len(weight)))
    for start in range(0, len(weight), size):
        part = slice(start, min(start + size, len(weight)))
        shape = len(hidden), part.stop - start
        out = memory[: shape[0] * shape[1]].view(shape)
        yield slice(None), part, torch.addmm(bias[part], hidden, weight[part].T, out=out)


def _sum_log_larger(s: Tensor) -> Tensor:
    """Sum over columns of log(max(s, 1 - s)), the logarithm of products of many of them."""
    larger = (s - 0.5).abs_().add_(0.5)
    whole = larger.shape[1] // _FACTORS * _FACTORS
    products = larger[:, :whole].unflatten(1, (-1, _FACTORS)).prod(2) if whole else larger[:, :0]
    return products.log_().sum(1) + larger[:, whole:].log().sum(1)
