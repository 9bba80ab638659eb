"""Bad input: a clear error before anything is trained, and the MuData as it was."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mudata as md
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData
from scipy import sparse

import unitednet_mu as un
from unitednet_mu import _matrix
from unitednet_mu._compat import quiet_update
from unitednet_mu._model import Model
from unitednet_mu._train import Trainer

RAW = r"modality 'rna' looks like raw counts.*unitednet_mu\.pp"


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where training begins."""

    def begin(self: Trainer) -> None:
        pytest.fail("training began")

    monkeypatch.setattr(Trainer, "fit", begin)


@pytest.fixture
def refused(untrained: None, fingerprint: Any) -> Callable[..., str]:
    """Call `tl.fit`, expect an error, and return its message; nothing may have changed."""

    def call(mdata: MuData, error: type[Exception] = ValueError, **settings: Any) -> str:
        before = fingerprint(mdata)
        with pytest.raises(error) as caught:
            un.tl.fit(mdata, progress=False, **settings)
        assert fingerprint(mdata) == before
        message = str(caught.value)
        assert "\n" not in message
        return message

    return call


def made(**modalities: Any) -> MuData:
    """MuData of the given matrices or AnnData; matrices share their cells."""
    parts = {}
    for name, x in modalities.items():
        if isinstance(x, AnnData):
            parts[name] = x
        else:
            cells = pd.DataFrame(index=[f"cell{i}" for i in range(x.shape[0])])
            features = pd.DataFrame(index=[f"{name}_{j}" for j in range(x.shape[1])])
            parts[name] = AnnData(x, obs=cells, var=features)
    with quiet_update(), warnings.catch_warnings():
        # what anndata and mudata themselves have to say about such data
        warnings.filterwarnings("ignore", category=UserWarning)
        return MuData(parts)


