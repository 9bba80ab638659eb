"""The held-out deletion test: named features against random and variable ones."""

from __future__ import annotations

import warnings
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection
from mudata import MuData
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

import unitednet_mu as un

NETWORK = {"n_hidden": (32,), "n_latent": 16, "n_projector": 16}
PAIR = {"source": "rna", "target": "adt"}


@pytest.fixture(scope="module")
def _both() -> tuple[MuData, MuData]:
    """Cells that were fitted and explained, and others."""
    mdata = un.datasets.simulate_multimodal(
        n_obs=400, n_groups=3, n_vars={"rna": 40, "adt": 20}, noise=1.0, random_state=4
    )
    train, test = mdata[:240].copy(), mdata[240:].copy()
    un.tl.fit(
        train,
        labels_key="cell_type",
        network=NETWORK,
        training={"max_epochs": 25, "batch_size": 32, "refit": False},
        device="cpu",
        progress=False,
    )
    un.tl.explain(train, progress=False)
    un.tl.explain(train, **PAIR, progress=False)
    return train, test


@pytest.fixture
def train(_both: tuple[MuData, MuData]) -> MuData:
    return _both[0].copy()


@pytest.fixture
def test(_both: tuple[MuData, MuData]) -> MuData:
    return _both[1].copy()


def rows_of(table: pd.DataFrame, features: str) -> pd.DataFrame:
    by = [c for c in ("group", "target_feature", "n_top") if c in table]
    return table[table["features"] == features].set_index(by)


def test_named_features_predict_their_group(train: MuData, test: MuData, fingerprint: Any) -> None:
    before = fingerprint(train), fingerprint(test)
    table = un.metrics.deletion_test(train, held_out=test, n_top=[1, 3, 60], n_repeats=30)
    assert (fingerprint(train), fingerprint(test)) == before
    assert list(table.columns) == ["group", "n_top", "features", "score", "low", "high", "p"]
    assert len(table) == 3 * 3 * 3
    named, drawn, variable = (rows_of(table, x) for x in ("relevance", "random", "variable"))
    for size in (1, 3):
        here = pd.IndexSlice[:, size]
        assert (named.loc[here, "score"] > drawn.loc[here, "score"] + 0.1).all()
        assert (named.loc[here, "score"] > variable.loc[here, "score"]).all()
    assert (named.loc[pd.IndexSlice[:, 3], "p"] < 0.1).all()
    # nothing is left to choose where all features are taken
    assert named.loc[pd.IndexSlice[:, 60], "score"].to_numpy() == pytest.approx(
        drawn.loc[pd.IndexSlice[:, 60], "score"].to_numpy(), abs=1e-6
    )
    assert named.loc[pd.IndexSlice[:, 60], "p"].tolist() == [1.0] * 3
    assert drawn["p"].isna().all() and variable["p"].isna().all()
    assert table["score"].between(table["low"] - 1e-9, table["high"] + 1e-9).all()
    assert (named["low"] == named["high"]).all()
    assert (drawn.loc[pd.IndexSlice[:, 1], "low"] < drawn.loc[pd.IndexSlice[:, 1], "high"]).all()


def test_score_is_that_of_a_plain_predictor(train: MuData, test: MuData) -> None:
    table = un.metrics.deletion_test(train, held_out=test, group="group1", n_top=4, n_repeats=5)
    top = un.get.relevance(train, group="group1", n_top=4)

    def values(mdata: MuData) -> np.ndarray:
        return np.column_stack(
            [mdata[m][:, f].X.ravel() for m, f in zip(top["modality"], top["feature"], strict=True)]
        )

    scaler = StandardScaler().fit(values(train))
    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    model.fit(scaler.transform(values(train)), train.obs["cell_type"] == "group1")
    expected = roc_auc_score(
        test.obs["cell_type"] == "group1",
        model.decision_function(scaler.transform(values(test))),
    )
    assert rows_of(table, "relevance")["score"].item() == pytest.approx(expected, abs=1e-4)


def test_features_named_at_random_are_no_better(train: MuData, test: MuData) -> None:
    """p is about uniform where relevance is drawn at random."""
    rng = np.random.default_rng(0)
    p = []
    for _ in range(8):
        blocks = train.uns["unitednet"]["relevance"]["modalities"]
        for block in blocks.values():
            block["absolute"] = rng.random(block["absolute"].shape).astype(np.float32)
        table = un.metrics.deletion_test(train, held_out=test, n_top=2, n_repeats=19)
        p += rows_of(table, "relevance")["p"].tolist()
    assert len(p) == 24
    assert 0.3 < np.mean(p) < 0.7
    assert np.mean(np.asarray(p) <= 0.05) < 0.2


