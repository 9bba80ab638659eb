"""The bundled set and the simulator."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib.resources import files

import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import unitednet_mu as un


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, unitednet_mu as un; "
        "heavy = {'torch', 'scanpy', 'muon', 'shap', 'matplotlib', 'sklearn', 'anndata'}; "
        "assert not heavy & set(sys.modules); "
        "assert dir(un) == sorted(un.__all__); "
        "un.pp, un.metrics, un.datasets; "
        "assert not {'torch', 'scanpy', 'muon', 'shap', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        un.nothing  # noqa: B018


def test_pbmc_has_the_cells_of_the_source(pbmc: mudata.MuData) -> None:
    assert pbmc.shape == (1600, 724)
    assert list(pbmc.mod) == ["rna", "adt"]
    assert list(pbmc.obs.columns) == ["cell_type", "donor"]
    assert not len(pbmc.var.columns)
    table = pd.crosstab(pbmc.obs["donor"], pbmc.obs["cell_type"])
    assert list(table.columns) == ["B", "CD4 T", "CD8 T", "DC", "Mono", "NK", "other", "other T"]
    assert table.to_numpy().tolist() == [
        [15, 138, 72, 8, 119, 30, 12, 6],
        [31, 130, 77, 6, 87, 38, 5, 26],
        [31, 123, 46, 6, 100, 77, 3, 14],
        [31, 115, 69, 9, 132, 9, 3, 32],
    ]
    donors = {mod: set(pbmc.obs.loc[pbmc[mod].obs_names, "donor"]) for mod in pbmc.mod}
    assert donors == {"rna": {"p1_0", "p3_0", "p4_0"}, "adt": {"p2_0", "p3_0", "p4_0"}}


@pytest.mark.parametrize(
    ("mod", "n_features", "n_stored", "total", "largest"),
    [("rna", 500, 49_581, 632_465, 3921), ("adt", 224, 253_182, 6_648_281, 7739)],
)
def test_pbmc_counts_are_whole_numbers(
    pbmc: mudata.MuData, mod: str, n_features: int, n_stored: int, total: int, largest: int
) -> None:
    x = pbmc[mod].X
    assert isinstance(x, sparse.csr_matrix | sparse.csr_array)
    assert x.dtype == np.float32
    assert x.shape == (1200, n_features)
    assert np.array_equal(x.data, np.rint(x.data))
    assert x.data.min() >= 1
    assert (x.nnz, int(x.sum(dtype=np.float64)), int(x.max())) == (n_stored, total, largest)
    assert not len(pbmc[mod].obs.columns)


def test_pbmc_is_new_at_every_call_and_leaves_no_option_behind(pbmc: mudata.MuData) -> None:
    pbmc["rna"].X.data[:] = 0
    pbmc.obs["donor"] = "me"
    again = un.datasets.pbmc_citeseq()
    assert again["rna"].X.max() == 3921
    assert set(again.obs["donor"]) == {"p1_0", "p2_0", "p3_0", "p4_0"}
    if hasattr(mudata, "set_options"):
        before = mudata.set_options(pull_on_update=None).opts
        assert before == {"pull_on_update": None}


def test_pbmc_says_where_it_comes_from(pbmc: mudata.MuData) -> None:
    assert set(pbmc.uns) == {"origin", "licence", "citation", "values", "design"}
    assert "GSE164378" in pbmc.uns["origin"]
    assert "10.1016/j.cell.2021.04.048" in pbmc.uns["citation"]
    folder = files("unitednet_mu.datasets") / "data"
    notice = (folder / "LICENSE-pbmc_citeseq.txt").read_text()
    assert "Permission is hereby granted, free of charge" in notice
    assert len((folder / "pbmc_citeseq.h5mu").read_bytes()) < 1_000_000


def _dense(x: object) -> np.ndarray:
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


def test_simulation_follows_its_seed(fingerprint) -> None:
    def simulate(seed: int):
        return un.datasets.simulate_multimodal(
            n_obs=50, missing=0.2, n_batches=2, values={"adt": "counts"}, random_state=seed
        )

    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert fingerprint(simulate(3)) == fingerprint(simulate(3))
    assert fingerprint(simulate(3)) != fingerprint(simulate(4))
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_simulated_markers_are_high_in_their_group() -> None:
    mdata = un.datasets.simulate_multimodal(n_obs=400, n_groups=4, random_state=0)
    groups = mdata.obs["cell_type"].to_numpy()
    for mod in mdata.mod:
        x = mdata[mod].X
        marker_of = mdata.uns["truth"]["marker_of"][mod]
        assert set(marker_of) == {"", "group0", "group1", "group2", "group3"}
        for j in np.flatnonzero(marker_of != ""):
            inside = groups == marker_of[j]
            assert x[inside, j].mean() - x[~inside, j].mean() == pytest.approx(2, abs=0.25)
        for j in np.flatnonzero((marker_of == "") & (mdata.uns["truth"]["link_of"][mod] == "")):
            means = [x[groups == g, j].mean() for g in set(groups)]
            assert np.ptp(means) < 0.4


def test_simulated_links_join_modalities_within_groups() -> None:
    mdata = un.datasets.simulate_multimodal(n_obs=500, n_links=3, random_state=0)
    truth = mdata.uns["truth"]
    rna, adt = mdata["rna"].X, mdata["adt"].X
    inside = (mdata.obs["cell_type"] == "group1").to_numpy()
    r = np.corrcoef(rna[inside].T, adt[inside].T)[:40, 40:]
    # signal 1.5, noise 0.5 on both sides
    expected = np.zeros((40, 20))
    for k in range(3):
        i = np.flatnonzero(truth["link_of"]["rna"] == f"link{k}")
        j = np.flatnonzero(truth["link_of"]["adt"] == f"link{k}")
        assert len(i) == len(j) == 1
        expected[i, j] = truth["link_sign"]["rna"][i] * truth["link_sign"]["adt"][j] * 0.9
    assert np.abs(r - expected).max() < 0.35
    assert np.abs(r - expected)[expected != 0].max() < 0.1


def test_simulated_batches_shift_features_and_not_groups() -> None:
    mdata = un.datasets.simulate_multimodal(n_obs=600, n_batches=2, batch_effect=3, random_state=0)
    second = (mdata.obs["batch"] == "batch1").to_numpy()
    assert second.sum() == 300
    x = mdata["rna"].X
    shift = x[second].mean(axis=0) - x[~second].mean(axis=0)
    assert np.median(np.abs(shift)) > 1
    table = pd.crosstab(mdata.obs["batch"], mdata.obs["cell_type"])
    assert table.to_numpy().min() > 50


def test_simulated_cells_lack_modalities() -> None:
    mdata = un.datasets.simulate_multimodal(
        n_obs=200, n_vars={"a": 10, "b": 10, "c": 10}, missing={"a": 0.5, "b": 0.75}, random_state=0
    )
    assert [mdata[mod].n_obs for mod in "abc"] == [100, 50, 200]
    assert sorted(mdata.obs_names) == sorted(f"cell{i}" for i in range(200))
    alone = un.datasets.simulate_multimodal(n_obs=200, missing=0.7, random_state=0)
    assert alone.n_obs == 200
    assert set(alone["rna"].obs_names) | set(alone["adt"].obs_names) == set(alone.obs_names)


def test_simulated_labels_belong_to_their_cells(mosaic: mudata.MuData) -> None:
    """Also where the cells of the modalities differ: markers of a cell's group are high in it."""
    for mod in mosaic.mod:
        labels = mosaic.obs.loc[mosaic[mod].obs_names, "cell_type"].to_numpy()
        marker_of = mosaic.uns["truth"]["marker_of"][mod]
        scores = {g: mosaic[mod].X[:, marker_of == g].mean(axis=1) for g in set(labels)}
        best = pd.DataFrame(scores).idxmax(axis=1).to_numpy()
        assert (best == labels).mean() > 0.95


