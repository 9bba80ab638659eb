"""The documentation says what the code does: docstrings, the reference, the README's table."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import tomllib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from mudata import MuData

import unitednet_mu as un
from unitednet_mu import _config, _model

ROOT = Path(__file__).parent.parent
PACKAGE = Path(un.__file__).parent
MODULES = ("tl", "pp", "pl", "get", "datasets", "metrics")
FUNCTIONS = {
    f"{module}.{name}": getattr(loaded, name)
    for module in MODULES
    for loaded in [importlib.import_module(f"unitednet_mu.{module}")]
    for name in loaded.__all__
}
CLASSES = {
    "NetworkConfig": _config.NetworkConfig,
    "TrainingConfig": _config.TrainingConfig,
    "Model": _model.Model,
}
#: Methods of a model that its page shows.
METHODS = ("modality_weights", "encode", "predict", "save", "load")


def section(thing: Any, heading: str) -> list[str]:
    """Lines of one section of a numpy docstring."""
    text = inspect.getdoc(thing) or ""
    found = re.search(
        rf"^{heading}\n-+\n(.*?)(?=^[A-Z]\w+\n-+$|\Z)", text, re.DOTALL | re.MULTILINE
    )
    return found.group(1).rstrip().splitlines() if found else []


# ------------------------------------------------------------------ docstrings

#: How a slot's content is named: the type that is stored, or the type of each number in it.
KINDS = {
    *("AnnData", "DataFrame", "dict", "bool", "categorical", "category", "str"),
    *("dtype", "float", "float32", "float64", "int64"),
}
WRITING = [name for name in FUNCTIONS if name.startswith(("tl.", "pp.", "datasets."))]
READING = [name for name in FUNCTIONS if name not in WRITING]


@pytest.mark.parametrize("name", WRITING)
def test_returns_names_slots_and_types(name: str) -> None:
    lines = section(FUNCTIONS[name], "Returns")
    entries = [line for line in lines if line.startswith("``") or line.startswith("mdata")]
    for entry in entries:
        slots, _, kind = entry.partition(" : ")
        assert re.fullmatch(r"(``[^`]+``(, )?)+", slots), entry
        assert kind.split(",")[0].split()[0] in KINDS, entry
    assert entries or "Nothing is written." in " ".join(lines)


@pytest.mark.parametrize("name", READING)
def test_returns_begins_with_the_type(name: str) -> None:
    kinds = r"(shap|pandas|matplotlib|list of)\S*|DataFrame|Dictionary|Float|float64 array|Model"
    first = section(FUNCTIONS[name], "Returns")[0]
    assert re.match(rf"({kinds})\b", first), first


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_the_model_are_documented(name: str) -> None:
    method = getattr(_model.Model, name)
    signature = inspect.signature(method)
    names = [p for p in signature.parameters if p not in ("self", "cls")]
    described = [line for line in section(method, "Parameters") if not line.startswith(" ")]
    assert [line for line in described if line] == names
    assert bool(section(method, "Returns")) == (signature.return_annotation != "None")
    assert inspect.getdoc(method).splitlines()[0].endswith(".")


class Raised:
    """Exceptions that a function of the package can raise, by its code and what it calls."""

    def __init__(self, package: Path) -> None:
        self.functions: dict[tuple[str, str], ast.FunctionDef] = {}
        self.names: dict[str, dict[str, tuple[str, str]]] = {}
        for path in package.rglob("*.py"):
            parts = path.relative_to(package.parent).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            module = ".".join(parts[:-1] if is_package else parts)
            tree = ast.parse(path.read_text("utf-8"))
            known = self.names.setdefault(module, {})
            for node in tree.body:
                if isinstance(node, ast.FunctionDef):
                    self.functions[module, node.name] = node
                    known[node.name] = (module, node.name)
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and node.level:
                    home = module.split(".")[: len(parts) - node.level]
                    source = ".".join([*home, *([node.module] if node.module else [])])
                    for alias in node.names:
                        known[alias.asname or alias.name] = (source, alias.name)

    def resolve(self, module: str, name: str) -> tuple[str, str] | None:
        """Where a name of a module comes from, through re-exports."""
        here = self.names.get(module, {}).get(name)
        if here is None or here in self.functions:
            return here
        return None if here == (module, name) else self.resolve(*here)

    def of(self, module: str, name: str, seen: set[tuple[str, str]] | None = None) -> set[str]:
        """Names of the exceptions."""
        seen = set() if seen is None else seen
        node = self.functions.get((module, name))
        if node is None or (module, name) in seen:
            return set()
        seen.add((module, name))
        found: set[str] = set()
        for part in ast.walk(node):
            if isinstance(part, ast.Raise) and isinstance(part.exc, ast.Call):
                found.add(ast.unparse(part.exc.func))
            elif isinstance(part, ast.Call):
                found |= self._called(module, part.func, seen)
        return found

    def _called(self, module: str, called: ast.expr, seen: set[tuple[str, str]]) -> set[str]:
        target: tuple[str, str] | None = None
        if isinstance(called, ast.Name):
            target = self.resolve(module, called.id)
        elif isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            home = self.names.get(module, {}).get(called.value.id)
            target = None if home is None else self.resolve(".".join(home), called.attr)
        return set() if target is None else self.of(*target, seen)


@cache
def raised() -> Raised:
    return Raised(PACKAGE)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_raised_is_documented(name: str) -> None:
    function = inspect.unwrap(FUNCTIONS[name])
    found = raised().of(function.__module__, function.__name__)
    documented = {line.strip() for line in section(function, "Raises") if not line.startswith(" ")}
    documented = {one.strip() for line in documented for one in line.split(",")}
    assert found <= documented


def test_the_walk_finds_what_is_raised() -> None:
    assert raised().of("unitednet_mu.tl._fit", "fit") >= {"TypeError", "ValueError"}


# ------------------------------------------------------------------ the README's table

#: Rows of the table, and what each function needs to run.
ROWS = (
    "tl.fit",
    "tl.integrate",
    "tl.predict_modality",
    "tl.transfer_labels",
    "tl.explain(mdata)",
    "tl.explain(mdata, source=, target=)",
)
STORED = '.uns["unitednet"]["model"]'


def table() -> dict[str, tuple[str, str]]:
    """Cells of the README's table: by function what it reads and what it writes."""
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    rows = [line.strip("|").split(" | ") for line in lines if line.startswith("| `tl.")]
    return {row[0].strip(" `"): (row[1], row[2]) for row in rows}


