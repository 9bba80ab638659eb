"""Scores and the table made of them: median and worst over seeds, interval against the best peer.

A score is kept as a function of resampled units (cells or features), so that two methods can be
compared on the same resample: the paired bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

#: From positions of units, repeated as drawn, to a value.
Scorer = Callable[[np.ndarray], float]

N_RESAMPLES = 300
_LEVEL = 0.95


@dataclass(frozen=True)
class Score:
    """One method's score at one seed.

    Parameters
    ----------
    task, metric, method, seed
        What was measured.
    score
        Value on resampled units.
    n_units
        Number of units; 0 where there are none to draw from, and then no interval.
    ours
        Whether the method is this package's.
    lower_is_better
        Of the metric.
    """

    task: str
    metric: str
    method: str
    seed: int
    score: Scorer
    n_units: int
    ours: bool = False
    lower_is_better: bool = False

    @cached_property
    def value(self) -> float:
        """Value on all units."""
        return self.score(np.arange(self.n_units))


def mean_of(values: np.ndarray) -> Scorer:
    """Scorer: mean of one value a unit, units without a value left out."""

    def score(units: np.ndarray) -> float:
        drawn = values[units]
        drawn = drawn[~np.isnan(drawn)]
        return float(drawn.mean()) if len(drawn) else float("nan")

    return score


def summarise(scores: Iterable[Score], data: str, n_resamples: int = N_RESAMPLES) -> pd.DataFrame:
    """Table of one set.

    Parameters
    ----------
    scores
        Of all tasks, methods and seeds.
    data
        Name of the set.
    n_resamples
        Resamples behind an interval.

    Returns
    -------
    DataFrame, one row a task, metric and method: ``median`` and ``worst`` over seeds, ``seeds``
    (their number) and ``values`` (of each seed). For this package's methods also the ``best_peer``
    (by median), the ``difference`` to it (ours minus peer's, mean over seeds) with the bounds
    ``low`` and ``high`` of its 95 % paired bootstrap interval over the units, and a ``verdict``:
    "ahead" or "behind" where that interval excludes zero, else "even".
    """
    by_metric: dict[tuple[str, str], dict[str, list[Score]]] = {}
    for score in scores:
        of_metric = by_metric.setdefault((score.task, score.metric), {})
        of_metric.setdefault(score.method, []).append(score)
    rows = []
    for (task, metric), methods in by_metric.items():
        best = _best_peer(methods)
        for method, found in methods.items():
            row = {"data": data, "task": task, "metric": metric, "method": method, **_spread(found)}
            if found[0].ours and best is not None:
                row |= {"best_peer": best, **_against(found, methods[best], n_resamples)}
            rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


COLUMNS = [
    *("data", "task", "metric", "method", "median", "worst", "seeds", "values"),
    *("best_peer", "difference", "low", "high", "verdict"),
]


def printed(table: pd.DataFrame) -> str:
    """Text of the table, narrow enough to read."""
    short = table.drop(columns=["values", "low", "high", "seeds"])
    bounds = [
        "" if pd.isna(low) else f"[{low:+.3f}, {high:+.3f}]"
        for low, high in zip(table["low"], table["high"], strict=True)
    ]
    short.insert(short.columns.get_loc("difference") + 1, "interval", bounds)
    formats = {name: "{:.3f}".format for name in ("median", "worst")}
    formats["difference"] = "{:+.3f}".format
    for name in ("best_peer", "verdict"):
        short[name] = short[name].fillna("")
    return short.to_string(index=False, formatters=formats, na_rep="")


def _spread(scores: list[Score]) -> dict[str, Any]:
    values = np.asarray([score.value for score in scores])
    known = values[~np.isnan(values)]  # an AUROC is none where all or no cells are positive
    worst = max if scores[0].lower_is_better else min
    return {
        "median": float(np.median(known)) if len(known) else np.nan,
        "worst": float(worst(known, default=np.nan)),
        "seeds": len(values),
        "values": " ".join(f"{value:.4f}" for value in values),
    }


def _best_peer(methods: dict[str, list[Score]]) -> str | None:
    best, highest = None, -np.inf
    for method, found in methods.items():
        median = _spread(found)["median"] * (-1 if found[0].lower_is_better else 1)
        if not found[0].ours and median > highest:
            best, highest = method, median
    return best


def _against(ours: list[Score], peer: list[Score], n_resamples: int) -> dict[str, Any]:
    of_peer = {score.seed: score for score in peer}
    pairs = [(score, of_peer[score.seed]) for score in ours if score.seed in of_peer]
    if not pairs:
        return {}
    found: dict[str, Any] = {"difference": float(np.mean([a.value - b.value for a, b in pairs]))}
    n = ours[0].n_units
    if n == 0:
        return found
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(n_resamples):
        units = rng.integers(n, size=n)
        draws.append(np.mean([a.score(units) - b.score(units) for a, b in pairs]))
    draws = [draw for draw in draws if not np.isnan(draw)]
    if not draws:
        return found
    low, high = np.quantile(draws, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    sign = -1 if ours[0].lower_is_better else 1
    verdict = "even" if low <= 0 <= high else "ahead" if sign * low > 0 else "behind"
    return {**found, "low": float(low), "high": float(high), "verdict": verdict}
