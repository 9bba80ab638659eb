"""What differs between releases of Python and others' packages, and an undo for failed writes."""

from __future__ import annotations

import copy
import importlib
import os
import random
import sys
import threading
import warnings
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mudata
import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

#: Options of mudata and Python's random numbers belong to the whole process: one update at a time.
_UPDATING = threading.RLock()
#: What a MuData holds of all cells, and of all variables.
_TABLES, _ALIGNED = ("obs", "var"), ("obsm", "varm")
_PACKAGE = os.path.dirname(__file__) + os.sep


@contextmanager
def quiet_update() -> Iterator[None]:
    """Update a MuData without pulling columns up from its modalities, and without side effects.

    mudata 0.3 pulls by default, with a warning; later releases do not. A user's explicit choice in
    mudata 0.3 is honoured. mudata names temporary columns by Python's random numbers, whose state
    is given back.
    """
    with _UPDATING:
        state = random.getstate()
        try:
            with _no_pull():
                yield
        finally:
            random.setstate(state)


@contextmanager
def _no_pull() -> Iterator[None]:
    set_options = getattr(mudata, "set_options", None)
    if set_options is None:
        yield
        return
    before = set_options(pull_on_update=False).opts
    if before["pull_on_update"] is not None:
        set_options(**before)
    try:
        yield
    finally:
        # not `with set_options(...)`: leaving it logs through the root logger and configures that
        set_options(**before)


def copied(mdata: MuData) -> MuData:
    """Return a copy that shares nothing with `mdata`, real even where `mdata` is a view.

    mudata updates what it copies, and turns integers and columns of tables into other types, or
    fails, where it does: what belongs to all cells or variables is copied beside it.
    """
    bare = copy.copy(mdata)
    for slot in _TABLES:
        setattr(bare, f"_{slot}", getattr(mdata, slot)[[]])
    for slot in _ALIGNED:
        notes = {key: value for key, value in getattr(mdata, slot).items() if key in mdata.mod}
        setattr(bare, f"_{slot}", notes)
    tables = {slot: getattr(mdata, slot).copy() for slot in _TABLES}
    with quiet_update():
        found = bare.copy()
        if not _fits(found, tables):  # out of date: only mudata knows what follows
            return mdata.copy()
    aligned = {
        slot: {k: v.copy() for k, v in getattr(mdata, slot).items() if k not in mdata.mod}
        for slot in _ALIGNED
    }
    return _completed(found, tables, aligned)


def made(modalities: Mapping[str, AnnData], whole: Mapping[str, Any], axis: int) -> MuData:
    """Make a MuData of modalities and of what belongs to all of them, by slot, as it is."""
    tables = {slot: whole[slot] for slot in _TABLES if slot in whole}
    aligned, notes = (
        {
            slot: {k: v for k, v in whole.get(slot, {}).items() if (k in modalities) == is_note}
            for slot in _ALIGNED
        }
        for is_note in (False, True)
    )
    bare = {slot: table[[]] for slot, table in tables.items()}
    with quiet_update():
        found = MuData(dict(modalities), **{**whole, **bare, **notes}, axis=axis)
        if not _fits(found, tables):
            return MuData(dict(modalities), **whole, axis=axis)
    return _completed(found, tables, aligned)


def _fits(found: MuData, tables: Mapping[str, pd.DataFrame]) -> bool:
    """Whether the names of all cells and variables, in order, are those of the tables."""
    return all(getattr(found, slot).index.equals(table.index) for slot, table in tables.items())


def _completed(
    found: MuData, tables: Mapping[str, pd.DataFrame], aligned: Mapping[str, Mapping[str, Any]]
) -> MuData:
    """Give an object that was made bare what belongs to all of its cells and variables."""
    for slot, table in tables.items():
        setattr(found, slot, table)
    for slot, values in aligned.items():
        for key, value in values.items():
            getattr(found, slot)[key] = value
    return found


def make_real(mdata: MuData) -> None:
    """Turn a view of a MuData, and views among its modalities, into data of their own."""
    if mdata.is_view:
        mdata._init_as_actual(copied(mdata))
    for adata in mdata.mod.values():
        if adata.is_view:
            adata._init_as_actual(adata.copy())


