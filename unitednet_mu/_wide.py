"""Losses of wide decoders, without the decoded values of a whole mini-batch ever being held.

Both losses of a decoded value p and a true one x are A(p) - x p, up to a constant and with
A(p) = p**2 / 2 (doubled) for the squared error, A(p) = log(1 + exp(p)) for binary cross-entropy at
the logit. The last layer is linear, p = h W + b, so that the second part needs x W only, one
product for all codes that are decoded and a sparse one where x is sparse; so does the first where
A is quadratic: its sum over features is a quadratic form of h. Where it is not, cells are decoded
in blocks that fit the caches, and gradients are computed along with the losses, as there the values
are at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._network import Discriminator
from ._values import block_rows

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


def squared_errors(wide: Wide, crossed: Tensor, at_bias: Tensor, squares: Tensor) -> Tensor:
    """Sum over features of squared errors, by the quadratic form; one value a row.

    Parameters
    ----------
    crossed
        True values times `wide.weight`, rows x width.
    at_bias
        True values times `wide.bias`.
    squares
        Sum of squares of the true values of each row.
    """
    form = wide.hidden @ (wide.weight.T @ wide.weight)
    cross = wide.weight.T @ wide.bias - crossed
    own = ((form + 2 * cross) * wide.hidden).sum(1)
    return own + (wide.bias @ wide.bias - 2 * at_bias) + squares


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
    found: tuple[Tensor, Tensor, Tensor] = _LogPartition.apply(  # type: ignore[no-untyped-call]
        wide.hidden, wide.weight, wide.bias, weights, judge, judged, n_judged
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
    ) -> tuple[Tensor, Tensor, Tensor]:
        learns = any(ctx.needs_input_grad[:3])
        n = len(hidden)
        values, distances = hidden.new_empty(n), hidden.new_zeros(n)
        slopes = [torch.zeros_like(one) for one in (hidden, weight, bias)] if learns else []
        for part, p in _decoded_blocks(hidden, weight, bias):
            values[part] = p.clamp_min(0).sum(1)
            p.sigmoid_()
            values[part] -= _sum_log_larger(p)
            slope = None
            if judge is not None and part.start < n_judged:
                score = _score(judge, p, 1.0, judged[part])
                distances[part] = score.distances
                slope = torch.mm(score.slope, judge.first.weight).mul_(p)
                slope.addcmul_(slope, p, value=-1)
            if learns:
                _add_slopes(slopes, part, hidden[part], weight, p, weights[part], slope)
        ctx.save_for_backward(*slopes)
        ctx.mark_non_differentiable(values, distances)
        return weights @ values + judged @ distances, values, distances

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *(slope * gradient for slope in ctx.saved_tensors), None, None, None, None


def _add_slopes(
    slopes: list[Tensor],
    part: slice,
    hidden: Tensor,
    weight: Tensor,
    probabilities: Tensor,
    weights: Tensor,
    more: Tensor | None,
) -> None:
    """Add a block's part to the gradients of hidden values, weights and biases."""
    of_p = probabilities.mul_(weights[:, None])
    if more is not None:
        of_p.add_(more)
    torch.mm(of_p, weight, out=slopes[0][part])
    slopes[1].addmm_(of_p.T, hidden)
    slopes[2].add_(of_p.sum(0))


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
        for part, p in _decoded_blocks(*wide):
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


def _decoded_blocks(hidden: Tensor, weight: Tensor, bias: Tensor) -> Any:
    """Blocks of decoded rows, all in the same memory, and where they stand."""
    size = block_rows(len(weight), weight.device)
    memory = hidden.new_empty(min(size, len(hidden)), len(weight))
    columns = weight.T.contiguous()  # a fifth faster than to read the weights across
    for start in range(0, len(hidden), size):
        part = slice(start, min(start + size, len(hidden)))
        out = memory[: part.stop - part.start]
        yield part, torch.addmm(bias, hidden[part], columns, out=out)


def _sum_log_larger(s: Tensor) -> Tensor:
    """Sum over columns of log(max(s, 1 - s)), the logarithm of products of many of them."""
    larger = (s - 0.5).abs_().add_(0.5)
    whole = larger.shape[1] // _FACTORS * _FACTORS
    products = larger[:, :whole].unflatten(1, (-1, _FACTORS)).prod(2) if whole else larger[:, :0]
    return products.log_().sum(1) + larger[:, whole:].log().sum(1)