def slots(cell: str) -> set[str]:
    """Slots that a cell of the table names; bare names follow the ``.uns`` entry they are in."""
    found, inside = set(), ""
    for code in re.findall(r"`([^`]+)`", cell):
        if re.fullmatch(r"\w+", code):
            found.add(f'{inside}["{code}"]')
        elif code == '.uns["unitednet"]':
            inside = code
        elif code not in (".obsm", ".var"):  # said of a slot that is named before
            found.add(code)
    return found


def slot_of(leaf: str, old: list[str], mods: list[str]) -> str | None:
    """Name in the table of a leaf of a fingerprint; None for what follows from other slots.

    That is lists of keys and of modalities, and a MuData's own account of which cells and features
    its modalities hold. `old` are the modalities before, `mods` those there are now.
    """
    owner, _, slot = leaf.partition(".")
    attribute, *keys = re.findall(r"[^\[\].]+", slot) or [""]
    if owner in set(mods) - set(old):
        return '.mod["<target>_from_<source>"]'
    if owner:
        here = f'["{keys[0]}"]' if keys else ""
        return f"mdata[mod].{attribute}{here}" if here or attribute == "X" else None
    if not keys or keys[0] in ("index", "columns", *mods):
        return None
    if attribute in ("obsmap", "varmap", "var"):
        return None
    if attribute == "uns":
        return f'.uns["{keys[0]}"]["{keys[1]}"]' if len(keys) > 1 else None
    return f'.{attribute}["{keys[0]}"]'


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """Slots that differ between two fingerprints, named as in the table."""
    old, mods = before["modalities"], after["modalities"]
    leaves = [leaf for leaf in before | after if before.get(leaf) != after.get(leaf)]
    return {slot for leaf in leaves if (slot := slot_of(leaf, old, mods)) is not None}


def call(row: str, mdata: MuData, reference: MuData, model: _model.Model | None) -> None:
    """Run the function of a row; `model` is None where it is to be read from the object."""
    quiet: dict[str, Any] = {"progress": False, "model": model}
    if row == "tl.fit":
        settings = {"network": {"n_latent": 4}, "training": {"max_epochs": 2}}
        un.tl.fit(mdata, labels_key="cell_type", batch_key="batch", progress=False, **settings)
    elif row == "tl.integrate":
        un.tl.integrate(mdata, model=model)
    elif row == "tl.predict_modality":
        un.tl.predict_modality(mdata, source="rna", target="adt", model=model)
    elif row == "tl.transfer_labels":
        un.tl.transfer_labels(mdata, reference, **quiet)
    elif row == "tl.explain(mdata)":
        un.tl.explain(mdata, **quiet)
    else:
        un.tl.explain(mdata, source="rna", target="adt", **quiet)


def test_the_table_has_the_five_functions() -> None:
    assert tuple(table()) == ROWS
    assert {row.split("(")[0].removeprefix("tl.") for row in ROWS} == set(un.tl.__all__)


