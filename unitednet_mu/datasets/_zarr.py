"""A zarr store opened without reading its matrices."""

from __future__ import annotations

import os
from typing import Any

from anndata import AnnData
from anndata.io import read_elem, sparse_dataset
from mudata import MuData

from .._compat import made

_READ = ("obs", "var", "obsm", "varm", "obsp", "varp", "uns")


def open_zarr(*, path: str | os.PathLike[str]) -> MuData:
    """Open a zarr store of a MuData; ``.X`` and ``.layers`` stay on disk.

    ``mudata.read_zarr`` reads all into memory, and has no ``backed``. The store is never changed:
    results stand in the object that is returned (see the guide for how to keep them).

    Parameters
    ----------
    path
        Folder written by ``mdata.write_zarr``.

    Returns
    -------
    A MuData that the functions of `tl` read in blocks of cells. All but ``.X`` and ``.layers`` is
    in memory; ``.raw`` is left out. Nothing is written.

    Raises
    ------
    FileNotFoundError
        There is no such store.
    ValueError
        It holds no MuData.

    Examples
    --------
    >>> import tempfile, unitednet_mu as un
    >>> folder = tempfile.TemporaryDirectory()
    >>> un.datasets.simulate_multimodal(n_obs=60).write_zarr(f"{folder.name}/cells.zarr")
    >>> mdata = un.datasets.open_zarr(path=f"{folder.name}/cells.zarr")
    >>> mdata.n_obs, type(mdata["rna"].X).__name__
    (60, 'Array')
    >>> folder.cleanup()
    """
    import zarr

    root: Any = zarr.open_group(os.fspath(path), mode="r")
    if "mod" not in root:
        raise ValueError(
            f"{os.fspath(path)}: expected a MuData, as mdata.write_zarr writes it, found "
            f"{sorted(root)}."
        )
    order = root["mod"].attrs.get("mod-order", [*root["mod"]])
    modalities = {str(name): _modality(root["mod"][name]) for name in order}
    whole = {name: read_elem(root[name]) for name in root if name != "mod"}
    return made(modalities, whole, root.attrs.get("axis", 0))


def _modality(group: Any) -> AnnData:
    layers = {name: _matrix(group["layers"][name]) for name in group.get("layers", ())}
    parts = {name: read_elem(group[name]) for name in _READ if name in group}
    return AnnData(_matrix(group["X"]) if "X" in group else None, layers=layers, **parts)


def _matrix(stored: Any) -> Any:
    kind = str(stored.attrs.get("encoding-type", "array"))
    if kind == "null":  # of a modality that has layers only
        return None
    return sparse_dataset(stored) if kind in ("csr_matrix", "csc_matrix") else stored
