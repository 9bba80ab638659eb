"""Rules that hold for the whole package: signatures, docstrings, layers, forbidden calls."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import unitednet_mu as un
from unitednet_mu import _config, _model

ROOT = Path(un.__file__).parent
#: What may import what: a file imports files of its own line or of lines above, never of one below.
LAYERS = (
    ("_keys", "_compat", "_kinds", "_plain", "_interrupt", "_process", "_ranks", "_stored"),
    ("_validate",),
    ("_config",),
    ("_values",),
    ("_matrix",),
    ("_presets", "_on_gpu"),
    ("_data", "_info", "_storage"),
    ("_checkpoint", "_open"),
    ("_session",),
    ("_network",),
    ("_losses", "_wide"),
    ("_correlation", "_cluster", "_noise", "_optimise", "_setup"),
    ("_decoding",),
    ("_tasks", "_phase"),
    ("_graphs",),
    ("_steps",),
    ("_heads",),
    ("_train",),
    ("_rebuild",),
    ("_model",),
    ("_leave_out", "_novelty"),
    ("_direct_path",),
    ("_held_out",),
    ("_fit",),
    ("_adapt",),
    ("_deeplift",),
    ("_deeplift_input", "_strongest"),
    ("_deeplift_sparse",),
    ("_path", "_gap"),
    ("_explain",),
    ("_explain_chain",),
    ("_explain_cross",),
    ("_explain_cells",),
    ("_by_shap",),
    ("_stability",),
    ("_stability_cross",),
    ("_null",),
    ("_sample",),
    ("_results",),
    ("datasets", "pp"),
    ("get",),
    ("_deletion_cells",),
    ("_deletion",),
    ("metrics",),
    ("tl", "pl"),
    ("_demo",),
    ("__main__",),
)
MODULES = ("tl", "pp", "pl", "get", "datasets", "metrics")
#: Functions whose first argument is no MuData: they take arrays, or make data from nothing.
WITHOUT_OBJECT = ("metrics", "datasets")
#: First arguments that are not `mdata`.
OBJECTS = {
    "transfer_labels": ["query", "reference"],
    "transfer": ["query"],
    "deletion": ["table"],
}
#: Functions whose first argument is a table that another function returned.
OF_TABLES = {"deletion"}
#: Parameters that mean the same everywhere have one name; these are names they must not have.
OTHER_SPELLINGS = {
    "copy": {"inplace", "in_place"},
    "key_added": {"added_key", "key_add", "key", "prefix", "suffix"},
    "random_state": {"seed", "rng", "random_seed"},
    "device": {"use_gpu", "accelerator", "gpu"},
    "layer": {"layers"},
    "use_rep": {"rep", "obsm_key"},
    "labels_key": {"label_key", "labels", "label_col"},
    "batch_key": {"batch", "batches", "batch_col"},
    "groupby": {"group_by", "groups_key"},
}
#: ... and one default.
DEFAULTS = {
    "copy": False,
    "key_added": "unitednet",
    "random_state": 0,
    "device": "auto",
    "progress": True,
    "model": None,
    "ax": None,
    "show": None,
    "return_fig": False,
}
#: ... but for these functions, whose name for what they add is another one.
OTHER_DEFAULTS = {("niche", "key_added"): "niche"}


def public() -> list[tuple[str, str]]:
    """All public functions, as (module, name)."""
    found = []
    for module in MODULES:
        loaded = importlib.import_module(f"unitednet_mu.{module}")
        found += [(module, name) for name in loaded.__all__]
    return found


FUNCTIONS = public()


@pytest.fixture(params=FUNCTIONS, ids=".".join)
def function(request: pytest.FixtureRequest) -> Callable[..., Any]:
    module, name = request.param
    return getattr(importlib.import_module(f"unitednet_mu.{module}"), name)


def module_of(function: Callable[..., Any]) -> str:
    return next(m for m, name in FUNCTIONS if getattr(getattr(un, m), name) is function)


def sections(thing: Any) -> dict[str, list[str]]:
    """Sections of a numpy docstring, by heading; the text before the first is under ``""``."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    found: dict[str, list[str]] = {"": []}
    heading = ""
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if re.fullmatch("-{3,}", below) and line:
            heading = line
            found[heading] = []
        elif not re.fullmatch("-{3,}", line):
            found[heading].append(line)
    return found


