"""Where groups start: communities and k-means on codes."""

from __future__ import annotations

import itertools
import random

import igraph
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, homogeneity_score

from unitednet_mu import _cluster
from unitednet_mu._cluster import leiden_groups, shared_neighbour_graph, starting_groups


def blobs(sizes: list[int], spread: float = 0.4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points around the corners of a simplex, and whose they are."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    x = 4 * np.eye(len(sizes), max(len(sizes), 5))[labels]
    return (x + spread * rng.standard_normal(x.shape)).astype(np.float32), labels


def test_graph_weights_are_jaccard_indices() -> None:
    """Of the sets of nearest neighbours, each point among its own; weak edges are left out."""
    x, _ = blobs([12, 12])
    k = 4
    graph = shared_neighbour_graph(x, n_neighbors=k)
    distance = np.square(x[:, None] - x[None]).sum(2)
    near = [{i, *np.argsort(distance[i])[: k + 1].tolist()} for i in range(len(x))]
    assert all(len(one) == k + 1 for one in near)
    expected = {}
    for i in range(len(x)):
        for j in range(i + 1, len(x)):
            weight = len(near[i] & near[j]) / len(near[i] | near[j])
            if weight > 1 / 15:
                expected[i, j] = weight
    found = {edge.tuple: edge["weight"] for edge in graph.es}
    assert found.keys() == expected.keys()
    for pair, weight in expected.items():
        assert found[pair] == pytest.approx(weight)


@pytest.mark.parametrize("sizes", [[60, 60, 60], [120, 40, 25], [50, 40, 30, 25, 20]], ids=str)
def test_planted_groups_are_found(sizes: list[int]) -> None:
    x, truth = blobs(sizes)
    labels = leiden_groups(x, len(sizes))
    assert adjusted_rand_score(truth, labels) == 1.0
    # numbered by decreasing size
    np.testing.assert_array_equal(np.bincount(labels), sorted(sizes, reverse=True))
    free = leiden_groups(x, None)  # modularity may split a large group, and mixes none
    assert len(sizes) <= len(np.unique(free)) <= 2 * len(sizes)
    assert homogeneity_score(truth, free) == pytest.approx(1.0)


def test_no_group_swallows_those_that_it_runs_into(monkeypatch: pytest.MonkeyPatch) -> None:
    x, truth = blobs([110] * 5, spread=2.1, seed=1)
    labels = leiden_groups(x, 5)
    assert np.bincount(labels).min() > 50
    assert sorted(np.bincount(labels), reverse=True) == np.bincount(labels).tolist()
    monkeypatch.setattr(_cluster, "_CLEARLY_MORE", 2.0)  # k-means never takes over
    before = leiden_groups(x, 5)
    assert np.bincount(before).max() > 300
    better = adjusted_rand_score(truth, labels) - adjusted_rand_score(truth, before)
    assert better > 0.2


def test_agreement_of_halves() -> None:
    x, _ = blobs([40, 40, 40])
    assert _cluster._agreement_of_halves(x, 3, 0) == 1.0
    assert _cluster._agreement_of_halves(x, 3, 2**32 - 1) == 1.0  # the largest seed there is
    noise = np.random.default_rng(0).standard_normal((120, 5))
    assert _cluster._agreement_of_halves(noise, 4, 0) < 0.6
    assert _cluster._agreement_of_halves(x[:7], 4, 0) == 0.0  # a half has fewer rows than groups
    same = np.repeat(x[:3], 20, axis=0)
    assert _cluster._agreement_of_halves(same, 4, 0) == 0.0  # and here fewer different ones


def test_small_groups_that_stand_apart_are_kept() -> None:
    """K-means would split the large group before it left the small ones alone."""
    x, truth = blobs([400, 60, 12, 12], spread=0.5)
    assert adjusted_rand_score(truth, leiden_groups(x, 4)) == 1.0


@pytest.mark.parametrize("method", ["leiden", "kmeans"])
@pytest.mark.parametrize("n_groups", [2, 3, 5, 8, 13])
def test_exactly_as_many_as_asked_for(method: str, n_groups: int) -> None:
    x, truth = blobs([60, 40, 30])
    labels = starting_groups(x, n_groups, method, seed=0)
    assert labels.dtype == np.int64 or labels.dtype == np.intp
    assert sorted(np.unique(labels)) == list(range(n_groups))
    sizes = np.bincount(labels)
    assert (np.diff(sizes) <= 0).all()
    if n_groups == 3:
        assert adjusted_rand_score(truth, labels) == 1.0
    if n_groups > 3 and method == "leiden":  # planted groups are split, hardly ever mixed
        mixed = sum(
            len(x[labels == k]) - np.bincount(truth[labels == k]).max() for k in range(n_groups)
        )
        assert mixed <= 0.05 * len(x)


@pytest.mark.parametrize("n_groups", [2, 4, 9, 10])
def test_few_points(n_groups: int) -> None:
    x, _ = blobs([4, 3, 3])
    assert sorted(np.unique(leiden_groups(x, n_groups))) == list(range(n_groups))


def test_points_without_structure() -> None:
    x = np.random.default_rng(0).standard_normal((80, 6)).astype(np.float32)
    for n_groups in (2, 5):
        assert len(np.unique(leiden_groups(x, n_groups))) == n_groups
    labels = leiden_groups(x, None)
    assert labels.min() == 0
    assert len(np.unique(labels)) == labels.max() + 1


def test_same_seed_same_groups() -> None:
    x = np.random.default_rng(0).standard_normal((150, 4)).astype(np.float32)
    for method in ("leiden", "kmeans"):
        first = starting_groups(x, 6, method, seed=3)
        random.seed(99)
        np.testing.assert_array_equal(starting_groups(x, 6, method, seed=3), first)


def test_random_states_are_given_back() -> None:
    """Also if clustering fails halfway; igraph draws from Python's generator again."""
    x, _ = blobs([30, 30])
    random.seed(1)
    before = random.getstate()
    legacy = np.random.get_state()[1].tolist()  # noqa: NPY002
    starting_groups(x, 3, "leiden", seed=0)
    starting_groups(x, 3, "kmeans", seed=0)
    assert random.getstate() == before
    assert np.random.get_state()[1].tolist() == legacy  # noqa: NPY002

    with pytest.raises(RuntimeError, match="halfway"), _cluster._igraph_seed(0):
        raise RuntimeError("halfway")
    drawn = []
    for _ in range(2):
        random.seed(4)
        drawn.append(igraph.Graph.Erdos_Renyi(n=20, m=30).get_edgelist())
    assert drawn[0] == drawn[1]
    assert random.getstate() != before


@pytest.mark.parametrize("method", ["leiden", "kmeans"])
def test_beyond_the_limit_a_part_is_grouped(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go to the nearest centre; no more rows than the limit are ever clustered."""
    x, truth = blobs([300, 200, 100])
    whole = starting_groups(x, 3, method, seed=0)
    monkeypatch.setattr(_cluster, "_MAX_CELLS", 90)
    seen = []

    def watched(rows: np.ndarray, *args: object, **kwargs: object) -> object:
        seen.append(len(rows))
        return plain(rows, *args, **kwargs)

    plain = _cluster.leiden_groups
    monkeypatch.setattr(_cluster, "leiden_groups", watched)
    labels = starting_groups(x, 3, method, seed=0)
    assert labels.shape == (600,)
    assert adjusted_rand_score(truth, labels) == 1.0
    np.testing.assert_array_equal(labels, whole)
    assert seen == ([90] if method == "leiden" else [])
    np.testing.assert_array_equal(labels, starting_groups(x, 3, method, seed=0))


def test_nearest_centre() -> None:
    rng = np.random.default_rng(0)
    x, centres = rng.standard_normal((50, 3)), rng.standard_normal((4, 3))
    expected = np.array([[np.linalg.norm(a - c) for c in centres] for a in x]).argmin(1)
    np.testing.assert_array_equal(_cluster._nearest(x, centres), expected)


def test_the_grouping_most_like_the_others_is_taken(rng: np.random.Generator) -> None:
    _, truth = blobs([60, 50, 40])
    off = truth.copy()
    off[:10] = 2
    others = [rng.permutation(truth), (truth + 1) % 3, off, truth]
    taken, agreement = _cluster._most_agreed(others)
    assert adjusted_rand_score(truth, taken) == 1.0
    pairs = itertools.combinations(others, 2)
    assert agreement == pytest.approx(np.mean([adjusted_rand_score(*pair) for pair in pairs]))


def test_groups_are_looked_for_at_several_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale that mixes groups is outvoted by the others."""
    x, truth = blobs([60, 50, 40])
    plain, seen = _cluster.shared_neighbour_graph, []

    def one_scale_astray(rows: np.ndarray, n_neighbors: int) -> igraph.Graph:
        seen.append(n_neighbors)
        mixed = np.random.default_rng(0).permutation(rows)
        return plain(mixed if n_neighbors == _cluster._SCALES[0] else rows, n_neighbors)

    monkeypatch.setattr(_cluster, "shared_neighbour_graph", one_scale_astray)
    assert adjusted_rand_score(truth, leiden_groups(x, 3)) == 1.0
    assert tuple(seen) == _cluster._SCALES


def test_equal_rows() -> None:
    """Rows that cannot be told apart still come back with labels, one for each."""
    labels = leiden_groups(np.ones((40, 3), np.float32), None)
    assert labels.shape == (40,)
    assert labels.min() == 0
