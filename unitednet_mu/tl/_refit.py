"""Train again as a model was trained: with other seeds, or on other data of the same kind."""

from __future__ import annotations

import dataclasses

import numpy as np
from mudata import MuData

from .._data import Dataset
from .._fit import train_new
from .._model import Model, ModelInfo
from .._open import open_dataset
from ._fit import check_size
from ._levels import with_batches, with_labels


def refit(mdata: MuData, model: Model, *, n_repeats: int, progress: bool) -> list[Model]:
    """Train anew with the seeds after the model's; all else as the model was trained.

    Data, labels or number of groups, batches, network and training settings are its own. A model
    that was continued from another is trained from scratch.

    Raises
    ------
    ValueError
        As for :func:`training_data`.
    """
    data, info = training_data(mdata, model)
    return [
        train_again(model, data, info, number, progress=progress)
        for number in range(1, n_repeats + 1)
    ]


def training_data(mdata: MuData, model: Model) -> tuple[Dataset, ModelInfo]:
    """Return what a model was trained on, and with which settings, to train it anew.

    Raises
    ------
    ValueError
        `mdata` lacks a modality, the column of labels or batches, or cells of a group; a value of
        either column is unknown to the model.
    """
    info = model.info
    if info.labels_key is None:
        info = dataclasses.replace(info, groups=())
    data = open_dataset(mdata, info.modalities)
    info = with_labels(mdata, data, info, info.labels_key)
    if info.labels_key is not None:
        there = np.unique(data.labels)
        missing = [name for k, name in enumerate(info.groups) if k not in there]
        if missing:
            raise ValueError(
                f"labels_key={info.labels_key!r}: expected cells of all groups that the model was "
                f"trained on, to train it anew, found none of {missing}."
            )
    info = with_batches(mdata, data, info, info.batch_key, fixed=True)
    check_size(data, len(model.info.groups))
    return data, info


def train_again(
    model: Model, data: Dataset, info: ModelInfo, number: int, *, progress: bool
) -> Model:
    """Train as `model` was, from scratch and with the seed `number` after its own."""
    seed = (info.random_state + number) % 2**32
    return train_new(
        data,
        dataclasses.replace(info, random_state=seed),
        n_groups=None if info.groups else len(model.info.groups),
        device=model.device,
        progress=progress,
    ).model
