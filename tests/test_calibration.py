"""Confidence is set by held-out cells, with caution where they are few."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mudata import MuData
from torch.nn import functional as F

import unitednet_mu as un
from unitednet_mu._held_out import FEW_CELLS, calibrate
from unitednet_mu._model import Model


def temperature(
    fitted: MuData, monkeypatch: pytest.MonkeyPatch, logits: np.ndarray, labels: np.ndarray
) -> float:
    """Return the temperature that a model gets that gives held-out cells these logits."""
    model = un.get.model(fitted)
    monkeypatch.setattr(Model, "encode", lambda self, data: SimpleNamespace(logits=logits))
    held_out = SimpleNamespace(labels=labels, observed=np.ones((len(labels), 2), dtype=bool))
    calibrate(model, held_out)  # type: ignore[arg-type]
    return float(model.network.temperature)


def drawn(n: int, sure: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels as likely as the logits divided by `sure` say."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2 * sure, (n, 4)).astype(np.float32)
    noise = rng.gumbel(size=logits.shape)
    return logits, (logits / sure + noise).argmax(1)


def test_many_cells_decide(fitted: MuData, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = drawn(20_000, sure=2.0)
    assert temperature(fitted, monkeypatch, logits, labels) == pytest.approx(2, rel=0.05)
    assert temperature(fitted, monkeypatch, logits / 4, labels) == pytest.approx(0.5, rel=0.05)


def test_it_is_the_likeliest_after_the_cells(
    fitted: MuData, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, labels = drawn(50)
    steps = np.linspace(-np.log(3), np.log(3), 20_001)
    log_odds = [
        float(
            F.cross_entropy(torch.from_numpy(logits / t), torch.from_numpy(labels), reduction="sum")
        )
        for t in np.exp(steps)
    ]
    expected = float(np.exp(steps[np.argmin(log_odds + (steps / 0.35) ** 2 / 2)]))
    found = temperature(fitted, monkeypatch, logits, labels)
    assert found == pytest.approx(expected, rel=1e-3)


def test_weak_logits_are_sharpened(fitted: MuData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where features are dropped nearly always a network's logits are far too small."""
    logits, labels = drawn(5000, sure=1.0)
    assert temperature(fitted, monkeypatch, logits / 12, labels) == pytest.approx(1 / 12, rel=0.1)


def test_few_cells_that_are_all_right_say_little(
    fitted: MuData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The likeliest temperature alone would be as small as it may be."""
    labels = np.arange(40) % 4
    logits = 3 * np.eye(4, dtype=np.float32)[labels]
    few = temperature(fitted, monkeypatch, logits, labels)
    many = temperature(fitted, monkeypatch, np.repeat(logits, 100, 0), np.repeat(labels, 100))
    assert 1 / 30 < many < few
    assert 0.6 < few < 1


def test_too_few_cells_say_nothing(fitted: MuData, monkeypatch: pytest.MonkeyPatch) -> None:
    before = float(un.get.model(fitted).network.temperature)
    logits, labels = drawn(FEW_CELLS - 1)
    assert temperature(fitted, monkeypatch, logits, labels) == before
