"""Relevance as a user gets it; the engine's own arithmetic is tested against shap elsewhere."""

from __future__ import annotations

import warnings
from typing import Any

import anndata
import numpy as np
import pytest
from mudata import MuData
from sklearn.metrics import roc_auc_score

import unitednet_mu as un
from unitednet_mu import _gap
from unitednet_mu._compat import quiet_update

FEW = {"n_cells": 10, "n_background": 12, "progress": False}
GROUPS = ["group0", "group1", "group2"]


def centred_logits(mdata: MuData) -> np.ndarray:
    logits = un.get.model(mdata).encode(mdata).logits
    return logits - logits.mean(1, keepdims=True)


def positions(mdata: MuData, names: Any) -> np.ndarray:
    found = mdata.obs_names.get_indexer(names)
    assert (found >= 0).all()
    return found


# ------------------------------------------------------------------ groups


def test_relevance_adds_up_to_the_networks_answer(trained: MuData) -> None:
    un.tl.explain(trained, **FEW)
    stored = trained.uns["unitednet"]["relevance"]
    outputs = centred_logits(trained)
    cells = positions(trained, stored["params"]["cells"])
    background = positions(trained, stored["params"]["background"])
    assert stored["groups"].tolist() == GROUPS
    own = outputs.argmax(1)
    for k in range(3):
        mine = cells[own[cells] == k]
        expected = outputs[mine, k].mean() - outputs[background, k].mean()
        found = sum(stored["modalities"][name]["signed"][:, k].sum() for name in ("rna", "adt"))
        assert found == pytest.approx(expected, rel=1e-3)
        assert stored["params"]["n_cells"][k] == len(mine) == 10
    assert len(background) == 12
    assert 0 <= stored["params"]["gap"] < 1e-3
    for block in stored["modalities"].values():
        assert (block["absolute"] >= np.abs(block["signed"]) - 1e-6).all()


def test_probabilities_add_up_too(trained: MuData) -> None:
    un.tl.explain(trained, output="probabilities", **FEW)
    stored = trained.uns["unitednet"]["relevance"]
    outputs = un.get.model(trained).encode(trained).probabilities
    cells = positions(trained, stored["params"]["cells"])
    background = positions(trained, stored["params"]["background"])
    for k in range(3):
        mine = cells[outputs[cells].argmax(1) == k]
        expected = outputs[mine, k].mean() - outputs[background, k].mean()
        found = sum(block["signed"][:, k].sum() for block in stored["modalities"].values())
        assert found == pytest.approx(expected, abs=1e-3)
    assert stored["params"]["output"] == "probabilities"


def test_planted_markers_are_found(trained: MuData) -> None:
    un.tl.explain(trained, n_cells=40, n_background=40, progress=False)
    for name, markers in trained.uns["truth"]["marker_of"].items():
        block = trained.uns["unitednet"]["relevance"]["modalities"][name]
        for k, group in enumerate(GROUPS):
            marked = markers == group
            assert roc_auc_score(marked, block["absolute"][:, k]) > 0.95
            assert (block["signed"][marked, k] > 0).all()  # high in their group


def test_features_by_variable(trained: MuData) -> None:
    """`.varm` holds the same, follows features, and knows nothing of those the model does not."""
    model = un.get.model(trained)
    un.tl.explain(trained, **FEW)
    stored = trained.uns["unitednet"]["relevance"]["modalities"]
    for name, adata in trained.mod.items():
        assert stored[name]["features"].tolist() == adata.var_names.tolist()
        np.testing.assert_array_equal(adata.varm["unitednet_relevance"], stored[name]["signed"])
        np.testing.assert_array_equal(
            adata.varm["unitednet_relevance_abs"], stored[name]["absolute"]
        )
    reversed_ = trained.mod["rna"][:, ::-1].copy()
    extra = trained.mod["rna"][:, :2].copy()
    extra.var_names = ["new0", "new1"]
    wide = anndata.concat([extra, reversed_], axis=1, merge="first")
    with quiet_update():
        other = MuData({"rna": wide, "adt": trained.mod["adt"].copy()})
    un.tl.explain(other, model=model, **FEW)
    varm = other.mod["rna"].varm["unitednet_relevance"]
    assert np.isnan(varm[:2]).all()
    np.testing.assert_allclose(varm[2:][::-1], stored["rna"]["signed"], atol=1e-4)


