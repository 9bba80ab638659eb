"""DBiT-seq: RNA and protein of the same pixels of a mouse embryo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from ._files import StrPath, as_counts, existing, together

_ORIGIN = (
    "the archive GSE137986_RAW.tar stands under GEO accession GSE137986 "
    "(https://www.ncbi.nlm.nih.gov/geo/query/acc.cgi?acc=GSE137986)."
)


def dbitseq(path: StrPath, protein_path: StrPath) -> MuData:
    """Read a DBiT-seq section of a mouse embryo: RNA and protein of the same pixels.

    Parameters
    ----------
    path
        Table of RNA counts, of ``GSE137986_RAW.tar`` of GEO accession GSE137986, packed or not:
        ``GSM4189613_0702cL.tsv.gz`` is the section at 50 µm.
    protein_path
        Table of protein counts of the same section: ``GSM4202307_0702aL.tsv.gz``. (``cL`` is RNA,
        ``aL`` protein; ``0713`` is the section at 25 µm, ``0719`` the one at 10 µm.)

    Returns
    -------
    MuData; a pixel that one of the tables lacks lacks that modality, and

    ``.mod["rna"].X``, ``.mod["protein"].X`` : float32 CSR, pixels x features
        Raw counts.
    ``.obs["array_row"]``, ``.obs["array_col"]`` : float64
        Position in the grid: of the pixel ``"10x35"`` column 10 and row 35.
    ``.obsm["spatial"]``, ``.mod["rna"].obsm["spatial"]``, ``.mod["protein"].obsm["spatial"]`` : \
float64
        Column and row, pixels x 2, in steps of the grid (rows count downwards).

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The table is of another layout: pixels that are not named like ``10x35``, repeated pixels,
        values that are no counts; or the tables share no pixel.

    Notes
    -----
    Liu et al., Cell 183, 1665 (2020), doi 10.1016/j.cell.2020.10.026.

    The tables hold no labels: the tissues that UnitedNet's authors compare with come from their own
    files, which have no public address. Their third modality is :func:`~unitednet_mu.pp.niche`.

    The layout, one row for each pixel, one column for each feature, the first without a name, is
    the one that public code reads; the real download was not at hand. That `array_row` counts
    downwards follows one such code.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.dbitseq("GSM4189613_0702cL.tsv.gz", "GSM4202307_0702aL.tsv.gz")
    >>> un.pp.prepare(mdata)
    >>> un.pp.niche(mdata)
    >>> sorted(mdata.mod)
    ['niche', 'protein', 'rna']
    """
    modalities = {
        mod: _read(existing(file, _ORIGIN))
        for mod, file in (("rna", path), ("protein", protein_path))
    }
    rna, protein = (modalities[mod].obs_names for mod in ("rna", "protein"))
    if rna.intersection(protein).empty:
        raise ValueError(
            f"{Path(path).name} and {Path(protein_path).name}: expected pixels in common, found "
            "none. Take the tables of one section."
        )
    places = pd.concat([adata.obs for adata in modalities.values()])
    places = places[~places.index.duplicated()]
    for adata in modalities.values():
        adata.obsm["spatial"] = adata.obs[["array_col", "array_row"]].to_numpy()
        adata.obs = adata.obs[[]]
    mdata = together(modalities, places)
    mdata.obsm["spatial"] = mdata.obs[["array_col", "array_row"]].to_numpy()
    return mdata


def _read(file: Path) -> AnnData:
    table = pd.read_csv(file, sep="\t", index_col=0)
    pixels = table.index.astype(str)
    places = pixels.to_series().str.extract(r"^([0-9]+)x([0-9]+)$").astype(np.float64)
    if places.isna().to_numpy().any() or not len(table.columns):
        wrong = pixels[np.asarray(places.isna().any(axis=1))][:3].tolist()
        raise ValueError(
            f"{file.name}: expected tab-separated rows named by pixel, like '10x35', and a column "
            f"for each feature, found rows {wrong} and {len(table.columns)} columns."
        )
    if not pixels.is_unique:
        raise ValueError(f"{file.name}: expected each pixel once, found some repeated.")
    numbers = table.apply(pd.to_numeric, errors="coerce").to_numpy(np.float32)
    obs = pd.DataFrame(
        {"array_row": places[1].to_numpy(), "array_col": places[0].to_numpy()}, index=pixels
    )
    var = pd.DataFrame(index=table.columns.astype(str))
    return AnnData(sparse.csr_matrix(as_counts(numbers, file.name)), obs=obs, var=var)