# ------------------------------------------------------------------ what is handed in

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "fit": lambda x: un.tl.fit(x),
    "integrate": lambda x: un.tl.integrate(x),
    "predict_modality": lambda x: un.tl.predict_modality(x, source="rna", target="adt"),
    "transfer_labels": lambda x: un.tl.transfer_labels(x, x),
    "explain": lambda x: un.tl.explain(x),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (AnnData(np.eye(3)), r"expected a MuData, found an AnnData\. Wrap it: mudata\.MuData"),
        ("cells.h5mu", r"expected a MuData, found str\. Read a file with mudata\.read_h5mu"),
        (Path("cells.h5mu"), r"expected a MuData, found PosixPath|WindowsPath"),
        (None, "expected a MuData, found NoneType"),
        (np.eye(3), "expected a MuData, found ndarray"),
    ],
    ids=["AnnData", "str", "Path", "None", "array"],
)
def test_not_a_mudata(function: str, thing: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        FUNCTIONS[function](thing)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_shared_features_instead_of_cells(paired: MuData, function: str) -> None:
    first, second = paired.mod["rna"][:60].copy(), paired.mod["rna"][60:].copy()
    with quiet_update():
        mdata = MuData({"a": first, "b": second}, axis=1)
    with pytest.raises(ValueError, match=r"expected .* share cells \(axis=0\), found axis=1"):
        FUNCTIONS[function](mdata)


@pytest.mark.parametrize(
    "function", ["integrate", "predict_modality", "transfer_labels", "explain"]
)
def test_no_model(paired: MuData, fingerprint: Any, function: str) -> None:
    before = fingerprint(paired)
    with pytest.raises(
        ValueError, match=r"nothing stored under 'unitednet'.*run unitednet_mu\.tl\.fit\(mdata\)"
    ):
        FUNCTIONS[function](paired)
    assert fingerprint(paired) == before


# ------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"modalities": ["rnaa"]},
            "modality 'rnaa' not found; available: ['rna', 'adt']. Did you mean 'rna'?",
        ),
        ({"modalities": ["rna", "rna"]}, "expected each name once, found ['rna', 'rna']"),
        ({"modalities": []}, "expected at least one measured modality, found none"),
        (
            {"labels_key": "celltype"},
            "labels_key: column 'celltype' not found; available: ['cell_type', 'batch']. Did you "
            "mean 'cell_type'?",
        ),
        (
            {"batch_key": "donor"},
            "batch_key: column 'donor' not found; available: ['cell_type', 'batch']",
        ),
        (
            {"layer": "count"},
            "modality 'rna': layer 'count' not found; available: ['counts']. Did you mean "
            "'counts'?",
        ),
        ({"layer": {"adt": "counts"}}, "modality 'adt': layer 'counts' not found; available: []"),
        (
            {"layer": {"rnaa": "counts"}},
            "layer: modality 'rnaa' not found; available: ['rna', 'adt']",
        ),
        (
            {"use_rep": {"rna": "X_pc"}},
            "modality 'rna': use_rep 'X_pc' not found; available: ['X_pca']. Did you mean 'X_pca'?",
        ),
        ({"use_rep": "X_pca"}, "modality 'adt': use_rep 'X_pca' not found; available: []"),
        (
            {"layer": "counts", "use_rep": {"rna": "X_pca"}},
            "modality 'rna': expected one of layer and use_rep",
        ),
        (
            {"likelihood": "poisson"},
            "likelihood 'poisson' not found; available: ['auto', 'gaussian', 'binary']",
        ),
        (
            {"likelihood": {"atac": "binary"}},
            "likelihood: modality 'atac' not found; available: ['rna', 'adt']",
        ),
        (
            {"likelihood": "binary"},
            "modality 'rna': likelihood='binary' expects values 0 and 1 only",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_unknown_names(
    paired: MuData, refused: Any, settings: dict[str, Any], expected: str
) -> None:
    rna = paired.mod["rna"]
    rna.layers["counts"] = rna.X.copy()
    rna.obsm["X_pca"] = rna.X[:, :2].copy()
    assert expected in refused(paired, **settings)


def test_a_predicted_modality_is_refused_by_name(fitted: MuData, refused: Any) -> None:
    un.tl.predict_modality(fitted, source="rna", target="adt")
    message = refused(fitted, modalities=["rna", "adt_from_rna"])
    assert "'adt_from_rna' was predicted by unitednet_mu and is never trained on" in message
    assert "measured: ['rna', 'adt']" in message


def test_a_modality_named_with_a_slash(paired: MuData, refused: Any) -> None:
    with quiet_update():
        mdata = MuData({"rna/adt": paired.mod["rna"].copy()})
    assert "modality name 'rna/adt' holds '/'" in refused(mdata)


@pytest.mark.parametrize("name", ["type", "my.rna", "forward", "αβ-TCR", "1"])
def test_any_other_name_of_a_modality_will_do(
    paired: MuData, quick: dict[str, Any], name: str
) -> None:
    with quiet_update():
        mdata = MuData({name: paired.mod["rna"].copy(), "adt": paired.mod["adt"].copy()})
    mdata.obs["cell_type"] = paired.obs["cell_type"]
    un.tl.fit(mdata, labels_key="cell_type", **quick)
    un.tl.integrate(mdata)
    un.tl.predict_modality(mdata, source=name, target="adt")
    assert un.get.model(mdata).modality_names == [name, "adt"]


# ------------------------------------------------------------------ choices


@pytest.mark.parametrize(
    ("settings", "error", "expected"),
    [
        (
            {"labels_key": "cell_type", "n_groups": 3},
            ValueError,
            "expected labels_key or n_groups, found both ('cell_type' and 3)",
        ),
        ({"labels_key": "cell_type", "n_groups": "auto"}, ValueError, "found both"),
        ({"n_groups": 1}, ValueError, "n_groups: expected an integer >= 2 or 'auto', found 1"),
        ({"n_groups": 2.5}, ValueError, "n_groups: expected an integer >= 2 or 'auto', found 2.5"),
        (
            {"n_groups": "many"},
            ValueError,
            "n_groups: expected an integer >= 2 or 'auto', found 'many'",
        ),
        (
            {"n_groups": True},
            ValueError,
            "n_groups: expected an integer >= 2 or 'auto', found True",
        ),
        ({"n_groups": 121}, ValueError, "expected at least 121 cells to train on, found 120"),
        ({"reset_head": True}, ValueError, "reset_head=True needs a model to start from"),
        (
            {"model": "model.pt"},
            TypeError,
            "model: expected a unitednet_mu model (see get.model), found str",
        ),
        (
            {"network": {"depth": 2}},
            ValueError,
            "NetworkConfig: unknown setting 'depth'; settings are ['n_latent', ",
        ),
        (
            {"network": {"n_latent": "a"}},
            ValueError,
            "NetworkConfig.n_latent: expected int, found 'a'",
        ),
        (
            {"training": {"learning_rate": "fast"}},
            ValueError,
            "TrainingConfig.learning_rate: expected a number, found 'fast'",
        ),
        (
            {"network": 3},
            TypeError,
            "NetworkConfig: expected NetworkConfig or a mapping of overrides, found int",
        ),
        (
            {"network": {"activation": "sigmoid"}},
            ValueError,
            "activation: expected one of ['leaky_relu', ",
        ),
        (
            {"network": {"dropout": 1.0}},
            ValueError,
            "dropout: expected a share in [0, 1), found 1.0",
        ),
        ({"network": {"n_latent": 0}}, ValueError, "n_latent: expected an integer >= 1, found 0"),
        (
            {"training": {"epochs": 2}},
            ValueError,
            "TrainingConfig: unknown setting 'epochs'; settings are ['max_epochs', ",
        ),
        (
            {"training": {"max_epochs": 0}},
            ValueError,
            "max_epochs: expected None or an integer >= 1, found 0",
        ),
        (
            {"training": {"max_epochs": 2.5}},
            ValueError,
            "TrainingConfig.max_epochs: expected int or None, found 2.5",
        ),
        (
            {"training": {"batch_size": 1}},
            ValueError,
            "batch_size: expected None or an integer >= 2, found 1",
        ),
        (
            {"training": {"learning_rate": np.nan}},
            ValueError,
            "learning_rate: expected a number > 0, found nan",
        ),
        (
            {"training": {"loss_weights": {"mse": 1}}},
            ValueError,
            "loss_weights: unknown term 'mse'; terms are ['reconstruction', ",
        ),
        (
            {"training": {"loss_weights": {"entropy": -1}}},
            ValueError,
            "loss_weights['entropy']: expected a finite number >= 0, found -1",
        ),
        (
            {"training": {"batch_size": 500}},
            ValueError,
            "batch_size: expected at most the 108 training cells, found 500",
        ),
        (
            {"training": {"validation_fraction": 0.999}},
            ValueError,
            "validation_fraction: 0.999 leaves 0 cells to train on",
        ),
        (
            {"training": {"start": "dbscan"}},
            ValueError,
            "TrainingConfig.start: expected one of 'leiden', 'kmeans', 'random', found 'dbscan'",
        ),
        ({"device": "abacus"}, ValueError, "device: 'abacus' is not available"),
        ({"labels_key": 3}, TypeError, "labels_key: expected the name of a column, found int"),
    ],
    ids=lambda value: "" if isinstance(value, str | type) else str(value),
)
def test_impossible_choices(
    paired: MuData, refused: Any, settings: dict[str, Any], error: type[Exception], expected: str
) -> None:
    assert expected in refused(paired, error, **settings)


SEEDED: dict[str, Callable[[MuData, Any], Any]] = {
    "fit": lambda m, seed: un.tl.fit(m, random_state=seed, progress=False),
    "explain": lambda m, seed: un.tl.explain(m, random_state=seed, progress=False),
    "transfer_labels": lambda m, seed: un.tl.transfer_labels(
        m, m, random_state=seed, progress=False
    ),
    "deletion_test": lambda m, seed: un.metrics.deletion_test(m, random_state=seed),
    "simulate_multimodal": lambda _, seed: un.datasets.simulate_multimodal(random_state=seed),
    "simulate_regulation": lambda _, seed: un.datasets.simulate_regulation(random_state=seed),
    "simulate_two_views": lambda _, seed: un.datasets.simulate_two_views(random_state=seed),
}


@pytest.mark.parametrize("function", SEEDED)
@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "a", None, True, np.nan], ids=repr)
def test_seeds_that_are_none(
    fitted: MuData, untrained: None, fingerprint: Any, function: str, seed: Any
) -> None:
    before = fingerprint(fitted)
    with pytest.raises(ValueError) as caught:
        SEEDED[function](fitted, seed)
    expected = f"random_state: expected an integer from 0 to 2**32 - 1, found {seed!r}."
    assert str(caught.value) == expected
    assert fingerprint(fitted) == before


