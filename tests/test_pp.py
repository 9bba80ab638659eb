"""Preparation, each kind against its formula."""

from __future__ import annotations

import logging
from functools import partial

import mudata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData
from scipy import sparse

import unitednet_mu as un

FORMS = {
    "csr_matrix": sparse.csr_matrix,
    "csc_matrix": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
    "dense": np.asarray,
}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest):
    return FORMS[request.param]


@pytest.fixture
def counts(rng) -> np.ndarray:
    """Counts with one empty cell and one empty feature."""
    x = rng.poisson(rng.gamma(1.0, 2.0, (1, 12)), (30, 12))
    x[4] = 0
    x[:, 7] = 0
    return x


def _dense(x) -> np.ndarray:
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


def _mudata(**modalities) -> MuData:
    """MuData of matrices; the cells of all modalities have the same names."""
    made = {}
    for mod, x in modalities.items():
        names = [f"{mod}_{j}" for j in range(x.shape[1])]
        cells = [f"cell{i}" for i in range(x.shape[0])]
        made[mod] = AnnData(X=x, obs=pd.DataFrame(index=cells), var=pd.DataFrame(index=names))
    return MuData(made)


@pytest.mark.parametrize("dtype", ["int64", "float64", "float32", "uint16"])
def test_rna_is_log_of_normalised_counts(counts, form, dtype: str) -> None:
    stored = form(counts.astype(dtype))
    mdata = _mudata(rna=stored)
    assert un.pp.rna(mdata, target_sum=1e3) is None
    total = counts.sum(axis=1, keepdims=True)
    expected = np.log1p(counts / np.where(total == 0, 1, total) * 1e3)
    x = mdata["rna"].X
    assert type(x) is type(stored)
    assert x.dtype == np.float32
    np.testing.assert_allclose(_dense(x), expected, rtol=1e-5)
    kept = mdata["rna"].layers["counts"]
    assert (type(kept), kept.dtype) == (type(stored), stored.dtype)
    np.testing.assert_array_equal(_dense(kept), counts)
    assert mdata["rna"].uns["log1p"] == {"base": None}


def test_rna_default_depends_on_the_cell_alone(pbmc: MuData) -> None:
    whole = un.pp.rna(pbmc, copy=True)
    part = un.pp.rna(pbmc[pbmc.obs["donor"] == "p3_0"], copy=True)
    cells = part["rna"].obs_names
    np.testing.assert_array_equal(_dense(whole["rna"][cells].X), _dense(part["rna"].X))
    by_median = un.pp.rna(pbmc, target_sum=None, copy=True)
    sums = np.expm1(_dense(by_median["rna"].X)).sum(axis=1)
    np.testing.assert_allclose(sums, np.median(_dense(pbmc["rna"].X).sum(axis=1)), rtol=1e-4)


def test_rna_says_how_many_cells_are_empty(counts, caplog: pytest.LogCaptureFixture) -> None:
    mdata = _mudata(rna=sparse.csr_matrix(counts))
    with caplog.at_level(logging.WARNING, logger="unitednet_mu"):
        un.pp.rna(mdata)
    assert "modality 'rna': 1 cells have no counts" in caplog.text
    assert not _dense(mdata["rna"].X)[4].any()


def test_variable_genes_are_scanpys_and_the_mudata_stays_whole(pbmc: MuData) -> None:
    import scanpy as sc

    reference = pbmc["rna"].copy()
    sc.pp.normalize_total(reference, target_sum=1e4)
    sc.pp.log1p(reference)
    sc.pp.highly_variable_genes(reference, n_top_genes=120)
    chosen = list(reference.var_names[reference.var["highly_variable"]])
    adt = list(pbmc["adt"].var_names)
    position = {name: float(i) for i, name in enumerate(pbmc.var_names)}
    pbmc.varm["position"] = np.asarray([[position[name]] for name in pbmc.var_names])
    pbmc.obsm["cell"] = np.arange(1600.0)[:, None]
    pbmc["rna"].varm["number"] = np.arange(500.0)[:, None]
    cells = list(pbmc.obs_names)
    un.pp.rna(pbmc, n_top_genes=120)
    assert list(pbmc["rna"].var_names) == chosen
    assert list(pbmc.var_names) == chosen + adt
    assert pbmc.n_vars == 120 + 224
    np.testing.assert_allclose(_dense(pbmc["rna"].X), _dense(reference[:, chosen].X), rtol=1e-6)
    np.testing.assert_array_equal(
        pbmc.varm["position"][:, 0], [position[v] for v in pbmc.var_names]
    )
    np.testing.assert_array_equal(pbmc["rna"].varm["number"][:, 0], [position[v] for v in chosen])
    assert pbmc["rna"].layers["counts"].shape == (1200, 120)
    assert pbmc["rna"].var["highly_variable"].all()
    for column in ("means", "dispersions", "dispersions_norm"):
        np.testing.assert_allclose(
            pbmc["rna"].var[column], reference.var.loc[chosen, column], rtol=1e-6
        )
    assert list(pbmc.obs_names) == cells
    assert list(pbmc.obs.columns) == ["cell_type", "donor"]
    np.testing.assert_array_equal(pbmc.obsm["cell"][:, 0], np.arange(1600))
    half = pbmc[pbmc.obs["donor"] == "p3_0"].copy()
    assert half.shape == (400, 344)


