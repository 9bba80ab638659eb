"""Expected gradients against shap.GradientExplainer, and their Monte-Carlo error."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from test_explain_engine import (
    FEATURES,
    N_GROUPS,
    Cross,
    Groups,
    equal,
    group_means,
    make_network,
    make_sample,
    shap,
)

from unitednet_mu import _deeplift, _explain
from unitednet_mu._explain import ExplainSample, group_relevance, inference
from unitednet_mu._explain_cells import cell_cross_relevance, cell_group_relevance
from unitednet_mu._explain_chain import CrossChain
from unitednet_mu._explain_cross import CrossSums, cross_relevance
from unitednet_mu._gap import MULTIPLE, Gap
from unitednet_mu._path import Path

CONFIGS = [
    {"activation": "relu", "batch_norm": True, "linear_path": True, "n_hidden": (8, 7)},
    {"activation": "tanh", "batch_norm": False, "linear_path": False},
    {"activation": "gelu", "batch_norm": True, "n_latent": 2, "n_hidden": (8, 6)},
]


def with_points(background: ExplainSample, n_points: int, seed: int = 0) -> ExplainSample:
    return replace(background, path=Path(n_points, seed))


def by_shap(
    model: Any, inputs: Any, background: ExplainSample, modalities: list[int], monkeypatch: Any
) -> list[np.ndarray]:
    """Values by `shap.GradientExplainer` at the points that `background.path` draws."""
    n_rows, n_cells = len(background.observed), len(inputs[0])
    rows = background.path.rows(np.arange(n_rows))
    shares = background.path.shares(n_cells, len(rows), n_rows).numpy()
    # shap draws anew for each output: cell by cell, sample by sample, first a row, then a share
    row, share = itertools.cycle(np.tile(rows, n_cells)), itertools.cycle(shares.ravel())
    monkeypatch.setattr(np.random, "choice", lambda n: next(row))
    monkeypatch.setattr(np.random, "uniform", lambda: next(share))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # of shap's buffers
    try:
        explainer = shap.GradientExplainer(
            model, [torch.as_tensor(background.x[m]) for m in modalities]
        )
        found = explainer.shap_values([torch.as_tensor(x) for x in inputs], nsamples=len(rows))
    finally:
        torch.set_default_dtype(before)
        monkeypatch.undo()
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c["activation"])
@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_groups_equal_shap_at_the_same_points(config: Any, output: Any, monkeypatch: Any) -> None:
    network = make_network(**config)
    cells = make_sample(network, 5, 1)
    background = with_points(make_sample(network, 3, 2), 200)
    network.eval()
    values = by_shap(Groups(network, [0, 1], output), cells.x, background, [0, 1], monkeypatch)
    found = group_relevance(network, cells, background, output=output)
    for m in (0, 1):
        for absolute, means in ((False, found.signed[m]), (True, found.absolute[m])):
            expected = group_means(values[m], cells.groups, absolute)
            equal(means, np.stack([expected[k][:, k] for k in range(N_GROUPS)], 1))
    cell = cell_group_relevance(network, cells, background, [2, 0], output=output)
    equal(cell.attributions[1], values[1][:, :, [2, 0]], 1e-6)
    assert 0 < found.standard_error


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c["activation"])
@pytest.mark.parametrize("as_sparse", [False, True])
def test_pairs_equal_shap_at_the_same_points(
    config: Any, as_sparse: bool, monkeypatch: Any
) -> None:
    network = make_network(**config)
    cells = make_sample(network, 5, 1, as_sparse=as_sparse)
    dense = [x.toarray() if sparse.issparse(x) else x for x in cells.x]
    background = with_points(make_sample(network, 3, 2), 7)
    network.eval()
    scale = network.standardisers[1].scale.numpy()
    expected = by_shap(Cross(network, 0, 1), dense[:1], background, [0], monkeypatch)[0] * scale
    for absolute in (False, True):
        found = cross_relevance(network, 0, 1, cells, background, top_k=None, absolute=absolute)
        for g, mean in enumerate(group_means(expected, cells.groups, False)):
            equal(found.signed[g], mean)
    for g, mean in enumerate(group_means(expected, cells.groups, True)):
        equal(found.absolute[g], mean)
    cell = cell_cross_relevance(network, 0, 1, cells, background, [4, 0])
    equal(cell.attributions[0], expected[:, :, [4, 0]], 1e-6)


def test_agrees_with_shaps_own_draws() -> None:
    """At independent draws of many points the two are as far apart as their errors allow."""
    network = make_network(activation="tanh", batch_norm=False)
    cells, background = make_sample(network, 3, 1), make_sample(network, 4, 2)
    network.eval()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        explainer = shap.GradientExplainer(
            Cross(network, 0, 1), [torch.as_tensor(background.x[0])], batch_size=2000
        )
        runs = [
            explainer.shap_values([torch.as_tensor(cells.x[0])], nsamples=2000, rseed=seed)
            for seed in range(4)
        ]
    finally:
        torch.set_default_dtype(before)
    runs = np.stack([run[0] if isinstance(run, list) else run for run in runs])
    scale = network.standardisers[1].scale.numpy()
    found = cell_cross_relevance(
        network, 0, 1, cells, with_points(background, 4000), range(FEATURES[1])
    ).attributions[0]
    standard_error = np.sqrt((runs.var(0, ddof=1) / 4).mean())
    off = np.sqrt(((found / scale - runs.mean(0)) ** 2).mean())
    assert off < 2 * standard_error
    assert standard_error < 0.05 * np.abs(runs).max()


def test_linear_network_has_no_error() -> None:
    """Without a bend every point has the same gradient: DeepLIFT and expected gradients agree."""
    network = make_network(batch_norm=False)
    for chain in (network.encoders[0].deep, network.encoders[1].deep, network.decoders[1].deep):
        chain[0 if chain is not network.decoders[1].deep else 1] = torch.nn.Identity()
    network.heads[0].project[1] = torch.nn.Identity()
    cells, background = make_sample(network, 6, 1), make_sample(network, 4, 2)
    exact = cross_relevance(network, 0, 1, cells, background, top_k=None)
    sampled = cross_relevance(network, 0, 1, cells, with_points(background, 4), top_k=None)
    equal(sampled.signed[0], exact.signed[0])
    assert sampled.gap < 1e-10
    groups = group_relevance(network, cells, with_points(background, 4))
    equal(groups.signed[0], group_relevance(network, cells, background).signed[0])
    assert groups.gap < 1e-10


def sampled(network: Any, cells: ExplainSample, background: ExplainSample) -> Gap:
    gap = Gap()
    with inference(network):
        sums = CrossSums(CrossChain(network, 0, 1, cells, background), units=True)
        for _ in sums.gather(np.arange(len(cells.observed)), gap, absolute=True):
            pass
    return gap


@pytest.mark.parametrize("n_background", [1, 5])
def test_standard_error_is_that_of_the_sum(n_background: int) -> None:
    """The error of additivity is as large as predicted, and falls with the number of points."""
    network = make_network(activation="tanh")
    cells, background = make_sample(network, 60, 1), make_sample(network, n_background, 2)
    errors = []
    for n_points in (20, 400):
        gap = sampled(network, cells, with_points(background, n_points))
        assert gap.sampled.error == pytest.approx(gap.sampled.standard_error, rel=0.15)
        assert gap.error < 1e-10  # what is not chance
        errors.append(gap.sampled.standard_error)
        found = group_relevance(network, cells, with_points(background, n_points))
        assert 0 < found.standard_error < found.gap  # the typical and the largest error
    assert errors[1] < errors[0] / 20  # of independent draws / 4.5
    one = cross_relevance(network, 0, 1, cells, with_points(background, 20), top_k=3)
    assert one.standard_error * gap.scale == pytest.approx(errors[0])


def test_error_beyond_chance_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network(activation="tanh")
    cells, background = make_sample(network, 9, 1), make_sample(network, 4, 2)
    background = with_points(background, 400)
    cross_relevance(network, 0, 1, cells, background, top_k=None, tolerance=1e-9)
    right = _deeplift.secant
    monkeypatch.setattr(_deeplift, "secant", lambda f, a, b: 1.02 * right(f, a, b))
    with pytest.raises(RuntimeError, match=rf"{MULTIPLE:g} standard errors.*raise n_samples"):
        cross_relevance(network, 0, 1, cells, background, top_k=None)
    with pytest.raises(RuntimeError, match="standard errors"):
        group_relevance(network, cells, background)
    monkeypatch.undo()
    cells.x[0][0, 0] = np.nan
    for absolute in (True, False):
        with pytest.raises(RuntimeError, match="finite"):
            cross_relevance(network, 0, 1, cells, background, top_k=None, absolute=absolute)


def test_points_are_reproducible_and_fill_every_line() -> None:
    path = Path(10, seed=3)
    rows = path.rows(np.array([4, 7]))
    np.testing.assert_array_equal(rows, [4, 7] * 6)
    shares = path.shares(50, 12, 2).numpy()
    np.testing.assert_array_equal(shares, path.shares(50, 12, 2).numpy())
    assert (shares != Path(10, seed=4).shares(50, 12, 2).numpy()).all()
    for row in (0, 1):  # two in each third
        thirds = np.sort(np.floor(shares[:, row::2] * 3), axis=1)
        np.testing.assert_array_equal(thirds, np.tile([0, 0, 1, 1, 2, 2], (50, 1)))


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network()
    cells, background = make_sample(network, 12, 1), with_points(make_sample(network, 4, 2), 20)
    whole = cross_relevance(network, 0, 1, cells, background, top_k=None)
    groups = group_relevance(network, cells, background)
    monkeypatch.setattr(_explain, "_CHUNK_CELLS", 3)
    chunked = cross_relevance(network, 0, 1, cells, background, top_k=None)
    equal(chunked.absolute[1], whole.absolute[1])
    assert chunked.standard_error == pytest.approx(whole.standard_error)
    equal(group_relevance(network, cells, background).signed[0], groups.signed[0])


def test_missing_modalities_and_batches() -> None:
    network = make_network(n_batches=2)
    observed = np.ones((8, 2), bool)
    observed[::3, 1] = False
    cells = make_sample(network, 8, 1, observed)
    background = with_points(make_sample(network, 4, 2), 200)
    for found in (
        group_relevance(network, cells, background),
        cross_relevance(network, 1, 0, cells, background, top_k=None),
    ):
        assert 0 < found.standard_error < 0.05
        assert found.standard_error / 10 < found.gap < 10 * found.standard_error
