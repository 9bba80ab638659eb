"""The documentation says what the code does: docstrings, the reference, the README's table."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
    found = re.search(rf"^{heading}\n-+\n(.*?)(?=^[A-Z]\w+\n-+$|\Z)", text, re.DOTALL | re.MULTILINE)
    return found.group(1).rstrip().splitlines() if found else []


# ------------------------------------------------------------------ docstrings

#: How a slot's content is named: the type that is stored, or the type of each number in it.
KINDS = (
    "AnnData DataFrame bool categorical category dict dtype float float32 float64 int64 str"
).split()


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n.startswith(("tl.", "pp.", "datasets."))])
def test_returns_names_slots_and_types(name: str) -> None:
    lines = section(FUNCTIONS[name], "Returns")
    entries = [line for line in lines if line.startswith("``") or line.startswith("mdata")]
    for entry in entries:
        slots, _, kind = entry.partition(" : ")
        assert re.fullmatch(r"(``[^`]+``(, )?)+", slots), entry
        assert kind.split(",")[0].split()[0] in KINDS, entry
    assert entries or "Nothing is written." in " ".join(lines)


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n.startswith(("pl.", "get.", "metrics."))])
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
                    source = ".".join([*home, *((node.module or "").split(".") if node.module else [])])
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