def test_all_genes_variable_changes_no_feature(pbmc: MuData) -> None:
    un.pp.rna(pbmc, n_top_genes=500)
    assert pbmc.n_vars == 724


@pytest.mark.parametrize("axis", [0, 1])
def test_protein_is_the_centred_log_ratio(counts, form, axis: int) -> None:
    stored = form(counts)
    mdata = _mudata(adt=stored)
    assert un.pp.protein(mdata, axis=axis) is None
    expected = np.log1p(counts / np.exp(np.log1p(counts).mean(axis=axis, keepdims=True)))
    x = mdata["adt"].X
    assert type(x) is type(stored)
    assert x.dtype == np.float32
    np.testing.assert_allclose(_dense(x), expected, rtol=1e-5)
    np.testing.assert_array_equal(_dense(mdata["adt"].layers["counts"]), counts)


def test_atac_tfidf(counts, form) -> None:
    stored = form(counts)
    mdata = _mudata(atac=stored)
    assert un.pp.atac(mdata, scale_factor=1e3) is None
    total = counts.sum(axis=1, keepdims=True)
    per_peak = counts.sum(axis=0)
    tf = np.log1p(counts / np.where(total == 0, 1, total) * 1e3)
    expected = tf * np.log1p(30 / np.where(per_peak == 0, 1, per_peak))
    x = mdata["atac"].X
    assert sparse.issparse(x)
    assert type(x) is (type(stored) if sparse.issparse(stored) else sparse.csr_matrix)
    assert x.dtype == np.float32
    np.testing.assert_allclose(_dense(x), expected, rtol=1e-5)
    np.testing.assert_array_equal(_dense(mdata["atac"].layers["counts"]), counts)


def test_atac_open_or_closed(counts, form) -> None:
    mdata = _mudata(atac=form(counts))
    un.pp.atac(mdata, method="binarise")
    np.testing.assert_array_equal(_dense(mdata["atac"].X), counts > 0)
    np.testing.assert_array_equal(_dense(mdata["atac"].layers["counts"]), counts)


def test_stored_zeros_are_no_counts() -> None:
    x = sparse.csr_matrix(np.asarray([[1.0, 2.0, 0.0], [3.0, 0.0, 4.0], [0.0, 1.0, 1.0]]))
    x[0, 0] = 0.0
    assert x.nnz == 6
    mdata = _mudata(atac=x.copy(), peaks=x.copy())
    un.pp.atac(mdata, mod="peaks")
    un.pp.atac(mdata, method="binarise")
    assert mdata["atac"].X[0, 0] == mdata["peaks"].X[0, 0] == 0
    assert mdata["atac"].X.sum() == 5


def test_a_count_stored_in_parts_is_their_sum() -> None:
    whole = sparse.csr_matrix(np.random.default_rng(0).poisson(1.0, (30, 20)).astype(np.float32))
    parts = sparse.csr_matrix(
        (np.repeat(whole.data, 2) / 2, np.repeat(whole.indices, 2), whole.indptr * 2), whole.shape
    )
    parts.data[:] = np.ceil(parts.data)
    expected = sparse.csr_matrix(parts.toarray())
    binarise = partial(un.pp.atac, method="binarise")
    for prepare in (un.pp.rna, un.pp.atac, binarise):
        found, right = (MuData({"rna": AnnData(x.copy())}) for x in (parts, expected))
        for one in (found, right):
            prepare(one, mod="rna")
        np.testing.assert_array_equal(found["rna"].X.toarray(), right["rna"].X.toarray())