@pytest.mark.filterwarnings("ignore:adapt. expected held-out cells:UserWarning")
@pytest.mark.parametrize("row", ROWS)
def test_functions_write_what_the_table_says(row: str, fitted: MuData, fingerprint: Any) -> None:
    mdata = fitted.copy()
    del mdata.uns["unitednet"]
    if row == "tl.transfer_labels":  # far from the reference, so that it is adapted to
        for adata in mdata.mod.values():
            adata.X = adata.X + np.float32(30)
    before = fingerprint(mdata)
    call(row, mdata, fitted, un.get.model(fitted))
    assert changed(before, fingerprint(mdata)) == slots(table()[row][1])


def only(mdata: MuData, reads: set[str]) -> MuData:
    """An object with nothing but what a row of the table says is read."""
    bare = MuData({mod: AnnData(adata.X, var=adata.var[[]]) for mod, adata in mdata.mod.items()})
    for mod, adata in bare.mod.items():
        adata.obs_names = mdata[mod].obs_names
    bare = MuData(dict(bare.mod))
    columns = {".obs[labels_key]": "cell_type", ".obs[batch_key]": "batch"}
    for name in reads & set(columns):
        bare.obs[columns[name]] = mdata.obs[columns[name]]
    stored = mdata.uns["unitednet"]
    entries = {name: stored[name] for name in stored if f'.uns["unitednet"]["{name}"]' in reads}
    if entries:
        bare.uns["unitednet"] = entries
    return bare


@pytest.mark.parametrize("row", ROWS)
def test_functions_read_what_the_table_says(row: str, fitted: MuData, fingerprint: Any) -> None:
    """They write the same into an object that has nothing else; and nothing without the model."""
    reads, writes = (slots(cell) for cell in table()[row])
    is_query = row == "tl.transfer_labels"
    found = []
    for reference in (fitted.copy(), only(fitted, reads)):
        query = only(fitted, {"mdata[mod].X"}) if is_query else reference
        call(row, query, reference, None)
        leaves = fingerprint(query)
        mods = leaves["modalities"]
        found.append({x: leaves[x] for x in leaves if slot_of(x, list(fitted.mod), mods) in writes})
    assert found[0] == found[1]
    assert found[0]
    if STORED in reads:
        bare = only(fitted, reads - {STORED})
        with pytest.raises(ValueError, match=r"tl\.fit"):
            call(row, bare, bare, None)


# ------------------------------------------------------------------ pages


def documented() -> list[str]:
    """Names in the reference's lists."""
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    blocks = re.findall(r"^\.\. autosummary::\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(":")]


def test_every_public_name_is_in_the_reference() -> None:
    found = documented()
    assert len(found) == len(set(found))
    classes = {f"~{one.__module__.partition('.')[2]}.{one.__name__}" for one in CLASSES.values()}
    assert set(found) == {*FUNCTIONS, *classes}


def extension() -> ModuleType:
    """The documentation's own extension of Sphinx."""
    pytest.importorskip("sphinx", reason='the optional group "docs" is not installed')
    path = ROOT / "docs" / "_extensions" / "unitednet_docs.py"
    spec = importlib.util.spec_from_file_location("unitednet_docs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.site
def test_names_link_themselves() -> None:
    assert set(extension().public_names()) == {*FUNCTIONS, *CLASSES}


@pytest.mark.site
def test_tutorials_are_listed_once_there_are_any(tmp_path: Path) -> None:
    gather = extension().gather_tutorials
    source, target = tmp_path / "tutorials", tmp_path / "docs"
    assert gather(source, target) == []
    assert not target.exists()
    source.mkdir()
    (source / "1_first.ipynb").write_text("{}", "utf-8")
    (source / "notes.txt").write_text("not shown", "utf-8")
    assert gather(source, target) == ["1_first"]
    assert sorted(path.name for path in target.iterdir()) == ["1_first.ipynb", "index.md"]
    (source / "1_first.ipynb").unlink()
    assert gather(source, target) == []
    assert not target.exists()


def test_figures_in_the_readme_stand_in_the_benchmarks() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    summary = readme.split("## How well it does\n")[1].split("\n## ")[0]
    figures = re.findall(r"[+-]?\d\.\d+", summary)
    assert len(figures) > 10
    printed = set(re.findall(r"[+-]?\d\.\d+", (ROOT / "docs" / "benchmarks.md").read_text("utf-8")))
    assert set(figures) <= printed


def test_the_ecosystem_entry_agrees_with_the_package() -> None:
    lines = (ROOT / "docs" / "meta.yaml").read_text("utf-8").splitlines()
    entry = dict(line.split(": ", 1) for line in lines if re.match(r"\w+: ", line))
    package = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert entry["name"] == package["name"]
    assert entry["license"] == package["license"]
    required = {"description", "project_home", "documentation_home", "primary_category", "language"}
    assert required | {"category", "test_command"} <= set(entry)


def test_hooks_use_the_tested_version_of_ruff() -> None:
    constraints = (ROOT / "tests" / "constraints.txt").read_text("utf-8")
    (tested,) = re.findall(r"^ruff==(\S+)$", constraints, re.MULTILINE)
    assert f"rev: v{tested}\n" in (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
