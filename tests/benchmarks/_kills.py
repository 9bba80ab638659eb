"""Fits in processes that are killed at random moments, and continued from their checkpoints."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np

import unitednet_mu as un

NETWORK = {"n_hidden": (32,), "n_latent": 8, "n_projector": 16, "n_heads": 2}
#: Ways to fit, each of both trainings: on a part of the cells, then on all.
CASES: dict[str, dict[str, Any]] = {
    "labels": {"labels_key": "cell_type"},
    "groups": {"n_groups": 3},
    "auto": {"batch_key": "batch"},
    "adversarial": {"labels_key": "cell_type", "network": {**NETWORK, "discriminators": True}},
}
EPOCHS = 12


def context() -> ForkServerContext:
    """Processes that begin with the package imported, in a moment."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["unitednet_mu.tl", __name__])
    return found


def train(case: str, folder: str, answer: str, before: Callable[[], None] | None = None) -> None:
    """Fit, or go on where the checkpoints in `folder` end; write a digest of the result."""
    if before is not None:
        before()
    mdata = un.datasets.simulate_multimodal(
        n_obs=120, n_groups=3, n_batches=2, missing=0.2, random_state=1
    )
    settings = {"network": NETWORK, "training": {"max_epochs": EPOCHS, "batch_size": 32}}
    un.tl.fit(
        mdata,
        **{**settings, **CASES[case]},
        device="cpu",
        progress=False,
        checkpoint_dir=folder,
        resume=True,
    )
    stored = mdata.uns["unitednet"]
    history = stored["history"].to_json(double_precision=15)
    digest = {
        "model": stored["model"]["sha256"],
        "history": hashlib.sha256(history.encode()).hexdigest(),
        "rows": len(stored["history"]),
        "ended": stored["params"]["ended"],
    }
    unfinished = Path(answer).with_suffix(".part")
    unfinished.write_text(json.dumps(digest))
    os.replace(unfinished, answer)


def start(case: str, folder: Path, answer: Path, **more: Any) -> ForkServerProcess:
    process = context().Process(target=train, args=(case, str(folder), str(answer)), kwargs=more)
    process.start()
    return process


def result(answer: Path) -> dict[str, Any] | None:
    return json.loads(answer.read_text()) if answer.exists() else None


@dataclass
class Killed:
    """How often a fit was killed, and what it and the same fit never killed came to."""

    kills: int
    found: dict[str, Any] | None
    expected: dict[str, Any] | None

    @property
    def survived(self) -> bool:
        return self.found is not None and self.found == self.expected


@cache
def never_killed(case: str) -> tuple[dict[str, Any] | None, float]:
    """Result of a fit that runs through, and the seconds it takes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        process = start(case, folder / "checkpoints", folder / "answer.json")
        process.join()
        return result(folder / "answer.json"), time.perf_counter() - began


def killed_at_random(case: str, n_kills: int, rng: np.random.Generator) -> Killed:
    """Kill a fit `n_kills` times (fewer where it ends before), then let it end."""
    expected, seconds = never_killed(case)
    kills = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        answer = folder / "answer.json"
        for _ in range(n_kills):
            process = start(case, folder / "checkpoints", answer)
            process.join(timeout=rng.uniform(0.05, 0.9) * seconds)
            process.kill()
            process.join()
            kills += process.exitcode == -signal.SIGKILL
        process = start(case, folder / "checkpoints", answer)
        process.join()
        return Killed(kills, result(answer), expected)
