"""Labels and batches of cells, read from a MuData into what is trained on."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
from mudata import MuData

from .._compat import warn_user
from .._data import Dataset
from .._keys import Keys
from .._model import ModelInfo
from .._validate import (
    _some,
    as_names,
    check_labels,
    check_shared,
    has_obs_column,
    obs_column,
    unknown_name,
)

logger = logging.getLogger(__name__)

#: What cells are often called that have no label.
_NO_NAMES = frozenset(
    ("", "na", "n/a", "nan", "none", "unknown", "unassigned", "unlabeled", "unlabelled")
)


def check_labels_key(labels_key: str | None, keys: Keys) -> None:
    """Refuse labels that `tl.integrate` would write over."""
    if labels_key in (keys.group, keys.group_confidence):
        raise ValueError(
            f"labels_key={labels_key!r} is a column that tl.integrate overwrites. Copy your labels "
            "to a column of another name, or use key_added."
        )


def with_labels(
    mdata: MuData,
    data: Dataset,
    info: ModelInfo,
    labels_key: str | None,
    advice: str = "Pass reset_head=True to learn new labels.",
) -> ModelInfo:
    """Read the labels into `data`; a model's own groups are kept.

    `advice` says what to do about a label that the model does not know.

    Warns
    -----
    UserWarning
        New labels are called as cells without one often are; a model trains on without any label.
    """
    if labels_key is None:
        return info
    codes, names = _levels(mdata, data, labels_key, "labels_key")
    if info.groups:
        unknown = [name for name in names if name not in info.groups]
        if unknown:
            known = list(info.groups)
            raise ValueError(f"{unknown_name('labels_key: label', unknown[0], known)} {advice}")
        codes = _positions(codes, names, info.groups)
        if not (codes >= 0).any():
            warn_user(
                f"labels_key={labels_key!r}: every value is missing; the model trains on with "
                "these cells, but learns nothing more of its groups."
            )
    else:
        check_labels(codes, names, labels_key)
        check_shared(codes, names, "labels_key", labels_key)
        nameless = [str(name) for name in names if str(name).lower() in _NO_NAMES]
        if nameless:
            warn_user(
                f"labels_key={labels_key!r}: {nameless} will be learned like any other label. If "
                "cells called so have none, make their value missing (NaN): they are then trained "
                "on without one."
            )
    data.labels = codes
    return dataclasses.replace(info, labels_key=labels_key, groups=info.groups or tuple(names))


def with_batches(
    mdata: MuData, data: Dataset, info: ModelInfo, batch_key: str | None, *, fixed: bool
) -> ModelInfo:
    """Read the batches into `data`; batches that a model does not know count as unknown.

    Warns
    -----
    UserWarning
        There are such batches.
    """
    if batch_key is None:
        return info
    if fixed and info.batch_key is None:
        raise ValueError(
            "batch_key: the model was trained without batches; leave it out, or fit anew."
        )
    codes, names = _levels(mdata, data, batch_key, "batch_key")
    if not len(names):
        raise ValueError(f"batch_key={batch_key!r}: expected batches, found every value missing.")
    if not info.batches:
        check_shared(codes, names, "batch_key", batch_key)
    batches = info.batches or tuple(names)
    data.batches = _positions(codes, names, batches)
    unknown = [str(name) for name in names if name not in batches]
    if unknown:
        n_cells = int(((data.batches < 0) & (codes >= 0)).sum())
        warn_user(
            f"batch_key={batch_key!r}: {n_cells} cells are of batches that the model does not know "
            f"({_some(unknown, 3)}) and count as of an even mixture of those it does, "
            f"{_some(list(batches), 3)}. Fit anew to tell them apart."
        )
    return dataclasses.replace(info, batch_key=batch_key, batches=batches)


def read_batches(query: MuData, data: Dataset, info: ModelInfo) -> None:
    """Read the batches of a query into `data`; those that the model does not know are unknown.

    So are all of them where the query has no such column.
    """
    if info.batch_key is None:
        return
    if not has_obs_column(query, info.batch_key):
        logger.info("query: no column %r; all of its batches are unknown.", info.batch_key)
        return
    codes, names = _levels(query, data, info.batch_key, "batch_key")
    data.batches = _positions(codes, names, info.batches)


def _positions(codes: np.ndarray, names: np.ndarray, known: Sequence[str]) -> np.ndarray:
    """Turn codes into `names` into positions among `known`, -1 where missing or not among them."""
    position = {name: index for index, name in enumerate(known)}
    positions = np.array([*(position.get(name, -1) for name in names), -1], dtype=np.int64)
    return np.asarray(positions[codes])


def _levels(mdata: MuData, data: Dataset, key: str, argument: str) -> tuple[np.ndarray, np.ndarray]:
    """Code of each cell, -1 where missing, and the names in use among cells to train on."""
    seen = np.flatnonzero(data.observed.any(1))
    codes = np.full(len(data), -1, np.int64)
    codes[seen], names = as_names(obs_column(mdata, key, argument).iloc[seen])
    return codes, names
