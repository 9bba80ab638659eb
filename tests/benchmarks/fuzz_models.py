"""Hostile stored models, searched for by which lines of the reader they reach.

python tests/benchmarks/fuzz_models.py [--runs 10000] [--seed 1]

The draws and checks of ``reliability.py --parts hostile``; atheris chooses what is drawn, towards
code that no draw has reached yet. Stops at the first model that does harm. Draws that hypothesis
finds too short are runs, but read nothing. Needs the optional group ``mutation``, and Linux.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import atheris
import numpy as np
from hypothesis import HealthCheck, given, settings

with atheris.instrument_imports(include=["unitednet_mu"]):
    from _hostile import Hostile, Reader, hostile, small_model

#: Random texts to begin with, and their bytes.
_SEEDS, _LENGTH = 64, 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Read models in a process of its own, as libFuzzer ends the one that it runs in."""
    chosen = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        process = multiprocessing.get_context("fork").Process(
            target=fuzz, args=(Path(folder), chosen.runs, chosen.seed)
        )
        process.start()
        process.join()
    return process.exitcode or 0


def fuzz(folder: Path, runs: int, seed: int) -> None:
    """Read so many models; print how many were refused. Harm ends the process with an error."""
    seeds, rng = folder / "seeds", np.random.default_rng(seed)
    seeds.mkdir()
    for k in range(_SEEDS):
        (seeds / str(k)).write_bytes(rng.bytes(_LENGTH))
    reader, left = Reader(folder, small_model()), runs

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(hostile(reader.victim, reader.marker))
    def read(drawn: Hostile) -> None:
        if found := reader.problem(drawn):
            raise AssertionError(f"{drawn.what}: {found}: {drawn.stored!r:.500}")

    def once(data: bytes) -> None:
        nonlocal left
        read.hypothesis.fuzz_one_input(data)
        left -= 1
        if not left:
            print(dict(reader.tally), flush=True)

    options = [f"-runs={runs}", f"-seed={seed}", f"-max_len={4 * _LENGTH}"]
    atheris.Setup([sys.argv[0], *options, str(seeds)], once)
    atheris.Fuzz()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    return parser


if __name__ == "__main__":
    sys.exit(main())
