"""The accuracy benchmark on a small simulated set: its rows, its splits, its scorers."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import kneighbors_graph

import unitednet_mu as un
from unitednet_mu._compat import quiet_update
from unitednet_mu._config import NetworkConfig, TrainingConfig
from unitednet_mu._data import to_dense
from unitednet_mu._tasks import Tasks

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import _denoise
import _original
import _peers
import _prepare
import _run
import _scorers
import _splits
import _table
import _tasks
import ablation
import accuracy
import draws
import explain
import markers
import niche
import overlap
import processes
import scale
import speed
import startup
import time_to_loss
from _plain_loop import PlainLoop

NETWORK = {"n_hidden": [32], "n_latent": 8, "n_heads": 1, "dropout": 0.0, "input_dropout": 0.2}
TRAINING = {"validation_fraction": 0.2, "max_epochs": 20, "batch_size": 32, "averaging": 0.8}
QUICK = [
    *("--seeds", "0", "--resamples", "20", "--device", "cpu"),
    *("--network", json.dumps(NETWORK), "--training", json.dumps(TRAINING)),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of 160 simulated cells in three groups and two batches; 10 have no label."""
    mdata = un.datasets.simulate_multimodal(
        n_obs=160,
        n_groups=3,
        n_vars={"rna": 40, "ephys": 20},
        values={"rna": "counts", "ephys": "continuous"},
        n_batches=2,
        batch_effect=0.2,
        noise=0.3,
    )
    mdata.obs["cell_type"] = mdata.obs["cell_type"].cat.add_categories("unknown")
    mdata.obs.loc[mdata.obs_names[:10], "cell_type"] = "unknown"
    file = tmp_path_factory.mktemp("data") / "simulated.h5mu"
    with quiet_update():
        mdata.write_h5mu(file)
    return file


@pytest.fixture(scope="module")
def data(path: Path) -> _prepare.Prepared:
    return _prepare.read(path)[0]


@pytest.fixture(scope="module")
def tissue(data: _prepare.Prepared) -> _prepare.Prepared:
    """The same cells on a grid."""
    grid = np.stack(np.divmod(np.arange(len(data)), 13), 1).astype(float)
    return dataclasses.replace(data, coordinates=grid)


def _neighbours(embedding: np.ndarray, *, random_state: int) -> sparse.csr_matrix:
    near = kneighbors_graph(embedding, 15)
    return sparse.csr_matrix(near + near.T)


