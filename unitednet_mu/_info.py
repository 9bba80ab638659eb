"""Everything about a trained model that is not a tensor, and its JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Self

from ._config import NetworkConfig, TrainingConfig
from ._matrix import ModalitySpec

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ModelInfo:
    """Everything about a trained model that is not a tensor.

    Parameters
    ----------
    modalities
        What is read of each modality, in the network's order.
    groups
        Names of the groups, in the order of the head's outputs.
    labels_key, batch_key
        Columns trained on; None where groups were found, or batches not used.
    batches
        Names of the batches the decoders are conditioned on.
    batch_measured
        Per batch and modality whether training cells of that batch had the modality.
    network, training
        The settings.
    random_state
        The seed.
    """

    modalities: tuple[ModalitySpec, ...]
    groups: tuple[str, ...]
    network: NetworkConfig
    training: TrainingConfig
    labels_key: str | None = None
    batch_key: str | None = None
    batches: tuple[str, ...] = ()
    batch_measured: tuple[tuple[bool, ...], ...] = ()
    random_state: int = 0

    def to_json(self) -> str:
        """JSON text of the bundle's settings."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain["modalities"] = [dataclasses.asdict(spec) for spec in self.modalities]
        plain |= {"network": self.network.to_dict(), "training": self.training.to_dict()}
        return json.dumps({"format": FORMAT_VERSION, **plain})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        ValueError
            Not such a text, or of an unknown format version.
        """
        try:
            plain = json.loads(text)
            version = plain.pop("format")
            if version != FORMAT_VERSION:
                raise ValueError(
                    f"model: format version {version!r} is not known; this package reads "
                    f"{FORMAT_VERSION}. Update unitednet_mu."
                )
            plain["modalities"] = tuple(
                ModalitySpec(**{**spec, "features": tuple(spec["features"])})
                for spec in plain["modalities"]
            )
            plain |= {name: tuple(plain[name]) for name in ("groups", "batches")}
            plain["batch_measured"] = tuple(tuple(row) for row in plain["batch_measured"])
            plain |= {
                "network": NetworkConfig.build(plain["network"]),
                "training": TrainingConfig.build(plain["training"]),
            }
            return cls(**plain)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"model: the stored settings cannot be read ({error}).") from error
