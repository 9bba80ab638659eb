"""Spatial neighbours: positions, distances between neighbours, weights."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from numpy.typing import NDArray
from scipy import sparse
from sklearn.neighbors import KDTree

from .._compat import is_sparse, warn_user
from .._validate import as_names, check_shared, obs_column, unknown_name

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

#: Relative difference up to which two distances count as equal: positions may be float32.
_TIE = 1e-5
#: Neighbours per spot, as a multiple of those asked for, beyond which positions cannot be right.
_MOST_TIES = 50
#: Share of spots that may lie where another one does, without a slice each.
_SHARED_PLACES = 0.05


def find_positions(mdata: MuData, mod: str, spatial_key: str) -> Floats:
    """Return the position of each cell of a modality, rows of NaN where a cell has none.

    Raises
    ------
    ValueError
        No such positions, not one row of numbers a cell, or some that are infinite or NaN in part;
        cells that `mdata` does not know.
    """
    adata = mdata.mod[mod]
    if spatial_key in adata.obsm:
        where, found = f"mdata[{mod!r}].obsm[{spatial_key!r}]", adata.obsm[spatial_key]
        rows = np.arange(adata.n_obs)
    elif spatial_key in mdata.obsm and spatial_key not in mdata.mod:
        where, found = f"mdata.obsm[{spatial_key!r}]", mdata.obsm[spatial_key]
        rows = mdata.obs_names.get_indexer(adata.obs_names)
        if (rows < 0).any():
            raise ValueError(
                f"modality {mod!r}: {int((rows < 0).sum())} of its {adata.n_obs} cells are not "
                "among mdata.obs_names. Call mdata.update() first."
            )
    else:
        own = [key for key in mdata.obsm if key not in mdata.mod]
        raise ValueError(
            unknown_name(
                f"spatial_key: .obsm of modality {mod!r} and of mdata: key",
                spatial_key,
                dict.fromkeys([*adata.obsm, *own]),
                "Store the positions, cells x 2, there.",
            )
        )
    values = found.to_numpy() if isinstance(found, pd.DataFrame) else np.asarray(found)
    if values.ndim != 2 or values.shape[1] < 2 or values.dtype.kind not in "fiu":
        raise ValueError(
            f"{where}: expected positions as numbers, cells x 2, found shape {values.shape}, dtype "
            f"{values.dtype}."
        )
    positions = values[rows].astype(np.float64)
    wrong = np.asarray(~np.isfinite(positions).all(1) & ~np.isnan(positions).all(1))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"{where}: expected finite positions, or NaN throughout for a cell without one, found "
            f"{positions[first].tolist()} for cell {adata.obs_names[first]!r}."
        )
    return positions


def warn_of_shared_places(positions: Floats, mod: str) -> None:
    """Warn where many spots lie exactly where another does: slices may have been put together."""
    _, counts = np.unique(positions, axis=0, return_counts=True)
    shared = int(counts[counts > 1].sum())
    if shared > _SHARED_PLACES * len(positions):
        warn_user(
            f"modality {mod!r}: {shared} of {len(positions)} spots lie exactly where another one "
            "does. If they are of several slices, name the column of .obs that tells which "
            "(library_key=...), or they count as neighbours."
        )


def find_slices(
    mdata: MuData, mod: str, library_key: str | None, located: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return the number of each cell's slice, 0 throughout without `library_key`.

    Raises
    ------
    ValueError
        The column is unknown, holds identifiers, or is missing for a cell that has a position.
    """
    cells = mdata.mod[mod].obs_names
    if library_key is None:
        return np.zeros(len(cells), np.int64)
    codes, names = as_names(obs_column(mdata, library_key, "library_key").reindex(cells))
    check_shared(codes, names, "library_key", library_key)
    lacking = located & (codes < 0)
    if lacking.any():
        raise ValueError(
            f"library_key={library_key!r}: expected the slice of every cell that has a position, "
            f"found {int(lacking.sum())} missing, the first for cell {cells[np.argmax(lacking)]!r}."
        )
    return codes