def add_modality(mdata: MuData, name: str, adata: AnnData) -> None:
    """Add a modality whose cells `mdata` has, or replace the one of that name.

    mudata marks cells that are new by NaN in all of ``.obsm``, there being none as well: integers,
    as positions in pixels, refuse that, and columns of tables become others. All is put aside
    meanwhile, as ``.obs`` is, whose columns change their types too. ``.varm`` has new rows for new
    features: NaN, to which whole numbers give way, and False.

    Raises
    ------
    ValueError
        The cells of `mdata` and of its modalities do not agree.
    """
    cells, obs = mdata.obs_names, mdata.obs
    aside = {
        key: value for key, value in mdata.obsm.items() if key != name and key not in mdata.mod
    }
    for key in aside:
        del mdata.obsm[key]
    mdata.obs = obs[[]]
    kinds = _as_floats(mdata.varm, mdata.mod)
    with quiet_update():
        mdata.mod[name] = adata
        mdata.update()
    if not mdata.obs_names.equals(cells):
        raise ValueError(
            "mdata: expected the cells of its modalities, found others: it was changed. Call "
            "mdata.update() first."
        )
    for key, value in aside.items():
        mdata.obsm[key] = value
    mdata.obs = obs
    for key, kind in kinds.items():
        new = np.isnan(mdata.varm[key])
        if kind.kind == "b" or not new.any():
            mdata.varm[key] = np.where(new, 0, mdata.varm[key]).astype(kind)


def _as_floats(varm: Any, modalities: Container[str]) -> dict[str, np.dtype[Any]]:
    """Make arrays of whole numbers and of bool floats, for new features to be NaN; their dtypes.

    Masks under a modality's name are mudata's own.
    """
    kinds = {
        key: values.dtype
        for key, values in varm.items()
        if key not in modalities and isinstance(values, np.ndarray) and values.dtype.kind in "iub"
    }
    for key in kinds:
        varm[key] = varm[key].astype(np.float64)
    return kinds


def import_muon(submodule: str) -> Any:
    """Import ``muon.<submodule>`` without the warnings that importing muon 0.1 gives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"muon.{submodule}")


@contextmanager
def quiet_reading() -> Iterator[None]:
    """Read others' files without warnings of what is dealt with: names repeated, an old format."""
    with warnings.catch_warnings():
        for message in ("Variable names are not unique", ".* written without encoding metadata"):
            warnings.filterwarnings("ignore", message)
        yield


@contextmanager
def undo_on_error(mdata: MuData) -> Iterator[None]:
    """Put `mdata` and its modalities back as they were if the block fails, however it fails.

    Replaced arrays, added or removed entries, columns and modalities are undone, and a view becomes
    one again. Values changed inside an existing array, or inside a nested dictionary, are not:
    replace these, never change them in place.
    """
    saved = [(thing, _contents(thing)) for thing in (mdata, *mdata.mod.values())]
    try:
        yield
    except BaseException:
        for thing, contents in saved:
            thing.__dict__.clear()
            thing.__dict__.update(contents)
        raise


def _contents(thing: MuData | AnnData) -> dict[str, Any]:
    return {name: _shallow(value) for name, value in vars(thing).items()}


def _shallow(value: Any) -> Any:
    if isinstance(value, pd.DataFrame):
        return value.copy(deep=False)
    if isinstance(value, dict):
        return copy.copy(value)
    store = getattr(value, "_data", None)  # anndata's aligned mappings wrap a dictionary
    if isinstance(store, dict):
        clone = copy.copy(value)
        clone._data = copy.copy(store)
        return clone
    return value


def warn_user(message: str) -> None:
    """Warn at the line outside this package that led here.

    `warnings.warn` has ``skip_file_prefixes`` for that from Python 3.12 on.
    """
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def is_sparse(values: Any) -> bool:
    """Whether `values` is a scipy sparse matrix or array."""
    return bool(sparse.issparse(values))
