"""Figures of reliability: killed fits, damage, errors at any step, hostile files, odd inputs.

python tests/benchmarks/reliability.py [--parts kills damage faults hostile inputs] [--kills 24]
[--flips 2000] [--faults 60] [--hostile 10000] [--inputs 300] [--seed 0]

``kills``: fits are killed with SIGKILL at random moments and continued from their checkpoints; one
has survived if weights and history equal, bit for bit, those of the same fit never killed.
``damage``: bits of checkpoints are flipped and files cut short; damage is noticed if the file is
refused. ``faults``: a RuntimeError or KeyboardInterrupt is raised at steps of the five functions,
drawn from the first and last time that each line of this package and each function of mudata and
anndata is reached, half of them where results are written; the object, and a view and its parent,
must be as before or complete, and random generators, threads and signals as before. ``hostile``:
stored models that are damaged or made to do harm are refused in one line, or read as sound models,
without code run or memory taken. ``inputs``: MuData of every shape go through the five functions,
and either give finite results that follow cells by name or are refused; so do as many queries, with
odd values, features and modalities, to a model of plain cells.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from _faults import CALLS, ERRORS, Faults, Point
from _fuzz import any_inputs, any_queries
from _hostile import hostile_models
from _kills import CASES, killed_at_random, start

from unitednet_mu import _storage

#: Kills of one fit.
_EACH = 3
#: Files that write into the object.
_WRITERS = ("_results.py", "_compat.py", "mudata", "anndata")


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Measure, print the table, and return it."""
    chosen = _parser().parse_args(arguments)
    rows: list[tuple[str, str, int, int]] = []
    for name in chosen.parts:
        for row in PARTS[name](chosen, np.random.default_rng(chosen.seed)):
            rows.append((name, *row))
            print(f"{name}: {row[0]}: {row[1]} of {row[2]}", flush=True)
    table = pd.DataFrame(rows, columns=["part", "what", "held", "tried"])
    print(table.to_string(index=False))
    return table


def kills(chosen: argparse.Namespace, rng: np.random.Generator) -> Iterator[tuple[str, int, int]]:
    """Kills survived, of all kills, by kind of fit."""
    names = list(CASES)
    left = {name: -(-chosen.kills // len(names)) for name in names}
    for name in names:
        tried = survived = 0
        while left[name] > tried:
            outcome = killed_at_random(name, min(_EACH, left[name] - tried), rng)
            tried += outcome.kills
            survived += outcome.kills * outcome.survived
        yield f"killed fits equal to one never killed, {name}", survived, tried


def damage(chosen: argparse.Namespace, rng: np.random.Generator) -> Iterator[tuple[str, int, int]]:
    """Damaged checkpoints that are refused, of all."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start("labels", folder / "kept", folder / "answer.json").join()
        path = sorted((folder / "kept").glob("*.safetensors"))[-1]
        whole = path.read_bytes()
        header = 8 + int.from_bytes(whole[:8], "little")

        def refused(data: bytes) -> bool:
            path.write_bytes(data)
            try:
                _storage.from_file(path)
            except ValueError:
                return True
            return False

        for what, n_bytes in (("anywhere", len(whole)), ("in the header", header)):
            flips = [_flipped(whole, n_bytes, rng) for _ in range(chosen.flips)]
            yield f"one bit flipped {what}", sum(map(refused, flips)), len(flips)
        cuts = [whole[: int(rng.integers(len(whole)))] for _ in range(chosen.flips)]
        yield "cut short", sum(map(refused, cuts)), len(cuts)


def _flipped(whole: bytes, n_bytes: int, rng: np.random.Generator) -> bytes:
    data = bytearray(whole)
    data[int(rng.integers(n_bytes))] ^= 1 << int(rng.integers(8))
    return bytes(data)


def faults(chosen: argparse.Namespace, rng: np.random.Generator) -> Iterator[tuple[str, int, int]]:
    """Errors after which the object is as before or complete, of all, by function."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = Faults()
        for name in CALLS:
            for as_view in (False, True):
                points = sample(prepared.points(name, as_view), chosen.faults, rng)
                todo = [(point, ERRORS[k % len(ERRORS)]) for k, point in enumerate(points)]
                found = list(prepared.outcomes(name, as_view, todo))
                for one in found:
                    if not (one.survived and one.state_kept and one.raised):
                        print(one, flush=True)
                where = "a view" if as_view else "an object"
                yield f"{name}, {where}: unchanged or complete", _n(found, "survived"), len(found)
                yield f"{name}, {where}: process as before", _n(found, "state_kept"), len(found)


def _n(outcomes: Sequence[object], what: str) -> int:
    return sum(bool(getattr(one, what)) for one in outcomes)


def sample(points: Sequence[Point], n: int, rng: np.random.Generator) -> list[Point]:
    """Draw up to `n` points, half of them where results are written."""
    writing = [any(writer in point.file for writer in _WRITERS) for point in points]
    chosen: list[Point] = []
    for wanted in (True, False):
        those = [p for p, w in zip(points, writing, strict=True) if w == wanted]
        drawn = rng.permutation(len(those))[: n // 2]
        chosen += [those[int(k)] for k in drawn]
    return [chosen[int(k)] for k in rng.permutation(len(chosen))]


def hostile(chosen: argparse.Namespace, rng: np.random.Generator) -> Iterator[tuple[str, int, int]]:
    """Hostile models that do no harm, of all."""
    yield _drawn("hostile models", *hostile_models(chosen.hostile, int(rng.integers(2**31))))


def inputs(chosen: argparse.Namespace, rng: np.random.Generator) -> Iterator[tuple[str, int, int]]:
    """Inputs, and queries to a model, that work or are refused, of all."""
    yield _drawn("inputs", *any_inputs(chosen.inputs, int(rng.integers(2**31))))
    yield _drawn("queries", *any_queries(chosen.inputs, int(rng.integers(2**31))))


def _drawn(
    what: str, tally: Mapping[str, int], problems: Mapping[str, str]
) -> tuple[str, int, int]:
    """One row, with the outcomes in its name; problems, each kind once, are printed."""
    for problem, example in problems.items():
        print(f"{problem}\n  {example}", flush=True)
    counts = ", ".join(f"{n} {outcome}" for outcome, n in sorted(tally.items()))
    tried = sum(tally.values())
    return f"{what} ({counts})", tried - len(problems), tried


PARTS: dict[
    str, Callable[[argparse.Namespace, np.random.Generator], Iterator[tuple[str, int, int]]]
] = {"kills": kills, "damage": damage, "faults": faults, "hostile": hostile, "inputs": inputs}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--faults", type=int, default=60, help="of each function")
    parser.add_argument("--hostile", type=int, default=10_000)
    parser.add_argument("--inputs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
