"""What is written beside the numbers: settings, levels, versions; by value."""

from __future__ import annotations

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
from unitednet_mu import _results
from unitednet_mu._keys import DEFAULT_STEM, Keys
from unitednet_mu._results import call_groups


def test_what_was_read_is_written_down(paired: MuData, quick: dict[str, Any]) -> None:
    paired["rna"].layers["own"] = paired["rna"].X * 2
    paired["adt"].obsm["X_two"] = np.asarray(paired["adt"].X)[:, :2].copy()
    paired.obs["plate"] = pd.Categorical(np.arange(len(paired)) % 2)
    settings = {"layer": {"rna": "own"}, "use_rep": {"adt": "X_two"}, "batch_key": "plate"}
    un.tl.fit(paired, labels_key="cell_type", random_state=3, **settings, **quick)
    stored = paired.uns["unitednet"]
    data = stored["params"]["data"]
    assert data["modalities"].tolist() == ["rna", "adt"]
    assert data["layer"].tolist() == ["own", ""]
    assert data["use_rep"].tolist() == ["", "X_two"]
    assert data["likelihood"].tolist() == ["gaussian", "gaussian"]
    assert (data["labels_key"], data["batch_key"], data["random_state"]) == (
        "cell_type",
        "plate",
        3,
    )
    assert stored["version"] == un.__version__
    assert stored["params"]["ended"] == "finished"
    assert stored["groups"].tolist() == sorted(paired.obs["cell_type"].unique())
    un.tl.explain(paired, n_cells=2, n_background=2, progress=False)
    assert "unitednet_relevance" in paired["rna"].varm
    assert not len(paired["adt"].varm)  # its features are no variables
    weights = stored["modality_weights"]
    assert list(weights.index) == ["rna", "adt"] and weights["weight"].sum() == pytest.approx(1)


def test_what_was_not_given_is_empty(paired: MuData, quick: dict[str, Any]) -> None:
    un.tl.fit(paired, n_groups=2, **quick)
    data = paired.uns["unitednet"]["params"]["data"]
    assert data["layer"].tolist() == data["use_rep"].tolist() == ["", ""]
    assert (data["labels_key"], data["batch_key"]) == ("", "")


def test_settings_as_uns_holds_them() -> None:
    class Config:
        def to_dict(self) -> dict[str, Any]:
            return {"a": None, "b": [1, 2], "c": 0, "d": False}

    plain = _results._plain(Config())
    assert plain["a"] == "auto" and plain["c"] == 0 and plain["d"] is False
    assert isinstance(plain["b"], np.ndarray) and plain["b"].tolist() == [1, 2]


@pytest.mark.parametrize("names", [["T", "B", "NK"], ["T", "unknown", "NK"]])
def test_groups_and_confidence(names: list[str]) -> None:
    p = np.array([[0.2, 0.7, 0.1], [np.nan] * 3, [0.5, 0.3, 0.2], [0.1, 0.3, 0.6]], np.float32)
    group, confidence = call_groups(p, np.array(names))
    assert group.codes.tolist() == [1, -1, 0, 2]
    assert list(group.categories) == names
    assert confidence.dtype == np.float32
    np.testing.assert_allclose(confidence, [0.7, np.nan, 0.5, 0.6])
    unknown = np.array([False, True, True, False])
    group, confidence = call_groups(p, np.array(names), unknown)
    assert list(group.astype(object)) == [names[1], np.nan, "unknown", "NK"]
    assert list(group.categories) == (names if "unknown" in names else [*names, "unknown"])
    np.testing.assert_allclose(confidence, [0.7, np.nan, 0.5, 0.6])


def test_embeddings_go_with_a_prediction_and_cubes_do_not(fitted: MuData) -> None:
    n = len(fitted)
    fitted.obsm["X_flat"], fitted.obsm["cube"] = (
        np.arange(2.0 * n).reshape(n, 2),
        np.ones((n, 2, 2)),
    )
    un.tl.predict_modality(fitted, source="rna", target="adt")
    predicted = fitted["adt_from_rna"]
    assert "cube" not in predicted.obsm and "rna" not in predicted.obsm
    np.testing.assert_array_equal(predicted.obsm["X_flat"], fitted.obsm["X_flat"])


