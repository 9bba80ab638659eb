"""The demo on part of its cells and features, trained for a moment; what it measures, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mudata
import numpy as np
import pandas as pd
import pytest
from mudata import MuData

import unitednet_mu as un
from unitednet_mu import __main__ as demo
from unitednet_mu import _demo
from unitednet_mu._compat import quiet_update

FIGURES = (
    *("cross_relevance", "history", "modality_weights", "predicted_protein", "relevance"),
    *("transfer_confidence", "transfer_confusion", "umap"),
)
DIRECTIONS = ("rna to adt, mean r", "adt to rna, mean r")


@pytest.fixture
def small(pbmc: MuData, monkeypatch: pytest.MonkeyPatch, quick: dict[str, Any]) -> MuData:
    """Every sixth cell with its busiest genes; trainings are short, points stand for a UMAP."""
    kept = pbmc["rna"].var_names[np.argsort(-np.asarray(pbmc["rna"].X.sum(0)).ravel())[:60]]
    with quiet_update():
        cells = pbmc[::6].copy()
        small = MuData({"rna": cells["rna"][:, kept].copy(), "adt": cells["adt"].copy()})
        small.obs = cells.obs.loc[small.obs_names]
    fit, transfer, explain = un.tl.fit, un.tl.transfer_labels, un.tl.explain

    def fit_quickly(mdata: MuData, **settings: Any) -> Any:
        return fit(mdata, **{**quick, **settings, "progress": False})

    def transfer_quickly(query: MuData, reference: MuData, **settings: Any) -> Any:
        short = {"training": {"max_epochs": 1}} if settings.get("adapt", True) else {}
        return transfer(query, reference, **settings, **short)

    def explain_quickly(mdata: MuData, **settings: Any) -> Any:
        return explain(mdata, **settings, n_cells=5, n_background=5)

    def points(mdata: MuData) -> None:
        mdata.obsm["X_umap"] = mdata.obsm["X_unitednet"][:, :2]

    monkeypatch.setattr(demo.datasets, "pbmc_citeseq", lambda: small.copy())
    monkeypatch.setattr(un.tl, "fit", fit_quickly)
    monkeypatch.setattr(un.tl, "transfer_labels", transfer_quickly)
    monkeypatch.setattr(un.tl, "explain", explain_quickly)
    monkeypatch.setattr(demo, "_umap", points)
    return small


def test_the_demo(small: MuData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "folder"
    demo.main(["demo", "--out", str(out), "--quiet", "--seed", "1"])
    names = {f"{name}.png" for name in FIGURES} | {"results.h5mu", "query.h5mu", "scores.csv"}
    assert {path.name for path in out.iterdir()} == names
    assert all(path.stat().st_size > 1000 for path in out.glob("*.png"))

    table = pd.read_csv(out / "scores.csv")
    assert list(table.columns) == ["task", "method", "value"]
    assert not table.duplicated(["task", "method"]).any()
    assert table["value"].between(-1, 1).all()
    methods = table.groupby("task")["method"].agg(set)
    three = {"unitednet_mu", "ridge regression", "mean of the predicted group"}
    for task in DIRECTIONS:
        assert methods[task] == three
        assert methods[f"{task} within groups"] == three - {"mean of the predicted group"}
    labelled = {"unitednet_mu", "unitednet_mu, adapted", "logistic regression, balanced"}
    assert methods["label transfer, balanced accuracy"] == labelled
    assert len(methods["groups without labels, ARI"]) == 3 and len(methods) == 6
    printed = capsys.readouterr().out
    for row in table.itertuples():
        assert f"  {row.method:<42} {row.value:.3f}\n" in printed

    with quiet_update():
        results, query = (mudata.read(out / f"{name}.h5mu") for name in ("results", "query"))
    donors = small.obs["donor"].astype(str)
    assert set(query.obs_names) == set(donors.index[donors == "p4_0"])
    assert set(results.obs_names) == set(donors.index[donors != "p4_0"])
    assert query.obs["unitednet_label"].notna().all()
    assert {"adt_from_rna", "rna_from_adt"} <= set(results.mod)
    assert {"relevance", "cross_relevance", "history"} <= set(results.uns["unitednet"])


def test_a_file_in_place_of_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "taken"
    file.write_text("something else")
    with pytest.raises(SystemExit):
        demo.main(["demo", "--out", str(file)])
    assert "--out: expected a folder, found the file" in capsys.readouterr().err
    assert file.read_text() == "something else"


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code, said in (([], 2, "required: command"), (["--version"], 0, un.__version__)):
        with pytest.raises(SystemExit) as left:
            demo.main(arguments)
        assert left.value.code == code
        captured = capsys.readouterr()
        assert said in captured.out + captured.err


def test_scores_are_means_in_the_order_they_came() -> None:
    scores = _demo.Scores()
    for task, method, value in (("b", "x", 1.0), ("a", "y", 0.5), ("b", "x", 0.0)):
        scores.add(task, method, value)
    assert scores.table().to_numpy().tolist() == [["b", "x", 0.5], ["a", "y", 0.5]]


def test_leiden_finds_the_number_of_groups(rng: np.random.Generator) -> None:
    true = np.repeat(["a", "b", "c", "d"], 40)
    centres = np.eye(4)[np.repeat(range(4), 40)] * 20
    embedding = centres + rng.normal(size=centres.shape)
    assert _demo._leiden_score(true, embedding, 4, seed=0) == 1
    graph = _demo.neighbour_graph(embedding)
    assert graph.shape == (160, 160)
    assert len(np.unique(_demo.leiden_groups(graph, 4))) == 4
    finer = len(np.unique(_demo.leiden_at(graph, 5.0)))
    assert finer > len(np.unique(_demo.leiden_at(graph, 0.1))) == 4
