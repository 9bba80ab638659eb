"""Groups that run into each other, or that one view alone tells apart: how well are they found?

python tests/benchmarks/overlap.py [--seeds 3 4 5 6 7] [--noise 0.5 1.0 1.3] [--two-views 1.0 2.0]

Each seed is another draw, prepared by `un.pp`, and as many groups are asked for as there are:
`un.datasets.simulate_multimodal` (576 cells, counts of 60 and 22 features, five groups) with each
noise, and `un.datasets.simulate_two_views` (1,000 cells, 200 and 100 features, ten groups in pairs,
each told apart by what only one of the views holds). The adjusted Rand index with the planted
groups, of this package's own groups, of k-means on its embedding, and of k-means and Leiden on the
principal components of both modalities side by side; and the accuracy of labels by 15 neighbours.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import pandas as pd
from _peers import principal_components
from mudata import MuData
from sklearn.cluster import KMeans
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier

import unitednet_mu as un
from unitednet_mu._cluster import leiden_groups
from unitednet_mu._data import to_dense

_NEIGHBOURS, _FOLDS = 15, 5


def overlapping(noise: float, seed: int) -> MuData:
    """Five groups that both modalities tell apart, the worse the larger the noise."""
    mdata = un.datasets.simulate_multimodal(
        n_obs=576,
        n_groups=5,
        n_vars={"rna": 60, "adt": 22},
        values="counts",
        noise=noise,
        random_state=seed,
    )
    un.pp.prepare(mdata)
    return mdata


def two_views(noise: float, seed: int) -> MuData:
    """Ten groups, in pairs that only one of the two views tells apart."""
    mdata = un.datasets.simulate_two_views(noise=noise, random_state=seed)
    un.pp.prepare(mdata, kinds=dict.fromkeys(mdata.mod, "continuous"))
    return mdata


def scores(mdata: MuData, seed: int) -> dict[str, float]:
    """Adjusted Rand index of each way to find the groups of one draw, and accuracy of labels."""
    truth = mdata.obs["cell_type"]
    n_groups = truth.nunique()
    un.tl.fit(mdata, n_groups=n_groups, random_state=seed, progress=False)
    un.tl.integrate(mdata)
    parts = [principal_components(to_dense(x.X), seed) for x in mdata.mod.values()]
    pca, ours = np.hstack(parts), mdata.obsm["X_unitednet"]
    found = {
        "own groups": mdata.obs["unitednet_group"].astype(str),
        "k-means on the embedding": _k_means(ours, n_groups, seed),
        "k-means on PCA side by side": _k_means(pca, n_groups, seed),
        "Leiden on PCA side by side": leiden_groups(pca, n_groups, seed),
    }
    agreed = {name: un.metrics.clustering_scores(truth, one)["ari"] for name, one in found.items()}
    nearest = KNeighborsClassifier(_NEIGHBOURS)
    accuracy = {
        f"neighbours' labels, {name}": float(cross_val_score(nearest, x, truth, cv=_FOLDS).mean())
        for name, x in {"embedding": ours, "PCA side by side": pca}.items()
    }
    return agreed | accuracy


def _k_means(x: np.ndarray, n_groups: int, seed: int) -> np.ndarray:
    return np.asarray(KMeans(n_groups, n_init=10, random_state=seed).fit_predict(x))


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Measure, print the table (median, worst), and return it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[3, 4, 5, 6, 7])
    parser.add_argument("--noise", nargs="*", type=float, default=[0.5, 1.0, 1.3])
    parser.add_argument("--two-views", nargs="*", type=float, default=[1.0, 2.0])
    chosen = parser.parse_args(arguments)
    cases = [("overlapping", noise, overlapping) for noise in chosen.noise]
    cases += [("two views", noise, two_views) for noise in chosen.two_views]
    rows = {
        (name, noise): pd.DataFrame([scores(draw(noise, seed), seed) for seed in chosen.seeds])
        for name, noise, draw in cases
    }
    table = pd.concat(
        {noise: pd.DataFrame({"median": x.median(), "worst": x.min()}) for noise, x in rows.items()}
    )
    print(f"seeds {chosen.seeds}, by noise")
    print(table.round(3).to_string())
    return table


if __name__ == "__main__":
    main()