def test_all_functions_with_a_seed_are_tested() -> None:
    modules = (un.tl, un.pp, un.pl, un.get, un.datasets, un.metrics)
    functions = [getattr(module, name) for module in modules for name in module.__all__]
    seeded = {f.__name__ for f in functions if "random_state" in inspect.signature(f).parameters}
    assert seeded == set(SEEDED)


@pytest.mark.parametrize("seed", [np.int64(7), 2**32 - 1], ids=repr)
def test_any_seed_will_do(paired: MuData, quick: dict[str, Any], seed: Any) -> None:
    un.tl.fit(paired, labels_key="cell_type", random_state=seed, **quick)
    assert un.get.model(paired).info.random_state == int(seed)
    un.tl.explain(paired, n_cells=2, n_background=2, random_state=seed, progress=False)
    settings = {"training": {"max_epochs": 1}, "progress": False}
    un.tl.transfer_labels(paired[:20].copy(), paired, random_state=seed, **settings)


# ------------------------------------------------------------------ labels


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["B"] * 120, "expected at least two classes, found one, 'B'. Use n_groups"),
        (["B"] * 60 + [None] * 60, "expected at least two classes, found one, 'B'"),
        ([None] * 120, "expected labels, found every value missing"),
        ([np.nan] * 120, "expected labels, found every value missing"),
        (
            pd.Categorical([None] * 120, categories=["B", "T"]),
            "expected labels, found every value missing",
        ),
        (pd.Categorical(["B"] * 120, categories=["B", "T"]), "found one, 'B'"),
        ([1, "1"] * 60, "levels are not distinct as text"),
    ],
    ids=["one", "one and missing", "None", "NaN", "no category", "unused category", "alike"],
)
def test_labels_that_cannot_be_learned(
    paired: MuData, refused: Any, labels: Any, expected: str
) -> None:
    paired.obs["labels"] = pd.Series(labels, index=paired.obs_names)
    message = refused(paired, labels_key="labels")
    assert expected in message
    assert "labels" in message


