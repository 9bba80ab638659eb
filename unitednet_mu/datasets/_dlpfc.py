"""Visium slices of human dorsolateral prefrontal cortex."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from .._compat import quiet_reading
from .._validate import unknown_name
from ._files import StrPath, as_counts, existing, first_existing, together

_DONORS = {"Br5292": range(151507, 151511), "Br5595": range(151669, 151673)}
_DONORS |= {"Br8100": range(151673, 151677)}
#: Slice and its donor.
_SLICES = {str(number): donor for donor, numbers in _DONORS.items() for number in numbers}
_LAYERS = "barcode_level_layer_map.tsv"
_POSITIONS = ["barcode", "in_tissue", "array_row", "array_col", "y", "x"]
_ORIGIN = (
    "The matrices stand at https://spatial-dlpfc.s3.us-east-2.amazonaws.com/h5/"
    "<slice>_filtered_feature_bc_matrix.h5, positions and layers in the folder 10X of "
    "https://github.com/LieberInstitute/HumanPilot."
)


def dlpfc_visium(path: StrPath, *, slices: Sequence[str | int] | None = None) -> MuData:
    """Read Visium slices of human dorsolateral prefrontal cortex, with their annotated layers.

    Twelve slices of three donors, about 3,500 to 4,800 spots each and 33,538 genes.

    Parameters
    ----------
    path
        The folder ``10X`` of https://github.com/LieberInstitute/HumanPilot (positions and layers),
        with the matrix of each slice put into the slice's folder (from
        ``https://spatial-dlpfc.s3.us-east-2.amazonaws.com/h5/<slice>_filtered_feature_bc_matrix.h5``)::

            barcode_level_layer_map.tsv
            151507/151507_filtered_feature_bc_matrix.h5
            151507/tissue_positions_list.txt
            ...

        Names as Space Ranger gives them, ``filtered_feature_bc_matrix.h5`` and
        ``spatial/tissue_positions_list.csv``, are read too.
    slices
        Which to read, such as ``["151507", "151508"]``; by default all that have a folder.

    Returns
    -------
    MuData with

    ``.mod["rna"].X`` : float32 CSR, spots x genes
        Raw counts of the spots in tissue; spots are named ``<slice>_<barcode>``.
    ``.mod["rna"].var["gene_ids"]`` : str
        Ensembl identifiers; names are symbols, made unique.
    ``.obs["layer"]`` : categorical
        ``L1`` to ``L6`` and ``WM``, missing where the spot was not annotated.
    ``.obs["slice"]``, ``.obs["donor"]`` : categorical
        ``151507`` and so on; ``Br5292``, ``Br5595`` and ``Br8100``.
    ``.obs["array_row"]``, ``.obs["array_col"]`` : int64
        Position in the array of spots.
    ``.obsm["spatial"]``, ``.mod["rna"].obsm["spatial"]`` : float64
        Position in pixels of the slice's full image, spots x 2 (x, y): of all slices, so pass
        ``library_key="slice"`` wherever neighbours are sought.

    Raises
    ------
    FileNotFoundError
        There is no such folder, no slice in it, or a file is missing.
    ValueError
        An unknown slice, or a file of another layout.

    Notes
    -----
    Maynard et al., Nature Neuroscience 24, 425 (2021), doi 10.1038/s41593-020-00787-0.

    UnitedNet's authors add a niche modality (:func:`~unitednet_mu.pp.niche`), and image features
    (of a pretrained network around each spot), which are not among these files.

    The columns of positions and layers are those seen in files of that repository; matrices are
    read by scanpy as of any 10x experiment, and the real ones were not at hand.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.dlpfc_visium("10X", slices=["151507", "151673"])
    >>> un.pp.rna(mdata)
    >>> un.pp.niche(mdata, library_key="slice")
    >>> sorted(mdata.mod), mdata.obs["donor"].cat.categories.tolist()
    (['niche', 'rna'], ['Br5292', 'Br8100'])
    """
    folder = existing(path, _ORIGIN)
    chosen = _chosen(folder, slices)
    layers = _layers(first_existing(folder, [_LAYERS], _ORIGIN))
    read = [_slice(folder / name, name) for name in chosen]
    rna = anndata.concat(read, merge="same")
    obs = rna.obs
    obs["layer"] = pd.Categorical(layers.reindex(rna.obs_names))
    for column in ("slice", "donor"):
        obs[column] = pd.Categorical(obs[column])
    rna.obs = obs[[]]
    mdata = together({"rna": rna}, obs[["slice", "donor", "layer", "array_row", "array_col"]])
    mdata.obsm["spatial"] = rna.obsm["spatial"].copy()
    return mdata


def _chosen(folder: Path, slices: Any) -> list[str]:
    if slices is None:
        found = [name for name in _SLICES if (folder / name).is_dir()]
        if not found:
            raise FileNotFoundError(
                f"{folder}: expected folders named by slice, {', '.join(_SLICES)}, found none. "
                f"{_ORIGIN}"
            )
        return found
    chosen = [str(name) for name in ([slices] if isinstance(slices, str | int) else slices)]
    for name in chosen:
        if name not in _SLICES:
            raise ValueError(unknown_name("slices: slice", name, _SLICES))
        existing(folder / name, _ORIGIN)
    if not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(f"slices: expected each slice once, and one at least, found {chosen}.")
    return chosen


def _layers(file: Path) -> pd.Series[str]:
    table = pd.read_csv(file, sep="\t", header=None, dtype=str)
    if table.shape[1] != 3 or not set(table[1]) & set(_SLICES):
        raise ValueError(
            f"{file.name}: expected three columns without a header (barcode, slice, layer), found "
            f"{table.shape[1]} columns, the first row {table.iloc[0].tolist()}."
        )
    return pd.Series(table[2].to_numpy(), index=table[1] + "_" + table[0])


def _slice(folder: Path, name: str) -> AnnData:
    import scanpy as sc

    stem = "filtered_feature_bc_matrix.h5"
    matrix = first_existing(folder, [f"{name}_{stem}", stem], _ORIGIN)
    lists = [
        f"{place}tissue_positions_list.{end}"
        for place in ("", "spatial/")
        for end in ("txt", "csv")
    ]
    table = pd.read_csv(first_existing(folder, lists, _ORIGIN), header=None)
    if table.shape[1] != len(_POSITIONS):
        raise ValueError(
            f"{folder.name}: positions: expected {len(_POSITIONS)} columns without a header "
            f"(barcode, in tissue, row, column, y, x), found {table.shape[1]}."
        )
    with quiet_reading():
        adata = sc.read_10x_h5(matrix)
    adata.var_names_make_unique()
    places = table.set_axis(_POSITIONS, axis=1).set_index("barcode").reindex(adata.obs_names)
    lost = places["x"].isna()
    if lost.any():
        raise ValueError(
            f"{folder.name}: expected a position for every spot of {matrix.name}, found none for "
            f"{int(lost.sum())} of {adata.n_obs}, the first {adata.obs_names[lost.argmax()]!r}."
        )
    spots = name + "_" + adata.obs_names
    obs = places[["array_row", "array_col"]].astype(np.int64).set_axis(spots)
    counts = as_counts(adata.X, matrix.name)
    made = AnnData(counts, obs=obs.assign(slice=name, donor=_SLICES[name]), var=adata.var)
    made.obsm["spatial"] = places[["x", "y"]].to_numpy(np.float64)
    return made