def test_the_same_counts_dense_and_sparse_were_not_prepared(counts) -> None:
    mdata = _mudata(rna=sparse.csr_matrix(counts))
    mdata["rna"].layers["counts"] = mdata["rna"].X.copy()
    expected = un.pp.rna(mdata, copy=True)
    mdata["rna"].X = mdata["rna"].X.toarray()
    un.pp.rna(mdata)
    np.testing.assert_allclose(np.asarray(mdata["rna"].X), expected["rna"].X.toarray(), rtol=1e-6)


@pytest.mark.parametrize("n_top_genes", [0, 22.0, "22", True])
def test_numbers_of_genes_that_are_none(counts, n_top_genes) -> None:
    with pytest.raises(ValueError, match="n_top_genes: expected a whole number from 1 to"):
        un.pp.rna(_mudata(rna=counts), n_top_genes=n_top_genes)


def test_more_genes_than_asked_for_are_said(caplog: pytest.LogCaptureFixture) -> None:
    x = np.hstack([np.random.default_rng(0).poisson(0.3, (30, 10)).astype(np.float32)] * 5)
    mdata = MuData({"rna": AnnData(x)})
    with caplog.at_level(logging.WARNING, "unitednet_mu"):
        un.pp.rna(mdata, n_top_genes=22)
    assert mdata["rna"].n_vars > 22
    assert f"{mdata['rna'].n_vars} highly variable genes where 22 were asked for" in caplog.text


def test_continuous_changes_nothing(paired: MuData, fingerprint) -> None:
    before = fingerprint(paired)
    assert un.pp.continuous(paired, mod="rna") is None
    assert fingerprint(paired) == before
    assert fingerprint(un.pp.continuous(paired, mod="rna", copy=True)) == before


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix])
def test_continuous_says_where_nan_is(make) -> None:
    x = np.arange(20.0).reshape(5, 4)
    x[2, 1], x[4, 3] = np.nan, np.inf
    mdata = _mudata(ephys=make(x))
    message = "found 2 NaN or inf, the first at cell 'cell2', feature 'ephys_1'"
    with pytest.raises(ValueError, match=message):
        un.pp.continuous(mdata, mod="ephys")


def test_prepare_recognises_usual_names(counts) -> None:
    names = ["GEX", "Antibody Capture", "peaks"]
    mdata = _mudata(**{name: sparse.csr_matrix(counts) for name in names}, ephys=counts - 0.5)
    with pytest.raises(
        ValueError, match=r"found \['ephys'\]. Say what they are, for example kinds="
    ):
        un.pp.prepare(mdata)
    assert un.pp.prepare(mdata, kinds={"ephys": "continuous"}) is None
    alone = _mudata(rna=sparse.csr_matrix(counts), adt=sparse.csr_matrix(counts))
    un.pp.rna(alone)
    un.pp.protein(alone)
    np.testing.assert_array_equal(_dense(mdata["GEX"].X), _dense(alone["rna"].X))
    np.testing.assert_array_equal(_dense(mdata["Antibody Capture"].X), _dense(alone["adt"].X))
    atac = _mudata(atac=sparse.csr_matrix(counts))
    un.pp.atac(atac)
    np.testing.assert_array_equal(_dense(mdata["peaks"].X), _dense(atac["atac"].X))
    np.testing.assert_array_equal(mdata["ephys"].X, counts - 0.5)


def test_prepare_leaves_predicted_modalities_alone(counts) -> None:
    mdata = _mudata(rna=sparse.csr_matrix(counts), adt_from_rna=counts - 0.5)
    mdata["adt_from_rna"].uns["unitednet_prediction"] = {"target": "adt"}
    un.pp.prepare(mdata)
    assert "counts" in mdata["rna"].layers
    np.testing.assert_array_equal(mdata["adt_from_rna"].X, counts - 0.5)


