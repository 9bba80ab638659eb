"""Everything about a trained model that is not a tensor, and its JSON."""

from __future__ import annotations

import dataclasses
import json
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from ._config import NetworkConfig, TrainingConfig
from ._matrix import ModalitySpec
from ._plain import different_keys, from_plain, one_line
from ._validate import check_random_state

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
            Not such a text, of an unknown format version, or settings that are missing, unknown, of
            the wrong type or at odds with each other.
        """
        try:
            plain = json.loads(text, object_pairs_hook=different_keys)
            version = plain.pop("format", None) if isinstance(plain, dict) else FORMAT_VERSION
            if version == FORMAT_VERSION:
                info: Self = from_plain(plain, cls, "settings")
                info._check()
                return info
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"model: the stored settings cannot be read ({one_line(error)})."
            ) from error
        raise ValueError(
            f"model: format version {reprlib.repr(version)} is not known; this package reads "
            f"{FORMAT_VERSION}. Update unitednet_mu."
        )

    def predictions(self) -> Iterator[tuple[list[str], str]]:
        """Yield sources and target of each prediction whose accuracy is measured.

        Every modality is predicted from each other one, and from all others together.
        """
        names = [spec.name for spec in self.modalities]
        for target in names:
            others = [name for name in names if name != target]
            yield from (([name], target) for name in others)
            if len(others) > 1:
                yield others, target

    def _check(self) -> None:
        """Refuse what no training makes."""
        if not self.modalities:
            raise ValueError("modalities: expected at least one, found none")
        names = {
            "modalities": [spec.name for spec in self.modalities],
            "groups": self.groups,
            "batches": self.batches,
            **{f"features of {spec.name!r}": spec.features for spec in self.modalities},
        }
        for what, these in names.items():
            if len(set(these)) != len(these):
                raise ValueError(
                    f"{what}: expected different names, found {reprlib.repr(list(these))}"
                )
            if not these and what != "batches":
                raise ValueError(f"{what}: expected names, found none")
        if bool(self.batches) != (self.batch_key is not None):
            raise ValueError(
                f"batches: expected them with a batch_key only, found {len(self.batches)} and "
                f"batch_key={self.batch_key!r}"
            )
        if [len(row) for row in self.batch_measured] != [len(self.modalities)] * len(self.batches):
            raise ValueError(
                f"batch_measured: expected a value for each of {len(self.batches)} batches and "
                f"{len(self.modalities)} modalities"
            )
        check_random_state(self.random_state)
