"""Checks of what a user hands in; errors say what was expected and found, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from ._keys import DERIVED_MARK, PREDICTED_MARK
from ._stored import is_on_disk

#: So many cells with a value each of its own hold identifiers; fewer may be single examples.
_FEWEST_IDENTIFIERS = 10


def _some(names: Iterable[Any], limit: int = 10) -> str:
    names = [str(name) for name in names]
    more = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return "[" + ", ".join(repr(name) for name in names[:limit]) + more + "]"


def is_one(asked: object) -> bool:
    """Whether one name is asked for and not several; groups may be numbers."""
    return isinstance(asked, str) or not isinstance(asked, Iterable)


def unknown_name(kind: str, name: object, available: Iterable[Any], todo: str = "") -> str:
    """Message for a name that does not exist: what does, and the nearest match."""
    available = [str(a) for a in available]
    close = difflib.get_close_matches(str(name), available, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    todo = f" {todo}" if todo else ""
    return f"{kind} {name!r} not found; available: {_some(available, 30)}.{hint}{todo}"


def check_mudata(mdata: object, argument: str = "mdata", *, copy: bool = False) -> MuData:
    """Return `mdata` if it is a MuData that shares cells (axis 0), not empty, names unique.

    `copy` says whether it is to be copied.

    Raises
    ------
    TypeError
        Not a MuData.
    ValueError
        Features shared instead of cells (``axis=1``), duplicate names, no cells or no modalities;
        matrices on disk, and a view of them or to be copied.
    """
    if isinstance(mdata, AnnData):
        raise TypeError(
            f"{argument}: expected a MuData, found an AnnData. Wrap it: mudata.MuData({{'rna': "
            f"adata, ...}})."
        )
    if not isinstance(mdata, MuData):
        raise TypeError(
            f"{argument}: expected a MuData, found {type(mdata).__name__}. Read a file with "
            "mudata.read_h5mu(path)."
        )
    if mdata.axis != 0:
        raise ValueError(
            f"{argument}: expected a MuData whose modalities share cells (axis=0), found "
            f"axis={mdata.axis}."
        )
    if not mdata.mod:
        raise ValueError(f"{argument}: expected at least one modality, found none.")
    if mdata.n_obs == 0:
        raise ValueError(f"{argument}: expected cells, found none (n_obs = 0).")
    _check_unique(mdata.obs_names, f"{argument}: cell names")
    for name, adata in mdata.mod.items():
        if isinstance(adata, MuData):
            raise TypeError(
                f"{argument}: modality {name!r} is a MuData itself; nested MuData are not "
                "supported."
            )
        if "/" in name:
            raise ValueError(
                f"{argument}: modality name {name!r} holds '/', which HDF5 nests silently. Rename "
                "it."
            )
        _check_unique(adata.obs_names, f"{argument}: cell names of modality {name!r}")
    view = mdata.is_view or any(adata.is_view for adata in mdata.mod.values())
    if (copy or view) and is_on_disk(mdata):
        found = "a view of it" if view else "copy=True"
        raise ValueError(
            f"{argument}: expected all of a MuData on disk, found {found}, which would be read "
            "into memory. Write it to a file of its own and use that: "
            'mdata.copy(filename="other.h5mu").'
        )
    return mdata


def check_in_memory(mdata: MuData, argument: str = "mdata") -> None:
    """Refuse matrices on disk where they would have to be read whole, or changed.

    Raises
    ------
    ValueError
        There are any.
    """
    if is_on_disk(mdata):
        found = f"backed by {str(mdata.filename)!r}" if mdata.isbacked else "on disk"
        raise ValueError(
            f"{argument}: expected data in memory, found it {found}. Read it whole: "
            "mudata.read_h5mu(path), or mudata.read_zarr(path)."
        )


def _check_unique(names: pd.Index, what: str) -> None:
    if not names.is_unique:
        duplicated = names[names.duplicated()].unique()
        raise ValueError(
            f"{what}: expected unique names, found {len(duplicated)} duplicated, "
            f"{_some(duplicated, 3)}. Make them unique (obs_names_make_unique / "
            "var_names_make_unique)."
        )


def is_predicted(name: str, adata: AnnData) -> bool:
    """Whether a modality is a prediction by this package.

    ``mudata.concat`` drops the mark in ``.uns``; the names of modality and features tell it, too.
    """
    if PREDICTED_MARK in adata.uns:
        return True
    return "_from_" in name and all(str(one).startswith(f"{name}:") for one in adata.var_names)


def derived_from(modalities: Mapping[str, AnnData], name: str) -> list[str]:
    """Names of the modalities that one was computed from; empty where it was measured.

    ``mudata.concat`` drops the mark in ``.uns``; the names of the features tell it, too.
    """
    adata = modalities[name]
    mark = adata.uns.get(DERIVED_MARK)
    if isinstance(mark, Mapping):
        return [str(source) for source in np.atleast_1d(mark.get("source", []))]
    start = f"{name}:"
    named = adata.n_vars and all(str(one).startswith(start) for one in adata.var_names)
    if not named or is_predicted(name, adata):
        return []
    plain = [str(one).removeprefix(start) for one in adata.var_names]
    return [
        other for other, a in modalities.items() if other != name and set(plain) <= set(a.var_names)
    ]


def measured_modalities(mdata: MuData) -> list[str]:
    """Names of the modalities that were measured, in order."""
    return [name for name, adata in mdata.mod.items() if not is_predicted(name, adata)]


def check_modalities(mdata: MuData, modalities: Sequence[str] | None) -> list[str]:
    """Return the modalities to use: those named, or all that were measured.

    Raises
    ------
    ValueError
        A name is unknown, repeated, or belongs to a modality that this package predicted; none is
        left.
    """
    measured = measured_modalities(mdata)
    chosen = (
        measured
        if modalities is None
        else [modalities]
        if isinstance(modalities, str)
        else list(modalities)
    )
    for name in chosen:
        if name in mdata.mod and name not in measured:
            raise ValueError(
                f"modality {name!r} was predicted by unitednet_mu and is never trained on; "
                f"measured: {measured}."
            )
        if name not in mdata.mod:
            raise ValueError(unknown_name("modality", name, measured))
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"modalities: expected each name once, found {chosen}.")
    if not chosen:
        raise ValueError("modalities: expected at least one measured modality, found none.")
    return chosen


def per_modality(value: Any, modalities: Sequence[str], argument: str) -> dict[str, Any]:
    """Spread a value, or ``{modality: value}``, over the modalities (None where not named)."""
    if not isinstance(value, Mapping):
        return dict.fromkeys(modalities, value)
    for name in value:
        if name not in modalities:
            raise ValueError(unknown_name(f"{argument}: modality", name, modalities))
    return {name: value.get(name) for name in modalities}


def obs_column(mdata: MuData, key: str, argument: str) -> pd.Series:
    """Column of `mdata.obs`, or of the modalities' own `.obs` where it lacks it, by cell.

    ``"cell_type"`` and ``"rna:cell_type"`` both work. Where modalities hold the column, each cell
    takes the first modality's value that is not missing; two modalities that disagree are an error.
    """
    if not isinstance(key, str):
        raise TypeError(f"{argument}: expected the name of a column, found {type(key).__name__}.")
    if key in mdata.obs:
        return pd.Series(mdata.obs[key])
    modality, _, column = key.partition(":")
    if column and modality in mdata.mod and column in mdata.mod[modality].obs:
        return _over_all_cells(mdata, mdata.mod[modality].obs[column])
    found = [_over_all_cells(mdata, a.obs[key]) for a in mdata.mod.values() if key in a.obs]
    if not found:
        columns = [*mdata.obs.columns, *(c for a in mdata.mod.values() for c in a.obs.columns)]
        raise ValueError(unknown_name(f"{argument}: column", key, dict.fromkeys(columns)))
    if len(found) == 1:
        return found[0]
    merged = found[0].astype(object)
    for other in (column.astype(object) for column in found[1:]):
        both = merged.notna() & other.notna()
        if bool((merged[both].map(level_name) != other[both].map(level_name)).any()):
            raise ValueError(
                f"{argument}: modalities disagree on {key!r} for some cells. Put one column into "
                "mdata.obs."
            )
        merged = merged.copy()
        merged[merged.isna()] = other[merged.isna()]
    if all(isinstance(column.dtype, pd.CategoricalDtype) for column in found):
        levels = dict.fromkeys(level for column in found for level in column.cat.categories)
        merged = merged.astype(pd.CategoricalDtype(list(levels)))
    return merged


def check_random_state(random_state: object) -> int:
    """Return a seed that numpy, torch and scikit-learn all take.

    Raises
    ------
    ValueError
        Not an integer from 0 to 2**32 - 1.
    """
    if isinstance(random_state, Integral) and not isinstance(random_state, bool):
        seed = int(random_state)
        if 0 <= seed < 2**32:
            return seed
    raise ValueError(
        f"random_state: expected an integer from 0 to 2**32 - 1, found {random_state!r}."
    )


def has_obs_column(mdata: MuData, key: str) -> bool:
    """Whether :func:`obs_column` finds a column of that name."""
    modality, _, column = key.partition(":")
    return (
        key in mdata.obs
        or any(key in adata.obs for adata in mdata.mod.values())
        or (modality in mdata.mod and column in mdata.mod[modality].obs)
    )


def _over_all_cells(mdata: MuData, column: pd.Series) -> pd.Series:
    """Spread a modality's column over all cells, missing in others; integers stay integers."""
    if not isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)
    return column.reindex(mdata.obs_names)


