"""What each part is worth: every loss term, task and part of the network switched off in turn.

python tests/benchmarks/ablation.py DATA.h5mu ... [--seeds 0 1 2] [--tasks groups predict transfer]

A variant differs from the defaults in one thing. The table holds the value with the defaults (mean
over seeds) and, for each variant, the mean over seeds of the difference to it, variant minus
default on the same cells and splits, with its standard error: below zero, the part that was
switched off helps. Directions of prediction are averaged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _ours import Settings
from _prepare import Prepared, read
from _run import Run
from _tasks import TASKS

DEFAULT = "defaults"


def _without(*terms: str) -> dict[str, Any]:
    return {"training": {"loss_weights": dict.fromkeys(terms, 0.0)}}


#: Overrides of the defaults by variant.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    DEFAULT: {},
    # terms
    "no reconstruction": _without("reconstruction"),
    "no translation": _without("translation"),
    "no contrastive": _without("contrastive"),
    "contrastive weight 1 (the paper's)": {"training": {"loss_weights": {"contrastive": 1.0}}},
    "contrastive temperature 0.1 (the paper's)": {"training": {"temperature": 0.1}},
    "no clustering": _without("clustering", "entropy"),
    "no cross-entropy to starting groups": _without("cross_entropy"),
    "adversarial": {"network": {"discriminators": True}},
    # tasks
    "identification only": _without("reconstruction", "translation", "contrastive"),
    "prediction only": _without("contrastive", "cross_entropy", "clustering", "entropy"),
    "tasks in turn (the paper's)": {"training": {"alternate": True}},
    # parts of the network
    "no linear path": {"network": {"linear_path": False}},
    "no direct path": {"network": {"direct_path": False}},
    "no input dropout": {"network": {"input_dropout": 0.0}},
    "no dropout": {"network": {"dropout": 0.0}},
    "no batch normalisation": {"network": {"batch_norm": False}},
    "one head": {"network": {"n_heads": 1}},
    "weights by code dimension": {"network": {"fusion": "dimension"}},
    # training
    "no modality dropout": {"training": {"modality_dropout": 0.0}},
    "no averaging of weights": {"training": {"averaging": 0.0}},
    "no second training on all cells": {"training": {"refit": False}},
    "groups start at random": {"training": {"start": "random"}},
    "groups start from k-means": {"training": {"start": "kmeans"}},
}
#: Not measured: without cross-entropy labels are not learned, and these act only without labels.
UNLABELLED_ONLY = (
    "no clustering",
    "no cross-entropy to starting groups",
    "prediction only",
    "one head",
    "groups start at random",
    "groups start from k-means",
)
#: Metrics shown, and what they are called.
SHOWN = {
    ("groups", "ARI", "its own groups"): "own groups, ARI",
    ("groups", "ARI", "Leiden"): "Leiden, ARI",
    ("groups", "kNN label accuracy", ""): "kNN label accuracy",
    ("predict", "mean r", ""): "prediction, r",
    ("predict", "mean r within groups", ""): "prediction, r within groups",
    ("transfer", "balanced accuracy", ""): "transfer, balanced accuracy",
}


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Measure, print one table a set, and return them as one, a row a set, metric and variant."""
    chosen = _parser().parse_args(arguments)
    tables = []
    for path in chosen.data:
        data, notes = read(path, labels_key=chosen.labels_key, max_cells=chosen.max_cells)
        print(f"{data.name}\n  " + "\n  ".join(notes), flush=True)
        values = [
            row
            for seed in chosen.seeds
            for variant in dict.fromkeys((DEFAULT, *chosen.variants))
            for row in _measure(data, seed, variant, chosen.tasks)
        ]
        table = summarise(pd.DataFrame(values), data.name)
        print(printed(table), flush=True)
        tables.append(table)
        if chosen.out is not None:
            pd.concat(tables).to_csv(chosen.out, index=False)
    return pd.concat(tables, ignore_index=True)


def _measure(data: Prepared, seed: int, variant: str, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Values of one variant at one seed, directions of prediction averaged."""
    overrides = VARIANTS[variant]
    settings = Settings(overrides.get("network", {}), overrides.get("training", {}))
    found: dict[str, list[float]] = {}
    for task in tasks:
        if task == "transfer" and variant in UNLABELLED_ONLY:
            continue
        run = Run(data, seed, settings, ("unitednet",), (task,))
        run.say(variant)
        for score in TASKS[task](run):
            part = score.method.partition(", ")[2]
            if name := SHOWN.get((task, score.metric, part)):
                found.setdefault(name, []).append(score.value)
    means = {name: float(np.nanmean(values)) for name, values in found.items()}
    told = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
    print(f"{data.name}, seed {seed}: {variant}: {told}", file=sys.stderr, flush=True)
    return [
        {"seed": seed, "variant": variant, "metric": name, "value": value}
        for name, value in means.items()
    ]


def summarise(values: pd.DataFrame, data: str) -> pd.DataFrame:
    """Differences to the defaults.

    Parameters
    ----------
    values
        Columns ``seed``, ``variant``, ``metric``, ``value``.
    data
        Name of the set.

    Returns
    -------
    DataFrame, one row a metric and variant: ``default`` (its mean over seeds), ``difference``
    (variant minus default, mean over seeds), ``error`` (its standard error over seeds; NaN with
    one seed) and ``seeds`` (their number).
    """
    rows = []
    for metric, of_metric in values.groupby("metric", sort=False):
        table = of_metric.pivot_table(index="seed", columns="variant", values="value", sort=False)
        for variant in table.columns.drop(DEFAULT):
            change = (table[variant] - table[DEFAULT]).dropna()
            rows.append(
                {
                    "data": data,
                    "metric": metric,
                    "variant": variant,
                    "default": float(table[DEFAULT].mean()),
                    "difference": float(change.mean()),
                    "error": float(change.std(ddof=1) / np.sqrt(len(change))),
                    "seeds": len(change),
                }
            )
    columns = ["data", "metric", "variant", "default", "difference", "error", "seeds"]
    return pd.DataFrame(rows, columns=columns)


def printed(table: pd.DataFrame) -> str:
    """Text: variants in rows, metrics in columns, difference and its standard error."""
    cells = [
        f"{difference:+.3f}" + ("" if np.isnan(error) else f" ({error:.3f})")
        for difference, error in zip(table["difference"], table["error"], strict=True)
    ]
    text = table.assign(cell=cells).pivot(index="variant", columns="metric", values="cell")
    text = text.loc[list(dict.fromkeys(table["variant"])), list(dict.fromkeys(table["metric"]))]
    default = table.groupby("metric")["default"].first()[text.columns]
    first = pd.DataFrame([default.map("{:.3f}".format)], index=[DEFAULT])
    return pd.concat([first, text]).fillna("").to_string()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", type=Path, metavar="DATA.h5mu")
    parser.add_argument("--labels-key", default="cell_type")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    tasks = ["groups", "predict", "transfer"]
    parser.add_argument("--tasks", nargs="+", default=tasks, choices=tasks)
    parser.add_argument(
        "--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="VARIANT"
    )
    parser.add_argument("--max-cells", type=int, help="draw this many, of every label its share")
    parser.add_argument("--out", type=Path, help="CSV file for the tables")
    return parser


if __name__ == "__main__":
    main()