def test_what_another_model_left_is_dropped(
    fitted: MuData, paired: MuData, quick: dict[str, Any]
) -> None:
    """Relevance is of the model it was computed with, and goes with it."""
    query = fitted.copy()
    un.tl.explain(query, n_cells=2, n_background=2, progress=False)
    un.tl.transfer_labels(query, fitted, adapt=False, progress=False)
    assert {"relevance", "params", "labels"} <= set(query.uns["unitednet"])
    un.tl.fit(paired, labels_key="cell_type", random_state=1, **quick)
    un.tl.transfer_labels(query, paired, adapt=False, progress=False)
    stored = query.uns["unitednet"]
    assert not {"relevance", "params"} & set(stored)
    assert stored["model"]["sha256"] == paired.uns["unitednet"]["model"]["sha256"]


def test_what_named_groups_of_the_model_before_is_dropped(
    fitted: MuData, quick: dict[str, Any]
) -> None:
    """Groups found anew have the old ones' names, in another order."""
    un.tl.integrate(fitted)
    un.tl.explain(fitted, n_cells=2, n_background=2, progress=False)
    named = {"unitednet_group", "unitednet_group_confidence"}
    assert named <= set(fitted.obs) and "unitednet_relevance_abs" in fitted["rna"].varm
    embedding = fitted.obsm["X_unitednet"].copy()
    un.tl.fit(fitted, n_groups=3, **quick)
    assert not named & set(fitted.obs)
    assert "unitednet_probabilities" not in fitted.obsm
    assert not len(fitted["rna"].varm) and not len(fitted["adt"].varm)
    np.testing.assert_array_equal(fitted.obsm["X_unitednet"], embedding)
    with pytest.raises(ValueError, match="'unitednet_group' not found"):
        un.tl.explain(fitted, groupby="unitednet_group", progress=False)


def test_relevance_beside_features_is_of_the_last_model(
    fitted: MuData, quick: dict[str, Any]
) -> None:
    other = fitted.copy()
    other["rna"].obsm["X_two"] = np.asarray(other["rna"].X)[:, :2].copy()
    un.tl.fit(other, labels_key="cell_type", use_rep={"rna": "X_two"}, **quick)
    un.tl.explain(fitted, n_cells=2, n_background=2, progress=False)
    fitted["rna"].obsm["X_two"] = other["rna"].obsm["X_two"]
    model = un.get.model(other)
    un.tl.explain(fitted, model=model, n_cells=2, n_background=2, progress=False)
    assert not len(fitted["rna"].varm) and len(fitted["adt"].varm) == 2


def test_probabilities_of_another_models_groups_are_dropped(
    fitted: MuData, quick: dict[str, Any]
) -> None:
    query, other = fitted.copy(), fitted.copy()
    other.obs["turned"] = other.obs["cell_type"].astype(str).str.replace("group", "z")
    un.tl.fit(other, labels_key="turned", **quick)
    un.tl.transfer_labels(query, fitted, adapt=False, progress=False)
    with pytest.warns(UserWarning, match="another model than the one given is stored"):
        un.tl.integrate(query, model=un.get.model(other))
    assert list(un.get.probabilities(query).columns) == ["z0", "z1", "z2"]
    un.tl.transfer_labels(query, fitted, adapt=False, progress=False)
    assert "unitednet_probabilities" not in query.obsm
    assert "unitednet_group" not in query.obs and "unitednet_label" in query.obs
    assert query.uns["unitednet"]["groups"].tolist() == ["group0", "group1", "group2"]