def documented_parameters(lines: list[str]) -> dict[str, str]:
    """Description of every parameter of a Parameters section."""
    described: dict[str, str] = {}
    names: list[str] = []
    for line in lines:
        if line and not line.startswith(" "):
            names = [name.strip() for name in line.split(":")[0].split(",")]
            described |= dict.fromkeys(names, "")
        else:
            described |= {name: f"{described[name]} {line.strip()}".strip() for name in names}
    return described


# ------------------------------------------------------------------ signatures


def test_the_functions_are_there() -> None:
    assert {name for module, name in FUNCTIONS if module == "tl"} == {
        "explain",
        "fit",
        "integrate",
        "predict_modality",
        "transfer_labels",
    }
    assert sorted(un.__all__) == sorted(["__version__", *MODULES])
    assert sorted(dir(un)) == sorted(un.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = un.nonsense


def test_object_first_everything_else_by_keyword(function: Callable[..., Any]) -> None:
    kinds = {p.name: p.kind for p in inspect.signature(function).parameters.values()}
    assert inspect.Parameter.VAR_POSITIONAL not in kinds.values()
    assert inspect.Parameter.VAR_KEYWORD not in kinds.values()
    positional = [name for name, kind in kinds.items() if kind != inspect.Parameter.KEYWORD_ONLY]
    module = module_of(function)
    if module == "datasets":
        assert all(name == "path" or name.endswith("_path") for name in positional)
    elif module not in WITHOUT_OBJECT:
        assert positional == OBJECTS.get(function.__name__, ["mdata"])
        first = inspect.signature(function).parameters[positional[0]]
        assert first.default is inspect.Parameter.empty
        kind = "pd.DataFrame" if function.__name__ in OF_TABLES else "MuData"
        kind = f"{kind} | str | PathLike[str]" if function is un.get.model else kind
        assert first.annotation == kind
    else:
        assert 1 <= len(positional) <= 3  # arrays


@pytest.mark.parametrize("name", un.pl.__all__)
def test_plots_end_as_those_of_scanpy(name: str) -> None:
    signature = inspect.signature(getattr(un.pl, name))
    assert list(signature.parameters)[-3:] == ["ax", "show", "return_fig"]
    assert signature.return_annotation in ("Axes | Figure | None", "list[Axes] | Figure | None")


def test_annotations_are_full(function: Callable[..., Any]) -> None:
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    bare = [
        p.name for p in signature.parameters.values() if p.annotation is inspect.Parameter.empty
    ]
    assert not bare


def test_parameters_of_one_meaning_have_one_name_and_default(
    function: Callable[..., Any],
) -> None:
    parameters = inspect.signature(function).parameters
    for name, others in OTHER_SPELLINGS.items():
        if module_of(function) not in WITHOUT_OBJECT and function.__name__ != "probabilities":
            assert not others & set(parameters), f"call it {name}"
    for name, default in DEFAULTS.items():
        if name in parameters:
            default = OTHER_DEFAULTS.get((function.__name__, name), default)
            assert parameters[name].default == default


def test_what_writes_can_copy(function: Callable[..., Any]) -> None:
    """Functions that change the object take `copy` last, and return it or None."""
    signature = inspect.signature(function)
    writes = module_of(function) in ("tl", "pp")
    assert ("copy" in signature.parameters) == writes
    if writes:
        assert list(signature.parameters)[-1] == "copy"
        assert signature.return_annotation == "MuData | None"
        assert "copy=True" in " ".join(sections(function)["Returns"])
    if module_of(function) in ("tl", "get"):
        assert "key_added" in signature.parameters


# ------------------------------------------------------------------ docstrings


def test_docstrings_are_complete(function: Callable[..., Any]) -> None:
    found = sections(function)
    parameters = inspect.signature(function).parameters
    expected = ["Returns", "Examples"] + (["Parameters", "Raises"] if parameters else [])
    missing = [name for name in expected if not any(found.get(name, []))]
    assert not missing
    order = ["", "Parameters", "Returns", "Raises", "Warns", "Notes", "Examples"]
    assert [name for name in found if name in order] == [name for name in order if name in found]
    assert set(found) <= set(order)
    summary = found[""][0]
    assert summary.endswith(".")
    assert any(line.startswith(">>> ") for line in found["Examples"])


def test_every_parameter_is_described(function: Callable[..., Any]) -> None:
    parameters = list(inspect.signature(function).parameters)
    described = documented_parameters(sections(function).get("Parameters", []))
    assert list(described) == parameters
    assert all(described.values())


def test_classes_that_users_meet_are_documented() -> None:
    for config in (_config.NetworkConfig, _config.TrainingConfig):
        described = documented_parameters(sections(config)["Parameters"])
        assert list(described) == [field.name for field in dataclasses.fields(config)]
        assert all(described.values())
    for name, member in vars(_model.Model).items():
        if not name.startswith("_"):
            target = member.__func__ if isinstance(member, classmethod) else member
            assert inspect.getdoc(target), name


def test_modules_are_documented(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text("utf-8")))


