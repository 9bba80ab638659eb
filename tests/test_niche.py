"""The spatial niche, against its formula spot by spot, and what cannot have one."""

from __future__ import annotations

import logging
from typing import Any

import mudata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData
from scipy import sparse

import unitednet_mu as un
from unitednet_mu._validate import derived_from
from unitednet_mu.pp import _niche

FORMS = {
    "csr_matrix": sparse.csr_matrix,
    "csc_matrix": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
    "dense": np.asarray,
}
MARK = "unitednet_derived"


def dense(x: Any) -> np.ndarray:
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


def spatial(values: Any, positions: np.ndarray, **obs: Any) -> MuData:
    """MuData with one modality, positions in its `.obsm`, columns in its `.obs`."""
    cells = [f"spot{i}" for i in range(len(positions))]
    genes = [f"gene{j}" for j in range(values.shape[1])]
    adata = AnnData(values, obs=pd.DataFrame(obs, index=cells), var=pd.DataFrame(index=genes))
    adata.obsm["spatial"] = positions
    return MuData({"rna": adata})


def lattice(n: int) -> np.ndarray:
    return np.indices((n, n)).reshape(2, n * n).T.astype(float)


def by_formula(values: np.ndarray, positions: np.ndarray, k: int) -> np.ndarray:
    """Mean of the `k` nearest others by inverse distance, where no two distances are equal."""
    result = np.empty(values.shape)
    for i, here in enumerate(positions):
        apart = np.sqrt(((positions - here) ** 2).sum(1))
        others = np.argsort(apart)
        others = others[others != i][:k]
        weights = 1 / apart[others]
        result[i] = weights @ values[others] / weights.sum()
    return result


@pytest.fixture
def values(rng: np.random.Generator) -> np.ndarray:
    """Prepared expression, two in three values zero."""
    return np.where(rng.random((60, 12)) < 0.3, rng.gamma(2.0, 1.0, (60, 12)), 0.0)


@pytest.fixture
def scattered(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0, 100, (60, 2))


# ------------------------------------------------------------------ values


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", FORMS)
def test_weighted_mean_of_the_neighbours(
    values: np.ndarray, scattered: np.ndarray, form: str, dtype: str
) -> None:
    stored = FORMS[form](values.astype(dtype))
    mdata = spatial(stored, scattered)
    assert un.pp.niche(mdata, n_neighbors=4) is None
    made = mdata["niche"]
    assert made.X.dtype == np.float32
    np.testing.assert_allclose(dense(made.X), by_formula(values, scattered, 4), atol=1e-5)
    assert list(made.obs_names) == list(mdata["rna"].obs_names)
    assert list(made.var_names) == [f"niche:gene{j}" for j in range(12)]
    assert list(made.var["feature"]) == list(mdata["rna"].var_names)
    assert mdata.var_names.is_unique
    assert mdata.shape == (60, 24)
    np.testing.assert_array_equal(made.obsm["spatial"], scattered)
    np.testing.assert_array_equal(dense(mdata["rna"].X), values.astype(dtype))


def test_the_spot_itself_is_left_out(values: np.ndarray, scattered: np.ndarray) -> None:
    """Changing one spot's values changes every niche but its own."""
    changed = values.copy()
    changed[7] += 5
    first, second = spatial(values, scattered), spatial(changed, scattered)
    un.pp.niche(first)
    un.pp.niche(second)
    differ = np.flatnonzero((first["niche"].X != second["niche"].X).any(1))
    assert 7 not in differ
    assert len(differ)


def test_three_dimensions_and_a_layer(values: np.ndarray, rng: np.random.Generator) -> None:
    positions = rng.uniform(0, 10, (60, 3)).astype(np.float32)
    mdata = spatial(np.zeros_like(values), positions)
    mdata["rna"].layers["lognorm"] = sparse.csr_matrix(values)
    un.pp.niche(mdata, layer="lognorm", n_neighbors=5, key_added="around")
    expected = by_formula(values, positions.astype(float), 5)
    np.testing.assert_allclose(dense(mdata["around"].X), expected, atol=1e-5)
    assert mdata["around"].uns[MARK]["layer"] == "lognorm"
    assert mdata["around"].var_names[0] == "around:gene0"


