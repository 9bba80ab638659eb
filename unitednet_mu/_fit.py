"""From aligned data to a trained model: build or continue, train, calibrate, measure."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from ._compat import warn_user
from ._data import Dataset
from ._direct_path import choose_penalties, penalties_of, set_direct_paths
from ._held_out import FEW_CELLS, calibrate, expected_accuracy, widen_intervals
from ._interrupt import Interrupted
from ._model import Model, ModelInfo
from ._network import ModalityShape, UnitedNetwork
from ._process import seeded
from ._session import Session
from ._setup import default_batch_size, set_statistics, split_cells
from ._train import Diverged, Ended, Trainer

logger = logging.getLogger(__name__)

#: From this number of cells on, those held out are not missed.
_MANY_CELLS = 5000


@dataclass(frozen=True)
class Fitted:
    """A trained model, the history (one row an epoch), and how the training ended."""

    model: Model
    history: pd.DataFrame
    ended: Ended = "finished"

    def to_state(self) -> dict[str, Any]:
        """Form that a checkpoint can hold."""
        return {"model": self.model.to_dict(), "history": self.history.to_dict("records")}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> Fitted:
        """Read what :meth:`to_state` made, of a training that had finished."""
        model = Model.from_dict(state["model"])
        model.network.to(device)
        return cls(model, pd.DataFrame(state["history"]))


def train_new(
    data: Dataset,
    info: ModelInfo,
    *,
    n_groups: int | None,
    device: torch.device,
    progress: bool,
    session: Session | None = None,
) -> Fitted:
    """Train a network from scratch.

    Parameters
    ----------
    data
        Aligned cells; labels are codes into `info.groups`.
    info
        Names and settings; `info.groups` is empty where groups are to be found.
    n_groups
        How many groups to find; None lets Leiden find the number.
    session
        What may end the training early, or continue it.
    """
    now = session or Session()
    shapes = [ModalityShape(len(spec.features), spec.likelihood) for spec in info.modalities]
    starting_codes: list[np.ndarray] = []  # of every network trained, in turn

    def train(settings: ModelInfo) -> Fitted:
        with seeded(info.random_state):
            n_groups_now = len(info.groups) or 1
            network = UnitedNetwork(shapes, n_groups_now, len(info.batches), info.network)
            network.to(device)
            trainer = _trainer(
                network, data, settings, n_groups, new_groups=True, progress=progress, session=now
            )
            trainer.starting_codes = starting_codes
            set_statistics(network, data, trainer.train_cells)
            return _finish(trainer, data, settings)

    if now.finished is None:
        first = train(info)
    else:
        first = Fitted.from_state(now.finished, device)
    if first.ended != "finished" or not _is_refitted(data, info):
        return first
    now.stop.keep = now.fallback = True
    if now.checkpoints is not None:
        now.finished = first.to_state()
    try:
        return _refitted(data, first, train(_without_held_out(data, info, first.history)))
    except Interrupted as early:
        logger.warning(
            "%s of the training on all cells: the model trained without the held-out cells is "
            "kept.",
            early,
        )
        return replace(first, ended="interrupted")
    except Diverged as error:
        warn_user(
            f"{error} That was the training on all cells; the model trained without the held-out "
            "cells is kept."
        )
        return replace(first, ended="diverged")


def _is_refitted(data: Dataset, info: ModelInfo) -> bool:
    _, held_out = split_cells(data, info.training.validation_fraction, info.random_state)
    if not len(held_out) or info.training.refit is False:
        return False
    return info.training.refit is True or len(data.canonical) < _MANY_CELLS


def _without_held_out(data: Dataset, info: ModelInfo, history: pd.DataFrame) -> ModelInfo:
    """Return settings to train on all cells as held-out cells allowed: epochs, phases, batches."""
    training = info.training
    cells, _ = split_cells(data, training.validation_fraction, info.random_state)
    n_warmup = int((history["phase"] == "warmup").sum())
    training = replace(
        training,
        validation_fraction=0.0,
        max_epochs=len(history),
        batch_size=training.batch_size or min(default_batch_size(len(cells)), len(data.canonical)),
        warmup=n_warmup / len(history) if n_warmup else training.warmup,
    )
    return replace(info, training=training)


def _refitted(data: Dataset, first: Fitted, second: Fitted) -> Fitted:
    """Model trained on all cells, with what held-out cells told of the one before."""
    before, model = first.model, second.model
    model.info = replace(model.info, training=before.info.training)
    model.network.temperature.copy_(before.network.temperature)
    set_direct_paths(model.network, data, data.canonical, penalties_of(before.network))
    if before.accuracy:
        fraction = before.info.training.validation_fraction
        _, held_out = split_cells(data, fraction, before.info.random_state)
        model.accuracy = widen_intervals(before.accuracy, model, data.subset(held_out))
    rows = second.history
    rows = rows.assign(phase="refit " + rows["phase"], epoch=rows["epoch"] + len(first.history))
    return Fitted(model, pd.concat([first.history, rows], ignore_index=True))


def train_on(
    model: Model,
    data: Dataset,
    info: ModelInfo,
    *,
    n_groups: int | None,
    reset_head: bool,
    progress: bool,
    session: Session | None = None,
) -> Fitted:
    """Continue from a model, which is left as it is; `reset_head` learns the groups anew.

    Cells held out now may be among those that the model was trained on, and would flatter it: the
    expected accuracy stays the model's, and unless the head is new so does the temperature.
    """
    with seeded(info.random_state):
        network = copy.deepcopy(model.network)
        if reset_head:
            network.temperature.fill_(1.0)
            network.new_heads(len(info.groups) or 1, 1)
        trainer = _trainer(
            network,
            data,
            info,
            n_groups,
            new_groups=reset_head,
            progress=progress,
            session=session,
        )
        return _finish(trainer, data, info, before=model, new_head=reset_head)


def _trainer(
    network: UnitedNetwork,
    data: Dataset,
    info: ModelInfo,
    n_groups: int | None,
    *,
    new_groups: bool,
    progress: bool,
    session: Session | None,
) -> Trainer:
    return Trainer(
        network,
        data,
        info.training,
        supervised=info.labels_key is not None,
        n_groups=n_groups,
        new_groups=new_groups,
        seed=info.random_state,
        progress=progress,
        session=session,
    )


def _finish(
    trainer: Trainer,
    data: Dataset,
    info: ModelInfo,
    *,
    before: Model | None = None,
    new_head: bool = True,
) -> Fitted:
    """Train, calibrate and measure; what was measured `before` is kept."""
    history = trainer.fit()
    if not info.groups:
        info = replace(info, groups=tuple(str(k) for k in range(trainer.network.n_groups)))
    measured = _measured(data, trainer.train_cells, len(info.batches))
    if before is not None:
        measured = _either(measured, before.info.batch_measured)
    model = Model(trainer.network, replace(info, batch_measured=measured))
    _add_direct_paths(trainer, data, before)
    held_out = _subset(data, trainer.held_out)
    if held_out is not None and new_head and info.labels_key is not None:
        calibrate(model, held_out)
    if before is not None:
        model.accuracy = dict(before.accuracy)
    elif held_out is not None:
        model.accuracy = expected_accuracy(model, held_out)
    return Fitted(model, history, trainer.ended)


def describe_start(model: Model | None, reset_head: bool) -> dict[str, Any]:
    """Say what a fit starts from, for a checkpoint to be compared with."""
    weights = None if model is None else model.to_dict()["sha256"]
    return {"model": weights and f"sha256:{weights}", "reset_head": reset_head}


def _add_direct_paths(trainer: Trainer, data: Dataset, before: Model | None) -> None:
    """Solve for the maps beside the code; a network trained on keeps their penalties."""
    network = trainer.network
    if not network.config.direct_path or not trainer.config.weight("translation"):
        return
    if before is not None:
        penalties = penalties_of(network)
    elif len(trainer.held_out) >= FEW_CELLS:
        penalties = choose_penalties(network, data, trainer.train_cells, trainer.held_out)
    else:
        return
    set_direct_paths(network, data, trainer.train_cells, penalties)


def _either(
    one: tuple[tuple[bool, ...], ...], other: tuple[tuple[bool, ...], ...]
) -> tuple[tuple[bool, ...], ...]:
    if not other:
        return one
    return tuple(
        tuple(a or b for a, b in zip(*pair, strict=True)) for pair in zip(one, other, strict=True)
    )


def _measured(data: Dataset, cells: np.ndarray, n_batches: int) -> tuple[tuple[bool, ...], ...]:
    """Per batch and modality whether it was measured there."""
    of_batch = (data.observed[cells[data.batches[cells] == b]] for b in range(n_batches))
    return tuple(tuple(bool(x) for x in observed.any(0)) for observed in of_batch)


def _subset(data: Dataset, cells: np.ndarray) -> Dataset | None:
    if len(cells) < FEW_CELLS:
        return None
    return data.subset(cells)
