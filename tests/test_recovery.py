"""The benchmark of recovered links: its scores on scores that are known, and one short run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from mudata import MuData

import unitednet_mu as un
from unitednet_mu._compat import quiet_update

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import _ours
import _table
import recovery

NETWORK = {"n_hidden": [32], "n_latent": 8, "dropout": 0.0, "input_dropout": 0.2}
TRAINING = {"max_epochs": 3, "batch_size": 32, "refit": False}


def _planted(rng: np.random.Generator, n: int = 400) -> recovery.Pair:
    """Each of ten targets follows two of thirty sources; three others follow their group only."""
    groups = np.arange(n) % 3
    x = rng.standard_normal((n, 30)) + 2 * (groups[:, None] == np.arange(30) % 3)
    links = np.zeros((30, 13), bool)
    for j in range(10):
        links[rng.choice(30, 2, replace=False), j] = True
    y = x @ links + rng.standard_normal((n, 13)) + 2 * (groups[:, None] == np.arange(13) % 3)
    x, y = ((v - v.mean(axis=0)) / v.std(axis=0) for v in (x, y))
    return recovery.Pair(x, y, groups, links, 0)


def test_precision_of_known_scores(rng: np.random.Generator) -> None:
    links = rng.random((300, 40)) < 0.2
    links[:, :3] = False
    truth = recovery.precision_by_target(links, links.astype(float))
    assert np.isnan(truth[:3]).all() and truth[3:] == pytest.approx(np.ones(37))
    noise = recovery.precision_by_target(links, rng.random(links.shape))
    assert np.nanmean(noise) == pytest.approx(links[:, 3:].mean(), abs=0.03)
    reverse = recovery.precision_by_target(links, -links.astype(float))
    assert np.nanmean(reverse) < np.nanmean(noise)
    # of four sources the linked ones rank first and third: (1 / 1 + 2 / 3) / 2
    one = recovery.precision_by_target(
        np.array([[1], [0], [1], [0]], bool), np.array([[9.0], [5.0], [3.0], [1.0]])
    )
    assert one == pytest.approx([5 / 6])
    # each target ranks by itself, whatever its scale
    scaled = recovery.precision_by_target(
        links, rng.random(links.shape) * np.arange(1, 41) + links * 50
    )
    assert scaled[3:] == pytest.approx(np.ones(37))


def test_methods_find_what_is_planted(rng: np.random.Generator) -> None:
    pair = _planted(rng)
    assert pair.linked.tolist() == list(range(10))
    chance = np.nanmean(recovery.by_chance(pair))
    assert 0.05 < chance < 0.3
    value = {
        method: np.nanmean(recovery.precision_by_target(pair.links, score(pair)))
        for method, score in recovery.PEERS.items()
    }
    assert value["|ridge coefficient|"] > 0.95
    assert value["|correlation within groups|"] > 0.95
    assert value["random forest importance"] > 0.9
    assert chance < value["|correlation|"] < value["|correlation within groups|"]
    r = np.corrcoef(pair.x.T, pair.y.T)[:30, 30:]
    assert recovery.correlation(pair) == pytest.approx(np.abs(r))


def test_gradients_are_those_of_the_prediction(quick) -> None:
    mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2, n_vars={"a": 9, "b": 7})
    un.tl.fit(mdata, labels_key="cell_type", **quick)
    model = un.get.model(mdata)
    found = recovery.gradients(mdata, "a", "b")
    scale = [model.network.standardisers[m].scale.numpy() for m in (0, 1)]
    x = torch.tensor(mdata["a"].X, dtype=torch.float32)

    def predicted(shift: torch.Tensor) -> torch.Tensor:
        code = model.network.encode(0, x + shift)
        return model.network.to_units(1, model.network.decode(1, code)).mean(0)

    jacobian = torch.autograd.functional.jacobian(predicted, torch.zeros(9)).numpy()
    expected = np.abs(jacobian.T * scale[0][:, None] / scale[1])
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_our_relevance_is_the_mean_over_groups(fitted) -> None:
    found = recovery.relevance(fitted, "rna", "adt", _ours.Settings(device="cpu"))
    table = un.get.cross_relevance(fitted, source="rna", target="adt")
    means = table.assign(size=table["value"].abs()).groupby(["feature", "target_feature"])
    for method, column in zip(found, ("absolute", "size"), strict=True):
        expected = means[column].mean().unstack()
        expected = expected.loc[fitted["rna"].var_names, fitted["adt"].var_names]
        assert found[method] == pytest.approx(expected.to_numpy(), rel=1e-4, abs=1e-7)


def test_a_short_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_N_RANDOM", 2)
    out = tmp_path / "table.csv"
    table = recovery.main(
        [
            *("--seeds", "0", "--n-obs", "80", "--resamples", "10", "--device", "cpu"),
            *("--methods", "|correlation|"),
            *("--network", json.dumps(NETWORK), "--training", json.dumps(TRAINING)),
            *("--out", str(out)),
        ]
    )
    assert list(table.columns) == _table.COLUMNS
    assert set(zip(table["data"], table["task"], strict=True)) == {
        *(("regulation", f"atac to {target}") for target in ("premrna", "mrna", "adt")),
        *(("regulation", f"premrna to {target}") for target in ("mrna", "adt")),
        ("regulation", "mrna to adt"),
        *(("two views", "view_a to view_b"), ("two views", "view_b to view_a")),
    }
    assert set(table["seeds"]) == {1}
    assert table["median"].between(0, 1).all()
    ours = table["method"].str.startswith(_ours.OURS)
    assert ours.sum() == 2 * 8
    assert table.loc[ours, "verdict"].isin(["ahead", "even", "behind"]).all()
    pd.testing.assert_frame_equal(pd.read_csv(out, dtype={"values": str}), table, check_dtype=False)
    assert "random order" in capsys.readouterr().out
    value = table.set_index(["task", "method"])["median"]
    for task in ("premrna to mrna", "mrna to adt"):  # one link a target: plain to see
        assert value[task, "|correlation|"] > 3 * value[task, "random order"]


def test_peaks_near_a_gene(tmp_path: Path, rng: np.random.Generator) -> None:
    """Counted from the peak's nearer end to the gene's start, on the same chromosome."""
    peaks = ["chr1:1-500", "chr1:150000-150500", "chr1:250501-250600", "chr2:150000-150500"]
    counts = {"atac": rng.poisson(2, (40, 4)), "rna": rng.poisson(9, (40, 3))}
    modalities = {name: AnnData(x.astype(np.float32)) for name, x in counts.items()}
    modalities["atac"].var_names = peaks
    modalities["rna"].var_names = ["a", "b", "c"]
    places = ["chr1:150500-190000", "chr2:10-20", "?"]
    modalities["rna"].var["interval"] = places
    expected = np.zeros((4, 3), bool)
    expected[[1], 0] = True  # the first is 150,000 away, the third 100,001
    with quiet_update():
        mdata = MuData(modalities)
        mdata.write_h5mu(tmp_path / "some.h5mu")
    found = recovery.multiome(tmp_path / "some.h5mu")
    np.testing.assert_array_equal(found.uns["truth"]["links"]["rna_from_atac"], expected)
    assert found["rna"].X.max() < counts["rna"].max()  # prepared
    found["rna"].var["interval"] = ["chr1:150501-190000", "chr2:250500-250500", "?"]
    expected[[2, 3], [0, 1]] = True
    np.testing.assert_array_equal(recovery.near(found["atac"], found["rna"]), expected)
