"""The bone marrow multiome of the NeurIPS 2021 competition."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData
from mudata import MuData

from ._files import StrPath, as_counts, columns, existing, h5ad_elements, together

_FILE = "GSE194122_openproblems_neurips2021_multiome_BMMC_processed.h5ad"
_ORIGIN = (
    f"{_FILE}.gz stands under GEO accession GSE194122 "
    "(https://www.ncbi.nlm.nih.gov/geo/query/acc.cgi?acc=GSE194122); unpack it with gunzip."
)
#: Kind of feature in the file, and the modality that it becomes.
_KINDS = {"GEX": "rna", "ATAC": "atac"}


def bmmc_multiome(path: StrPath) -> MuData:
    """Read the multiome of human bone marrow mononuclear cells of the NeurIPS 2021 competition.

    RNA and chromatin accessibility of the same nuclei: 69,249 cells of ten donors at four sites in
    13 batches, 13,431 genes and 116,490 peaks. Only counts and annotation are read, not the
    normalised values, embeddings and gene activities that the file holds too.

    Parameters
    ----------
    path
        ``GSE194122_openproblems_neurips2021_multiome_BMMC_processed.h5ad``, of GEO accession
        GSE194122, unpacked (2.9 GB packed).

    Returns
    -------
    MuData, every cell with both modalities, and

    ``.mod["rna"].X``, ``.mod["atac"].X`` : float32 CSR, cells x features
        Raw counts, of the layer ``"counts"``.
    ``.mod["rna"].obs``, ``.mod["atac"].obs`` : DataFrame
        Columns of the file that begin with ``GEX_`` and ``ATAC_``, without that.
    ``.mod["rna"].var``, ``.mod["atac"].var`` : DataFrame
        As in the file, ``feature_types`` and ``gene_id``; names made unique.
    ``.obs`` : DataFrame
        All other columns, ``cell_type`` (22 in all), ``batch`` (``s1d1`` and so on), ``Site`` and
        ``DonorID`` among them.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is still packed, or of another layout: no layer of counts, no column
        ``feature_types`` with ``GEX`` and ``ATAC``, no cell types or batches, values that are no
        counts.

    Notes
    -----
    Luecken et al., *A sandbox for prediction and integration of DNA, RNA, and proteins in single
    cells*, NeurIPS Datasets and Benchmarks (2021).

    UnitedNet's authors keep 4,000 variable genes (``pp.rna(mdata, n_top_genes=4000)``), and 13,634
    variable peaks as 0 or 1: choose peaks before ``pp.atac(mdata, method="binarise")``, as all of
    them are too many to explain.

    The layout is that of files written by anndata 0.7 as public code reads this one, and the test
    reads such a file; the real download was not at hand.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> file = "GSE194122_openproblems_neurips2021_multiome_BMMC_processed.h5ad"
    >>> mdata = un.datasets.bmmc_multiome(file)
    >>> sorted(mdata.mod), {"cell_type", "batch"} <= set(mdata.obs)
    (['atac', 'rna'], True)
    """
    file = existing(path, _ORIGIN)
    counts, obs, var = h5ad_elements(file, "layers/counts", "obs", "var")
    columns(var, ["feature_types"], f"{file.name}: var")
    columns(obs, ["cell_type", "batch"], f"{file.name}: obs")
    kinds = var["feature_types"].astype(str).to_numpy()
    if set(kinds) != set(_KINDS):
        raise ValueError(
            f"{file.name}: expected var['feature_types'] to hold {sorted(_KINDS)}, found "
            f"{sorted(set(kinds))}. Expected {_FILE}."
        )
    counts = as_counts(counts, f"{file.name}: layers['counts']")
    modalities = {}
    for kind, name in _KINDS.items():
        own = [column for column in obs if str(column).startswith(f"{kind}_")]
        adata = AnnData(
            counts[:, kinds == kind],
            obs=obs[own].rename(columns=lambda column, kind=kind: column.removeprefix(f"{kind}_")),
            var=_unique(var[kinds == kind]),
        )
        modalities[name] = adata
        obs = obs.drop(columns=own)
    return together(modalities, obs)


def _unique(var: pd.DataFrame) -> pd.DataFrame:
    """Names made unique before anndata warns of those that are not."""
    from anndata.utils import make_index_unique

    var = var.copy()
    var.index = make_index_unique(pd.Index(var.index.astype(str)))
    return var
