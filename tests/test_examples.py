"""The examples in public docstrings and the user guide run, as they stand."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import layouts
import pytest
from mudata import MuData

import unitednet_mu as un
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
    """A folder to write to, with small files named as public downloads; no figure left open."""
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    layouts.write_all(tmp_path)
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


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the cells, and training and UMAP cut short: code is to run, not to find much."""
    import scanpy as sc

    fit, umap, pbmc = un.tl.fit, sc.tl.umap, un.datasets.pbmc_citeseq

    def short_fit(mdata: MuData, **more: Any) -> Any:
        training = {"max_epochs": 2, "refit": False}
        return fit(mdata, **{**more, "training": training, "progress": False})

    monkeypatch.setattr(un.tl, "fit", short_fit)
    monkeypatch.setattr(sc.tl, "umap", partial(umap, maxiter=5))
    monkeypatch.setattr(un.datasets, "pbmc_citeseq", lambda: pbmc()[::4].copy())


@pytest.mark.filterwarnings("ignore:modality .* constant features carry no:UserWarning")
@pytest.mark.usefixtures("away", "brief")
@pytest.mark.parametrize("page", ["README.md", "docs/guide.md", "docs/index.md"])
def test_code_of_pages_runs(page: str) -> None:
    text = (Path(__file__).parent.parent / page).read_text("utf-8")
    blocks = re.findall(r"^```python\n((?!!).*?)^```", text, re.DOTALL | re.MULTILINE)
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    assert Path("fitted.h5mu").is_file() == ("fitted.h5mu" in text)
