"""Cells that lack modalities: left out of whatever they have no part in, never filled in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mudata import MuData
from scipy import sparse

import unitednet_mu as un
from unitednet_mu._compat import quiet_update
from unitednet_mu._data import ModalitySpec, concatenate
from unitednet_mu._open import open_dataset


def without(mdata: MuData, name: str, cells: np.ndarray) -> MuData:
    """Copy of `mdata` in which `cells` (bool) lack modality `name`."""
    left = mdata.mod[name].obs_names[~cells[mdata.obs_names.get_indexer(mdata.mod[name].obs_names)]]
    with quiet_update():
        modalities = {m: (a[left].copy() if m == name else a.copy()) for m, a in mdata.mod.items()}
        part = MuData(modalities)
    part.obs["cell_type"] = mdata.obs["cell_type"].reindex(part.obs_names)
    part.uns = dict(mdata.uns)
    return part


def observed(mdata: MuData) -> pd.DataFrame:
    return pd.DataFrame(
        {name: mdata.obs_names.isin(adata.obs_names) for name, adata in mdata.mod.items()},
        index=mdata.obs_names,
    )


def test_it_is_a_mosaic(mosaic: MuData) -> None:
    seen = observed(mosaic)
    assert seen.any(axis=1).all()
    assert 10 < (~seen["rna"]).sum() < 50
    assert 10 < (~seen["adt"]).sum() < 50
    assert seen.all(axis=1).sum() > 30


@pytest.mark.parametrize("choice", [{"labels_key": "cell_type"}, {"n_groups": 3}], ids=str)
def test_it_trains(mosaic: MuData, quick: dict[str, Any], choice: dict[str, Any]) -> None:
    un.tl.fit(mosaic, **choice, **quick)
    history = un.get.history(mosaic)
    columns = [c for c in history if c.startswith(("train_", "val_"))]
    last = history[columns].iloc[-1]
    assert np.isfinite(last).all()
    un.tl.integrate(mosaic)
    assert np.isfinite(mosaic.obsm["X_unitednet"]).all()
    assert mosaic.obs["unitednet_group"].notna().all()


def test_groups_are_learned_from_whatever_was_measured(quick: dict[str, Any]) -> None:
    mdata = un.datasets.simulate_multimodal(
        n_obs=240, n_groups=3, noise=0.3, missing=0.35, random_state=3
    )
    quick["training"]["max_epochs"] = 30
    un.tl.fit(mdata, labels_key="cell_type", **quick)
    un.tl.integrate(mdata)
    right = mdata.obs["unitednet_group"].astype(str) == mdata.obs["cell_type"].astype(str)
    seen = observed(mdata)
    for part in (seen.all(axis=1), ~seen["adt"], ~seen["rna"]):
        assert right[part].mean() > 0.95


@pytest.mark.parametrize("fusion", ["modality", "dimension"])
def test_weights_are_renormalised_over_what_was_observed(
    mosaic: MuData, quick: dict[str, Any], fusion: str
) -> None:
    quick["network"]["fusion"] = fusion
    un.tl.fit(mosaic, labels_key="cell_type", **quick)
    un.tl.integrate(mosaic)
    network = un.get.model(mosaic).network
    with torch.no_grad():
        network.fusion.logits.copy_(torch.randn_like(network.fusion.logits))  # far from equal
    model = un.get.model(mosaic)
    with torch.no_grad():
        model.network.fusion.logits.copy_(network.fusion.logits)
    encoded = model.encode(mosaic)
    share = np.exp(
        network.fusion.logits.detach().numpy().astype(float)
    )  # modalities x (1 or latent)
    codes = {}
    for m, (name, adata) in enumerate(mosaic.mod.items()):
        with torch.no_grad():
            code = network.encode(m, torch.from_numpy(adata.X)).numpy()
        codes[name] = pd.DataFrame(code, index=adata.obs_names)
    seen = observed(mosaic)
    for i, cell in enumerate(mosaic.obs_names):
        have = [m for m, name in enumerate(mosaic.mod) if seen.loc[cell, name]]
        total = sum(share[m] for m in have)
        names = list(mosaic.mod)
        expected = sum(share[m] / total * codes[names[m]].loc[cell].to_numpy() for m in have)
        np.testing.assert_allclose(encoded.fused[i], expected, atol=1e-5)
        for m in range(2):
            assert np.isnan(encoded.codes[i, m]).all() == (m not in have)


def test_one_modality_means_its_own_code(fitted_mosaic: MuData) -> None:
    un.tl.integrate(fitted_mosaic)
    seen = observed(fitted_mosaic)
    fused = pd.DataFrame(fitted_mosaic.obsm["X_unitednet"], index=fitted_mosaic.obs_names)
    for name, other in (("rna", "adt"), ("adt", "rna")):
        alone = seen.index[~seen[other]]
        adata = fitted_mosaic.mod[name]
        own = pd.DataFrame(adata.obsm["X_unitednet"], index=adata.obs_names)
        np.testing.assert_allclose(fused.loc[alone], own.loc[alone], atol=1e-6)


@pytest.mark.parametrize("name", ["rna", "adt"])
def test_nothing_is_filled_in(fitted: MuData, name: str) -> None:
    """A cell whose modality is taken away has the code of a MuData that never had it."""
    model = un.get.model(fitted)
    taken = np.arange(120) % 3 == 0
    part = without(fitted, name, taken)
    with quiet_update():
        other = "adt" if name == "rna" else "rna"
        never = MuData({other: fitted.mod[other].copy()})
    for mdata in (part, never):
        un.tl.integrate(mdata, model=model)
    codes = pd.DataFrame(part.obsm["X_unitednet"], index=part.obs_names)
    alone = pd.DataFrame(never.obsm["X_unitednet"], index=never.obs_names)
    whole = pd.DataFrame(model.encode(fitted).fused, index=fitted.obs_names)
    names = fitted.obs_names
    np.testing.assert_allclose(codes.loc[names[taken]], alone.loc[names[taken]], atol=1e-6)
    np.testing.assert_allclose(codes.loc[names[~taken]], whole.loc[names[~taken]], atol=1e-6)
    assert np.abs(codes.loc[names[taken]] - whole.loc[names[taken]]).to_numpy().max() > 1e-3


def test_zeros_are_values_and_missing_is_not_zero(fitted: MuData) -> None:
    model = un.get.model(fitted)
    taken = np.arange(120) < 20
    missing = without(fitted, "adt", taken)
    zeroed = fitted.copy()
    values = zeroed.mod["adt"].X.copy()
    values[taken] = 0
    zeroed.mod["adt"].X = values
    a, b = (pd.DataFrame(model.encode(m).fused, index=m.obs_names) for m in (missing, zeroed))
    cells = fitted.obs_names[taken]
    assert np.abs(a.loc[cells] - b.loc[cells]).to_numpy().max() > 1e-3


def test_cells_that_lack_a_modality_teach_it_nothing(paired: MuData, quick: dict[str, Any]) -> None:
    """The statistics of a modality are those of the training cells that have it."""
    taken = np.arange(120) % 2 == 0
    part = without(paired, "adt", taken)
    quick["training"]["validation_fraction"] = 0.0
    un.tl.fit(part, labels_key="cell_type", **quick)
    network = un.get.model(part).network
    own = part.mod["adt"].X.astype(float)
    np.testing.assert_allclose(network.standardisers[1].mean, own.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(network.standardisers[1].scale, own.std(0), rtol=1e-4)
    np.testing.assert_allclose(
        network.standardisers[0].scale, part.mod["rna"].X.astype(float).std(0), rtol=1e-4
    )


def test_the_missing_modality_is_predicted(fitted_mosaic: MuData) -> None:
    mdata = fitted_mosaic
    un.tl.predict_modality(mdata, source="rna", target="adt")
    predicted = mdata.mod["adt_from_rna"]
    assert predicted.obs_names.tolist() == [
        name for name in mdata.obs_names if name in set(mdata.mod["rna"].obs_names)
    ]
    lacking = predicted.obs_names.difference(mdata.mod["adt"].obs_names)
    assert len(lacking) > 10
    assert np.isfinite(predicted[lacking].X).all()


def test_several_sources_use_what_each_cell_has(fitted_mosaic: MuData) -> None:
    mdata = fitted_mosaic
    model = un.get.model(mdata)
    un.tl.predict_modality(mdata, source=["rna", "adt"], target="adt")
    predicted = mdata.mod["adt_from_rna+adt"]
    assert predicted.n_obs == mdata.n_obs
    table = pd.DataFrame(predicted.X, index=predicted.obs_names)
    seen = observed(mdata).loc[:, ["rna", "adt"]]
    for name, other in (("rna", "adt"), ("adt", "rna")):
        alone = seen.index[~seen[other]]
        own = pd.DataFrame(model.predict(mdata, name, "adt"), index=mdata.obs_names)
        np.testing.assert_allclose(table.loc[alone], own.loc[alone], atol=1e-5)


def test_prediction_for_cells_that_never_had_it_is_good(quick: dict[str, Any]) -> None:
    """The measurement taken away from a third of the cells is what is predicted for them."""
    paired = un.datasets.simulate_multimodal(n_obs=300, n_groups=3, noise=0.3, random_state=3)
    taken = np.arange(300) % 3 == 0
    part = without(paired, "adt", taken)
    quick["training"]["max_epochs"] = 40
    un.tl.fit(part, labels_key="cell_type", **quick)
    un.tl.predict_modality(part, source="rna", target="adt")
    cells = paired.obs_names[taken]
    r = un.metrics.pearson_per_feature(
        paired.mod["adt"][cells].X, part.mod["adt_from_rna"][cells].X
    )
    markers = paired.uns["truth"]["marker_of"]["adt"] != ""
    linked = paired.uns["truth"]["link_of"]["adt"] != ""
    assert r[markers].min() > 0.8
    assert r[linked].mean() > 0.3


def test_two_ways_to_lack_a_modality_are_one(paired: MuData, quick: dict[str, Any]) -> None:
    """Sliced away from the whole, or never put in: training gives the same network, bit for bit."""
    taken = np.arange(120) % 4 == 0
    first = without(paired, "adt", taken)
    second = paired.copy()
    with quiet_update():
        second.mod["adt"] = second.mod["adt"][~taken].copy()
        second.update()
    models = []
    for mdata in (first, second):
        un.tl.fit(mdata, labels_key="cell_type", **quick)
        models.append(un.get.model(mdata).network.state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_sparse_mosaic(mosaic: MuData, fitted_mosaic: MuData) -> None:
    model = un.get.model(fitted_mosaic)
    expected = model.encode(mosaic).fused
    for adata in mosaic.mod.values():
        adata.X = sparse.csc_matrix(adata.X)
    np.testing.assert_allclose(model.encode(mosaic).fused, expected, atol=1e-5)


def test_a_mini_batch_without_a_modality(quick: dict[str, Any]) -> None:
    """Six cells have antibodies: most mini-batches have one of them, or none."""
    paired = un.datasets.simulate_multimodal(n_obs=120, n_groups=3, random_state=1)
    part = without(paired, "adt", np.arange(120) >= 6)
    quick["training"]["batch_size"] = 8
    un.tl.fit(part, labels_key="cell_type", **quick)
    un.tl.integrate(part)
    assert np.isfinite(part.obsm["X_unitednet"]).all()
    un.tl.predict_modality(part, source="rna", target="adt")
    assert np.isfinite(part.mod["adt_from_rna"].X).all()


def test_batches_are_read_and_nothing_is_made_dense(mosaic: MuData) -> None:
    """A mini-batch holds, of each modality, the rows of the cells that have it, in order."""
    for adata in mosaic.mod.values():
        adata.X = sparse.csr_matrix(adata.X)
    specs = [
        ModalitySpec(name, tuple(adata.var_names), "gaussian") for name, adata in mosaic.mod.items()
    ]
    data = open_dataset(mosaic, specs)
    assert all(source.matrix is mosaic.mod[source.spec.name].X for source in data.sources)
    cells = np.random.default_rng(0).permutation(len(data))[:17]
    batch = data.batch(cells, torch.device("cpu"))
    for m, (name, adata) in enumerate(mosaic.mod.items()):
        names = mosaic.obs_names[cells]
        has = names.isin(adata.obs_names)
        np.testing.assert_array_equal(batch.observed[:, m], has)
        np.testing.assert_array_equal(batch.rows[m], np.flatnonzero(has))
        np.testing.assert_array_equal(batch.x[m], adata[names[has]].X.toarray())
        assert name == specs[m].name


@pytest.mark.parametrize("lacking", [None, "rna", "adt"])
def test_reference_and_query_side_by_side(mosaic: MuData, lacking: str | None) -> None:
    """Two sets read as one: values, and who lacks what, are those of each on its own."""
    query = un.datasets.simulate_multimodal(n_obs=40, n_groups=3, missing=0.3, random_state=9)
    query.mod["rna"].X = sparse.csr_matrix(query.mod["rna"].X)  # beside a dense one
    mosaic.mod["adt"].X = sparse.csr_matrix(mosaic.mod["adt"].X)
    query.mod["adt"].X = sparse.csc_matrix(query.mod["adt"].X)
    if lacking is not None:
        with quiet_update():
            del query.mod[lacking]
            query.update()
    specs = [
        ModalitySpec(name, tuple(adata.var_names), "gaussian") for name, adata in mosaic.mod.items()
    ]
    first, second = (open_dataset(one, specs, partial=True) for one in (mosaic, query))
    joint = concatenate(first, second)
    n = len(first)
    np.testing.assert_array_equal(joint.observed, np.concatenate([first.observed, second.observed]))
    assert joint.obs_names.is_unique
    cells = np.random.default_rng(0).permutation(len(joint))
    for chunk in (cells[:30], cells[cells < n][:9], cells[cells >= n][:9]):
        batch = joint.batch(chunk, torch.device("cpu"))
        for m in range(2):
            has = joint.observed[chunk, m]
            rows = [
                first.sources[m].take(np.array([i]))[0]
                if i < n
                else second.sources[m].take(np.array([i - n]))[0]
                for i in chunk[has]
            ]
            np.testing.assert_array_equal(batch.rows[m], np.flatnonzero(has))
            if rows:
                np.testing.assert_array_equal(batch.x[m], np.stack(rows))
            else:
                assert batch.x[m] is None
