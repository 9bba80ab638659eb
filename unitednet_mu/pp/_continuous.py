"""Values that are continuous already: checked, kept as they are."""

from __future__ import annotations

from mudata import MuData

from . import _common


def continuous(mdata: MuData, *, mod: str, copy: bool = False) -> MuData | None:
    """Check that a modality's values can be used as they are, and leave them so.

    For electrophysiology, morphology, image features, spatial niches, or whatever was prepared
    elsewhere. Features may differ in scale: the model standardises each one.

    Parameters
    ----------
    mdata
        MuData with the modality.
    mod
        Name of the modality.
    copy
        Return a copy.

    Returns
    -------
    None, or a copy with ``copy=True``. Nothing is written.

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        Unknown or empty modality, or NaN or infinite values (the message says how many, and where
        the first one stands).

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_vars={"rna": 30, "ephys": 12})
    >>> un.pp.continuous(mdata, mod="ephys")
    """
    mdata = _common.start(mdata, mod, copy)
    adata = mdata.mod[mod]
    _common.check_filled(adata, mod, adata.X)
    _common.check_finite(adata, mod, adata.X)
    return mdata if copy else None
