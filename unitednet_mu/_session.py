"""A fit that may be stopped and continued: what the training tells it, and what it knows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from ._checkpoint import Checkpoints, checkpoints_in
from ._interrupt import Interruption
from ._ranks import Ranks

State = Mapping[str, Any]


@dataclass
class Session:
    """Ctrl-C and checkpoints of one fit; by default neither is heeded.

    Attributes
    ----------
    stop
        Whether to end training, and keep what there is.
    checkpoints
        Where states go, if anywhere; of several processes the first one's.
    every
        Epochs between checkpoints; 0 where there are none.
    ranks
        Processes that train together.
    resumed
        State of the training to continue, once.
    fallback
        Whether there is a finished model, better than one whose training ended early.
    finished
        That model's training, for checkpoints.
    """

    stop: Interruption = field(default_factory=Interruption)
    checkpoints: Checkpoints | None = None
    every: int = 0
    ranks: Ranks = field(default_factory=Ranks)
    resumed: State | None = None
    fallback: bool = False
    finished: State | None = None

    def take_resumed(self) -> State | None:
        """State to continue from, for the first training that asks."""
        state, self.resumed = self.resumed, None
        return state

    def epoch_ended(self, number: int, state: Callable[[], State], *, last: bool) -> None:
        """Write a checkpoint if epoch `number` (from 1) is due, or the `last` of its phase."""
        if self.every and (last or number % self.every == 0):
            training = state()  # of all processes
            if self.checkpoints is not None:
                self.checkpoints.save({"training": training, "finished": self.finished})


@contextmanager
def session(
    directory: str | os.PathLike[str] | None,
    every: int,
    fingerprint: Callable[[], State],
    *,
    resume: bool,
    ranks: Ranks,
) -> Iterator[Session]:
    """Heed Ctrl-C, and keep checkpoints in `directory` if one is given.

    Of several processes the first one reads and writes them.

    Raises
    ------
    ValueError
        The folder cannot be used, or holds what cannot be continued.
    """
    with Interruption() as stop, ExitStack() as stack:
        if directory is None:
            yield Session(stop, ranks=ranks)
            return
        mine: list[Checkpoints] = []

        def newest() -> State | None:
            folder = checkpoints_in(directory, fingerprint(), resume=resume)
            kept, state = stack.enter_context(folder)
            mine.append(kept)
            return state

        found = ranks.of_first(newest) or {"training": None, "finished": None}
        yield Session(
            stop,
            mine[0] if mine else None,
            every,
            ranks,
            resumed=found["training"],
            finished=found["finished"],
        )
