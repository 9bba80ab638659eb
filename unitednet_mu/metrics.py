"""Scores of predictions, groups, transferred labels and relevance, by scikit-learn and scipy.

Predictions are compared feature by feature. A feature for which a score is not defined, because it
is constant over the cells compared, gets NaN: average with :func:`numpy.nanmean` and say how many
were left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ._correlation import (
    Labels,
    check_same_cells,
    pearson_per_feature,
    pearson_within_groups,
    r2_per_feature,
)
from ._deletion import deletion_test
from ._validate import level_name

__all__ = [
    "calibration_error",
    "classification_scores",
    "clustering_scores",
    "confusion",
    "deletion_test",
    "match_groups",
    "pearson_per_feature",
    "pearson_within_groups",
    "r2_per_feature",
]


def clustering_scores(true: Labels, groups: Labels) -> dict[str, float]:
    """How well groups found without labels agree with labels.

    Parameters
    ----------
    true
        Label of each cell; cells whose label is missing are left out.
    groups
        Group of each cell.

    Returns
    -------
    Dictionary of floats: ``ari``, the adjusted Rand index (1 at best, about 0 by chance), and
    ``nmi``, the normalised mutual information (0 to 1).

    Raises
    ------
    ValueError
        The lengths differ, a group is missing, or no cell has a label.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> un.metrics.clustering_scores(["B", "B", "T", "T"], [1, 1, 0, 0])
    {'ari': 1.0, 'nmi': 1.0}
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    t, g = _labels(true, groups)
    return {
        "ari": float(adjusted_rand_score(t, g)),
        "nmi": float(normalized_mutual_info_score(t, g)),
    }


def match_groups(true: Labels, groups: Labels) -> dict[str, str]:
    """Match groups to labels one to one so that most cells agree (Hungarian algorithm).

    Parameters
    ----------
    true
        Label of each cell; cells whose label is missing are left out.
    groups
        Group of each cell.

    Returns
    -------
    Dictionary from group to label, both as text. Where there are more groups than labels, those
    groups that are left over are not in it.

    Raises
    ------
    ValueError
        As for :func:`clustering_scores`.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> un.metrics.match_groups(["B", "B", "T", "T"], [1, 1, 0, 0])
    {'0': 'T', '1': 'B'}
    """
    from scipy.optimize import linear_sum_assignment

    table = confusion(true, groups)
    rows, columns = linear_sum_assignment(table.to_numpy(), maximize=True)
    pairs = {
        str(table.columns[int(c)]): str(table.index[int(r)])
        for r, c in zip(rows, columns, strict=True)
    }
    return dict(sorted(pairs.items()))


def confusion(true: Labels, predicted: Labels, *, normalize: bool = False) -> pd.DataFrame:
    """Count cells by true label and predicted label or group.

    Parameters
    ----------
    true
        Label of each cell; cells whose label is missing are left out.
    predicted
        Predicted label, or group, of each cell.
    normalize
        Divide each row by its sum: fractions of each true label's cells.

    Returns
    -------
    DataFrame, true labels x predicted labels, both as text in sorted order; int64 counts, or
    float64 fractions with `normalize`. Only labels that occur on a side stand on that side.

    Raises
    ------
    ValueError
        As for :func:`clustering_scores`.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> un.metrics.confusion(["B", "T", "T"], ["B", "B", "T"]).to_numpy().tolist()
    [[1, 0], [1, 1]]
    """
    t, p = _labels(true, predicted)
    rows, row_codes = np.unique(t, return_inverse=True)
    columns, column_codes = np.unique(p, return_inverse=True)
    counts = np.zeros((len(rows), len(columns)), dtype=np.int64)
    np.add.at(counts, (row_codes, column_codes), 1)
    values = counts / counts.sum(axis=1, keepdims=True) if normalize else counts
    return pd.DataFrame(
        values,
        index=pd.Index(rows, dtype=object, name="true"),
        columns=pd.Index(columns, dtype=object, name="predicted"),
    )


