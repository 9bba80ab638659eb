"""Scores, each against another computation of it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse, stats
from sklearn import metrics as sk

import unitednet_mu as un
from unitednet_mu import _correlation, metrics


@pytest.fixture
def matrices(rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    groups = rng.integers(0, 4, 60)
    true = rng.poisson(1.0, (60, 23)) + 3.0 * (groups[:, None] == np.arange(23) % 4)
    return true, 0.5 * true + rng.standard_normal((60, 23)), groups


def test_pearson_is_scipys(matrices) -> None:
    true, predicted, _ = matrices
    expected = [stats.pearsonr(true[:, j], predicted[:, j])[0] for j in range(23)]
    np.testing.assert_allclose(metrics.pearson_per_feature(true, predicted), expected, atol=1e-12)


def test_tables_are_read_as_they_are_named(matrices) -> None:
    true, predicted, groups = matrices
    cells, genes = [f"c{i}" for i in range(60)], [f"g{i}" for i in range(23)]
    table, other = (pd.DataFrame(x, cells, genes) for x in (true, predicted))
    same = partial(np.testing.assert_allclose, atol=1e-12)  # tables may be stored by columns
    for score in (metrics.pearson_per_feature, metrics.r2_per_feature):
        same(score(table, other), score(true, predicted))
        same(score(true.tolist(), predicted.tolist()), score(table, other))
        with pytest.raises(ValueError, match="same rows and columns in one order"):
            score(table, other[::-1])
    within = metrics.pearson_within_groups
    same(within(table, other, groups), within(true, predicted, groups))
    with pytest.raises(TypeError, match=r"true: expected a matrix, .* found AnnData. Pass its \.X"):
        metrics.pearson_per_feature(AnnData(true), predicted)
    with pytest.raises(TypeError, match=r"predicted: expected a matrix, .* found str"):
        metrics.r2_per_feature(true, "predicted")


def test_labels_of_cells_in_another_order_are_refused() -> None:
    labels = pd.Series(list("aabb"), ["w", "x", "y", "z"])
    assert metrics.classification_scores(labels, labels)["accuracy"] == 1
    with pytest.raises(ValueError, match=r"in another order; call \.reindex"):
        metrics.classification_scores(labels, labels[::-1])
    numbered = pd.Series(list("aabb"), range(4))
    assert metrics.clustering_scores(labels, numbered)["ari"] == 1
    with pytest.raises(ValueError, match=r"labels: expected the cells .* found 1 other cells"):
        metrics.clustering_scores(labels, labels.rename({"z": "v"}))


def test_other_columns_name_the_same_cells_too() -> None:
    cells = list("wxyz")
    labels, called = pd.Series(list("aabb"), cells), pd.Series(list("aaba"), cells)
    sure = pd.Series([1, 1, 1, 0.0], cells)
    assert metrics.calibration_error(labels, called, sure) == 0
    assert metrics.calibration_error(labels, called, sure.tolist()) == 0
    with pytest.raises(ValueError, match=r"confidence: .* in another order"):
        metrics.calibration_error(labels, called, sure[::-1])
    true = pd.DataFrame({"f": [0, 1, 10, 11.0]}, cells)
    predicted = pd.DataFrame({"f": [1, 0, 11, 10.0]}, cells)
    assert metrics.pearson_within_groups(true, predicted, labels).tolist() == [-1]
    assert metrics.pearson_within_groups(true, predicted, labels.tolist()).tolist() == [-1]
    with pytest.raises(ValueError, match=r"groups: .* in another order"):
        metrics.pearson_within_groups(true, predicted, labels.loc[list("wyxz")])


def test_pearson_within_groups_is_the_partial_one(matrices) -> None:
    true, predicted, groups = matrices
    onehot = np.eye(4)[groups]
    hat = onehot @ np.linalg.pinv(onehot)  # least squares on the group indicators
    t, p = true - hat @ true, predicted - hat @ predicted
    expected = [stats.pearsonr(t[:, j], p[:, j])[0] for j in range(23)]
    r = metrics.pearson_within_groups(true, predicted, groups)
    np.testing.assert_allclose(r, expected, atol=1e-12)
    named = pd.Series(pd.Categorical.from_codes(groups, list("wxyz")))
    np.testing.assert_array_equal(metrics.pearson_within_groups(true, predicted, named), r)


def test_knowing_only_the_group_scores_nothing_within_groups(matrices) -> None:
    true, _, groups = matrices
    means = np.stack([true[groups == g].mean(axis=0) for g in range(4)])[groups]
    assert np.isnan(metrics.pearson_within_groups(true, means, groups)).all()
    assert (metrics.pearson_per_feature(true, means) > 0.2).all()


def test_cells_without_a_group_are_left_out(matrices) -> None:
    true, predicted, groups = matrices
    named = np.asarray([f"g{g}" for g in groups], dtype=object)
    named[:10] = None
    expected = metrics.pearson_within_groups(true[10:], predicted[10:], groups[10:])
    found = metrics.pearson_within_groups(true, predicted, named)
    np.testing.assert_allclose(found, expected, atol=1e-14)


def test_r2_is_one_minus_the_share_of_variance_left(matrices) -> None:
    true, predicted, _ = matrices
    left = ((true - predicted) ** 2).sum(axis=0)
    expected = 1 - left / ((true - true.mean(axis=0)) ** 2).sum(axis=0)
    np.testing.assert_allclose(metrics.r2_per_feature(true, predicted), expected, atol=1e-12)


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_array, np.asfortranarray])
def test_form_and_blocks_change_nothing(matrices, form, monkeypatch: pytest.MonkeyPatch) -> None:
    true, predicted, groups = matrices
    whole = [
        metrics.pearson_per_feature(true, predicted),
        metrics.pearson_within_groups(true, predicted, groups),
        metrics.r2_per_feature(true, predicted),
    ]
    monkeypatch.setattr(_correlation, "_BLOCK_VALUES", 5 * 60)  # five features at a time
    seen = []
    dense = _correlation._dense
    monkeypatch.setattr(
        _correlation, "_dense", lambda block: seen.append(block.shape) or dense(block)
    )
    blocks = [
        metrics.pearson_per_feature(form(true), predicted.astype(np.float64)),
        metrics.pearson_within_groups(form(true), predicted, groups),
        metrics.r2_per_feature(form(true), predicted),
    ]
    for found, expected in zip(blocks, whole, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)
    assert max(shape[1] for shape in seen) == 5


@pytest.mark.parametrize("block", [1, 7, 60])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_cells_in_blocks_give_the_same_correlation(matrices, block: int, offset: float) -> None:
    """Also where values stand far from 0, and groups come late, alone in a block, or never."""
    true, predicted, groups = matrices
    true = true + offset
    groups = np.where(np.arange(60) < 30, 0, groups)
    r = _correlation.Correlation(23, 6)
    for start in range(0, 60, block):
        part = slice(start, start + block)
        r.add(true[part], predicted[part], groups[part])
    expected = [stats.pearsonr(true[:, j], predicted[:, j])[0] for j in range(23)]
    np.testing.assert_allclose(r.overall(), expected, atol=1e-9)
    onehot = np.eye(4)[groups]
    hat = onehot @ np.linalg.pinv(onehot)
    t, p = true - hat @ true, predicted - hat @ predicted
    expected = [stats.pearsonr(t[:, j], p[:, j])[0] for j in range(23)]
    np.testing.assert_allclose(r.within(), expected, atol=1e-8)


@pytest.mark.parametrize("block", [1, 4])
def test_constant_features_have_no_correlation_in_blocks(block: int) -> None:
    groups = np.arange(12) // 6
    true = np.column_stack([np.full(12, 0.1), groups + 0.3, np.arange(12.0)])
    predicted = np.column_stack([np.arange(12.0), np.arange(12.0) ** 2, np.arange(12.0)])
    r = _correlation.Correlation(3, 2)
    for start in range(0, 12, block):
        part = slice(start, start + block)
        r.add(true[part], predicted[part], groups[part])
    assert np.isnan(r.overall()).tolist() == [True, False, False]
    assert np.isnan(r.within()).tolist() == [True, True, False]
    np.testing.assert_allclose([r.overall()[2], r.within()[2]], 1)


def test_constant_features_have_no_score() -> None:
    varying = np.arange(6.0)
    true = np.column_stack([np.full(6, 0.1), varying, varying, np.zeros(6)])
    predicted = np.column_stack([varying, np.full(6, 1e9 + 0.1), varying, varying])
    expected = [np.nan, np.nan, 1.0, np.nan]
    np.testing.assert_allclose(metrics.pearson_per_feature(true, predicted), expected)
    within = metrics.pearson_within_groups(true, predicted, [0, 0, 0, 1, 1, 1])
    np.testing.assert_allclose(within, expected)
    r2 = metrics.r2_per_feature(true, predicted)
    assert np.isnan(r2).tolist() == [True, False, False, True]


def test_matrices_must_agree() -> None:
    with pytest.raises(ValueError, match=r"found \(3, 2\) and \(2, 3\)"):
        metrics.pearson_per_feature(np.zeros((3, 2)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="at least two cells, found 1"):
        metrics.r2_per_feature(np.zeros((1, 2)), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="groups: expected 3 entries, found 2"):
        metrics.pearson_within_groups(np.zeros((3, 2)), np.zeros((3, 2)), [0, 1])
    with pytest.raises(ValueError, match="at least two cells with a group, found 1"):
        metrics.pearson_within_groups(np.zeros((3, 2)), np.zeros((3, 2)), [None, None, "B"])


def test_clustering_scores_do_not_depend_on_names(rng) -> None:
    true = rng.integers(0, 5, 80)
    groups = np.where(rng.random(80) < 0.7, true, rng.integers(0, 5, 80))
    scores = metrics.clustering_scores(true, groups)
    assert scores == pytest.approx(
        {
            "ari": sk.adjusted_rand_score(true, groups),
            "nmi": sk.normalized_mutual_info_score(true, groups),
        }
    )
    renamed = pd.Categorical(np.asarray(["CD4/CD8", "B", "γδ", "NK", "x y"])[groups])
    assert metrics.clustering_scores(true, renamed) == pytest.approx(scores)


def test_groups_are_matched_for_the_best_agreement() -> None:
    # taking the largest count first would give b -> T (4), a -> B (0); the best is a -> T, b -> B
    true = ["T"] * 7 + ["B"] * 3
    groups = ["a"] * 3 + ["b"] * 4 + ["b"] * 3
    assert metrics.match_groups(true, groups) == {"a": "T", "b": "B"}
    assert metrics.match_groups(["T", "T", "B"], [0, 1, 2]) in (
        {"0": "T", "2": "B"},
        {"1": "T", "2": "B"},
    )


def test_confusion_counts_and_normalises() -> None:
    true = pd.Series(["B", "T", "T", "NK", None, "T"], dtype=object)
    predicted = pd.Series(["B", "T", "unknown", "T", "B", "T"], dtype=object)
    table = metrics.confusion(true, predicted)
    assert table.index.tolist() == ["B", "NK", "T"]
    assert table.columns.tolist() == ["B", "T", "unknown"]
    assert table.to_numpy().tolist() == [[1, 0, 0], [0, 1, 0], [0, 2, 1]]
    assert (table.index.name, table.columns.name) == ("true", "predicted")
    share = metrics.confusion(true, predicted, normalize=True)
    np.testing.assert_allclose(share.loc["T"], [0, 2 / 3, 1 / 3])


def test_whole_numbers_have_one_name() -> None:
    """As floats, which missing values make of them, too: so `tl.fit` names its groups."""
    true = pd.Series([1.0, 2.0, None, 1.0])
    table = metrics.confusion(true, ["1", "2", "1", "unknown"])
    assert table.index.tolist() == ["1", "2"]
    assert table.columns.tolist() == ["1", "2", "unknown"]
    assert table.to_numpy().tolist() == [[1, 0, 1], [0, 1, 0]]


def test_classification_scores_are_sklearns(rng) -> None:
    true = np.asarray(["B", "NK", "T"])[rng.integers(0, 3, 90)]
    predicted = np.where(rng.random(90) < 0.6, true, "T")
    scores = metrics.classification_scores(true, predicted)
    assert scores == pytest.approx(
        {
            "accuracy": sk.accuracy_score(true, predicted),
            "balanced_accuracy": sk.balanced_accuracy_score(true, predicted),
            "macro_f1": sk.f1_score(true, predicted, average="macro"),
        }
    )


def test_unknown_is_an_error_and_no_class() -> None:
    scores = metrics.classification_scores(["B", "B", "T", "T"], ["B", "unknown", "T", "T"])
    assert scores == pytest.approx(
        {"accuracy": 0.75, "balanced_accuracy": 0.75, "macro_f1": (2 / 3 + 1) / 2}
    )


def test_calibration_error_by_hand() -> None:
    true = ["a"] * 6 + [None]
    predicted = ["a", "a", "b", "a", "b", "a", "a"]
    confidence = [0.95, 0.95, 0.91, 0.51, 0.55, 1.0, 0.1]
    # bin 0.9-1: mean confidence 0.9525, accuracy 3/4; bin 0.5-0.6: 0.53 against 1/2
    expected = (4 * abs(0.9525 - 0.75) + 2 * abs(0.53 - 0.5)) / 6
    assert metrics.calibration_error(true, predicted, confidence) == pytest.approx(expected)
    one_bin = metrics.calibration_error(true, predicted, confidence, n_bins=1)
    assert one_bin == pytest.approx(abs(np.mean(confidence[:6]) - 4 / 6))


def test_labels_must_agree() -> None:
    with pytest.raises(ValueError, match=r"shapes \(2,\), \(3,\)"):
        metrics.confusion(["a", "b"], ["a", "b", "c"])
    with pytest.raises(ValueError, match="every value missing"):
        metrics.clustering_scores([None, np.nan], ["a", "b"])
    with pytest.raises(ValueError, match="found 1 missing"):
        metrics.classification_scores(["a", "b"], ["a", None])
    with pytest.raises(ValueError, match="from 0 to 1"):
        metrics.calibration_error(["a"], ["a"], [1.5])
    with pytest.raises(ValueError, match="n_bins: expected 1 or more, found 0"):
        metrics.calibration_error(["a"], ["a"], [0.5], n_bins=0)
    with pytest.raises(ValueError, match="confidence: expected 2 values"):
        metrics.calibration_error(["a", "b"], ["a", "b"], [0.5])


def test_every_name_in_all_exists() -> None:
    assert all(callable(getattr(un.metrics, name)) for name in metrics.__all__)
