"""Antibody counts: centred log-ratio."""

from __future__ import annotations

from typing import Literal

from anndata import AnnData
from mudata import MuData

from .._compat import import_muon, is_sparse
from . import _common


def protein(
    mdata: MuData,
    *,
    mod: str = "adt",
    layer: str | None = None,
    axis: Literal[0, 1] = 0,
    copy: bool = False,
) -> MuData | None:
    """Transform antibody counts by the centred log-ratio.

    Calls :func:`muon.prot.pp.clr` in its default flavour, log(1 + count / g) with g = exp(mean of
    log(1 + count)): the values are 0 or more, and 0 stays 0.

    Parameters
    ----------
    mdata
        MuData with raw counts, dense or sparse, of any integer or float type. A view is made real
        first.
    mod
        Name of the modality.
    layer
        Layer that holds the counts, ``.X`` by default.
    axis
        What g is taken over. 0, muon's default: each antibody over the cells, which evens out
        antibodies of different brightness; a query must then resemble the reference in composition,
        or be prepared together with it. 1: each cell over its antibodies, so that a cell's values
        depend on that cell alone; it removes a cell's overall staining, and with it what is real in
        that.
    copy
        Return a changed copy and leave `mdata` as it is.

    Returns
    -------
    None, or the changed copy with ``copy=True``. In ``mdata[mod]``:

    ``.X`` : float32, cells x antibodies
        The transformed counts, sparse where the counts were sparse.
    ``.layers["counts"]`` : dtype of the counts
        The raw counts, as they were stored.

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        Unknown modality or layer, values that are not raw counts, a modality that was prepared
        before, or another `axis`. `mdata` is left untouched.

    Notes
    -----
    Stoeckius et al., Nature Methods 14, 865 (2017), doi 10.1038/nmeth.4380; the variant with log(1
    + x) throughout is Seurat's.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.pbmc_citeseq()
    >>> un.pp.protein(mdata)
    >>> float(mdata["adt"].X.min())
    0.0
    """
    mdata = _common.start(mdata, mod, copy)
    if axis not in (0, 1):
        raise ValueError(f"axis: expected 0 (over cells) or 1 (over antibodies), found {axis!r}.")
    counts = _common.find_counts(mdata.mod[mod], mod, layer)
    values = _common.as_float(counts)
    if is_sparse(values):  # the formats that muon computes with
        values = values.tocsc() if axis == 0 else values.tocsr()
    work = AnnData(X=values)
    import_muon("prot").pp.clr(work, axis=axis)
    _common.write(mdata, mod, _common.like(work.X, counts), counts=counts)
    return mdata if copy else None
