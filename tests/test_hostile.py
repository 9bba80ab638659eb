"""Stored models from strangers and broken disks: a sample of what the benchmark reads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import _hostile


def test_hostile_models_are_refused() -> None:
    tally, problems = _hostile.hostile_models(300)
    assert not problems
    assert sum(tally.values()) == 300
    assert tally["refused"] > 200


@pytest.fixture
def reader(tmp_path: Path) -> _hostile.Reader:
    return _hostile.Reader(tmp_path, _hostile.small_model())


def test_harm_would_be_noticed(reader: _hostile.Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks see code that runs, memory that is taken, other errors and long messages."""
    harm = _hostile.Hostile("pickle", _hostile.payloads(reader.marker)[0])
    monkeypatch.setattr(reader, "_read", lambda stored: _hostile.pickle.loads(stored).close())
    assert reader.problem(harm) == "code was run"
    reader.marker.unlink()
    monkeypatch.setattr(reader, "_read", lambda stored: bytearray(2**31))
    if sys.platform == "linux":
        assert "MemoryError" in reader.problem(harm)

    def fails(stored: object) -> None:
        raise ValueError("two\nlines")

    monkeypatch.setattr(reader, "_read", fails)
    assert "expected a message of one line" in reader.problem(harm)