@pytest.mark.parametrize("argument", ["labels_key", "batch_key"])
@pytest.mark.parametrize("own", [False, True], ids=["joint column", "a modality's column"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "Float64", object])
def test_a_column_of_measurements(
    paired: MuData, refused: Any, argument: str, own: bool, dtype: Any
) -> None:
    """Every value would be a class of its own."""
    scores = pd.Series(np.arange(120) % 40 / 4, index=paired.obs_names).astype(dtype)
    scores.iloc[:3] = pd.NA if dtype == "Float64" else np.nan
    (paired.mod["rna"] if own else paired).obs["score"] = scores
    message = refused(paired, **{argument: "score"})
    assert "column 'score': expected names or whole numbers, found 40 different numbers" in message
    assert "[0.0, 0.25, 0.5, ...]" in message
    assert "Bin them (pandas.cut), or make the column categorical" in message


@pytest.mark.parametrize("argument", ["labels_key", "batch_key"])
@pytest.mark.parametrize("form", [list, pd.Categorical, lambda names: range(len(names))])
def test_a_column_of_identifiers(paired: MuData, refused: Any, argument: str, form: Any) -> None:
    paired.obs["barcode"] = form([f"{i:03}-1" for i in range(120)])
    message = refused(paired, **{argument: "barcode"})
    assert f"{argument}='barcode': expected cells that share a value" in message
    assert "found 120 different values in 120 cells" in message


def test_modalities_that_write_a_number_differently_agree(
    paired: MuData, quick: dict[str, Any]
) -> None:
    """A column with a missing value is of floats."""
    paired.mod["rna"].obs["kind"] = [0, 1] * 60
    paired.mod["adt"].obs["kind"] = [np.nan, *[1, 0] * 59, 1.0]
    un.tl.fit(paired, labels_key="kind", **quick)
    assert un.get.model(paired).info.groups == ("0", "1")


def test_modalities_that_disagree(paired: MuData, refused: Any) -> None:
    paired.mod["rna"].obs["kind"] = ["B", "T"] * 60
    paired.mod["adt"].obs["kind"] = ["B"] * 120
    assert "modalities disagree on 'kind' for some cells" in refused(paired, labels_key="kind")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["CD4/CD8", "G/M prog", "αβ T 細胞"], ["CD4/CD8", "G/M prog", "αβ T 細胞"]),
        ([3, 20, 100], ["3", "20", "100"]),
        ([1.0, 2.0, 10.0], ["1", "2", "10"]),
        ([np.int8(1), np.nan, 20], ["1", "20"]),
        (pd.Categorical([1.5, 2.0, 10.0]), ["1.5", "2", "10"]),
        ([False, True], ["False", "True"]),
        ([" ", "\t", "a.b"], ["\t", " ", "a.b"]),
    ],
    ids=["text", "int", "float", "int and missing", "categories", "bool", "blank"],
)
def test_any_name_of_a_group_will_do(
    paired: MuData, quick: dict[str, Any], tmp_path: Path, names: list[Any], expected: list[str]
) -> None:
    """Nothing nests in files, and numbers keep their order."""
    values = pd.Series(names)[np.arange(120) % len(names)]
    paired.obs["labels"] = values.set_axis(paired.obs_names)
    un.tl.fit(paired, labels_key="labels", **quick)
    un.tl.integrate(paired)
    un.tl.explain(paired, n_cells=3, n_background=3, progress=False)
    un.tl.explain(paired, source="rna", target="adt", n_cells=3, n_background=3, progress=False)
    query = paired[:20].copy()
    un.tl.transfer_labels(query, paired, adapt=False, unknown_threshold=0, progress=False)
    assert list(query.obs["unitednet_label"].cat.categories) == expected
    with quiet_update():
        paired.write(tmp_path / "cells.h5mu")
        again = md.read_h5mu(tmp_path / "cells.h5mu")
    for mdata in (paired, again):
        assert un.get.probabilities(mdata).columns.tolist() == expected
        assert set(un.get.relevance(mdata)["group"]) <= set(expected)
        assert mdata.uns["unitednet"]["groups"].tolist() == expected


