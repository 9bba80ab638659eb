"""What the readers of downloads share: to find, fetch, read, check and put together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from .._compat import is_sparse, quiet_reading, quiet_update
from .._validate import unknown_name

StrPath = str | os.PathLike[str]
#: Values checked in one go.
_PART = 10_000_000


def existing(path: StrPath, origin: str) -> Path:
    """Return the path of a file or folder that is there.

    Raises
    ------
    FileNotFoundError
        It is not; `origin` says where to get it.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise FileNotFoundError(f"{found}: no such file or folder. Fetch it first: {origin}")
    return found


def first_existing(folder: Path, names: Iterable[str], origin: str) -> Path:
    """Return the first of several names that a folder holds.

    Raises
    ------
    FileNotFoundError
        It holds none of them.
    """
    names = list(names)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder}: expected one of the files {names}, found none. {origin}")


def fetched(url: str, known_hash: str) -> Path:
    """Return the path of a file in the cache, downloaded if it is not there, its checksum checked.

    Raises
    ------
    ImportError
        pooch is not installed.
    ValueError
        What was downloaded has another checksum.
    """
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f"downloading needs pooch, which is not installed. Run pip install pooch, or fetch "
            f"{url} yourself and pass its path."
        ) from error
    return Path(pooch.retrieve(url, known_hash, path=pooch.os_cache("unitednet_mu")))


def h5ad_elements(path: Path, *names: str) -> list[Any]:
    """Read single elements of an ``.h5ad``, such as ``"layers/counts"``, and nothing else.

    Raises
    ------
    ValueError
        The file is no HDF5, or lacks an element; the message says what it holds.
    """
    import h5py
    from anndata.io import read_elem

    if not h5py.is_hdf5(path):
        todo = f"Unpack it first: gunzip {path.name}" if path.suffix == ".gz" else "Fetch it again."
        raise ValueError(f"{path}: expected an .h5ad (HDF5) file, found another kind. {todo}")
    with h5py.File(path, "r") as file:
        for name in names:
            if name not in file:
                group, _, _ = name.rpartition("/")
                there = list(file[group]) if group in file else list(file)
                raise ValueError(unknown_name(f"{path.name}: {name!r}: element", name, there))
        with quiet_reading():
            return [read_elem(file[name]) for name in names]


def columns(table: pd.DataFrame, names: Iterable[str], what: str) -> None:
    """Refuse a table that lacks columns.

    Raises
    ------
    ValueError
        A column is missing; the message lists those that are there.
    """
    for name in names:
        if name not in table.columns:
            raise ValueError(unknown_name(f"{what}: column", name, table.columns))


def as_counts(values: Any, what: str) -> Any:
    """Return raw counts as float32, CSR where they are sparse.

    Raises
    ------
    ValueError
        A value is no whole number, or below 0.
    """
    stored = np.asarray(values.data if is_sparse(values) else values).reshape(-1)
    for start in range(0, len(stored), _PART):
        part = stored[start : start + _PART]
        wrong = part[~(np.isfinite(part) & (part >= 0) & (part == np.rint(part)))]
        if wrong.size:
            raise ValueError(
                f"{what}: expected raw counts (whole numbers from 0 on), found {wrong[0]:.6g}. "
                "Is this the file that the docstring names?"
            )
    return sparse.csr_matrix(values, dtype=np.float32) if is_sparse(values) else np.float32(values)


def together(
    modalities: Mapping[str, AnnData], obs: pd.DataFrame, uns: Mapping[str, Any] | None = None
) -> MuData:
    """Return a MuData of these modalities, with columns of `obs` for all cells."""
    with quiet_update():
        mdata = MuData(dict(modalities))
    cells = obs.reindex(mdata.obs_names)
    for name in cells.columns:
        mdata.obs[name] = cells[name]
    mdata.uns.update(uns or {})
    return mdata
