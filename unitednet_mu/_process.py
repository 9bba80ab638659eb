"""Settings of the whole process that training needs: changed for a block, then given back."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

#: Fewer values (cells x features) than this in a mini-batch make a small step.
_SMALL_STEP = 2**20
#: torch has one generator and one number of threads for all threads of a process: who changes
#: them takes turns, or two fits side by side would draw each other's random numbers.
_TURN = threading.RLock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch for the block and give the caller's random state back; one thread at a time."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with _TURN, torch.random.fork_rng(devices=list(devices)):
        of_mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
        torch.manual_seed(seed)
        try:
            yield
        finally:
            if of_mps is not None:
                torch.mps.set_rng_state(of_mps)


def new_seed() -> int:
    """Draw a seed."""
    return int(torch.randint(2**31, ()))


def draw_from(seed: int) -> None:
    """Go on drawing from a seed, within a block of :func:`seeded`."""
    torch.manual_seed(seed)


@contextmanager
def drawing_apart(rank: int) -> Iterator[None]:
    """Draw numbers of its own in each of several processes that draw the same ones otherwise."""
    seed = new_seed() + rank
    generators = [torch.default_generator]  # by hand, as torch.manual_seed takes longer
    if torch.cuda.is_initialized():
        generators.append(torch.cuda.default_generators[torch.cuda.current_device()])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


@contextmanager
def threads_for(values_per_step: int) -> Iterator[None]:
    """Run small steps on one thread, and give the caller's number of threads back.

    Waiting for a second thread costs a small step more than it saves, and far more where another
    process uses the second core. One thread of the process at a time.
    """
    with _TURN:
        before = torch.get_num_threads()
        try:
            if values_per_step < _SMALL_STEP:
                torch.set_num_threads(1)
            yield
        finally:
            torch.set_num_threads(before)


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Allow matrix products of float32 in fewer bits (``"bf16"``) for the block, or as it was."""
    if precision != "bf16":
        yield
        return
    with _TURN:
        try:
            before = torch.get_float32_matmul_precision()
        except RuntimeError:  # the caller uses torch's newer settings, and the two do not mix
            with _products_allowed():
                yield
            return
        try:
            torch.set_float32_matmul_precision("medium")
            yield
        finally:
            torch.set_float32_matmul_precision(before)


@contextmanager
def _products_allowed() -> Iterator[None]:
    """Do the same by torch's newer settings (2.9 and later), one for each library of products."""
    backends: Any = torch.backends
    settings = (backends.cuda.matmul, backends.mkldnn.matmul)
    before = [one.fp32_precision for one in settings]
    try:
        for one, fewer in zip(settings, ("tf32", "bf16"), strict=True):
            one.fp32_precision = fewer
        yield
    finally:
        for one, given in zip(settings, before, strict=True):
            one.fp32_precision = given


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """State of torch's generators that training on `device` draws from."""
    states = {"cpu": torch.random.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_states(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Go on drawing where :func:`random_states` was taken, if on a device of the same kind."""
    torch.random.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])
