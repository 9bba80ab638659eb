"""The configurations of the original UnitedNet, in this package's terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ._config import NetworkConfig, TrainingConfig
from ._validate import unknown_name

#: The same in all four: no linear or direct path, no averaging of weights, no hidden modalities, a
#: step for each task, discriminators, heads that start at random, all cells trained on.
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
    if preset is None:
        return NetworkConfig.build(network), TrainingConfig.build(training)
    if preset not in PRESETS:
        raise ValueError(unknown_name("preset", preset, list(PRESETS)))
    chosen = PRESETS[preset]
    if network is None or isinstance(network, Mapping):
        network = {**_NETWORK, **chosen.network, **(network or {})}
    if training is None or isinstance(training, Mapping):
        given = dict(training or {})
        weights = {**_TRAINING["loss_weights"], **given.pop("loss_weights", {})}
        training = {**_TRAINING, **chosen.training, **given, "loss_weights": weights}
    return NetworkConfig.build(network), TrainingConfig.build(training)
