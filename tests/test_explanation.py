"""Attributions of single cells as shap takes them: they add up, and shap's own plots draw them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import mudata as md
import numpy as np
import pytest
import shap
from mudata import MuData
from scipy import sparse

import unitednet_mu as un
from unitednet_mu.tl import _explain_job as tl_explain

FEW = {"n_cells": 10, "n_background": 12, "progress": False}
GROUPS = ["group0", "group1", "group2"]
PAIR = {"source": "rna", "target": "adt"}


def centred_logits(mdata: MuData) -> np.ndarray:
    logits = un.get.model(mdata).encode(mdata).logits
    return logits - logits.mean(1, keepdims=True)


def same(first: shap.Explanation, second: shap.Explanation) -> None:
    for name in ("values", "base_values", "data"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    for name in ("instance_names", "feature_names", "output_names"):
        assert list(getattr(first, name)) == list(getattr(second, name))


# ------------------------------------------------------------------ groups


def test_values_and_base_add_up_to_every_groups_output(trained: MuData) -> None:
    un.tl.explain(trained, per_cell=True, **FEW)
    found = un.get.relevance(trained, as_explanation=True)
    assert isinstance(found, shap.Explanation)
    assert found.shape == (30, 60, 3)
    assert list(found.output_names) == GROUPS
    rows = trained.obs_names.get_indexer(found.instance_names)
    expected = centred_logits(trained)[rows]
    np.testing.assert_allclose(found.values.sum(1) + found.base_values, expected, atol=1e-3)
    assert np.abs(expected - found.base_values).max() > 1  # there is something to explain


def test_groups_may_be_named_by_numbers(paired: MuData, quick: dict[str, Any]) -> None:
    un.tl.fit(paired, n_groups=2, **quick)
    un.tl.explain(paired, per_cell=[1], **FEW)
    found = un.get.relevance(paired, group=1, as_explanation=True)  # type: ignore[call-overload]
    same(found, un.get.relevance(paired, group="1", as_explanation=True))
    assert found.values.ndim == 2 and found.output_names == "1"
    un.tl.explain(paired, per_cell=0, **FEW)
    assert un.get.relevance(paired, group="0", as_explanation=True).values.ndim == 2
    with pytest.raises(ValueError, match=r"per_cell: expected names of outputs, .* found None"):
        un.tl.explain(paired, per_cell=None, **FEW)


def test_probabilities_add_up_too(trained: MuData) -> None:
    un.tl.explain(trained, per_cell=["group2"], output="probabilities", **FEW)
    found = un.get.relevance(trained, group="group2", as_explanation=True)
    rows = trained.obs_names.get_indexer(found.instance_names)
    expected = un.get.model(trained).encode(trained).probabilities[rows, 2]
    np.testing.assert_allclose(found.values.sum(1) + found.base_values, expected, atol=1e-4)


def test_their_mean_over_a_groups_cells_is_its_relevance(trained: MuData) -> None:
    un.tl.explain(trained, per_cell=True, **FEW)
    stored = trained.uns["unitednet"]["relevance"]
    own = np.asarray(stored["params"]["cell_groups"])
    assert stored["params"]["n_cells"].tolist() == [(own == name).sum() for name in GROUPS]
    for k, name in enumerate(GROUPS):
        found = un.get.relevance(trained, group=name, modality="adt", as_explanation=True)
        mine = found.values[own == name]
        block = stored["modalities"]["adt"]
        np.testing.assert_allclose(mine.mean(0), block["signed"][:, k], atol=1e-5)
        np.testing.assert_allclose(np.abs(mine).mean(0), block["absolute"][:, k], atol=1e-5)


def test_what_comes_with_the_values(trained: MuData) -> None:
    """The features' values as the user has them, their names, those of the cells."""
    trained["adt"].X = sparse.csr_matrix(trained["adt"].X)
    un.tl.explain(trained, per_cell=True, **FEW)
    found = un.get.relevance(trained, group="group1", as_explanation=True)
    cells = trained.uns["unitednet"]["relevance"]["params"]["cells"].tolist()
    assert list(found.instance_names) == cells
    assert found.feature_names == [*trained["rna"].var_names, *trained["adt"].var_names]
    assert found.output_names == "group1"
    assert found.values.shape == found.data.shape == (30, 60)
    assert found.base_values.shape == (30,)
    rna, adt = trained["rna"][cells].X, trained["adt"][cells].X.toarray()
    np.testing.assert_array_equal(found.data, np.hstack([rna, adt]))
    turned = un.get.relevance(
        trained, group=["group2", "group1"], modality=["adt", "rna"], as_explanation=True
    )
    assert turned.feature_names == [*trained["adt"].var_names, *trained["rna"].var_names]
    np.testing.assert_array_equal(turned.values[:, :20, 1], found.values[:, 40:])
    np.testing.assert_array_equal(turned[:, :, "group1"].base_values, found.base_values)