def test_linked_features_predict_within_groups(train: MuData, test: MuData) -> None:
    link = train.uns["truth"]["link_of"]["adt"]
    linked = [f for f, x in zip(train["adt"].var_names, link, strict=True) if x]
    table = un.metrics.deletion_test(
        train, held_out=test, **PAIR, target_feature=linked, n_top=[1, 5], n_repeats=19
    )
    assert list(table.columns)[:2] == ["group", "target_feature"]
    assert len(table) == 3 * 3 * 2 * 3
    named, drawn = rows_of(table, "relevance"), rows_of(table, "random")
    assert named["score"].median() > 0.25  # at best 0.48: link and noise have variance 2.25 and 1
    assert (named["score"] > drawn["score"] + 0.1).mean() > 0.8
    assert (named["p"] <= 0.1).mean() > 0.8


def test_variable_features_are_those_that_vary(train: MuData, test: MuData) -> None:
    """Of the modalities that the named features are of, as many from each."""
    for cells in (train, test):
        cells["rna"].X = cells["rna"].X * np.where(np.arange(40) == 39, 50.0, 1.0).astype("float32")
    table = un.metrics.deletion_test(
        train, held_out=test, modality="rna", n_top=1, n_repeats=2, group="group0"
    )
    values = train["rna"].X[:, 39], test["rna"].X[:, 39]
    model = LogisticRegression(class_weight="balanced")
    model.fit(values[0][:, None] / 50, train.obs["cell_type"] == "group0")
    expected = roc_auc_score(
        test.obs["cell_type"] == "group0", model.decision_function(values[1][:, None] / 50)
    )
    assert rows_of(table, "variable")["score"].item() == pytest.approx(expected, abs=1e-6)


def test_held_out_cells_that_relevance_has_seen(train: MuData, test: MuData) -> None:
    with pytest.warns(UserWarning, match=r"computed on the cells that now judge it") as told:
        table = un.metrics.deletion_test(train, n_top=2, n_repeats=5)
    assert told[0].filename == __file__
    assert len(table) == 9 and rows_of(table, "relevance")["low"].lt(1).any()
    with pytest.warns(UserWarning, match=r"40 of 40 held-out cells were there"):
        un.metrics.deletion_test(train, held_out=train[:40].copy(), n_top=2, n_repeats=2)
    # the rest of the cells, but relevance is that of all
    part, rest = train[:120].copy(), train[120:].copy()
    for more in ({}, {**PAIR, "target_feature": "adt_0"}):
        with pytest.warns(UserWarning, match="were there when relevance was computed"):
            un.metrics.deletion_test(part, held_out=rest, n_top=2, n_repeats=2, **more)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        un.metrics.deletion_test(train, held_out=test, n_top=2, n_repeats=2)


