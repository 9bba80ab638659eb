"""Where groups start: Leiden or k-means on codes, and how many there are."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    import igraph

#: Sizes of the neighbourhoods that groups are looked for at: which is best differs between data.
_SCALES = (10, 15, 20, 30)
_DEFAULT_SCALE = 15
#: Times that communities are found at each scale.
_RUNS = 3
#: Times that k-means is fitted to either half of the rows.
_HALVINGS = 3
#: By how much more results of k-means have to agree (mean adjusted Rand index) to be taken instead.
#: On codes of six real sets, one to three seeds of each, they agreed less than communities do, by
#: 0.03 to 0.2; where simulated groups run into each other, more by 0.4 and above.
_CLEARLY_MORE = 0.15
_OVERCLUSTER = 4
_MAX_CELLS = 20_000


def shared_neighbour_graph(x: np.ndarray, n_neighbors: int) -> igraph.Graph:
    """k-nearest-neighbour graph of the rows of `x`, edges weighted by Jaccard index."""
    import igraph
    from sklearn.neighbors import kneighbors_graph

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
    import igraph

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
    """Group the rows of `x`: Leiden communities, merged where their boundary is weakest.

    Modularity favours groups of equal size and so splits a large group before it separates a small
    one. For `n_groups` groups the rows are therefore cut into about four times as many communities,
    and those with the most edges between them, relative to the root of their sizes, are merged
    until `n_groups` are left. What comes out depends on the size of the neighbourhoods and on
    chance: it is done several times at each of several sizes, and the result that agrees best with
    the others taken.

    Where groups run into each other the largest swallows one community after another, each time
    others. If centres that k-means finds in one half of the rows and in the other divide all rows
    into groups that agree clearly more (prediction strength: Tibshirani & Walther 2005), k-means is
    taken instead.

    Returns
    -------
    int64 labels 0, 1, ... by decreasing size; as many communities as resolution 1 gives where
    `n_groups` is None.
    """
    if n_groups is None:
        graph = shared_neighbour_graph(x, _DEFAULT_SCALE)
        with _igraph_seed(seed):
            n_groups = int(_leiden(graph, 1.0).max()) + 1
    found: list[_Communities] = []
    for scale in _SCALES:
        found += _communities(shared_neighbour_graph(x, scale), n_groups, seed)
    if not found:  # fewer rows than communities asked for, or no structure at all
        return _k_means(x, n_groups, 10, seed)
    groups, agreement = _most_agreed([one.merged(n_groups) for one in found])
    if _agreement_of_halves(x, n_groups, seed) > agreement + _CLEARLY_MORE:
        return _k_means(x, n_groups, 20, seed)
    return _by_size(groups)


@dataclass(frozen=True)
class _Communities:
    """Communities of a graph's vertices, and its edges with their weights."""

    edges: np.ndarray
    weights: np.ndarray
    labels: np.ndarray

    def merged(self, n_groups: int) -> np.ndarray:
        """Merge the two that are closest, by the weight between them, until so many are left."""
        labels, n = self.labels, int(self.labels.max()) + 1
        pairs = labels[self.edges[:, 0]] * n + labels[self.edges[:, 1]]
        between = np.bincount(pairs, self.weights, minlength=n * n).reshape(n, n)
        between = between + between.T
        left = list(range(n))
        while len(left) > n_groups:
            part = between[np.ix_(left, left)]
            size = np.sqrt(part.sum(1).clip(1e-12))
            closeness = part / np.outer(size, size)
            np.fill_diagonal(closeness, -1)
            i, j = np.unravel_index(int(closeness.argmax()), closeness.shape)
            into, gone = left[int(i)], left.pop(int(j))
            between[into] += between[gone]
            between[:, into] += between[:, gone]
            labels = np.where(labels == gone, into, labels)
        return np.asarray(np.unique(labels, return_inverse=True)[1])


def _communities(graph: igraph.Graph, n_groups: int, seed: int) -> list[_Communities]:
    """Communities to merge, found several times; none where the graph has fewer than groups."""
    with _igraph_seed(seed):
        resolution = _resolution(graph, _OVERCLUSTER * n_groups)
        runs = [_leiden(graph, resolution) for _ in range(_RUNS)]
    edges, weights = np.asarray(graph.get_edgelist()), np.asarray(graph.es["weight"])
    return [_Communities(edges, weights, labels) for labels in runs if labels.max() + 1 >= n_groups]


def _resolution(graph: igraph.Graph, n_communities: int) -> float:
    """Bisect the resolution on a log scale for `n_communities`, at least to within a tenth."""
    low, high = 1e-2, 1e3
    resolution = 1.0
    for _ in range(15):
        resolution = float(np.sqrt(low * high))
        found = int(_leiden(graph, resolution).max()) + 1
        if abs(found - n_communities) <= n_communities // 10:
            break
        low, high = (low, resolution) if found > n_communities else (resolution, high)
    return resolution


def _most_agreed(found: list[np.ndarray]) -> tuple[np.ndarray, float]:
    """Return the grouping with the highest mean adjusted Rand index to all, and the pairs' mean."""
    from sklearn.metrics import adjusted_rand_score

    n = len(found)
    agreement = np.array([[adjusted_rand_score(a, b) for b in found] for a in found])
    of_pairs = (agreement.sum() - n) / (n * (n - 1)) if n > 1 else 1.0
    return found[int(agreement.mean(axis=1).argmax())], float(of_pairs)


def _k_means(x: np.ndarray, n_groups: int, n_init: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    return _by_size(KMeans(n_groups, n_init=n_init, random_state=seed).fit_predict(x))


def _agreement_of_halves(x: np.ndarray, n_groups: int, seed: int) -> float:
    """Mean adjusted Rand index of groups by centres of either half; 0 for few different rows."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    half = len(x) // 2
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(_HALVINGS):
        order = rng.permutation(len(x))
        halves = x[order[:half]], x[order[half:]]
        if any(len(np.unique(rows, axis=0)) < n_groups for rows in halves):
            return 0.0
        fits = [KMeans(n_groups, n_init=10, random_state=seed).fit(rows) for rows in halves]
        found.append(adjusted_rand_score(*(fit.predict(x) for fit in fits)))
    return float(np.mean(found))


def _by_size(labels: np.ndarray) -> np.ndarray:
    order = np.argsort(-np.bincount(labels), kind="stable")
    return np.asarray(np.argsort(order)[labels])


def starting_groups(x: np.ndarray, n_groups: int | None, method: str, seed: int) -> np.ndarray:
    """Group of every row of `x`: `method` on up to 20,000 rows, the nearest centre for others.

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
        labels = _k_means(x[rows], n_groups, 20, seed)
    else:
        labels = leiden_groups(x[rows], n_groups, seed)
    if len(rows) == len(x):
        return labels
    centres = np.stack([x[rows][labels == k].mean(0) for k in range(labels.max() + 1)])
    return np.concatenate(
        [_nearest(part, centres) for part in np.array_split(x, len(x) // _MAX_CELLS + 1)]
    )


def _nearest(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    distance = -2 * x @ centres.T + np.square(centres).sum(1)
    return np.asarray(distance.argmin(1))
