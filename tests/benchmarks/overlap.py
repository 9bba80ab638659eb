"""Groups that run into each other: how well are they found, on simulated cells?

python tests/benchmarks/overlap.py [--seeds 3 4 5 6 7] [--noise 0.5 1.0 1.3]

Each seed is another draw of `un.datasets.simulate_multimodal` (576 cells, counts of 60 and 22
features, five groups), prepared by `un.pp`, and as many groups are asked for. The adjusted Rand
index with the planted groups, of this package's own groups, of k-means on its embedding, and of
k-means and Leiden on the principal components of both modalities side by side.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import pandas as pd
from _peers import principal_components
from sklearn.cluster import KMeans

import unitednet_mu as un
from unitednet_mu._cluster import leiden_groups
from unitednet_mu._data import to_dense

N_GROUPS = 5


def scores(noise: float, seed: int) -> dict[str, float]:
    """Adjusted Rand index of each way to find the groups of one draw."""
    mdata = un.datasets.simulate_multimodal(
        n_obs=576,
        n_groups=N_GROUPS,
        n_vars={"rna": 60, "adt": 22},
        values="counts",
        noise=noise,
        random_state=seed,
    )
    un.pp.prepare(mdata)
    un.tl.fit(mdata, n_groups=N_GROUPS, random_state=seed, progress=False)
    un.tl.integrate(mdata)
    pca = np.hstack([principal_components(to_dense(x.X), seed) for x in mdata.mod.values()])
    found = {
        "own groups": mdata.obs["unitednet_group"].astype(str),
        "k-means on the embedding": _k_means(mdata.obsm["X_unitednet"], seed),
        "k-means on PCA side by side": _k_means(pca, seed),
        "Leiden on PCA side by side": leiden_groups(pca, N_GROUPS, seed),
    }
    truth = mdata.obs["cell_type"]
    return {name: un.metrics.clustering_scores(truth, one)["ari"] for name, one in found.items()}


def _k_means(x: np.ndarray, seed: int) -> np.ndarray:
    return np.asarray(KMeans(N_GROUPS, n_init=10, random_state=seed).fit_predict(x))


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Measure, print the table (median, worst), and return it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[3, 4, 5, 6, 7])
    parser.add_argument("--noise", nargs="+", type=float, default=[0.5, 1.0, 1.3])
    chosen = parser.parse_args(arguments)
    rows = {
        noise: pd.DataFrame([scores(noise, seed) for seed in chosen.seeds])
        for noise in chosen.noise
    }
    table = pd.concat(
        {noise: pd.DataFrame({"median": x.median(), "worst": x.min()}) for noise, x in rows.items()}
    )
    print(f"seeds {chosen.seeds}, by noise")
    print(table.round(3).to_string())
    return table


if __name__ == "__main__":
    main()
