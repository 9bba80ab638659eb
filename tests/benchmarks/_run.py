"""A set, a seed and a choice of methods: what every task is handed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from _ours import OURS, Settings, unsupervised
from _peers import EMBEDDINGS, PREDICTORS
from _prepare import Prepared
from _table import Score, mean_of
from mudata import MuData

import unitednet_mu as un

METHODS = ("unitednet", "adaptation", *EMBEDDINGS, *PREDICTORS, "logistic")


@dataclass(frozen=True)
class Run:
    """A set, a seed, and which methods are to be measured how."""

    data: Prepared
    seed: int
    settings: Settings = field(default_factory=Settings)
    methods: tuple[str, ...] = METHODS
    tasks: tuple[str, ...] = ()
    original: Path | None = None

    @cached_property
    def integrated(self) -> MuData:
        """All cells, embedded and grouped by this package without labels or batches."""
        start = perf_counter()
        mdata = unsupervised(self.data, np.arange(len(self.data)), self.seed, self.settings)
        un.tl.integrate(mdata, device=self.settings.device)
        self.say(f"{OURS}, fit without labels on {len(self.data)} cells", start)
        return mdata

    def score(self, task: str, metric: str, method: str, scorer: Any, n: int, **how: Any) -> Score:
        """Return a score of this run."""
        ours = method.startswith(OURS)
        return Score(task, metric, method, self.seed, scorer, n, **{"ours": ours, **how})

    def say(self, text: str, since: float | None = None) -> None:
        """Print progress to the standard error."""
        took = "" if since is None else f", {perf_counter() - since:.1f} s"
        print(f"{self.data.name}, seed {self.seed}: {text}{took}", file=sys.stderr, flush=True)


#: Least variance among the cells judged, relative to the training cells', for R2 to tell anything.
_LEAST_VARIANCE = 0.01


def prediction_scores(
    run: Run,
    direction: str,
    true: np.ndarray,
    labels: np.ndarray,
    variance: np.ndarray,
    method: str,
    found: np.ndarray,
) -> Iterator[Score]:
    """Scores over features; a constant prediction of a feature that varies counts as r = 0.

    R2 divides by the variance among the cells judged. A feature that by chance has next to none
    there, compared with its usual `variance`, would outweigh all others, and is left out of it.
    """
    judged = true.var(axis=0) >= _LEAST_VARIANCE * variance
    within = partial(un.metrics.pearson_within_groups, groups=labels)
    for metric, measure, constant in (
        ("mean r", un.metrics.pearson_per_feature, 0.0),
        ("mean r within groups", within, 0.0),
        ("mean R2", un.metrics.r2_per_feature, np.nan),
    ):
        values = measure(true, found)
        varies = ~np.isnan(measure(true, true))
        values = np.where(np.isnan(values) & varies, constant, values)
        if metric == "mean R2":
            values = np.where(judged, values, np.nan)
        yield run.score(direction, metric, method, mean_of(values), len(values))