@pytest.mark.parametrize(
    "call",
    [
        lambda m, **k: un.pp.rna(m, n_top_genes=100, **k),
        lambda m, **k: un.pp.protein(m, **k),
        lambda m, **k: un.pp.atac(m, mod="rna", **k),
        lambda m, **k: un.pp.prepare(m, **k),
        lambda m, **k: un.pp.continuous(m, mod="rna", **k),
    ],
)
class TestOriginals:
    def test_copy_leaves_the_original(self, call, pbmc: MuData, fingerprint) -> None:
        before = fingerprint(pbmc)
        changed = call(pbmc, copy=True)
        assert fingerprint(pbmc) == before
        assert isinstance(changed, MuData)
        assert call(pbmc) is None
        assert fingerprint(pbmc) == fingerprint(changed)
        for adata in changed.mod.values():  # nothing is shared
            adata.X.data[:] = -1
        assert pbmc["rna"].X.min() >= 0
        assert pbmc["adt"].X.min() >= 0

    def test_view_leaves_its_parent(self, call, pbmc: MuData, fingerprint) -> None:
        before = fingerprint(pbmc)
        chosen = (pbmc.obs["donor"] != "p1_0").to_numpy()
        view, real = pbmc[chosen], pbmc[chosen].copy()
        copied = call(view, copy=True)
        assert view.is_view
        assert not copied.is_view
        call(view)
        call(real)
        assert fingerprint(pbmc) == before
        expected = fingerprint(real)
        assert fingerprint(copied) == expected
        found = fingerprint(view)
        if view.is_view:  # nothing to write: pp.continuous
            found = fingerprint(view.copy())
        assert {**found, "is_view": None} == {**expected, "is_view": None}


def test_view_becomes_real_and_then_is_its_own(pbmc: MuData) -> None:
    view = pbmc[:600]
    un.pp.prepare(view)
    assert not view.is_view
    assert not any(adata.is_view for adata in view.mod.values())
    view.obs["new"] = 1
    view.uns["new"] = 1
    view["rna"].X.data[:] = 7
    assert "new" not in pbmc.obs
    assert "new" not in pbmc.uns
    assert pbmc["rna"].X.max() == 3921


def test_modality_that_is_a_view_leaves_its_parent(counts) -> None:
    adata = AnnData(X=sparse.csr_matrix(counts))
    adata.obs_names = [f"cell{i}" for i in range(30)]
    mdata = MuData({"rna": adata[:, :6]})
    un.pp.rna(mdata)
    assert [name for name in adata.layers if name is not None] == []
    np.testing.assert_array_equal(_dense(adata.X), counts)
    np.testing.assert_array_equal(_dense(mdata["rna"].layers["counts"]), counts[:, :6])


def test_references_to_the_modality_stay_valid(pbmc: MuData) -> None:
    rna = pbmc["rna"]
    un.pp.rna(pbmc, n_top_genes=50)
    assert pbmc["rna"] is rna
    assert rna.n_vars == 50


@pytest.mark.parametrize("name", ["rna", "protein", "atac"])
def test_preparing_twice_is_refused_and_anew_is_offered(counts, name: str, fingerprint) -> None:
    prepare = getattr(un.pp, name)
    mdata = _mudata(m=sparse.csr_matrix(counts))
    prepare(mdata, mod="m")
    before = fingerprint(mdata)
    with pytest.raises(ValueError, match=r"it was prepared before\. .* pass layer='counts'"):
        prepare(mdata, mod="m")
    assert fingerprint(mdata) == before
    prepare(mdata, mod="m", layer="counts")
    assert fingerprint(mdata) == before


def test_counts_may_stand_in_a_layer(counts) -> None:
    mdata = _mudata(rna=counts - 0.5)
    mdata["rna"].layers["raw"] = counts
    expected = _mudata(rna=counts)
    un.pp.rna(expected)
    un.pp.rna(mdata, layer="raw")
    np.testing.assert_array_equal(mdata["rna"].X, expected["rna"].X)
    np.testing.assert_array_equal(mdata["rna"].layers["counts"], counts)
    # a second layer that says the same as X is fine too
    both = _mudata(rna=counts)
    both["rna"].layers["counts"] = counts.copy()
    un.pp.rna(both)
    np.testing.assert_array_equal(both["rna"].X, expected["rna"].X)


