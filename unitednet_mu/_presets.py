"""Presets: what kinds of data imply, and the configurations of the original UnitedNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mudata import MuData

from ._compat import warn_user
from ._config import NetworkConfig, TrainingConfig
from ._kinds import Kind, usual_kind
from ._matrix import ModalitySpec
from ._validate import derived_from, unknown_name


@dataclass(frozen=True)
class _Expected:
    """What a kind of data has: modalities of these kinds, another one, positions."""

    kinds: tuple[Kind, ...]
    another: bool = False
    spatial: bool = False


#: One set of defaults serves all data: these change no setting, they check that the data are what
#: they are called.
EXPECTED: Mapping[str, _Expected] = {
    "citeseq": _Expected(("rna", "protein")),
    "multiome": _Expected(("rna", "atac")),
    "patchseq": _Expected(("rna",), another=True),
    "spatial": _Expected(("rna",), another=True, spatial=True),
}
_POSITIONS = "spatial"

#: The same in all four of the original: no linear or direct path, no averaging of weights, one
#: contrastive temperature, no hidden modalities, a step for each task, discriminators, heads that
#: start at random, all cells trained on.
_NETWORK: Mapping[str, Any] = {
    "activation": "relu",
    "dropout": 0.0,
    "input_dropout": 0.0,
    "linear_path": False,
    "direct_path": False,
    "discriminators": True,
}
_TRAINING: Mapping[str, Any] = {
    "weight_decay": 0.0,
    "averaging": 0.0,
    "gradient_clip": 25.0,
    "validation_fraction": 0.0,
    "refit": False,
    "loss_weights": {"contrastive": 1.0},
    "temperature": 0.1,
    "modality_dropout": 0.0,
    "alternate": True,
    "start": "random",
}


@dataclass(frozen=True)
class _Preset:
    network: Mapping[str, Any]
    training: Mapping[str, Any]


#: Epochs are those of its `train` and `finetune` together; without labels the first are warm-up.
PRESETS: Mapping[str, _Preset] = {
    "original_patchseq": _Preset(
        {
            "n_latent": 68,
            "n_hidden": (1024, 512, 256, 128),
            "n_projector": 100,
            "n_heads": 10,
            "batch_norm": False,
            "fusion": "dimension",
        },
        {"max_epochs": 40, "batch_size": 16, "learning_rate": 1e-3, "warmup": 20 / 40},
    ),
    "original_multiome": _Preset(
        {"n_latent": 64, "n_hidden": (64, 64), "n_projector": 100, "n_heads": 1},
        {"max_epochs": 20, "batch_size": 512, "learning_rate": 1e-2, "warmup": 10 / 20},
    ),
    "original_dbitseq": _Preset(
        {
            "n_latent": 22,
            "n_hidden": (512, 256, 128, 64),
            "n_projector": 64,
            "n_heads": 10,
            "batch_norm": False,
        },
        {"max_epochs": 30, "batch_size": 16, "learning_rate": 1e-3, "warmup": 20 / 30},
    ),
    "original_dlpfc": _Preset(
        {"n_latent": 50, "n_hidden": (256, 128, 64), "n_projector": 100, "n_heads": 5},
        {"max_epochs": 70, "batch_size": 512, "learning_rate": 1e-1, "warmup": 50 / 70},
    ),
}


def settings(
    preset: str | None,
    network: NetworkConfig | Mapping[str, Any] | None,
    training: TrainingConfig | Mapping[str, Any] | None,
) -> tuple[NetworkConfig, TrainingConfig]:
    """Complete settings from a preset and overrides; complete settings replace the preset's.

    Raises
    ------
    TypeError, ValueError
        `preset` is unknown (the message lists those that exist), or an override is not understood.
    """
    if preset is None or preset in EXPECTED:
        return NetworkConfig.build(network), TrainingConfig.build(training)
    if preset not in PRESETS:
        raise ValueError(unknown_name("preset", preset, [*EXPECTED, *PRESETS]))
    chosen = PRESETS[preset]
    if network is None or isinstance(network, Mapping):
        network = {**_NETWORK, **chosen.network, **(network or {})}
    if training is None or isinstance(training, Mapping):
        given = dict(training or {})
        weights = {**_TRAINING["loss_weights"], **given.pop("loss_weights", {})}
        training = {**_TRAINING, **chosen.training, **given, "loss_weights": weights}
    return NetworkConfig.build(network), TrainingConfig.build(training)


def check_expected(preset: str | None, mdata: MuData, specs: Sequence[ModalitySpec]) -> None:
    """Check that data are of the kind that a preset names.

    Raises
    ------
    ValueError
        A modality that this kind of data has is missing, one looks like raw counts, or there are
        no positions.

    Warns
    -----
    UserWarning
        A modality holds what the neighbours of each cell express: held-out cells have neighbours
        that were trained on.
    """
    expected = EXPECTED.get(preset or "")
    if expected is None:
        return
    _check_kinds(f"preset={preset!r}", expected, [spec.name for spec in specs])
    raw = [spec.name for spec in specs if spec.counts]
    if raw:
        raise ValueError(
            f"preset={preset!r}: expected prepared values, found what looks like raw counts in "
            f"{raw}. Call unitednet_mu.pp.prepare first."
        )
    if not expected.spatial:
        return
    if not any(_POSITIONS in one.obsm for one in (mdata, *mdata.mod.values())):
        raise ValueError(
            f"preset={preset!r}: expected positions in .obsm[{_POSITIONS!r}] of mdata or of a "
            "modality, found none."
        )
    derived = {spec.name: derived_from(mdata.mod, spec.name) for spec in specs}
    for name, sources in derived.items():
        if set(sources) & set(derived):
            warn_user(
                f"preset={preset!r}: {name!r} holds the neighbours' {' and '.join(sources)}, and "
                "cells held out to stop training and to judge it have neighbours that were trained "
                f"on: the expected accuracy of predictions between these and {name!r} is too high. "
                "Judge them on a slice or region that was left out."
            )


def _check_kinds(preset: str, expected: _Expected, names: Sequence[str]) -> None:
    found = {name: usual_kind(name) for name in names}
    missing = [kind for kind in expected.kinds if kind not in found.values()]
    if missing:
        raise ValueError(
            f"{preset}: expected modalities of the kinds {list(expected.kinds)}, by name, found "
            f"{list(names)}, none of them {missing[0]}. Call it {missing[0]!r}, or leave preset "
            "out."
        )
    if expected.another and len(names) <= len(expected.kinds):
        raise ValueError(
            f"{preset}: expected another modality beside {expected.kinds[0]!r}, found "
            f"{list(names)}."
        )
