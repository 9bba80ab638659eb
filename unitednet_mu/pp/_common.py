"""What the preparations share: finding and checking counts, and writing the result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from .._compat import add_modality, copied, is_sparse, make_real, quiet_update, undo_on_error
from .._matrix import summed
from .._validate import check_in_memory, check_modalities, check_mudata, unknown_name

COUNTS = "counts"
_PART = 1_000_000  # values looked at in one go


def start(mdata: object, mod: str, copy: bool) -> MuData:
    """Check `mdata` and the modality's name; return the object to change, or a copy of it."""
    checked = check_mudata(mdata)
    check_modalities(checked, [mod])
    check_in_memory(checked)
    return copied(checked) if copy else checked


def find_counts(adata: AnnData, mod: str, layer: str | None) -> Any:
    """Return the modality's raw counts, as stored, after checking that they are raw counts.

    Raises
    ------
    ValueError
        The layer is unknown, the modality is empty, it was prepared before, or the values are no
        counts.
    """
    layers = [name for name in adata.layers if name is not None]  # anndata 0.13 lists X as None
    if layer is not None and layer not in layers:
        raise ValueError(unknown_name(f"modality {mod!r}: layer", layer, layers))
    values = adata.X if layer is None else adata.layers[layer]
    check_filled(adata, mod, values)
    if COUNTS in layers and layer != COUNTS and not _same(values, adata.layers[COUNTS]):
        where = ".X" if layer is None else f"layer {layer!r}"
        raise ValueError(
            f"modality {mod!r}: expected raw counts in {where}, found other values beside a layer "
            f"{COUNTS!r}: it was prepared before. Keep it as it is, or pass layer={COUNTS!r} to "
            "prepare it anew from these counts (whose library sizes are of the genes still there)."
        )
    _check_counts(values, mod, layers)
    return values.copy() if adata.is_view else values  # a view's array, copied, is a plain one


def check_filled(adata: AnnData, mod: str, values: Any) -> None:
    """Refuse a modality without values, cells or features."""
    if values is None or 0 in adata.shape:
        found = "no .X" if values is None else f"{adata.n_obs} cells x {adata.n_vars} features"
        raise ValueError(
            f"modality {mod!r}: expected values, found {found}. Drop it: del mdata.mod[{mod!r}]."
        )


def check_finite(adata: AnnData, mod: str, values: Any) -> None:
    """Refuse NaN and inf, saying how many there are and where the first one stands."""
    bad = sum(int((~np.isfinite(part)).sum()) for part in _parts(values))
    if bad:
        first = _first_not_finite(values)
        cell, feature = adata.obs_names[first[0]], adata.var_names[first[1]]
        raise ValueError(
            f"modality {mod!r}: expected finite values, found {bad} NaN or inf, the first at cell "
            f"{cell!r}, feature {feature!r}. Remove these cells or features, or fill the values in."
        )


def as_float(values: Any) -> Any:
    """Return a float32 copy, sparse where `values` is sparse, without stored zeros."""
    if not is_sparse(values):
        return np.array(values, dtype=np.float32)
    result = summed(values).astype(np.float32, copy=True)
    result.eliminate_zeros()
    return result


def like(values: Any, original: Any) -> Any:
    """Return `values` in the sparse type of `original`, as a CSR matrix where that is dense."""
    if not is_sparse(values):
        return values
    return type(original)(values) if is_sparse(original) else sparse.csr_matrix(values)


def write(
    mdata: MuData,
    mod: str,
    x: Any,
    *,
    counts: Any = None,
    uns: dict[str, Any] | None = None,
    var: dict[str, np.ndarray] | None = None,
    keep: np.ndarray | None = None,
) -> None:
    """Store a finished preparation, or leave `mdata` exactly as it was.

    Parameters
    ----------
    mdata
        The MuData to change; made real first where it is a view.
    mod
        The modality.
    x
        New ``.X``.
    counts
        Raw counts for the layer ``"counts"``.
    uns
        Entries for the modality's ``.uns``.
    var
        Columns for the modality's ``.var``.
    keep
        Bool per feature: those to keep; all by default.
    """
    with quiet_update(), undo_on_error(mdata):
        make_real(mdata)
        adata = mdata.mod[mod]
        if counts is not None:
            adata.layers[COUNTS] = counts
        adata.X = x
        for name, value in (uns or {}).items():
            adata.uns[name] = value
        for name, column in (var or {}).items():
            adata.var[name] = column
        if keep is not None and not keep.all():
            adata._init_as_actual(adata[:, keep].copy())
            mdata.update_var()


def write_modality(mdata: MuData, name: str, adata: AnnData) -> None:
    """Add a finished modality, or replace the one of that name; or leave `mdata` as it was."""
    with undo_on_error(mdata):
        make_real(mdata)
        add_modality(mdata, name, adata)


def _check_counts(values: Any, mod: str, layers: list[str]) -> None:
    for part in _parts(values):
        wrong = part[~(np.isfinite(part) & (part >= 0) & (part == np.rint(part)))]
        if wrong.size:
            raise ValueError(
                f"modality {mod!r}: expected raw counts (whole numbers from 0 on), found "
                f"{wrong[0]:.6g}; layers: {layers}. Pass the layer that holds them as layer=; "
                "or, if the values are prepared already, leave the modality out or use "
                "pp.continuous."
            )


def _parts(values: Any) -> Iterator[np.ndarray]:
    """Yield all values, of sparse ones those that are stored, a part at a time."""
    whole = values.data if is_sparse(values) else values
    step = max(1, _PART // (1 if is_sparse(values) else values.shape[1]))
    for begin in range(0, whole.shape[0], step):
        yield np.asarray(whole[begin : begin + step])


def _first_not_finite(values: Any) -> tuple[int, int]:
    """Row and column of the first value, row by row, that is NaN or infinite."""
    if not is_sparse(values):
        for row in range(values.shape[0]):
            bad = np.flatnonzero(~np.isfinite(np.asarray(values[row])))
            if len(bad):
                return row, int(bad[0])
    stored = values.tocoo()
    bad = np.flatnonzero(~np.isfinite(stored.data))
    first = bad[np.lexsort((stored.col[bad], stored.row[bad]))[0]]
    return int(stored.row[first]), int(stored.col[first])


def _same(left: Any, right: Any) -> bool:
    if left is right:
        return True
    if left.shape != right.shape:
        return False
    if is_sparse(left) or is_sparse(right):
        unequal: Any = sparse.csr_matrix(left) != sparse.csr_matrix(right)
        return bool(unequal.nnz == 0)
    return bool(np.array_equal(left, right))
