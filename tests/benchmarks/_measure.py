"""Time and memory of a call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter


def seconds(function: Callable[[], object]) -> float:
    """Time that a call takes."""
    start = perf_counter()
    function()
    return perf_counter() - start


def peak_above(function: Callable[[], object]) -> float:
    """Largest resident size during a call above that before it, MiB; NaN where it cannot be read.

    Only in a fresh process: memory that was freed before may be used again unseen.
    """
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not forget.exists():
        return float("nan")
    forget.write_text("5")  # the peak begins anew
    before = _resident(status, "VmRSS")
    function()
    return (_resident(status, "VmHWM") - before) / 1024


def _resident(status: Path, field: str) -> float:
    line = next(one for one in status.read_text().splitlines() if one.startswith(field))
    return float(line.split()[1])
