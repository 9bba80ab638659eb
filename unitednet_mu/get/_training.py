"""What training left: its history and the learned weights of the modalities."""

from __future__ import annotations

import pandas as pd
from mudata import MuData

from .._keys import DEFAULT_STEM
from ._slots import fit_command, stored


def history(mdata: MuData, *, key_added: str = DEFAULT_STEM) -> pd.DataFrame:
    """Losses of every epoch of training.

    Parameters
    ----------
    mdata
        A MuData fitted by `tl.fit`.
    key_added
        The stem that the results were stored under.

    Returns
    -------
    pandas.DataFrame
        One row an epoch. Columns: ``epoch``, ``phase``, ``train_<term>`` and ``val_<term>`` for
        every loss term (NaN where a term was off), ``learning_rate``. A copy: changing it changes
        nothing that is stored.

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        No history is stored.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False)
    >>> un.get.history(mdata)[["epoch", "phase"]].head(3)
       epoch        phase
    0      0        train
    1      1        train
    2      2  refit train
    """
    run = fit_command(key_added)
    found: pd.DataFrame = stored(mdata, "history", key_added=key_added, run=run)
    return found.reset_index(drop=True)  # a new frame; a file returns the row numbers as text


def modality_weights(mdata: MuData, *, key_added: str = DEFAULT_STEM) -> pd.DataFrame:
    """Learned weight of every modality in the fused embedding.

    Parameters
    ----------
    mdata
        A MuData fitted by `tl.fit`.
    key_added
        The stem that the results were stored under.

    Returns
    -------
    pandas.DataFrame
        Modality names as index; column ``weight`` (mean over code dimensions, sums to 1). A copy.

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        No weights are stored.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False)
    >>> weights = un.get.modality_weights(mdata)["weight"]
    >>> weights.index.tolist(), round(float(weights.sum()), 3)
    (['rna', 'adt'], 1.0)
    """
    run = fit_command(key_added)
    found: pd.DataFrame = stored(mdata, "modality_weights", key_added=key_added, run=run)
    return found.copy()
