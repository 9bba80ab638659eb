"""What this package does in the benchmark, by its public functions and its own defaults."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from _prepare import BATCH, LABELS, Prepared
from mudata import MuData

import unitednet_mu as un

OURS = "unitednet_mu"
ADAPTED = f"{OURS}, adapted"
OWN_GROUPS = f"{OURS}, its own groups"


@dataclass(frozen=True)
class Settings:
    """How `tl.fit` is called: overrides of its defaults (none for figures that count), device."""

    network: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"

    def fit(self, mdata: MuData, seed: int, **what: Any) -> MuData:
        """Fit on `mdata`, in place, and return it."""
        with _constant_features():
            un.tl.fit(
                mdata,
                network=self.network or None,
                training=self.training or None,
                random_state=seed,
                device=self.device,
                progress=False,
                **what,
            )
        return mdata


def unsupervised(
    data: Prepared,
    cells: np.ndarray,
    seed: int,
    settings: Settings,
    *,
    n_groups: int | Literal["auto"] | None = None,
    batches: bool = False,
) -> MuData:
    """Model of some cells fitted without labels, which `tl.fit` is not even handed.

    Parameters
    ----------
    data, cells
        The set, and positions of the cells to train on.
    seed, settings
        Of the fit.
    n_groups
        By default as many as there are labels.
    batches
        Whether to condition the decoders on the batch.
    """
    mdata = data.part(cells, *([BATCH] if batches else []))
    what = {"batch_key": BATCH} if batches else {}
    return settings.fit(mdata, seed, n_groups=n_groups or data.n_groups, **what)


def supervised(data: Prepared, cells: np.ndarray, seed: int, settings: Settings) -> MuData:
    """Model of some cells fitted with their labels."""
    return settings.fit(data.part(cells, LABELS), seed, labels_key=LABELS)


def transferred(
    reference: MuData, query: MuData, seed: int, settings: Settings, *, adapt: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Names of the labels, their probabilities, and the novelty, for cells without labels."""
    labelled: Any = un.tl.transfer_labels(
        query,
        reference,
        adapt=adapt,
        unknown_threshold=0,
        random_state=seed,
        device=settings.device,
        progress=False,
        copy=True,
    )
    table = un.get.probabilities(labelled, labels=True)
    novelty = labelled.obs["unitednet_label_novelty"].to_numpy(np.float64)
    return table.columns.to_numpy().astype(str), table.to_numpy(np.float64), novelty


@contextmanager
def _constant_features() -> Iterator[None]:
    """Let features pass that happen to be constant among the cells trained on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*constant features carry", category=UserWarning)
        yield
