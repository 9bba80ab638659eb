"""Processes that train one network together, each on its share of every mini-batch.

Data are wide and networks narrow: nearly all arithmetic is in the layers that read or write a
modality's features. Each process puts its own cells through these, and all cells of the mini-batch,
their values gathered in between, through the narrow layers. So batch statistics and terms between
cells (contrastive, clustering) are what one process would compute, and a step has few messages.

Every process computes a loss; that of the mini-batch is the mean of theirs, and so is its gradient.
Terms of single decoded cells are scaled for that.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
#: How many rows each process has, of every block that the rows of a tensor consist of.
Shares = Sequence[Sequence[int]]


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

    # ------------------------------------------------------------------ cells and their rows

    def whole(self, n: int) -> int:
        """Smallest number of at least `n` cells that all processes share evenly."""
        return -(-n // self.size) * self.size

    def part(self, n: int, rank: int | None = None) -> slice:
        """Share of a process, by default this one, in the `n` cells of a mini-batch."""
        number = self.rank if rank is None else rank
        return slice(n * number // self.size, n * (number + 1) // self.size)

    def sizes(self, n: int, counted: Tensor | None = None) -> list[int]:
        """How many of the `n` cells each process has, or of those `counted` (bool, one a cell)."""
        parts = [self.part(n, rank) for rank in range(self.size)]
        if counted is None:
            return [part.stop - part.start for part in parts]
        return [int(counted[part].sum()) for part in parts]

    def gather(self, own: Iterable[Tensor], shares: Sequence[Shares]) -> Iterable[Tensor]:
        """Rows of all processes, where each has its own, of several tensors in one message.

        Alone, the tensors as they come, each made when it is taken. Gradients find their way back.
        """
        parts = own if self.alone else tuple(own)
        if self.alone or not parts:
            return parts
        return cast("Iterable[Tensor]", _Gather.apply(self, shares, *parts))  # type: ignore[no-untyped-call]

    def own(self, whole: Iterable[Tensor], shares: Sequence[Shares]) -> Iterable[Tensor]:
        """Return this process's rows of tensors that every process has whole; undoes `gather`."""
        parts = whole if self.alone else tuple(whole)
        if self.alone or not parts:
            return parts
        return cast("Iterable[Tensor]", _Own.apply(self, shares, *parts))  # type: ignore[no-untyped-call]

    # ------------------------------------------------------------------ values

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
    """Every process's loss has all of it in, so that its own rows' gradient is there already."""

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, shares: Sequence[Shares], *own: Tensor) -> Any:
        ctx.ranks, ctx.shares = ranks, shares
        return _exchanged(ranks, own, shares)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        own = _own(ctx.ranks, gradients, ctx.shares)
        return None, None, *(gradient * ctx.ranks.size for gradient in own)


class _Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks: Ranks, shares: Sequence[Shares], *whole: Tensor) -> Any:
        ctx.ranks, ctx.shares = ranks, shares
        return _own(ranks, whole, shares)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        whole = _exchanged(ctx.ranks, gradients, ctx.shares)
        return None, None, *(gradient / ctx.ranks.size for gradient in whole)


def _own(ranks: Ranks, whole: Sequence[Tensor], shares: Sequence[Shares]) -> tuple[Tensor, ...]:
    places = (_places(blocks, ranks.rank) for blocks in shares)
    return tuple(
        torch.cat([x[part] for part in parts]) for x, parts in zip(whole, places, strict=True)
    )


def _exchanged(ranks: Ranks, own: Sequence[Tensor], shares: Sequence[Shares]) -> tuple[Tensor, ...]:
    """All rows of tensors of which each process has its own, in one message."""
    pairs = list(zip(own, shares, strict=True))
    whole = tuple(x.new_empty(sum(map(sum, blocks)), x.shape[1]) for x, blocks in pairs)
    pieces = [  # of each process, all that it sends
        [x[part] for x, blocks in zip(whole, shares, strict=True) for part in _places(blocks, rank)]
        for rank in range(ranks.size)
    ]
    sizes = [sum(piece.numel() for piece in its) for its in pieces]
    sent = own[0].new_zeros(max(sizes))
    torch.cat([x.flatten() for x in own], out=sent[: sizes[ranks.rank]])
    received = [torch.empty_like(sent) for _ in sizes]
    dist.all_gather(received, sent)
    for its, size, values in zip(pieces, sizes, received, strict=True):
        parts = values[:size].split([piece.numel() for piece in its])
        for piece, part in zip(its, parts, strict=True):
            piece.copy_(part.view_as(piece))
    return whole


def _places(blocks: Shares, rank: int) -> list[slice]:
    """Where a process's rows of each block stand."""
    starts = itertools.accumulate(map(sum, blocks[:-1]), initial=0)
    pairs = zip(starts, blocks, strict=True)
    before = [(start + sum(sizes[:rank]), sizes[rank]) for start, sizes in pairs]
    return [slice(at, at + n) for at, n in before]


class GradientSum:
    """Sum over processes of gradients, all of them in one message.

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

    def take(self, more: Tensor) -> Tensor:
        """Replace gradients by their sum; that of `more`, values to go with them.

        A gradient that is None is so in every process, as all run the same parts of the network.
        """
        if self._ranks.alone:
            return more
        learning = [p for p in self._parameters if p.grad is not None]
        parts = [*(cast("Tensor", p.grad).flatten() for p in learning), more]
        sizes = [len(part) for part in parts]
        if self._memory is None or len(self._memory) < sum(sizes):
            self._memory = more.new_empty(sum(sizes))
        used = torch.cat(parts, out=self._memory[: sum(sizes)])
        dist.all_reduce(used)
        *gradients, found = cast("Sequence[Tensor]", used.split(sizes))
        for p, gradient in zip(learning, gradients, strict=True):
            cast("Tensor", p.grad).copy_(gradient.view_as(p))
        return found
