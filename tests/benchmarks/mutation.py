"""Do the tests notice when a line of the package is wrong?

python tests/benchmarks/mutation.py [--files _explain.py _losses.py _results.py _data.py]
[--sample 60] [--seed 0] [--seconds 10]

Mutants are the package with one small change (an operator, a number, a comparison, a loop left
out), made by cosmic-ray; a mutant is killed if a test fails. Per file a random sample of mutants
is tried in a copy of the tree. First the tests of the file run once, and which of them reach which
line is measured; then each mutant meets those that reach its line, `--seconds` of CPU time at
most: by test file as listed in `TESTS`, the fastest of each first. One process imports torch and
whatever else tests use and is forked for each mutant, which so takes seconds, not half a minute
(why cosmic-ray does not run the tests itself).
A mutant under which tests take far longer than they should, or cannot be imported at all, is
noticed too, and counted apart. First the tests must pass in such a fork without a mutant.

Needs the optional group ``mutation``, and Linux or macOS.
"""

from __future__ import annotations

import argparse
import compileall
import importlib
import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

import pandas as pd
import pytest
from _mutants import mutants_of, reaching
from coverage import Coverage, CoverageData
from scipy.stats import binomtest

ROOT = Path(__file__).parents[2]
_PACKAGE = "unitednet_mu"
_ENGINE = ("test_explain_engine.py", "test_expected_gradients.py")
_READING = ("test_data.py", "test_engine.py", "test_bad_input.py", "test_mosaic.py")
#: The tests of each file, its own first.
TESTS: dict[str, tuple[str, ...]] = {
    "_data.py": _READING,
    "_decoding.py": ("test_losses.py", "test_engine.py", "test_direct_path.py"),
    "_explain.py": _ENGINE,
    "_explain_chain.py": _ENGINE,
    "_explain_cross.py": _ENGINE,
    "_losses.py": ("test_losses.py", "test_engine.py"),
    "_results.py": (
        "test_results.py",
        "test_slots.py",
        "test_integrate.py",
        "test_predict_modality.py",
        "test_transfer_labels.py",
    ),
    "_stored.py": ("test_on_disk.py", "test_data.py"),
    "_values.py": ("test_losses.py", "test_engine.py", "test_noise.py"),
}
_FILES = ("_explain.py", "_losses.py", "_results.py", "_data.py")
KILLED, NO_IMPORT, TIMED_OUT, SURVIVED = "killed", "no import", "timed out", "survived"
#: A mutant's tests may take so many times the CPU that they do without it, and so many seconds to
#: begin; and so many times that by the clock.
_SLOWER, _START, _WAITS = 4.0, 30.0, 20.0
_MEMORY = 12 * 2**30
_OPTIONS = (
    *("-q", "-p", "no:cacheprovider", "-p", "no:xdist"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),  # plugins that the fork brings along
)


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Measure, print survivors and the table, and return it."""
    chosen = _parser().parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = copied(ROOT, Path(name) / "tree")
        for file in chosen.files:
            rows.append(_tried(folder, file, chosen))
    total = {key: sum(row[key] for row in rows) for key in rows[0] if key != "file"}
    table = pd.DataFrame([_with_share(row) for row in [*rows, {"file": "all", **total}]])
    print(table.to_string(index=False))
    return table


def _tried(folder: Path, file: str, chosen: argparse.Namespace) -> dict[str, Any]:
    path = folder / _PACKAGE / file
    source = path.read_text()
    mutants = mutants_of(source, chosen.sample or None, chosen.seed)
    suite = measured(folder, path, TESTS[file])
    control = suite.within(set(suite.seconds), 2 * chosen.seconds)
    outcome, output = fate(folder, path, source, control, 2 * chosen.seconds)
    if outcome != SURVIVED:
        raise RuntimeError(f"{file}: expected tests that pass without a mutant.\n{output}")
    count = dict.fromkeys((KILLED, NO_IMPORT, TIMED_OUT, SURVIVED), 0)
    for mutant in mutants:
        tests = suite.within(reaching(source, mutant.line, suite.reached), chosen.seconds)
        seconds = sum(suite.seconds[test] for test in tests)
        outcome, _ = fate(folder, path, mutant.code, tests, seconds)
        count[outcome] += 1
        if outcome in (TIMED_OUT, SURVIVED):
            print(f"{file}:{mutant.line} {outcome}, {mutant.operator}, {len(tests)} tests")
            print(f"    {mutant.before}\n    {mutant.after}", flush=True)
    row = {"file": file, "tried": len(mutants), **count}
    print(row, flush=True)
    return row


def _with_share(row: Mapping[str, Any]) -> dict[str, Any]:
    noticed = row["tried"] - row[SURVIVED]
    result = binomtest(noticed, row["tried"])
    low, high = result.proportion_ci(method="exact")
    return {**row, "share": round(noticed / row["tried"], 3), "95 %": f"{low:.2f} to {high:.2f}"}


def copied(root: Path, folder: Path) -> Path:
    """Copy the tree; compiled files are told apart by content, as a mutant may be as old."""
    left_out = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", ".venv*", "_build")
    shutil.copytree(root, folder, ignore=left_out)
    compileall.compile_dir(
        folder / _PACKAGE, quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH
    )
    return folder


@dataclass(frozen=True)
class Suite:
    """Tests of a file: CPU seconds of each, and the tests that reach each line of the file.

    Those of its first test file come first, then those of the second.
    """

    files: Sequence[str]
    seconds: dict[str, float]
    reached: dict[int, list[str]]

    def within(self, tests: set[str], seconds: float) -> list[str]:
        """Return tests that take so many seconds together, but one at least; fast ones first."""
        chosen: list[str] = []
        place = {file: k for k, file in enumerate(self.files)}
        for test in sorted(
            tests, key=lambda one: (place[one.partition("::")[0]], self.seconds[one], one)
        ):
            seconds -= self.seconds[test]
            if chosen and seconds < 0:
                break
            chosen.append(test)
        return chosen


class _Measure:
    """A pytest plugin: CPU seconds and fixtures of each test; a context of coverage for each.

    What a fixture does that several tests share belongs to all of these.
    """

    def __init__(self, coverage: Coverage) -> None:
        self.coverage = coverage
        self.seconds: dict[str, float] = {}
        self.fixtures: dict[str, list[str]] = {}
        self.current = ""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        self.current = item.nodeid
        self.fixtures[item.nodeid] = list(getattr(item, "fixturenames", ()))
        self.coverage.switch_context(self.current)
        start = time.process_time()
        answer = yield
        self.seconds[item.nodeid] = time.process_time() - start
        self.coverage.switch_context("")
        return answer

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        shared = fixturedef.scope != "function"
        if shared:
            self.coverage.switch_context(f"fixture {fixturedef.argname}")
        answer = yield
        if shared:
            self.coverage.switch_context(self.current)
        return answer


class _Only:
    """A pytest plugin: these tests only, in this order."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.place = {test: k for k, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if item.nodeid in self.place]
        items.sort(key=lambda item: self.place[item.nodeid])