def test_all_as_near_as_the_last_count(rng: np.random.Generator) -> None:
    """On a lattice no neighbour is taken before another of the same distance."""
    positions = lattice(5) * np.float32(0.1)
    values = rng.random((25, 3))
    mdata = spatial(values, positions)
    un.pp.niche(mdata, n_neighbors=6)
    middle = 12
    straight, diagonal = [7, 11, 13, 17], [6, 8, 16, 18]
    weights = np.repeat([1.0, 1 / np.sqrt(2)], 4)
    expected = weights @ values[straight + diagonal] / weights.sum()
    np.testing.assert_allclose(mdata["niche"].X[middle], expected, rtol=1e-4)


def test_the_order_and_unit_change_nothing(rng: np.random.Generator) -> None:
    positions, values = lattice(9), rng.random((81, 4))
    order = rng.permutation(81)
    mdata, shuffled = spatial(values, positions), spatial(values[order], positions[order] * 1e9)
    un.pp.niche(mdata, n_neighbors=3)
    un.pp.niche(shuffled, n_neighbors=3)
    np.testing.assert_allclose(mdata["niche"].X[order], shuffled["niche"].X, rtol=1e-5)


def test_a_spot_in_the_same_place_weighs_as_the_nearest_other() -> None:
    positions = np.array([[0.0, 0], [0, 0], [2, 0], [0, 4], [90, 90], [90, 90], [90, 90]])
    values = np.eye(7)
    mdata = spatial(values, positions)
    with pytest.warns(UserWarning, match="5 of 7 spots lie exactly where another one does"):
        un.pp.niche(mdata, n_neighbors=3)
    np.testing.assert_allclose(mdata["niche"].X[0], [0, 0.4, 0.4, 0.2, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(mdata["niche"].X[1], [0.4, 0, 0.4, 0.2, 0, 0, 0], atol=1e-6)
    with pytest.warns(UserWarning, match="5 of 7"):
        un.pp.niche(mdata, n_neighbors=2)
    np.testing.assert_allclose(mdata["niche"].X[4], [0, 0, 0, 0, 0, 0.5, 0.5], atol=1e-6)


def test_sparse_unless_dense_is_smaller(rng: np.random.Generator) -> None:
    positions = rng.uniform(0, 1, (3000, 2))
    few = sparse.random_array((3000, 40), density=0.02, format="csr", rng=rng)
    many = sparse.random_array((3000, 40), density=0.4, format="csr", rng=rng)
    for values, kind in ((few, sparse.csr_array), (many, np.ndarray)):
        mdata = spatial(values, positions)
        un.pp.niche(mdata, n_neighbors=5)
        assert isinstance(mdata["niche"].X, kind)
        part = np.arange(0, 3000, 300)
        expected = by_formula(values.toarray(), positions, 5)[part]
        np.testing.assert_allclose(dense(mdata["niche"].X[part]), expected, atol=1e-5)


def test_dense_blocks_meet(
    values: np.ndarray, scattered: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_niche, "_BLOCK_ROWS", 7)
    mdata = spatial(sparse.csr_matrix(values + 0.1), scattered)
    un.pp.niche(mdata, n_neighbors=4)
    assert isinstance(mdata["niche"].X, np.ndarray)
    expected = by_formula(values + 0.1, scattered, 4)
    np.testing.assert_allclose(mdata["niche"].X, expected, atol=1e-5)


# ------------------------------------------------------------------ slices, missing positions


def test_slices_do_not_meet(values: np.ndarray, scattered: np.ndarray) -> None:
    """Each slice as if it were alone, though all have the same coordinates."""
    positions = np.tile(scattered[:20], (3, 1))
    library = np.array([1, 2, 3]).repeat(20)[np.random.default_rng(1).permutation(60)]
    for number in (1, 2, 3):
        positions[library == number] = scattered[:20]
    mdata = spatial(values, positions, library=library)
    un.pp.niche(mdata, n_neighbors=4, library_key="library")
    for number in (1, 2, 3):
        alone = np.flatnonzero(library == number)
        expected = by_formula(values[alone], scattered[:20], 4)
        np.testing.assert_allclose(mdata["niche"].X[alone], expected, atol=1e-5)
    mdata.obs["slice"] = pd.Categorical.from_codes(library - 1, ["a", "b", "c"])
    again = un.pp.niche(mdata, n_neighbors=4, library_key="slice", copy=True)
    np.testing.assert_array_equal(again["niche"].X, mdata["niche"].X)
    with pytest.warns(UserWarning, match="60 of 60 spots lie exactly where another one does"):
        mixed = un.pp.niche(mdata, n_neighbors=4, copy=True)
    assert np.abs(mixed["niche"].X - mdata["niche"].X).max() > 0.1
    assert again["niche"].uns[MARK]["library_key"] == "slice"


def test_small_slices(
    values: np.ndarray, scattered: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    """All others are neighbours in a slice of few spots; a spot alone in its slice has no niche."""
    library = np.array(["a"] * 55 + ["b"] * 4 + ["c"])
    mdata = spatial(values, scattered, library=library)
    with caplog.at_level(logging.WARNING, logger="unitednet_mu"):
        un.pp.niche(mdata, n_neighbors=4, library_key="library")
    assert "2 slices hold no more than n_neighbors=4 spots" in caplog.text
    assert "modality 'rna': 1 of 60 cells have no position or no neighbour" in caplog.text
    assert list(mdata["niche"].obs_names) == [f"spot{i}" for i in range(59)]
    expected = by_formula(values[55:59], scattered[55:59], 3)
    np.testing.assert_allclose(mdata["niche"].X[55:], expected, atol=1e-5)
    assert mdata.n_obs == 60


def test_cells_without_a_position(
    values: np.ndarray, scattered: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    """They have no niche, are nobody's neighbour, and need no slice."""
    has = np.arange(60) % 5 != 2
    positions = np.where(has[:, None], scattered, np.nan)
    library = np.where(has, "a", None)
    mdata = spatial(values, positions, library=library)
    with caplog.at_level(logging.WARNING, logger="unitednet_mu"):
        un.pp.niche(mdata, n_neighbors=4, library_key="library")
    assert "12 of 60 cells have no position or no neighbour; 'niche' leaves them" in caplog.text
    assert list(mdata["niche"].obs_names) == list(mdata.obs_names[has])
    expected = by_formula(values[has], scattered[has], 4)
    np.testing.assert_allclose(mdata["niche"].X, expected, atol=1e-5)


def test_positions_of_the_mudata(
    values: np.ndarray, scattered: np.ndarray, rng: np.random.Generator
) -> None:
    """Found by cell name where a modality lacks cells or has another order; its own come first."""
    mdata = spatial(values, scattered)
    rna = mdata["rna"][rng.permutation(60)[:40]].copy()
    own = rna.obsm["spatial"]
    del rna.obsm["spatial"]
    both = MuData({"adt": AnnData(values, obs=mdata["rna"].obs), "rna": rna})
    both.obsm["spatial"] = pd.DataFrame(scattered, index=mdata.obs_names, columns=["x", "y"]).loc[
        both.obs_names
    ]
    un.pp.niche(both, n_neighbors=4)
    expected = by_formula(rna.X, own, 4)
    np.testing.assert_allclose(both["niche"].X, expected, atol=1e-5)
    assert list(both["niche"].obs_names) == list(rna.obs_names)
    rna.obsm["spatial"] = own[::-1].copy()
    un.pp.niche(both, n_neighbors=4)
    assert np.abs(both["niche"].X - expected).max() > 0.1


# ------------------------------------------------------------------ a stored graph


def graph_of(positions: np.ndarray, k: int) -> sparse.csr_matrix:
    """Distances to the nearest ones as squidpy stores them: CSR, a row a spot, no diagonal."""
    apart = np.sqrt(((positions[:, None] - positions[None]) ** 2).sum(2))
    rank = apart.argsort(1).argsort(1)
    return sparse.csr_matrix(np.where((rank > 0) & (rank <= k), apart, 0))


def test_a_stored_graph(values: np.ndarray, scattered: np.ndarray) -> None:
    mdata = spatial(values, scattered)
    mdata["rna"].obsp["spatial_distances"] = graph_of(scattered, 4)
    del mdata["rna"].obsm["spatial"]
    un.pp.niche(mdata, use_graph="spatial_distances")
    np.testing.assert_allclose(mdata["niche"].X, by_formula(values, scattered, 4), atol=1e-5)
    assert list(mdata["niche"].obsm) == []
    mark = mdata["niche"].uns[MARK]
    assert (mark["use_graph"], mark["spatial_key"], mark["n_neighbors"]) == (
        "spatial_distances",
        "",
        0,
    )


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_array])
def test_rings_isolated_spots_and_the_diagonal(make: Any) -> None:
    """Rings count as distances; an edge of a spot to itself does not; no edge, no niche."""
    rows, columns = [0, 0, 0, 1, 1, 2], [0, 1, 2, 0, 1, 3]
    distances = [5.0, 1.0, 2.0, 1.0, 1.0, 0.0]  # the last: a stored 0, the very same place
    graph = sparse.coo_matrix((distances, (rows, columns)), (5, 5))
    mdata = spatial(np.eye(5), np.zeros((5, 2)))
    mdata["rna"].obsp["d"] = make(graph)
    un.pp.niche(mdata, use_graph="d")
    assert list(mdata["niche"].obs_names) == ["spot0", "spot1", "spot2"]
    expected = [[0, 2 / 3, 1 / 3, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 1, 0]]
    np.testing.assert_allclose(mdata["niche"].X, expected, atol=1e-6)


def test_a_graph_across_slices_is_refused(values: np.ndarray, scattered: np.ndarray) -> None:
    library = np.array(["a", "b"]).repeat(30)
    mdata = spatial(values, scattered, library=library)
    graph = sparse.block_diag([graph_of(scattered[:30], 4), graph_of(scattered[30:], 4)], "csr")
    mdata["rna"].obsp["within"] = graph
    across = graph.tolil()
    across[3, 40] = 2.0
    mdata["rna"].obsp["across"] = across.tocsr()
    un.pp.niche(mdata, use_graph="within", library_key="library")
    expected = by_formula(values[30:], scattered[30:], 4)
    np.testing.assert_allclose(mdata["niche"].X[30:], expected, atol=1e-5)
    message = "found 1 pairs in different ones, the first 'spot3' and 'spot40'. Compute the graph"
    with pytest.raises(ValueError, match=message):
        un.pp.niche(mdata, use_graph="across", library_key="library")


# ------------------------------------------------------------------ the modality in use


@pytest.fixture
def tissue(paired: MuData) -> MuData:
    """The cells of `paired`, each group in a region of its own."""
    rng = np.random.default_rng(2)
    number = paired.obs["cell_type"].cat.codes.to_numpy()
    paired.obsm["spatial"] = rng.normal(0, 1, (120, 2)) + 10 * np.column_stack([number, number % 2])
    return paired


def test_it_is_trained_on(tissue: MuData, quick: dict[str, Any]) -> None:
    un.pp.niche(tissue)
    un.tl.fit(tissue, labels_key="cell_type", **quick)
    assert list(un.get.modality_weights(tissue).index) == ["rna", "adt", "niche"]
    un.tl.integrate(tissue)
    assert tissue["niche"].obsm["X_unitednet"].shape == (120, 8)
    un.tl.predict_modality(tissue, source="niche", target="rna")
    assert tissue["rna_from_niche"].shape == (120, 40)
    un.tl.explain(tissue, n_cells=3, n_background=3, progress=False)
    table = un.get.relevance(tissue, modality="niche")
    assert set(table["feature"]) == set(tissue["niche"].var_names)


def test_it_says_where_it_came_from(tissue: MuData, tmp_path: Any) -> None:
    un.pp.niche(tissue, mod="adt", n_neighbors=3)
    expected = {
        "function": "pp.niche",
        "layer": "",
        "spatial_key": "spatial",
        "n_neighbors": 3,
        "library_key": "",
        "use_graph": "",
    }
    tissue.write(tmp_path / "x.h5mu")
    back = mudata.read_h5mu(tmp_path / "x.h5mu")
    np.testing.assert_array_equal(back["niche"].X, tissue["niche"].X)
    for found in (tissue, back):
        mark = dict(found["niche"].uns[MARK])
        assert [str(name) for name in mark.pop("source")] == ["adt"]
        assert mark == expected
        un.pp.niche(found, n_neighbors=2)  # known as ours, in a file too
        assert found["niche"].uns[MARK]["source"].tolist() == ["rna"]


def test_anew_with_other_cells(tissue: MuData) -> None:
    """The old niche is replaced, whichever cells and features it had."""
    tissue.obsm["other"] = tissue.obsm["spatial"].copy()
    tissue.obsm["other"][:50] = np.nan
    expected = un.pp.niche(tissue, copy=True)
    un.pp.niche(tissue, mod="adt", spatial_key="other")
    assert tissue["niche"].shape == (70, 20)
    assert tissue.n_vars == 80
    un.pp.niche(tissue)
    assert tissue["niche"].shape == (120, 40)
    assert list(tissue.var_names) == list(expected.var_names)
    np.testing.assert_array_equal(tissue["niche"].X, expected["niche"].X)
    assert tissue[:7].copy().shape == (7, 100)


def test_slices_that_were_joined(tissue: MuData) -> None:
    """Joining drops what `.uns` says of the niche; the names of its features tell it, too."""
    un.pp.niche(tissue)
    assert derived_from(tissue.mod, "niche") == ["rna"] and not derived_from(tissue.mod, "rna")
    halves = [tissue[:60].copy(), tissue[60:].copy()]
    both = mudata.concat(halves)
    assert derived_from(both.mod, "niche") == ["rna"]
    both.obsm["spatial"] = tissue.obsm["spatial"]
    un.pp.niche(both)
    np.testing.assert_allclose(both["niche"].X, tissue["niche"].X, atol=1e-5)


def test_in_place_of_a_dropped_modality(tissue: MuData) -> None:
    """Mudata keeps a note of which cells had it."""
    expected = un.pp.niche(tissue, key_added="other", copy=True)["other"].X
    del tissue.mod["adt"]
    un.pp.niche(tissue, key_added="adt")
    np.testing.assert_array_equal(tissue["adt"].X, expected)
    assert tissue.shape == (120, 80)


def test_positions_in_pixels(tissue: MuData, quick: dict[str, Any]) -> None:
    """Integers in `.obsm` stay integers, whatever is added."""
    pixels = (tissue.obsm["spatial"] * 1000).astype(np.int64)
    tissue.obsm["spatial"] = pixels
    tissue.obsp["pairs"] = sparse.eye_array(120, format="csr")
    un.pp.niche(tissue)
    un.tl.fit(tissue, labels_key="cell_type", **quick)
    un.tl.predict_modality(tissue, source="niche", target="rna")
    assert tissue.obsm["spatial"].dtype == np.int64
    np.testing.assert_array_equal(tissue.obsm["spatial"], pixels)
    np.testing.assert_array_equal(tissue["niche"].obsm["spatial"], pixels)
    np.testing.assert_array_equal(tissue["rna_from_niche"].obsm["spatial"], pixels)
    np.testing.assert_array_equal(tissue.obsp["pairs"].toarray(), np.eye(120))


def test_a_mudata_that_is_out_of_date(tissue: MuData, fingerprint: Any) -> None:
    tissue.obsm["spatial"] = (tissue.obsm["spatial"] * 1000).astype(np.int64)
    for name in ("rna", "adt"):
        tissue.mod[name] = tissue[name][:100].copy()
    before = fingerprint(tissue)
    with pytest.raises(ValueError, match=r"it was changed. Call mdata.update\(\) first"):
        un.pp.niche(tissue)
    assert fingerprint(tissue) == before
    assert tissue["rna"].n_obs == 100


def test_cells_that_the_mudata_does_not_know(tissue: MuData) -> None:
    """They would be given other cells' positions."""
    other = tissue["rna"].copy()
    other.obs_names = ["new", *other.obs_names[1:]]
    tissue.mod["rna"] = other
    with pytest.raises(
        ValueError, match=r"'rna': 1 of its \d+ cells .* Call mdata.update\(\) first"
    ):
        un.pp.niche(tissue)


def test_prepare_takes_it_as_it_is(pbmc: MuData) -> None:
    pbmc["rna"].obsm["spatial"] = np.random.default_rng(0).random((1200, 2))
    with pytest.warns(UserWarning, match="'rna' looks like raw counts. Prepare it first"):
        un.pp.niche(pbmc)
    before = dense(pbmc["niche"].X).copy()
    un.pp.prepare(pbmc)
    np.testing.assert_array_equal(dense(pbmc["niche"].X), before)
    un.pp.niche(pbmc)  # prepared: no warning
    assert np.abs(dense(pbmc["niche"].X) - before).max() > 1


# ------------------------------------------------------------------ originals, refusals


def test_copy_and_views(tissue: MuData, fingerprint: Any) -> None:
    before = fingerprint(tissue)
    changed = un.pp.niche(tissue, copy=True)
    assert fingerprint(tissue) == before
    part = (tissue.obs["cell_type"] != "group1").to_numpy()
    view, real = tissue[part], tissue[part].copy()
    copied = un.pp.niche(view, copy=True)
    assert view.is_view
    un.pp.niche(view)
    un.pp.niche(real)
    assert not view.is_view
    assert fingerprint(copied) == fingerprint(real)
    assert {**fingerprint(view), "is_view": None} == {**fingerprint(real), "is_view": None}
    assert fingerprint(tissue) == before
    un.pp.niche(tissue)
    assert fingerprint(tissue) == fingerprint(changed)
    changed["niche"].obsm["spatial"][:] = 0
    changed["rna"].X[:] = 0
    assert tissue["niche"].obsm["spatial"].any()
    assert tissue["rna"].X.any()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("as_view", [False, True])
def test_failing_late_undoes_everything(
    tissue: MuData, fingerprint: Any, monkeypatch: pytest.MonkeyPatch, as_view: bool, error: Any
) -> None:
    mdata = tissue[:80] if as_view else tissue
    before, parent = fingerprint(mdata), fingerprint(tissue)
    update = MuData.update

    def fail(self: MuData) -> None:
        update(self)
        raise error("on purpose")

    with monkeypatch.context() as patched, pytest.raises(error, match="on purpose"):
        patched.setattr(MuData, "update", fail)
        un.pp.niche(mdata)
    assert fingerprint(mdata) == before
    assert fingerprint(tissue) == parent
    un.pp.niche(mdata)
    assert "niche" in mdata.mod


def add_unusable(mdata: MuData) -> None:
    mdata.obsm["one"] = np.ones((120, 2))
    mdata.obsm["nowhere"] = np.full((120, 2), np.nan)
    mdata.obsm["names"] = np.full((120, 2), "x")
    mdata.obsm["flat"] = mdata.obsm["spatial"][:, 0]
    mdata.obs["cell"] = [f"c{i}" for i in range(120)]
    mdata.obs["some"] = ["a"] * 119 + [None]
    mdata["rna"].obsp["signed"] = sparse.csr_matrix(([-1.0], ([0], [1])), (120, 120))
    mdata["rna"].obsp["empty"] = sparse.csr_matrix((120, 120))
    mdata["rna"].obsp["dense"] = np.ones((120, 120))
    mdata["rna"].layers["bad"] = np.full((120, 40), np.nan)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mod": "atac"}, "modality 'atac' not found; available: ['rna', 'adt']"),
        ({"layer": "raw"}, "modality 'rna': layer 'raw' not found"),
        ({"layer": "bad"}, "modality 'rna': expected finite values, found 4800 NaN"),
        (
            {"spatial_key": "spatia"},
            "spatial_key: .obsm of modality 'rna' and of mdata: key 'spatia' not found; available: "
            "['spatial', 'one', 'nowhere', 'names', 'flat']. Did you mean 'spatial'? Store the",
        ),
        ({"spatial_key": "names"}, "mdata.obsm['names']: expected positions as numbers"),
        ({"spatial_key": "flat"}, "expected positions as numbers, cells x 2, found shape (120, 1)"),
        ({"spatial_key": "nowhere"}, "expected cells with a neighbour in their slice, found none"),
        (
            {"spatial_key": "one", "n_neighbors": 1},
            "expected about 1 neighbours for each spot, found 120: only 1 different places for 120",
        ),
        ({"n_neighbors": 0}, "n_neighbors: expected a whole number >= 1, found 0"),
        ({"n_neighbors": True}, "n_neighbors: expected a whole number >= 1, found True"),
        ({"n_neighbors": 2.5}, "n_neighbors: expected a whole number >= 1, found 2.5"),
        ({"library_key": "slice"}, "library_key: column 'slice' not found"),
        ({"library_key": "cell"}, "library_key='cell': expected cells that share a value"),
        ({"library_key": "some"}, "found 1 missing, the first for cell 'cell119'"),
        ({"use_graph": "d"}, "use_graph: .obsp of modality 'rna': key 'd' not found; available: ["),
        ({"use_graph": "dense"}, "use_graph='dense': expected a sparse matrix of distances"),
        ({"use_graph": "signed"}, "expected distances, finite and not below 0, found -1"),
        ({"use_graph": "empty"}, "expected cells with a neighbour in their slice, found none"),
        (
            {"use_graph": "signed", "n_neighbors": 3},
            "n_neighbors is for positions, and the graph use_graph='signed' is given here",
        ),
        ({"key_added": "adt"}, "key_added='adt' is a modality that pp.niche did not make"),
        ({"key_added": "rna"}, "key_added='rna' is a modality that pp.niche did not make"),
        ({"key_added": "one"}, "key_added='one' is a key of mdata.obsm"),
        ({"key_added": "a/b"}, "key_added: expected a name without '/', not empty, found 'a/b'"),
        ({"key_added": " "}, "key_added: expected a name without '/', not empty, found ' '"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "+".join(map(str, value.items())),
)
def test_refusals(tissue: MuData, fingerprint: Any, settings: dict[str, Any], message: str) -> None:
    add_unusable(tissue)
    before = fingerprint(tissue)
    with pytest.raises(ValueError) as caught:
        un.pp.niche(tissue, **settings)
    assert message in str(caught.value)
    assert fingerprint(tissue) == before


def test_positions_that_are_known_in_part_are_refused(tissue: MuData) -> None:
    tissue.obsm["spatial"][3, 1] = np.nan
    with pytest.raises(ValueError, match=r"NaN throughout .* found \[.*nan\] for cell 'cell3'"):
        un.pp.niche(tissue)
    tissue.obsm["spatial"][3] = np.inf
    with pytest.raises(ValueError, match=r"found \[inf, inf\] for cell 'cell3'"):
        un.pp.niche(tissue)


def test_a_predicted_modality_keeps_its_name(fitted: MuData) -> None:
    fitted.obsm["spatial"] = np.random.default_rng(0).random((120, 2))
    un.tl.predict_modality(fitted, source="rna", target="adt")
    with pytest.raises(ValueError, match="'adt_from_rna' is a modality that"):
        un.pp.niche(fitted, key_added="adt_from_rna")
    with pytest.raises(ValueError, match="'adt_from_rna' was predicted by unitednet_mu"):
        un.pp.niche(fitted, mod="adt_from_rna")
