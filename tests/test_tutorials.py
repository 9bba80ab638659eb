"""The tutorials: what is stored can be shown, and (``-m tutorials``) every notebook runs afresh."""

from __future__ import annotations

import ast
import importlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import unitednet_mu as un

TUTORIALS = Path(__file__).parent.parent / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))
MODULES = ("tl", "pp", "pl", "get", "datasets", "metrics")
PUBLIC = {
    f"{module}.{name}"
    for module in MODULES
    for name in importlib.import_module(f"unitednet_mu.{module}").__all__
}
#: Bytes of a notebook with its outputs.
LARGEST = 1_500_000
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@cache
def cells(path: Path, kind: str = "code") -> list[dict[str, Any]]:
    found = json.loads(path.read_text("utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def code(path: Path) -> str:
    """All code of a notebook as Python, without the lines for the notebook itself (``%pip``)."""
    text = "\n".join("".join(cell["source"]) for cell in cells(path))
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", text, flags=re.MULTILINE)


def outputs(path: Path) -> list[dict[str, Any]]:
    return [output for cell in cells(path) for output in cell["outputs"]]


def test_there_are_seven() -> None:
    assert [path.stem.split("_")[0] for path in NOTEBOOKS] == [str(n) for n in range(1, 8)]


@each
def test_every_cell_was_run_in_order(path: Path) -> None:
    counts = [cell["execution_count"] for cell in cells(path)]
    assert counts == list(range(1, len(counts) + 1))


@each
def test_outputs_are_results_only(path: Path) -> None:
    """Figures and text; no error, and nothing on standard error: bars, warnings."""
    kinds = [output["output_type"] for output in outputs(path)]
    assert set(kinds) <= {"display_data", "execute_result", "stream"}
    assert all(one["name"] == "stdout" for one in outputs(path) if one["output_type"] == "stream")
    figures = [one for one in outputs(path) if "image/png" in one.get("data", {})]
    assert len(figures) >= 2


@each
def test_figures_say_in_words_what_they_show(path: Path) -> None:
    """For readers who cannot see them; what the page takes over is in `test_built_pages.py`."""
    texts = []
    for cell in cells(path):
        drawn = [one for one in cell["outputs"] if "image/png" in one.get("data", {})]
        image = cell["metadata"].get("mystnb", {}).get("image", {})
        assert set(image) == ({"alt"} if drawn else set())
        assert len(drawn) <= 1  # the text is that of the cell
        texts += [image["alt"] for _ in drawn]
    assert all(len(text) > 40 and text.endswith(".") for text in texts)
    assert len(set(texts)) == len(texts)


@each
def test_nothing_names_the_machine(path: Path) -> None:
    text = path.read_text("utf-8")
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        assert set(cell["metadata"]) <= {"tags", "mystnb"}
        for output in cell.get("outputs", []):
            for kind in ("image/png", "application/pdf"):
                output.get("data", {}).pop(kind, None)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    rest = json.dumps(notebook)
    paths = r"(?<![\w.:/<])/\w+/[\w.]+|site-packages|\b[A-Z]:\\\\"
    assert not re.search(paths, rest)
    assert not re.search(r"\b20\d\d-\d\d-\d\d[T ]\d\d:\d\d", rest)
    assert len(text.encode()) < LARGEST


@each
def test_the_first_cells_say_what_and_install(path: Path) -> None:
    first = json.loads(path.read_text("utf-8"))["cells"][0]
    assert first["cell_type"] == "markdown"
    assert "".join(first["source"]).startswith(f"# {path.stem[0]}. ")
    install = "".join(cells(path)[0]["source"])
    assert "%pip install" in install
    assert 'find_spec("unitednet_mu") is None' in install


@each
def test_only_public_names_are_used(path: Path) -> None:
    tree = ast.parse(code(path))
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names = {match[1] for one in used if (match := re.fullmatch(r"un\.(\w+\.\w+)", one))}
    assert names
    assert names <= PUBLIC
    assert not {one for one in used if re.match(r"un\.(\w+\.)*_", one)}
    imported = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [*(alias.name for alias in node.names), getattr(node, "module", "")]
    }
    assert not {name for name in imported if name and name.startswith("unitednet_mu.")}


@each
def test_names_in_the_text_exist(path: Path) -> None:
    text = "\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    names = set(re.findall(r"\bun\.((?:tl|pp|pl|get|datasets|metrics)\.\w+)", text))
    assert names <= PUBLIC
    linked = re.findall(r"\]\((\w+\.ipynb)\)", text)
    assert {TUTORIALS / name for name in linked} <= set(NOTEBOOKS)


def test_together_they_use_the_five_functions() -> None:
    text = "\n".join(code(path) for path in NOTEBOOKS)
    assert all(f"un.tl.{name}(" in text for name in un.tl.__all__)


# ------------------------------------------------------------------ run afresh


@pytest.mark.tutorials
@each
def test_it_runs(path: Path, tmp_path: Path) -> None:
    """In a fresh kernel and an empty folder, without an error, a warning or a bar."""
    pytest.importorskip("nbclient", reason='the optional group "docs" is not installed')
    from run_tutorials import clean, execute

    notebook = clean(execute(path, tmp_path))
    found = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = [one.text for one in found if one.output_type == "stream" and one.name == "stderr"]
    assert not said
    # figures and tables as stored; what is printed may come in fewer or more pieces
    rich = [one.output_type for one in found if one.output_type != "stream"]
    assert rich == [one["output_type"] for one in outputs(path) if one["output_type"] != "stream"]
    assert not list(tmp_path.iterdir()), "nothing is left behind"
