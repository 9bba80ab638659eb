"""Work on mini-batches, recorded once on a GPU and replayed: CUDA graphs.

A step consists of some hundred small operations. A GPU is done with each sooner than a processor
has asked for the next; a recording is asked for as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import cast

import torch
from torch import Tensor

from ._compat import warn_user
from ._data import Batch

#: Names of terms, and their values.
Found = tuple[tuple[str, ...], Tensor]
#: Times that work is done as it comes before it is recorded: libraries start up meanwhile.
_FIRST = 3


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    found: Found
    gradients: list[Tensor | None]


class Graphs:
    """Does work on mini-batches; on a GPU it replays what it did with others of the same size.

    Parameters
    ----------
    size
        Cells of the mini-batches whose work is recorded, if every cell has every modality; any
        other is done as it comes. 0 for none.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._done: Counter[Hashable] = Counter()
        self._recordings: dict[Hashable, _Recording] = {}
        self._memory: Batch | None = None  # what recordings read
        self._loaded: Batch | None = None

    def run(
        self,
        name: Hashable,
        work: Callable[[Batch], Found],
        batch: Batch,
        parameters: Sequence[Tensor],
    ) -> Found:
        """Do work that sets the gradients of `parameters`, from None; replay it if it is known.

        Parameters
        ----------
        name
            Of the work: under one name it is always the same, but for the mini-batch's values. It
            reads nothing back from the GPU.
        """
        if not self._recordable(batch):
            return work(batch)
        if name not in self._recordings:
            self._done[name] += 1
            if self._done[name] <= _FIRST or not self._record(name, work, batch, parameters):
                return work(batch)
        self._load(batch)
        recording = self._recordings[name]
        recording.graph.replay()
        for parameter, gradient in zip(parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return recording.found

    def _recordable(self, batch: Batch) -> bool:
        return batch.complete and len(batch) == self._size and batch.observed.is_cuda

    def _record(
        self,
        name: Hashable,
        work: Callable[[Batch], Found],
        batch: Batch,
        parameters: Sequence[Tensor],
    ) -> bool:
        """Record work, without doing it; whether that was possible."""
        memory = self._load(batch)
        device = memory.labels.device
        graph = torch.cuda.CUDAGraph()
        generator = torch.cuda.default_generators[device.index]
        before = generator.clone_state()
        try:
            # other threads go on sending mini-batches
            stream, mode = _stream(device), "thread_local"
            with torch.cuda.device(device), torch.cuda.graph(graph, None, stream, mode):
                # nothing that was computed from these values before holds for others
                found = work(replace(memory))
        except RuntimeError as error:
            # a recording that breaks off leaves the generator in it, where nothing else may draw
            generator.graphsafe_set_state(before)
            warn_user(
                f"a step could not be recorded as a CUDA graph, training goes on without, slower; "
                f"training={{'cuda_graphs': False}} does so from the beginning. It was: {error}"
            )
            self._size = 0
            return False
        self._recordings[name] = _Recording(graph, found, [p.grad for p in parameters])
        return True

    def _load(self, batch: Batch) -> Batch:
        """Copy a mini-batch to where recordings read it."""
        if self._memory is None:
            self._memory = _copied(batch)
        elif self._loaded is not batch:
            for kept, values in zip(_tensors(self._memory), _tensors(batch), strict=True):
                kept.copy_(values)
        self._loaded = batch
        return self._memory


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Where a GPU records: torch's own is on the first GPU, and libraries keep memory for each."""
    return torch.cuda.Stream(device)


def _tensors(batch: Batch) -> list[Tensor]:
    """Return what differs between complete mini-batches of one size."""
    return [*cast("list[Tensor]", batch.x), batch.labels, batch.batches]


def _copied(batch: Batch) -> Batch:
    *x, labels, batches = (values.clone() for values in _tensors(batch))
    return replace(batch, x=list(x), labels=labels, batches=batches)
