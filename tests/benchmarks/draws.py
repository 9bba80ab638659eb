"""How far relevance depends on which cells are drawn, by the size of the sample and the background.

python tests/benchmarks/draws.py [--seeds 0 1 2] [--draws 2] [--sizes 50 100 200]

A fit of the bundled set with labels a seed, explained several times, each time with other cells of
each group, and as many others as background. Of two draws: Spearman's correlation of signed values,
and how many of the strongest are the same (20 features of a group by signed value, 200 pairs from
RNA to protein by size); means over groups and pairs of draws, median over fits. Nothing is compared
with labels or known markers here.
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from mudata import MuData
from scipy.stats import spearmanr

import unitednet_mu as un
from unitednet_mu.__main__ import _EXPECTED_WARNINGS
from unitednet_mu._data import to_dense
from unitednet_mu.get._cross_relevance import read_cross_relevance

PAIR = {"source": "rna", "target": "adt"}


def of_groups(mdata: MuData, **settings: Any) -> np.ndarray:
    """Signed relevance of all features, groups x features."""
    un.tl.explain(mdata, groupby="cell_type", progress=False, **settings)
    blocks = mdata.uns["unitednet"]["relevance"]["modalities"].values()
    return np.concatenate([block["signed"] for block in blocks]).T


def of_pairs(mdata: MuData, **settings: Any) -> np.ndarray:
    """Signed relevance of all pairs of features, groups x pairs."""
    un.tl.explain(mdata, groupby="cell_type", top_k=None, progress=False, **PAIR, **settings)
    return np.stack([to_dense(m).ravel() for m in read_cross_relevance(mdata, **PAIR).signed])


def agreement(one: np.ndarray, other: np.ndarray, what: str) -> tuple[float, float]:
    """Spearman's correlation, and the share of the strongest that both have; means over groups."""
    correlations = [spearmanr(a, b).statistic for a, b in zip(one, other, strict=True)]
    n_top = 20 if what == "groups" else 200
    sizes = (one, other) if what == "groups" else (np.abs(one), np.abs(other))
    tops = [[set(np.argsort(-row)[:n_top].tolist()) for row in draw] for draw in sizes]
    shared = [len(a & b) / n_top for a, b in zip(*tops, strict=True)]
    return float(np.mean(correlations)), float(np.mean(shared))


def measure(seed: int, sizes: Sequence[int], n_draws: int) -> pd.DataFrame:
    """Fit once, and explain with every size: a row each, for groups and for pairs."""
    mdata = un.datasets.pbmc_citeseq()
    un.pp.prepare(mdata)
    un.tl.fit(mdata, labels_key="cell_type", random_state=seed, progress=False)
    rows = []
    explaining = {"groups": of_groups, "pairs": of_pairs}
    for what, size in itertools.product(explaining, sizes):
        begun = time.monotonic()
        settings = {"n_cells": size, "n_background": size}
        draws = [explaining[what](mdata, random_state=i, **settings) for i in range(n_draws)]
        took = (time.monotonic() - begun) / n_draws
        both = itertools.combinations(draws, 2)
        agreed = np.mean([agreement(one, other, what) for one, other in both], axis=0)
        rows.append([what, size, *agreed, took])
    columns = ["of", "cells a group, background", "Spearman", "same on top", "seconds"]
    return pd.DataFrame(rows, columns=columns)


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Measure, print the table, and return it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 100, 200])
    chosen = parser.parse_args(arguments)
    with warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        found = pd.concat([measure(seed, chosen.sizes, chosen.draws) for seed in chosen.seeds])
    table = found.groupby(["of", "cells a group, background"]).median().round(3)
    print(table.to_string())
    return table


if __name__ == "__main__":
    main()