def test_features_of_one_name(paired: MuData, quick: dict[str, Any]) -> None:
    paired["rna"].var_names = ["CD4", *paired["rna"].var_names[1:]]
    paired["adt"].var_names = ["CD4", *paired["adt"].var_names[1:]]
    un.tl.fit(paired, labels_key="cell_type", **quick)
    un.tl.explain(paired, per_cell=["group0"], **FEW)
    found = un.get.relevance(paired, group="group0", as_explanation=True)
    assert (found.feature_names[0], found.feature_names[40]) == ("rna:CD4", "adt:CD4")
    alone = un.get.relevance(paired, group="group0", modality="adt", as_explanation=True)
    assert alone.feature_names == list(paired["adt"].var_names)


def test_cells_that_lack_a_modality(fitted_mosaic: MuData) -> None:
    """It adds nothing to them; their values still add up."""
    un.tl.explain(fitted_mosaic, per_cell=True, **FEW)
    found = un.get.relevance(fitted_mosaic, as_explanation=True)
    rows = fitted_mosaic.obs_names.get_indexer(found.instance_names)
    expected = centred_logits(fitted_mosaic)[rows]
    np.testing.assert_allclose(found.values.sum(1) + found.base_values, expected, atol=1e-3)
    assert len(np.unique(found.base_values[:, 0])) == 3  # one for each set of modalities
    has = np.isin(found.instance_names, fitted_mosaic["rna"].obs_names)
    assert 0 < has.sum() < len(has)
    assert not found.values[~has, :40].any()
    assert np.isnan(found.data[~has, :40]).all()
    assert np.isfinite(found.data[has, :40]).all()
    part = un.get.relevance(fitted_mosaic, modality="rna", as_explanation=True)
    assert list(part.instance_names) == list(np.asarray(found.instance_names)[has])
    np.testing.assert_array_equal(part.values, found.values[has, :40])


def test_a_modality_that_no_explained_cell_has(fitted_mosaic: MuData) -> None:
    only = fitted_mosaic.obs_names[~fitted_mosaic.obs_names.isin(fitted_mosaic["rna"].obs_names)]
    un.tl.explain(
        fitted_mosaic, cells=only[:4].tolist(), n_background=5, per_cell=True, progress=False
    )
    found = un.get.relevance(fitted_mosaic, as_explanation=True)
    assert found.shape == (4, 60, 3)
    assert not found.values[:, :40].any()
    with pytest.raises(ValueError, match=r"expected explained cells .* \['rna'\], found none"):
        un.get.relevance(fitted_mosaic, modality="rna", as_explanation=True)


# ------------------------------------------------------------------ cross-modal


