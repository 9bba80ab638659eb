"""What training left: its history, and what each modality weighs and does."""

from __future__ import annotations

import pandas as pd
from mudata import MuData

from .._keys import DEFAULT_STEM
from ._slots import command, fit_command, stored


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


def modality_effects(mdata: MuData, *, key_added: str = DEFAULT_STEM) -> pd.DataFrame:
    """How much each modality moves each group: what leaving it out does to the group's probability.

    Parameters
    ----------
    mdata
        A MuData integrated by `tl.integrate`.
    key_added
        The stem that the results were stored under.

    Returns
    -------
    pandas.DataFrame
        Groups x modalities, from -1 to 1: mean drop of the group's probability when the modality is
        left out, over the cells identified as the group that have it and another one (NaN where
        there are none). Near 0 where the other modalities tell the group as well. A copy.

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        No effects are stored.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False)
    >>> un.tl.integrate(mdata)
    >>> un.get.modality_effects(mdata).shape
    (2, 2)
    """
    run = command("integrate", "mdata", key_added=key_added)
    found: pd.DataFrame = stored(mdata, "modality_effects", key_added=key_added, run=run)
    return found.copy()