def classification_scores(true: Labels, predicted: Labels) -> dict[str, float]:
    """How well predicted labels agree with true ones.

    Parameters
    ----------
    true
        Label of each cell; cells whose label is missing are left out.
    predicted
        Predicted label of each cell. A name that is no true label, such as ``"unknown"``, is an
        error of that cell; it is no class of its own.

    Returns
    -------
    Dictionary of floats from 0 to 1: ``accuracy``, ``balanced_accuracy`` (the mean recall of the
    true labels) and ``macro_f1`` (the mean F1 score of the true labels).

    Raises
    ------
    ValueError
        As for :func:`clustering_scores`.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> scores = un.metrics.classification_scores(["B", "T", "T", "T"], ["B", "B", "T", "T"])
    >>> scores["accuracy"], round(scores["balanced_accuracy"], 3)
    (0.75, 0.833)
    """
    from sklearn.metrics import accuracy_score, f1_score, recall_score

    t, p = _labels(true, predicted)
    classes = np.unique(t)

    def macro(score: Any) -> float:
        return float(score(t, p, labels=classes, average="macro", zero_division=0))

    return {
        "accuracy": float(accuracy_score(t, p)),
        "balanced_accuracy": macro(recall_score),
        "macro_f1": macro(f1_score),
    }


def calibration_error(
    true: Labels, predicted: Labels, confidence: Sequence[float] | NDArray[Any], *, n_bins: int = 10
) -> float:
    """Return the expected calibration error: how far confidence is from accuracy.

    Cells are put into bins of equal width by confidence; the differences between mean confidence
    and accuracy, without sign, are averaged over the bins with their numbers of cells as weights.

    Parameters
    ----------
    true
        Label of each cell; cells whose label is missing are left out.
    predicted
        Predicted label of each cell.
    confidence
        Probability of that prediction, from 0 to 1.
    n_bins
        Number of bins.

    Returns
    -------
    Float from 0, at best, to 1.

    Raises
    ------
    ValueError
        As for :func:`clustering_scores`; confidences that are no probabilities; no bins.

    Notes
    -----
    Guo et al., Proceedings of Machine Learning Research 70, 1321 (2017).

    Examples
    --------
    >>> import unitednet_mu as un
    >>> un.metrics.calibration_error(["B", "T"], ["B", "B"], [0.75, 0.75])
    0.25
    """
    if n_bins < 1:
        raise ValueError(f"n_bins: expected 1 or more, found {n_bins}.")
    check_same_cells("confidence", true, confidence)
    known = np.asarray(pd.notna(np.asarray(true, dtype=object)))
    p = np.asarray(confidence, dtype=np.float64)
    if p.shape != known.shape:
        raise ValueError(f"confidence: expected {len(known)} values, found shape {p.shape}.")
    t, labels = _labels(true, predicted)
    p = p[known]
    if not bool(np.all((p >= 0) & (p <= 1))):
        raise ValueError("confidence: expected probabilities from 0 to 1, found others or NaN.")
    bins = np.minimum((p * n_bins).astype(np.int64), n_bins - 1)
    excess = np.bincount(bins, weights=p - (t == labels), minlength=n_bins)
    return float(np.abs(excess).sum() / len(p))


def _labels(true: Labels, other: Labels) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """Both sides as text, without the cells whose true label is missing."""
    check_same_cells("labels", true, other)
    t, o = np.asarray(true, dtype=object), np.asarray(other, dtype=object)
    if t.ndim != 1 or t.shape != o.shape:
        raise ValueError(
            f"labels: expected two sequences of one length, found shapes {t.shape}, {o.shape}."
        )
    known = np.asarray(pd.notna(t))
    if not known.any():
        raise ValueError("true: expected labels, found every value missing.")
    t, o = t[known], o[known]
    missing = int(pd.isna(o).sum())
    if missing:
        raise ValueError(
            f"predicted: expected a value for every labelled cell, found {missing} missing."
        )
    return np.asarray([level_name(x) for x in t]), np.asarray([level_name(x) for x in o])
