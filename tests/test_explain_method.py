"""The three methods as a user gets them, and what an explanation costs, said beforehand."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from mudata import MuData
from scipy.stats import spearmanr

import unitednet_mu as un
from unitednet_mu.tl import _explain_cost

FEW: dict[str, Any] = {"n_cells": 10, "n_background": 12, "progress": False}
PAIR: dict[str, Any] = {"source": "rna", "target": "adt"}


def groups_of(mdata: MuData) -> dict[str, np.ndarray]:
    blocks = mdata.uns["unitednet"]["relevance"]["modalities"]
    return {
        part: np.concatenate([blocks[m][part] for m in ("rna", "adt")])
        for part in ("signed", "absolute")
    }


def pairs_of(mdata: MuData) -> dict[str, np.ndarray]:
    stored = mdata.uns["unitednet"]["cross_relevance"]["adt_from_rna"]
    return {
        part: np.stack([stored[part][str(k)].toarray() for k in range(3)])
        for part in ("signed", "absolute")
    }


def params_of(mdata: MuData, settings: dict[str, Any]) -> dict[str, Any]:
    stored = mdata.uns["unitednet"]
    return (stored["cross_relevance"]["adt_from_rna"] if settings else stored["relevance"])[
        "params"
    ]


@pytest.mark.parametrize("settings", [{}, PAIR], ids=["groups", "pairs"])
def test_methods_agree(trained: MuData, settings: dict[str, Any]) -> None:
    """shap's values are DeepLIFT's; expected gradients are another quantity, close to it."""
    read = pairs_of if settings else groups_of
    found, tables = {}, {}
    for method in ("deeplift", "expected_gradients", "shap"):
        un.tl.explain(trained, method=method, **settings, **FEW)
        params = params_of(trained, settings)
        assert params["method"] == method
        assert 0 <= params["gap"] < 0.05
        assert ("n_samples" in params) == (method == "expected_gradients")
        found[method] = read(trained)
        get = un.get.cross_relevance if settings else un.get.relevance
        tables[method] = get(trained, n_top=5, **settings)
        draw = un.pl.cross_relevance if settings else un.pl.relevance
        assert draw(trained, n_top=3, **settings) is not None
    for part in ("signed", "absolute"):
        exact, gradients = (found[name][part] for name in ("deeplift", "expected_gradients"))
        np.testing.assert_allclose(found["shap"][part], exact, atol=1e-4 * np.abs(exact).max())
        assert np.abs(gradients - exact).max() > 1e-4 * np.abs(exact).max()
        assert spearmanr(gradients.ravel(), exact.ravel())[0] > 0.9
    assert list(tables["shap"]["feature"]) == list(tables["deeplift"]["feature"])
    assert list(tables["expected_gradients"]) == list(tables["deeplift"])


@pytest.mark.parametrize("settings", [{}, PAIR], ids=["groups", "pairs"])
def test_expected_gradients_are_seeded_and_their_error_is_kept(
    trained: MuData, settings: dict[str, Any]
) -> None:
    cells = {
        "cells": trained.obs_names[:20].tolist(),
        "background": trained.obs_names[20:30].tolist(),
        "progress": False,
    }
    read = pairs_of if settings else groups_of
    runs, errors = [], []
    for seed, n_samples in ((0, 20), (0, 20), (1, 20), (0, 400)):
        un.tl.explain(
            trained,
            method="expected_gradients",
            n_samples=n_samples,
            random_state=seed,
            **settings,
            **cells,
        )
        params = params_of(trained, settings)
        runs.append(read(trained)["signed"])
        errors.append(params["gap_standard_error"])
        assert params["n_samples"] == n_samples
        assert params["gap"] > 0
    un.tl.explain(trained, method="expected_gradients", n_samples=15, **settings, **cells)
    assert params_of(trained, settings)["n_samples"] == 20  # twice each row of the background
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.nanmax(np.abs(runs[0] - runs[2])) > 0
    assert errors[0] == errors[1] != errors[2]
    assert 0 < errors[3] < errors[0] / 3
    assert np.nanmax(np.abs(runs[0] - runs[3])) < 0.2 * np.nanmax(np.abs(runs[3]))


def test_expected_gradients_of_cells_and_of_several_models(
    fitted: MuData, quick: dict[str, Any]
) -> None:
    other = fitted.copy()
    un.tl.fit(other, labels_key="cell_type", **{**quick, "random_state": 1})
    models = [un.get.model(fitted), un.get.model(other)]
    settings = {"method": "expected_gradients", "n_samples": 96, "n_cells": 4, "n_background": 6}
    for pair in ({}, PAIR):
        un.tl.explain(fitted, model=models, progress=False, **pair, **settings)
        assert params_of(fitted, pair)["n_models"] == 2
        assert params_of(fitted, pair)["gap_standard_error"] > 0
        un.tl.explain(fitted, per_cell=True, progress=False, **pair, **settings)
    explanation = un.get.relevance(fitted, group="group0", as_explanation=True)
    logits = un.get.model(fitted).encode(fitted).logits
    centred = logits - logits.mean(1, keepdims=True)
    rows = fitted.obs_names.get_indexer(explanation.instance_names)
    total = explanation.values.sum(1) + explanation.base_values
    scale = np.abs(centred[:, 0] - centred[:, 0].mean()).max()
    np.testing.assert_allclose(total, centred[rows, 0], atol=0.1 * scale)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "deep_lift"}, "method 'deep_lift' not found; available: ['deeplift', "),
        ({"method": "expected_gradients", "n_samples": 0}, "n_samples: expected an integer >= 1"),
        ({"method": "shap", "per_cell": True}, "method='shap' cannot do per_cell"),
        ({"method": "shap", "output": "probabilities"}, "cannot do output='probabilities'"),
        ({"method": "shap", "n_repeats": 2}, "method='shap' cannot do several models"),
        ({"method": "shap", "n_permutations": 6}, "method='shap' cannot do n_permutations"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "+".join(value),
)
def test_refusals(fitted: MuData, fingerprint: Any, settings: dict[str, Any], message: str) -> None:
    before = fingerprint(fitted)
    with pytest.raises(ValueError) as caught:
        un.tl.explain(fitted, progress=False, **settings)
    assert message in str(caught.value)
    assert fingerprint(fitted) == before


# ------------------------------------------------------------------ cost


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any computation of relevance fails."""

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("computed")

    for name in ("group_relevance", "cross_relevance", "shap_cross_relevance"):
        monkeypatch.setattr(un.tl._explain_job, name, never)
    monkeypatch.setattr(un.tl._explain, "refit", never)


