"""Peak counts: TF-IDF or open/closed."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from .._compat import import_muon
from . import _common


def atac(
    mdata: MuData,
    *,
    mod: str = "atac",
    layer: str | None = None,
    method: Literal["tfidf", "binarise"] = "tfidf",
    scale_factor: float = 1e4,
    copy: bool = False,
) -> MuData | None:
    """Prepare peak counts by TF-IDF, or reduce them to open and closed.

    Calls :func:`muon.atac.pp.tfidf` (logarithm of both factors) or :func:`muon.atac.pp.binarize`.

    Parameters
    ----------
    mdata
        MuData with raw counts, dense or sparse, of any integer or float type. A view is made real
        first.
    mod
        Name of the modality.
    layer
        Layer that holds the counts, ``.X`` by default.
    method
        ``"tfidf"``: log(1 + `scale_factor` x share of the cell's counts) x log(1 + cells / the
        peak's counts), continuous. The second factor is taken over all cells of `mdata`: prepare
        reference and query together. ``"binarise"``: 1 where there is a count, 0 elsewhere, which
        the network reconstructs as a probability.
    scale_factor
        Counts per cell after normalisation, for ``"tfidf"``.
    copy
        Return a changed copy and leave `mdata` as it is.

    Returns
    -------
    None, or the changed copy with ``copy=True``. In ``mdata[mod]``:

    ``.X`` : float32, cells x peaks
        The prepared values; sparse (CSR, or the format of the counts) even where the counts were
        dense.
    ``.layers["counts"]`` : dtype of the counts
        The raw counts, as they were stored.

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        Unknown modality, layer or method, values that are not raw counts, or a modality that was
        prepared before. `mdata` is left untouched.

    Notes
    -----
    TF-IDF for chromatin accessibility: Cusanovich et al., Science 348, 910 (2015), doi
    10.1126/science.aab1601.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_vars={"atac": 50}, values="counts")
    >>> un.pp.atac(mdata, method="binarise")
    >>> sorted(set(mdata["atac"].X.data.tolist()))
    [1.0]
    """
    mdata = _common.start(mdata, mod, copy)
    if method not in ("tfidf", "binarise"):
        raise ValueError(f"method: expected 'tfidf' or 'binarise', found {method!r}.")
    if not (np.isfinite(scale_factor) and scale_factor > 0):
        raise ValueError(f"scale_factor: expected a positive number, found {scale_factor!r}.")
    counts = _common.find_counts(mdata.mod[mod], mod, layer)
    values = _transform(sparse.csr_matrix(_common.as_float(counts)), method, scale_factor)
    _common.write(mdata, mod, _common.like(values, counts), counts=counts)
    return mdata if copy else None


def _transform(values: Any, method: str, scale_factor: float) -> Any:
    work = AnnData(X=values)
    peaks = import_muon("atac").pp
    if method == "binarise":
        peaks.binarize(work)
        return work.X
    with np.errstate(divide="ignore"):  # empty cells and unseen peaks hold no stored value to spoil
        result = peaks.tfidf(work, scale_factor=scale_factor, inplace=False)
    return result.astype(np.float32)
