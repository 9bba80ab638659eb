"""Where groups start: Leiden or k-means on codes, and how many there are."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import igraph
import numpy as np
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.neighbors import kneighbors_graph

_N_NEIGHBORS = 15
_MAX_CELLS = 20_000


def shared_neighbour_graph(x: np.ndarray, n_neighbors: int = _N_NEIGHBORS) -> igraph.Graph:
    """k-nearest-neighbour graph of the rows of `x`, edges weighted by the Jaccard index of neighbourhoods."""
    knn = kneighbors_graph(x, min(n_neighbors, len(x) - 1), include_self=False)
    knn = sparse.csr_array(knn) + sparse.eye_array(len(x), format="csr")
    shared = sparse.triu(knn @ knn.T, 1).tocoo()
    size = np.asarray(knn.sum(1)).ravel()
    jaccard = shared.data / (size[shared.row] + size[shared.col] - shared.data)
    keep = jaccard > 1 / 15
    edges = np.stack([shared.row[keep], shared.col[keep]], 1)
    return igraph.Graph(n=len(x), edges=edges, edge_attrs={"weight": jaccard[keep]})


@contextmanager
def _igraph_seed(seed: int) -> Iterator[None]:
    """Seed igraph, which draws from Python's own generator unless told otherwise, for the block."""
    igraph.set_random_number_generator(random.Random(seed))
    try:
        yield
    finally:
        igraph.set_random_number_generator(random)


def _leiden(graph: igraph.Graph, resolution: float) -> np.ndarray:
    partition = graph.community_leiden(
        objective_function="modularity", weights="weight", resolution=resolution, n_iterations=10
    )
    return np.asarray(partition.membership, np.int64)


def leiden_groups(x: np.ndarray, n_groups: int | None, seed: int = 0) -> np.ndarray:
    """Leiden communities of the rows of `x`; the resolution is searched for `n_groups`, 1 where None.

    Returns
    -------
    int64 labels 0, 1, ... by decreasing size; exactly `n_groups` of them where asked for.
    """
    graph = shared_neighbour_graph(x)
    with _igraph_seed(seed):
        if n_groups is None:
            return _by_size(_leiden(graph, 1.0))
        labels = _search(lambda resolution: _leiden(graph, resolution), n_groups)
    return _by_size(_merge_smallest(x, labels, n_groups))


def _search(cluster: Callable[[float], np.ndarray], n_groups: int) -> np.ndarray:
    """Bisect the resolution on a log scale until it gives `n_groups`, or the fewest beyond it."""
    low, high = 1e-3, 50.0
    best: np.ndarray | None = None
    for _ in range(25):
        resolution = float(np.sqrt(low * high))
        labels = cluster(resolution)
        found = labels.max() + 1
        if found == n_groups:
            return labels
        if found > n_groups:
            high = resolution
            best = labels if best is None or found < best.max() + 1 else best
        else:
            low = resolution
    return cluster(high) if best is None else best


def _merge_smallest(x: np.ndarray, labels: np.ndarray, n_groups: int) -> np.ndarray:
    """Merge the smallest group into the nearest until `n_groups` are left; split the largest if too few."""
    labels = labels.copy()
    while (found := labels.max() + 1) > n_groups:
        sizes = np.bincount(labels)
        centres = np.stack([x[labels == k].mean(0) for k in range(found)])
        small = int(sizes.argmin())
        distance = np.square(centres - centres[small]).sum(1)
        distance[small] = np.inf
        labels[labels == small] = int(distance.argmin())
        labels = np.unique(labels, return_inverse=True)[1]
    while (found := labels.max() + 1) < n_groups:
        largest = np.flatnonzero(labels == np.bincount(labels).argmax())
        halves = KMeans(2, n_init=5, random_state=0).fit_predict(x[largest])
        labels[largest[halves == 1]] = found
    return labels


def _by_size(labels: np.ndarray) -> np.ndarray:
    order = np.argsort(-np.bincount(labels), kind="stable")
    return np.argsort(order)[labels]


def starting_groups(x: np.ndarray, n_groups: int | None, method: str, seed: int) -> np.ndarray:
    """Group of every row of `x`: `method` on at most 20,000 rows, the nearest centre for the others.

    Parameters
    ----------
    x
        Codes, cells x n_latent.
    n_groups
        How many; None lets Leiden find the number.
    method
        ``"leiden"`` or ``"kmeans"`` (which needs `n_groups`).
    seed
        Of the subsample and of k-means.
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(x), min(len(x), _MAX_CELLS), replace=False))
    if method == "kmeans" and n_groups is not None:
        labels = _by_size(KMeans(n_groups, n_init=20, random_state=seed).fit_predict(x[rows]))
    else:
        labels = leiden_groups(x[rows], n_groups, seed)
    if len(rows) == len(x):
        return labels
    centres = np.stack([x[rows][labels == k].mean(0) for k in range(labels.max() + 1)])
    return np.concatenate([_nearest(part, centres) for part in np.array_split(x, len(x) // _MAX_CELLS + 1)])


def _nearest(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    distance = -2 * x @ centres.T + np.square(centres).sum(1)
    return distance.argmin(1)
