"""Prediction of one modality from others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mudata import MuData

import unitednet_mu as un
from unitednet_mu import _held_out, _model
from unitednet_mu._compat import quiet_update
from unitednet_mu._matrix import Source
from unitednet_mu._model import Model
from unitednet_mu._results import ACCURACY
from unitednet_mu._setup import split_cells


@pytest.fixture(scope="module")
def _batched() -> MuData:
    mdata = un.datasets.simulate_multimodal(
        n_obs=150, n_groups=3, n_batches=3, batch_effect=2.0, random_state=4
    )
    # batch2 never had antibodies
    adt = mdata.mod["adt"][(mdata.obs["batch"] != "batch2").to_numpy()].copy()
    mdata.mod["adt"] = adt
    mdata.update()
    un.tl.fit(
        mdata,
        labels_key="cell_type",
        batch_key="batch",
        network={"n_hidden": (32,), "n_latent": 8, "n_projector": 16},
        training={"max_epochs": 30, "batch_size": 32},
        progress=False,
    )
    return mdata


@pytest.fixture
def batched(_batched: MuData) -> MuData:
    """Cells of three batches, the last without antibodies, and a model conditioned on them."""
    return _batched.copy()


def decoded(
    mdata: MuData, code: torch.Tensor, target: int, batch: list[float] | None = None
) -> Any:
    network = un.get.model(mdata).network
    vector = None if batch is None else torch.tensor(batch).expand(len(code), -1)
    with torch.no_grad():
        return network.to_units(target, network.decode(target, code, vector)).numpy()


def code(mdata: MuData, m: int, name: str) -> torch.Tensor:
    with torch.no_grad():
        return un.get.model(mdata).network.encode(m, torch.from_numpy(mdata.mod[name].X))


@pytest.mark.parametrize(("source", "target"), [("rna", "adt"), ("adt", "rna")])
def test_one_source(fitted: MuData, source: str, target: str) -> None:
    assert un.tl.predict_modality(fitted, source=source, target=target) is None
    predicted = fitted.mod[f"{target}_from_{source}"]
    m = ["rna", "adt"].index(source)
    expected = decoded(fitted, code(fitted, m, source), 1 - m)
    np.testing.assert_allclose(predicted.X, expected, atol=1e-5)
    assert predicted.X.dtype == np.float32
    assert predicted.obs_names.equals(fitted.obs_names)
    assert predicted.var["feature"].tolist() == fitted.mod[target].var_names.tolist()
    name = f"{target}_from_{source}"
    assert predicted.var_names.tolist() == [f"{name}:{f}" for f in fitted.mod[target].var_names]
    assert fitted.var_names.is_unique
    mark = predicted.uns["unitednet_prediction"]
    assert (mark["source"].tolist(), mark["target"], mark["key"]) == ([source], target, "unitednet")


def test_several_sources(fitted: MuData) -> None:
    """Codes of all sources are fused; the target itself may be one of them."""
    un.tl.predict_modality(fitted, source=["rna", "adt"], target="adt")
    share = torch.softmax(un.get.model(fitted).network.fusion.logits.detach(), 0)
    fused = share[0] * code(fitted, 0, "rna") + share[1] * code(fitted, 1, "adt")
    predicted = fitted.mod["adt_from_rna+adt"]
    np.testing.assert_allclose(predicted.X, decoded(fitted, fused, 1), atol=1e-5)
    un.tl.predict_modality(fitted, source="adt", target="adt")
    np.testing.assert_allclose(
        fitted.mod["adt_from_adt"].X, decoded(fitted, code(fitted, 1, "adt"), 1), atol=1e-5
    )
    assert list(fitted.mod) == ["rna", "adt", "adt_from_rna+adt", "adt_from_adt"]


def test_predictions_are_in_the_users_units(trained: MuData) -> None:
    """Shifting and scaling a modality shifts and scales what is predicted of it."""
    moved = trained.copy()
    scale = np.linspace(1, 50, 20, dtype=np.float32)
    moved.mod["adt"].X = moved.mod["adt"].X * scale + 100
    settings = un.get.model(trained).info
    un.tl.fit(
        moved,
        labels_key="cell_type",
        network=settings.network,
        training={"max_epochs": 40, "batch_size": 32},
        progress=False,
    )
    un.tl.predict_modality(moved, source="rna", target="adt")
    predicted, measured = moved.mod["adt_from_rna"].X, moved.mod["adt"].X
    np.testing.assert_allclose(predicted.mean(0), measured.mean(0), atol=0.5 * scale.max())
    error = np.sqrt(np.square(predicted - measured).mean(0))
    assert (error < measured.std(0)).mean() > 0.8


def test_prediction_beats_the_mean_of_the_group(trained: MuData) -> None:
    un.tl.predict_modality(trained, source="rna", target="adt")
    predicted = trained.mod["adt_from_rna"]
    within = un.metrics.pearson_within_groups(
        trained.mod["adt"].X, predicted.X, trained.obs["cell_type"].to_numpy()
    )
    linked = trained.uns["truth"]["link_of"]["adt"] != ""
    assert within[linked].min() > 0.8
    expected = predicted.var["expected_r_within_groups"].to_numpy()  # of held-out cells
    assert expected[linked].min() > 0.8
    assert np.abs(expected[~linked]).mean() < 0.3


def test_expected_accuracy_is_that_of_held_out_cells(trained: MuData) -> None:
    un.tl.predict_modality(trained, source="rna", target="adt")
    predicted = trained.mod["adt_from_rna"]
    model = un.get.model(trained)
    data = model.open(trained)
    data.labels = trained.obs["cell_type"].cat.codes.to_numpy(np.int64)
    _, held_out = split_cells(data, model.info.training.validation_fraction, 0)
    measured = trained.mod["adt"].X[held_out]
    expected = un.metrics.pearson_per_feature(measured, predicted.X[held_out])
    within = un.metrics.pearson_within_groups(
        measured, predicted.X[held_out], data.labels[held_out]
    )
    np.testing.assert_allclose(predicted.var["expected_r"], expected, atol=1e-4)
    np.testing.assert_allclose(predicted.var["expected_r_within_groups"], within, atol=1e-4)


def test_expected_accuracy_is_found_in_blocks(
    quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than a block of a modality is ever dense, and the numbers are those of the whole."""
    mdata = un.datasets.simulate_multimodal(
        n_obs=240, n_vars={"a": 20, "b": 15, "c": 12}, n_batches=2, missing=0.3, random_state=3
    )
    un.tl.fit(mdata, labels_key="cell_type", batch_key="batch", **quick)
    model = un.get.model(mdata)
    data = model.open(mdata)
    data.labels = np.where(np.arange(240) % 3, mdata.obs["cell_type"].cat.codes, -1)
    expected = {}
    groups = np.where(data.labels >= 0, data.labels, model.encode(data).logits.argmax(1))
    for m, target in enumerate("abc"):
        others = [name for name in "abc" if name != target]
        for sources in ([others[0]], [others[1]], others):
            predicted = model.predict(data, sources, target)
            needed = [m, *("abc".index(name) for name in sources)]
            cells = np.flatnonzero(data.observed[:, needed].all(1))
            measured = mdata.mod[target][mdata.obs_names[cells]].X
            error = np.sort(measured - predicted[cells], axis=0)
            beyond = int(0.05 * (len(cells) + 1))  # so many errors lie on each side
            expected[f"{target}_from_{'+'.join(sources)}"] = (
                un.metrics.pearson_per_feature(measured, predicted[cells]),
                un.metrics.pearson_within_groups(measured, predicted[cells], groups[cells]),
                error[beyond - 1],
                error[-beyond],
            )
    taken, decoded = [], []
    take, decode = Source.take, Model.decode
    monkeypatch.setattr(Source, "take", lambda s, cells: taken.append(len(cells)) or take(s, cells))
    monkeypatch.setattr(
        Model, "decode", lambda m, z, *rest: decoded.append(len(z)) or decode(m, z, *rest)
    )
    monkeypatch.setattr(_held_out, "_ACCURACY_CELLS", 37)
    monkeypatch.setattr(_model, "_INFERENCE_CELLS", 37)
    found = _held_out.expected_accuracy(model, data)
    assert max(taken) == max(decoded) == 37
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected[name], atol=1e-6, err_msg=name)


