"""Significance of relevance: refits on shuffled features, p-values, false-discovery rate."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mudata import MuData
from scipy import sparse
from scipy.stats import false_discovery_control, kstest

import unitednet_mu as un
from unitednet_mu._matrix import Shuffled, to_dense
from unitednet_mu._null import Null, p_values, q_values, shuffled
from unitednet_mu.tl import _explain_null

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import significance

FEW: dict[str, Any] = {"n_cells": 20, "n_background": 20, "progress": False}


# ------------------------------------------------------------------ p and q


def _by_chance(rng: np.random.Generator, n_tests: int, n_refits: int) -> tuple[Any, Null]:
    """Values and null values of one distribution, of two scales and with a level of each test."""
    blocks = np.arange(n_tests) % 2
    scale, level = np.where(blocks == 0, 1.0, 30.0), rng.exponential(size=n_tests) * 20
    drawn = level + scale * rng.gamma(2.0, size=(n_refits + 1, n_tests))
    values, null = drawn[0], drawn[1:].copy()
    part = np.empty((n_refits, n_tests), bool)
    part[::2] = rng.random((n_refits // 2, n_tests)) < 0.5
    part[1::2] = ~part[::2]
    null[~part] = np.nan
    return values, Null(null, blocks)


@pytest.mark.parametrize("n_refits", [6, 20])
def test_p_is_uniform_where_there_is_nothing(rng: np.random.Generator, n_refits: int) -> None:
    values, null = _by_chance(rng, 4000, n_refits)
    p = p_values(values, null, null)
    assert kstest(p, "uniform").statistic < 0.06
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.02)
    assert (q_values(p) < 0.1).mean() < 0.002
    # the same from a null distribution of others than the tests
    pool, tests = np.arange(0, 3000), np.arange(3000, 4000)
    other = p_values(values[tests], null.take(tests), null.take(pool))
    assert other == pytest.approx(p[tests], abs=0.05)


def test_what_stands_out_has_small_q(rng: np.random.Generator) -> None:
    values, null = _by_chance(rng, 1000, 10)
    planted = np.arange(1000) < 40
    values[planted] += np.where(null.blocks[planted] == 0, 40.0, 1200.0)
    q = q_values(p_values(values, null, null))
    assert (q[planted] < 0.05).all()
    assert (q[~planted] < 0.05).sum() <= 6
    # a block of larger values hides none of the smaller ones
    assert (q[planted & (null.blocks == 0)] < 0.05).all()


def test_what_cannot_be_tested_has_no_p() -> None:
    drawn = np.array([[1.0, 1, 1, 0], [2, np.nan, 2, 0], [3, np.nan, 3, 0], [4, 4, 4, 0]])
    null = Null(drawn, np.zeros(4, int))
    p = p_values(np.array([9.0, 9.0, np.nan, 0.0]), null, null)
    assert np.isnan(p).tolist() == [False, True, True, False]
    assert p[0] < p[3]
    assert np.isnan(q_values(p)).tolist() == [False, True, True, False]


def test_values_that_never_vary_are_told_from_those_above() -> None:
    drawn = np.zeros((6, 3))
    p = p_values(np.array([0.0, 1.0, 2.0]), *[Null(drawn, np.zeros(3, int))] * 2)
    assert p[0] == 1.0
    assert p[1] == p[2] == pytest.approx(1 / 19)


def test_q_is_that_of_benjamini_and_hochberg(rng: np.random.Generator) -> None:
    p = rng.random(50) ** 3
    assert q_values(p) == pytest.approx(false_discovery_control(p))
    padded = false_discovery_control(np.concatenate([p, np.ones(150)]))[:50]
    assert q_values(p, 200) == pytest.approx(padded)
    some = np.where(np.arange(50) % 5 == 0, np.nan, p)
    known = ~np.isnan(some)
    assert q_values(some)[known] == pytest.approx(false_discovery_control(p[known]))


# ------------------------------------------------------------------ shuffling


def _opened(mdata: MuData, batches: bool = False) -> Any:
    data = un.get.model(mdata).open(mdata)
    if batches:
        data.batches = mdata.obs["batch"].cat.codes.to_numpy(np.int64)
    return data


def _values(data: Any, m: int) -> np.ndarray:
    return data.sources[m].take(np.flatnonzero(data.observed[:, m]))


def test_a_part_of_the_features_is_read_from_one_other_cell(fitted: MuData) -> None:
    data = _opened(fitted)
    original = [_values(data, m) for m in (0, 1)]
    n_times = [np.zeros(len(x.T)) for x in original]
    for other, chosen in shuffled(data, [0, 1], None, 4, 0):
        partners = []
        for m, columns in enumerate(chosen):
            found = _values(other, m)
            np.testing.assert_array_equal(found[:, ~columns], original[m][:, ~columns])
            assert (found[:, columns] != original[m][:, columns]).mean() > 0.9
            # continuous values: each row of the part is that of exactly one cell
            same = (found[:, columns][:, None] == original[m][:, columns][None]).all(2)
            assert (same.sum(1) == 1).all() and (same.sum(0) == 1).all()
            partners.append(same.argmax(1))
            n_times[m] += columns
        np.testing.assert_array_equal(*partners)  # of all modalities
    assert all((n == 2).all() for n in n_times)
    for m in (0, 1):
        np.testing.assert_array_equal(_values(data, m), original[m])


def test_shuffling_stays_within_batch_group_and_modalities(quick: dict[str, Any]) -> None:
    mdata = un.datasets.simulate_multimodal(
        n_obs=150, n_groups=3, n_batches=2, missing=0.3, random_state=2
    )
    un.tl.fit(mdata, labels_key="cell_type", **quick)
    data = _opened(mdata, batches=True)
    groups = mdata.obs["cell_type"].cat.codes.to_numpy(np.int64)
    where = {}
    for m in (0, 1):
        cells = np.flatnonzero(data.observed[:, m])
        where |= {
            (m, row.tobytes()): cell for cell, row in zip(cells, _values(data, m), strict=True)
        }
    for bound in (None, groups):
        crossed = False
        for other, chosen in shuffled(data, [0], bound, 2, 1):
            cells = np.flatnonzero(data.observed[:, 0])
            original, found = _values(data, 0), _values(other, 0)
            same = (found[:, chosen[0]][:, None] == original[:, chosen[0]][None]).all(2)
            partner = cells[same.argmax(1)]
            assert (data.batches[partner] == data.batches[cells]).all()
            assert (data.observed[partner] == data.observed[cells]).all()
            within = groups[partner] == groups[cells]
            crossed = crossed or not within.all()
            assert bound is None or within.all()
            np.testing.assert_array_equal(_values(other, 1), _values(data, 1))
        assert crossed == (bound is None)


def test_draws_follow_the_names_of_cells_and_the_seed(fitted: MuData) -> None:
    turned = fitted[np.random.default_rng(0).permutation(fitted.n_obs)].copy()
    where = turned.obs_names.get_indexer(fitted.obs_names)
    draws = [
        [_values(other, 0) for other, _ in shuffled(_opened(cells), [0], None, 2, seed)]
        for cells, seed in ((fitted, 0), (turned, 0), (fitted, 1))
    ]
    for one, other in zip(draws[0], draws[1], strict=True):
        np.testing.assert_array_equal(one, other[where])
    assert not np.array_equal(draws[0][0], draws[2][0])


def test_sparse_matrices_stay_sparse(rng: np.random.Generator) -> None:
    dense = np.where(rng.random((30, 12)) < 0.3, rng.integers(1, 5, (30, 12)), 0).astype(np.float32)
    partner, chosen = rng.permutation(30), rng.random(12) < 0.5
    rows = rng.permutation(30)[:20]
    expected = np.where(chosen, dense[partner[rows]], dense[rows])
    for matrix in (dense, sparse.csr_matrix(dense), sparse.csr_array(dense)):
        found = Shuffled(matrix, partner, chosen)[rows]
        assert sparse.issparse(found) == sparse.issparse(matrix)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(to_dense(found), expected)


# ------------------------------------------------------------------ explain


@pytest.fixture(scope="module")
def _tested() -> MuData:
    mdata = un.datasets.simulate_multimodal(
        n_obs=240, n_groups=3, n_vars={"rna": 30, "adt": 20}, noise=0.7, random_state=3
    )
    un.tl.fit(
        mdata,
        labels_key="cell_type",
        network={"n_hidden": (32,), "n_latent": 16, "n_projector": 16},
        training={"max_epochs": 25, "batch_size": 32, "refit": False},
        device="cpu",
        progress=False,
    )
    un.tl.explain(mdata, n_permutations=6, **FEW)
    un.tl.explain(mdata, source="rna", target="adt", n_permutations=8, **FEW)
    return mdata


@pytest.fixture
def tested(_tested: MuData) -> MuData:
    return _tested.copy()


def _of_feature(mdata: MuData, what: str) -> dict[str, str]:
    truth = mdata.uns["truth"][what]
    return {
        feature: value
        for mod in mdata.mod
        for feature, value in zip(mdata[mod].var_names, truth[mod], strict=True)
    }


def test_planted_markers_are_found_and_noise_is_not(tested: MuData) -> None:
    table = un.get.relevance(tested)
    assert list(table.columns)[-2:] == ["p", "q"]
    assert table["q"].between(0, 1).all() and (table["q"] >= table["p"] - 1e-6).all()
    marks = table["feature"].map(_of_feature(tested, "marker_of"))
    linked = table["feature"].map(_of_feature(tested, "link_of")) != ""
    own = marks == table["group"]
    assert (table.loc[own, "q"] < 0.1).mean() > 0.9
    unrelated = table[(marks == "") & ~linked]
    assert (unrelated["q"] < 0.1).mean() < 0.05
    assert (unrelated["p"] < 0.05).mean() < 0.12
    assert unrelated["p"].median() > 0.3
    for _, one in table.groupby("group"):
        assert one["q"].to_numpy() == pytest.approx(
            false_discovery_control(one["p"].to_numpy(np.float64)), rel=1e-4
        )
    # q belongs to the whole group, whatever is asked for
    some = un.get.relevance(tested, group="group1", modality="adt", n_top=3)
    merged = some.merge(table, on=["feature", "modality", "group"])
    assert (merged["q_x"] == merged["q_y"]).all()
    assert tested.uns["unitednet"]["relevance"]["params"]["n_permutations"] == 6


def test_planted_links_stand_out_of_pairs(tested: MuData) -> None:
    table = un.get.cross_relevance(tested, source="rna", target="adt")
    assert list(table.columns)[-2:] == ["p", "q"]
    link, marker = (_of_feature(tested, what) for what in ("link_of", "marker_of"))
    of_source, of_target = table["feature"].map(link), table["target_feature"].map(link)
    linked = (of_source == of_target) & (of_source != "")
    assert linked.sum() == 9
    assert table.loc[linked, "p"].median() < 0.02
    # features that mark groups predict each other, but not within groups
    markers = (table["feature"].map(marker) != "") & (table["target_feature"].map(marker) != "")
    assert (table.loc[markers, "p"] < 0.05).mean() < 0.12
    others = table[~linked]
    assert (others["p"] < 0.05).mean() < 0.1
    assert others["p"].median() > 0.35
    assert (others["q"] < 0.1).mean() < 0.01


def test_kept_pairs_are_tested_among_all(fitted: MuData, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept changes no p, and no q but that which pairs left out would lower."""
    pair = {"source": "rna", "target": "adt", "groupby": "cell_type"}
    settings = {**pair, "n_permutations": 6, **FEW}
    un.tl.explain(fitted, **settings)
    every = un.get.cross_relevance(fitted, source="rna", target="adt")
    un.tl.explain(fitted, top_k=40, **settings)
    kept = un.get.cross_relevance(fitted, source="rna", target="adt")
    assert len(kept) == 3 * 40
    both = kept.merge(every, on=["feature", "target_feature", "group"])
    assert both["p_x"].to_numpy() == pytest.approx(both["p_y"].to_numpy(), abs=1e-6)
    assert (both["q_x"] >= both["q_y"] - 1e-6).all()
    # a null distribution of some source features only is about the same
    monkeypatch.setattr(_explain_null, "_NULL_PAIRS", 1)
    monkeypatch.setattr(_explain_null, "_FEWEST_SOURCES", 20)
    un.tl.explain(fitted, top_k=40, **settings)
    fewer = un.get.cross_relevance(fitted, source="rna", target="adt")
    assert not np.array_equal(fewer["p"], kept["p"])
    assert np.corrcoef(fewer["p"], kept["p"])[0, 1] > 0.95


