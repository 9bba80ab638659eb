"""DeepLIFT's rescale rule on chains of small layers, for all pairs of a cell and a background row.

For one pair, a chain of affine and elementwise layers is a linear map from the difference of
inputs to the difference of outputs (Shrikumar et al., ICML 2017; averaged over a background it
approximates Shapley values, Lundberg & Lee, NeurIPS 2017): affine layers multiply by their
weights, elementwise ones by the secant ``(f(a) - f(b)) / (a - b)``. Everything narrow is computed
here pair by pair; the wide products with the input (`_deeplift_input`) and the output
(`add_absolute`) come after the average over the background.

Letters in shapes: C cells, B background rows, R outputs of a chain, H width of the wide first
layer, J features of a block. Activations are C x 1 x width (cells) and (1 or C) x B x width
(background), multipliers C x R x B x width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ._network import Dropout

Values = Any  # rows x features: scipy's CSR matrix or array, or a dense array
Rows = NDArray[np.intp]

#: Below this difference of inputs a secant gives way to the derivative (shap's threshold).
TINY = 1e-6
#: Source x target features of a block of the last wide product, rewritten in cache cell after cell.
_BLOCK, _BLOCK_ON_DEVICE = (512, 512), (4096, 8192)

_POINTWISE: tuple[type[nn.Module], ...] = (
    *(nn.LeakyReLU, nn.ReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU),
    *(nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus),
)


def precise(device: torch.device) -> torch.dtype:
    """Type of activations and secants: float64, as secants of close values lose half the digits."""
    return torch.float32 if device.type == "mps" else torch.float64


def secant(function: Callable[[Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Slope of an elementwise function from `a` to `b`; its derivative where they almost agree."""
    if a is b:
        return _derivative(function, a)
    delta = a - b
    slope = (function(a) - function(b)) / delta
    tiny = delta.abs() < TINY
    if bool(tiny.any()):
        slope[tiny] = _derivative(function, ((a + b) / 2)[tiny])
    return slope


def _derivative(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        (derivative,) = torch.autograd.grad(function(at).sum(), at)
    return derivative


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
    inputs = zip(steps, cells.inputs, background.inputs, strict=True)
    for step, of_cells, of_background in reversed(list(inputs)):
        v = step.pull(v, of_cells, of_background)
    return v.expand(len(cells.output), -1, background.output.shape[1], -1)


def push_forward(steps: Sequence[Step], v: Tensor, cells: Trace, background: Trace) -> Tensor:
    """Carry multipliers for a chain's input (C x R x B x in, broadcastable) to its output.

    R numbers what the input depends on; where it is narrower than the output, this takes less than
    to pull the multipliers of every output back.
    """
    for step, of_cells, of_background in zip(steps, cells.inputs, background.inputs, strict=True):
        v = step.push(v, of_cells, of_background)
    return v.expand(len(cells.output), -1, background.output.shape[1], -1)


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


def block_shape(device: torch.device) -> tuple[int, int]:
    """Source and target features of a block of the last wide product."""
    return _BLOCK if device.type == "cpu" else _BLOCK_ON_DEVICE


def add_absolute(
    total: Tensor,
    features: Tensor,
    block: Tensor,
    weight: Tensor,
    beside: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Add each cell's absolute relevance to `total` (source x target features).

    Parameters
    ----------
    total
        Changed in place, at the rows `features` (J).
    block
        Attributions to the last hidden layer, C x R x J.
    weight
        Of the last layer, R x target features.
    beside
        What a linear map beside the chain adds: values of each cell, C x J, and weights, J x target
        features.
    """
    width, first, last = block_shape(total.device)[1], int(features[0]), int(features[-1]) + 1
    for start in range(0, weight.shape[1], width):
        part = weight[:, start : start + width]
        one = total.new_empty(len(features), part.shape[1])
        several = torch.zeros_like(one)
        for number, cell in enumerate(block):
            torch.mm(cell.T, part, out=one)
            if beside is not None:
                values, direct = beside
                one.addcmul_(values[number, :, None], direct[:, start : start + width])
            several.add_(one.abs_())
        columns = slice(start, start + width)
        if last - first == len(features):  # contiguous, in place at less cost
            total[first:last, columns] += several
        elif total.device.type == "cpu":  # numpy takes a third of the time of torch's index_add_
            total.numpy()[features.numpy(), columns] += several.numpy()
        else:
            total[:, columns].index_add_(0, features, several)
