"""The examples in public docstrings run, as they stand, and print what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unitednet_mu import _config, _model

MODULES = ("tl", "pp", "pl", "get", "datasets", "metrics")


def examples() -> list[doctest.DocTest]:
    """One test for each docstring that users meet."""
    modules = {name: importlib.import_module(f"unitednet_mu.{name}") for name in MODULES}
    objects: dict[str, Any] = {
        f"{module}.{name}": getattr(loaded, name)
        for module, loaded in modules.items()
        for name in loaded.__all__
    }
    objects |= {one.__name__: one for one in (_config.NetworkConfig, _config.TrainingConfig)}
    objects["Model"] = _model.Model
    parser = doctest.DocTestParser()
    return [
        parser.get_doctest(inspect.getdoc(thing) or "", {}, name, inspect.getsourcefile(thing), 0)
        for name, thing in objects.items()
    ]


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder to write to, and no figure left open."""
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    yield
    plt.close("all")


@pytest.mark.usefixtures("away")
@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_examples_run(example: doctest.DocTest) -> None:
    assert example.examples
    assert not any(doctest.SKIP in one.options for one in example.examples), "nothing is skipped"
    lines: list[str] = []
    found = doctest.DocTestRunner(verbose=False).run(example, out=lines.append)
    assert found.attempted == len(example.examples)
    assert not found.failed, "".join(lines)
