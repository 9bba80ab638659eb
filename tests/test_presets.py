"""Presets: kinds of data are checked, the original's configurations train, overrides win."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mudata import MuData

import unitednet_mu as un
from unitednet_mu._config import LOSS_WEIGHTS, NetworkConfig, TrainingConfig
from unitednet_mu._presets import EXPECTED, PRESETS, settings


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


def test_the_contrastive_temperature(quick: dict[str, Any]) -> None:
    """The original's is fixed; defaults find one for each mini-batch, as do models read back."""
    assert {settings(preset, None, None)[1].temperature for preset in PRESETS} == {0.1}
    assert {settings(kind, None, None)[1].temperature for kind in (None, *EXPECTED)} == {None}
    mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    un.tl.fit(mdata, n_groups=2, **quick)
    assert un.get.model(mdata).info.training.temperature is None


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


# ------------------------------------------------------------------ kinds of data

#: Modalities of each kind of data, by names that are recognised.
MODALITIES = {
    "citeseq": ["GEX", "adt"],
    "multiome": ["rna", "peaks"],
    "patchseq": ["rna", "ephys"],
    "spatial": ["rna", "image"],
}


def data_of(preset: str, **more: Any) -> MuData:
    names = MODALITIES[preset]
    return un.datasets.simulate_multimodal(
        n_obs=64, n_groups=2, n_vars=dict.fromkeys(names, 12), **more
    )


@pytest.mark.parametrize("preset", EXPECTED)
def test_kinds_of_data_change_nothing_but_what_is_checked(
    preset: str, quick: dict[str, Any]
) -> None:
    mdata = data_of(preset)
    mdata.obsm["spatial"] = np.random.default_rng(0).random((64, 2))
    settled = [
        un.tl.fit(mdata, n_groups=2, copy=True, preset=one, **quick) for one in (preset, None)
    ]
    weights = [un.get.model(one).network.state_dict() for one in settled]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert settings(preset, {"n_latent": 3}, None)[0] == NetworkConfig(n_latent=3)


@pytest.mark.filterwarnings("ignore:modality .* looks like raw counts:UserWarning")
@pytest.mark.parametrize("preset", EXPECTED)
def test_what_is_not_of_the_kind_is_refused(
    preset: str, quick: dict[str, Any], fingerprint: Any
) -> None:
    mdata = data_of(preset, values="counts")
    before = fingerprint(mdata)
    rna, other = MODALITIES[preset]
    with pytest.raises(ValueError, match=rf"preset='{preset}': .* raw counts in \['{rna}', "):
        un.tl.fit(mdata, n_groups=2, preset=preset, **quick)
    with pytest.raises(ValueError, match=r"of the kinds \['rna'.*none of them rna"):
        un.tl.fit(mdata, n_groups=2, preset=preset, modalities=[other], **quick)
    with pytest.raises(ValueError, match=r"none of them|expected another modality beside 'rna'"):
        un.tl.fit(mdata, n_groups=2, preset=preset, modalities=[rna], **quick)
    assert fingerprint(mdata) == before


def test_open_and_closed_peaks_are_binary(quick: dict[str, Any]) -> None:
    mdata = data_of("multiome", values={"peaks": "binary"})
    un.tl.fit(mdata, n_groups=2, preset="multiome", **quick)
    kinds = {one.name: one.likelihood for one in un.get.model(mdata).info.modalities}
    assert kinds == {"rna": "gaussian", "peaks": "binary"}


def test_a_tissue_has_positions_and_its_niche_leaks(quick: dict[str, Any]) -> None:
    mdata = data_of("spatial")
    with pytest.raises(ValueError, match=r"expected positions in \.obsm\['spatial'\]"):
        un.tl.fit(mdata, n_groups=2, preset="spatial", **quick)
    mdata["rna"].obsm["spatial"] = np.indices((8, 8)).reshape(2, -1).T
    un.pp.niche(mdata)
    with pytest.warns(UserWarning, match="'niche' holds the neighbours' rna, and cells held out"):
        un.tl.fit(mdata, n_groups=2, preset="spatial", **quick)
    un.tl.fit(mdata, n_groups=2, preset="spatial", modalities=["rna", "image"], **quick)
