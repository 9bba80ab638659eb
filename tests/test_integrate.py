"""Embeddings and groups."""

from __future__ import annotations

from typing import Any

import anndata
import mudata as md
import numpy as np
import pandas as pd
import pytest
import torch
from mudata import MuData
from scipy import sparse

import unitednet_mu as un
from unitednet_mu._compat import quiet_update
from unitednet_mu._model import Encoded, Model


def test_what_is_written_is_the_networks_answer(fitted: MuData) -> None:
    assert un.tl.integrate(fitted) is None
    network = un.get.model(fitted).network
    with torch.no_grad():
        codes = [
            network.encode(m, torch.from_numpy(fitted.mod[name].X))
            for m, name in enumerate(("rna", "adt"))
        ]
        share = torch.softmax(network.fusion.logits, 0)
        fused = share[0] * codes[0] + share[1] * codes[1]
        logits = network.heads[0](fused)[0] / network.temperature
        probabilities = torch.softmax(logits, 1).numpy()
    np.testing.assert_allclose(fitted.obsm["X_unitednet"], fused.numpy(), atol=1e-6)
    for code, name in zip(codes, ("rna", "adt"), strict=True):
        np.testing.assert_allclose(fitted.mod[name].obsm["X_unitednet"], code.numpy(), atol=1e-6)
    np.testing.assert_allclose(fitted.obsm["unitednet_probabilities"], probabilities, atol=1e-6)
    groups = fitted.obs["unitednet_group"]
    names = np.array(["group0", "group1", "group2"])
    assert groups.tolist() == names[probabilities.argmax(1)].tolist()
    assert list(groups.cat.categories) == names.tolist()
    confidence = fitted.obs["unitednet_group_confidence"]
    assert confidence.dtype == np.float32
    np.testing.assert_allclose(confidence, probabilities.max(1), atol=1e-6)


def test_probabilities_have_names(fitted: MuData) -> None:
    un.tl.integrate(fitted)
    table = un.get.probabilities(fitted)
    assert table.columns.tolist() == ["group0", "group1", "group2"]
    np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-5)
    assert (table.idxmax(axis=1) == fitted.obs["unitednet_group"].astype(str)).all()


def test_features_are_matched_by_name(fitted: MuData) -> None:
    """Other orders, and features that the model does not know, change nothing."""
    expected = un.get.model(fitted).encode(fitted).fused
    model = un.get.model(fitted)
    rng = np.random.default_rng(0)
    for form in (np.asarray, sparse.csr_matrix):
        modalities = {}
        for name, adata in fitted.mod.items():
            extra = adata[:, :3].copy()
            extra.var_names = [f"{name}_extra{i}" for i in range(3)]
            wide = anndata.concat([adata, extra], axis=1, merge="first")
            shuffled = wide[:, rng.permutation(wide.n_vars)].copy()
            shuffled.X = form(shuffled.X)
            modalities[name] = shuffled
        with quiet_update():
            other = MuData(modalities)
        un.tl.integrate(other, model=model)
        np.testing.assert_allclose(other.obsm["X_unitednet"], expected, atol=1e-5)


def test_another_model_can_be_used(fitted: MuData, paired: MuData, quick: dict[str, Any]) -> None:
    un.tl.fit(paired, n_groups=2, random_state=5, **quick)
    model = un.get.model(paired)
    un.tl.integrate(paired, model=model)  # the one that is stored: nothing to say
    with pytest.warns(UserWarning, match="another model .* is stored in .uns.'unitednet'"):
        un.tl.integrate(fitted, model=model)
    np.testing.assert_array_equal(fitted.obsm["X_unitednet"], model.encode(paired).fused)
    assert set(fitted.obs["unitednet_group"].cat.categories) == {"0", "1"}


def test_cells_without_any_modality_of_the_model(fitted: MuData) -> None:
    """Such cells have no code, no group and no confidence; the others are as before."""
    expected = un.get.model(fitted).encode(fitted).fused
    model = un.get.model(fitted)
    other = fitted.mod["rna"][:10].copy()
    other.obs_names = [f"other{i}" for i in range(10)]
    other.var_names = [f"other_{name}" for name in other.var_names]
    with quiet_update():
        mdata = MuData(
            {"rna": fitted.mod["rna"].copy(), "adt": fitted.mod["adt"].copy(), "new": other}
        )
    un.tl.integrate(mdata, model=model)
    strange = mdata.obs_names.str.startswith("other")
    assert strange.sum() == 10
    assert np.isnan(mdata.obsm["X_unitednet"][strange]).all()
    assert np.isnan(mdata.obsm["unitednet_probabilities"][strange]).all()
    assert mdata.obs["unitednet_group"][strange].isna().all()
    assert mdata.obs["unitednet_group_confidence"][strange].isna().all()
    np.testing.assert_allclose(mdata.obsm["X_unitednet"][~strange], expected, atol=1e-6)
    assert "X_unitednet" not in mdata.mod["new"].obsm
    assert list(mdata.obs["unitednet_group"].cat.categories) == ["group0", "group1", "group2"]


def test_two_stems_stand_side_by_side(fitted: MuData, quick: dict[str, Any]) -> None:
    un.tl.fit(fitted, n_groups=2, key_added="second", **quick)
    un.tl.integrate(fitted)
    first = fitted.obsm["X_unitednet"].copy()
    un.tl.integrate(fitted, key_added="second")
    np.testing.assert_array_equal(fitted.obsm["X_unitednet"], first)
    assert fitted.obsm["second_probabilities"].shape == (120, 2)
    assert fitted.obsm["unitednet_probabilities"].shape == (120, 3)