def test_expected_accuracy_is_unknown_with_few_cells(fitted: MuData) -> None:
    """Twelve cells were held out: too few to say anything."""
    un.tl.predict_modality(fitted, source="rna", target="adt")
    assert fitted.mod["adt_from_rna"].var[list(ACCURACY)].isna().all(axis=None)


def test_interval_holds_nine_of_ten_new_measurements() -> None:
    mdata = un.datasets.simulate_multimodal(n_obs=600, n_groups=3, noise=1.0, random_state=4)
    mdata["adt"].X *= np.linspace(0.1, 10, 20, dtype=np.float32)  # units of very different scale
    seen, new = mdata[:300].copy(), mdata[300:].copy()
    training = {"max_epochs": 30, "batch_size": 64, "validation_fraction": 0.3}
    un.tl.fit(seen, labels_key="cell_type", training=training, device="cpu", progress=False)
    un.tl.predict_modality(new, source="rna", target="adt", model=un.get.model(seen), device="cpu")
    predicted = new["adt_from_rna"]
    error = new["adt"].X - predicted.X
    low, high = (predicted.var[column].to_numpy() for column in ("error_q05", "error_q95"))
    assert 0.87 < ((error >= low) & (error <= high)).mean() < 0.95
    assert (error < low).mean() == pytest.approx(0.05, abs=0.03)
    assert ((high - low) < 5 * error.std(0)).all()


