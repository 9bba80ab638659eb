"""RNA counts: library size, logarithm, highly variable genes."""

from __future__ import annotations

import logging
import warnings
from numbers import Integral

import numpy as np
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from .._compat import is_sparse
from . import _common

logger = logging.getLogger(__name__)


def rna(
    mdata: MuData,
    *,
    mod: str = "rna",
    layer: str | None = None,
    target_sum: float | None = 1e4,
    n_top_genes: int | None = None,
    copy: bool = False,
) -> MuData | None:
    """Normalise RNA counts by library size and take the logarithm.

    Calls :func:`scanpy.pp.normalize_total`, :func:`scanpy.pp.log1p` and, where `n_top_genes` is
    given, :func:`scanpy.pp.highly_variable_genes` (flavour ``"seurat"``) on the result. With the
    default `target_sum` a cell's values depend on that cell alone, so that a reference and a query
    prepared apart agree, as long as both have the same genes then: the library size is the sum of
    those that are there. Choose genes after this step, not before.

    Parameters
    ----------
    mdata
        MuData with raw counts, dense or sparse, of any integer or float type. A view is made real
        first.
    mod
        Name of the modality.
    layer
        Layer that holds the counts, ``.X`` by default.
    target_sum
        Counts per cell after normalisation; None takes the median over cells, which makes the
        values depend on which cells are there.
    n_top_genes
        Keep only this many highly variable genes (a few more or fewer, which is said, where some
        vary alike or not at all); all by default.
    copy
        Return a changed copy and leave `mdata` as it is.

    Returns
    -------
    None, or the changed copy with ``copy=True``. In ``mdata[mod]``:

    ``.X`` : float32, cells x genes
        log(1 + normalised counts), sparse where the counts were sparse.
    ``.layers["counts"]`` : dtype of the counts
        The raw counts, as they were stored.
    ``.uns["log1p"]`` : dict
        Scanpy's note about the logarithm.
    ``.var["highly_variable"]`` : bool
        With `n_top_genes` only; the modality, and `mdata` with it, then holds these genes only.
    ``.var["means"]``, ``.var["dispersions"]``, ``.var["dispersions_norm"]`` : float
        With `n_top_genes` only; scanpy's figures behind the choice.

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        Unknown modality or layer, values that are not raw counts, a modality that was prepared
        before, or impossible settings. `mdata` is left untouched.

    Notes
    -----
    Library-size normalisation as in Wolf et al., Genome Biology 19, 15 (2018), doi
    10.1186/s13059-017-1382-0.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.pbmc_citeseq()
    >>> un.pp.rna(mdata, n_top_genes=300)
    >>> mdata["rna"].layers["counts"].shape
    (1200, 300)
    """
    mdata = _common.start(mdata, mod, copy)
    adata = mdata.mod[mod]
    counts = _common.find_counts(adata, mod, layer)
    _check_settings(target_sum, n_top_genes, adata.n_vars, mod)
    values = _common.as_float(counts)
    # scanpy 1.11 multiplies sparse arrays as if they were dense
    work = AnnData(X=sparse.csr_matrix(values) if is_sparse(values) else values)
    var, keep = _normalise(work, target_sum, n_top_genes, mod)
    _common.write(
        mdata,
        mod,
        _common.like(work.X, counts),
        counts=counts,
        uns={"log1p": {"base": None}},
        var=var,
        keep=keep,
    )
    return mdata if copy else None


def _check_settings(
    target_sum: float | None, n_top_genes: int | None, n_vars: int, mod: str
) -> None:
    if target_sum is not None and not (np.isfinite(target_sum) and target_sum > 0):
        raise ValueError(f"target_sum: expected a positive number or None, found {target_sum!r}.")
    whole = isinstance(n_top_genes, Integral) and not isinstance(n_top_genes, bool)
    if n_top_genes is not None and not (whole and 1 <= n_top_genes <= n_vars):
        raise ValueError(
            f"n_top_genes: expected a whole number from 1 to {n_vars}, the number of genes in "
            f"{mod!r}, found {n_top_genes!r}."
        )


def _normalise(
    work: AnnData, target_sum: float | None, n_top_genes: int | None, mod: str
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    import scanpy as sc

    empty = int((np.asarray(work.X.sum(axis=1)).ravel() == 0).sum())
    if empty:
        logger.warning("modality %r: %d cells have no counts; their values stay 0.", mod, empty)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Some cells have zero counts")
        warnings.simplefilter("ignore", RuntimeWarning)  # division by the mean of unseen genes
        sc.pp.normalize_total(work, target_sum=target_sum)
        sc.pp.log1p(work)
        if n_top_genes is None:
            return {}, None
        table = sc.pp.highly_variable_genes(work, n_top_genes=n_top_genes, inplace=False)
    names = ("highly_variable", "means", "dispersions", "dispersions_norm")
    columns = {name: table[name].to_numpy() for name in names}
    n_kept = int(columns["highly_variable"].sum())
    if n_kept != n_top_genes:
        logger.warning(
            "modality %r: %d highly variable genes where %d were asked for, as some vary alike or "
            "not at all.",
            mod,
            n_kept,
            n_top_genes,
        )
    return columns, columns["highly_variable"].astype(bool)
