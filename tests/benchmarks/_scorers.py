"""Scorers of labels: from resampled cells to a value. Quick, as the bootstrap calls them often."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from _table import Scorer, mean_of
from scipy.stats import rankdata
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

_AGREEMENT = {"ARI": adjusted_rand_score, "NMI": normalized_mutual_info_score}
#: Smallest probability: that of a label called impossible, in single precision.
_EPS = float(np.finfo(np.float32).eps)


def agreement(true: np.ndarray, found: np.ndarray, metric: str) -> Scorer:
    """``"ARI"`` or ``"NMI"`` of groups and labels."""
    t, f = pd.factorize(true)[0], pd.factorize(np.asarray(found))[0]
    return lambda cells: float(_AGREEMENT[metric](t[cells], f[cells]))


def auroc(positive: np.ndarray, values: np.ndarray) -> Scorer:
    """Area under the receiver operating characteristic; cells without a value are left out."""

    def score(cells: np.ndarray) -> float:
        drawn = cells[~np.isnan(values[cells])]
        is_positive = positive[drawn]
        n, n_positive = len(drawn), int(is_positive.sum())
        if n_positive in (0, n):
            return float("nan")
        above = rankdata(values[drawn])[is_positive].sum() - n_positive * (n_positive + 1) / 2
        return float(above / (n_positive * (n - n_positive)))

    return score


def auroc_of_unknown(unseen: Sequence[np.ndarray], doubt: Sequence[np.ndarray]) -> Scorer:
    """Mean over types of the AUROC of "is of the type left out" by doubt."""
    by_type = [auroc(is_type, values) for is_type, values in zip(unseen, doubt, strict=True)]

    def score(cells: np.ndarray) -> float:
        found = np.asarray([one(cells) for one in by_type])
        found = found[~np.isnan(found)]
        return float(found.mean()) if len(found) else float("nan")

    return score


class Labelled:
    """Labels and probabilities of all cells by one method, gathered split by split.

    Cells whose label no cell of the reference has cannot be labelled rightly by any method; they
    are left out.

    Parameters
    ----------
    labels
        True label of each cell.
    """

    def __init__(self, labels: np.ndarray) -> None:
        self._true, self._names = pd.factorize(labels, sort=True)
        n = len(labels)
        self._found = np.full(n, -1)
        self._likelihood, self._brier, self._confidence = (np.full(n, np.nan) for _ in range(3))

    def add(self, cells: np.ndarray, classes: np.ndarray, probabilities: np.ndarray) -> None:
        """Take in the probabilities of `classes` for some cells."""
        codes = pd.Index(self._names).get_indexer(classes)
        truth = self._true[cells][:, None] == codes
        known = truth.any(axis=1)
        cells, truth, probabilities = cells[known], truth[known], probabilities[known]
        self._found[cells] = codes[probabilities.argmax(axis=1)]
        self._confidence[cells] = probabilities.max(axis=1)
        self._likelihood[cells] = probabilities[truth]
        self._brier[cells] = np.square(probabilities - truth).sum(axis=1)

    def scorers(self) -> Iterator[tuple[str, str, Scorer, bool]]:
        """Task, metric, scorer, and whether lower is better."""
        scored = self._found >= 0
        right = self._found == self._true
        yield "transfer", "accuracy", mean_of(np.where(scored, right, np.nan)), False
        yield "transfer", "balanced accuracy", self._macro("recall"), False
        yield "transfer", "macro F1", self._macro("f1"), False
        loss = -np.log(np.clip(self._likelihood, _EPS, 1))
        yield "confidence", "negative log-likelihood", mean_of(loss), True
        yield "confidence", "Brier score", mean_of(self._brier), True
        yield "confidence", "AUROC of correctness", auroc(right, self._confidence), False

    def _macro(self, kind: str) -> Scorer:
        """Mean recall or F1 of the labels that occur among the cells, as `metrics` has it."""
        n = len(self._names)

        def score(cells: np.ndarray) -> float:
            drawn = cells[self._found[cells] >= 0]
            true, found = self._true[drawn], self._found[drawn]
            size = np.bincount(true, minlength=n)
            hits = np.bincount(true[true == found], minlength=n)
            claimed = np.bincount(found, minlength=n) if kind == "f1" else size
            occurs = size > 0
            return float(np.mean(2 * hits[occurs] / (size + claimed)[occurs]))

        return score