def test_groupby(trained: MuData) -> None:
    """Relevance of a group is averaged over the cells that a column gives to it."""
    mixed = trained.obs["cell_type"].astype(object)
    mixed[mixed == "group2"] = np.nan
    mixed.iloc[:20] = "group1"
    trained.obs["mine"] = mixed
    un.tl.explain(trained, groupby="mine", n_cells=400, n_background=12, progress=False)
    stored = trained.uns["unitednet"]["relevance"]
    assert stored["params"]["groupby"] == "mine"
    sizes = [(mixed == name).sum() for name in GROUPS]
    assert stored["params"]["n_cells"].tolist() == sizes
    assert sizes[2] == 0
    for block in stored["modalities"].values():
        assert np.isnan(block["signed"][:, 2]).all()
        assert np.isfinite(block["signed"][:, :2]).all()
    outputs = centred_logits(trained)
    background = positions(trained, stored["params"]["background"])
    expected = outputs[(mixed == "group1").to_numpy(), 1].mean() - outputs[background, 1].mean()
    found = sum(block["signed"][:, 1].sum() for block in stored["modalities"].values())
    assert found == pytest.approx(expected, rel=1e-3)
    assert set(un.get.relevance(trained)["group"]) == {"group0", "group1"}
    trained.obs["called"] = mixed.fillna("unknown")  # as `transfer_labels` writes it
    un.tl.explain(trained, groupby="called", n_cells=400, n_background=12, progress=False)
    again = trained.uns["unitednet"]["relevance"]
    assert again["params"]["n_cells"].tolist() == sizes
    for name, block in stored["modalities"].items():
        np.testing.assert_array_equal(block["signed"], again["modalities"][name]["signed"])


def test_named_cells_and_background(trained: MuData) -> None:
    cells, background = trained.obs_names[[5, 17, 50]].tolist(), trained.obs_names[:7].tolist()
    un.tl.explain(trained, cells=cells, background=background, progress=False)
    params = trained.uns["unitednet"]["relevance"]["params"]
    assert params["cells"].tolist() == cells
    assert params["background"].tolist() == background
    assert params["n_cells"].sum() == 3
    groups = trained.obs["unitednet_group"].loc[cells].value_counts().reindex(GROUPS)
    assert params["n_cells"].tolist() == groups.tolist()


