"""Errors raised at any step of the five functions: the object is as it was, or complete."""

from __future__ import annotations

import dis
import inspect
import os
import random
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from types import CodeType, FrameType
from typing import Any

import anndata
import mudata
import numpy as np
import torch
from _compare import fingerprint_of
from mudata import MuData

import unitednet_mu as un
from unitednet_mu import _adapt
from unitednet_mu._compat import copied

_OURS = os.path.dirname(un.__file__) + os.sep
_THEIRS = tuple(os.path.dirname(package.__file__) + os.sep for package in (mudata, anndata))
ERRORS = (RuntimeError, KeyboardInterrupt)
_QUICK: dict[str, Any] = {
    "network": {"n_hidden": (16,), "n_latent": 4, "n_projector": 8, "n_heads": 1},
    "training": {"max_epochs": 2, "batch_size": 32, "validation_fraction": 0.3},
    "device": "cpu",
    "progress": False,
}
_FEW: dict[str, Any] = {"n_cells": 2, "n_background": 2, "progress": False}

#: Every function in its ways, from a MuData and a reference with a model.
CALLS: dict[str, Callable[[MuData, MuData], Any]] = {
    "fit": lambda m, r: un.tl.fit(m, labels_key="cell_type", **_QUICK),
    "fit, groups": lambda m, r: un.tl.fit(m, n_groups=2, **_QUICK),
    "integrate": lambda m, r: un.tl.integrate(m),
    "integrate, copy": lambda m, r: un.tl.integrate(m, copy=True),
    "predict_modality": lambda m, r: un.tl.predict_modality(m, source="rna", target="adt"),
    "transfer_labels": lambda m, r: un.tl.transfer_labels(
        m, r, training={"max_epochs": 1}, progress=False
    ),
    "explain": lambda m, r: un.tl.explain(m, **_FEW),
    "explain, pair": lambda m, r: un.tl.explain(
        m, source="rna", target="adt", per_cell=True, **_FEW
    ),
    "explain, refits": lambda m, r: un.tl.explain(m, n_repeats=1, **_FEW),
}


@dataclass(frozen=True)
class Point:
    """The n-th time that a line of ours is reached, or a function of mudata's or anndata's."""

    file: str
    line: int
    number: int

    def __str__(self) -> str:
        return f"{os.sep.join(self.file.split(os.sep)[-2:])}:{self.line} (time {self.number})"


@dataclass(frozen=True)
class Outcome:
    """What a fault led to."""

    call: str
    as_view: bool
    error: str
    point: Point
    raised: str
    unchanged: bool
    complete: bool
    state_kept: bool

    @property
    def survived(self) -> bool:
        """Whether the object is as before, or as after the call without a fault."""
        return self.unchanged or self.complete


def _kind(code: CodeType) -> str | None:
    """Where errors are raised in a function: at every line of ours, at calls of others'."""
    if code.co_filename.startswith(_OURS):
        return "line"
    if code.co_flags & inspect.CO_GENERATOR:  # entered again when it is thrown away
        return None
    return "call" if code.co_filename.startswith(_THEIRS) else None


@cache
def _leaves_a_block(code: CodeType, offset: int) -> bool:
    """Whether the next thing done is to call a context manager's ``__exit__``.

    No error can be raised between the end of a block and that call.
    """
    following = [x for x in dis.get_instructions(code) if x.offset >= offset]
    if following[0].opname == "SWAP":  # a value to return lies on the stack
        del following[0]
    return [(x.opname, x.argval) for x in following[:3]] == [("LOAD_CONST", None)] * 3


@contextmanager
def tracing(reached: Callable[[str, int], None]) -> Iterator[None]:
    """Call `reached` with file and line at every step of a block."""

    def step(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and not _leaves_a_block(frame.f_code, frame.f_lasti):
            reached(frame.f_code.co_filename, frame.f_lineno)
        return step

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        kind = _kind(frame.f_code)
        if kind == "call":
            reached(frame.f_code.co_filename, frame.f_lineno)
        return step if kind == "line" else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)


