"""Hypothesis strategies: MuData of the shapes that users have, the odd ones included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from hypothesis import HealthCheck, Phase, given, seed, settings
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
#: What may be odd with the values of a modality, and what may be wrong with them.
ODDITIES = ("none", "none", "constant", "empty", "negative", "large")
FAULTS = ("nan", "inf", "huge", "zeros")
#: Numbers of cells that are odd.
_FEW_CELLS = (1, 2, 9, 10, 11)
NAMES = ("rna", "adt", "a.b", "type", "CD4 counts", "αβ")


def for_each(n: int, number: int, *drawn: st.SearchStrategy[Any], run: Callable[..., None]) -> None:
    """Call `run` on `n` draws, of a seed; no example is kept, shrunk or timed."""

    @seed(number)
    @settings(
        max_examples=n,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.tuples(*drawn))
    def each(values: tuple[Any, ...]) -> None:
        run(*values)

    each()


@st.composite
def mudatas(draw: st.DrawFn, odd: bool = True) -> MuData:
    """Draw a MuData with labels in ``.obs["label"]``; a plain one with ``odd=False``.

    Much may be odd at once, but one thing at most is likely to be wrong: what is refused for two
    reasons tells no more than what is refused for one.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    fault = draw(st.sampled_from(["none"] * 5 + ["values", "cells", "labels", "names"]))
    fault = fault if odd else "none"
    n_obs = draw(st.sampled_from(_FEW_CELLS if fault == "cells" else [24, 30, 40]))
    cells = np.array([f"cell/{k}.{n_obs - k}" for k in range(n_obs)])
    names = draw(
        st.lists(st.sampled_from(NAMES if odd else NAMES[:5]), min_size=2, max_size=3, unique=True)
    )
    names[0] = "a/b" if fault == "names" else names[0]
    groups = rng.integers(3, size=n_obs)
    parts = {name: _modality(draw, rng, name, cells, groups, odd) for name in names}
    if fault == "values":
        of = draw(st.sampled_from(names))
        _spoil(parts[of], draw(st.sampled_from(FAULTS)), rng)
    with quiet_update():
        mdata = MuData(parts)
        of_cell = dict(zip(cells, groups, strict=True))
        mdata.obs["label"] = _labels(draw, mdata, of_cell, odd, wrong=fault == "labels")
        if draw(st.booleans()):
            order = rng.permutation(mdata.n_obs)
            mdata = mdata[order] if draw(st.booleans()) else mdata[order].copy()
    return mdata


@st.composite
def queries(draw: st.DrawFn, cells: MuData) -> MuData:
    """Draw some of `cells` with the values, features or modalities that a query may come with."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    names = list(cells.mod)
    kept = draw(st.sampled_from([names, names, names[:1], names[1:]]))
    n_obs = draw(st.sampled_from([cells.n_obs, cells.n_obs // 2, 2, 1]))
    chosen = rng.permutation(cells.obs_names.to_numpy())[:n_obs]
    parts = {}
    for name in kept:
        of_model = cells.mod[name]
        adata = of_model[of_model.obs_names[of_model.obs_names.isin(chosen)]].copy()
        how = draw(
            st.sampled_from(["as is"] * 4 + ["other order", "more"] * 2 + ["fewer", "twice"])
        )
        adata = _with_other_features(adata, how, rng)
        adata.X = FORMS[draw(st.sampled_from(sorted(FORMS)))](
            adata.X.astype(draw(st.sampled_from(DTYPES[:4])))
        )
        parts[name] = adata
    if draw(st.booleans()):
        of = draw(st.sampled_from(kept))
        _spoil(parts[of], draw(st.sampled_from([*ODDITIES[2:], *FAULTS])), rng)
    with quiet_update():
        mdata = MuData(parts)
        return mdata[rng.permutation(mdata.n_obs)] if draw(st.booleans()) else mdata


def _with_other_features(adata: AnnData, how: str, rng: np.random.Generator) -> AnnData:
    n_vars = adata.n_vars
    if how == "other order":
        return adata[:, rng.permutation(n_vars)].copy()
    if how == "fewer":
        return adata[:, : n_vars - 1].copy()
    if how == "as is":
        return adata
    names = [f"{name}, once more" for name in adata.var_names] if how == "more" else []
    return AnnData(
        np.hstack([adata.X, adata.X]),
        obs=pd.DataFrame(index=adata.obs_names),
        var=pd.DataFrame(index=[*adata.var_names, *(names or adata.var_names)]),
    )


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
    return AnnData(
        form(x[kept]), obs=pd.DataFrame(index=cells[kept]), var=pd.DataFrame(index=features)
    )


def _spoil(adata: AnnData, how: str, rng: np.random.Generator) -> None:
    """Make the values of a modality odd or wrong, in the form that they have."""
    x = adata.X.toarray() if sparse.issparse(adata.X) else np.array(adata.X)
    form = type(adata.X) if sparse.issparse(adata.X) else np.asarray
    adata.X = form(_spoiled(x, how, rng))


def _spoiled(x: np.ndarray, how: str, rng: np.random.Generator) -> np.ndarray:
    x = x.copy()
    if how in ("constant", "empty"):
        if x.shape[1] > 1:  # a modality of nothing else is the fault "zeros"
            x[:, 0] = how == "constant"
    elif how == "zeros":
        x[:] = 0
    elif how in ("nan", "inf", "huge", "large") and x.dtype.kind == "f":
        value = {"nan": np.nan, "inf": np.inf, "huge": 1e300, "large": 1e30}[how]
        with np.errstate(over="ignore"):
            x[rng.integers(len(x)), 0] = np.asarray(value).astype(x.dtype)
    elif how == "negative" and x.dtype.kind in "fi":
        x -= np.abs(x).max()
    return x


def _labels(
    draw: st.DrawFn, mdata: MuData, group: dict[str, int], odd: bool, *, wrong: bool
) -> pd.Series:
    names = {0: "CD4/CD8", 1: "G/M prog. #2", 2: "αβ"}
    kind = draw(st.sampled_from(["str", "unused", *(["missing", "int"] if odd else [])]))
    kind = draw(st.sampled_from(["one", "none"])) if wrong else kind
    values = pd.Series([names[group[c]] for c in mdata.obs_names], index=mdata.obs_names)
    if kind == "unused":
        return values.astype(pd.CategoricalDtype([*names.values(), "never"]))
    if kind == "missing":
        values = values.astype(object)
        values.iloc[: len(values) // 3] = None
    elif kind == "one":
        values[:] = "only"
    elif kind == "none":
        values[:] = None
    elif kind == "int":
        values = values.map({name: k for k, name in names.items()})
    return values
