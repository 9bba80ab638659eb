"""Matrices that stay on disk: rows are read in runs, a thread reads ahead, nothing is read whole.

Own code, as the kept loaders do not fit: scDataset draws its own order of cells, which a checkpoint
could not continue, and reads ahead in forked processes, which open HDF5 files do not survive;
annbatch needs Python 3.12, dask and a copy of the data in a format of its own; neither knows cells
that lack a modality.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from mudata import MuData
from scipy import sparse

T = TypeVar("T")

#: Rows are read with those between them where these take fewer bytes: about what a call costs.
_GAP_BYTES = 2**16
#: Bytes read by one call at most.
_RUN_BYTES = 2**23


@dataclass(frozen=True)
class OnDisk:
    """A matrix on disk, row by row.

    Parameters
    ----------
    shape, dtype
        Of the matrix.
    row_bytes
        Bytes that a row takes in memory, as it is stored, on average.
    read
        Rows from a first to before a last one, as CSR or an array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    row_bytes: float
    read: Callable[[int, int], Any]

    @property
    def ndim(self) -> int:
        """Number of dimensions, 2 of a matrix that can be used."""
        return len(self.shape)

    def __getitem__(self, rows: slice | np.ndarray) -> Any:
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.shape[0])
            return self.read(start, stop)
        if not len(rows):
            return self.read(0, 0)
        wanted, place = np.unique(rows, return_inverse=True)
        parts = [self._run(run) for run in self._runs(wanted)]
        if len(parts) == 1:
            block = parts[0]
        elif sparse.issparse(parts[0]):
            block = sparse.vstack(parts, format="csr")
        else:
            block = np.concatenate(parts)
        in_order = len(place) == len(wanted) and bool((np.diff(place) > 0).all())
        return block if in_order else block[place]

    def _run(self, rows: np.ndarray) -> Any:
        first, last = int(rows[0]), int(rows[-1]) + 1
        block = self.read(first, last)
        return block if len(rows) == last - first else block[rows - first]

    def _runs(self, rows: np.ndarray) -> list[np.ndarray]:
        """Cut ascending rows where the gap is wide, and where a run becomes long."""
        gap = max(1, int(_GAP_BYTES / max(self.row_bytes, 1)))
        longest = max(1, int(_RUN_BYTES / max(self.row_bytes, 1)))
        wide = np.diff(rows, prepend=rows[0]) > gap
        number = np.cumsum(wide)
        first = rows[np.searchsorted(number, number)]
        piece = (rows - first) // longest
        cut = wide[1:] | (np.diff(piece) > 0)
        return np.split(rows, np.flatnonzero(cut) + 1)


def is_stored(matrix: Any) -> bool:
    """Whether a matrix is an HDF5 or zarr array, or a sparse one that anndata reads from them."""
    library = type(matrix).__module__.partition(".")[0]
    return library in ("h5py", "zarr") or isinstance(matrix, CSRDataset | CSCDataset)


def on_disk(matrix: Any, name: str) -> OnDisk:
    """Rows of a stored matrix.

    Raises
    ------
    ValueError
        It is stored by columns, so that every row would be read from the whole of it.
    """
    shape = tuple(int(n) for n in matrix.shape)
    if isinstance(matrix, CSCDataset):
        raise ValueError(
            f"modality {name!r}: expected a matrix on disk that is stored by cells (CSR), found "
            "one stored by features (CSC). Open the file in memory (without backed), or write it "
            "once with .X = .X.tocsr()."
        )
    if isinstance(matrix, CSRDataset):
        group = matrix.group
        data, indices, indptr = group["data"], group["indices"], np.asarray(group["indptr"][:])

        def read_sparse(start: int, stop: int) -> sparse.csr_matrix:
            low, high = int(indptr[start]), int(indptr[stop])
            parts = data[low:high], indices[low:high], indptr[start : stop + 1] - low
            return sparse.csr_matrix(parts, shape=(stop - start, shape[1]))

        size = data.dtype.itemsize + indices.dtype.itemsize
        width = int(indptr[-1]) * size / max(shape[0], 1) + indptr.dtype.itemsize
        return OnDisk(shape, data.dtype, width, read_sparse)

    def read_dense(start: int, stop: int) -> np.ndarray:
        return np.asarray(matrix[start:stop])

    width = float(np.prod(shape[1:])) * matrix.dtype.itemsize
    return OnDisk(shape, matrix.dtype, width, read_dense)


def is_on_disk(mdata: MuData) -> bool:
    """Whether any modality, or what it is a view of, has matrices on disk."""
    return any(_has_stored(adata) for adata in mdata.mod.values())


def _has_stored(adata: AnnData | MuData) -> bool:
    if adata.isbacked:
        return True
    parent = adata._adata_ref if adata.is_view else adata
    if not isinstance(parent, AnnData):  # a MuData in a MuData, which is refused elsewhere
        return False
    return parent.isbacked or any(is_stored(x) for x in (parent.X, *parent.layers.values()))


def ahead(blocks: Iterator[T]) -> Iterator[T]:
    """Yield what `blocks` yields, none of it None; a thread makes the next one meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="unitednet_mu-read") as pool:
        waiting = pool.submit(next, blocks, None)
        while (block := waiting.result()) is not None:
            waiting = pool.submit(next, blocks, None)
            yield block