def test_a_model_is_known_by_its_checksum(fitted: MuData) -> None:
    keys = Keys(DEFAULT_STEM)
    for stored in ("a", "b", "c"):
        fitted.uns["unitednet"] = {"model": {"sha256": stored}}
        found = [_results._is_stored(fitted, keys, {"sha256": one}) for one in ("a", "b", "c")]
        assert found == [stored == one for one in ("a", "b", "c")]
    del fitted.uns["unitednet"]
    assert not _results._is_stored(fitted, keys, {"sha256": "a"})


def test_relevance_follows_the_names_of_variables() -> None:
    adata = AnnData(np.zeros((1, 4), np.float32), var=pd.DataFrame(index=["c", "x", "a", "b"]))
    values = np.array([[1.0, 2], [3, 4], [5, 6]])
    found = _results._by_variable(adata, ["a", "b", "c"], values)
    np.testing.assert_array_equal(found, [[5, 6], [np.nan, np.nan], [1, 2], [3, 4]])
    assert found.dtype == np.float32


def test_relevance_between_modalities_is_sparse_and_empty_without_cells() -> None:
    nothing, some = np.full((2, 2), np.nan), sparse.csr_matrix(np.array([[0, 2.0], [0, 0]]))
    found = _results._by_group([nothing, some])
    assert list(found) == ["0", "1"]
    assert [matrix.nnz for matrix in found.values()] == [0, 1] and found["1"][0, 1] == 2
    assert all(matrix.format == "csr" and matrix.dtype == np.float32 for matrix in found.values())


def of_all_cells(mdata: MuData) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Give a MuData what mudata's own update turns into other types; copies of ``.obs`` and it."""
    n, names = mdata.n_obs, mdata.obs_names
    mdata.obsm["pixels"] = np.arange(2 * n).reshape(n, 2)
    mdata.obsm["table"] = pd.DataFrame({"i": np.arange(n), "b": np.arange(n) % 2 == 0}, index=names)
    mdata.obsm["sparse"] = sparse.csr_matrix(np.eye(n, 3, dtype=np.int64))
    mdata.obs["whole"] = np.arange(n, dtype=np.float64)
    return mdata.obs.copy(), {key: mdata.obsm[key].copy() for key in ("pixels", "table", "sparse")}


@pytest.mark.parametrize("mosaic", [False, True])
def test_what_belongs_to_all_cells_stays_as_it_is(
    mosaic: bool, fitted: MuData, fitted_mosaic: MuData, tmp_path: Path
) -> None:
    mdata = fitted_mosaic if mosaic else fitted
    del mdata.obsm
    obs, obsm = of_all_cells(mdata)

    def assert_as_given(found: MuData, rows: np.ndarray) -> None:
        assert found.obs_names.equals(obs.index[rows])
        for column in ("whole", "cell_type"):
            pd.testing.assert_series_equal(found.obs[column], obs[column].iloc[rows])
        for key in ("pixels", "sparse"):
            assert found.obsm[key].dtype == np.int64
            assert not (found.obsm[key] != obsm[key][rows]).sum()
        table = pd.DataFrame(found.obsm["table"])  # of a view, too
        pd.testing.assert_frame_equal(table, obsm["table"].iloc[rows])

    model, every = un.get.model(mdata), np.arange(mdata.n_obs)
    where: dict[str, Any] = {"source": "rna", "target": "adt", "model": model}
    copy = un.tl.predict_modality(mdata, copy=True, **where)
    part = mdata[every[::-2]]
    un.tl.predict_modality(part, **where)
    un.tl.predict_modality(mdata, **where)
    assert copy is not None
    for found, rows in ((mdata, every), (copy, every), (part, every[::-2])):
        assert "adt_from_rna" in found.mod
        assert_as_given(found, rows)
        found.write(tmp_path / "found.h5mu")
    copy.obsm["pixels"][:] = 0  # nothing is shared
    assert_as_given(mdata, every)


