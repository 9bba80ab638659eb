"""Group and label probabilities as a table."""

from __future__ import annotations

import numpy as np
import pandas as pd
from mudata import MuData

from .._keys import DEFAULT_STEM, Keys
from .._validate import check_mudata
from ._slots import command, stored, texts


def probabilities(
    mdata: MuData, *, key_added: str = DEFAULT_STEM, labels: bool = False
) -> pd.DataFrame:
    """Probabilities of groups, or of transferred labels, with their names.

    Parameters
    ----------
    mdata
        A MuData with results of `tl.integrate`, or of `tl.transfer_labels` if `labels`.
    key_added
        The stem that the results were stored under.
    labels
        Whether to return the probabilities of transferred labels instead of groups.

    Returns
    -------
    pandas.DataFrame
        Cells x groups: cell names as index, group (or label) names as columns, rows sum to 1. A
        copy.

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        The probabilities or their names are not stored, or do not fit each other.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False)
    >>> un.tl.integrate(mdata)
    >>> un.get.probabilities(mdata).columns.tolist()
    ['group0', 'group1']
    """
    keys = Keys(key_added)
    slot = keys.label_probabilities if labels else keys.probabilities
    if labels:
        run = command("transfer_labels", "query", "reference", key_added=key_added)
    else:
        run = command("integrate", "mdata", key_added=key_added)
    obsm = check_mudata(mdata).obsm
    if slot not in obsm:
        raise ValueError(f"no .obsm[{slot!r}] (there: {list(obsm)}); run {run} first.")
    name = "labels" if labels else "groups"
    columns = texts(stored(mdata, name, key_added=key_added, run=run))
    values = np.asarray(obsm[slot])
    if values.ndim != 2 or values.shape[1] != len(columns):
        raise ValueError(
            f".obsm[{slot!r}]: expected one column for each of {columns}, "
            f"found shape {values.shape}; run {run} again."
        )
    return pd.DataFrame(values, index=mdata.obs_names.copy(), columns=columns, copy=True)
