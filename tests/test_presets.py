"""The original's configurations: they train, overrides win, and mistakes are named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mudata import MuData

import unitednet_mu as un
from unitednet_mu._config import LOSS_WEIGHTS, NetworkConfig, TrainingConfig
from unitednet_mu._presets import PRESETS, settings


@pytest.fixture(scope="module")
def cells() -> MuData:
    """As many cells as the largest batch size needs."""
    return un.datasets.simulate_multimodal(n_obs=520, n_groups=3, noise=0.2)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("what", [{"labels_key": "cell_type"}, {"n_groups": 3}])
def test_trains(cells: MuData, preset: str, what: dict[str, Any]) -> None:
    quick = {"max_epochs": 2, "batch_size": 256}
    fitted: Any = un.tl.fit(
        cells, preset=preset, training=quick, device="cpu", progress=False, copy=True, **what
    )
    model = un.get.model(fitted)
    chosen = PRESETS[preset]
    assert model.info.network == settings(preset, None, None)[0]
    assert model.info.training.max_epochs == 2
    assert model.info.training.learning_rate == chosen.training["learning_rate"]
    assert len(model.network.discriminators) == len(cells.mod)
    assert {"train_discriminator", "train_generator"} <= set(un.get.history(fitted))
    un.tl.integrate(fitted, device="cpu")
    assert fitted.obsm["X_unitednet"].shape == (520, chosen.network["n_latent"])
    assert np.isfinite(fitted.obsm["X_unitednet"]).all()


def test_learns(cells: MuData) -> None:
    fitted: Any = un.tl.fit(
        cells,
        preset="original_multiome",
        labels_key="cell_type",
        device="cpu",
        progress=False,
        copy=True,
    )
    un.tl.integrate(fitted, device="cpu")
    assert (fitted.obs["unitednet_group"].astype(str) == fitted.obs["cell_type"]).mean() > 0.9


def test_overrides_win_and_the_rest_stays() -> None:
    network, training = settings(
        "original_dlpfc", {"n_heads": 2}, {"loss_weights": {"clustering": 0.5}}
    )
    plain = settings("original_dlpfc", None, None)
    assert network == NetworkConfig.build({**vars(plain[0]), "n_heads": 2})
    assert dict(training.loss_weights) == {**LOSS_WEIGHTS, "contrastive": 1.0, "clustering": 0.5}
    assert training.learning_rate == plain[1].learning_rate
    whole = settings("original_dlpfc", NetworkConfig(), TrainingConfig())
    assert whole == (NetworkConfig(), TrainingConfig())
    assert settings(None, None, None) == whole


def test_mistakes_are_named(cells: MuData, quick: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"'original_patchsec'.*original_patchseq"):
        un.tl.fit(cells, preset="original_patchsec")
    fitted = cells.copy()
    un.tl.fit(fitted, labels_key="cell_type", **quick)
    with pytest.raises(ValueError, match="preset: the model to continue from fixes it"):
        un.tl.fit(fitted, preset="original_multiome", model=un.get.model(fitted))
