"""Steps of a mini-batch: the discriminators', then the tasks', together or in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from ._data import Batch
from ._graphs import Found, Graphs
from ._optimise import Optimiser, Optimisers, RunningAverage
from ._tasks import Tasks, Terms


class Steps:
    """Moves a network by one mini-batch at a time.

    Parameters
    ----------
    tasks
        What the network is to learn.
    optimisers
        Of its weights, and of its discriminators'.
    averaged
        Running average of its weights.
    stop
        Whether training is to end.
    size
        Cells of the mini-batches whose steps a GPU may record and replay; 0 for none.

    Attributes
    ----------
    stopped
        Whether it was to end when the last step was made, in any process.
    """

    def __init__(
        self,
        tasks: Tasks,
        optimisers: Optimisers,
        averaged: RunningAverage,
        stop: Callable[[], bool] = lambda: False,
        size: int = 0,
    ) -> None:
        self.tasks, self.optimisers, self.averaged, self._stop = tasks, optimisers, averaged, stop
        self.stopped = False
        self._graphs = Graphs(size if tasks.ranks.alone else 0)

    def of(self, batch: Batch, *, identify: bool) -> Iterator[dict[str, float]]:
        """Make all steps of a mini-batch; terms of each, the mean of all processes'."""
        if len(batch) < 2:  # batch statistics and pairs need two cells
            return
        yield from self.oppose(batch)
        if identify and self.tasks.config.alternate:
            yield from self.take(batch, label_free=True, identification=False)
            yield from self.take(batch, label_free=False, identification=True)
        else:
            yield from self.take(batch, label_free=True, identification=identify)

    def oppose(self, batch: Batch) -> Iterator[dict[str, float]]:
        """Move the discriminators, if there are any; the network stays."""
        theirs = self.optimisers.discriminators
        if theirs is not None and self.tasks.config.weight("discriminator"):
            yield from self._step("discriminators", self._discrimination, theirs, batch)

    def take(
        self, batch: Batch, *, label_free: bool, identification: bool
    ) -> Iterator[dict[str, float]]:
        """Move the network by the terms of one task, or of both."""
        losses = partial(self._losses, label_free=label_free, identification=identification)
        name = label_free, identification
        yield from self._step(name, losses, self.optimisers.network, batch)

    def _discrimination(self, batch: Batch) -> tuple[Tensor, Terms]:
        terms = self.tasks.discrimination(batch)
        return self.tasks.total(terms), terms

    def _losses(
        self, batch: Batch, *, label_free: bool, identification: bool
    ) -> tuple[Tensor, Terms]:
        codes, observed = self.tasks.codes(batch)
        losses: list[Tensor] = []
        terms: Terms = {}
        if label_free:
            loss, terms = self.tasks.label_free(batch, codes, observed)
            losses += [loss] if terms else []
        if identification:
            found = self.tasks.identification(batch, codes, observed)
            losses += [self.tasks.total(found)] if found else []
            terms |= found
        return torch.stack(losses).sum() if losses else self.tasks.total({}), terms

    def _step(
        self,
        name: object,
        losses: Callable[[Batch], tuple[Tensor, Terms]],
        optimiser: Optimiser,
        batch: Batch,
    ) -> Iterator[dict[str, float]]:
        """Make a step, if there is anything to learn from; its terms."""
        work = partial(self._backward, losses, optimiser)
        terms, values = self._graphs.run(name, work, batch, optimiser.parameters)
        if not terms:
            return
        optimiser.move()
        if optimiser is self.optimisers.network:
            self.averaged.update()
        *found, stopped = values.tolist()  # last, since it waits for a GPU
        self.stopped = self._stop() if self.tasks.ranks.alone else stopped > 0
        yield dict(zip(terms, found, strict=True))

    def _backward(
        self,
        losses: Callable[[Batch], tuple[Tensor, Terms]],
        optimiser: Optimiser,
        batch: Batch,
    ) -> Found:
        """Set the gradients; terms, and whether to stop, go with them to the other processes."""
        loss, terms = losses(batch)
        if not terms:
            return (), loss
        stop = torch.full_like(loss, float(not self.tasks.ranks.alone and self._stop()))
        values = torch.stack([*(value.detach() for value in terms.values()), stop])
        return tuple(terms), optimiser.backward(loss, values)