def points_of(call: Callable[[], Any]) -> list[Point]:
    """First and last time that every line or function is reached."""
    seen: Counter[tuple[str, int]] = Counter()
    with tracing(lambda file, line: seen.update([(file, line)])):
        call()
    return [Point(*where, n) for where, total in seen.items() for n in sorted({1, total})]


def raise_at(point: Point, error: type[BaseException], call: Callable[[], Any]) -> str:
    """Raise an error at a point of a call; the type of what the call raised, or ``""``."""
    times = 0

    def reached(file: str, line: int) -> None:
        nonlocal times
        if (file, line) == (point.file, point.line):
            times += 1
            if times == point.number:
                raise error("injected")

    try:
        with tracing(reached):
            call()
    except BaseException as found:
        if isinstance(found, Exception | KeyboardInterrupt):
            return type(found).__name__
        raise
    return ""


def process_state() -> list[Any]:
    """Random generators, threads and signals of this process."""
    legacy = np.random.get_state()  # noqa: NPY002 - the caller's global state is what is compared
    return [
        random.getstate(),
        [np.asarray(part).tolist() for part in legacy],
        torch.random.get_rng_state().tolist(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        signal.getsignal(signal.SIGINT),
    ]


class Faults:
    """Raises errors in calls on a small MuData with a model and results of all functions."""

    def __init__(self) -> None:
        self.whole = un.datasets.simulate_multimodal(
            n_obs=90, n_groups=2, n_vars={"rna": 12, "adt": 8}, missing=0.2, random_state=4
        )
        un.tl.fit(self.whole, labels_key="cell_type", **_QUICK)
        self.reference = copied(self.whole)
        # other results than the ones that the calls will write: half of these would be seen
        un.tl.fit(self.whole, n_groups=3, random_state=1, **_QUICK)
        un.tl.integrate(self.whole)
        un.tl.predict_modality(self.whole, source="rna", target="adt")
        un.tl.explain(self.whole, random_state=1, **_FEW)
        un.tl.explain(self.whole, source="rna", target="adt", random_state=1, **_FEW)
        model = self.reference.uns["unitednet"]["model"]
        self.whole.uns["unitednet"] = {**self.whole.uns["unitednet"], "model": model}
        self._shift = _adapt._SHIFT

    def prepared(self, as_view: bool) -> tuple[MuData, MuData]:
        """Object of a call, and the object that it is a view of, or itself."""
        whole = copied(self.whole)
        return (whole[np.arange(whole.n_obs) % 3 > 0] if as_view else whole), whole

    @contextmanager
    def _adapting(self) -> Iterator[None]:
        """Adapt to every query."""
        _adapt._SHIFT = -np.inf
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            _adapt._SHIFT = self._shift

    def points(self, name: str, as_view: bool) -> list[Point]:
        """Where errors can be raised in a call."""
        mdata, _ = self.prepared(as_view)
        with self._adapting():
            CALLS[name](self.prepared(as_view)[0], self.reference)  # fill caches
            return points_of(lambda: CALLS[name](mdata, self.reference))

    def outcomes(
        self, name: str, as_view: bool, todo: list[tuple[Point, type[BaseException]]]
    ) -> Iterator[Outcome]:
        """Raise every error at its point, one a call."""
        finished, _ = self.prepared(as_view)
        with self._adapting():
            CALLS[name](finished, self.reference)
        complete, reference = fingerprint_of(finished), fingerprint_of(self.reference)
        mdata, parent = self.prepared(as_view)
        before, of_parent = fingerprint_of(mdata), fingerprint_of(parent)
        for point, error in todo:
            state = process_state()
            with self._adapting():
                raised = raise_at(point, error, partial(CALLS[name], mdata, self.reference))
            found = fingerprint_of(mdata)
            others_kept = fingerprint_of(self.reference) == reference
            if as_view:
                others_kept &= fingerprint_of(parent) == of_parent
            yield Outcome(
                name,
                as_view,
                error.__name__,
                point,
                raised,
                others_kept and found == before,
                others_kept and found == complete,
                process_state() == state,
            )
            if found != before:
                mdata, parent = self.prepared(as_view)
