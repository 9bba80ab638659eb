"""MuData (in memory, sparse, views, cells that lack a modality) to aligned mini-batches."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from torch import Tensor

from . import _validate
from ._compat import is_sparse
from ._config import LIKELIHOODS, Likelihood

logger = logging.getLogger(__name__)

_SCAN_ROWS = 4096


@dataclass(frozen=True)
class ModalitySpec:
    """What a model reads of a modality: where, which features, and what kind of values they are."""

    name: str
    features: tuple[str, ...]
    likelihood: Likelihood
    layer: str | None = None
    use_rep: str | None = None


@dataclass
class Batch:
    """A mini-batch: per modality the values of the cells that have it, and where these cells stand.

    Attributes
    ----------
    x
        Per modality float32 (its cells x features) in the user's units, or None where no cell has
        it.
    rows
        Per modality the positions of its cells in the batch.
    observed
        Bool, cells x modalities.
    labels, batches
        int64 per cell, -1 where unknown.
    """

    x: list[Tensor | None]
    rows: list[Tensor]
    observed: Tensor
    labels: Tensor
    batches: Tensor

    def __len__(self) -> int:
        return len(self.observed)


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
        return self.matrix[self.rows[cells]]


def to_dense(block: Any) -> np.ndarray:
    """Return a block of rows as an array."""
    return np.asarray(block.toarray() if is_sparse(block) else block)


@dataclass
class Dataset:
    """Aligned view of the modalities of a MuData; rows follow `obs_names`.

    Attributes
    ----------
    obs_names
        Names of all cells.
    sources
        One per modality of the model.
    labels, batches
        int64 per cell, -1 where unknown.
    """

    obs_names: pd.Index
    sources: list[Source]
    labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    batches: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def __post_init__(self) -> None:
        n = len(self.obs_names)
        self.observed = np.stack([source.rows >= 0 for source in self.sources], 1)
        self.labels = self.labels if len(self.labels) else np.full(n, -1, np.int64)
        self.batches = self.batches if len(self.batches) else np.full(n, -1, np.int64)

    def __len__(self) -> int:
        return len(self.obs_names)

    @property
    def canonical(self) -> np.ndarray:
        """Cells that have any modality, by name, so that the order in the file changes nothing."""
        order = np.argsort(self.obs_names.to_numpy().astype(str), kind="stable")
        return order[self.observed[order].any(1)]

    def batch(self, cells: np.ndarray, device: torch.device) -> Batch:
        """Mini-batch of `cells` (positions)."""
        x: list[Tensor | None] = []
        rows: list[Tensor] = []
        for m, source in enumerate(self.sources):
            where = np.flatnonzero(self.observed[cells, m])
            rows.append(torch.from_numpy(where).to(device))
            x.append(torch.from_numpy(source.take(cells[where])).to(device) if len(where) else None)
        return Batch(
            x,
            rows,
            torch.from_numpy(self.observed[cells]).to(device),
            torch.from_numpy(self.labels[cells]).to(device),
            torch.from_numpy(self.batches[cells]).to(device),
        )

    def batches_of(
        self, cells: np.ndarray, size: int, device: torch.device
    ) -> Iterator[tuple[np.ndarray, Batch]]:
        """Consecutive mini-batches of at most `size` cells, with their positions."""
        for start in range(0, len(cells), size):
            chunk = cells[start : start + size]
            yield chunk, self.batch(chunk, device)


def matrix_of(
    adata: AnnData, name: str, layer: str | None, use_rep: str | None
) -> tuple[Any, pd.Index]:
    """Return the matrix a modality is read from (CSR or 2-D array) and the names of its features.

    Raises
    ------
    ValueError
        Both or an unknown `layer` / `use_rep`, no matrix, a matrix that is not two-dimensional or
        not numeric.
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
    if hasattr(matrix, "to_memory"):  # a backed sparse matrix: read as sparse
        matrix = matrix.to_memory()
    if is_sparse(matrix):
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


@dataclass(frozen=True)
class Scan:
    """What one pass over a modality finds."""

    binary: bool
    counts: bool
    constant: np.ndarray


def scan(matrix: Any, features: pd.Index, name: str) -> Scan:
    """Check values in row blocks: finite in float32, and what kind they are.

    Raises
    ------
    ValueError
        NaN or infinite values: how many, and in which features.
    """
    low = np.full(matrix.shape[1], np.inf)
    high = np.full(matrix.shape[1], -np.inf)
    binary = integer = True
    for start in range(0, matrix.shape[0], _SCAN_ROWS):
        block = matrix[start : start + _SCAN_ROWS]
        values = block.data if is_sparse(block) else block
        if not _finite(block):
            _raise_not_finite(matrix, features, name)
        binary = binary and bool(((values == 0) | (values == 1)).all())
        integer = integer and (
            values.dtype.kind in "iub" or bool((values == np.rint(values)).all())
        )
        low = np.minimum(low, to_dense(block.min(axis=0)).ravel())
        high = np.maximum(high, to_dense(block.max(axis=0)).ravel())
    counts = integer and not binary and bool(low.min() >= 0) and bool(high.max() >= 10)
    return Scan(binary and bool((high > low).any()), counts, high == low)


def _raise_not_finite(matrix: Any, features: pd.Index, name: str) -> None:
    per_feature = np.zeros(matrix.shape[1], np.int64)
    for start in range(0, matrix.shape[0], _SCAN_ROWS):
        block = matrix[start : start + _SCAN_ROWS]
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


