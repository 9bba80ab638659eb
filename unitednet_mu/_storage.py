"""Tensors and a text in ``.uns``, or in a file: safetensors and a checksum, no pickle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ._plain import one_line

_METADATA_KEY = "unitednet_mu"
_CHECKSUM_KEY = "sha256"
#: What safetensors raises where bytes are not what they say.
_UNREADABLE = (safetensors.SafetensorError,)


def to_entries(tensors: dict[str, Tensor], text: str) -> dict[str, Any]:
    """Entries for ``.uns``: safetensors bytes as a uint8 array, the text, a checksum."""
    weights = safetensors.torch.save(tensors)
    return {
        "weights": np.frombuffer(weights, np.uint8).copy(),
        "config": text,
        "sha256": _digest(weights, text),
    }


def from_entries(stored: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """Read what :func:`to_entries` made.

    Raises
    ------
    ValueError
        Parts are missing or damaged.
    """
    if not isinstance(stored, Mapping):
        raise ValueError(f"model: expected a mapping, found {type(stored).__name__}.")
    missing = [name for name in ("weights", "config", "sha256") if name not in stored]
    if missing:
        raise ValueError(
            f"model: expected the entries weights, config and sha256, found no {missing}."
        )
    weights = np.asarray(stored["weights"])
    if weights.dtype != np.uint8:
        raise ValueError(f"model: expected weights of dtype uint8, found {weights.dtype}.")
    data, text = weights.tobytes(), str(stored["config"])
    # earlier releases sealed the weights alone
    if str(stored["sha256"]) not in (_digest(data, text), _digest(data, "")):
        raise ValueError("model: the stored model is damaged (its checksum differs). Fit again.")
    try:
        return safetensors.torch.load(data), text
    except _UNREADABLE as error:
        raise ValueError(
            f"model: the stored weights cannot be read ({one_line(error)})."
        ) from error


def to_file(path: str | Path, tensors: dict[str, Tensor], text: str) -> None:
    """Write one safetensors file, the text and a checksum in its metadata.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    metadata = {_METADATA_KEY: text, _CHECKSUM_KEY: _checksum(tensors, text)}
    try:
        safetensors.torch.save_file(tensors, str(path), metadata)
    except safetensors.SafetensorError as error:
        raise OSError(
            f"model: cannot write {str(path)!r} ({error}). Does its folder exist?"
        ) from error


def from_file(path: str | Path) -> tuple[dict[str, Tensor], str]:
    """Read what :func:`to_file` wrote.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is no model of this package, or it is damaged.
    """
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except _UNREADABLE as error:
        raise ValueError(f"{path}: not a safetensors file ({one_line(error)}).") from error
    text = metadata.get(_METADATA_KEY)
    if text is None:
        raise ValueError(
            f"{path}: a safetensors file, but not written by unitednet_mu's Model.save."
        )
    if metadata.get(_CHECKSUM_KEY) != _checksum(tensors, text):
        raise ValueError(f"{path}: the file is damaged (its checksum differs).")
    return tensors, text


def _digest(weights: bytes, text: str) -> str:
    return hashlib.sha256(weights + text.encode("utf-8", "surrogatepass")).hexdigest()


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        # as bytes: numpy lacks some kinds of numbers that a file may hold
        values = tensors[name].contiguous().reshape(-1).view(torch.uint8)
        digest.update(name.encode() + values.numpy().tobytes())
    return digest.hexdigest()
