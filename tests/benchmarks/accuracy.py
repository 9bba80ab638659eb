"""This package and its peers on any paired MuData with labels: one table, with spread.

python tests/benchmarks/accuracy.py DATA.h5mu ... [--seeds 0 1 2 3 4] [--tasks groups predict]

All methods get the same preparation, cells and splits. Higher is better, but for the negative
log-likelihood and the Brier score. Intervals are 95 % paired bootstrap intervals of the difference
between this package and the best peer, over cells (groups, labels) or features (prediction).
Progress, and what was skipped for want of a package, goes to the standard error.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from _ours import Settings
from _prepare import read
from _run import METHODS, Run
from _table import N_RESAMPLES, Score, printed, summarise
from _tasks import TASKS


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Measure, print the table, and return it.

    Parameters
    ----------
    arguments
        Of the command line; by default this process's.
    """
    chosen = _parser().parse_args(arguments)
    settings = Settings(chosen.network, chosen.training, chosen.device)
    tables = []
    for path in chosen.data:
        data, notes = read(
            path,
            labels_key=chosen.labels_key,
            batch_key=chosen.batch_key,
            max_cells=chosen.max_cells,
            layers=dict(chosen.layers),
        )
        print(f"{data.name}\n  " + "\n  ".join(notes), flush=True)
        scores: list[Score] = []
        for seed in chosen.seeds:
            methods, tasks = tuple(chosen.methods), tuple(chosen.tasks)
            run = Run(data, seed, settings, methods, tasks, chosen.original)
            for measure in dict.fromkeys(TASKS[task] for task in chosen.tasks):
                scores.extend(measure(run))
            table = summarise(scores, data.name, chosen.resamples)
            if chosen.out is not None:  # so far, as a long run may break off
                pd.concat([*tables, table]).to_csv(chosen.out, index=False)
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    print(printed(table))
    return table


def _layer(text: str) -> tuple[str, str]:
    """Modality and layer."""
    modality, there, layer = text.partition("=")
    if not there:
        raise argparse.ArgumentTypeError(f"expected MODALITY=LAYER, found {text!r}")
    return modality, layer


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", type=Path, metavar="DATA.h5mu")
    parser.add_argument("--labels-key", default="cell_type")
    parser.add_argument("--batch-key", default="batch", help="may be missing from the data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--max-cells", type=int, help="draw this many, of every label its share")
    parser.add_argument(
        "--layers",
        type=_layer,
        nargs="+",
        default=[],
        metavar="MODALITY=LAYER",
        help="layers to take as they are, in place of this package's preparation",
    )
    parser.add_argument("--network", type=json.loads, default={}, help="overrides, as JSON")
    parser.add_argument("--training", type=json.loads, default={}, help="overrides, as JSON")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--original", type=Path, help="checkout of the original UnitedNet, to run beside the others"
    )
    parser.add_argument("--resamples", type=int, default=N_RESAMPLES, help="of the bootstrap")
    parser.add_argument("--out", type=Path, help="CSV file for the table")
    return parser


if __name__ == "__main__":
    main()