def test_simulated_values_are_of_the_kind_asked_for() -> None:
    mdata = un.datasets.simulate_multimodal(
        n_obs=100, n_vars=dict.fromkeys("abc", 12), values={"b": "counts", "c": "binary"}
    )
    assert isinstance(mdata["a"].X, np.ndarray)
    for mod in "bc":
        x = mdata[mod].X
        assert sparse.issparse(x)
        assert np.array_equal(x.data, np.rint(x.data))
    assert mdata["b"].X.max() > 5
    assert set(np.unique(_dense(mdata["c"].X))) == {0.0, 1.0}
    assert all(mdata[mod].X.dtype == np.float32 for mod in mdata.mod)


def test_simulation_can_be_written_and_read(tmp_path, mosaic: mudata.MuData) -> None:
    mosaic.write(tmp_path / "x.h5mu")
    back = mudata.read_h5mu(tmp_path / "x.h5mu")
    for name, by_modality in mosaic.uns["truth"].items():
        for mod, values in by_modality.items():
            assert back.uns["truth"][name][mod].tolist() == values.tolist()
    assert list(back.obs_names) == list(mosaic.obs_names)
    assert back.obs["cell_type"].tolist() == mosaic.obs["cell_type"].tolist()
    assert np.array_equal(back["rna"].X, mosaic["rna"].X)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_groups": 0}, "found n_groups=0"),
        ({"n_obs": 2}, "n_obs: expected at least one cell"),
        ({"n_vars": {}}, "at least one modality"),
        ({"n_vars": {"rna": 5}}, r"n_links \+ n_groups = 7 features, found 5 for 'rna'"),
        ({"n_vars": {"a/b": 50}}, "without '/', found 'a/b'"),
        ({"values": "text"}, "'text' not found; available"),
        ({"values": {"atac": "counts"}}, "'atac' not found; available"),
        ({"missing": 1.0}, "expected fractions from 0 to below 1, found 1.0"),
        ({"noise": -1.0}, "noise: expected a number of 0 or more, found -1.0"),
        ({"batch_effect": float("nan")}, "batch_effect: expected"),
    ],
)
def test_simulation_refuses_impossible_settings(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        un.datasets.simulate_multimodal(**settings)


def test_bundled_file_is_the_one_that_was_checked() -> None:
    data = (files("unitednet_mu.datasets") / "data" / "pbmc_citeseq.h5mu").read_bytes()
    assert (
        hashlib.sha256(data).hexdigest()
        == "7468d2ba018c9de2380c6e0ba49064916a3d1db433b1f7f935aac2b051607ae7"
    )
