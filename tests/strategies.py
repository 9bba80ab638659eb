"""Hypothesis strategies: MuData of the shapes that users have, the odd ones included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from hypothesis import strategies as st
from mudata import MuData
from scipy import sparse

from unitednet_mu._compat import quiet_update

FORMS: dict[str, Any] = {
    "dense": np.asarray,
    "fortran": np.asfortranarray,
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
}
DTYPES = (np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_)
#: What may be wrong or odd with the values of a modality.
ODDITIES = (
    *("none", "none", "none", "constant", "empty", "nan", "inf", "huge", "large", "zeros"),
    "negative",
)
NAMES = ("rna", "adt", "a.b", "type", "CD4 counts", "αβ", "a/b")


@st.composite
def mudatas(draw: st.DrawFn, odd: bool = True) -> MuData:
    """Draw a MuData with labels in ``.obs["label"]``; a plain one with ``odd=False``."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_obs = draw(st.sampled_from([24, 30, 40] + ([1, 2, 9, 10, 11] if odd else [])))
    cells = np.array([f"cell/{k}.{n_obs - k}" for k in range(n_obs)])
    names = draw(
        st.lists(st.sampled_from(NAMES if odd else NAMES[:5]), min_size=2, max_size=3, unique=True)
    )
    groups = rng.integers(3, size=n_obs)
    parts = {name: _modality(draw, rng, name, cells, groups, odd) for name in names}
    with quiet_update():
        mdata = MuData(parts)
        mdata.obs["label"] = _labels(draw, mdata, dict(zip(cells, groups, strict=True)), odd)
        if draw(st.booleans()):
            order = rng.permutation(mdata.n_obs)
            mdata = mdata[order] if draw(st.booleans()) else mdata[order].copy()
    return mdata


def _modality(
    draw: st.DrawFn,
    rng: np.random.Generator,
    name: str,
    cells: np.ndarray,
    groups: np.ndarray,
    odd: bool,
) -> AnnData:
    n_vars = draw(st.sampled_from([3, 6] + ([1] if odd else [])))
    x = 3 * rng.standard_normal((3, n_vars))[groups] + rng.standard_normal((len(cells), n_vars))
    dtype = draw(st.sampled_from(DTYPES))
    if dtype in (np.uint8, np.bool_):
        x = np.abs(x)
    x = (x > 2).astype(dtype) if dtype == np.bool_ else x.astype(dtype)
    x = _spoiled(x, draw(st.sampled_from(ODDITIES)) if odd else "none", rng)
    kept = rng.permutation(len(cells))
    if draw(st.booleans()):
        kept = kept[: max(1, int(0.8 * len(cells)))]
    features = [f"{name[:3].replace('/', '_')}/{k}.x" for k in range(n_vars)]
    form = FORMS[draw(st.sampled_from(sorted(FORMS)))]
    adata = AnnData(
        form(x[kept]), obs=pd.DataFrame(index=cells[kept]), var=pd.DataFrame(index=features)
    )
    return adata


def _spoiled(x: np.ndarray, how: str, rng: np.random.Generator) -> np.ndarray:
    x = x.copy()
    if how == "constant":
        x[:, 0] = 1
    elif how == "empty":
        x[:, -1] = 0
    elif how == "zeros":
        x[:] = 0
    elif how in ("nan", "inf", "huge", "large") and x.dtype.kind == "f":
        value = {"nan": np.nan, "inf": np.inf, "huge": 1e300, "large": 1e30}[how]
        with np.errstate(over="ignore"):
            x[rng.integers(len(x)), 0] = np.asarray(value).astype(x.dtype)
    elif how == "negative" and x.dtype.kind in "fi":
        x -= np.abs(x).max()
    return x


def _labels(draw: st.DrawFn, mdata: MuData, group: dict[str, int], odd: bool) -> pd.Series:
    names = {0: "CD4/CD8", 1: "G/M prog. #2", 2: "αβ"}
    kind = draw(st.sampled_from(["str", "unused", *(["missing", "one", "int"] if odd else [])]))
    values = pd.Series([names[group[c]] for c in mdata.obs_names], index=mdata.obs_names)
    if kind == "unused":
        return values.astype(pd.CategoricalDtype([*names.values(), "never"]))
    if kind == "missing":
        values = values.astype(object)
        values.iloc[: len(values) // 3] = None
    elif kind == "one":
        values[:] = "only"
    elif kind == "int":
        values = values.map({name: k for k, name in names.items()})
    return values
