"""Steps of a mini-batch: the discriminators', then the tasks', together or in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ._data import Batch
from ._optimise import Optimisers, RunningAverage
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
    ) -> None:
        self.tasks, self.optimisers, self.averaged, self._stop = tasks, optimisers, averaged, stop
        self.stopped = False

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
        if not self.tasks.network.discriminators or not self.tasks.config.weight("discriminator"):
            return
        terms = self.tasks.discrimination(batch)
        if terms:
            yield self._step(self.optimisers.step_discriminators, self.tasks.total(terms), terms)

    def take(
        self, batch: Batch, *, label_free: bool, identification: bool
    ) -> Iterator[dict[str, float]]:
        """Move the network by the terms of one task, or of both."""
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
        if losses:
            found_values = self._step(self.optimisers.step, torch.stack(losses).sum(), terms)
            self.averaged.update()
            yield found_values

    def _step(
        self, step: Callable[[Tensor, Tensor], Tensor], loss: Tensor, terms: Terms
    ) -> dict[str, float]:
        """Make a step; the terms, and whether to stop, go with its gradients."""
        flag = loss.new_tensor(float(self._stop()))
        values = torch.stack([flag, *(value.detach() for value in terms.values())])
        stopped, *found = step(loss, values).tolist()
        self.stopped = stopped > 0
        return dict(zip(terms, found, strict=True))