# ------------------------------------------------------------------ values


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_values_that_are_not_finite(paired: MuData, refused: Any, value: float, form: Any) -> None:
    """Where and how many; a value beyond float32 is infinite to the network."""
    x = paired.mod["rna"].X.astype(np.float64)
    for cell, feature in ((3, 4), (5, 4), (7, 8)):
        x[cell, feature] = value
    paired.mod["rna"].X = form(x)
    message = refused(paired, labels_key="cell_type")
    assert "modality 'rna': expected finite values, found 3 NaN or infinite" in message
    assert "in 2 features, ['rna_4', 'rna_8']" in message
    assert "cells may lack modalities" in message


def test_values_of_a_layer_are_checked(paired: MuData, refused: Any) -> None:
    bad = paired.mod["adt"].X.copy()
    bad[0, 0] = np.nan
    paired.mod["adt"].layers["other"] = bad
    assert "found 1 NaN" in refused(paired, layer={"adt": "other"}, labels_key="cell_type")


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_raw_counts_are_answered_with_advice(quick: dict[str, Any], form: Any) -> None:
    mdata = un.datasets.simulate_multimodal(
        n_obs=60, n_groups=2, values={"rna": "counts"}, random_state=1
    )
    mdata.mod["rna"].X = form(mdata.mod["rna"].X.toarray())
    with pytest.warns(UserWarning, match=RAW) as caught:
        un.tl.fit(mdata, labels_key="cell_type", **quick)
    assert len(caught) == 1
    assert caught[0].filename == __file__  # points at the user's own line
    for name in ("pp.rna", "pp.protein", "pp.atac", "likelihood='gaussian'"):
        assert name in str(caught[0].message)


def test_whoever_knows_better_is_not_warned(quick: dict[str, Any]) -> None:
    mdata = un.datasets.simulate_multimodal(
        n_obs=60, n_groups=2, values={"rna": "counts"}, random_state=1
    )
    un.tl.fit(mdata, labels_key="cell_type", likelihood={"rna": "gaussian"}, **quick)
    un.pp.rna(mdata)
    un.tl.fit(mdata, labels_key="cell_type", **quick)


def counted() -> MuData:
    """Cells with raw counts in 'rna', the same ones every time."""
    return un.datasets.simulate_multimodal(
        n_obs=60, n_groups=2, values={"rna": "counts"}, random_state=1
    )


UNLIKE = r"modality 'rna' looks like raw counts, unlike.* trained on.*unitednet_mu\.pp"


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_array])
@pytest.mark.parametrize(
    "function", ["integrate", "predict_modality", "transfer_labels", "explain", "encode", "fit"]
)
def test_counts_for_a_model_of_prepared_values(
    quick: dict[str, Any], function: str, form: Any
) -> None:
    """Whatever reads them says so, at the user's own line; the model says so again from a file."""
    reference = counted()
    un.pp.rna(reference)
    un.tl.fit(reference, labels_key="cell_type", **quick)
    model = Model.from_dict(un.get.model(reference).to_dict())
    assert [spec.counts for spec in model.info.modalities] == [False, False]
    raw = counted()
    raw.mod["rna"] = raw.mod["rna"][:, reference.mod["rna"].var_names].copy()
    raw.mod["rna"].X = form(raw.mod["rna"].X.toarray())
    few = {"n_cells": 3, "n_background": 3, "progress": False}
    calls: dict[str, Callable[[], Any]] = {
        "integrate": lambda: un.tl.integrate(raw, model=model),
        "predict_modality": lambda: un.tl.predict_modality(
            raw, source="rna", target="adt", model=model
        ),
        "transfer_labels": lambda: un.tl.transfer_labels(raw, reference, adapt=False),
        "explain": lambda: un.tl.explain(raw, model=model, **few),
        "encode": lambda: model.encode(raw),
        "fit": lambda: un.tl.fit(raw, model=model, training={"max_epochs": 1}, progress=False),
    }
    with pytest.warns(UserWarning, match=UNLIKE) as caught:
        calls[function]()
    ours = [warning for warning in caught if warning.category is UserWarning]
    assert [warning.filename for warning in ours] == [__file__]