def test_cross_modal_values_add_up_to_the_prediction(trained: MuData) -> None:
    trained["adt"].X = trained["adt"].X * 3 + 2  # units of its own: the model's are other ones
    un.tl.explain(trained, per_cell=True, **PAIR, **FEW)
    found = un.get.cross_relevance(trained, **PAIR, as_explanation=True)
    assert found.shape == (30, 40, 20)
    rows = trained.obs_names.get_indexer(found.instance_names)
    expected = un.get.model(trained).predict(trained, "rna", "adt")[rows]
    np.testing.assert_allclose(found.values.sum(1) + found.base_values, expected, atol=1e-3)
    np.testing.assert_array_equal(found.data, trained["rna"].X[rows])
    entry = trained.uns["unitednet"]["cross_relevance"]["adt_from_rna"]
    for k, name in enumerate(GROUPS):
        mine = un.get.cross_relevance(
            trained, **PAIR, group=name, target_feature="adt_3", as_explanation=True
        )
        assert mine.shape == (10, 40)
        assert mine.output_names == "adt_3"
        mean = entry["signed"][str(k)].toarray()[:, 3]
        np.testing.assert_allclose(mine.values.mean(0), mean, atol=1e-4)


def test_few_targets_are_as_all(trained: MuData) -> None:
    """A few go another way through the network than many."""
    un.tl.explain(trained, per_cell=True, **PAIR, **FEW)
    every = un.get.cross_relevance(trained, **PAIR, as_explanation=True)
    un.tl.explain(trained, per_cell="adt_7", **PAIR, **FEW)
    one = un.get.cross_relevance(trained, **PAIR, target_feature="adt_7", as_explanation=True)
    np.testing.assert_allclose(one.values, every[:, :, "adt_7"].values, atol=1e-5)
    np.testing.assert_allclose(one.base_values, every.base_values[:, 7], atol=1e-6)
    assert np.abs(one.values).max() > 0.01


def test_binary_target_in_logits(quick: dict[str, Any]) -> None:
    mdata = un.datasets.simulate_multimodal(
        n_obs=90, n_groups=3, values={"adt": "binary"}, random_state=1
    )
    un.tl.fit(mdata, labels_key="cell_type", **quick)
    un.tl.explain(mdata, per_cell=["adt_0"], **PAIR, **FEW)
    found = un.get.cross_relevance(mdata, **PAIR, target_feature="adt_0", as_explanation=True)
    rows = mdata.obs_names.get_indexer(found.instance_names)
    expected = un.get.model(mdata).predict(mdata, "rna", "adt")[rows, 0]
    logit = found.values.sum(1) + found.base_values
    np.testing.assert_allclose(1 / (1 + np.exp(-logit)), expected, atol=1e-4)


def test_batches(quick: dict[str, Any]) -> None:
    mdata = un.datasets.simulate_multimodal(n_obs=90, n_groups=3, n_batches=2, random_state=1)
    un.tl.fit(mdata, labels_key="cell_type", batch_key="batch", **quick)
    un.tl.explain(mdata, per_cell=True, transform_batch="batch1", **PAIR, **FEW)
    found = un.get.cross_relevance(mdata, **PAIR, as_explanation=True)
    rows = mdata.obs_names.get_indexer(found.instance_names)
    predicted = un.get.model(mdata).predict(mdata, "rna", "adt", transform_batch="batch1")[rows]
    np.testing.assert_allclose(found.values.sum(1) + found.base_values, predicted, atol=1e-3)


def test_the_table_of_one_target(trained: MuData) -> None:
    un.tl.explain(trained, **PAIR, **FEW)
    whole = un.get.cross_relevance(trained, **PAIR)
    part = un.get.cross_relevance(trained, **PAIR, target_feature=["adt_3", "adt_5"], n_top=4)
    assert set(part["target_feature"]) <= {"adt_3", "adt_5"}
    assert part.groupby("group").size().tolist() == [4, 4, 4]
    expected = whole[whole["target_feature"].isin(["adt_3", "adt_5"])].groupby("group").head(4)
    assert part["value"].tolist() == expected["value"].tolist()
    assert part["rank"].tolist() == [1, 2, 3, 4] * 3


