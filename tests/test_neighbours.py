"""Results in the hands of the packages around: scanpy, muon, shap, scib-metrics, h5py, zarr."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import matplotlib.pyplot as plt
import mudata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from mudata import MuData

import unitednet_mu as un
from unitednet_mu._compat import import_muon


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def _done(_trained: MuData) -> MuData:
    """A neighbourhood graph, a UMAP and clusters on the embedding, and all results of `tl`."""
    mdata = _trained.copy()
    un.tl.explain(mdata, per_cell=True, progress=False)
    un.tl.explain(mdata, source="rna", target="adt", progress=False)
    sc.pp.neighbors(mdata, use_rep="X_unitednet", random_state=0)
    sc.tl.umap(mdata, random_state=0, maxiter=20)
    un.tl.predict_modality(mdata, source="rna", target="adt")
    return mdata


@pytest.fixture
def done(_done: MuData) -> MuData:
    return _done.copy()


def muon_plots() -> Any:
    import_muon("atac")  # muon 0.1 warns when it is imported
    return sys.modules["muon"].pl


def drawn(axes: Any) -> np.ndarray:
    """Values that colour the points of a scatter plot."""
    return np.asarray(axes.collections[0].get_array())


def test_scanpy_finds_neighbours_layout_and_clusters(done: MuData) -> None:
    assert done.obsp["connectivities"].shape == (240, 240)
    assert np.isfinite(done.obsm["X_umap"]).all()
    sc.tl.leiden(done, resolution=0.5, flavor="igraph", n_iterations=2, directed=False)
    scores = un.metrics.clustering_scores(done.obs["cell_type"], done.obs["leiden"])
    assert scores["ari"] > 0.9
    rna = done["rna"]
    sc.pp.neighbors(rna, use_rep="X_unitednet")  # a modality's own code
    assert rna.obsp["distances"].shape == (240, 240)


def test_scanpy_reads_results_of_cells(done: MuData) -> None:
    table = sc.get.obs_df(done, ["unitednet_group", "unitednet_group_confidence"])
    assert table["unitednet_group"].equals(done.obs["unitednet_group"])
    assert table["unitednet_group_confidence"].between(0, 1).all()
    predicted = done["adt_from_rna"]
    values = sc.get.obs_df(predicted, ["adt_1"], gene_symbols="feature")
    assert values["adt_1"].tolist() == predicted[:, "adt_from_rna:adt_1"].X.ravel().tolist()


def test_a_map_is_coloured_by_groups(done: MuData) -> None:
    axes = sc.pl.embedding(done, "X_umap", color="unitednet_group", show=False)
    assert len(axes.collections[0].get_offsets()) == 240
    colours = list(done.uns["unitednet_group_colors"])
    assert len(colours) == 3  # which our own plots then use
    shares = un.pl.prediction(
        done, source="rna", target="adt", features="adt_1", groupby="unitednet_group"
    )
    used = {tuple(colour) for part in shares[0].collections for colour in part.get_facecolors()}
    assert {tuple(np.round(colour[:3], 3)) for colour in used} == {
        tuple(np.round(plt.matplotlib.colors.to_rgb(colour), 3)) for colour in colours
    }


def test_a_map_is_coloured_by_a_predicted_feature_by_its_plain_name(done: MuData) -> None:
    predicted = done["adt_from_rna"]
    axes = sc.pl.embedding(
        predicted, "X_umap", color="adt_1", gene_symbols="feature", sort_order=False, show=False
    )
    expected = predicted[:, "adt_from_rna:adt_1"].X.ravel()
    assert np.allclose(drawn(axes), expected)
    assert np.allclose(axes.collections[0].get_offsets(), done.obsm["X_umap"])


def test_a_map_is_coloured_by_a_measured_feature(done: MuData) -> None:
    """`mu.pl.embedding` knows features of all modalities; scanpy knows those of one."""
    expected = done["adt"][:, "adt_1"].X.ravel()
    axes = muon_plots().embedding(done, "X_umap", color="adt_1", sort_order=False, show=False)
    assert np.allclose(drawn(axes), expected)
    adt = done["adt"]
    adt.obsm["X_umap"] = done[adt.obs_names].obsm["X_umap"]
    axes = sc.pl.embedding(adt, "X_umap", color="adt_1", sort_order=False, show=False)
    assert np.allclose(drawn(axes), expected)


def test_muon_colours_by_results(done: MuData) -> None:
    axes = muon_plots().embedding(done, "X_umap", color="unitednet_group", show=False)
    assert len(axes.collections[0].get_offsets()) == 240


@pytest.mark.parametrize("plot", ["beeswarm", "bar", "heatmap", "waterfall"])
def test_shap_draws_the_explanation(done: MuData, plot: str) -> None:
    import shap

    explanation = un.get.relevance(done, group="group0", as_explanation=True)
    one = explanation[0] if plot == "waterfall" else explanation
    axes = getattr(shap.plots, plot)(one, show=False)
    assert axes.get_figure().get_axes()


def test_scib_metrics_score_the_embedding(done: MuData) -> None:
    benchmark = pytest.importorskip("scib_metrics", reason='the group "benchmark" is not there')
    score = benchmark.silhouette_label(done.obsm["X_unitednet"], done.obs["cell_type"].to_numpy())
    assert 0.5 < score <= 1


# ------------------------------------------------------------------ files


def test_files_of_both_formats_hold_all_results(
    done: MuData, tmp_path: Path, fingerprint: Any
) -> None:
    done.write(tmp_path / "x.h5mu")
    done.write_zarr(tmp_path / "x.zarr")
    for back in (mudata.read_h5mu(tmp_path / "x.h5mu"), mudata.read_zarr(tmp_path / "x.zarr")):
        assert np.array_equal(back.obsm["X_unitednet"], done.obsm["X_unitednet"])
        assert back.obs["unitednet_group"].tolist() == done.obs["unitednet_group"].tolist()
        for table in ("modality_effects", "modality_weights", "history", "relevance"):
            ours, theirs = (getattr(un.get, table)(one) for one in (done, back))
            pd.testing.assert_frame_equal(ours, theirs, check_dtype=False)
        un.tl.integrate(back, model=un.get.model(back), key_added="again")
        assert np.allclose(back.obsm["X_again"], done.obsm["X_unitednet"], atol=1e-6)


def text(values: Any) -> list[str]:
    """Names as they are stored; pandas 3's strings are a group of values and a mask."""
    values = values["values"] if isinstance(values, h5py.Group) else values
    return [one.decode() if isinstance(one, bytes) else str(one) for one in values[:]]


