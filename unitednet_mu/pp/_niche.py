"""The spatial niche: expression of the neighbours of each spot, as a modality of its own."""

from __future__ import annotations

import logging
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from .._compat import is_sparse, warn_user
from .._keys import DERIVED_MARK
from .._matrix import kind_of, matrix_of
from .._validate import derived_from
from . import _common, _spatial

logger = logging.getLogger(__name__)

#: A first ring of neighbours on the hexagonal lattice of spots; other numbers are a choice.
_N_NEIGHBORS = 6
_PROBED_ROWS, _BLOCK_ROWS = 2048, 8192


def niche(
    mdata: MuData,
    *,
    mod: str = "rna",
    layer: str | None = None,
    spatial_key: str = "spatial",
    n_neighbors: int = _N_NEIGHBORS,
    library_key: str | None = None,
    use_graph: str | None = None,
    key_added: str = "niche",
    copy: bool = False,
) -> MuData | None:
    """Add the spatial niche of each spot: what its neighbours express, as a new modality.

    The mean over a spot's nearest neighbours, itself left out, weighted by inverse distance. The
    new modality is trained on like a measured one.

    Parameters
    ----------
    mdata
        MuData with a modality that was prepared (see :func:`rna`). A view is made real first.
    mod
        Name of that modality.
    layer
        Layer to average, ``.X`` by default.
    spatial_key
        Positions in ``mdata[mod].obsm``, or else in ``mdata.obsm``, cells x 2 (or 3), in any unit.
        A cell whose row is NaN has no position: it has no niche and is nobody's neighbour.
    n_neighbors
        Number of nearest spots that count as neighbours; those as far away as the last of them
        count too (6 takes 8 on a square lattice). All other spots where a slice holds fewer.
    library_key
        Column of ``.obs`` with the slice of each spot, as in :mod:`squidpy`: only spots of the same
        slice are neighbours. Needed wherever slices have their coordinates in common.
    use_graph
        Key in ``mdata[mod].obsp`` of a sparse matrix of distances between neighbours to use instead
        of positions: ``"spatial_distances"`` after ``squidpy.gr.spatial_neighbors``, whose rows
        hold the distance (on a grid, the number of the ring) of each neighbour. Edges between
        slices of `library_key` are an error.
    key_added
        Name of the new modality; one that this function made before is replaced.
    copy
        Return a changed copy and leave `mdata` as it is.

    Returns
    -------
    None, or the changed copy with ``copy=True``. Written:

    ``.mod["niche"]`` : AnnData
        Spots x features of `mod`, float32, in the units of `mod`; CSR where `mod` is sparse, unless
        dense takes less memory. Holds the spots of `mod` that have a neighbour; the others lack
        this modality. ``var_names`` are ``niche:<feature>``, plain names stand in
        ``.var["feature"]``; ``.obsm[spatial_key]`` repeats the positions, unless `use_graph` took
        their place; ``.uns["unitednet_derived"]`` names the source and the settings.

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        Unknown modality, layer, positions, column or graph; values, positions or distances that
        cannot be used; neighbours in a graph from different slices; no spot with a neighbour; or a
        name that is taken. `mdata` is left untouched.

    Warns
    -----
    UserWarning
        The values look like raw counts, whose mean follows the neighbours' depth. Without
        `library_key`: spots share their place with others, as those of several slices do.

    Notes
    -----
    The niche modality of Tang et al., Nature Communications 14, 2546 (2023), doi
    10.1038/s41467-023-37477-x; there, two spots are neighbours if either is among the nearest of
    the other, and a spot in the very same place has no weight. Here it weighs as much as the
    nearest other neighbour.

    A spot's niche holds its neighbours' values of `mod`: to judge predictions between the two, hold
    out whole slices or regions, never single spots.

    Examples
    --------
    >>> import numpy as np
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=100)
    >>> mdata.obsm["spatial"] = np.indices((10, 10)).reshape(2, 100).T
    >>> un.pp.niche(mdata, n_neighbors=4)
    >>> around = mdata["rna"].X[[1, 10, 12, 21]].mean(axis=0)
    >>> bool(np.allclose(mdata["niche"].X[11], around, atol=1e-6))
    True
    """
    mdata = _common.start(mdata, mod, copy)
    adata = mdata.mod[mod]
    _check_settings(mdata, mod, n_neighbors, use_graph, key_added)
    matrix, features = matrix_of(adata, mod, layer, None)
    _common.check_filled(adata, mod, matrix)
    if kind_of(matrix, features, mod).counts:
        warn_user(
            f"modality {mod!r} looks like raw counts. Prepare it first, with unitednet_mu.pp.rna "
            "for instance: a mean of counts follows the neighbours' depth."
        )
    distances, positions = _neighbours(mdata, mod, spatial_key, n_neighbors, library_key, use_graph)
    spots = np.flatnonzero(np.diff(distances.indptr))
    _report_missing(adata, mod, spots, key_added)
    weights = _spatial.inverse_weights(distances[spots])
    var = pd.DataFrame(
        {"feature": features.to_numpy(dtype=object)}, index=[f"{key_added}:{f}" for f in features]
    )
    made = AnnData(_mean(weights, matrix), obs=pd.DataFrame(index=adata.obs_names[spots]), var=var)
    if positions is not None:
        made.obsm[spatial_key] = positions[spots]
    made.uns[DERIVED_MARK] = {
        "source": np.asarray([mod], dtype=str),
        "function": "pp.niche",
        "layer": layer or "",
        "spatial_key": "" if use_graph else spatial_key,
        "n_neighbors": 0 if use_graph else int(n_neighbors),
        "library_key": library_key or "",
        "use_graph": use_graph or "",
    }
    _common.write_modality(mdata, key_added, made)
    return mdata if copy else None


