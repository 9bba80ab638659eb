"""Are p-values of relevance calibrated, and what do they find? On simulated data, truth known.

python tests/benchmarks/significance.py [--seeds 0 1 2] [--n-permutations 20] [--out TABLE.csv]

Sets come from `un.datasets.simulate_multimodal`. "groups": relevance of features for groups, by
kind of feature: markers of the group, markers of others, features that follow a hidden quantity
whatever the group (linked), and noise. "labels at random": the same cells with labels shuffled,
where nothing is to be found. "pairs": cross-modal relevance, of pairs under one link and, by kind,
of those that have none. Of each kind the share of p-values of at most 0.05 and at most 0.5 (about
0.05 and 0.5 where there is nothing to find, or less) and the share of q-values of at most 0.1; of
each set the share of false ones among all with q of at most 0.1. All seeds are taken together.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mudata import MuData

import unitednet_mu as un

LABELS = "cell_type"
#: Limits of p and of q.
_SMALL, _HALF, _Q = 0.05, 0.5, 0.1
#: Kinds in which there is something to find.
TRUE = ("marker of the group", "marker of another group", "same link")


def groups(mdata: MuData, settings: Mapping[str, Any]) -> pd.DataFrame:
    """p and q of features for groups, with the kind of each."""
    un.tl.explain(mdata, progress=False, **settings)
    table = un.get.relevance(mdata)
    marker, link = _of_feature(mdata, "marker_of"), _of_feature(mdata, "link_of")
    marks, linked = table["feature"].map(marker), table["feature"].map(link)
    kinds = np.select(
        [marks == table["group"], marks != "", linked != ""],
        ["marker of the group", "marker of another group", "linked"],
        "noise",
    )
    return table.assign(kind=kinds)


def random_labels(mdata: MuData, settings: Mapping[str, Any]) -> pd.DataFrame:
    """The same where labels mean nothing; `mdata` has them shuffled."""
    return groups(mdata, settings).assign(kind="all features")


def pairs(mdata: MuData, settings: Mapping[str, Any]) -> pd.DataFrame:
    """p and q of pairs of features, with the kind of each."""
    un.tl.explain(mdata, source="rna", target="adt", progress=False, **settings)
    table = un.get.cross_relevance(mdata, source="rna", target="adt")
    marker, link = _of_feature(mdata, "marker_of"), _of_feature(mdata, "link_of")
    of_source, of_target = table["feature"].map(link), table["target_feature"].map(link)
    markers = table["feature"].map(marker).ne("") & table["target_feature"].map(marker).ne("")
    kinds = np.select(
        [(of_source == of_target) & (of_source != ""), of_source != "", of_target != "", markers],
        ["same link", "linked source, other target", "other source, linked target", "markers"],
        "others",
    )
    return table.assign(kind=kinds)


SETS: Mapping[str, Callable[[MuData, Mapping[str, Any]], pd.DataFrame]] = {
    "groups": groups,
    "labels at random": random_labels,
    "pairs": pairs,
}


def _of_feature(mdata: MuData, what: str) -> dict[str, str]:
    truth = mdata.uns["truth"][what]
    return {
        feature: str(value)
        for mod in mdata.mod
        for feature, value in zip(mdata[mod].var_names, truth[mod], strict=True)
    }


def simulated(name: str, n_obs: int, seed: int) -> MuData:
    """Cells of a set."""
    mdata = un.datasets.simulate_multimodal(
        n_obs=n_obs,
        n_groups=3,
        n_vars={"rna": 60, "adt": 30},
        n_links=5,
        noise=1.0,
        random_state=seed,
    )
    if name == "labels at random":
        labels = mdata.obs[LABELS]
        order = np.random.default_rng([seed, 1]).permutation(mdata.n_obs)
        mdata.obs[LABELS] = labels.iloc[order].set_axis(labels.index)
    return mdata


def summary(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """Shares of small p and q by kind, of all seeds together."""
    table = table[table["p"].notna()]  # of a group that refits did not find there is none
    rows = table.groupby("kind", sort=False).agg(
        n=("p", "count"),
        small_p=("p", lambda p: (p <= _SMALL).mean()),
        half_p=("p", lambda p: (p <= _HALF).mean()),
        small_q=("q", lambda q: (q <= _Q).mean()),
    )
    found = table[table["q"] <= _Q]
    rows["false among found"] = 1 - found["kind"].isin(TRUE).mean() if len(found) else np.nan
    return rows.reset_index().assign(set=name)


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Measure, print the table, and return it.

    Parameters
    ----------
    arguments
        Of the command line; by default this process's.
    """
    chosen = _parser().parse_args(arguments)
    tables = []
    for name in chosen.sets:
        found = []
        for seed in chosen.seeds:
            mdata = simulated(name, chosen.n_obs, seed)
            un.tl.fit(
                mdata,
                labels_key=LABELS,
                network=chosen.network or None,
                training=chosen.training or None,
                random_state=seed,
                device=chosen.device,
                progress=False,
            )
            settings = {
                "n_permutations": chosen.n_permutations,
                "random_state": seed,
                "device": chosen.device,
            }
            found.append(SETS[name](mdata, settings))
        tables.append(summary(name, pd.concat(found)))
    table = pd.concat(tables, ignore_index=True)
    table = table[["set", "kind", "n", "small_p", "half_p", "small_q", "false among found"]]
    table = table.rename(
        columns={
            "small_p": f"p <= {_SMALL}",
            "half_p": f"p <= {_HALF}",
            "small_q": f"q <= {_Q}",
        }
    )
    if chosen.out is not None:
        table.to_csv(chosen.out, index=False)
    print(table.to_string(index=False, float_format="{:.3f}".format))
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--n-obs", type=int, default=300, help="number of cells")
    parser.add_argument("--n-permutations", type=int, default=20, help="number of refits")
    parser.add_argument("--network", type=json.loads, default={}, help="overrides, as JSON")
    parser.add_argument("--training", type=json.loads, default={}, help="overrides, as JSON")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="CSV file for the table")
    return parser


if __name__ == "__main__":
    main()