def test_intervals_hold_where_features_are_mostly_zero() -> None:
    """The model that was trained once more predicts all zeros a little elsewhere."""
    mdata = un.datasets.simulate_multimodal(n_obs=800, n_groups=3, noise=1.0, random_state=4)
    values = mdata["adt"].X
    mdata["adt"].X = np.maximum(values - np.quantile(values, 0.85, axis=0), 0)
    seen, new = mdata[:400].copy(), mdata[400:].copy()
    training = {"max_epochs": 30, "batch_size": 64, "validation_fraction": 0.3}
    un.tl.fit(seen, labels_key="cell_type", training=training, device="cpu", progress=False)
    un.tl.predict_modality(new, source="rna", target="adt", model=un.get.model(seen), device="cpu")
    bounds = new["adt_from_rna"].var[["error_q05", "error_q95"]].to_numpy().T
    error = new["adt"].X - new["adt_from_rna"].X
    inside = ((error >= bounds[0]) & (error <= bounds[1])).mean(0)
    assert inside.mean() > 0.89
    assert (inside > 0.82).all()


def test_next_error_falls_into_the_interval(rng: np.random.Generator) -> None:
    for n in (20, 99, 250):
        errors = rng.standard_exponential((n + 1, 4000)).astype(np.float32)
        low, high = _held_out._quantiles(errors[:-1].copy())
        inside = ((errors[-1] >= low) & (errors[-1] <= high)).mean()
        expected = 1 - 2 * int(0.05 * (n + 1)) / (n + 1)
        assert inside == pytest.approx(expected, abs=0.02) and expected >= 0.9


def test_embeddings_come_along(trained: MuData) -> None:
    """So that a joint embedding can be coloured by a predicted feature."""
    import scanpy as sc

    trained.obsm["X_umap"] = trained.obsm["X_unitednet"][:, :2].copy()
    un.tl.predict_modality(trained, source="rna", target="adt")
    predicted = trained.mod["adt_from_rna"]
    np.testing.assert_array_equal(predicted.obsm["X_umap"], trained.obsm["X_umap"])
    np.testing.assert_array_equal(predicted.obsm["X_unitednet"], trained.obsm["X_unitednet"])
    assert not {"rna", "adt"} & set(predicted.obsm)
    shown = sc.pl.embedding(predicted, "X_umap", color="adt_4", gene_symbols="feature", show=False)
    values = np.asarray(shown.collections[0].get_array())
    np.testing.assert_allclose(np.sort(values), np.sort(predicted.X[:, 4]), rtol=1e-6)