def test_counts_for_a_model_of_counts(quick: dict[str, Any]) -> None:
    """What the model was trained on is no surprise, nor are prepared values."""
    reference = counted()
    un.tl.fit(reference, labels_key="cell_type", likelihood={"rna": "gaussian"}, **quick)
    model = Model.from_dict(un.get.model(reference).to_dict())
    assert [spec.counts for spec in model.info.modalities] == [True, False]
    un.tl.integrate(counted(), model=model)
    prepared = counted()
    un.pp.rna(prepared)
    un.tl.integrate(prepared, model=model)


@pytest.mark.parametrize(
    ("values", "counts"),
    [
        ([0, 3, 10], True),
        ([0, 3, 9], False),
        ([-1, 3, 10], False),
        ([0, 1, 1], False),
        ([0.5, 3, 9.5], False),
        ([1e6, 1e6, 12], True),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_what_looks_like_counts(values: Any, counts: bool, form: Any, dtype: Any) -> None:
    x = np.tile(np.asarray(values, dtype=dtype), (50, 2))
    features = pd.Index([f"f{i}" for i in range(6)])
    assert _matrix.kind_of(form(x), features, "rna").counts == counts
    assert _matrix.scan(form(x), features, "rna").counts == counts


@pytest.mark.parametrize("function", ["fit", "integrate"])
def test_values_are_read_once(
    fitted: MuData, quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """One pass checks that values are finite and what kind they are."""
    seen = []
    finite = _matrix._finite
    monkeypatch.setattr(_matrix, "_finite", lambda b: seen.append(b.shape) or finite(b))
    if function == "fit":
        un.tl.fit(fitted, labels_key="cell_type", **quick)
    else:
        un.tl.integrate(fitted)
    assert seen == [(120, 40), (120, 20)]


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_constant_features_are_named(paired: MuData, quick: dict[str, Any], form: Any) -> None:
    """They are no error: they stay, carry nothing, and are predicted as they are."""
    x = paired.mod["adt"].X.copy()
    x[:, 3], x[:, 7] = 0, 2.5
    paired.mod["adt"].X = form(x)
    with pytest.warns(UserWarning, match=r"modality 'adt': 2 constant features .*'adt_3', 'adt_7'"):
        un.tl.fit(paired, labels_key="cell_type", **quick)
    un.tl.integrate(paired)
    assert np.isfinite(paired.obsm["X_unitednet"]).all()
    un.tl.predict_modality(paired, source="rna", target="adt")
    predicted = paired.mod["adt_from_rna"].X
    assert np.isfinite(predicted).all()
    assert predicted[:, 7].mean() == pytest.approx(2.5, abs=0.3)
    un.tl.explain(paired, n_cells=3, n_background=3, progress=False)


def test_every_feature_is_constant(paired: MuData, refused: Any) -> None:
    paired.mod["adt"].X = np.ones_like(paired.mod["adt"].X)
    message = refused(paired, labels_key="cell_type")
    assert (
        "modality 'adt': expected features that vary, found every one of them constant" in message
    )


@pytest.mark.parametrize("empty", ["cells", "features"])
def test_an_empty_modality(paired: MuData, refused: Any, empty: str) -> None:
    adt = paired.mod["adt"]
    adt = adt[:0].copy() if empty == "cells" else adt[:, :0].copy()
    message = refused(made(rna=paired.mod["rna"].copy(), adt=adt), n_groups=2)
    shape = "(0, 20)" if empty == "cells" else "(120, 0)"
    assert f"modality 'adt': expected cells and features, found shape {shape}" in message


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (None, "modality 'rna': expected a matrix in .X, found none. Name a layer or use_rep"),
        (
            np.full((120, 40), "a", dtype=object),
            "modality 'rna': expected numbers, found dtype object",
        ),
        (np.ones((120, 40), complex), "modality 'rna': expected numbers, found dtype complex128"),
    ],
    ids=["none", "text", "complex"],
)
def test_no_numbers(paired: MuData, refused: Any, x: Any, expected: str) -> None:
    rna = paired.mod["rna"]
    other = AnnData(x, obs=rna.obs, var=rna.var)
    assert expected in refused(made(rna=other, adt=paired.mod["adt"].copy()), n_groups=2)


# ------------------------------------------------------------------ cells


def test_no_cells_at_all(paired: MuData, refused: Any) -> None:
    message = refused(paired[:0].copy(), n_groups=2)
    assert "mdata: expected cells, found none (n_obs = 0)" in message


def test_no_modality_at_all(refused: Any) -> None:
    with quiet_update():
        mdata = MuData({})
    assert "mdata: expected at least one modality, found none" in refused(mdata)


def test_modalities_that_share_no_cell(paired: MuData, refused: Any) -> None:
    adt = paired.mod["adt"].copy()
    adt.obs_names = [f"adt:{name}" for name in adt.obs_names]
    message = refused(made(rna=paired.mod["rna"].copy(), adt=adt), n_groups=2)
    assert "the modalities share no cell. Check that cell names (obs_names) agree" in message


def test_duplicate_names_of_cells(paired: MuData, refused: Any) -> None:
    rna = paired.mod["rna"].copy()
    rna.obs_names = ["cell0", *rna.obs_names[:-1]]
    message = refused(made(rna=rna), n_groups=2)
    assert "cell names" in message
    assert "expected unique names, found 1 duplicated, ['cell0']" in message
    assert "obs_names_make_unique" in message


def test_duplicate_names_of_features(paired: MuData, refused: Any) -> None:
    rna = paired.mod["rna"].copy()
    rna.var_names = ["gene", "gene", "gene", *rna.var_names[3:]]
    mdata = made(rna=rna, adt=paired.mod["adt"].copy())
    message = refused(mdata, n_groups=2)
    assert "feature names of modality 'rna': expected unique names, found 1 duplicated" in message
    assert "['gene']" in message


@pytest.mark.parametrize(("n_obs", "settings"), [(9, {}), (11, {"n_groups": 12})], ids=str)
def test_too_few_cells(paired: MuData, refused: Any, n_obs: int, settings: dict[str, Any]) -> None:
    expected = settings.get("n_groups", 10)
    message = refused(paired[:n_obs].copy(), **settings)
    assert f"expected at least {expected} cells to train on, found {n_obs}" in message


def test_fewer_cells_than_a_default_batch(quick: dict[str, Any]) -> None:
    """Ten cells are enough: the batch adapts."""
    mdata = un.datasets.simulate_multimodal(n_obs=10, n_groups=2, random_state=1)
    del quick["training"]["batch_size"]
    un.tl.fit(mdata, labels_key="cell_type", **quick)
    un.tl.integrate(mdata)
    assert np.isfinite(mdata.obsm["X_unitednet"]).all()


# ------------------------------------------------------------------ features of a model

APPLY: dict[str, Callable[[MuData, MuData], Any]] = {
    "integrate": lambda q, r: un.tl.integrate(q, model=un.get.model(r)),
    "predict_modality": lambda q, r: un.tl.predict_modality(
        q, source="rna", target="adt", model=un.get.model(r)
    ),
    "transfer_labels": lambda q, r: un.tl.transfer_labels(q, r, progress=False),
    "explain": lambda q, r: un.tl.explain(q, model=un.get.model(r), progress=False),
    "fit": lambda q, r: un.tl.fit(q, model=un.get.model(r), progress=False),
}


@pytest.mark.parametrize("function", APPLY)
def test_other_features(fitted: MuData, untrained: None, fingerprint: Any, function: str) -> None:
    """The message says which are missing, and which are unknown to the model."""
    rna = fitted.mod["rna"][:, 2:].copy()
    rna.var_names = ["new gene", *rna.var_names[1:]]
    query = made(rna=rna, adt=fitted.mod["adt"].copy())
    query.obs["cell_type"] = fitted.obs["cell_type"]
    before = fingerprint(query)
    with pytest.raises(ValueError) as caught:
        APPLY[function](query, fitted)
    message = str(caught.value)
    assert "modality 'rna': the model expects 40 features, 3 are missing" in message
    assert "['rna_0', 'rna_1', 'rna_2']" in message
    assert "the model does not know: ['new gene']" in message
    assert fingerprint(query) == before


@pytest.mark.parametrize(
    "function", ["integrate", "predict_modality", "transfer_labels", "explain"]
)
def test_duplicate_features_of_a_query(fitted: MuData, fingerprint: Any, function: str) -> None:
    rna = fitted.mod["rna"].copy()
    rna.var_names = ["rna_1", *rna.var_names[1:]]
    query = made(rna=rna, adt=fitted.mod["adt"].copy())
    with pytest.raises(
        ValueError, match=r"feature names of modality 'rna': expected unique names.*'rna_1'"
    ):
        APPLY[function](query, fitted)


def test_a_layer_that_a_query_lacks(paired: MuData, quick: dict[str, Any]) -> None:
    paired.mod["rna"].layers["prepared"] = paired.mod["rna"].X.copy()
    un.tl.fit(paired, labels_key="cell_type", layer={"rna": "prepared"}, **quick)
    model = un.get.model(paired)
    del paired.mod["rna"].layers["prepared"]
    with pytest.raises(
        ValueError, match=r"modality 'rna': layer 'prepared' not found; available: \[\]"
    ):
        un.tl.integrate(paired, model=model)


# ------------------------------------------------------------------ key_added


@pytest.mark.parametrize(
    ("key", "error", "expected"),
    [
        (
            "rna",
            ValueError,
            "key_added='rna' collides with the modality 'rna'; modalities are ['rna', 'adt', ",
        ),
        (
            "",
            ValueError,
            "key_added: expected a non-empty name without '/' or outer spaces, found ''",
        ),
        (
            "a/b",
            ValueError,
            "key_added: expected a non-empty name without '/' or outer spaces, found 'a/b'",
        ),
        (" a", ValueError, "found ' a'"),
        (None, TypeError, "key_added: expected a string, found NoneType"),
        ("truth", ValueError, "would overwrite .uns['truth'], which unitednet_mu did not write"),
        ("umap", ValueError, "would overwrite .obsm['X_umap'], which unitednet_mu did not write"),
        ("my", ValueError, "would overwrite .obs['my_group'], which unitednet_mu did not write"),
        (
            "pca",
            ValueError,
            "would overwrite .mod['rna'].obsm['X_pca'], which unitednet_mu did not write",
        ),
        (
            "old",
            ValueError,
            "would overwrite .mod['adt'].varm['old_relevance'], which unitednet_mu did not write",
        ),
        ("side", ValueError, "key_added='side' collides with the modality 'side_group'"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "function", ["fit", "integrate", "predict_modality", "transfer_labels", "explain"]
)
def test_stems_that_collide(
    fitted: MuData,
    untrained: None,
    fingerprint: Any,
    function: str,
    key: Any,
    error: type[Exception],
    expected: str,
) -> None:
    other = fitted.mod["adt"][:, :2].copy()
    other.var_names = ["x", "y"]
    fitted.mod["side_group"] = other
    with quiet_update():
        fitted.update()
    fitted.obsm["X_umap"] = np.zeros((120, 2))
    fitted.mod["rna"].obsm["X_pca"] = np.zeros((120, 2))
    fitted.mod["adt"].varm["old_relevance"] = np.zeros((20, 2))
    fitted.obs["my_group"] = "mine"
    model = un.get.model(fitted)
    calls: dict[str, Callable[[], Any]] = {
        "fit": lambda: un.tl.fit(fitted, key_added=key, progress=False),
        "integrate": lambda: un.tl.integrate(fitted, model=model, key_added=key),
        "predict_modality": lambda: un.tl.predict_modality(
            fitted, source="rna", target="adt", model=model, key_added=key
        ),
        "transfer_labels": lambda: un.tl.transfer_labels(
            fitted, fitted, model=model, key_added=key, progress=False
        ),
        "explain": lambda: un.tl.explain(fitted, model=model, key_added=key, progress=False),
    }
    before = fingerprint(fitted)
    with pytest.raises(error) as caught:
        calls[function]()
    assert expected in str(caught.value)
    assert fingerprint(fitted) == before


def test_our_own_slots_are_written_again(fitted: MuData, quick: dict[str, Any]) -> None:
    """A stem that this package wrote, every slot of it, may be used again."""
    for _ in range(2):
        un.tl.fit(fitted, labels_key="cell_type", key_added="mine", **quick)
        un.tl.integrate(fitted, key_added="mine")
        un.tl.explain(fitted, key_added="mine", n_cells=2, n_background=2, progress=False)
        un.tl.transfer_labels(fitted, fitted, adapt=False, key_added="mine", progress=False)
    assert "mine_relevance" in fitted.mod["adt"].varm


def test_the_default_stem_may_hold_somebody_elses(paired: MuData, refused: Any) -> None:
    paired.uns["unitednet"] = {"notes": "my own"}
    assert "would overwrite .uns['unitednet'], which unitednet_mu did not write" in refused(paired)
