"""Checkpoints: a training's state in files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor

from . import _storage
from ._compat import warn_user
from ._data import Dataset
from ._info import ModelInfo

logger = logging.getLogger(__name__)

_FORMAT = 3
_KEPT = 2
_LOCK = "unitednet.lock"
_PREFIX, _SUFFIX, _UNFINISHED = "checkpoint-", ".safetensors", ".unfinished"
_DIGEST = "sha256:"
#: Cells of each modality whose values are compared.
_COMPARED_CELLS = 256
#: What may differ between a checkpoint and the run that continues it, though numbers then do too.
_CIRCUMSTANCES = ("torch", "device", "threads")


class Checkpoints:
    """Checkpoint files of one fit in one folder, the last two of them; see :func:`checkpoints_in`.

    Parameters
    ----------
    folder
        Where they are; it exists, and nobody else writes there.
    fingerprint
        Data and settings that a checkpoint must agree with to be continued.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any]) -> None:
        self.folder = folder
        self._fingerprint = json.loads(json.dumps(fingerprint))
        self._number = max((_number(path) for path in self._paths()), default=0)

    def _paths(self) -> list[Path]:
        """Finished checkpoints, the newest first."""
        found = [p for p in self.folder.glob(f"{_PREFIX}*{_SUFFIX}") if _number(p) > 0]
        return sorted(found, key=_number, reverse=True)

    def newest(self) -> dict[str, Any] | None:
        """State of the newest checkpoint that can be read; None where there is none at all.

        Raises
        ------
        ValueError
            It is of other data or settings, or all are damaged.

        Warns
        -----
        UserWarning
            A checkpoint is damaged, and the one before it is read. The run that wrote it had
            another torch, device or number of threads.
        """
        paths = self._paths()
        for path in paths:
            try:
                tensors, text = _storage.from_file(path)
                stored = unpack(tensors, text)
            except (OSError, ValueError) as error:
                warn_user(f"checkpoint {path} cannot be read and is left out ({error})")
                continue
            self._check(path, stored)
            logger.info("continuing from %s.", path)
            state: dict[str, Any] = stored["state"]
            return state
        if paths:
            raise ValueError(
                f"checkpoint_dir: none of {[path.name for path in paths]} in {self.folder} can be "
                "read. Train from the beginning in another folder, or delete them."
            )
        return None

    def _check(self, path: Path, stored: Mapping[str, Any]) -> None:
        if stored.get("format") != _FORMAT:
            raise ValueError(
                f"{path}: expected a checkpoint of format {_FORMAT}, found "
                f"{stored.get('format')!r}. Continue with the release of unitednet_mu that wrote "
                "it, or train from the beginning in another folder."
            )
        found, now = stored["fingerprint"], self._fingerprint
        differ = [name for name in {**found, **now} if found.get(name) != now.get(name)]
        refused = [name for name in differ if name not in _CIRCUMSTANCES]
        if refused:
            described = "; ".join(_difference(n, found.get(n), now.get(n)) for n in refused)
            raise ValueError(
                f"resume: the checkpoints in {self.folder} are of another fit: {described}. Call "
                "fit as then, or train from the beginning in another folder."
            )
        if differ:
            described = "; ".join(_difference(n, found.get(n), now.get(n)) for n in differ)
            warn_user(
                f"resume: the numbers will not be those of a fit that was never stopped: "
                f"{described}."
            )

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint beside the others, then delete all but the last two.

        Warns
        -----
        UserWarning
            It cannot be written; those before stay as they are.
        """
        stored = {"format": _FORMAT, "fingerprint": self._fingerprint, "state": state}
        path = self.folder / f"{_PREFIX}{self._number + 1:08d}{_SUFFIX}"
        try:
            write_whole(path, *pack(stored))
            self._number += 1
            for old in self._paths()[_KEPT:]:
                old.unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            warn_user(
                f"checkpoint {path} could not be written ({error}). Training goes on, earlier "
                "checkpoints stay as they are; make room or see to the folder's permissions, and "
                "the next one will be written."
            )


@contextmanager
def checkpoints_in(
    directory: str | os.PathLike[str], fingerprint: Mapping[str, Any], *, resume: bool
) -> Iterator[tuple[Checkpoints, dict[str, Any] | None]]:
    """Hold a folder for the checkpoints of one fit; it is made if need be.

    Yields
    ------
    The checkpoints, and the state to continue from: None where there is none, or ``resume=False``.

    Raises
    ------
    ValueError
        The folder cannot be used, another fit writes there, it holds checkpoints and `resume` is
        False, or they are of another fit.
    """
    folder = Path(directory)
    lock = FileLock(folder / _LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"checkpoint_dir: another fit is writing to {folder}. Give every fit a folder of its "
            "own."
        ) from error
    except (OSError, NotImplementedError) as error:  # the latter where files cannot be locked
        raise ValueError(f"checkpoint_dir: {folder} cannot be written to ({error}).") from error
    try:
        for path in folder.glob(f"{_PREFIX}*{_UNFINISHED}"):  # of a run that was killed meanwhile
            path.unlink(missing_ok=True)
        checkpoints = Checkpoints(folder, fingerprint)
        if checkpoints._paths() and not resume:
            raise ValueError(
                f"checkpoint_dir: {folder} holds checkpoints of an earlier fit. Pass resume=True "
                "to continue it, or name another folder."
            )
        yield checkpoints, checkpoints.newest()
    finally:
        lock.release()


def write_whole(path: Path, tensors: dict[str, Tensor], text: str) -> None:
    """Write a file so that, whenever the machine stops, it is there as a whole or not at all.

    It is written under another name, brought to the disk, renamed, and the folder brought to the
    disk as well.

    Raises
    ------
    OSError, SafetensorError
        It could not be written; nothing is left of it.
    """
    unfinished = path.with_suffix(_UNFINISHED)
    try:
        _storage.to_file(unfinished, tensors, text)
        with unfinished.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere folders cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _number(path: Path) -> int:
    digits = path.name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
    return int(digits) if digits.isdecimal() else 0


def _difference(name: str, then: Any, now: Any) -> str:
    if str(then).startswith(_DIGEST) or str(now).startswith(_DIGEST):
        return f"{name} differ" if then and now else f"{name} then or now only"
    return f"{name} was {then!r} and is {now!r}"


# ------------------------------------------------------------------ what a run must agree in


def fingerprint_of(
    data: Dataset, info: ModelInfo, device: torch.device, **choices: Any
) -> dict[str, Any]:
    """Describe data and settings by name: values where they are short, digests where not.

    Values of at most 256 cells of each modality are compared, and all names.
    """
    described: dict[str, Any] = {
        **{f"network[{name!r}]": value for name, value in info.network.to_dict().items()},
        **{f"training[{name!r}]": value for name, value in info.training.to_dict().items()},
        **{name: getattr(info, name) for name in ("labels_key", "batch_key", "random_state")},
        **choices,
        "modalities": [spec.name for spec in info.modalities],
        "cell names": _digest(list(data.obs_names.astype(str))),
        "labels": _digest([info.groups, data.labels.tolist()]),
        "batches": _digest([info.batches, data.batches.tolist()]),
        "torch": torch.__version__,
        "device": device.type,
        "threads": torch.get_num_threads(),
    }
    for m, (spec, source) in enumerate(zip(info.modalities, data.sources, strict=True)):
        cells = np.flatnonzero(data.observed[:, m])
        some = cells[np.linspace(0, len(cells) - 1, min(len(cells), _COMPARED_CELLS)).astype(int)]
        values = source.take(some).tobytes() if len(some) else b""
        described |= {
            f"likelihood of {spec.name!r}": spec.likelihood,
            f"layer of {spec.name!r}": spec.layer,
            f"use_rep of {spec.name!r}": spec.use_rep,
            f"feature names of {spec.name!r}": _digest(spec.features),
            f"cells with {spec.name!r}": _digest(cells.tolist()),
            f"values of {spec.name!r}": _DIGEST + hashlib.sha256(values).hexdigest(),
        }
    return described


def _digest(value: Any) -> str:
    return _DIGEST + hashlib.sha256(json.dumps(value).encode()).hexdigest()


# ------------------------------------------------------------------ nested states as a file


def pack(tree: Any) -> tuple[dict[str, Tensor], str]:
    """Nested dictionaries, lists and tuples as tensors and a JSON text.

    Parameters
    ----------
    tree
        Of tensors, arrays, strings, numbers, True, False and None; keys of dictionaries are strings
        or integers.
    """
    tensors: dict[str, Tensor] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor | np.ndarray):
            kind = "tensor" if isinstance(value, Tensor) else "array"
            name = f"{kind}{len(tensors)}"
            tensors[name] = torch.as_tensor(value).detach().cpu().contiguous()
            return {kind: name}
        if isinstance(value, Mapping):
            return {"dict": [[key, plain(one)] for key, one in value.items()]}
        if isinstance(value, tuple):
            return {"tuple": [plain(one) for one in value]}
        return [plain(one) for one in value] if isinstance(value, list) else value

    return tensors, json.dumps(plain(tree))


def unpack(tensors: Mapping[str, Tensor], text: str) -> Any:
    """Read what :func:`pack` made.

    Raises
    ------
    ValueError
        It is not such a text, or a tensor is missing.
    """

    def rich(value: Any) -> Any:
        if isinstance(value, list):
            return [rich(one) for one in value]
        if not isinstance(value, dict):
            return value
        ((kind, found),) = value.items()
        if kind in ("tensor", "array"):
            return tensors[found] if kind == "tensor" else tensors[found].numpy()
        if kind == "dict":
            return {key: rich(one) for key, one in found}
        return tuple(rich(one) for one in found)

    try:
        return rich(json.loads(text))
    except (KeyError, TypeError) as error:
        raise ValueError(f"no state of a training ({error})") from error