def test_predicting_again_replaces_the_prediction(fitted: MuData, quick: dict[str, Any]) -> None:
    un.tl.predict_modality(fitted, source="rna", target="adt")
    first = fitted.mod["adt_from_rna"].X.copy()
    un.tl.fit(fitted, labels_key="cell_type", random_state=7, **quick)
    un.tl.predict_modality(fitted, source="rna", target="adt")
    assert list(fitted.mod) == ["rna", "adt", "adt_from_rna"]
    assert np.abs(fitted.mod["adt_from_rna"].X - first).max() > 1e-3


def test_two_models_predict_side_by_side(fitted: MuData, quick: dict[str, Any]) -> None:
    un.tl.predict_modality(fitted, source="rna", target="adt")
    first = fitted.mod["adt_from_rna"].X.copy()
    un.tl.fit(fitted, labels_key="cell_type", random_state=7, key_added="second", **quick)
    un.tl.predict_modality(fitted, source="rna", target="adt", key_added="second")
    assert list(fitted.mod) == ["rna", "adt", "adt_from_rna", "adt_from_rna_second"]
    np.testing.assert_array_equal(fitted.mod["adt_from_rna"].X, first)
    assert fitted.mod["adt_from_rna_second"].uns["unitednet_prediction"]["key"] == "second"


def test_prediction_of_a_model_since_replaced(fitted: MuData, quick: dict[str, Any]) -> None:
    """Drawn with a warning; one by a model of the caller's is the caller's to know."""
    drawn = {"source": "rna", "target": "adt", "n_top": 1}
    before = un.get.model(fitted)
    un.tl.predict_modality(fitted, source="rna", target="adt")
    axes = un.pl.prediction(fitted, **drawn)
    un.tl.fit(fitted, labels_key="cell_type", random_state=9, **quick)
    with pytest.warns(UserWarning, match="replaced since; run .*source='rna', target='adt'"):
        again = un.pl.prediction(fitted, **drawn)
    assert again[0].get_title() == axes[0].get_title()
    un.tl.predict_modality(fitted, source="rna", target="adt", model=before)
    un.pl.prediction(fitted, **drawn)
    un.tl.predict_modality(fitted, source="rna", target="adt")
    un.pl.prediction(fitted, **drawn)


def test_prediction_of_an_obsm_matrix_is_drawn(paired: MuData, quick: dict[str, Any]) -> None:
    """Beside what the model reads, which no variable of the modality is."""
    paired["adt"].obsm["X_two"] = np.asarray(paired["adt"].X)[:, :2] + 3
    un.tl.fit(paired, labels_key="cell_type", use_rep={"adt": "X_two"}, **quick)
    un.tl.predict_modality(paired, source="rna", target="adt")
    axes = un.pl.prediction(paired, source="rna", target="adt")
    assert {ax.get_title().split("\n")[0] for ax in axes} == {"X_two:0", "X_two:1"}
    measured = np.asarray(axes[0].collections[0].get_offsets())[:, 0]
    column = int(axes[0].get_title().split("\n")[0][-1])
    np.testing.assert_allclose(
        np.sort(measured), np.sort(paired["adt"].obsm["X_two"][:, column]), rtol=1e-6
    )


def test_only_the_sources_are_read(fitted: MuData) -> None:
    """Completing a smaller panel, or one with holes, needs nothing of what was measured of it."""
    expected = un.tl.predict_modality(fitted, source="rna", target="adt", copy=True)
    panel = fitted["adt"][:, :10].copy()
    panel.X[0] = np.nan
    query = MuData({"rna": fitted["rna"].copy(), "adt": panel})
    model = un.get.model(fitted)
    un.tl.predict_modality(query, source="rna", target="adt", model=model)
    np.testing.assert_array_equal(query["adt_from_rna"].X, expected["adt_from_rna"].X)
    np.testing.assert_array_equal(model.predict(query, "rna", "adt"), expected["adt_from_rna"].X)
    with pytest.raises(ValueError, match="10 are missing"):
        un.tl.predict_modality(query, source="adt", target="rna", model=model)


