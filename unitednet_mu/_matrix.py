"""One modality's matrix: where it is read from, views that copy nothing, what values it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from . import _validate
from ._compat import is_sparse
from ._config import Likelihood
from ._stored import OnDisk, ahead, is_stored, on_disk

#: Rows checked at a time, and values of them at most.
_SCAN_ROWS, _SCAN_VALUES = 4096, 2**25
#: Whole numbers that never reach this are levels of something rather than counts.
_FEW_COUNTS = 10


@dataclass(frozen=True)
class ModalitySpec:
    """What a model reads of a modality: where, which features, and what kind of values they are.

    `counts` says whether the values trained on looked like raw counts.
    """

    name: str
    features: tuple[str, ...]
    likelihood: Likelihood
    layer: str | None = None
    use_rep: str | None = None
    counts: bool = False


@dataclass(frozen=True)
class Columns:
    """A matrix seen through a choice of its columns, never copied: rows are taken first."""

    matrix: Any
    columns: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and chosen columns."""
        return self.matrix.shape[0], len(self.columns)

    def __getitem__(self, rows: np.ndarray | slice) -> Any:
        return self.matrix[rows][:, self.columns]


@dataclass(frozen=True)
class Stacked:
    """Two matrices, one below the other, never copied."""

    upper: Any
    lower: Any
    n_upper: int

    def __getitem__(self, rows: np.ndarray) -> Any:
        from_upper = rows < self.n_upper
        if from_upper.all():
            return self.upper[rows]
        if not from_upper.any():
            return self.lower[rows - self.n_upper]
        blocks = [self.upper[rows[from_upper]], self.lower[rows[~from_upper] - self.n_upper]]
        order = np.argsort(np.argsort(~from_upper, kind="stable"), kind="stable")
        if all(is_sparse(block) for block in blocks):
            return sparse.vstack(blocks, format="csr")[order]
        return np.concatenate([to_dense(block) for block in blocks])[order]


@dataclass(frozen=True)
class Shuffled:
    """A matrix some of whose columns are read from other rows, never copied.

    Parameters
    ----------
    matrix
        The matrix itself.
    partner
        Row that each row's chosen columns are read from.
    chosen
        Bool, one per column.
    """

    matrix: Any
    partner: np.ndarray
    chosen: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> Any:
        own, other = self.matrix[rows], self.matrix[self.partner[rows]]
        if not is_sparse(own):
            return np.where(self.chosen, other, own)
        left, taken = (
            sparse.diags_array(mask.astype(own.dtype)) for mask in (~self.chosen, self.chosen)
        )
        return sparse.csr_matrix(own @ left + other @ taken)


@dataclass(frozen=True)
class Source:
    """One modality's matrix, never copied, and the row of each cell in it, -1 where it has none."""

    spec: ModalitySpec
    matrix: Any
    rows: np.ndarray

    def take(self, cells: np.ndarray) -> np.ndarray:
        """Values of `cells` (positions among all cells; each must have the modality), float32."""
        return np.ascontiguousarray(to_dense(self.sparse_or_dense(cells)), dtype=np.float32)

    def sparse_or_dense(self, cells: np.ndarray) -> Any:
        """Like :meth:`take`, as CSR where the matrix is sparse."""
        return summed(self.matrix[self.rows[cells]])

    def compact(self) -> Source:
        """Return the same cells, their values copied to memory, of no others."""
        has = self.rows >= 0
        matrix = self.sparse_or_dense(np.flatnonzero(has)) if has.any() else None
        return replace(self, matrix=matrix, rows=np.where(has, has.cumsum() - 1, -1))


def summed(block: Any) -> Any:
    """Return rows whose values stand in one piece each: a sparse matrix may store one in parts."""
    if not is_sparse(block) or block.has_canonical_format:
        return block
    block = block.copy()
    block.sum_duplicates()
    return block


def row_bytes(matrix: Any) -> float:
    """Bytes that a row of a matrix, or of what it is a view of, takes to be read from disk."""
    if isinstance(matrix, OnDisk):
        return matrix.row_bytes
    if isinstance(matrix, Stacked):
        return max(row_bytes(matrix.upper), row_bytes(matrix.lower))
    if isinstance(matrix, Shuffled):
        return 2 * row_bytes(matrix.matrix)
    return row_bytes(matrix.matrix) if isinstance(matrix, Columns) else 0


def to_dense(block: Any) -> np.ndarray:
    """Return a block of rows as an array."""
    return np.asarray(block.toarray() if is_sparse(block) else block)


def matrix_of(
    adata: AnnData, name: str, layer: str | None, use_rep: str | None
) -> tuple[Any, pd.Index]:
    """Return the matrix a modality is read from (CSR, 2-D array, on disk) and its features' names.

    Raises
    ------
    ValueError
        Both or an unknown `layer` / `use_rep`, no matrix, a matrix that is not two-dimensional, not
        numeric, or on disk and stored by features.
    """
    if layer is not None and use_rep is not None:
        raise ValueError(
            f"modality {name!r}: expected one of layer and use_rep, found {layer!r} and "
            f"{use_rep!r}."
        )
    if layer is not None:
        if layer not in adata.layers:
            raise ValueError(
                _validate.unknown_name(
                    f"modality {name!r}: layer", layer, filter(None, adata.layers)
                )
            )
        matrix, features = adata.layers[layer], adata.var_names
    elif use_rep is not None:
        if use_rep not in adata.obsm:
            raise ValueError(
                _validate.unknown_name(f"modality {name!r}: use_rep", use_rep, adata.obsm)
            )
        matrix = adata.obsm[use_rep]
        if isinstance(matrix, pd.DataFrame):
            return _readable(matrix.to_numpy(), name), matrix.columns.astype(str)
        matrix = _readable(matrix, name)
        return matrix, pd.Index([f"{use_rep}:{i}" for i in range(matrix.shape[1])])
    else:
        matrix, features = adata.X, adata.var_names
    return _readable(matrix, name), features