def test_a_prediction_is_never_trained_on_though_its_mark_is_lost(
    fitted: MuData, quick: dict[str, Any]
) -> None:
    """Which happens in `mudata.concat`."""
    rows = np.arange(fitted.n_obs)
    parts = [fitted[rows < 40].copy(), fitted[rows >= 40].copy()]
    for part in parts:
        un.tl.predict_modality(part, source="rna", target="adt", model=un.get.model(fitted))
    both = md.concat(parts)
    assert not both["adt_from_rna"].uns
    un.tl.fit(both, labels_key="cell_type", **quick)
    assert un.get.model(both).modality_names == ["adt", "rna"]
    un.tl.predict_modality(both, source="rna", target="adt")
    assert both["adt_from_rna"].uns


def test_a_stem_of_ones_own_can_be_used_again_where_cells_were_joined(fitted: MuData) -> None:
    model, rows = un.get.model(fitted), np.arange(fitted.n_obs)
    parts = [fitted[rows < 40].copy(), fitted[rows >= 40].copy()]
    for part in parts:
        un.tl.integrate(part, model=model, key_added="mine")
    both = md.concat(parts)
    assert "mine" not in both.uns and "mine_group" in both.obs
    un.tl.integrate(both, model=model, key_added="mine")
    assert "mine" in both.uns


def test_a_prediction_that_was_dropped_can_be_made_again(fitted: MuData) -> None:
    un.tl.predict_modality(fitted, source="rna", target="adt")
    del fitted.mod["adt_from_rna"]
    assert fitted.obsm["adt_from_rna"].dtype == bool
    un.tl.predict_modality(fitted, source="rna", target="adt")
    assert "adt_from_rna" in fitted.mod
    del fitted.mod["adt_from_rna"]
    fitted.obsm["adt_from_rna"] = np.zeros((fitted.n_obs, 2))
    with pytest.raises(ValueError, match="would overwrite"):
        un.tl.predict_modality(fitted, source="rna", target="adt")


def test_cells_that_the_mudata_does_not_know(fitted: MuData, fingerprint: Any) -> None:
    other = fitted["rna"].copy()
    other.obs_names = [*other.obs_names[:-2], "new0", "new1"]
    fitted.mod["rna"] = other
    before = fingerprint(fitted)
    with pytest.raises(ValueError, match=r"'rna': 2 of its \d+ cells .* Call mdata.update\(\)"):
        un.tl.integrate(fitted)
    assert fingerprint(fitted) == before


def test_labels_that_would_be_written_over_are_refused(
    fitted: MuData, quick: dict[str, Any]
) -> None:
    un.tl.integrate(fitted)
    with pytest.raises(ValueError, match="unitednet_group' is a column that tl\\.integrate over"):
        un.tl.fit(fitted, labels_key="unitednet_group", **quick)
    un.tl.fit(fitted, labels_key="unitednet_group", key_added="other", **quick)
    assert "other" in fitted.uns


@pytest.mark.parametrize("named", ["mdata", "modalities"])
def test_cell_names_that_have_a_name_themselves(named: str, fitted: MuData, tmp_path: Path) -> None:
    """As tables read with ``index_col`` have, which mudata cannot join with others."""
    for thing in [fitted] if named == "mdata" else fitted.mod.values():
        thing.obs = thing.obs.rename_axis("barcode")
    fitted.obsm["spatial"] = np.random.default_rng(0).random((fitted.n_obs, 2))
    fitted.write_zarr(tmp_path / "cells.zarr")
    model = un.get.model(fitted)
    where: dict[str, Any] = {"source": "rna", "target": "adt", "model": model}
    part, stored = fitted[:30], un.datasets.open_zarr(path=tmp_path / "cells.zarr")
    found = [un.tl.predict_modality(fitted, copy=True, **where), part, stored, fitted]
    for mdata in found[1:]:
        un.tl.predict_modality(mdata, **where)
    un.pp.niche(fitted, n_neighbors=3)
    for mdata in found:
        assert mdata is not None
        assert mdata.obs.index.name == ("barcode" if named == "mdata" else None)
        assert mdata.obs["cell_type"].notna().all()
        assert mdata["adt_from_rna"].n_obs == mdata.n_obs
