"""The demo's table over several seeds: median and worst of each row.

python tests/benchmarks/demo_seeds.py [--seeds 0 1 2 3 4]
"""

from __future__ import annotations

import argparse
import warnings

import pandas as pd

from unitednet_mu import datasets
from unitednet_mu.__main__ import _EXPECTED_WARNINGS
from unitednet_mu._demo import group_scores, held_out_scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    seeds = parser.parse_args().seeds
    with warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        run(seeds)


def run(seeds: list[int]) -> None:
    """Measure with each seed, print each table and the summary."""
    raw = datasets.pbmc_citeseq()
    tables = []
    for seed in seeds:
        for scores in (held_out_scores, group_scores):
            table = scores(raw, seed=seed, progress=False).table()
            print(f"seed {seed}\n{table.to_string(index=False)}\n", flush=True)
            tables.append(table)
    both = pd.concat(tables).groupby(["task", "method"], sort=False)["value"]
    summary = pd.DataFrame({"median": both.median(), "worst": both.min()})
    print(summary.round(3).to_string())


if __name__ == "__main__":
    main()