def as_names(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return codes (int64, -1 where missing) and the names of the levels in use, as strings.

    Levels keep their categorical order, others are sorted. Missing values beside whole numbers,
    which make them floats, change no name.

    Raises
    ------
    ValueError
        Numbers that are not whole, in a column that is not categorical; values that differ, but not
        as text (``1`` and ``"1"``).
    """
    values = column.astype("category").cat.remove_unused_categories()
    levels = values.cat.categories
    if not isinstance(column.dtype, pd.CategoricalDtype):
        levels = pd.Index(_sorted(levels))
        values = values.cat.reorder_categories(levels)
        check_no_measurements(column.name, levels)
    names = np.asarray([level_name(x) for x in levels], dtype=object)
    if len(set(names)) != len(names):
        raise ValueError(
            f"column {column.name!r}: levels are not distinct as text: {_some(names)}."
        )
    return values.cat.codes.to_numpy(np.int64, copy=True), names


def level_name(value: Any) -> str:
    """Name of a level as text: whole numbers without a decimal point, as floats too."""
    return str(int(value)) if _is_whole(value) else str(value)


def _is_whole(value: Any) -> bool:
    """Whether a value is a whole number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and float(value).is_integer()


def check_no_measurements(name: Any, levels: pd.Index) -> None:
    """Refuse numbers of which every different one would be a level."""
    if all(isinstance(x, Real) for x in levels) and any(
        isinstance(x, (float, np.floating)) and not _is_whole(x) for x in levels
    ):
        shown = ", ".join(str(x) for x in levels[:3])
        raise ValueError(
            f"column {name!r}: expected names or whole numbers, found {len(levels)} different "
            f"numbers [{shown}{', ...' if len(levels) > 3 else ''}]. Bin them (pandas.cut), or "
            "make the column categorical (astype('category')) if each is a name."
        )


def _sorted(levels: Iterable[Any]) -> list[Any]:
    """Sort by value, or as text where values cannot be compared: cells' order changes nothing."""
    levels = list(levels)
    try:
        return sorted(levels)
    except TypeError:
        return sorted(levels, key=str)


def check_labels(codes: np.ndarray, names: np.ndarray, labels_key: str) -> None:
    """Refuse labels that cannot be learned: all missing, or one class only."""
    if not len(names):
        raise ValueError(f"labels_key={labels_key!r}: expected labels, found every value missing.")
    if len(names) == 1:
        raise ValueError(
            f"labels_key={labels_key!r}: expected at least two classes, found one, {names[0]!r}. "
            "Use n_groups to find groups without labels."
        )


def check_shared(codes: np.ndarray, names: np.ndarray, argument: str, key: str) -> None:
    """Refuse a column in which every cell has a value of its own, as identifiers have."""
    n_cells = int((codes >= 0).sum())
    if len(names) == n_cells >= _FEWEST_IDENTIFIERS:
        raise ValueError(
            f"{argument}={key!r}: expected cells that share a value, found {n_cells} different "
            f"values in {n_cells} cells, {_some(names, 3)}, as identifiers have. Name another "
            "column."
        )
