"""Processes that train one network together, each on its share of every mini-batch.

Every process has all weights and computes a loss; the loss of the mini-batch is the mean of theirs,
and so is its gradient. Terms of single cells are scaled for that, terms between cells (contrastive,
clustering) and the batch statistics are computed on what all processes have, so that as many cells
give the same gradient however many processes share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


class Ranks:
    """One of the processes that train together; by default it is alone.

    Parameters
    ----------
    rank, size
        Number of this process, and of all of them, in torch's default process group.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    # ------------------------------------------------------------------ cells

    def whole(self, n: int) -> int:
        """Smallest number of at least `n` cells that all processes share evenly."""
        return -(-n // self.size) * self.size

    def part(self, n: int, rank: int | None = None) -> slice:
        """Share of a process, by default this one, in the `n` cells of a mini-batch."""
        number = self.rank if rank is None else rank
        return slice(n * number // self.size, n * (number + 1) // self.size)

    def sizes(self, counted: Tensor) -> list[int]:
        """How many of the cells that are `counted` (bool, one a cell) each process has."""
        n = len(counted)
        return [int(counted[self.part(n, rank)].sum()) for rank in range(self.size)]

    # ------------------------------------------------------------------ values

    def gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """Rows of all processes, which have so many each; gradients find their way back."""
        if self.alone:
            return x
        return cast("Tensor", _Gather.apply(x, sizes, self.rank))  # type: ignore[no-untyped-call]

    def mean(self, values: Sequence[float]) -> list[float]:
        """Mean over processes of each value; alone, the values as they are."""
        if self.alone or not values:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64, device=self._device())
        dist.all_reduce(found)
        return [value / self.size for value in found.tolist()]

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return flag if self.alone else self.mean([float(flag)])[0] > 0

    def of_first(self, make: Callable[[], T]) -> T:
        """Return what `make` returns, or raise its error, in the first process alone."""
        if self.alone:
            return make()
        if self.first:
            try:
                value = make()
            except Exception as error:
                self._tell(None, error)  # or the others would wait for ever
                raise
            self._tell(value, None)
            return value
        value, its_error = self._tell(None, None)
        if its_error is not None:
            raise its_error
        return cast("T", value)

    def _tell(self, *values: Any) -> list[Any]:
        """Return the first process's values."""
        found = list(values)
        dist.broadcast_object_list(found, device=self._device())
        return found

    def of_each(self, value: T) -> list[T]:
        """Value of every process, in order."""
        if self.alone:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def agree(self, network: nn.Module) -> None:
        """Give every process the first one's weights and statistics."""
        if not self.alone:
            for value in network.state_dict().values():
                dist.broadcast(value, 0)

    def _device(self) -> torch.device:
        """Where values have to be for torch to send them."""
        on_gpu = dist.get_backend() == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: Sequence[int], rank: int) -> Tensor:
        ctx.own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        largest = max(sizes)
        padded = x.new_zeros(largest, *x.shape[1:])
        padded[: len(x)] = x
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded)
        return torch.cat([part[:size] for part, size in zip(found, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.own], None, None


class GradientMean:
    """Mean over processes of gradients, all of them in one message.

    Parameters
    ----------
    ranks
        The processes.
    parameters
        Whose gradients; the same in every process.
    """

    def __init__(self, ranks: Ranks, parameters: Iterable[Tensor]) -> None:
        self._ranks, self._parameters = ranks, list(parameters)
        self._memory: Tensor | None = None

    def take(self) -> None:
        """Replace gradients by their mean; one that no process has stays None."""
        if self._ranks.alone:
            return
        somewhere = self._ranks.mean([float(p.grad is not None) for p in self._parameters])
        learning = [p for p, share in zip(self._parameters, somewhere, strict=True) if share]
        sizes = [p.numel() for p in learning]
        if self._memory is None:
            self._memory = self._parameters[0].new_empty(sum(p.numel() for p in self._parameters))
        used = self._memory[: sum(sizes)]
        for p, part in zip(learning, used.split(sizes), strict=True):
            if p.grad is None:
                part.zero_()
            else:
                part.copy_(p.grad.flatten())
        dist.all_reduce(used)
        used /= self._ranks.size
        for p, part in zip(learning, used.split(sizes), strict=True):
            p.grad = part.view_as(p)


class _BatchNorm(nn.BatchNorm1d):
    """Batch normalisation with the statistics of all processes' cells.

    torch's own SyncBatchNorm refuses the CPU. Means and sums of squares of the processes are put
    together as by Chan, Golub and LeVeque (1983); a process may have no cell.
    """

    ranks: Ranks

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input`, cells x features."""
        if not self.training:
            return super().forward(input)
        own_mean = input.sum(0) / max(len(input), 1)
        own = [torch.full_like(own_mean, len(input)), own_mean, (input - own_mean).square().sum(0)]
        every = self.ranks.gather(torch.stack(own)[None], [1] * self.ranks.size)
        n, means, squares = every.unbind(1)
        mean = (n * means).sum(0) / n.sum(0)
        total = (squares + n * (means - mean).square()).sum(0)
        self._remember(mean.detach(), (total / (n.sum(0) - 1)).detach())
        scale = self.weight * torch.rsqrt(total / n.sum(0) + self.eps)
        return (input - mean) * scale + self.bias

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            cast("Tensor", running).lerp_(value, cast("float", self.momentum))
        cast("Tensor", self.num_batches_tracked).add_(1)


def share_statistics(network: nn.Module, ranks: Ranks) -> None:
    """Let batch normalisation use the cells of all processes; weights stay the same objects."""
    if not ranks.alone:
        _swap(network, nn.BatchNorm1d, _BatchNorm, ranks=ranks)


def part_statistics(network: nn.Module) -> None:
    """Undo :func:`share_statistics`."""
    _swap(network, _BatchNorm, nn.BatchNorm1d)


def _swap(network: nn.Module, old: type, new: type[nn.BatchNorm1d], **attributes: Any) -> None:
    for module in list(network.modules()):
        for name, child in module.named_children():
            if not isinstance(child, nn.BatchNorm1d) or type(child) is not old:
                continue
            layer = new(child.num_features, child.eps, child.momentum)
            layer._parameters, layer._buffers = child._parameters, child._buffers
            vars(layer).update(attributes, training=child.training)
            setattr(module, name, layer)