def test_encode_with_a_choice_of_modalities(fitted: MuData) -> None:
    model = un.get.model(fitted)
    whole, part = model.encode(fitted), model.encode(fitted, modalities=["adt"])
    assert isinstance(part, Encoded)
    np.testing.assert_array_equal(part.fused, whole.codes[:, 1])
    assert np.isnan(part.codes[:, 0]).all()


def test_scanpy_goes_on_from_here(trained: MuData) -> None:
    import scanpy as sc

    sc.pp.neighbors(trained, use_rep="X_unitednet", n_neighbors=10, method="gauss")
    graph = trained.obsp["connectivities"].tocoo()
    labels = trained.obs["cell_type"].cat.codes.to_numpy()
    assert (labels[graph.row] == labels[graph.col]).mean() > 0.95


def test_after_concatenation(fitted: MuData) -> None:
    """`mudata.concat` drops `.uns`: the model can be handed in, and old columns are replaced."""
    model = un.get.model(fitted)
    un.tl.integrate(fitted)
    halves = [fitted[:60].copy(), fitted[60:].copy()]
    with quiet_update():
        joined = md.concat(halves)
    assert "unitednet" not in joined.uns
    with pytest.raises(ValueError, match="nothing stored under 'unitednet'"):
        un.tl.integrate(joined)
    un.tl.integrate(joined, model=model)
    np.testing.assert_allclose(joined.obsm["X_unitednet"], fitted.obsm["X_unitednet"], atol=1e-5)


@pytest.mark.parametrize(
    "model", ["path/to/model", {"weights": 1}, torch.nn.Linear(1, 1)], ids=repr
)
def test_only_a_model_is_a_model(fitted: MuData, model: Any) -> None:
    with pytest.raises(
        TypeError, match=f"expected a unitednet_mu model .*, found {type(model).__name__}"
    ):
        un.tl.integrate(fitted, model=model)


def test_model_survives_the_devices_name(fitted: MuData) -> None:
    un.tl.integrate(fitted, device="cpu")
    assert isinstance(un.get.model(fitted), Model)
    with pytest.raises(ValueError, match="device: 'cuda:99' is not available"):
        un.tl.integrate(fitted, device="cuda:99")
    with pytest.raises(ValueError, match="device: 'abacus' is not available"):
        un.tl.integrate(fitted, device="abacus")


def test_order_of_cells_in_modalities_does_not_matter(fitted: MuData) -> None:
    """The cells of a modality may stand in another order than those of the MuData."""
    expected = pd.DataFrame(un.get.model(fitted).encode(fitted).fused, index=fitted.obs_names)
    order = np.random.default_rng(0).permutation(fitted.n_obs)
    with quiet_update():
        other = MuData({"rna": fitted.mod["rna"].copy(), "adt": fitted.mod["adt"][order].copy()})
    un.tl.integrate(other, model=un.get.model(fitted))
    np.testing.assert_allclose(
        other.obsm["X_unitednet"], expected.loc[other.obs_names].to_numpy(), atol=1e-6
    )
    own = pd.DataFrame(other.mod["adt"].obsm["X_unitednet"], index=other.mod["adt"].obs_names)
    un.tl.integrate(fitted)
    np.testing.assert_allclose(
        own.loc[fitted.obs_names].to_numpy(), fitted.mod["adt"].obsm["X_unitednet"], atol=1e-6
    )


def test_effects_are_what_leaving_a_modality_out_does(fitted_mosaic: MuData) -> None:
    """By hand: group probabilities of cells with both modalities, and again from one alone."""
    un.tl.integrate(fitted_mosaic)
    model = un.get.model(fitted_mosaic)
    table = un.get.modality_effects(fitted_mosaic)
    assert table.index.tolist() == ["group0", "group1", "group2"]
    assert table.columns.tolist() == ["rna", "adt"]
    whole = fitted_mosaic.obsm["unitednet_probabilities"]
    own = whole.argmax(1)
    assert len(set(own)) > 1
    names = [set(fitted_mosaic[mod].obs_names) for mod in ("rna", "adt")]
    both = fitted_mosaic.obs_names.isin(names[0] & names[1])
    for left_out, other in (("rna", "adt"), ("adt", "rna")):
        alone = model.encode(fitted_mosaic, modalities=other).probabilities
        for g, group in enumerate(table.index):
            cells = np.flatnonzero(both & (own == g))
            drop = (whole[cells, g] - alone[cells, g]).mean() if len(cells) else np.nan
            np.testing.assert_allclose(table.loc[group, left_out], drop, atol=1e-6)


def test_effects_are_unknown_where_no_cell_tells(fitted: MuData) -> None:
    alone = MuData({"rna": fitted["rna"].copy()})
    un.tl.integrate(alone, model=un.get.model(fitted))
    assert un.get.modality_effects(alone).isna().all(axis=None)


def test_effects_tell_which_view_a_group_is_told_by() -> None:
    """Two views, of which each alone tells other groups apart."""
    mdata = un.datasets.simulate_two_views(n_obs=240, n_groups=4, noise=0.2, random_state=0)
    training = {"max_epochs": 40, "refit": False}
    un.tl.fit(mdata, labels_key="cell_type", training=training, progress=False, device="cpu")
    un.tl.integrate(mdata)
    effects = un.get.modality_effects(mdata)
    first, second = ["group0", "group1"], ["group2", "group3"]
    assert effects.loc[first, "view_a"].min() > effects.loc[first, "view_b"].max()
    assert effects.loc[second, "view_b"].min() > effects.loc[second, "view_a"].max()