@pytest.mark.parametrize(
    ("value", "found"), [(0.5, "0.5"), (-1.0, "-1"), (np.nan, "nan"), (np.inf, "inf")]
)
@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix])
def test_values_that_are_no_counts_are_refused(
    counts, make, value: float, found: str, fingerprint
) -> None:
    x = counts.astype(float)
    x[20, 3] = value
    mdata = _mudata(rna=make(x))
    before = fingerprint(mdata)
    with pytest.raises(ValueError, match=rf"expected raw counts .* found {found}; layers: \[\]"):
        un.pp.rna(mdata)
    assert fingerprint(mdata) == before


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: un.pp.rna(m["rna"]), TypeError, "expected a MuData, found an AnnData"),
        (lambda m: un.pp.prepare("x.h5mu"), TypeError, "expected a MuData, found str"),
        (lambda m: un.pp.rna(m, mod="rnaa"), ValueError, "'rnaa' not found; available: .*'rna'"),
        (
            lambda m: un.pp.rna(m, layer="raw"),
            ValueError,
            "layer 'raw' not found; available: \\[\\]",
        ),
        (lambda m: un.pp.rna(m, target_sum=0.0), ValueError, "positive number or None, found 0.0"),
        (
            lambda m: un.pp.rna(m, n_top_genes=501),
            ValueError,
            "a whole number from 1 to 500, .* found 501",
        ),
        (lambda m: un.pp.protein(m, axis=2), ValueError, "axis: expected 0 .* found 2"),
        (lambda m: un.pp.atac(m, mod="rna", method="lsi"), ValueError, "'tfidf' or 'binarise'"),
        (lambda m: un.pp.atac(m, mod="rna", scale_factor=-1), ValueError, "number, found -1"),
        (lambda m: un.pp.prepare(m, kinds={"atac": "atac"}), ValueError, "'atac' not found"),
        (
            lambda m: un.pp.prepare(m, kinds={"rna": "gex"}),
            ValueError,
            "'gex' not found; available",
        ),
    ],
)
def test_errors_say_what_exists_and_change_nothing(
    call, error, message: str, pbmc: MuData, fingerprint
) -> None:
    before = fingerprint(pbmc)
    with pytest.raises(error, match=message):
        call(pbmc)
    assert fingerprint(pbmc) == before


def test_empty_modality_is_refused(counts) -> None:
    mdata = _mudata(rna=counts, adt=counts[:, :0])
    with pytest.raises(ValueError, match=r"found 30 cells x 0 features\. Drop it: del mdata"):
        un.pp.protein(mdata)


def test_backed_data_is_refused_and_its_file_kept(tmp_path, pbmc: MuData) -> None:
    path = tmp_path / "x.h5mu"
    pbmc.write(path)
    content = path.read_bytes()
    backed = mudata.read_h5mu(path, backed="r")
    with pytest.raises(ValueError, match=r"expected data in memory, found it backed by .*x\.h5mu"):
        un.pp.prepare(backed)
    backed.file.close()
    assert path.read_bytes() == content


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("as_view", [False, True])
@pytest.mark.parametrize("where", ["update_var", "second"])
def test_failing_late_undoes_everything(
    pbmc: MuData, fingerprint, monkeypatch: pytest.MonkeyPatch, where: str, as_view: bool, error
) -> None:
    pbmc.varm["place"] = np.arange(724.0)[:, None]
    mdata = pbmc[:900] if as_view else pbmc
    before, parent = fingerprint(mdata), fingerprint(pbmc)

    def fail(*args, **kwargs):
        raise error("on purpose")

    if where == "update_var":
        update = MuData.update_var
        monkeypatch.setattr(MuData, "update_var", lambda self: (update(self), fail()))
        with pytest.raises(error, match="on purpose"):
            un.pp.rna(mdata, n_top_genes=100)
    else:
        from unitednet_mu.pp import _prepare

        monkeypatch.setitem(_prepare._PREPARE, "protein", fail)
        with pytest.raises(error, match="on purpose"):
            un.pp.prepare(mdata)
    assert fingerprint(mdata) == before
    assert fingerprint(pbmc) == parent
    monkeypatch.undo()
    un.pp.rna(mdata, n_top_genes=100)  # and it works afterwards
    assert mdata.n_vars == 324


def test_prepared_data_can_be_written_and_read(tmp_path, pbmc: MuData) -> None:
    un.pp.prepare(pbmc)
    pbmc.write(tmp_path / "x.h5mu")
    back = mudata.read_h5mu(tmp_path / "x.h5mu")
    for mod in pbmc.mod:
        np.testing.assert_array_equal(_dense(back[mod].X), _dense(pbmc[mod].X))
        np.testing.assert_array_equal(
            _dense(back[mod].layers["counts"]), _dense(pbmc[mod].layers["counts"])
        )


def test_no_warning_reaches_the_user(pbmc: MuData, recwarn: pytest.WarningsRecorder) -> None:
    un.pp.prepare(pbmc, copy=True)
    un.pp.rna(pbmc[:500], n_top_genes=50)
    ours = [w for w in recwarn if not issubclass(w.category, DeprecationWarning)]
    assert [str(w.message) for w in ours] == []
