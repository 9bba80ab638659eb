"""An `.obs` column as text categories, wherever it stands."""

from __future__ import annotations

import pandas as pd
from mudata import MuData

from .._validate import check_mudata, check_no_measurements, level_name, obs_column


def text_column(mdata: MuData, name: str, argument: str) -> pd.Series:
    """Return an `.obs` column, of the MuData or of a modality, as text categories in their order.

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        The column does not exist (the message names `argument` and lists the columns that do), or
        holds measurements.
    """
    column = obs_column(check_mudata(mdata), name, argument)
    if not isinstance(column.dtype, pd.CategoricalDtype):
        check_no_measurements(name, pd.Index(column.dropna().unique()))
        column = column.astype(_categories(mdata, name, column))
    return column.cat.rename_categories([level_name(value) for value in column.cat.categories])


def _categories(mdata: MuData, name: str, column: pd.Series) -> pd.CategoricalDtype:
    """Return the order that a modality gives the categories (its colours need it), or sorted."""
    values = set(column.dropna())
    for adata in mdata.mod.values():
        known = adata.obs[name].dtype if name in adata.obs else None
        if isinstance(known, pd.CategoricalDtype) and values <= set(known.categories):
            return known
    return pd.CategoricalDtype(sorted(values, key=str))