def test_groups_and_prediction(
    path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # scanpy's graph takes a minute to compile the first time
    monkeypatch.setattr(_tasks, "neighbour_graph", _neighbours)
    out = tmp_path / "table.csv"
    methods = ["unitednet", "pca", "pca_concat", "ridge", "knn", "means"]
    table = accuracy.main(
        [
            str(path),
            *QUICK,
            "--tasks",
            "groups",
            "predict",
            "--methods",
            *methods,
            "--out",
            str(out),
        ]
    )
    printed = capsys.readouterr().out
    assert "10 without a label" in printed
    assert "rna: 40 features, RNA counts" in printed
    assert "ephys: 20 features, taken as they are" in printed
    assert list(table.columns) == _table.COLUMNS
    stored = pd.read_csv(out, dtype={"values": str})
    pd.testing.assert_frame_equal(stored, table, check_dtype=False)
    assert not table[["task", "metric", "method"]].duplicated().any()
    assert np.isfinite(table["median"]).all()
    found = table.groupby("task")["method"].agg(set)
    assert found["groups without labels"] == {
        *("unitednet_mu", "unitednet_mu, its own groups", "unitednet_mu, Leiden"),
        *("PCA of rna", "PCA of rna, Leiden", "PCA of ephys", "PCA of ephys, Leiden"),
        *("PCA side by side", "PCA side by side, Leiden"),
    }
    predictors = {"unitednet_mu", *(method for method, _ in _peers.PREDICTORS.values())}
    assert found["rna to ephys"] == found["ephys to rna"] == predictors
    ours = table["method"].str.startswith("unitednet_mu")
    alone = table["metric"] == "in 90 % intervals"
    against = ["best_peer", "difference", "low", "high", "verdict"]
    assert table.loc[ours & ~alone, against].notna().all(axis=None)
    assert alone.sum() == 2 and table.loc[alone, "median"].between(0.75, 1).all()
    assert table.loc[~ours, "best_peer"].isna().all()

    # planted: groups that are plain to see, links by which one modality tells of the other
    value = table.set_index(["task", "metric", "method"])["median"].sort_index()
    assert value["groups without labels", "ARI", "PCA side by side, Leiden"] > 0.9
    assert value["groups without labels", "kNN label accuracy", "unitednet_mu"] > 0.8
    within = value["rna to ephys", "mean r within groups"]
    assert within["ridge regression"] > 0.1 > within["mean of the predicted group"]
    assert value["rna to ephys", "mean r", "unitednet_mu"] > 0.1


def test_number_of_groups(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tasks, "neighbour_graph", _neighbours)
    methods = ["unitednet", "pca_concat"]
    table = accuracy.main([str(path), *QUICK, "--tasks", "number", "--methods", *methods])
    assert set(table["task"]) == {"groups, number unknown"}
    value = table.set_index(["metric", "method"])["median"]
    for method in ("unitednet_mu, its own groups", "PCA side by side, Leiden"):
        assert value["ARI", method] > 0.5
        assert 3 * value["groups found per label", method] == pytest.approx(
            round(3 * value["groups found per label", method])
        )


def test_labels(path: Path) -> None:
    methods = ["unitednet", "adaptation", "logistic"]
    tasks = ["transfer", "confidence", "unknown"]
    table = accuracy.main([str(path), *QUICK, "--tasks", *tasks, "--methods", *methods])
    found = table.groupby(["task", "metric"])["method"].agg(set)
    labelled = {"unitednet_mu", "unitednet_mu, adapted", _peers.LOGISTIC}
    assert all(methods == labelled for methods in found)
    assert found.groupby("task").size().to_dict() == {"confidence": 3, "transfer": 3, "unknown": 4}

    value = table.set_index(["task", "metric", "method"])["median"].sort_index()
    assert value["transfer", "balanced accuracy", _peers.LOGISTIC] > 0.9
    assert value["confidence", "Brier score", _peers.LOGISTIC] < 0.1
    assert value["unknown", "AUROC, mean over types", _peers.LOGISTIC] > 0.8
    assert value["transfer", "balanced accuracy", "unitednet_mu"] > 0.5


def test_what_is_missing_is_said(
    data: _prepare.Prepared, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_peers.importlib.util, "find_spec", lambda name: None)
    run = _run.Run(data, 0, methods=("mofa", "totalvi"))
    assert not list(_tasks.groups(run)) and not list(_tasks.batches(run))
    said = capsys.readouterr().err
    for package in ("mofapy2", "scvi-tools", "scib-metrics"):
        assert f"skipped: pip install {package}" in said


def test_no_cell_is_trained_on_and_held_out(
    data: _prepare.Prepared, tissue: _prepare.Prepared
) -> None:
    for split in (_splits.folds, _splits.by_batch):
        for cells in (data, tissue):
            for seed in range(3):
                splits = split(cells, seed)
                assert not any(np.intersect1d(train, test).size for train, test in splits)
                held_out = np.sort(np.concatenate([test for _, test in splits]))
                assert held_out.tolist() == list(range(len(cells)))
    assert len(_splits.by_batch(data, 0)) == 2
    train, test = _splits.folds(data, 0)[0]
    assert len(test) / len(data) == pytest.approx(0.2, abs=0.02)
    assert len(train) + len(test) == len(data)
    train, test = _splits.folds(tissue, 0)[0]
    apart = tissue.coordinates[train][:, None] - tissue.coordinates[test]
    assert np.linalg.norm(apart, axis=2).min() > 2


def test_labels_are_handed_over_on_request_only(data: _prepare.Prepared) -> None:
    bare = data.part(np.arange(5))
    assert not len(bare.obs.columns) and not any(len(a.obs.columns) for a in bare.mod.values())
    assert data.part(np.arange(5), _prepare.LABELS).obs.columns.tolist() == [_prepare.LABELS]


def test_nothing_is_predicted_from_its_own_neighbourhood(data: _prepare.Prepared) -> None:
    niche = dataclasses.replace(
        data, modalities={**data.modalities, "niche": data.modalities["rna"]}
    )
    assert niche.directions == [
        *(("rna", "ephys"), ("ephys", "rna"), ("ephys", "niche"), ("niche", "ephys")),
    ]
    around = data.modalities["rna"].copy()
    around.uns["unitednet_derived"] = {"source": np.array(["ephys"])}
    marked = dataclasses.replace(data, modalities={**data.modalities, "around": around})
    assert ("ephys", "around") not in marked.directions and ("rna", "around") in marked.directions


def test_subsample_keeps_shares(path: Path) -> None:
    few = _prepare.read(path, max_cells=60)[0]
    assert len(few) == 60
    assert np.unique(few.labels, return_counts=True)[1].tolist() == pytest.approx([20] * 3, abs=2)


def test_layers_are_taken_as_they_are(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with quiet_update():
        mdata = mudata.read_h5mu(path)
    mdata["rna"].layers["own"] = np.sqrt(to_dense(mdata["rna"].X))
    file = tmp_path / "own.h5mu"
    with quiet_update():
        mdata.write_h5mu(file)
    own, notes = _prepare.read(file, layers={"rna": "own"})
    expected = mdata["rna"][own.modalities["rna"].obs_names].layers["own"]
    np.testing.assert_array_equal(own.values("rna"), expected.astype(np.float32))
    assert own.kinds["rna"] == "continuous" and any("as they are" in note for note in notes)
    with pytest.raises(ValueError, match="--layers adt=own: expected a layer of a modality"):
        _prepare.read(file, layers={"adt": "own"})
    with pytest.raises(SystemExit):
        accuracy.main([str(file), "--layers", "own"])
    assert "expected MODALITY=LAYER, found 'own'" in capsys.readouterr().err


def test_scorers_agree_with_the_package(rng: np.random.Generator) -> None:
    labels = rng.choice(["a", "b", "c"], 80)
    probabilities = rng.dirichlet(np.ones(3), 80)
    labelled = _scorers.Labelled(labels)
    labelled.add(np.arange(80), np.array(["c", "a", "b"]), probabilities)
    found = np.array(["c", "a", "b"])[probabilities.argmax(1)]
    scores = {metric: scorer(np.arange(80)) for _, metric, scorer, _ in labelled.scorers()}
    expected = un.metrics.classification_scores(labels, found)
    assert scores["accuracy"] == pytest.approx(expected["accuracy"])
    assert scores["balanced accuracy"] == pytest.approx(expected["balanced_accuracy"])
    assert scores["macro F1"] == pytest.approx(expected["macro_f1"])
    correct = roc_auc_score(labels == found, probabilities.max(1))
    assert scores["AUROC of correctness"] == pytest.approx(correct)


def test_interval_against_the_best_peer(rng: np.random.Generator) -> None:
    worse = rng.random(100)

    def score(method: str, values: np.ndarray, **how: bool) -> _table.Score:
        return _table.Score("task", "metric", method, 0, _table.mean_of(values), 100, **how)

    for lower, verdict in ((False, "ahead"), (True, "behind")):
        same = [
            score("ours", worse + 0.1, ours=True, lower_is_better=lower),
            score("ours again", worse, ours=True, lower_is_better=lower),
            score("peer", worse, lower_is_better=lower),
        ]
        table = _table.summarise(same, "data", 50).set_index("method")
        assert table.loc["ours", "verdict"] == verdict
        assert table.loc["ours", "difference"] == pytest.approx(0.1)
        assert table.loc["ours again", "verdict"] == "even"


def test_ablation(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {
        name: {
            "network": {**NETWORK, **what.get("network", {})},
            "training": {**TRAINING, **what.get("training", {})},
        }
        for name, what in ablation.VARIANTS.items()
    }
    monkeypatch.setattr(ablation, "VARIANTS", quick)
    monkeypatch.setattr(_tasks, "neighbour_graph", _neighbours)
    variants = ["identification only", "groups start at random"]
    out = tmp_path / "table.csv"
    table = ablation.main([str(path), "--seeds", "0", "--variants", *variants, "--out", str(out)])
    assert set(table["metric"]) == set(ablation.SHOWN.values())
    found = table.groupby("variant")["metric"].agg(set)
    assert found["identification only"] - found["groups start at random"] == {
        "transfer, balanced accuracy"
    }
    pd.testing.assert_frame_equal(pd.read_csv(out), table, check_dtype=False)
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*variants, *ablation.SHOWN.values()])

    # planted: one modality tells of the other, which nothing teaches without decoders being trained
    change = table.set_index(["variant", "metric"])["difference"]
    assert change["identification only", "prediction, r"] < -0.05


def test_every_variant_is_understood_and_differs() -> None:
    plain = [TrainingConfig.build(None), NetworkConfig.build(None)]
    for name, what in ablation.VARIANTS.items():
        configs = [
            TrainingConfig.build(what.get("training")),
            NetworkConfig.build(what.get("network")),
        ]
        assert (configs == plain) == (name == ablation.DEFAULT)


def test_differences_to_the_defaults() -> None:
    values = pd.DataFrame(
        [
            {"seed": seed, "variant": variant, "metric": "r", "value": value}
            for variant, of_seeds in (("defaults", (0.5, 0.7)), ("less", (0.4, 0.2)))
            for seed, value in enumerate(of_seeds)
        ]
    )
    row = ablation.summarise(values, "set").iloc[0]
    assert row["default"] == pytest.approx(0.6) and row["seeds"] == 2
    assert row["difference"] == pytest.approx(-0.3)
    assert row["error"] == pytest.approx(0.2)
    alone = ablation.summarise(values[values["seed"] == 0], "set")
    assert np.isnan(alone["error"]).all()
    assert "-0.100" in ablation.printed(alone)


def test_halves_share_out_every_molecule(data: _prepare.Prepared) -> None:
    one, two = _denoise.halves(data, ["rna"], 0)
    parts = [half.modalities["rna"].layers[_prepare.COUNTS].toarray() for half in (one, two)]
    whole = data.modalities["rna"].layers[_prepare.COUNTS].toarray()
    np.testing.assert_array_equal(parts[0] + parts[1], whole)
    for part in parts:
        assert part.sum() / whole.sum() == pytest.approx(0.5, abs=0.02)
    # given the whole, the halves' noise is opposed; across molecules it is independent
    assert abs(np.corrcoef(*[(part - whole / 2).ravel() for part in parts])[0, 1] + 1) < 1e-6
    np.testing.assert_array_equal(one.values("ephys"), data.values("ephys"))
    assert one.values("rna").max() < whole.max()  # prepared, not counts


def test_denoise(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = ["unitednet", "pca", "knn"]
    table = accuracy.main([str(path), *QUICK, "--tasks", "denoise", "--methods", *methods])
    value = table.set_index(["task", "metric", "method"])["median"].sort_index()
    found = value["denoised rna", "mean r"]
    assert set(found.index) == {
        *("unitednet_mu", "as measured", "PCA of rna", "mean of neighbours, PCA side by side"),
    }
    assert set(table["task"]) == {"denoised rna"}  # ephys has no counts
    # the other modality and the neighbours know what noise hides
    assert found.drop("as measured").min() > found["as measured"] > 0.1


_STAND_IN = """
import torch

from src.configs import *


class Module(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.sizes = [part["input"] for part in config["encoders"]]
        assert [part["output"] for part in config["decoders"]] == self.sizes
        self.n_groups = config["clusters"]["output"]
        self.level = torch.rand(1).item()

    def forward(self, modalities):
        n = len(modalities[0])
        decoded = [
            [modality.mean(1, keepdim=True).expand(n, size).numpy() for modality in modalities]
            for size in self.sizes
        ]
        groups = (torch.arange(n) % self.n_groups).numpy()
        return decoded, groups, torch.cat(modalities, 1).numpy()


class UnitedNet:
    def __init__(self, save_path=None, device="cpu", technique=patchseq_config):
        self.model, self.steps = Module(technique), []

    def train(self, cells):
        assert all("label" not in modality.obs for modality in cells)
        self.model.train()

    def finetune(self, cells):
        self.model.tuned = True
"""


def test_the_original_is_run_from_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """A stand-in with its interface: what is handed over, and what is made of its answers."""
    with pytest.raises(FileNotFoundError, match="--original: expected a checkout"):
        _original.fit_original(tmp_path, {}, 2, 0)
    source = tmp_path / "src"
    (source / "configs").mkdir(parents=True)
    (source / "configs" / "__init__.py").write_text("raise RuntimeError('Windows only')\n")
    layer = {"input": 1, "output": 1}
    parts = {part: [dict(layer)] for part in ("encoders", "decoders", "discriminators")}
    (source / "configs" / "patchseq.py").write_text(
        f"patchseq_config = {parts | {'clusters': dict(layer)}!r}\n"
    )
    (source / "interface.py").write_text(_STAND_IN)
    for name in ("src", "src.configs", "src.interface"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    values = {"rna": rng.normal(3, 2, (40, 5)), "adt": rng.normal(-1, 4, (40, 2))}
    fits = [_original.fit_original(tmp_path, values, 3, seed) for seed in (0, 0, 1)]
    assert fits[0].module.tuned and not fits[0].module.training
    levels = [fit.module.level for fit in fits]
    assert levels[0] == levels[1] != levels[2]
    groups, codes = fits[0].identify(values)
    assert set(groups) == {0, 1, 2} and codes.shape == (40, 7)
    found = fits[0].predict(values["rna"], "rna", "adt")
    standardised = (values["rna"] - values["rna"].mean(0)) / values["rna"].std(0)
    expected = standardised.mean(1)[:, None] * values["adt"].std(0) + values["adt"].mean(0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for name in ("src", "src.configs", "src.interface"):
        sys.modules.pop(name, None)


def test_draws_agree_by_order_and_by_what_is_on_top() -> None:
    values = np.random.default_rng(0).normal(size=(2, 400))
    assert draws.agreement(values, values, "groups") == (pytest.approx(1), 1)
    assert draws.agreement(values, 2 * values + 1, "groups") == (pytest.approx(1), 1)
    # turned round, other features are on top, but the same pairs by size
    assert draws.agreement(values, -values, "groups") == (pytest.approx(-1), 0)
    assert draws.agreement(values, -values, "pairs") == (pytest.approx(-1), 1)
    apart = values[:, ::-1].copy()
    assert abs(draws.agreement(values, apart, "groups")[0]) < 0.2


def test_markers_are_scored_among_all_features() -> None:
    raw = un.datasets.pbmc_citeseq()
    listed = [
        (m, name)
        for lists in markers.MARKERS.values()
        for m, text in lists.items()
        for name in text.split()
    ]
    assert len(set(listed)) == len(listed) > 150  # no feature marks two types
    assert set(markers.MARKERS) == set(raw.obs["cell_type"].cat.categories)
    names = [(m, name) for m in ("rna", "adt") for name in raw[m].var_names]
    assert set(listed) <= set(names)
    values = pd.Series(0.0, index=pd.MultiIndex.from_tuples(names))
    assert markers.auroc(values, "B") == 0.5
    values["adt", "cd19"] = 1.0
    assert 0.5 < markers.auroc(values, "B") < 0.6
    values[[(m, x) for m, text in markers.MARKERS["B"].items() for x in text.split()]] = 1.0
    assert markers.auroc(values, "B") == 1


def test_scale_writes_measures_and_deletes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(path: Path, where: str, device: str) -> dict[str, float]:  # a process takes seconds
        scale.main(["--measure", where, str(path), "--device", device])
        found: dict[str, float] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return found

    monkeypatch.setattr(scale, "apart", here)
    report = scale.main(
        ["--cells", "300", "600", "--features", "60", "12", "--folder", str(tmp_path)]
    )
    assert report is not None and not list(tmp_path.iterdir())
    assert report["cells"].tolist() == [300, 300, 600, 600]
    assert report["read from"].tolist() == ["disk", "memory"] * 2
    for name in ("epoch, cells/s", "integrate, cells/s", "fit of one epoch, s", "peak RSS, GiB"):
        assert (report[name] > 0).all()
    assert (report["epoch: speed of in memory"] != "").tolist() == [True, False] * 2
    assert (report["epoch: cost a cell to size before"] != "").tolist() == [False] * 2 + [True] * 2
    assert "peak RSS, GiB" in capsys.readouterr().out


def test_cells_of_scale_are_sparse_and_of_groups(tmp_path: Path) -> None:
    scale.write_cells(tmp_path / "cells.h5mu", 6000, 100, 12)
    mdata = mudata.read_h5mu(tmp_path / "cells.h5mu")
    counts = np.expm1(mdata["rna"].X.toarray())
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-3)
    assert 0.03 < (counts > 0).mean() < 0.07
    assert mdata.n_obs == len(set(mdata.obs_names)) == len(mdata["adt"].X) == 6000
    assert not mdata.obs_names.is_monotonic_increasing  # names tell nothing of the order
    means = pd.DataFrame(mdata["adt"].X).groupby(mdata.obs["cell_type"].to_numpy()).mean()
    assert len(means) == scale.N_GROUPS and means.std().min() > 0.1
    first, again = (next(scale.Cells(100, 12, 0).blocks(10)) for _ in range(2))
    np.testing.assert_array_equal(first[1].toarray(), again[1].toarray())


def test_speed(capsys: pytest.CaptureFixture[str]) -> None:
    """All turns are taken; what is computed is right: shares, ratios, and both loops learn."""
    tiny = ["--cells", "96", "--binary", "50", "--continuous", "20", "--batch", "32"]
    threads = torch.get_num_threads()
    table = speed.main([*tiny, "--repeats", "2", "--threads", "1", "--no-memory"])
    assert torch.get_num_threads() == threads
    assert list(table.index) == [speed.OURS, speed.PLAIN]
    assert (table > 0).all(axis=None)
    plain = table.loc[speed.PLAIN]
    assert plain["times as fast as the plain loop"] == 1
    rate = 96 / table["seconds an epoch"]
    np.testing.assert_allclose(table["cells a second"], rate)
    assert "GFLOP/s" in capsys.readouterr().out


def test_speed_compares_the_same_losses() -> None:
    """The plain loop's losses of a mini-batch are those that the engine records."""
    size = speed.Size(cells=64, binary=50, continuous=20, batch=64)
    data, info, network = speed.opened(size)
    tasks = Tasks(network.train(), info.training, None)
    batch = data.batch(np.arange(64), torch.device("cpu"))
    judged = tasks.total(tasks.discrimination(batch)).item()
    total, terms = tasks.label_free(batch, *tasks.codes(batch))
    assert set(terms) == {"reconstruction", "translation", "contrastive", "generator"}
    x = [network.standardisers[m](one) for m, one in enumerate(batch.x)]
    loop = PlainLoop(network, x, [batch.x[0], x[1]], batch.labels, info.training)
    assert loop.discriminators_loss(x, loop.targets).item() == pytest.approx(judged, rel=1e-4)
    plain = loop.prediction_loss(x, loop.targets, batch.labels).item()
    assert plain == pytest.approx(total.item(), rel=1e-4)


def test_arithmetic_of_an_epoch() -> None:
    """Counted by hand for one hidden unit, one cell and one feature of each kind."""
    size = speed.Size(cells=1, binary=1, continuous=1)
    network = NetworkConfig(n_hidden=(1,), discriminators=True)
    products = 15 + 9 + 4 * 2
    assert speed.arithmetic(network, size) == 2 * 2 * products


def test_speed_of_explanations(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both kinds of means are timed at three sizes, and values are shap's."""
    for name, value in (("N_PEAKS", 300), ("N_GENES", 120), ("_MATRIX", 64)):
        monkeypatch.setattr(explain, name, value)
    table = explain.main(["--cells", "40", "--shap-cells", "1", "--shap-outputs", "2"])
    values = table.set_index("what")["value"]
    for kind in ("absolute", "signed"):
        seconds = [values[f"{kind} means, {n} cells"] for n in (10, 20, 40)]
        assert min(seconds) > 0
        of_shap = values["shap.DeepExplainer, a cell and output"] / 1e3
        ratio = of_shap * 120 / (seconds[-1] / 40)
        assert values[f"shap, times as long as {kind} means"] == pytest.approx(ratio)
    assert values["absolute means, share of the peak"] > 0
    assert values["largest difference to shap, float64, relative"] < 1e-8
    assert "GFLOP/s" in capsys.readouterr().out


def test_processes(capsys: pytest.CaptureFixture[str]) -> None:
    """One process and two are timed, and only the parent prints."""
    pytest.importorskip("lightning_fabric")
    tiny = ["--cells", "64", "--binary", "40", "--continuous", "20", "--batch", "32"]
    table = processes.main([*tiny, "--repeats", "1"])
    assert table is not None
    assert list(table.index) == [1, 2]
    taken = table["seconds an epoch"]
    assert (taken > 0).all()
    np.testing.assert_allclose(table["times as fast as one"], taken[1] / taken)
    assert capsys.readouterr().out.count("each turn") == 1


def test_a_course_reads_its_losses_in_order() -> None:
    losses = iter([3.0, 1.0, 2.0])
    course = time_to_loss.Course(lambda _: next(losses))
    for _ in range(3):
        course.note(None)
    seconds = [row[0] for row in course.rows]
    assert seconds == sorted(seconds)
    assert course.best() == (seconds[1], 1.0)
    assert course.until(2.5) == course.until(1.0) == seconds[1]
    assert np.isnan(course.until(0.5))


def test_loss_of_held_out_cells(data: _prepare.Prepared) -> None:
    """Of the training cells' mean it is their variance; of what is measured, nothing."""
    train, test = np.arange(60), np.arange(60, 90)
    held_out = time_to_loss.HeldOut(data, train, test)
    truth = held_out.standardised(held_out.test)
    assert held_out.loss([[x, x] for x in truth]) == 0
    expected = np.mean([np.square(x).mean() for x in truth])
    assert held_out.loss([[np.zeros_like(x)] * 2 for x in truth]) == pytest.approx(expected)
    held_out.binary[0] = True
    held_out.test[0] = np.array([[0.0, 1.0]], np.float32)
    held_out.scales[0] = (0.0, 1.0)
    probabilities = np.array([[0.25, 0.75]], np.float32)
    found = held_out.loss([[probabilities], [truth[1]]])
    assert found == pytest.approx(-np.log(0.75) / 2)


def test_time_to_the_loss_of_a_poor_original(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in that predicts nothing is reached, and its time is its epochs'."""

    class Nothing(torch.nn.Module):
        def forward(self, x: list[torch.Tensor]) -> Any:
            return [[np.zeros(one.shape, np.float32)] * len(x) for one in x], None, None

    taken = time_to_loss.SupervisedOriginal(Nothing(), lambda: time.sleep(0.01))
    monkeypatch.setattr(time_to_loss, "supervised_original", lambda *_: taken)
    monkeypatch.setattr(time_to_loss, "TrainingConfig", partial(TrainingConfig, max_epochs=12))
    asked = [str(path), "--original", str(tmp_path), "--epochs", "2"]
    row = time_to_loss.main([*asked, "--whole"]).loc[path.stem]
    assert row["best loss, unitednet_mu"] < row["best loss, original UnitedNet"]
    assert row["times as fast"] == pytest.approx(
        row["seconds to it, original UnitedNet"] / row["seconds to it, unitednet_mu"]
    )
    assert row["all seconds, unitednet_mu"] >= row["seconds to it, unitednet_mu"] > 0
    brief = time_to_loss.main(asked).loc[path.stem]
    assert brief["all seconds, unitednet_mu"] == brief["seconds to it, unitednet_mu"]


def test_memory_without_the_original(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, which a thread stands in for here; nothing is compared."""
    context = SimpleNamespace(Pool=ThreadPool)
    monkeypatch.setattr(time_to_loss.multiprocessing, "get_context", lambda _: context)
    monkeypatch.setattr(time_to_loss, "memory_of_training", lambda *asked: float(len(asked)))
    table = time_to_loss.main([str(path)])
    assert table.to_dict() == {"peak memory of 20 epochs, MiB": {path.stem: 2.0}}


def test_overlap(capsys: pytest.CaptureFixture[str]) -> None:
    table = overlap.main(["--seeds", "3", "--noise", "0.3", "--two-views"])
    assert set(table.index.droplevel(2)) == {("overlapping", 0.3)}
    assert table.loc[("overlapping", 0.3, "own groups"), "worst"] > 0.95  # groups that stand apart
    assert "seeds [3]" in capsys.readouterr().out
    views = overlap.two_views(1.0, 3)
    assert views.obs["cell_type"].nunique() == 10
    assert [x.n_vars for x in views.mod.values()] == [200, 100]


def test_niche(capsys: pytest.CaptureFixture[str]) -> None:
    found = niche.main(["--spots", "50", "400", "--features", "10", "--repeats", "1"])
    assert set(found) == {50, 400}
    assert "400 spots x 10 features" in capsys.readouterr().out
    mdata = niche.tissue(50, 10)
    assert niche.seconds(mdata) >= 0
    assert mdata["niche"].shape == (50, 10)


def test_startup(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(startup, "STATEMENTS", ("pass", "sum(range(10**7))"))
    found = startup.main(["--repeats", "1"])
    assert found["sum(range(10**7))"] > 10 * found["pass"] >= 0
    assert "beyond torch and mudata" in capsys.readouterr().out