def test_shap_asked_for_too_much(
    fitted: MuData, untouched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_outputs = 30 * fitted.mod["adt"].n_vars
    monkeypatch.setattr(_explain_cost, "_SHAP_OUTPUTS", n_outputs - 1)
    cells = fitted.obs_names[:30].tolist()
    with pytest.raises(
        ValueError, match=rf"found {n_outputs:,} and .* FLOP, about .* s\."
    ) as caught:
        un.tl.explain(fitted, method="shap", cells=cells, progress=False, **PAIR)
    assert "method='deeplift'" in str(caught.value)
    assert "Lower n_cells or n_background" in str(caught.value)
    monkeypatch.setattr(_explain_cost, "_SHAP_FLOP", 1e3)
    with pytest.raises(ValueError, match=r"at most .* 1e\+03 FLOP"):
        un.tl.explain(fitted, method="shap", cells=cells, progress=False)


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (
            {**PAIR, "top_k": None},
            "Keep the strongest pairs only (top_k='auto' or a number), or fit",
        ),
        ({**PAIR, "top_k": 100}, "Lower top_k"),
        ({**PAIR, "top_k": None, "n_repeats": 3}, "top_k='auto'"),
        ({}, "Fit the model on"),
    ],
    ids=["dense", "sparse", "refits", "groups"],
)
def test_result_that_cannot_fit_is_refused_beforehand(
    fitted: MuData,
    untouched: None,
    fingerprint: Any,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    advice: str,
) -> None:
    monkeypatch.setattr(_explain_cost, "available_memory", lambda: 1000.0)
    before = fingerprint(fitted)
    with pytest.raises(ValueError, match="memory available") as caught:
        un.tl.explain(fitted, **settings, **FEW)
    assert advice in str(caught.value)
    assert "fewer features" in str(caught.value)
    assert fingerprint(fitted) == before


