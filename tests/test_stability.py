"""Relevance over several models: what they agree on, with groups matched first."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import mudata as md
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from mudata import MuData
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

import unitednet_mu as un
from unitednet_mu import _stability, _stability_cross
from unitednet_mu._explain import GroupRelevance
from unitednet_mu._model import Model

FEW: dict[str, Any] = {"n_cells": 10, "n_background": 12, "progress": False}
GROUPS = ["group0", "group1", "group2"]
NETWORK = {"n_hidden": (32,), "n_latent": 8, "n_projector": 16, "n_heads": 2}


def fit_models(mdata: MuData, n_models: int, max_epochs: int, **settings: Any) -> list[Model]:
    training = {"max_epochs": max_epochs, "batch_size": 32, "refit": False}
    models = []
    for seed in range(n_models):
        un.tl.fit(
            mdata,
            network=NETWORK,
            training=training,
            random_state=seed,
            device="cpu",
            progress=False,
            **settings,
        )
        models.append(un.get.model(mdata))
    return models


@pytest.fixture(scope="module")
def _three() -> tuple[MuData, list[Model]]:
    mdata = un.datasets.simulate_multimodal(n_obs=240, n_groups=3, noise=0.3, random_state=3)
    return mdata, fit_models(mdata, 3, 40, labels_key="cell_type")


@pytest.fixture
def cells(_three: tuple[MuData, list[Model]]) -> MuData:
    return _three[0].copy()


@pytest.fixture(scope="module")
def models(_three: tuple[MuData, list[Model]]) -> list[Model]:
    return _three[1]


def blocks_of(mdata: MuData, key: str = "unitednet") -> dict[str, Any]:
    return mdata.uns[key]["relevance"]["modalities"]


def renamed(model: Model, order: list[int], labels_key: str | None) -> Model:
    """The same model with its groups in another order, and numbers for names where found."""
    network = copy.deepcopy(model.network)
    last = list(network.heads[0].logits.modules())[-1]
    last.weight.data, last.bias.data = last.weight.data[order], last.bias.data[order]
    names = model.info.groups if labels_key else tuple(str(k) for k in range(len(order)))
    groups = tuple(names[k] for k in order) if labels_key else names
    return Model(network, replace(model.info, groups=groups, labels_key=labels_key))


# ------------------------------------------------------------------ groups


def test_means_and_spread_are_those_of_each_model_alone(cells: MuData, models: list[Model]) -> None:
    settings = {"groupby": "cell_type", **FEW}
    alone = []
    for k, model in enumerate(models):
        un.tl.explain(cells, model=model, key_added=f"m{k}", **settings)
        alone.append(cells.uns[f"m{k}"]["relevance"])
    un.tl.explain(cells, model=models, n_top_stable=6, **settings)
    stored = cells.uns["unitednet"]["relevance"]
    for name in ("cells", "cell_groups", "background", "n_cells"):
        for one in alone:
            np.testing.assert_array_equal(stored["params"][name], one["params"][name])
    assert stored["params"]["gap"] == max(one["params"]["gap"] for one in alone)
    every = {
        what: np.stack(
            [np.concatenate([one["modalities"][m][what] for m in ("rna", "adt")]) for one in alone]
        )
        for what in ("signed", "absolute")
    }
    found = {
        what: np.concatenate([stored["modalities"][m][what] for m in ("rna", "adt")])
        for what in ("signed", "absolute", "signed_sd", "top_frequency")
    }
    np.testing.assert_allclose(found["signed"], every["signed"].mean(0), atol=1e-5)
    np.testing.assert_allclose(found["absolute"], every["absolute"].mean(0), atol=1e-5)
    np.testing.assert_allclose(found["signed_sd"], every["signed"].std(0, ddof=1), atol=1e-5)
    for k in range(3):
        tops = [set(np.argsort(-one[:, k])[:6]) for one in every["absolute"]]
        expected = [np.mean([i in top for top in tops]) for i in range(60)]
        np.testing.assert_allclose(found["top_frequency"][:, k], expected, atol=1e-6)
        pairs = [(0, 1), (0, 2), (1, 2)]
        rho = np.mean(
            [spearmanr(every["absolute"][a][:, k], every["absolute"][b][:, k])[0] for a, b in pairs]
        )
        assert stored["params"]["rank_correlation"][k] == pytest.approx(rho, abs=1e-4)
    assert stored["params"]["n_models"] == 3
    assert stored["params"]["n_top_stable"] == 6
    for name, block in stored["modalities"].items():
        assert all(block[what].dtype == np.float32 for what in found)
        np.testing.assert_array_equal(cells.mod[name].varm["unitednet_relevance"], block["signed"])


def test_planted_markers_are_stable_and_noise_is_not(cells: MuData, models: list[Model]) -> None:
    truth = cells.uns["truth"]
    n_markers = sum(int((truth["marker_of"][name] == GROUPS[0]).sum()) for name in ("rna", "adt"))
    un.tl.explain(cells, model=models, n_top_stable=n_markers, **FEW)
    noise = []
    for k, group in enumerate(GROUPS):
        frequency = np.concatenate([blocks_of(cells)[m]["top_frequency"][:, k] for m in cells.mod])
        marked = np.concatenate([truth["marker_of"][m] == group for m in cells.mod])
        neither = np.concatenate(
            [(truth["marker_of"][m] == "") & (truth["link_of"][m] == "") for m in cells.mod]
        )
        assert roc_auc_score(marked, frequency) > 0.85
        assert frequency[marked].mean() > 0.6
        noise.append(frequency[neither].mean())
    assert max(noise) < 0.15
    rank_correlation = cells.uns["unitednet"]["relevance"]["params"]["rank_correlation"]
    assert (rank_correlation > 0.3).all()


def test_labelled_groups_are_matched_by_name(cells: MuData, models: list[Model]) -> None:
    turned = renamed(models[0], [2, 0, 1], "cell_type")
    un.tl.explain(cells, model=[models[0], turned], **FEW)
    un.tl.explain(cells, model=models[0], key_added="alone", **FEW)
    check_same(cells)


def test_found_groups_are_matched_by_their_cells(cells: MuData, models: list[Model]) -> None:
    """A model and itself, groups permuted, agree in everything."""
    first = renamed(models[0], [0, 1, 2], None)
    turned = renamed(models[0], [2, 0, 1], None)
    assert first.info.groups == turned.info.groups == ("0", "1", "2")
    un.tl.explain(cells, model=[first, turned], **FEW)
    un.tl.explain(cells, model=first, key_added="alone", **FEW)
    check_same(cells)


def check_same(cells: MuData) -> None:
    """Check that two models under the default stem are the one under "alone"."""
    for name, block in blocks_of(cells).items():
        one = blocks_of(cells, "alone")[name]
        np.testing.assert_allclose(block["signed"], one["signed"], atol=1e-5)
        np.testing.assert_allclose(block["absolute"], one["absolute"], atol=1e-5)
        assert block["signed_sd"].max() < 1e-5
        assert set(np.unique(block["top_frequency"])) <= {0.0, 1.0}
    params = cells.uns["unitednet"]["relevance"]["params"]
    np.testing.assert_allclose(params["rank_correlation"], 1, atol=1e-6)


def test_unsupervised_models(paired: MuData) -> None:
    """Fits with other seeds number their groups differently; matched, the same features matter."""
    mdata = un.datasets.simulate_multimodal(n_obs=240, n_groups=3, noise=0.3, random_state=3)
    fits = fit_models(mdata, 2, 40, n_groups=3)
    first, second = (fit.encode(mdata).logits.argmax(1) for fit in fits)
    order = _stability.match_groups(first, second, 3)
    assert sorted(order) == [0, 1, 2]
    agreement = np.mean(order[first] == second)
    assert agreement > 0.9
    shift = [1, 2, 0]  # whatever the fits' own numbers, now they differ
    turned = renamed(fits[1], [int(order[k]) for k in shift], None)
    un.tl.explain(mdata, model=[fits[0], turned], **FEW)
    params = mdata.uns["unitednet"]["relevance"]["params"]
    assert (params["rank_correlation"] > 0.2).all()
    signed = np.concatenate([block["signed"] for block in blocks_of(mdata).values()])
    spread = np.concatenate([block["signed_sd"] for block in blocks_of(mdata).values()])
    assert spread.max() < np.abs(signed).max()  # unmatched groups would differ by their signs


def test_match_groups_takes_the_largest_overlap_in_all() -> None:
    reference = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, -1])
    other = np.array([1, 1, 1, 0, 0, 1, 1, -1, 2, 0])
    # group 0 and 1 both share most cells with 1: 3 + 0 against 2 + 2
    assert _stability.match_groups(reference, other, 3).tolist() == [0, 1, 2]


def test_what_was_not_observed_is_nan_and_zero_is_never_strong() -> None:
    signed = [np.array([[1.0, np.nan], [0.0, np.nan], [-2.0, np.nan]]), np.array([[3.0, 1.0]])]
    part = GroupRelevance(signed, [np.abs(x) for x in signed], 1e-6, np.array([3, 2]))
    found = _stability.group_stability([part, part], 4)
    assert found.top_frequency[0][:, 0].tolist() == [1.0, 0.0, 1.0]
    assert np.isnan(found.top_frequency[0][:, 1]).all()
    assert found.top_frequency[1].tolist() == [[1.0, 1.0]]
    assert np.isnan(found.signed_sd[0][:, 1]).all()
    assert found.rank_correlation[0] == pytest.approx(1)
    assert np.isnan(found.rank_correlation[1])  # of one feature


def test_cells_that_lack_a_modality(fitted_mosaic: MuData) -> None:
    model = un.get.model(fitted_mosaic)
    only_adt = ~fitted_mosaic.obs_names.isin(fitted_mosaic.mod["rna"].obs_names)
    names = fitted_mosaic.obs_names[only_adt][:8].tolist()
    un.tl.explain(fitted_mosaic, model=[model, model], cells=names, n_background=10, progress=False)
    blocks = blocks_of(fitted_mosaic)
    assert np.isnan(blocks["rna"]["top_frequency"]).all()
    assert np.isfinite(blocks["adt"]["top_frequency"]).any()
    assert un.get.relevance(fitted_mosaic)["modality"].unique().tolist() == ["adt"]


# ------------------------------------------------------------------ cross-modal

PAIR: dict[str, Any] = {"source": "rna", "target": "adt", "groupby": "cell_type", **FEW}
KINDS = ("signed", "absolute", "signed_sd", "top_frequency")


def pair_of(mdata: MuData, key: str = "unitednet") -> dict[str, Any]:
    return mdata.uns[key]["cross_relevance"]["adt_from_rna"]


def alone_of(cells: MuData, models: list[Model], kind: str) -> np.ndarray:
    """Values of each model alone: models x groups x source x target features."""
    found = []
    for model in models:
        un.tl.explain(cells, model=model, key_added="alone", top_k=None, **PAIR)
        stored = pair_of(cells, "alone")[kind]
        found.append([stored[str(k)].toarray() for k in range(3)])
    return np.array(found)


def test_cross_means_and_spread_are_those_of_each_model_alone(
    cells: MuData, models: list[Model]
) -> None:
    un.tl.explain(cells, model=models, n_top_stable=30, **PAIR)
    stored = pair_of(cells)
    signed, absolute = (alone_of(cells, models, kind) for kind in ("signed", "absolute"))
    for k in range(3):
        found = {kind: stored[kind][str(k)].toarray() for kind in KINDS}
        np.testing.assert_allclose(found["signed"], signed[:, k].mean(0), atol=1e-5)
        np.testing.assert_allclose(found["absolute"], absolute[:, k].mean(0), atol=1e-5)
        np.testing.assert_allclose(found["signed_sd"], signed[:, k].std(0, ddof=1), atol=1e-5)
        flat = absolute[:, k].reshape(3, -1)
        tops = np.zeros_like(flat)
        np.put_along_axis(tops, np.argsort(-flat, axis=1)[:, :30], 1, axis=1)
        np.testing.assert_allclose(found["top_frequency"].ravel(), tops.mean(0), atol=1e-6)
        rho = np.mean([spearmanr(flat[a], flat[b])[0] for a, b in [(0, 1), (0, 2), (1, 2)]])
        assert stored["params"]["rank_correlation"][k] == pytest.approx(rho, abs=1e-4)
    assert stored["params"]["n_models"] == 3
    assert stored["params"]["n_top_stable"] == 30
    assert stored["params"]["n_cells"].tolist() == [10, 10, 10]
    assert all(m.dtype == np.float32 for kind in KINDS for m in stored[kind].values())


def test_cross_relevance_of_the_strongest_pairs(cells: MuData, models: list[Model]) -> None:
    """The pairs kept are the strongest by the mean, with the values that all pairs would have."""
    un.tl.explain(cells, model=models, n_top_stable=30, key_added="whole", **PAIR)
    un.tl.explain(cells, model=models, n_top_stable=30, top_k=50, **PAIR)
    whole, part = pair_of(cells, "whole"), pair_of(cells)
    for k in map(str, range(3)):
        rows, columns = part["absolute"][k].nonzero()
        assert len(rows) == 50
        mean = whole["absolute"][k].toarray()
        assert mean[rows, columns].min() == pytest.approx(np.sort(mean.ravel())[-50], rel=1e-4)
        for kind in KINDS:
            found, expected = (one[kind][k].toarray()[rows, columns] for one in (part, whole))
            np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(
        part["params"]["rank_correlation"], whole["params"]["rank_correlation"], atol=1e-6
    )


def test_rank_correlation_of_drawn_pairs(
    cells: MuData, models: list[Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    un.tl.explain(cells, model=models, key_added="whole", **PAIR)
    monkeypatch.setattr(_stability_cross, "_RANKED_PAIRS", 500)  # of 800
    un.tl.explain(cells, model=models, **PAIR)
    whole, drawn = (pair_of(cells, key)["params"] for key in ("whole", "unitednet"))
    assert not np.array_equal(whole["rank_correlation"], drawn["rank_correlation"])
    np.testing.assert_allclose(whole["rank_correlation"], drawn["rank_correlation"], atol=0.1)


def test_planted_links_are_stable(cells: MuData, models: list[Model]) -> None:
    links = cells.uns["truth"]["link_of"]
    planted = (links["rna"][:, None] == links["adt"][None]) & (links["rna"] != "")[:, None]
    un.tl.explain(cells, model=models, n_top_stable=40, **PAIR)
    for k in range(3):
        frequency = pair_of(cells)["top_frequency"][str(k)].toarray()
        assert frequency[planted].mean() > 5 * frequency[~planted].mean()


def test_cross_table(cells: MuData, models: list[Model]) -> None:
    columns = ["feature", "target_feature", "group", "value", "absolute", "sign", "rank"]
    asked = {"source": "rna", "target": "adt"}
    un.tl.explain(cells, model=models[0], **PAIR)
    assert list(un.get.cross_relevance(cells, **asked)) == columns
    un.tl.explain(cells, model=models, **PAIR)
    table = un.get.cross_relevance(cells, **asked, target_feature="adt_3", group="group2", n_top=5)
    assert list(table) == [*columns, "sd", "stability"]
    assert len(table) == 5
    for row in table.itertuples():
        i = cells.mod["rna"].var_names.get_loc(row.feature)
        assert row.sd == pair_of(cells)["signed_sd"]["2"][i, 3]
        assert row.stability == pair_of(cells)["top_frequency"]["2"][i, 3]


def test_cross_relevance_of_a_group_without_cells(cells: MuData, models: list[Model]) -> None:
    names = cells.obs_names[cells.obs["cell_type"] != "group1"][:12].tolist()
    for top_k in (None, 20):
        un.tl.explain(cells, model=models, cells=names, top_k=top_k, **PAIR)
        stored = pair_of(cells)
        assert all(stored[kind]["1"].nnz == 0 for kind in KINDS)
        assert stored["signed"]["0"].nnz
        assert np.isnan(stored["params"]["rank_correlation"]).tolist() == [False, True, False]
        table = un.get.cross_relevance(cells, source="rna", target="adt", group="group1")
        assert table.empty


def test_cross_relevance_with_batches(quick: dict[str, Any]) -> None:
    mdata = un.datasets.simulate_multimodal(n_obs=90, n_groups=3, n_batches=2, random_state=1)
    un.tl.fit(mdata, labels_key="cell_type", batch_key="batch", **quick)
    model = un.get.model(mdata)
    settings = {**PAIR, "transform_batch": "batch1"}
    un.tl.explain(mdata, model=[model, model], **settings)
    un.tl.explain(mdata, model=model, key_added="alone", **settings)
    for k in map(str, range(3)):
        one, two = (pair_of(mdata, key)["signed"][k].toarray() for key in ("alone", "unitednet"))
        np.testing.assert_allclose(one, two, atol=1e-6)


# ------------------------------------------------------------------ refits


def test_refits_are_fits_with_the_next_seeds(paired: MuData, quick: dict[str, Any]) -> None:
    """A supervised model and its refits are what `tl.fit` makes with these seeds."""
    fits = []
    for seed in (7, 8, 9):
        un.tl.fit(paired, labels_key="cell_type", random_state=seed, **quick)
        fits.append(un.get.model(paired))
    un.tl.explain(paired, model=fits, key_added="by_hand", **FEW)
    before = fits[0].to_dict()["sha256"]
    un.tl.explain(paired, model=fits[0], n_repeats=2, device="cpu", **FEW)
    found, expected = (paired.uns[key]["relevance"] for key in ("unitednet", "by_hand"))
    for name, block in found["modalities"].items():
        for kind in KINDS:
            np.testing.assert_array_equal(block[kind], expected["modalities"][name][kind])
    assert found["params"]["n_models"] == 3
    assert fits[0].to_dict()["sha256"] == before


def test_refits_find_as_many_groups(quick: dict[str, Any]) -> None:
    mdata = un.datasets.simulate_multimodal(n_obs=120, n_groups=3, n_batches=2, random_state=1)
    un.tl.fit(mdata, n_groups=3, batch_key="batch", **quick)
    stored = mdata.uns["unitednet"]["model"]["sha256"]
    un.tl.explain(mdata, n_repeats=1, device="cpu", **FEW)
    un.tl.explain(mdata, n_repeats=1, device="cpu", **{**PAIR, "groupby": None})
    assert mdata.uns["unitednet"]["model"]["sha256"] == stored  # refits are not kept
    assert mdata.uns["unitednet"]["relevance"]["groups"].tolist() == ["0", "1", "2"]
    assert pair_of(mdata)["params"]["n_models"] == 2
    assert np.nanmax(blocks_of(mdata)["rna"]["signed_sd"]) > 1e-4


def test_refits_need_what_the_model_was_trained_on(fitted: MuData, fingerprint: Any) -> None:
    model = un.get.model(fitted)
    query = fitted.copy()
    del query.mod["adt"]
    query.update()
    unlabelled = fitted.copy()
    del unlabelled.obs["cell_type"]
    without = fitted.copy()
    labels = without.obs["cell_type"].astype(object)
    without.obs["cell_type"] = labels.where(labels != "group1")
    for mdata, message in (
        (query, "adt"),
        (unlabelled, "column 'cell_type' not found"),
        (without, r"cells of all groups .* found none of \['group1'\]"),
    ):
        before = fingerprint(mdata)
        with pytest.raises(ValueError, match=message):
            un.tl.explain(mdata, model=model, n_repeats=1, **FEW)
        assert fingerprint(mdata) == before


def test_progress_of_several_models(fitted: MuData, capfd: pytest.CaptureFixture) -> None:
    model = un.get.model(fitted)
    few = {**FEW, "progress": False}
    un.tl.explain(fitted, n_repeats=1, **few)
    un.tl.explain(fitted, model=[model, model], **{**PAIR, **few})
    assert capfd.readouterr() == ("", "")
    few["progress"] = True
    un.tl.explain(fitted, model=[model, model], **few)
    un.tl.explain(fitted, model=[model, model], **{**PAIR, **few})
    shown = capfd.readouterr()
    assert shown.out == ""
    for bar in ("explain model 1 of 2", "explain model 2 of 2", "explain 2 models"):
        assert bar in shown.err


# ------------------------------------------------------------------ tables and files


def test_table_has_columns_only_for_several_models(cells: MuData, models: list[Model]) -> None:
    columns = ["feature", "modality", "group", "value", "absolute", "sign", "rank"]
    un.tl.explain(cells, model=models[0], **FEW)
    assert list(un.get.relevance(cells)) == columns
    un.tl.explain(cells, model=tuple(models), n_top_stable=5, **FEW)
    table = un.get.relevance(cells, group="group1", modality="adt", n_top=4)
    assert list(table) == [*columns, "sd", "stability"]
    block = blocks_of(cells)["adt"]
    for row in table.itertuples():
        i = block["features"].tolist().index(row.feature)
        assert row.sd == block["signed_sd"][i, 1]
        assert row.stability == block["top_frequency"][i, 1]
    un.tl.explain(cells, model=models[0], **FEW)
    assert list(un.get.relevance(cells)) == columns  # nothing of several models is left


def test_round_trip(cells: MuData, models: list[Model], tmp_path: Any) -> None:
    un.tl.explain(cells, model=models, **FEW)
    un.tl.explain(cells, model=models, top_k=60, **PAIR)
    cells.write(tmp_path / "stable.h5mu")
    read = md.read_h5mu(tmp_path / "stable.h5mu")
    before, after = un.get.relevance(cells), un.get.relevance(read)
    assert before.equals(after)
    before, after = (
        un.get.cross_relevance(one, source="rna", target="adt") for one in (cells, read)
    )
    assert before.equals(after)
    assert list(before)[-2:] == ["sd", "stability"]
    params = read.uns["unitednet"]["relevance"]["params"]
    assert params["n_models"] == 3
    assert params["rank_correlation"].shape == (3,)


def test_slots_in_full(cells: MuData, models: list[Model]) -> None:
    """Several models add these, and nothing else."""
    un.tl.explain(cells, model=models[0], key_added="one", **FEW)
    un.tl.explain(cells, model=models[0], key_added="one", **PAIR)
    un.tl.explain(cells, model=models, **FEW)
    un.tl.explain(cells, model=models, **PAIR)
    one, several = cells.uns["one"], cells.uns["unitednet"]
    spread, params = {"signed_sd", "top_frequency"}, {"n_models", "n_top_stable"}
    params.add("rank_correlation")
    assert set(several["relevance"]) == set(one["relevance"])
    assert set(pair_of(cells)) == set(pair_of(cells, "one")) | spread
    for name, block in blocks_of(cells).items():
        assert set(block) == set(blocks_of(cells, "one")[name]) | spread
    for found, alone in (
        (several["relevance"], one["relevance"]),
        (pair_of(cells), pair_of(cells, "one")),
    ):
        assert set(found["params"]) == set(alone["params"]) | params


# ------------------------------------------------------------------ refusals


def test_models_that_do_not_fit(cells: MuData, models: list[Model], fingerprint: Any) -> None:
    first = models[0]
    specs = first.info.modalities
    fewer = replace(specs[0], features=specs[0].features[:-1])
    turned = replace(specs[0], features=specs[0].features[::-1])
    layered = replace(specs[1], layer="raw")
    other = replace(specs[1], name="atac")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"modalities": (specs[0], other)}, "first model's modalities ['rna', 'adt'], found"),
        ({"modalities": (fewer, specs[1])}, "40 features of 'rna', in their order, found 39, 'rna"),
        ({"modalities": (turned, specs[1])}, "in their order, found another order"),
        ({"modalities": (specs[0], layered)}, "expected layer=None for 'adt', as in the first"),
        ({"groups": ("a", "b", "c")}, "first model's groups ['group0', 'group1', 'group2'], found"),
        ({"groups": ("a", "b")}, "expected 3 groups, as the first model has, found 2"),
    ]
    before = fingerprint(cells)
    for changes, message in cases:
        bad = Model(first.network, replace(first.info, **changes))
        with pytest.raises(ValueError, match=r"^model\[1\]: ") as caught:
            un.tl.explain(cells, model=[first, bad], **FEW)
        assert message in str(caught.value)
    assert fingerprint(cells) == before


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": []}, ValueError, "at least two to compare, found a sequence of 0"),
        ({"model": 1}, ValueError, "at least two to compare, found a sequence of 1"),
        ({"model": [None, None]}, TypeError, r"model\[0\]: expected a unitednet_mu model"),
        ({"model": "a file"}, TypeError, "model: expected a unitednet_mu model"),
        ({"per_cell": True}, ValueError, "per_cell is for one model, and 3 are explained"),
        ({"n_repeats": 2}, ValueError, "n_repeats refits one model, and 3 are given"),
        ({"n_repeats": -1}, ValueError, "n_repeats: expected 0 or an integer >= 1, found -1"),
        ({"model": None, "n_repeats": 1, "per_cell": True}, ValueError, "and 2 are explained"),
        ({"n_top_stable": 0}, ValueError, "n_top_stable: expected an integer >= 1, found 0"),
        ({"n_top_stable": True}, ValueError, "n_top_stable: expected an integer >= 1, found True"),
    ],
)
def test_refusals(
    cells: MuData,
    models: list[Model],
    fingerprint: Any,
    change: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    change = {**change, "model": models[:1]} if change.get("model") == 1 else change
    before = fingerprint(cells)
    with pytest.raises(error, match=message):
        un.tl.explain(cells, **{"model": models, **FEW, **change})
    assert fingerprint(cells) == before


# ------------------------------------------------------------------ plot


@pytest.fixture
def explained(cells: MuData, models: list[Model]) -> Iterator[MuData]:
    un.tl.explain(cells, model=models, n_top_stable=5, **FEW)
    yield cells
    plt.close("all")


def test_plot_draws_what_is_stored(explained: MuData) -> None:
    axes = un.pl.stability(explained, n_top=6)
    assert len(axes) == 3
    correlation = explained.uns["unitednet"]["relevance"]["params"]["rank_correlation"]
    for k, ax in enumerate(axes):
        table = un.get.relevance(explained, group=GROUPS[k], n_top=6)
        dots = ax.collections[-1]
        np.testing.assert_allclose(dots.get_offsets()[:, 0], table["value"], rtol=1e-6)
        np.testing.assert_allclose(dots.get_array(), table["stability"], rtol=1e-6)
        bars = next(c for c in ax.collections if isinstance(c, LineCollection)).get_segments()
        ends = np.array([bar[:, 0] for bar in bars])
        np.testing.assert_allclose(ends[:, 0], table["value"] - table["sd"], rtol=1e-5)
        np.testing.assert_allclose(ends[:, 1], table["value"] + table["sd"], rtol=1e-5)
        labels = [label.get_text() for label in ax.get_yticklabels()]
        rows = zip(table["feature"], table["modality"], strict=True)
        assert labels == [f"{feature} ({modality})" for feature, modality in rows]
        assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the strongest on top
        assert ax.get_title() == f"{GROUPS[k]}\nrank correlation {correlation[k]:.2f}"
    figure = axes[0].get_figure()
    figure.draw_without_rendering()
    assert "mean relevance ± sd, 3 models" in axes[0].get_xlabel()
    assert figure.axes[-1].get_ylabel() == "frequency in the top 5"


def test_plot_of_pairs(cells: MuData, models: list[Model]) -> None:
    pair = {"source": "rna", "target": "adt"}
    with pytest.raises(ValueError, match="no cross_relevance stored"):
        un.pl.stability(cells, **pair)
    un.tl.explain(cells, model=models[0], **pair, **FEW)
    expected = r"of one model.*source='rna', target='adt', model=\[\.\.\.\]\)"
    with pytest.raises(ValueError, match=expected):
        un.pl.stability(cells, **pair)
    un.tl.explain(cells, model=models, n_top_stable=5, **pair, **FEW)
    axes = un.pl.stability(cells, n_top=4, **pair)
    assert len(axes) == 3
    stored = cells.uns["unitednet"]["cross_relevance"]["adt_from_rna"]["params"]
    for k, ax in enumerate(axes):
        table = un.get.cross_relevance(cells, group=GROUPS[k], n_top=4, **pair)
        dots = ax.collections[-1]
        np.testing.assert_allclose(dots.get_offsets()[:, 0], table["value"], rtol=1e-6)
        np.testing.assert_allclose(dots.get_array(), table["stability"], rtol=1e-6)
        labels = [label.get_text() for label in ax.get_yticklabels()]
        rows = zip(table["feature"], table["target_feature"], strict=True)
        assert labels == [f"{feature} → {target}" for feature, target in rows]
        assert ax.get_title().endswith(f"{stored['rank_correlation'][k]:.2f}")
    assert axes[0].get_figure().axes[-1].get_ylabel() == "frequency in the top 5"
    _, ax = plt.subplots()
    assert un.pl.stability(cells, group="group1", ax=ax, **pair) == [ax]
    plt.close("all")
    for wrong in ({"source": "rna"}, {"target": "adt"}, {**pair, "modality": "rna"}):
        with pytest.raises(ValueError, match="expected both source and target and no modality"):
            un.pl.stability(cells, **wrong)


def test_plot_draws_where_it_is_told(explained: MuData) -> None:
    _, ax = plt.subplots()
    assert un.pl.stability(explained, group="group1", modality="adt", ax=ax) == [ax]
    assert len(plt.get_fignums()) == 1
    assert all(label.get_text().startswith("adt_") for label in ax.get_yticklabels())
    with pytest.raises(ValueError, match=r"ax: expected None for 3 panels.*group="):
        un.pl.stability(explained, ax=ax)
    with pytest.raises(ValueError, match="group 'B' not found"):
        un.pl.stability(explained, group="B")
    with pytest.raises(ValueError, match="n_top"):
        un.pl.stability(explained, n_top=0)


def test_plot_of_a_group_without_cells(cells: MuData, models: list[Model]) -> None:
    names = cells.obs_names[cells.obs["cell_type"] != "group1"][:12].tolist()
    un.tl.explain(cells, model=models, groupby="cell_type", cells=names, **FEW)
    ax = un.pl.stability(cells)[1]
    assert [text.get_text() for text in ax.texts] == ["no cell explained"]
    assert ax.get_title().endswith("rank correlation n/a")
    plt.close("all")


def test_plot_needs_several_models(cells: MuData, models: list[Model]) -> None:
    with pytest.raises(ValueError, match=r"no relevance stored.*explain\(mdata, model=\[...\]\)"):
        un.pl.stability(cells)
    un.tl.explain(cells, model=models[0], **FEW)
    with pytest.raises(ValueError, match="is of one model, expected of several; run"):
        un.pl.stability(cells)