def _check_settings(
    mdata: MuData, mod: str, n_neighbors: int, use_graph: str | None, key_added: str
) -> None:
    whole = isinstance(n_neighbors, Integral) and not isinstance(n_neighbors, bool)
    if not whole or n_neighbors < 1:
        raise ValueError(f"n_neighbors: expected a whole number >= 1, found {n_neighbors!r}.")
    if use_graph is not None and n_neighbors != _N_NEIGHBORS:
        raise ValueError(
            f"n_neighbors is for positions, and the graph use_graph={use_graph!r} is given here; "
            "leave one of them out."
        )
    if not isinstance(key_added, str) or not key_added.strip() or "/" in key_added:
        raise ValueError(f"key_added: expected a name without '/', not empty, found {key_added!r}.")
    taken = key_added in mdata.mod and not derived_from(mdata.mod, key_added)
    if taken or key_added == mod:
        raise ValueError(
            f"key_added={key_added!r} is a modality that pp.niche did not make; modalities are "
            f"{list(mdata.mod)}. Choose another name, or drop it: del mdata.mod[{key_added!r}]."
        )
    for slot in ("obsm", "varm"):
        held = getattr(mdata, slot).get(key_added)
        # bool: mudata's note of a modality's cells or features, left behind where it was dropped
        if held is not None and key_added not in mdata.mod and held.dtype != bool:
            raise ValueError(
                f"key_added={key_added!r} is a key of mdata.{slot}, which a modality of that name "
                "overwrites. Choose another name."
            )


def _neighbours(
    mdata: MuData,
    mod: str,
    spatial_key: str,
    n_neighbors: int,
    library_key: str | None,
    use_graph: str | None,
) -> tuple[sparse.csr_matrix, Any]:
    """Distances to neighbours, cells x cells, and positions where they were used."""
    adata = mdata.mod[mod]
    if use_graph is not None:
        graph = _spatial.stored_distances(adata, mod, use_graph)
        linked = np.diff(graph.indptr) > 0
        linked[graph.indices] = True
        slices = _spatial.find_slices(mdata, mod, library_key, linked)
        _spatial.check_within_slices(graph, slices, adata.obs_names, use_graph)
        return graph, None
    positions = _spatial.find_positions(mdata, mod, spatial_key)
    located = np.asarray(~np.isnan(positions).any(1))
    slices = _spatial.find_slices(mdata, mod, library_key, located)
    distances = _spatial.nearest_distances(positions, slices, int(n_neighbors))
    if library_key is None:
        _spatial.warn_of_shared_places(positions[located], mod)
    return distances, positions


def _report_missing(adata: AnnData, mod: str, spots: np.ndarray, key_added: str) -> None:
    if not len(spots):
        raise ValueError(
            f"modality {mod!r}: expected cells with a neighbour in their slice, found none among "
            f"{adata.n_obs}."
        )
    if len(spots) < adata.n_obs:
        logger.warning(
            "modality %r: %d of %d cells have no position or no neighbour; %r leaves them out.",
            mod,
            adata.n_obs - len(spots),
            adata.n_obs,
            key_added,
        )


def _mean(weights: sparse.csr_matrix, values: Any) -> Any:
    """Weighted sums of rows in float32, in the form that takes less memory."""
    weights = weights.astype(np.float32)
    if not is_sparse(values):
        return np.asarray(weights @ np.asarray(values, dtype=np.float32))
    values = values.astype(np.float32, copy=False)
    weights = type(values)(weights)
    n_rows, n_columns = weights.shape[0], values.shape[1]
    probe = weights[np.unique(np.linspace(0, n_rows - 1, _PROBED_ROWS).astype(int))] @ values
    stored = probe.data.itemsize + probe.indices.itemsize
    if probe.nnz * stored < probe.shape[0] * n_columns * probe.data.itemsize:
        result = weights @ values
        result.sort_indices()
        return result
    dense = np.empty((n_rows, n_columns), np.float32)
    for start in range(0, n_rows, _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        dense[rows] = (weights[rows] @ values).toarray()
    return dense