def test_batches_are_held_out_whole(quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from unitednet_mu import _deletion

    mdata = un.datasets.simulate_multimodal(n_obs=200, n_groups=2, n_batches=4, random_state=1)
    un.tl.fit(mdata, labels_key="cell_type", **quick)
    un.tl.explain(mdata, progress=False)
    seen = []
    draw = _deletion.splits

    def record(*arguments: Any) -> Any:
        for one in draw(*arguments):
            seen.append([set(side.cells.batches[side.rows]) for side in (one.train, one.test)])
            yield one

    monkeypatch.setattr(_deletion, "splits", record)
    with pytest.warns(UserWarning, match="too good"):
        un.metrics.deletion_test(mdata, batch_key="batch", n_top=2, n_repeats=6)
    assert len(seen) == 6
    assert all(learn and judge and not learn & judge for learn, judge in seen)
    with pytest.warns(UserWarning, match="too good"):
        un.metrics.deletion_test(mdata, n_top=2, n_repeats=6)
    assert all(learn & judge for learn, judge in seen[6:]) or len(seen) == 12


def test_it_reads_what_the_explained_model_reads(train: MuData, test: MuData) -> None:
    """A layer, also of cells that got model and labels from others."""
    for mdata in (train, test):
        for adata in mdata.mod.values():
            adata.layers["own"] = adata.X.copy()
            adata.X = np.random.default_rng(0).normal(size=adata.shape).astype(np.float32)
    training = {"max_epochs": 10, "batch_size": 32, "refit": False}
    un.tl.fit(
        train,
        labels_key="cell_type",
        layer="own",
        network=NETWORK,
        training=training,
        progress=False,
    )
    un.tl.transfer_labels(test, train, adapt=False, progress=False)
    un.tl.explain(test, progress=False)
    un.tl.explain(test, **PAIR, progress=False)
    settings: dict[str, Any] = {"n_top": 5, "n_repeats": 5, "labels_key": "cell_type"}
    with pytest.warns(UserWarning, match="relevance was computed on the cells"):
        found = [un.metrics.deletion_test(test, **pair, **settings) for pair in ({}, PAIR)]
    named = rows_of(found[0], "relevance")
    assert named["score"].min() > 0.8
    for adata in test.mod.values():
        adata.X = adata.layers["own"]
    with pytest.warns(UserWarning, match="relevance was computed on the cells"):
        again = [un.metrics.deletion_test(test, **pair, **settings) for pair in ({}, PAIR)]
    for one, other in zip(found, again, strict=True):
        pd.testing.assert_frame_equal(one, other)


def test_cells_that_lack_a_modality_and_sparse_values(quick: dict[str, Any]) -> None:
    mdata = un.datasets.simulate_multimodal(
        n_obs=300, n_groups=2, missing=0.3, values={"rna": "binary"}, random_state=1
    )
    train, test = mdata[:180].copy(), mdata[180:].copy()
    un.tl.fit(train, labels_key="cell_type", **quick)
    un.tl.explain(train, progress=False)
    assert sparse.issparse(train["rna"].X)
    found = un.metrics.deletion_test(train, held_out=test, n_top=3, n_repeats=4)
    for cells in (train, test):
        cells["rna"].X = cells["rna"].X.toarray()
    pd.testing.assert_frame_equal(
        un.metrics.deletion_test(train, held_out=test, n_top=3, n_repeats=4), found
    )


def test_seed(train: MuData, test: MuData) -> None:
    one, same, other = (
        un.metrics.deletion_test(train, held_out=test, n_top=2, n_repeats=3, random_state=seed)
        for seed in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(one, same)
    assert not np.array_equal(rows_of(one, "random")["score"], rows_of(other, "random")["score"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_top": 0}, "n_top: expected whole numbers of at least 1"),
        ({"n_top": []}, "n_top: expected whole numbers of at least 1"),
        ({"n_top": [2.5]}, "n_top: expected whole numbers of at least 1"),
        ({"n_repeats": 0}, "n_repeats: expected whole numbers of at least 1"),
        ({"n_top": 100}, "expected a group with at least 10 cells"),
        ({"source": "rna"}, "both source and target, or neither"),
        ({"target_feature": "adt_0"}, "target_feature is for cross-modal relevance"),
        ({**PAIR, "modality": "rna"}, "modality is for relevance of groups"),
        ({"batch_key": "batch"}, "batch_key says how cells are held out"),
        ({"group": "B"}, "group 'B' not found"),
        ({"labels_key": "nothing"}, "labels_key: column 'nothing' not found"),
        ({"key_added": "other"}, "nothing stored under 'other'"),
        ({"random_state": -1}, "random_state"),
    ],
)
def test_what_cannot_be_judged(
    train: MuData, test: MuData, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        un.metrics.deletion_test(train, held_out=test, **settings)


def test_what_is_missing_is_named(train: MuData, test: MuData) -> None:
    with pytest.raises(TypeError, match="held_out: expected a MuData"):
        un.metrics.deletion_test(train, held_out=test["rna"])
    without = MuData({"adt": test["adt"].copy()})
    without.obs["cell_type"] = test.obs["cell_type"]
    with pytest.raises(ValueError, match="modality 'rna' not found"):
        un.metrics.deletion_test(train, held_out=without)
    with (
        pytest.warns(UserWarning, match="too good"),
        pytest.raises(ValueError, match="expected at least two batches"),
    ):
        train.obs["one"] = "a"
        un.metrics.deletion_test(train, batch_key="one")
    train.uns["unitednet"]["relevance"]["params"]["labels_key"] = ""
    with pytest.raises(ValueError, match="labels_key: expected the column"):
        un.metrics.deletion_test(train, held_out=test)


@pytest.mark.filterwarnings("ignore:deletion_test. relevance was computed on the cells")
def test_every_group_with_enough_cells_is_judged(quick: dict[str, Any]) -> None:
    """However many splits there are: each holds out of every group its share."""
    mdata = un.datasets.simulate_multimodal(n_obs=180, n_groups=4, random_state=2)
    mdata.obs["few"] = mdata.obs["cell_type"].astype(str)
    mdata.obs.loc[mdata.obs_names[:1], "few"] = "lone"  # cannot be divided
    un.tl.fit(mdata, labels_key="few", **quick)
    un.tl.explain(mdata, groupby="few", n_cells=5, progress=False)
    found = un.metrics.deletion_test(mdata, n_top=3, n_repeats=15)
    assert found["group"].unique().tolist() == [f"group{k}" for k in range(4)]
    named = found[found["features"] == "relevance"]
    assert (named["p"] >= 1 / 16).all()
    with pytest.raises(ValueError, match=r"\(30% of these cells\).* Cells of each: {'lone': 1}"):
        un.metrics.deletion_test(mdata, group="lone", n_top=3, n_repeats=2)


@pytest.mark.filterwarnings("ignore:deletion_test. relevance was computed on the cells")
def test_groups_are_those_of_the_explained_model(quick: dict[str, Any], train: MuData) -> None:
    """Not those of the model that is stored, whose groups may have the same names."""
    turned = {"group0": "group1", "group1": "group0", "group2": "group2"}
    train.obs["turned"] = train.obs["cell_type"].astype(str).map(turned)
    other = un.tl.fit(train, labels_key="turned", copy=True, **quick)
    asked = {"n_top": 3, "n_repeats": 3}
    for groupby in (None, "turned"):
        model = un.get.model(other)
        un.tl.explain(train, model=model, groupby=groupby, n_cells=5, progress=False)
        expected = un.metrics.deletion_test(train, labels_key="turned", **asked)
        pd.testing.assert_frame_equal(un.metrics.deletion_test(train, **asked), expected)


# ------------------------------------------------------------------ plot


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        {
            "group": group,
            "n_top": size,
            "features": features,
            "score": score,
            "low": score - 0.1,
            "high": score + 0.1,
            "p": (0.04 if size > 2 else 0.5) if features == "relevance" else np.nan,
        }
        for group in ("B", "CD4/CD8")
        for size in (1, 5, 20)
        for features, score in zip(("relevance", "random", "variable"), rng.random(3), strict=True)
    ]
    return pd.DataFrame(rows)


def test_plot_has_a_line_and_a_shade_for_each_set(table: pd.DataFrame) -> None:
    axes = un.pl.deletion(table)
    assert [ax.get_title() for ax in axes] == ["B", "CD4/CD8"]
    for ax, group in zip(axes, ("B", "CD4/CD8"), strict=True):
        here = table[table["group"] == group]
        lines = {line.get_label(): line for line in ax.lines}
        for label, features in (
            ("largest relevance", "relevance"),
            ("random", "random"),
            ("most variable", "variable"),
        ):
            one = here[here["features"] == features]
            np.testing.assert_allclose(lines[label].get_xdata(), one["n_top"])
            np.testing.assert_allclose(lines[label].get_ydata(), one["score"])
        filled = next(c for c in ax.collections if isinstance(c, PathCollection)).get_offsets()
        np.testing.assert_allclose(filled[:, 0], [5, 20])  # p <= 0.05
    plt.close("all")


def test_plot_of_one_number_of_features_has_bars(table: pd.DataFrame) -> None:
    one = table[table["n_top"] == 5]
    ax = un.pl.deletion(one, group="B")[0]
    bars = [c for c in ax.collections if isinstance(c, LineCollection)]
    drawn = sorted(tuple(bar.get_segments()[0][:, 1]) for bar in bars)
    here = one[one["group"] == "B"]
    expected = sorted(zip(here["low"], here["high"], strict=True))
    np.testing.assert_allclose(drawn, expected)
    assert len({bar.get_segments()[0][0, 0] for bar in bars}) == 3  # side by side
    plt.close("all")


def test_plot_of_a_table_from_a_file(table: pd.DataFrame) -> None:
    numbered = table.assign(group=table["group"].map({"B": 0, "CD4/CD8": 1}))
    assert [ax.get_title() for ax in un.pl.deletion(numbered)] == ["0", "1"]
    with pytest.raises(ValueError, match="table: expected rows to draw, found none"):
        un.pl.deletion(table[:0])
    plt.close("all")


def test_plot_of_one_panel_and_of_target_features(table: pd.DataFrame) -> None:
    _, ax = plt.subplots()
    assert un.pl.deletion(table, group="B", ax=ax) == [ax]
    with pytest.raises(ValueError, match="choose one panel with group="):
        un.pl.deletion(table, ax=ax)
    pairs = table.assign(target_feature="cd3")
    assert un.pl.deletion(pairs)[0].get_title() == "cd3, B"
    assert len(un.pl.deletion(pairs, target_feature="cd3", group="B")) == 1
    for wrong, settings, message in (
        (table, {"target_feature": "cd3"}, "the table is of groups"),
        (table, {"group": "C"}, "group 'C' not found"),
        (pairs, {"target_feature": "x"}, "target_feature 'x' not found"),
        (table.drop(columns="p"), {}, "none called 'p'"),
    ):
        with pytest.raises(ValueError, match=message):
            un.pl.deletion(wrong, **settings)
    plt.close("all")