@pytest.mark.parametrize(
    ("device", "room", "advice"),
    [("cuda", 1e6, "Use device='cpu', or fit the model on"), ("cpu", 1000.0, "Fit the model on")],
)
def test_sums_that_do_not_fit_on_the_device(
    fitted: MuData,
    untouched: None,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    room: float,
    advice: str,
) -> None:
    cost = _explain_cost.Cost("explain", 1.0, 0, 10, 2000)
    monkeypatch.setattr(_explain_cost, "_cross_cost", lambda *args: cost)
    monkeypatch.setattr(_explain_cost, "available_memory", lambda: room)
    monkeypatch.setattr(_explain_cost, "_device_memory", lambda device: 1000.0)
    monkeypatch.setattr(_explain_cost, "_device_of", lambda job: torch.device(device))
    with pytest.raises(ValueError, match=rf"whatever top_k is\. {advice}"):
        un.tl.explain(fitted, **PAIR, **FEW)


@pytest.mark.parametrize("settings", [{}, PAIR], ids=["groups", "pairs"])
def test_a_large_request_is_announced(
    fitted: MuData,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
) -> None:
    with caplog.at_level(logging.INFO, logger="unitednet_mu"):
        un.tl.explain(fitted, **settings, **FEW)
        assert not caplog.records
        monkeypatch.setattr(_explain_cost, "_LARGE_FLOP", 1.0)
        un.tl.explain(fitted, **settings, **FEW)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    for word in ("FLOP of matrix products", "on this machine", "a result of", "MiB"):
        assert word in record.getMessage()
    names = "features of 'adt' by" if settings else "explain 3 groups by"
    assert names in record.getMessage()


def test_cost_counts_the_products(fitted: MuData, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is announced is what the engine's two wide products take, and little more."""
    seen: list[_explain_cost.Cost] = []
    right = _explain_cost._cross_cost
    monkeypatch.setattr(
        _explain_cost, "_cross_cost", lambda *args: seen.append(right(*args)) or seen[-1]
    )
    model = un.get.model(fitted)
    network = model.network
    cells = fitted.obs_names[:10].tolist()
    un.tl.explain(fitted, cells=cells, background=cells, progress=False, top_k=None, **PAIR)
    un.tl.explain(
        fitted,
        cells=cells[:5],
        background=cells,
        progress=False,
        top_k=7,
        method="expected_gradients",
        n_samples=50,
        **PAIR,
    )
    n_source, n_target = (network.shapes[m].n_features for m in (0, 1))
    wide, last, code = 40, 40, 8  # hidden units and, beside them, the code (linear path)
    assert network.encoders[0].wide.out_features == wide
    first = min(code * (wide + last), wide * last) * n_source
    narrow = 2 * code * 32
    expected = 2 * 10 * (10 * (first + code * narrow) + n_source * n_target * last)
    assert seen[0].flop == expected
    assert seen[0].result == 2 * 3 * 12 * n_source * n_target
    more = 2 * 5 * (60 * (first + code * narrow) + n_source * n_target * last)
    assert seen[1].flop == more  # points: 50, raised to twice 3 times the 10 background rows
    assert seen[1].result == 2 * 3 * 8 * 7


def test_memory_and_rate_are_measured() -> None:
    assert 2**20 < _explain_cost.available_memory() < 2**60
    assert 1e6 < _explain_cost.product_rate(torch.device("cpu")) < 1e16
    words = [_explain_cost._duration(seconds) for seconds in (0.5, 90, 7200)]
    assert words == ["0.5 s", "1.5 min", "2 h"]