def nearest_distances(
    positions: Floats, slices: NDArray[np.int64], n_neighbors: int
) -> sparse.csr_matrix:
    """Distance of each spot to its nearest ones in its own slice, spots x spots, zeros stored.

    Those as near as the last one count too, so that neither the order of spots nor the way a tree
    breaks ties decides. Spots without a position (NaN) have no neighbours and are none.

    Raises
    ------
    ValueError
        So many spots share a place that nearly all are each other's neighbours.
    """
    located = ~np.isnan(positions).any(1)
    rows, columns, distances, n_small = [], [], [], 0
    for number in np.unique(slices[located]):
        spots = np.flatnonzero(located & (slices == number))
        n_small += len(spots) <= n_neighbors
        if len(spots) > 1:
            here, there, apart = _within(positions[spots], min(n_neighbors, len(spots) - 1))
            rows.append(spots[here])
            columns.append(spots[there])
            distances.append(apart)
    if n_small:
        logger.warning(
            "%d slices hold no more than n_neighbors=%d spots; all others in them are neighbours.",
            n_small,
            n_neighbors,
        )
    shape = len(positions), len(positions)
    if not rows:
        return sparse.csr_matrix(shape)
    index = np.concatenate(rows), np.concatenate(columns)
    return sparse.csr_matrix((np.concatenate(distances), index), shape)


def _within(points: Floats, k: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """Pairs of points, and their distance, as near as the first one's `k`-th nearest."""
    tree = KDTree(points)
    reach = tree.query(points, k + 1)[0][:, -1] * (1 + _TIE)  # the point itself is the first
    counts = tree.query_radius(points, reach, count_only=True)
    if counts.mean() > _MOST_TIES * (k + 1):
        raise ValueError(
            f"positions: expected about {k} neighbours for each spot, found {counts.mean():.0f}: "
            f"only {len(np.unique(points, axis=0))} different places for {len(points)} spots. Give "
            "each spot its own position."
        )
    found, apart = tree.query_radius(points, reach, return_distance=True)
    here, there = np.repeat(np.arange(len(points)), counts), np.concatenate(found)
    other = here != there
    return here[other], there[other], np.concatenate(apart)[other]


def stored_distances(adata: AnnData, mod: str, use_graph: str) -> sparse.csr_matrix:
    """Distances of a stored graph, cells x cells, without a cell's distance to itself.

    Raises
    ------
    ValueError
        The graph is unknown, not sparse (what is left out is no neighbour), or holds values that
        are no distances.
    """
    if use_graph not in adata.obsp:
        raise ValueError(
            unknown_name(f"use_graph: .obsp of modality {mod!r}: key", use_graph, adata.obsp)
        )
    found: Any = adata.obsp[use_graph]
    if not is_sparse(found):
        raise ValueError(
            f"use_graph={use_graph!r}: expected a sparse matrix of distances to neighbours, found "
            f"{type(found).__name__}."
        )
    graph = found.tocoo()
    wrong = ~(np.isfinite(graph.data) & (graph.data >= 0))
    if wrong.any():
        raise ValueError(
            f"use_graph={use_graph!r}: expected distances, finite and not below 0, found "
            f"{graph.data[wrong][0]:.6g}."
        )
    other = graph.row != graph.col
    index = graph.row[other], graph.col[other]
    return sparse.csr_matrix((graph.data[other].astype(np.float64), index), graph.shape)


def check_within_slices(
    graph: sparse.csr_matrix, slices: NDArray[np.int64], cells: pd.Index, use_graph: str
) -> None:
    """Refuse a graph with neighbours in different slices."""
    pairs = graph.tocoo()
    across = np.flatnonzero(slices[pairs.row] != slices[pairs.col])
    if len(across):
        first = cells[pairs.row[across[0]]], cells[pairs.col[across[0]]]
        raise ValueError(
            f"use_graph={use_graph!r}: expected neighbours in the same slice, found {len(across)} "
            f"pairs in different ones, the first {first[0]!r} and {first[1]!r}. Compute the graph "
            "slice by slice (library_key of squidpy.gr.spatial_neighbors)."
        )


def inverse_weights(distances: sparse.csr_matrix) -> sparse.csr_matrix:
    """Inverse distances, divided by their sum in each row; every row needs a neighbour.

    A neighbour in the very same place weighs as much as the nearest of the others, all the same
    where there is none.
    """
    starts = distances.indptr[:-1]
    row = np.repeat(np.arange(distances.shape[0]), np.diff(distances.indptr))
    apart = np.where(distances.data > 0, distances.data, np.inf)
    nearest = np.minimum.reduceat(apart, starts)[row]
    share = np.divide(nearest, apart, out=np.ones_like(apart), where=distances.data > 0)
    share /= np.add.reduceat(share, starts)[row]
    return sparse.csr_matrix((share, distances.indices, distances.indptr), distances.shape)
