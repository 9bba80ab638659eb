"""What the package depends on is used, what it uses is declared, and an installed one is whole."""

from __future__ import annotations

import ast
import importlib.metadata as metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

import unitednet_mu as un

ROOT = Path(__file__).parent.parent
PACKAGE = Path(un.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
#: Kept below a release that breaks scanpy, and not imported here.
BOUNDS_ONLY = {"pynndescent"}
#: Groups that the package looks for while it runs.
OPTIONAL = ("chord", "distributed", "download")


def names(requirements: list[str]) -> set[str]:
    """Distributions of requirements, in the spelling that metadata compares."""
    found = (re.match(r"[A-Za-z0-9_.-]+", one) for one in requirements)
    return {re.sub(r"[-_.]+", "-", one.group()).lower() for one in found if one}


def distributions() -> dict[str, set[str]]:
    """Modules from elsewhere that the package imports, and the distributions that hold them."""
    roots: set[str] = set()
    for path in (ROOT / "unitednet_mu").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                roots |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                roots.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_muon"):
                roots.add("muon")  # imported by name
    holders = metadata.packages_distributions()
    elsewhere = roots - set(sys.stdlib_module_names) - {"unitednet_mu"}
    return {root: names(holders.get(root, [root])) for root in elsewhere}


def test_every_dependency_is_used_and_every_import_declared() -> None:
    declared = names(PROJECT["dependencies"])
    optional = {
        name for group in OPTIONAL for name in names(PROJECT["optional-dependencies"][group])
    }
    used = distributions()
    everything = set().union(*used.values())
    assert declared - everything == BOUNDS_ONLY
    assert optional <= everything
    undeclared = {root for root, held in used.items() if not held & (declared | optional)}
    assert not undeclared


def test_every_dependency_has_a_tested_version() -> None:
    lines = (ROOT / "tests" / "constraints.txt").read_text("utf-8").splitlines()
    pinned = names([line for line in lines if "==" in line])
    groups = PROJECT["optional-dependencies"]
    needed = PROJECT["dependencies"] + groups["test"] + groups["docs"]
    assert names(needed) <= pinned


def test_an_installed_package_is_whole() -> None:
    """Nothing that git has of the package is missing from the wheel, and nothing is beside it."""
    if PACKAGE == ROOT / "unitednet_mu":
        pytest.skip("the source tree is tested, no installed wheel")
    there, here = (
        {
            path.relative_to(base).as_posix()
            for path in base.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        for base in (PACKAGE, ROOT / "unitednet_mu")
    )
    assert there == here
    assert {"py.typed", "datasets/data/pbmc_citeseq.h5mu"} <= there
    files = [str(path) for path in metadata.files("unitednet_mu") or []]
    assert any(path.endswith("licenses/LICENSE.txt") for path in files)
    tops = {path.partition("/")[0] for path in files}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"unitednet_mu"}