@pytest.mark.parametrize(("dtype", "missing"), [(np.int64, np.nan), (bool, False), (float, np.nan)])
def test_what_stands_beside_all_features_goes_on(
    fitted: MuData, dtype: type, missing: object
) -> None:
    before = (np.arange(120) % 3).reshape(60, 2).astype(dtype)
    fitted.varm["kept"] = before.copy()
    for _ in range(2):  # the second time there are no new features
        un.tl.predict_modality(fitted, source="rna", target="adt")
        found = fitted.varm["kept"]
        assert found.shape == (80, 2)
        assert found.dtype == (bool if dtype is bool else float)
        np.testing.assert_array_equal(found[:60], before)
        np.testing.assert_array_equal(found[60:], np.full((20, 2), missing))


def test_batches_that_did_not_measure_the_target(
    quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is known of how it would look there; that is said before any cell is read."""
    full = un.datasets.simulate_multimodal(n_obs=120, n_groups=3, n_batches=3, random_state=1)
    has = (full.obs["batch"] != "batch0").to_numpy()
    mdata = MuData({"rna": full["rna"].copy(), "adt": full["adt"][has].copy()})
    for key in ("cell_type", "batch"):
        mdata.obs[key] = full.obs[key].reindex(mdata.obs_names)
    un.tl.fit(mdata, labels_key="cell_type", batch_key="batch", **quick)
    asked = {"source": "rna", "target": "adt"}
    un.tl.predict_modality(mdata, transform_batch="batch1", **asked)
    monkeypatch.setattr(Model, "encode", lambda *_, **__: pytest.fail("cells were read"))
    for function in (un.tl.predict_modality, un.tl.explain):
        with pytest.raises(ValueError, match=r"'adt' was measured, one of \['batch1', 'batch2'\]"):
            function(mdata, transform_batch="batch0", **asked)


def test_slicing_after_prediction(fitted: MuData) -> None:
    un.tl.predict_modality(fitted, source="rna", target="adt")
    part = fitted[10:30].copy()
    assert part.mod["adt_from_rna"].n_obs == 20
    np.testing.assert_array_equal(part.mod["adt_from_rna"].X, fitted.mod["adt_from_rna"].X[10:30])


def test_query_without_the_target(fitted: MuData) -> None:
    """The usual case: cells that were never measured in it."""
    query = un.datasets.simulate_multimodal(n_obs=50, n_groups=3, random_state=9)
    measured = query.copy()
    del query.mod["adt"]
    query.update()
    model = un.get.model(fitted)
    un.tl.predict_modality(query, source="rna", target="adt", model=model)
    assert query.mod["adt_from_rna"].shape == (50, 20)
    np.testing.assert_array_equal(
        query.mod["adt_from_rna"].X, model.predict(measured, "rna", "adt")
    )


# ------------------------------------------------------------------ batches


def test_codes_do_not_know_the_batch(batched: MuData) -> None:
    network = un.get.model(batched).network
    assert network.n_batches == 3
    assert network.encoders[0].wide.in_features == 40
    assert network.decoders[0].deep[0].in_features == 8 + 3


def test_transform_batch(batched: MuData) -> None:
    rna = code(batched, 0, "rna")
    for i in range(2):  # the third has no protein
        vector = [float(i == j) for j in range(3)]
        un.tl.predict_modality(batched, source="rna", target="adt", transform_batch=f"batch{i}")
        expected = decoded(batched, rna, 1, vector)
        np.testing.assert_allclose(batched.mod["adt_from_rna"].X, expected, atol=1e-5)


def test_accuracy_is_that_of_the_sources_that_cells_have(fitted: MuData) -> None:
    """Of several sources a cell with one of them is predicted as from that one alone."""
    model, n = un.get.model(fitted), fitted.mod["adt"].n_vars
    rng = np.random.default_rng(0)
    names = ("adt_from_rna", "adt_from_rna+adt")
    model.accuracy = {name: rng.random((4, n)).astype(np.float32) for name in names}
    known = ["expected_r", "expected_r_within_groups", "error_q05", "error_q95"]

    def stated(mdata: MuData, source: list[str]) -> np.ndarray:
        un.tl.predict_modality(mdata, source=source, target="adt", model=model)
        return mdata.mod["adt_from_" + "+".join(source)].var[known].to_numpy().T

    with quiet_update():
        only_rna = MuData({"rna": fitted.mod["rna"].copy()})
        some = MuData({"rna": fitted.mod["rna"].copy(), "adt": fitted.mod["adt"][:50].copy()})
    alone, both = (model.accuracy[name] for name in names)
    both_sources = ["rna", "adt"]
    np.testing.assert_array_equal(stated(only_rna, both_sources), alone)
    np.testing.assert_array_equal(stated(fitted, both_sources), both)
    worst = np.minimum(alone, both)
    worst[3] = np.maximum(alone, both)[3]
    np.testing.assert_array_equal(stated(some, both_sources), worst)
    del model.accuracy["adt_from_rna"]
    assert np.isnan(stated(some, both_sources)).all()


def test_accuracy_is_that_of_the_mean_over_batches(batched: MuData) -> None:
    """How good a prediction as one batch is nobody has measured."""
    model = un.get.model(batched)
    model.accuracy = {"adt_from_rna": np.ones((4, batched.mod["adt"].n_vars), np.float32)}
    asked = {"source": "rna", "target": "adt", "model": model}
    un.tl.predict_modality(batched, **asked, transform_batch="batch0")
    as_one = batched.mod["adt_from_rna"]
    known = ["expected_r", "expected_r_within_groups", "error_q05", "error_q95"]
    assert as_one.var[known].isna().all(axis=None)
    assert as_one.uns["unitednet_prediction"]["transform_batch"] == "batch0"
    un.tl.predict_modality(batched, **asked)
    assert batched.mod["adt_from_rna"].var[known].notna().all(axis=None)
    assert batched.mod["adt_from_rna"].uns["unitednet_prediction"]["transform_batch"] == ""


def test_default_is_the_mean_over_batches_that_measured_the_target(batched: MuData) -> None:
    rna, adt = code(batched, 0, "rna"), code(batched, 1, "adt")
    un.tl.predict_modality(batched, source="rna", target="adt")
    two = [decoded(batched, rna, 1, v) for v in ([1.0, 0, 0], [0, 1.0, 0])]
    np.testing.assert_allclose(batched.mod["adt_from_rna"].X, np.mean(two, 0), atol=1e-5)
    un.tl.predict_modality(batched, source="adt", target="rna")
    three = [decoded(batched, adt, 0, v) for v in ([1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0])]
    np.testing.assert_allclose(batched.mod["rna_from_adt"].X, np.mean(three, 0), atol=1e-5)


def test_predicted_as_a_batch_carries_its_offsets(batched: MuData) -> None:
    """The difference between two batches' predictions is the planted offset of each feature."""
    measured, batch = batched.mod["rna"].X, batched.obs["batch"].to_numpy()
    means = {}
    for name in ("batch0", "batch1"):
        un.tl.predict_modality(batched, source="rna", target="rna", transform_batch=name)
        means[name] = batched.mod["rna_from_rna"].X.mean(0)
    planted = measured[batch == "batch0"].mean(0) - measured[batch == "batch1"].mean(0)
    assert np.corrcoef(means["batch0"] - means["batch1"], planted)[0, 1] > 0.8


def test_unseen_batches_are_predicted_alike(batched: MuData) -> None:
    """A cell's own batch, known or not, missing or not, plays no part at inference."""
    un.tl.predict_modality(batched, source="rna", target="adt")
    expected = batched.mod["adt_from_rna"].X.copy()
    batched.obs["batch"] = "never seen"
    un.tl.predict_modality(batched, source="rna", target="adt")
    np.testing.assert_array_equal(batched.mod["adt_from_rna"].X, expected)
    del batched.obs["batch"]
    un.tl.predict_modality(batched, source="rna", target="adt")
    np.testing.assert_array_equal(batched.mod["adt_from_rna"].X, expected)


def test_cells_of_unknown_batch_can_be_trained_on(paired: MuData, quick: dict[str, Any]) -> None:
    batch = paired.obs["batch"].astype(object)
    batch.iloc[:60] = "second"
    batch.iloc[::4] = np.nan
    paired.obs["batch"] = batch
    un.tl.fit(paired, labels_key="cell_type", batch_key="batch", **quick)
    assert un.get.model(paired).info.batches == ("batch0", "second")
    assert np.isfinite(un.get.history(paired)["val_total"]).all()
    un.tl.predict_modality(paired, source="rna", target="adt")
    assert np.isfinite(paired.mod["adt_from_rna"].X).all()


def test_no_training_cell_of_a_known_batch_has_the_target(
    paired: MuData, quick: dict[str, Any]
) -> None:
    """Every antibody measurement comes from a cell of unknown batch: it can be predicted still."""
    batch = paired.obs["batch"].astype(object)
    batch.iloc[:60] = "second"
    batch.iloc[40:] = np.nan
    mdata = paired
    mdata.mod["adt"] = paired.mod["adt"][40:].copy()
    mdata.update()
    mdata.obs["batch"] = batch.reindex(mdata.obs_names)
    un.tl.fit(mdata, labels_key="cell_type", batch_key="batch", **quick)
    un.tl.predict_modality(mdata, source="rna", target="adt")
    assert np.isfinite(mdata.mod["adt_from_rna"].X).all()


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"source": "rnaa", "target": "adt"},
            "source: modality 'rnaa' not found; available: ['rna', 'adt']. Did you mean 'rna'?",
        ),
        (
            {"source": "rna", "target": "atac"},
            "target: modality 'atac' not found; available: ['rna', 'adt']",
        ),
        (
            {"source": [], "target": "adt"},
            "source: expected one or several different modalities, found []",
        ),
        (
            {"source": ["rna", "rna"], "target": "adt"},
            "source: expected one or several different modalities, found ['rna', 'rna']",
        ),
        (
            {"source": "rna", "target": "adt", "transform_batch": "b"},
            "transform_batch 'b' not found; available: []",
        ),
    ],
    ids=["source", "target", "none", "twice", "batch"],
)
def test_refusals(fitted: MuData, fingerprint: Any, settings: dict[str, Any], message: str) -> None:
    before = fingerprint(fitted)
    with pytest.raises(ValueError) as caught:
        un.tl.predict_modality(fitted, **settings)
    assert message in str(caught.value)
    assert fingerprint(fitted) == before


def test_unknown_batch_lists_the_models(batched: MuData) -> None:
    with pytest.raises(
        ValueError, match=r"'batch9' not found; available: \['batch0', 'batch1', 'batch2'\]"
    ):
        un.tl.predict_modality(batched, source="rna", target="adt", transform_batch="batch9")


def test_a_measured_modality_is_never_overwritten(fitted: MuData, fingerprint: Any) -> None:
    fitted.mod["adt_from_rna"] = fitted.mod["adt"][:, :3].copy()
    fitted.mod["adt_from_rna"].var_names = ["x", "y", "z"]
    fitted.update()
    before = fingerprint(fitted)
    with pytest.raises(ValueError, match="'adt_from_rna' exists and was not made by this package"):
        un.tl.predict_modality(fitted, source="rna", target="adt")
    assert fingerprint(fitted) == before


def test_no_cell_has_the_source(fitted: MuData, fingerprint: Any) -> None:
    query = fitted.copy()
    del query.mod["rna"]
    query.update()
    before = fingerprint(query)
    with pytest.raises(ValueError, match=r"modalities \['rna'\], found none among \['adt'\]"):
        un.tl.predict_modality(query, source="rna", target="adt")
    assert fingerprint(query) == before