def test_results_can_be_read_by_the_plain_layout(done: MuData, tmp_path: Path) -> None:
    """By HDF5 alone, as R's packages do: groups, arrays, and attributes that name encodings."""
    done.write(tmp_path / "x.h5mu")
    with h5py.File(tmp_path / "x.h5mu") as file:
        embedding = file["obsm/X_unitednet"]
        assert embedding.attrs["encoding-type"] == "array"
        assert np.array_equal(embedding[:], done.obsm["X_unitednet"])
        column = file["obs/unitednet_group"]
        assert column.attrs["encoding-type"] == "categorical"
        names = np.array(text(column["categories"]))
        assert names[column["codes"][:]].tolist() == done.obs["unitednet_group"].tolist()
        results = file["uns/unitednet"]
        assert text(results["groups"]) == ["group0", "group1", "group2"]
        relevance = results["relevance/modalities/rna"]
        assert text(relevance["features"]) == done["rna"].var_names.tolist()
        assert relevance["signed"].shape == relevance["absolute"].shape == (40, 3)
        assert np.array_equal(file["mod/rna/varm/unitednet_relevance"][:], relevance["signed"][:])
        pairs = results["cross_relevance/adt_from_rna/signed/0"]
        assert pairs.attrs["encoding-type"] == "csr_matrix"
        assert tuple(pairs.attrs["shape"]) == (40, 20)
        assert {"data", "indices", "indptr"} <= set(pairs)
        for table in ("history", "modality_weights", "modality_effects"):
            assert results[table].attrs["encoding-type"] == "dataframe"
            columns = text(results[table].attrs["column-order"])
            assert all(np.isfinite(results[table][name][:]).any() for name in columns[-1:])
        predicted = file["mod/adt_from_rna"]
        assert predicted["X"].shape == (240, 20)
        assert text(predicted["var/feature"])[:2] == ["adt_0", "adt_1"]
        kinds: set[str] = set()

        def note(_: str, item: Any) -> None:
            kinds.add(item.attrs.get("encoding-type", "none given"))

        results.visititems(note)
    known = {"array", "csr_matrix", "dataframe", "dict", "numeric-scalar", "string"}
    assert kinds <= known | {
        "string-array",
        "nullable-string-array",
        "categorical",
        "none given",
    }, kinds


def test_the_places_that_the_guide_names_for_r_are_there(done: MuData, tmp_path: Path) -> None:
    guide = (Path(__file__).parent.parent / "docs" / "guide.md").read_text("utf-8")
    (block,) = re.findall(r"```r\n(.*?)```", guide, re.DOTALL)
    places = re.findall(r'h5read\(file, "([^"]+)"\)', block)
    assert len(places) == block.count("h5read(") > 5
    done.write(tmp_path / "x.h5mu")
    with h5py.File(tmp_path / "x.h5mu") as file:
        # cells x groups in R after t(), as rhdf5 gives dimensions in reverse
        shapes = {place: text_or_shape(file[place]) for place in places}
    assert shapes["obsm/X_unitednet"] == done.obsm["X_unitednet"].shape
    assert shapes["mod/adt_from_rna/X"] == done["adt_from_rna"].shape
    assert shapes["obs/_index"] == done.obs_names.tolist()
    prefix = "uns/unitednet/relevance"
    rows, columns = f"{prefix}/modalities/rna/features", f"{prefix}/groups"
    assert shapes[f"{prefix}/modalities/rna/signed"] == (len(shapes[rows]), len(shapes[columns]))


def text_or_shape(item: Any) -> Any:
    """Names, or the shape of numbers."""
    numbers = isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf"
    return item.shape if numbers else text(item)
