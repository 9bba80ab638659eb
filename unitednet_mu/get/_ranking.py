"""The ranking that both relevance tables share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

#: Columns that tell how far to trust a value, where there are any, and their names in store.
SPREAD = {"sd": "signed_sd", "stability": "top_frequency", "p": "p", "q": "q"}


def ranked(
    names: Mapping[str, NDArray[Any]],
    group: str,
    signed: NDArray[Any],
    absolute: NDArray[Any],
    n_top: int | None,
    spread: Mapping[str, NDArray[Any]],
) -> pd.DataFrame:
    """Return one group's rows, strongest first; entries that are NaN (never observed) are left out.

    Parameters
    ----------
    names
        Columns of names to put first, each of the length of `signed`.
    group
        The group.
    signed, absolute
        Mean relevance with and without sign.
    n_top
        Number of rows to keep, `None` for all.
    spread
        Columns to put last.
    """
    known = np.flatnonzero(~(np.isnan(signed) | np.isnan(absolute)))
    order = known[np.argsort(-absolute[known], kind="stable")][:n_top]
    value = signed[order]
    return pd.DataFrame(
        {
            **{column: texts[order] for column, texts in names.items()},
            "group": np.full(len(order), group, dtype=object),
            "value": value,
            "absolute": absolute[order],
            "sign": np.sign(value).astype(np.int8),
            "rank": np.arange(1, len(order) + 1),
            **{column: numbers[order] for column, numbers in spread.items()},
        }
    )