# ------------------------------------------------------------------ shap's plots, files


@pytest.fixture
def figure():
    yield plt.figure()
    plt.close("all")


@pytest.mark.parametrize("of", ["trained", "fitted_mosaic"])
@pytest.mark.parametrize("plot", ["beeswarm", "bar", "heatmap", "violin"])
def test_shaps_own_plots(of: str, plot: str, figure: Any, request: pytest.FixtureRequest) -> None:
    """They name the features that matter most."""
    mdata = request.getfixturevalue(of)
    un.tl.explain(mdata, per_cell=["group1"], **FEW)
    found = un.get.relevance(mdata, group="group1", as_explanation=True)
    getattr(shap.plots, plot)(found, max_display=6, show=False)
    shown = [label.get_text() for axes in plt.gcf().axes for label in axes.get_yticklabels()]
    order = np.abs(found.values).mean(0).argsort()[::-1]
    assert {found.feature_names[j] for j in order[:5]} <= set(shown)


def test_a_single_cell(trained: MuData, figure: Any) -> None:
    un.tl.explain(trained, per_cell=True, **PAIR, **FEW)
    found = un.get.cross_relevance(trained, **PAIR, target_feature="adt_3", as_explanation=True)
    axes = shap.plots.waterfall(found[0], show=False)
    predicted = found.values[0].sum() + found.base_values[0]
    texts = [t.get_text() for axes in plt.gcf().axes for t in axes.get_xticklabels()]
    assert any(f"{predicted:.3f}".replace("-", "−") in text.replace("-", "−") for text in texts)
    assert axes is not None


@pytest.mark.parametrize("ending", ["h5mu", "zarr"])
def test_files_hold_it(trained: MuData, tmp_path: Path, ending: str) -> None:
    trained["adt"].X = sparse.csr_matrix(trained["adt"].X)
    un.tl.explain(trained, per_cell=["group1"], **FEW)
    un.tl.explain(trained, per_cell=True, **PAIR, **FEW)
    path = tmp_path / f"x.{ending}"
    if ending == "h5mu":
        trained.write(path)
        back = md.read_h5mu(path)
    else:
        trained.write_zarr(path)
        back = md.read_zarr(path)
    for one in (back, back[:3], trained[:3]):  # whichever cells are left
        same(
            un.get.relevance(one, group="group1", as_explanation=True),
            un.get.relevance(trained, group="group1", as_explanation=True),
        )
        same(
            un.get.cross_relevance(one, **PAIR, as_explanation=True),
            un.get.cross_relevance(trained, **PAIR, as_explanation=True),
        )


def test_explanations_share_nothing_with_what_is_stored(trained: MuData) -> None:
    un.tl.explain(trained, per_cell=True, **FEW)
    first = un.get.relevance(trained, group="group1", as_explanation=True)
    for name in ("values", "base_values", "data"):
        getattr(first, name)[:] = -7
    again = un.get.relevance(trained, group="group1", as_explanation=True)
    for name in ("values", "base_values", "data"):
        assert (getattr(again, name) != -7).all()


