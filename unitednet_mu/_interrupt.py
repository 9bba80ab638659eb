"""Ctrl-C while a model is trained: the first ends the training, the second the program."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Self


class Interrupted(KeyboardInterrupt):
    """Training was asked to end before there was anything to keep."""


class Interruption:
    """Takes the first Ctrl-C of a block as a request to end, once there is something to keep.

    Before :attr:`keep` is set, and from the second on, Ctrl-C raises KeyboardInterrupt as ever. So
    it does in other threads than the main one, which never receive it, and where the program
    handles the signal itself.

    Attributes
    ----------
    keep
        Whether there is something to keep.
    requested
        Whether Ctrl-C was pressed since.
    """

    def __init__(self) -> None:
        self.keep = self.requested = False
        self._ours = False

    def __enter__(self) -> Self:
        """Take Ctrl-C over where it would raise KeyboardInterrupt."""
        self._ours = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self._ours:
            signal.signal(signal.SIGINT, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        """Give Ctrl-C back."""
        if self._ours and signal.getsignal(signal.SIGINT) == self._receive:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.requested or not self.keep:
            raise KeyboardInterrupt
        self.requested = True
