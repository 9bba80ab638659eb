"""Novelty of cells: relative Mahalanobis distance of their codes."""

from __future__ import annotations

import numpy as np
import pytest
from mudata import MuData
from sklearn.metrics import roc_auc_score

import unitednet_mu as un
from unitednet_mu import _novelty
from unitednet_mu._novelty import Familiarity

FIXED = {"adapt": False, "progress": False}


def codes(rng: np.random.Generator, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Three groups in two modalities of three dimensions."""
    groups = np.repeat(np.arange(3), n // 3)
    centres = 5 * rng.standard_normal((3, 2, 3))
    return (centres[groups] + rng.standard_normal((n, 2, 3))).astype(np.float32), groups


def test_distance_is_the_relative_mahalanobis_distance(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the formula, cell by cell, with plain covariances."""
    monkeypatch.setattr(_novelty, "_SHRINKAGE", 0.0)
    x, groups = codes(rng)
    new = (5 * rng.standard_normal((7, 2, 3))).astype(np.float32)

    def distance(cell: np.ndarray) -> float:
        of_groups = np.zeros(3)
        for m in range(2):
            part = x[:, m].astype(np.float64)
            centres = np.stack([part[groups == k].mean(0) for k in range(3)])
            within = np.cov((part - centres[groups]).T, bias=True)
            whole = np.cov(part.T, bias=True)
            off = cell[m] - part.mean(0)
            for k in range(3):
                d = cell[m] - centres[k]
                of_groups[k] += d @ np.linalg.inv(within) @ d - off @ np.linalg.inv(whole) @ off
        return float(of_groups.min() / 2)

    own = np.array([distance(cell) for cell in x])
    spread = 1.4826 * np.median(np.abs(own - np.median(own)))
    expected = (np.array([distance(cell) for cell in new]) - np.median(own)) / spread
    np.testing.assert_allclose(Familiarity(x, groups).novelty(new), expected, rtol=1e-3)


def test_a_cell_between_groups_of_different_modalities_is_novel(rng: np.random.Generator) -> None:
    """Each modality alone looks like some group; together they are like none."""
    x, groups = codes(rng)
    mixed = x[:20].copy()
    mixed[:, 1] = x[40:, 1]
    known = Familiarity(x, groups)
    assert known.novelty(mixed).min() > known.novelty(x).max()


def test_missing_modalities(rng: np.random.Generator) -> None:
    x, groups = codes(rng)
    x[::3, 0] = np.nan
    x[1::3, 1] = np.nan
    x[groups == 2, 1] = np.nan  # a group never seen in the second modality
    x[4] = np.nan
    known = Familiarity(x, groups)
    found = known.novelty(x)
    assert np.isnan(found[4])
    observed = ~np.isnan(x).all((1, 2))
    assert np.isfinite(found[observed]).all()
    assert np.abs(np.median(found[observed])) < 0.5
    far = np.full((1, 2, 3), np.nan, np.float32)
    far[0, 1] = 1000.0
    assert known.novelty(far)[0] > found[observed].max()


def test_a_cell_is_judged_by_cells_with_its_modalities(rng: np.random.Generator) -> None:
    """One modality spreads further than the other: neither alone is novel for that."""
    x, groups = codes(rng, 300)
    x[:, 1] += 3 * rng.standard_t(3, x[:, 1].shape).astype(np.float32)
    known = Familiarity(x, groups)
    assert np.median(known.novelty(x)) == pytest.approx(0, abs=1e-6)
    for m in range(2):
        alone = x.copy()
        alone[:, 1 - m] = np.nan
        found = known.novelty(alone)
        assert np.median(found) == pytest.approx(0, abs=1e-6)
        assert np.median(np.abs(found)) == pytest.approx(1 / 1.4826, rel=1e-3)
        expected = Familiarity(alone, groups).novelty(alone)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_few_cells_with_these_modalities(rng: np.random.Generator) -> None:
    """Fewer than twenty say too little: then all of the reference's cells count."""
    x, groups = codes(rng, 300)
    x[19:, 1] = np.nan
    known = Familiarity(x, groups)
    own = known._distance(x)
    centre = np.median(own)
    spread = 1.4826 * np.median(np.abs(own - centre))
    np.testing.assert_allclose(known.novelty(x[:19]), (own[:19] - centre) / spread, rtol=1e-4)
    apart = np.where(np.isnan(x).any((1, 2))[:, None, None], x, np.nan)[19:]
    assert np.median(known.novelty(apart)) == pytest.approx(0, abs=0.2)
    one = x.copy()
    one[1:, 1] = np.nan  # a single cell has no spread: it is as if nobody had it
    one[0, 0] = np.nan
    found = Familiarity(one, groups).novelty(one)
    assert np.isnan(found[0])
    assert np.isfinite(found[1:]).all()


def test_blocks_and_equal_cells(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    x, groups = codes(rng)
    whole = Familiarity(x, groups).novelty(x)
    monkeypatch.setattr(_novelty, "_BLOCK", 7)
    np.testing.assert_allclose(Familiarity(x, groups).novelty(x), whole, rtol=1e-5, atol=1e-5)
    alike = Familiarity(np.ones((9, 2, 3), np.float32), np.zeros(9, int))
    assert np.isfinite(alike.novelty(x)).all()


def test_a_type_that_the_reference_lacks_is_novel(quick: dict) -> None:
    whole = un.datasets.simulate_multimodal(n_obs=300, n_groups=4, noise=0.3, random_state=3)
    is_new = (whole.obs["cell_type"] == "group3").to_numpy()
    held_out = np.arange(300) % 3 == 0
    reference, query = whole[~is_new & ~held_out].copy(), whole[is_new | held_out].copy()
    reference.obs["cell_type"] = reference.obs["cell_type"].cat.remove_unused_categories()
    quick["training"]["max_epochs"] = 25
    un.tl.fit(reference, labels_key="cell_type", **quick)
    un.tl.transfer_labels(query, reference, novelty_threshold=8.0, **FIXED)
    novelty = query.obs["unitednet_label_novelty"].to_numpy()
    assert novelty.dtype == np.float32
    new = (query.obs["cell_type"] == "group3").to_numpy()
    assert roc_auc_score(new, novelty) > 0.95
    probability = query.obs["unitednet_label_confidence"].to_numpy()
    unknown = (novelty > 8) | (probability < 0.5)
    np.testing.assert_array_equal(query.obs["unitednet_label"] == "unknown", unknown)
    assert query.uns["unitednet"]["transfer"]["novelty_threshold"] == 8.0


def test_novelty_does_not_depend_on_the_order_of_the_reference(
    fitted: MuData, rng: np.random.Generator
) -> None:
    query = fitted[:30].copy()
    found = []
    for order in (np.arange(fitted.n_obs), rng.permutation(fitted.n_obs)):
        un.tl.transfer_labels(query, fitted[order].copy(), **FIXED)
        found.append(query.obs["unitednet_label_novelty"].to_numpy().copy())
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threshold", [0.0, -1.0, np.nan])
def test_threshold_is_checked(fitted: MuData, threshold: float) -> None:
    with pytest.raises(ValueError, match="novelty_threshold: expected a number above 0"):
        un.tl.transfer_labels(fitted.copy(), fitted, novelty_threshold=threshold, **FIXED)