# ------------------------------------------------------------------ files

FILES = sorted(ROOT.rglob("*.py"))


@pytest.fixture(params=FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def unit(path: Path) -> str:
    """The file or folder directly under the package that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree: ast.AST, package: list[str]) -> Iterator[str]:
    """Dotted names of all modules that are imported anywhere in `tree`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            yield ".".join(base)
            yield from (".".join([*base, alias.name]) for alias in node.names)


def package_of(path: Path) -> list[str]:
    return ["unitednet_mu", *path.relative_to(ROOT).parent.parts]


def own_units(tree: ast.AST, path: Path) -> set[str]:
    """Units of this package that a file imports."""
    known = {name for layer in LAYERS for name in layer}
    found = {
        name.split(".")[1]
        for name in imports(tree, package_of(path))
        if name.startswith("unitednet_mu.")
    }
    return found & known


def test_every_file_has_its_place() -> None:
    listed = {name for layer in LAYERS for name in layer}
    there = {unit(path) for path in FILES} - {"__init__"}
    assert there <= listed, "give a new file its line in LAYERS"
    assert listed <= there


def test_imports_run_one_way(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    if unit(path) == "__init__":
        return  # lists the submodules for type checkers, and loads them when they are used
    level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    mine = level[unit(path)]
    upward = {name for name in own_units(tree, path) if level[name] > mine}
    assert not upward
    aside = {n for n in own_units(tree, path) if level[n] == mine and n != unit(path)}
    assert not aside


def test_package_itself_imports_nothing_of_its_own() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text("utf-8"))
    tree.body = [node for node in tree.body if not isinstance(node, ast.If)]  # TYPE_CHECKING
    assert not own_units(tree, ROOT / "__init__.py")


def test_the_network_never_sees_a_mudata() -> None:
    for name in (
        "_network",
        "_losses",
        "_deeplift",
        "_deeplift_input",
        "_strongest",
        "_path",
        "_gap",
        "_explain",
        "_explain_cross",
        "_explain_cells",
        "_by_shap",
        "_stability",
        "_stability_cross",
        "_null",
    ):
        tree = ast.parse((ROOT / f"{name}.py").read_text("utf-8"))
        assert not {"mudata", "anndata"} & set(imports(tree, ["unitednet_mu"]))


def loaded(tree: ast.AST) -> Iterator[ast.stmt]:
    """Import statements that run when a module is imported."""
    for node in getattr(tree, "body", []):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from loaded(ast.Module([other], []))
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            yield from loaded(node)


def reached(start: str) -> set[str]:
    """All modules that importing `start` imports, within the package to any depth."""
    todo, seen = [start], set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        parts = name.split(".")
        if parts[0] != "unitednet_mu":
            continue
        todo += [".".join(parts[:i]) for i in range(1, len(parts))]
        base = ROOT.joinpath(*parts[1:])
        source = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if source.is_file():
            tree = ast.Module(list(loaded(ast.parse(source.read_text("utf-8")))), [])
            todo += list(imports(tree, package_of(source)))
    return seen


@pytest.mark.parametrize("module", ["get", "pl", "pp", "metrics", "datasets"])
def test_reading_and_plotting_need_no_torch(module: str) -> None:
    names = {name.split(".")[0] for name in reached(f"unitednet_mu.{module}")}
    assert "unitednet_mu" in names
    assert not {"torch", "safetensors", "scanpy", "muon", "shap"} & names


def test_the_walk_finds_torch_where_it_is() -> None:
    assert "torch" in reached("unitednet_mu.tl")
    assert "unitednet_mu._network" in reached("unitednet_mu.tl")


#: What takes long to import, and is needed in some functions only.
HEAVY = {"scanpy", "shap", "muon", "matplotlib", "sklearn", "igraph", "scipy.stats"}


@pytest.mark.parametrize(
    ("what", "heavy", "ours"),
    [("unitednet_mu", HEAVY | {"torch"}, False), ("unitednet_mu.tl", HEAVY, True)],
)
def test_importing_loads_nothing_heavy(what: str, heavy: set[str], ours: bool) -> None:
    code = (
        "import sys, mudata; before = set(sys.modules);"
        f"import {what};"
        f"found = {heavy!r} & (set(sys.modules) - before);"
        "found |= {name for name in sys.modules if name.startswith('unitednet_mu.')"
        f" and not {ours}}};"
        "raise SystemExit(str(found) if found else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def called(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


FORBIDDEN_CALLS = re.compile(
    r"(torch\.(load|save|jit\.\w+|manual_seed|use_deterministic_algorithms|set_default_\w+)"
    r"|(np|numpy)\.random\.(seed|rand\w*|choice|shuffle|permutation|normal)"
    r"|random\.seed|eval|exec|breakpoint|joblib\.\w+|logging\.basicConfig|warnings\.simplefilter)"
)
#: (file, call): where one of them is right.
ALLOWED = {
    ("_process.py", "torch.manual_seed"),  # inside a block that gives the caller's state back
    ("_compat.py", "warnings.simplefilter"),  # inside catch_warnings, around others' code
    ("_rna.py", "warnings.simplefilter"),
}


def test_no_forbidden_call(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    bad = [
        (name, line)
        for name, line in called(tree)
        if FORBIDDEN_CALLS.fullmatch(name) and (path.name, name) not in ALLOWED
    ]
    assert not bad
    if path.name not in ("__main__.py", "_demo.py"):  # the demo prints its table
        assert not [line for name, line in called(tree) if name == "print"]


def test_no_forbidden_statement(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    bare = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.ExceptHandler) and n.type is None]
    assert not bare
    broad = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and node.type is not None
        and ast.unparse(node.type) in ("Exception", "BaseException")
    ]
    assert all(isinstance(node.body[-1], ast.Raise) for node in broad)
    roots = {name.split(".")[0] for name in imports(tree, package_of(path))}
    assert not {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"} & roots


def test_no_long_file(path: Path) -> None:
    """A file past about 400 lines wants splitting."""
    assert len(path.read_text("utf-8").splitlines()) <= 420


def test_every_module_of_the_package_can_be_imported_first() -> None:
    """No cycle hides behind the order of imports in tests: each module alone, in a new process."""
    names = [
        ".".join([*package_of(path), path.stem]).removesuffix(".__init__")
        for path in FILES
        if path.stem != "__main__"
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    for old in [m for m in sys.modules if m.split('.')[0] == 'unitednet_mu']:\n"
        "        del sys.modules[old]\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_submodules_are_modules() -> None:
    for name in MODULES:
        module = getattr(un, name)
        assert isinstance(module, ModuleType)
        assert all(
            getattr(module, one).__module__.startswith("unitednet_mu.") for one in module.__all__
        )
        helpers = [
            n for n in vars(module) if not n.startswith("_") and callable(getattr(module, n))
        ]
        if name != "metrics":
            assert set(helpers) == set(module.__all__)
