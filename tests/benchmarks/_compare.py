"""Deep comparison of MuData objects: values, dtypes, names, orders."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from mudata import MuData
from scipy import sparse

_SLOTS = ("obs", "var", "uns", "obsm", "varm", "obsp", "varp", "layers", "obsmap", "varmap")


def fingerprint_of(mdata: MuData) -> dict[str, Any]:
    """Comparable leaves of everything in `mdata`, equal if and only if nothing changed."""
    leaves: dict[str, Any] = {"is_view": mdata.is_view, "modalities": list(mdata.mod)}
    for name, thing in {"": mdata, **mdata.mod}.items():
        for slot in _SLOTS:
            if hasattr(thing, slot):
                _add(leaves, f"{name}.{slot}", getattr(thing, slot))
        if name:
            leaves[f"{name}.is_view"] = thing.is_view
            _add(leaves, f"{name}.X", thing.X)
            if thing.raw is not None:
                _add(leaves, f"{name}.raw", thing.raw.X)
    return leaves


def _add(leaves: dict[str, Any], where: str, value: Any) -> None:
    if isinstance(value, pd.DataFrame):
        _add(leaves, f"{where}.index", value.index)
        leaves[f"{where}.columns"] = list(value.columns)
        for column in value:
            _add(leaves, f"{where}[{column}]", value[column])
    elif isinstance(value, Mapping):
        leaves[where] = [key for key in value if key is not None]
        for key in leaves[where]:
            _add(leaves, f"{where}[{key}]", value[key])
    elif sparse.issparse(value):
        leaves[where] = (type(value).__name__, value.shape)
        for part in ("data", "indices", "indptr"):
            _add(leaves, f"{where}.{part}", getattr(value, part))
    elif isinstance(value, np.ndarray) and value.dtype != object:
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        leaves[where] = (str(value.dtype), value.shape, digest)
    elif isinstance(value, pd.Series | pd.Index) and isinstance(value.dtype, pd.CategoricalDtype):
        categories = value.dtype.categories
        leaves[where] = (value.dtype.ordered, str(categories.dtype), [*map(repr, categories)])
        _add(leaves, f"{where}.codes", np.asarray(pd.Categorical(value).codes))
    elif isinstance(value, pd.Series | pd.Index | np.ndarray):
        leaves[where] = (str(value.dtype), [repr(item) for item in value])
    else:
        leaves[where] = repr(value)