def test_seed_random_state_and_copy(fitted: MuData, fingerprint: Any) -> None:
    torch.manual_seed(5)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    before = fingerprint(fitted)
    one, other = (
        un.tl.explain(fitted, n_permutations=6, random_state=2, copy=True, **FEW) for _ in range(2)
    )
    assert fingerprint(fitted) == before
    pd.testing.assert_frame_equal(un.get.relevance(one), un.get.relevance(other))
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    # the values are those without significance
    un.tl.explain(fitted, random_state=2, **FEW)
    plain = un.get.relevance(fitted)
    assert list(plain.columns) == [c for c in un.get.relevance(one) if c not in "pq"]
    pd.testing.assert_frame_equal(plain, un.get.relevance(one)[list(plain.columns)])


def test_nothing_is_written_where_a_refit_fails(
    fitted: MuData, fingerprint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = _explain_null.train_again

    def fail(*args: Any, **named: Any) -> Any:
        if args[3] == 4:
            raise RuntimeError("training diverged")
        return trained(*args, **named)

    monkeypatch.setattr(_explain_null, "train_again", fail)
    before = fingerprint(fitted)
    with pytest.raises(RuntimeError, match="diverged"):
        un.tl.explain(fitted, n_permutations=6, **FEW)
    assert fingerprint(fitted) == before


def test_groups_and_batches_of_mosaic_cells(quick: dict[str, Any]) -> None:
    mdata = un.datasets.simulate_multimodal(
        n_obs=150, n_groups=3, n_batches=2, missing=0.3, values={"rna": "binary"}, random_state=2
    )
    un.tl.fit(mdata, labels_key="cell_type", batch_key="batch", **quick)
    un.tl.explain(mdata, groupby="cell_type", n_permutations=6, **FEW)
    assert un.get.relevance(mdata)["p"].notna().all()
    un.tl.explain(mdata, source="rna", target="adt", n_permutations=6, **FEW)
    assert un.get.cross_relevance(mdata, source="rna", target="adt")["p"].notna().all()


def test_groups_found_from_the_features_are_not_tested(
    paired: MuData, quick: dict[str, Any]
) -> None:
    un.tl.fit(paired, n_groups=3, **quick)
    with pytest.raises(ValueError, match=r"found\s+from the features to be tested"):
        un.tl.explain(paired, n_permutations=6, **FEW)
    # pairs are: which cell is of which group is settled before
    un.tl.explain(paired, source="rna", target="adt", n_permutations=6, **FEW)
    assert "q" in un.get.cross_relevance(paired, source="rna", target="adt")


@pytest.mark.parametrize("number", [-1, 5, 2.5, True, "many"])
def test_impossible_numbers(fitted: MuData, number: Any) -> None:
    with pytest.raises(ValueError, match="n_permutations: expected 0 or an integer >= 6"):
        un.tl.explain(fitted, n_permutations=number, **FEW)


def test_one_model_is_tested(fitted: MuData) -> None:
    with pytest.raises(ValueError, match="n_permutations tests one model, and 3 are"):
        un.tl.explain(fitted, n_permutations=6, n_repeats=2, **FEW)


def test_the_training_data_must_be_there(fitted: MuData, fingerprint: Any) -> None:
    fitted.obs = fitted.obs.drop(columns="cell_type")
    before = fingerprint(fitted)
    with pytest.raises(ValueError, match="cell_type"):
        un.tl.explain(fitted, n_permutations=6, **FEW)
    assert fingerprint(fitted) == before


def test_files_keep_p_and_q(tested: MuData, tmp_path: Any) -> None:
    import mudata as md

    with un._compat.quiet_update():
        tested.write_h5mu(tmp_path / "x.h5mu")
        back = md.read_h5mu(tmp_path / "x.h5mu")
    pd.testing.assert_frame_equal(un.get.relevance(back), un.get.relevance(tested))
    pair = {"source": "rna", "target": "adt"}
    pd.testing.assert_frame_equal(
        un.get.cross_relevance(back, **pair), un.get.cross_relevance(tested, **pair)
    )


def test_a_short_run_of_the_benchmark(
    quick: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    table = significance.main(
        [
            *(
                "--sets",
                "labels at random",
                "pairs",
                "--seeds",
                "0",
                "--n-obs",
                "90",
                "--n-permutations",
                "6",
                "--device",
                "cpu",
            ),
            *("--network", json.dumps(quick["network"])),
            *("--training", json.dumps(quick["training"])),
        ]
    )
    n_tests = table.groupby("set")["n"].sum()
    assert n_tests["pairs"] == 3 * 60 * 30
    assert (n_tests > 0).all() and len(n_tests) == 2
    shares = table[["p <= 0.05", "p <= 0.5", "q <= 0.1"]]
    assert shares.stack().between(0, 1).all()
    assert "labels at random" in capsys.readouterr().out