def test_tables_do_not_import_shap(tmp_path: Path, trained: MuData) -> None:
    un.tl.explain(trained, per_cell=True, **FEW)
    trained.write(tmp_path / "x.h5mu")
    code = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "import mudata, unitednet_mu as un\n"
        f"mdata = mudata.read_h5mu({str(tmp_path / 'x.h5mu')!r})\n"
        "un.get.relevance(mdata)\n"
        "before = {'shap', 'torch'} & set(sys.modules)\n"
        "un.get.relevance(mdata, as_explanation=True)\n"
        "raise SystemExit(0 if not before and 'shap' in sys.modules else f'{before}')\n"
    )
    root = Path(un.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------ refusals


def test_it_is_kept_only_when_asked_for(trained: MuData) -> None:
    un.tl.explain(trained, per_cell=True, **FEW)
    un.tl.explain(trained, **FEW)
    assert "per_cell" not in trained.uns["unitednet"]["relevance"]
    message = r"run unitednet_mu\.tl\.explain\(mdata, per_cell=True\) first"
    with pytest.raises(ValueError, match=message):
        un.get.relevance(trained, as_explanation=True)
    un.tl.explain(trained, **PAIR, **FEW)
    message = r"explain\(mdata, source='rna', target='adt', per_cell=True\) first"
    with pytest.raises(ValueError, match=message):
        un.get.cross_relevance(trained, **PAIR, as_explanation=True)


def test_too_much_is_refused_before_it_is_computed(
    fitted: MuData, fingerprint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint(fitted)
    cells = fitted.obs_names[:30].tolist()
    size = 30 * 60 * 3 * 4
    monkeypatch.setattr(tl_explain, "_PER_CELL_BYTES", size - 1)
    message = r"found 30 cells x 60 features x 3 outputs, .* GiB\. Lower n_cells, or name fewer"
    with pytest.raises(ValueError, match=message):
        un.tl.explain(fitted, cells=cells, per_cell=True, progress=False)
    with pytest.raises(ValueError, match=r"found 30 cells x 40 features x 20 outputs"):
        un.tl.explain(fitted, cells=cells, per_cell=True, progress=False, **PAIR)
    assert fingerprint(fitted) == before
    un.tl.explain(fitted, cells=cells, per_cell=GROUPS[:2], progress=False)
    monkeypatch.setattr(tl_explain, "_PER_CELL_BYTES", size)
    un.tl.explain(fitted, cells=cells, per_cell=True, progress=False)
    stored = fitted.uns["unitednet"]["relevance"]["per_cell"]["modalities"]
    assert sum(block["values"].nbytes for block in stored.values()) == size


def test_unknown_names(fitted: MuData, fingerprint: Any) -> None:
    before = fingerprint(fitted)
    with pytest.raises(ValueError, match=r"per_cell: group 'group9' not found; available: \['gr"):
        un.tl.explain(fitted, per_cell=["group9"], **FEW)
    with pytest.raises(ValueError, match=r"per_cell: feature of 'adt' 'rna_0' not found"):
        un.tl.explain(fitted, per_cell=["rna_0"], **PAIR, **FEW)
    with pytest.raises(ValueError, match="per_cell: expected names of outputs, True or False"):
        un.tl.explain(fitted, per_cell=[], **FEW)
    assert fingerprint(fitted) == before
    un.tl.explain(fitted, per_cell=["group2", "group0"], **FEW)
    un.tl.explain(fitted, per_cell=["adt_1"], **PAIR, **FEW)
    kept = un.get.relevance(fitted, as_explanation=True)
    assert list(kept.output_names) == ["group2", "group0"]
    with pytest.raises(ValueError, match=r"group 'group9' not found; available: \['group0', "):
        un.get.relevance(fitted, group="group9", as_explanation=True)
    message = r"group kept of every cell 'group1' not found; available: \['group2', 'group0'\]"
    with pytest.raises(ValueError, match=message):
        un.get.relevance(fitted, group="group1", as_explanation=True)
    for feature, message in (
        ("x", "feature of 'adt' 'x' not found; available: "),
        ("adt_2", r"feature of 'adt' kept of every cell 'adt_2' not found; available: \['adt_1'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            un.get.cross_relevance(fitted, **PAIR, target_feature=feature, as_explanation=True)
    with pytest.raises(ValueError, match="feature of 'adt' 'x' not found"):
        un.get.cross_relevance(fitted, **PAIR, target_feature="x")
    for read in (un.get.relevance, lambda m, **k: un.get.cross_relevance(m, **PAIR, **k)):
        with pytest.raises(ValueError, match=r"n_top=3 is for the table; .* pass max_display"):
            read(fitted, as_explanation=True, n_top=3)