def check_finite(data: Dataset) -> None:
    """Refuse NaN and infinite values, as :func:`scan` does, in what a model is about to read."""
    for source in data.sources:
        if source.matrix is None:
            continue
        for start in range(0, source.matrix.shape[0], _SCAN_ROWS):
            if not _finite(source.matrix[start : start + _SCAN_ROWS]):
                _raise_not_finite(source.matrix, pd.Index(source.spec.features), source.spec.name)


def _finite(block: Any) -> bool:
    """Whether all values are finite, also in float32."""
    values = block.data if is_sparse(block) else block
    with np.errstate(over="ignore"):
        return bool(np.isfinite(values.astype(np.float32, copy=False)).all())


def describe_modality(
    mdata: MuData,
    name: str,
    layer: str | None,
    use_rep: str | None,
    likelihood: Likelihood | Literal["auto"] | None,
) -> ModalitySpec:
    """Check one modality's values before training and say what kind they are.

    Warns
    -----
    UserWarning
        Raw counts (names the `pp` function to call), or constant features.
    """
    adata = mdata.mod[name]
    matrix, features = matrix_of(adata, name, layer, use_rep)
    if 0 in matrix.shape:
        raise ValueError(
            f"modality {name!r}: expected cells and features, found shape {matrix.shape}."
        )
    _validate._check_unique(pd.Index(features), f"feature names of modality {name!r}")
    found = scan(matrix, pd.Index(features), name)
    if found.constant.all():
        raise ValueError(
            f"modality {name!r}: expected features that vary, found every one of them constant."
        )
    if found.constant.any():
        warnings.warn(
            f"modality {name!r}: {int(found.constant.sum())} constant features carry no "
            f"information, {_validate._some(np.asarray(features)[found.constant], 3)}; consider "
            "dropping them.",
            UserWarning,
            stacklevel=4,
        )
    if likelihood not in (None, "auto", *LIKELIHOODS):
        raise ValueError(_validate.unknown_name("likelihood", likelihood, ("auto", *LIKELIHOODS)))
    if likelihood == "binary" and not found.binary:
        raise ValueError(
            f"modality {name!r}: likelihood='binary' expects values 0 and 1 only. Use pp.atac to "
            "binarise."
        )
    if found.counts and likelihood in (None, "auto"):
        warnings.warn(
            f"modality {name!r} looks like raw counts. Prepare it first with unitednet_mu.pp "
            "(pp.rna, pp.protein, pp.atac or pp.prepare), or pass likelihood='gaussian' to train "
            "on the values as they are.",
            UserWarning,
            stacklevel=4,
        )
    kind: Likelihood = "binary" if found.binary else "gaussian"
    if likelihood is not None and likelihood != "auto":
        kind = likelihood
    return ModalitySpec(name, tuple(str(f) for f in features), kind, layer, use_rep)


def open_dataset(mdata: MuData, specs: Sequence[ModalitySpec], *, partial: bool = False) -> Dataset:
    """Align the modalities of `mdata` to a model's features by name.

    Parameters
    ----------
    partial
        Whether `mdata` may lack modalities of the model entirely (they count as unobserved in every
        cell).

    Raises
    ------
    ValueError
        A modality or features of it are missing; no cell has any modality.
    """
    sources = []
    for spec in specs:
        if spec.name in mdata.mod:
            sources.append(_open_source(mdata, spec))
        elif partial:
            sources.append(Source(spec, None, np.full(mdata.n_obs, -1, np.int64)))
        else:
            raise ValueError(
                _validate.unknown_name("modality", spec.name, _validate.measured_modalities(mdata))
            )
    data = Dataset(mdata.obs_names, sources)
    if not data.observed.any():
        raise ValueError(
            f"expected cells with one of the model's modalities {[s.name for s in specs]}, found "
            f"none among {list(mdata.mod)}."
        )
    return data


def _open_source(mdata: MuData, spec: ModalitySpec) -> Source:
    adata = mdata.mod[spec.name]
    matrix, features = matrix_of(adata, spec.name, spec.layer, spec.use_rep)
    rows = adata.obs_names.get_indexer(mdata.obs_names).astype(np.int64)
    found = pd.Index(features).astype(str)
    if len(found) == len(spec.features) and bool(
        (found == np.asarray(spec.features, dtype=object)).all()
    ):
        return Source(spec, matrix, rows)
    _validate._check_unique(found, f"feature names of modality {spec.name!r}")
    columns = found.get_indexer(list(spec.features))
    missing = [f for f, c in zip(spec.features, columns, strict=True) if c < 0]
    if missing:
        extra = found.difference(list(spec.features))
        raise ValueError(
            f"modality {spec.name!r}: the model expects {len(spec.features)} features, "
            f"{len(missing)} are missing: {_validate._some(missing)}; features here that the model "
            f"does not know: {_validate._some(extra, 5)}. Restrict training to the shared "
            "features, or fit anew."
        )
    if len(found) > len(spec.features):
        logger.info(
            "modality %r: %d features unknown to the model are ignored.",
            spec.name,
            len(found) - len(columns),
        )
    return Source(spec, Columns(matrix, columns), rows)


def concatenate(first: Dataset, second: Dataset) -> Dataset:
    """Put `second` below `first`, both opened with the same modalities; nothing is copied."""
    sources = []
    for a, b in zip(first.sources, second.sources, strict=True):
        n_upper = int(a.rows.max(initial=-1)) + 1
        rows = np.concatenate([a.rows, np.where(b.rows >= 0, b.rows + n_upper, -1)])
        sources.append(Source(a.spec, Stacked(a.matrix, b.matrix, n_upper), rows))
    names = pd.Index(
        [f"0 {name}" for name in first.obs_names] + [f"1 {name}" for name in second.obs_names]
    )
    labels = np.concatenate([first.labels, second.labels])
    return Dataset(names, sources, labels, np.concatenate([first.batches, second.batches]))
