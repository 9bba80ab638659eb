"""A fit that may be stopped and continued: what the training tells it, and what it knows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ._checkpoint import Checkpoints, checkpoints_in
from ._interrupt import Interruption

State = Mapping[str, Any]


@dataclass
class Session:
    """Ctrl-C and checkpoints of one fit; by default neither is heeded.

    Attributes
    ----------
    stop
        Whether to end training, and keep what there is.
    checkpoints
        Where states go, if anywhere.
    resumed
        State of the training to continue, once.
    fallback
        Whether there is a finished model, better than one whose training ended early.
    finished
        That model's training, for checkpoints.
    """

    stop: Interruption = field(default_factory=Interruption)
    checkpoints: Checkpoints | None = None
    resumed: State | None = None
    fallback: bool = False
    finished: State | None = None

    def take_resumed(self) -> State | None:
        """State to continue from, for the first training that asks."""
        state, self.resumed = self.resumed, None
        return state

    def epoch_ended(self, number: int, state: Callable[[], State], *, last: bool) -> None:
        """Write a checkpoint if epoch `number` (from 1) is due, or the `last` of its phase."""
        if self.checkpoints is not None and (last or number % self.checkpoints.every == 0):
            self.checkpoints.save({"training": state(), "finished": self.finished})


@contextmanager
def session(
    directory: str | os.PathLike[str] | None,
    every: int,
    fingerprint: Callable[[], State],
    *,
    resume: bool,
) -> Iterator[Session]:
    """Heed Ctrl-C, and keep checkpoints in `directory` if one is given.

    Raises
    ------
    ValueError
        The folder cannot be used, or holds what cannot be continued.
    """
    with Interruption() as stop:
        if directory is None:
            yield Session(stop)
            return
        with checkpoints_in(directory, every, fingerprint(), resume=resume) as (kept, state):
            found = state or {"training": None, "finished": None}
            yield Session(stop, kept, found["training"], finished=found["finished"])
