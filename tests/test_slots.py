"""Every slot that a docstring's Returns section names is written so, and nothing else is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData

import unitednet_mu as un
from unitednet_mu import _adapt, _results
from unitednet_mu._compat import copied

STEM = "unitednet"
PAIR = "<target>_from_<source>"


@dataclass(frozen=True)
class Slot:
    """A slot as documented: of the MuData or each modality, which attribute, keys, content."""

    of_modality: bool
    attribute: str
    keys: tuple[str, ...]
    kind: str


def section(function: Callable[..., Any], name: str) -> list[str]:
    """Lines of a section of a numpy docstring, without its heading."""
    lines = (inspect.getdoc(function) or "").splitlines()
    heads = [i for i in range(len(lines) - 1) if lines[i] and re.fullmatch("-{3,}", lines[i + 1])]
    start = next(i for i in heads if lines[i] == name)
    end = min((i for i in heads if i > start), default=len(lines))
    return lines[start + 2 : end]


def documented(function: Callable[..., Any]) -> list[Slot]:
    """Slots of the Returns section: lines like ``.obsm["X"]``, ``["Y"]`` : float32, shape."""
    slots = []
    for line in section(function, "Returns"):
        named = re.match(r"(``.+``) : (.+)", line)
        if not named:
            continue
        first, *others = re.findall(r"``(.+?)``", named[1])
        where = re.match(r"(mdata\[mod\])?\.(\w+)", first)
        assert where, line
        keys = tuple(re.findall(r'\["(.+?)"\]', first))
        assert keys, line
        every = [keys] + [(*keys[:-1], *re.findall(r'\["(.+?)"\]', other)) for other in others]
        slots += [Slot(bool(where[1]), where[2], one, named[2]) for one in every]
    return slots


Call = Callable[[MuData, MuData, str], None]


def _model(reference: MuData) -> Any:
    return un.get.model(reference)


CALLS: dict[str, tuple[Callable[..., Any], Call]] = {
    "fit": (
        un.tl.fit,
        lambda m, r, key: un.tl.fit(
            m,
            labels_key="cell_type",
            training={"max_epochs": 1},
            progress=False,
            key_added=key,
        ),
    ),
    "fit without labels": (
        un.tl.fit,
        lambda m, r, key: un.tl.fit(
            m, n_groups=2, training={"max_epochs": 2}, progress=False, key_added=key
        ),
    ),
    "integrate": (
        un.tl.integrate,
        lambda m, r, key: un.tl.integrate(m, model=_model(r), key_added=key),
    ),
    "predict_modality": (
        un.tl.predict_modality,
        lambda m, r, key: un.tl.predict_modality(
            m, source="rna", target="adt", model=_model(r), key_added=key
        ),
    ),
    "transfer_labels": (
        un.tl.transfer_labels,
        lambda m, r, key: un.tl.transfer_labels(
            m,
            r,
            model=_model(r),
            training={"max_epochs": 1},
            progress=False,
            key_added=key,
        ),
    ),
    "explain": (
        un.tl.explain,
        lambda m, r, key: un.tl.explain(
            m, model=_model(r), n_cells=3, n_background=3, progress=False, key_added=key
        ),
    ),
    "explain several": (
        un.tl.explain,
        lambda m, r, key: un.tl.explain(
            m,
            model=[_model(r), _model(r)],
            n_cells=3,
            n_background=3,
            progress=False,
            key_added=key,
        ),
    ),
    "explain pair": (
        un.tl.explain,
        lambda m, r, key: un.tl.explain(
            m,
            source="rna",
            target="adt",
            model=_model(r),
            n_cells=3,
            n_background=3,
            progress=False,
            key_added=key,
        ),
    ),
}

#: Of `explain`'s slots, those of one way of calling it.
ONLY = {
    "explain": lambda slot: "cross_relevance" not in slot.keys,
    "explain several": lambda slot: "cross_relevance" not in slot.keys,
    "explain pair": lambda slot: (
        slot.keys[-1] not in ("relevance", "unitednet_relevance", "unitednet_relevance_abs")
    ),
}


#: What mudata itself keeps of a new modality: its name, its features, which cells it has.
BOOKKEEPING = {
    "modalities",
    r"\.var\..*",
    r"\.(obsm|varm|obsmap|varmap)(\[(rna|adt|adt_from_rna(_other)?)\].*)?",
}


def slots_of(call: str) -> list[Slot]:
    return [slot for slot in documented(CALLS[call][0]) if ONLY.get(call, lambda slot: True)(slot)]


def renamed(key: str, stem: str, attribute: str) -> str:
    """A documented key under another stem."""
    if key == PAIR:
        own = attribute == "mod" and stem != STEM
        return f"adt_from_rna_{stem}" if own else "adt_from_rna"
    return key.replace(STEM, stem)


def read(mdata: MuData, slot: Slot, stem: str, modality: str) -> Any:
    value: Any = getattr(mdata.mod[modality] if slot.of_modality else mdata, slot.attribute)
    for key in slot.keys:
        name = renamed(key, stem, slot.attribute)
        assert name in value, (slot, list(value))
        value = value[name]
    return value


def check_kind(value: Any, kind: str, n_cells: int) -> None:
    what, _, shape = kind.partition(", ")
    if what == "category":
        assert isinstance(value.dtype, pd.CategoricalDtype)
    elif what == "dict":
        assert isinstance(value, Mapping)
        assert value
    elif what == "DataFrame":
        assert isinstance(value, pd.DataFrame)
        assert len(value)
    elif what == "AnnData":
        assert isinstance(value, AnnData)
        assert value.X.dtype == np.float32
    elif what == "str":
        assert type(value) is str
    elif what == "str array":
        assert isinstance(value, np.ndarray)
        assert value.dtype.kind == "U"
    else:
        assert value.dtype == np.dtype(what)
    if shape.startswith("cells x "):
        assert value.ndim == 2
    if shape.startswith("cells"):
        assert value.shape[0] == n_cells


@pytest.fixture
def fresh(fitted_mosaic: MuData) -> MuData:
    """The cells of `fitted_mosaic` without anything of ours."""
    mdata = copied(fitted_mosaic)
    del mdata.uns[STEM]
    return mdata


def test_docstrings_name_slots() -> None:
    """The parser sees all of them."""
    counts = {name: len(documented(function)) for name, (function, _) in CALLS.items()}
    assert counts["fit"] >= 6
    assert counts["integrate"] >= 5
    assert counts["predict_modality"] >= 1
    assert counts["transfer_labels"] >= 5
    assert counts["explain"] >= 4
    for function in {function for function, _ in CALLS.values()}:
        quoted = re.findall(r"^``[^`]*\[", "\n".join(section(function, "Returns")), re.MULTILINE)
        assert len(quoted) <= len(documented(function))
    assert Slot(True, "varm", ("unitednet_relevance_abs",), "float32") in documented(un.tl.explain)


@pytest.mark.parametrize("stem", [STEM, "other"])
@pytest.mark.parametrize("call", CALLS)
def test_documented_slots_are_written(
    fresh: MuData, fitted_mosaic: MuData, call: str, stem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_adapt, "_SHIFT", -np.inf)  # adaptation is tried, and has a history
    reference = copied(fitted_mosaic)
    CALLS[call][1](fresh, reference, stem)
    for slot in slots_of(call):
        for name in ("rna", "adt") if slot.of_modality else ("",):
            n_cells = fresh.mod[name].n_obs if name else fresh.n_obs
            check_kind(read(fresh, slot, stem, name), slot.kind, n_cells)


@pytest.mark.parametrize("stem", [STEM, "other"])
@pytest.mark.parametrize("call", CALLS)
def test_nothing_else_is_written(
    fresh: MuData, fitted_mosaic: MuData, fingerprint: Any, call: str, stem: str
) -> None:
    reference = copied(fitted_mosaic)
    before = fingerprint(fresh)
    CALLS[call][1](fresh, reference, stem)
    after = fingerprint(fresh)
    changed = {leaf for leaf in before.keys() | after.keys() if before.get(leaf) != after.get(leaf)}
    allowed = set()
    for slot in slots_of(call):
        keys = "".join(f"[{renamed(key, stem, slot.attribute)}]" for key in slot.keys)
        if slot.attribute == "mod":
            allowed |= {keys.strip("[]") + r"\..*"} | BOOKKEEPING
        else:
            owner = "(rna|adt)" if slot.of_modality else ""
            allowed.add(rf"{owner}\.{slot.attribute}{re.escape(keys)}.*")
    # lists of names, which grow with what is written
    allowed |= {r"(rna|adt)?\.(obsm|varm|uns)", r"\.obs\.columns"}
    allowed |= {rf"\.uns\[{stem}\]", rf"\.uns\[{stem}\]\[cross_relevance\]"}
    stray = [leaf for leaf in changed if not any(re.fullmatch(one, leaf) for one in allowed)]
    assert not stray
    assert changed


@pytest.mark.parametrize("call", CALLS)
def test_stems_do_not_meet(fitted_mosaic: MuData, fingerprint: Any, call: str) -> None:
    """Results under a second stem leave those under the first as they are."""
    un.tl.integrate(fitted_mosaic)
    un.tl.explain(fitted_mosaic, n_cells=3, n_background=3, progress=False)
    reference = copied(fitted_mosaic)
    before = fingerprint(fitted_mosaic)
    CALLS[call][1](fitted_mosaic, reference, "second")
    after = fingerprint(fitted_mosaic)
    ours = {leaf for leaf in before if "unitednet" in leaf}
    assert ours
    assert {leaf: after[leaf] for leaf in ours} == {leaf: before[leaf] for leaf in ours}


def test_predicted_modality_in_full(fresh: MuData, fitted_mosaic: MuData) -> None:
    """Names and dtypes inside the new modality."""
    un.tl.integrate(fresh, model=_model(fitted_mosaic))
    un.tl.predict_modality(fresh, source="rna", target="adt", model=_model(fitted_mosaic))
    predicted = fresh.mod["adt_from_rna"]
    assert list(predicted.var) == ["feature", *_results.ACCURACY]
    assert all(predicted.var[column].dtype.kind == "f" for column in _results.ACCURACY)
    assert set(predicted.obsm) == {"X_unitednet", "unitednet_probabilities"}
    assert set(predicted.uns) == {"unitednet_prediction"}
    assert set(predicted.uns["unitednet_prediction"]) == {
        "source",
        "target",
        "layer",
        "use_rep",
        "transform_batch",
        "key",
        "model",
    }
    assert not list(predicted.obs)
    assert not predicted.layers
    assert list(fresh.var.columns) == []


def test_history_in_full(fitted_mosaic: MuData) -> None:
    history = fitted_mosaic.uns[STEM]["history"]
    assert list(history)[:4] == ["epoch", "phase", "learning_rate", "val_total"]
    assert all(column.startswith(("train_", "val_")) for column in list(history)[4:])
    assert (history.drop(columns=["epoch", "phase"]).dtypes == np.float64).all()
    assert history["epoch"].dtype == np.int64


def test_relevance_in_full(fitted_mosaic: MuData) -> None:
    un.tl.explain(fitted_mosaic, n_cells=3, n_background=3, progress=False)
    un.tl.explain(
        fitted_mosaic, source="rna", target="adt", n_cells=3, n_background=3, progress=False
    )
    relevance = fitted_mosaic.uns[STEM]["relevance"]
    assert set(relevance) == {"groups", "params", "modalities"}
    common = {"cells", "cell_groups", "background", "groupby", "random_state", "gap", "n_cells"}
    common |= {"method", "reads", "labels_key"}
    assert set(relevance["params"]) == common | {"output"}
    for name, block in relevance["modalities"].items():
        assert set(block) == {"features", "n_cells", "signed", "absolute"}
        assert block["signed"].shape == (fitted_mosaic.mod[name].n_vars, 3)
        assert block["signed"].dtype == block["absolute"].dtype == np.float32
    cross = fitted_mosaic.uns[STEM]["cross_relevance"]["adt_from_rna"]
    names = {"groups", "source", "target", "source_features", "target_features"}
    assert set(cross) == names | {"params", "signed", "absolute"}
    assert set(cross["params"]) == common | {"top_k"}
    for kind in ("signed", "absolute"):
        assert list(cross[kind]) == ["0", "1", "2"]
        assert all(matrix.dtype == np.float32 for matrix in cross[kind].values())


def test_significance_in_full(fitted: MuData) -> None:
    few = {"n_cells": 3, "n_background": 3, "n_permutations": 6, "progress": False}
    un.tl.explain(fitted, **few)
    un.tl.explain(fitted, source="rna", target="adt", groupby="cell_type", top_k=5, **few)
    relevance = fitted.uns[STEM]["relevance"]
    cross = fitted.uns[STEM]["cross_relevance"]["adt_from_rna"]
    for one in (relevance, cross):
        assert one["params"]["n_permutations"] == 6
    for name, block in relevance["modalities"].items():
        assert set(block) == {"features", "n_cells", "signed", "absolute", "p", "q"}
        for kind in ("p", "q"):
            assert block[kind].shape == (fitted.mod[name].n_vars, 3)
            assert block[kind].dtype == np.float32
    for kind in ("p", "q"):
        assert list(cross[kind]) == ["0", "1", "2"]
        assert all(matrix.dtype == np.float32 for matrix in cross[kind].values())
        assert all(matrix.nnz == 5 for matrix in cross[kind].values())


def test_attributions_of_single_cells_in_full(fitted_mosaic: MuData) -> None:
    few = {"n_cells": 3, "n_background": 3, "progress": False}
    un.tl.explain(fitted_mosaic, per_cell=True, **few)
    un.tl.explain(fitted_mosaic, source="rna", target="adt", per_cell=["adt_1", "adt_0"], **few)
    stored = fitted_mosaic.uns[STEM]
    pair = stored["cross_relevance"]["adt_from_rna"]
    for entry, outputs, modalities in (
        (stored["relevance"], ["group0", "group1", "group2"], ["rna", "adt"]),
        (pair, ["adt_1", "adt_0"], ["rna"]),
    ):
        found = entry["per_cell"]
        assert set(found) == {"outputs", "base_values", "gap", "modalities"}
        assert found["outputs"].tolist() == outputs
        cells = entry["params"]["cells"]
        assert found["base_values"].shape == (len(cells), len(outputs))
        assert found["base_values"].dtype == np.float32
        assert list(found["modalities"]) == modalities
        for name, block in found["modalities"].items():
            adata = fitted_mosaic.mod[name]
            assert set(block) == {"cells", "values", "data"}
            assert block["cells"].tolist() == [c for c in cells if c in adata.obs_names]
            assert block["values"].shape == (len(block["cells"]), adata.n_vars, len(outputs))
            assert block["values"].dtype == np.float32
            np.testing.assert_array_equal(block["data"], adata[block["cells"]].X)