def test_a_background_of_one_group_is_pointed_at(trained: MuData) -> None:
    """What makes a group is told beside others only."""
    found = un.tl.integrate(trained, copy=True)
    one = found[(found.obs["unitednet_group"] == "group1").to_numpy()].copy()
    with pytest.warns(UserWarning, match="all cells are of one group, 'group1'"):
        un.tl.explain(one, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        un.tl.explain(one, background=list(one.obs_names[:5]), progress=False)
        un.tl.explain(one, source="rna", target="adt", progress=False)


def without_adt(mdata: MuData, cells: np.ndarray) -> MuData:
    """The same cells, of which some lack proteins."""
    has = ~np.isin(np.arange(len(mdata)), cells)
    with quiet_update():
        return MuData({"rna": mdata.mod["rna"].copy(), "adt": mdata.mod["adt"][has].copy()})


def test_cells_are_compared_with_cells_of_all_groups_that_have_what_they_have(
    trained: MuData,
) -> None:
    """Where only one group has proteins, all groups are still compared in RNA."""
    model, groups = un.get.model(trained), trained.obs["unitednet_group"].to_numpy()
    part = without_adt(trained, np.flatnonzero(groups != "group0"))
    part.obs["group"] = trained.obs["unitednet_group"]
    asked = {"groupby": "group", "model": model, "progress": False}
    with pytest.warns(UserWarning, match=r"\['rna', 'adt'\] are compared with cells of one group"):
        un.tl.explain(part, **asked)
    found = part.uns["unitednet"]["relevance"]
    background = found["params"]["background"].tolist()
    assert set(trained.obs.loc[background, "unitednet_group"]) == set(GROUPS)
    n_adt = [int((groups == name).sum()) if name == "group0" else 0 for name in GROUPS]
    assert found["modalities"]["adt"]["n_cells"].tolist() == n_adt
    assert found["modalities"]["rna"]["n_cells"].tolist() == found["params"]["n_cells"].tolist()
    alone = MuData({"rna": trained.mod["rna"]})
    alone.obs["group"] = trained.obs["unitednet_group"]
    un.tl.explain(alone, **asked)
    without = alone.uns["unitednet"]["relevance"]["modalities"]["rna"]["signed"]
    for k in (1, 2):  # cells without proteins: as if nobody had any
        np.testing.assert_allclose(
            found["modalities"]["rna"]["signed"][:, k], without[:, k], atol=1e-5
        )


def test_a_background_of_few_cells_is_pointed_at(trained: MuData) -> None:
    lacking = np.setdiff1d(np.arange(len(trained)), [*range(6)])
    part = without_adt(trained, lacking)
    with pytest.warns(UserWarning, match=r"compared with 6 cells, all that have these"):
        un.tl.explain(part, model=un.get.model(trained), progress=False)


def test_a_cell_named_twice_counts_once(trained: MuData) -> None:
    cells = trained.obs_names[[5, 5, 17]].tolist()
    un.tl.explain(trained, cells=cells, per_cell=True, progress=False)
    params = trained.uns["unitednet"]["relevance"]["params"]
    assert params["cells"].tolist() == cells[1:]
    assert params["n_cells"].sum() == 2
    assert len(un.get.relevance(trained, group="group0", as_explanation=True).values.shape) == 2


def test_the_sample_follows_seed_and_names(trained: MuData) -> None:
    samples = []
    rng = np.random.default_rng(0)
    shuffled = trained[rng.permutation(trained.n_obs)].copy()
    for mdata, seed in ((trained, 0), (trained, 0), (trained, 1), (shuffled, 0)):
        un.tl.explain(mdata, random_state=seed, **FEW)
        params = mdata.uns["unitednet"]["relevance"]["params"]
        samples.append((params["cells"].tolist(), params["background"].tolist()))
        assert params["random_state"] == seed
    assert samples[0] == samples[1]
    assert samples[0][0] != samples[2][0]
    assert samples[0][1] != samples[2][1]
    assert samples[0] == samples[3]


@pytest.mark.parametrize(("pair", "most"), [({}, 200), ({"source": "adt", "target": "rna"}, 100)])
def test_sample_by_default(trained: MuData, pair: dict[str, str], most: int) -> None:
    """As documented; of the background, a small group gives all that it has."""
    trained.obs["mine"] = np.repeat(["group0", "group1"], [210, trained.n_obs - 210])
    un.tl.explain(trained, groupby="mine", progress=False, **pair)
    stored = trained.uns["unitednet"]
    params = (stored["cross_relevance"]["rna_from_adt"] if pair else stored["relevance"])["params"]
    assert params["n_cells"].tolist() == [most, trained.n_obs - 210, 0]
    assert len(params["background"]) == most // 2 + trained.n_obs - 210


def test_at_most_n_cells_of_each_group(trained: MuData) -> None:
    un.tl.explain(trained, n_cells=1000, n_background=1, progress=False)
    params = trained.uns["unitednet"]["relevance"]["params"]
    assert (
        params["n_cells"].tolist()
        == trained.obs["unitednet_group"].value_counts().loc[GROUPS].tolist()
    )
    assert len(params["cells"]) == trained.n_obs
    assert len(params["background"]) == 1


def test_progress_bar(fitted: MuData, capfd: pytest.CaptureFixture) -> None:
    un.tl.explain(fitted, n_cells=2, n_background=2, progress=False)
    assert capfd.readouterr() == ("", "")
    un.tl.explain(fitted, n_cells=2, n_background=2, progress=True)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "explain" in shown.err


def test_additivity_is_enforced(
    fitted: MuData, fingerprint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attributions that do not add up raise, and nothing is written."""
    before = fingerprint(fitted)
    monkeypatch.setattr(_gap, "_largest", lambda x: 1.0 + float(x.abs().max()))
    with pytest.raises(RuntimeError, match="do not add up"):
        un.tl.explain(fitted, **FEW)
    assert fingerprint(fitted) == before


def test_cells_that_lack_a_modality(fitted_mosaic: MuData) -> None:
    """What a cell lacks enters no mean; features of a modality no cell has are NaN, not 0."""
    mdata = fitted_mosaic
    un.tl.explain(mdata, n_cells=200, n_background=20, progress=False)
    stored = mdata.uns["unitednet"]["relevance"]
    assert stored["params"]["n_cells"].sum() == mdata.n_obs
    for block in stored["modalities"].values():
        known = ~np.isnan(block["signed"])
        assert (known.all(0) | ~known.any(0)).all()  # a group's column, whole or not at all
    only_adt = ~mdata.obs_names.isin(mdata.mod["rna"].obs_names)
    un.tl.explain(
        mdata, cells=mdata.obs_names[only_adt][:5].tolist(), n_background=10, progress=False
    )
    blocks = mdata.uns["unitednet"]["relevance"]["modalities"]
    assert np.isnan(blocks["rna"]["signed"]).all()
    present = ~np.isnan(blocks["adt"]["signed"]).all(0)
    assert present.any()
    assert np.isfinite(blocks["adt"]["signed"][:, present]).all()


def test_query_without_a_modality(fitted: MuData) -> None:
    model = un.get.model(fitted)
    query = fitted.copy()
    del query.mod["adt"]
    query.update()
    un.tl.explain(query, model=model, n_cells=5, n_background=5, progress=False)
    blocks = query.uns["unitednet"]["relevance"]["modalities"]
    assert np.isnan(blocks["adt"]["signed"]).all()
    assert np.isfinite(blocks["rna"]["signed"]).any()
    un.tl.explain(
        query, source="rna", target="adt", model=model, n_cells=5, n_background=5, progress=False
    )
    assert "adt_from_rna" in query.uns["unitednet"]["cross_relevance"]


# ------------------------------------------------------------------ cross-modal


def test_cross_relevance_adds_up_in_the_users_units(trained: MuData) -> None:
    trained.mod["adt"].X = trained.mod["adt"].X.copy()
    un.tl.explain(trained, source="rna", target="adt", **FEW)
    stored = trained.uns["unitednet"]["cross_relevance"]["adt_from_rna"]
    assert (stored["source"], stored["target"]) == ("rna", "adt")
    assert stored["groups"].tolist() == GROUPS
    predicted = un.get.model(trained).predict(trained, "rna", "adt")
    cells = positions(trained, stored["params"]["cells"])
    background = positions(trained, stored["params"]["background"])
    own = trained.obs["unitednet_group"].cat.codes.to_numpy()
    for k in range(3):
        mine = cells[own[cells] == k]
        expected = predicted[mine].mean(0) - predicted[background].mean(0)
        found = np.asarray(stored["signed"][str(k)].sum(axis=0)).ravel()
        np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(predicted).max())
        assert stored["signed"][str(k)].shape == (40, 20)
        signed, absolute = (stored[name][str(k)].toarray() for name in ("signed", "absolute"))
        assert (absolute >= np.abs(signed) - 1e-5).all()
    assert 0 <= stored["params"]["gap"] < 1e-3
    assert stored["source_features"].tolist() == trained.mod["rna"].var_names.tolist()


def test_planted_links_are_found(trained: MuData) -> None:
    """The pairs that one hidden quantity drives rank above the others, within every group."""
    un.tl.explain(trained, source="rna", target="adt", n_cells=40, n_background=40, progress=False)
    stored = trained.uns["unitednet"]["cross_relevance"]["adt_from_rna"]
    links = trained.uns["truth"]["link_of"]
    planted = (links["rna"][:, None] == links["adt"][None]) & (links["rna"] != "")[:, None]
    assert planted.sum() == 3
    for k in range(3):
        strength = stored["absolute"][str(k)].toarray()
        assert roc_auc_score(planted.ravel(), strength.ravel()) > 0.85
        linked = np.flatnonzero(planted.any(0))  # and among sources, the one that drives a target
        scores = [roc_auc_score(planted[:, j], strength[:, j]) for j in linked]
        assert np.mean(scores) > 0.8


def test_top_k_keeps_the_strongest(fitted: MuData) -> None:
    settings = {"source": "rna", "target": "adt", **FEW}
    un.tl.explain(fitted, top_k=None, **settings)
    whole = fitted.uns["unitednet"]["cross_relevance"]["adt_from_rna"]
    un.tl.explain(fitted, top_k=15, **settings)
    part = fitted.uns["unitednet"]["cross_relevance"]["adt_from_rna"]
    assert part["params"]["top_k"] == 15
    for k in range(3):
        if not whole["params"]["n_cells"][k]:  # the head gives the group to no cell
            assert whole["absolute"][str(k)].nnz == part["absolute"][str(k)].nnz == 0
            continue
        dense = whole["absolute"][str(k)].toarray()
        kept = part["absolute"][str(k)]
        assert kept.nnz == 15
        expected = np.sort(dense.ravel())[::-1][:15]
        np.testing.assert_allclose(np.sort(kept.data)[::-1], expected, rtol=1e-4)
        rows, columns = kept.nonzero()
        np.testing.assert_allclose(
            part["signed"][str(k)].toarray()[rows, columns],
            whole["signed"][str(k)].toarray()[rows, columns],
            atol=1e-5,
        )


def test_pairs_stand_side_by_side(fitted: MuData) -> None:
    un.tl.explain(fitted, **FEW)
    un.tl.explain(fitted, source="rna", target="adt", **FEW)
    un.tl.explain(fitted, source="adt", target="rna", **FEW)
    stored = fitted.uns["unitednet"]
    assert set(stored["cross_relevance"]) == {"adt_from_rna", "rna_from_adt"}
    assert "relevance" in stored
    table = un.get.cross_relevance(fitted, source="adt", target="rna", n_top=4)
    assert table["feature"].str.startswith("adt_").all()
    assert table["target_feature"].str.startswith("rna_").all()


def test_batches(quick: dict[str, Any]) -> None:
    """A cell and its background share the batch, the one asked for or the mixture."""
    mdata = un.datasets.simulate_multimodal(n_obs=90, n_groups=3, n_batches=2, random_state=1)
    un.tl.fit(mdata, labels_key="cell_type", batch_key="batch", **quick)
    model = un.get.model(mdata)
    un.tl.explain(mdata, source="rna", target="adt", transform_batch="batch1", **FEW)
    stored = mdata.uns["unitednet"]["cross_relevance"]["adt_from_rna"]
    predicted = model.predict(mdata, "rna", "adt", transform_batch="batch1")
    cells = positions(mdata, stored["params"]["cells"])
    background = positions(mdata, stored["params"]["background"])
    own = model.encode(mdata).logits.argmax(1)
    checked = 0
    for k in range(3):
        mine = cells[own[cells] == k]
        if len(mine):
            expected = predicted[mine].mean(0) - predicted[background].mean(0)
            found = np.asarray(stored["signed"][str(k)].sum(axis=0)).ravel()
            np.testing.assert_allclose(found, expected, atol=1e-3)
            checked += 1
    assert checked
    un.tl.explain(mdata, source="rna", target="adt", **FEW)
    mixed = mdata.uns["unitednet"]["cross_relevance"]["adt_from_rna"]
    k = str(int(np.bincount(own).argmax()))
    assert np.abs((mixed["signed"][k] - stored["signed"][k]).toarray()).max() > 1e-6


def test_binary_target_in_logits(quick: dict[str, Any]) -> None:
    mdata = un.datasets.simulate_multimodal(
        n_obs=90, n_groups=3, values={"adt": "binary"}, random_state=1
    )
    un.tl.fit(mdata, labels_key="cell_type", **quick)
    un.tl.explain(mdata, source="rna", target="adt", **FEW)
    stored = mdata.uns["unitednet"]["cross_relevance"]["adt_from_rna"]
    probability = un.get.model(mdata).predict(mdata, "rna", "adt").astype(float)
    logit = np.log(probability / (1 - probability))
    cells = positions(mdata, stored["params"]["cells"])
    background = positions(mdata, stored["params"]["background"])
    own = un.get.model(mdata).encode(mdata).logits.argmax(1)
    k = int(np.bincount(own[cells]).argmax())
    expected = logit[cells[own[cells] == k]].mean(0) - logit[background].mean(0)
    found = np.asarray(stored["signed"][str(k)].sum(axis=0)).ravel()
    np.testing.assert_allclose(found, expected, atol=1e-3)


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "rna"}, "expected both source and target, or neither, found 'rna' and None"),
        ({"target": "rna"}, "expected both source and target, or neither, found None and 'rna'"),
        (
            {"source": "rna", "target": "x"},
            "target: modality 'x' not found; available: ['rna', 'adt']",
        ),
        (
            {"source": "x", "target": "rna"},
            "source: modality 'x' not found; available: ['rna', 'adt']",
        ),
        (
            {"output": "logit"},
            "output 'logit' not found; available: ['logits', 'probabilities']. Did you mean "
            "'logits'?",
        ),
        (
            {"groupby": "cell_typ"},
            "groupby: column 'cell_typ' not found; available: ['cell_type', 'batch']. Did you "
            "mean 'cell_type'?",
        ),
        (
            {"groupby": "batch"},
            "group 'batch0' not found; available: ['group0', 'group1', 'group2', 'unknown']",
        ),
        ({"cells": ["cell0", "nobody"]}, "cells: cell 'nobody' not found"),
        ({"background": ["nobody"]}, "background: cell 'nobody' not found"),
        ({"n_cells": 0}, "n_cells: expected an integer >= 1, found 0"),
        ({"n_top_stable": None}, "n_top_stable: expected an integer >= 1, found None"),
        ({"n_cells": 20.0}, "n_cells: expected an integer >= 1, found 20.0"),
        ({"n_background": 0}, "n_background: expected an integer >= 1, found 0"),
        (
            {"source": "rna", "target": "adt", "top_k": 0},
            "top_k: expected 'auto', None or an integer >= 1, found 0",
        ),
        (
            {"source": "rna", "target": "adt", "transform_batch": "b"},
            "transform_batch 'b' not found",
        ),
        (
            {"transform_batch": "batch0"},
            "transform_batch is for cross-modal relevance, and groups are explained here; name "
            "source and target, or leave it out",
        ),
        ({"top_k": 10}, "top_k is for cross-modal relevance"),
        ({"top_k": None}, "top_k is for cross-modal relevance"),
        (
            {"source": "rna", "target": "adt", "output": "probabilities"},
            "output is for group relevance, and 'adt' is explained by 'rna' here; leave out source "
            "and target, or output",
        ),
        ({"key_added": "nothing"}, "nothing stored under 'nothing'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "+".join(value),
)
def test_refusals(fitted: MuData, fingerprint: Any, settings: dict[str, Any], message: str) -> None:
    before = fingerprint(fitted)
    with pytest.raises(ValueError) as caught:
        un.tl.explain(fitted, progress=False, **settings)
    assert message in str(caught.value)
    assert fingerprint(fitted) == before