def _readable(matrix: Any, name: str) -> Any:
    if matrix is None:
        raise ValueError(
            f"modality {name!r}: expected a matrix in .X, found none. Name a layer or use_rep."
        )
    if is_stored(matrix):
        matrix = on_disk(matrix, name)
    elif is_sparse(matrix):
        matrix = matrix if matrix.format == "csr" else matrix.tocsr()
    else:
        matrix = np.asarray(matrix)
    if matrix.ndim != 2:
        raise ValueError(
            f"modality {name!r}: expected a cells x features matrix, found shape {matrix.shape}."
        )
    if matrix.dtype.kind not in "fiub":
        raise ValueError(f"modality {name!r}: expected numbers, found dtype {matrix.dtype}.")
    return matrix


#: Largest step between numbers of float32, as a share of a feature's range, that does not matter.
_COARSE = 1e-3


@dataclass(frozen=True)
class Scan:
    """What one pass over a modality finds."""

    binary: bool
    counts: bool
    constant: np.ndarray
    coarse: np.ndarray


class Kind:
    """What kind of values the blocks of a matrix hold: only 0 and 1, counts, or neither."""

    def __init__(self) -> None:
        self.binary = self.integer = True
        self.low = self.high = 0.0

    def add(self, block: Any) -> None:
        """Add a block; what a sparse one leaves out is 0."""
        values = block.data if is_sparse(block) else block
        self.binary = self.binary and bool(((values == 0) | (values == 1)).all())
        self.integer = self.integer and (
            values.dtype.kind in "iub" or bool((values == np.rint(values)).all())
        )
        if self.integer and not self.binary:
            self.low = min(self.low, float(values.min(initial=0)))
            self.high = max(self.high, float(values.max(initial=0)))

    @property
    def counts(self) -> bool:
        """Whether the values look like raw counts."""
        return self.integer and not self.binary and self.low >= 0 and self.high >= _FEW_COUNTS


def scan(matrix: Any, features: pd.Index, name: str) -> Scan:
    """Check values in row blocks: finite in float32, and what kind they are.

    Raises
    ------
    ValueError
        NaN or infinite values: how many, and in which features.
    """
    low = np.full(matrix.shape[1], np.inf)
    high = np.full(matrix.shape[1], -np.inf)
    kind = Kind()
    for block in _finite_blocks(matrix, features, name):
        kind.add(block)
        low = np.minimum(low, to_dense(block.min(axis=0)).ravel())
        high = np.maximum(high, to_dense(block.max(axis=0)).ravel())
    step = np.finfo(np.float32).eps * np.maximum(np.abs(low), np.abs(high))
    coarse = (high > low) & (step > _COARSE * (high - low))
    return Scan(kind.binary and bool((high > low).any()), kind.counts, high == low, coarse)


def kind_of(matrix: Any, features: pd.Index, name: str) -> Kind:
    """Check that values are finite, as :func:`scan` does, and say what kind they are."""
    kind = Kind()
    for block in _finite_blocks(matrix, features, name):
        kind.add(block)
    return kind


def _finite_blocks(matrix: Any, features: pd.Index, name: str) -> Iterator[Any]:
    """Blocks of rows; an error where values are not finite."""
    for block in _row_blocks(matrix):
        if not _finite(block):
            _raise_not_finite(matrix, features, name)
        yield block


def _row_blocks(matrix: Any) -> Iterator[Any]:
    """Blocks of consecutive rows; those on disk are read ahead."""
    n_rows, n_columns = matrix.shape
    step = max(1, min(_SCAN_ROWS, _SCAN_VALUES // max(n_columns, 1)))
    blocks = (summed(matrix[start : start + step]) for start in range(0, n_rows, step))
    return ahead(blocks) if row_bytes(matrix) else blocks


def _raise_not_finite(matrix: Any, features: pd.Index, name: str) -> None:
    per_feature = np.zeros(matrix.shape[1], np.int64)
    for block in _row_blocks(matrix):
        with np.errstate(over="ignore"):
            bad = ~np.isfinite(to_dense(block).astype(np.float32, copy=False))
        per_feature += bad.sum(0)
    where = features[per_feature > 0]
    raise ValueError(
        f"modality {name!r}: expected finite values, found {int(per_feature.sum())} NaN or "
        f"infinite (or beyond float32) in {len(where)} features, {_validate._some(where, 5)}. Fill "
        "or drop them; a cell whose whole profile is missing should be left out of that modality: "
        "cells may lack modalities."
    )


def _finite(block: Any) -> bool:
    """Whether all values are finite, also in float32."""
    values = block.data if is_sparse(block) else block
    with np.errstate(over="ignore"):
        return bool(np.isfinite(values.astype(np.float32, copy=False)).all())