def measured(folder: Path, path: Path, files: Sequence[str]) -> Suite:
    """Run the tests of `path` once; what they import is imported here too, for forks to have."""
    where = [f"tests/{name}" for name in files]
    notes, data_file = folder.parent / "notes.json", folder.parent / "coverage"
    data_file.unlink(missing_ok=True)

    def run() -> int:
        coverage = Coverage(
            data_file=data_file, config_file=False, include=[str(folder / _PACKAGE / "*")]
        )
        coverage.start()
        measure = _Measure(coverage)
        code = int(pytest.main([*_OPTIONS, *where], plugins=[measure]))
        coverage.stop()
        coverage.save()
        mine = str(folder)
        modules = [
            name
            for name, module in list(sys.modules.items())
            if not (getattr(module, "__file__", None) or mine).startswith(mine)
        ]
        notes.write_text(json.dumps([measure.seconds, measure.fixtures, modules]))
        return code

    code, output = forked(folder, run, math.inf)
    if code != 0:
        raise RuntimeError(f"{where}: expected tests that pass without a mutant.\n{output}")
    seconds, fixtures, modules = json.loads(notes.read_text())
    for name in modules:
        importlib.import_module(name)
    data = CoverageData(str(data_file))
    data.read()
    return Suite(where, seconds, _tests_by_line(data.contexts_by_lineno(str(path)), fixtures))


def _tests_by_line(
    contexts: Mapping[int, Sequence[str]], fixtures: Mapping[str, Sequence[str]]
) -> dict[int, list[str]]:
    """Put the tests that share a fixture in the place of the fixture."""
    sharing: dict[str, list[str]] = {}
    for test, names in fixtures.items():
        for name in names:
            sharing.setdefault(f"fixture {name}", []).append(test)
    return {
        line: sorted({test for one in found for test in sharing.get(one, [one])})
        for line, found in contexts.items()
    }


def fate(
    folder: Path, path: Path, code: str, tests: Sequence[str], seconds: float
) -> tuple[str, str]:
    """Run tests, which take so many seconds, with other code in a file; what came of it, output."""
    if not tests:
        return SURVIVED, ""
    files = sorted({test.partition("::")[0] for test in tests})

    def run() -> int:
        sys.dont_write_bytecode = True
        return int(pytest.main(["-x", *_OPTIONS, *files], plugins=[_Only(tests)]))

    whole = path.read_text()
    path.write_text(code)
    try:
        status, output = forked(folder, run, _START + _SLOWER * seconds)
    finally:
        path.write_text(whole)
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise RuntimeError(f"expected {len(tests)} tests, found none.\n{output}")
    if status == -signal.SIGXCPU:
        return TIMED_OUT, output
    if status in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.USAGE_ERROR):
        return NO_IMPORT, output
    return (TIMED_OUT if status is None else KILLED if status else SURVIVED), output


def forked(folder: Path, run: Callable[[], int], seconds: float) -> tuple[int | None, str]:
    """Exit code of `run` in a fork that stands in `folder`, None if it waits too long; output.

    More than so many seconds of the CPU end it by a signal; other processes may slow it down.
    """
    answer = folder.parent / "output.txt"

    def child() -> None:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        if seconds != math.inf:
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds) + 5))
        with answer.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(folder)
        os.environ["PYTHONPATH"] = str(folder)
        sys.path.insert(0, str(folder))
        code = run()
        sys.stdout.flush()
        os._exit(code)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(None if seconds == math.inf else _WAITS * seconds)
    late = process.is_alive()
    try:  # what tests started and left behind too
        os.killpg(process.pid or 0, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.join()
    return (None if late else process.exitcode), answer.read_text()[-4000:]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", nargs="+", choices=TESTS, default=_FILES, metavar="FILE")
    parser.add_argument("--sample", type=int, default=60, help="mutants a file; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10.0, help="of tests a mutant, on the CPU")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MPLBACKEND", "Agg")
    main()
