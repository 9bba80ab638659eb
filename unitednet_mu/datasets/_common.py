"""What the simulators share."""

from __future__ import annotations

from numbers import Integral

import numpy as np
import pandas as pd


def check_not_negative(**numbers: float) -> None:
    """Refuse a number that is below 0, infinite or NaN."""
    for name, number in numbers.items():
        if not (np.isfinite(number) and number >= 0):
            raise ValueError(f"{name}: expected a number of 0 or more, found {number!r}.")


def check_at_least(least: int, **numbers: int) -> None:
    """Refuse a number that is no integer, or below `least`."""
    for name, number in numbers.items():
        whole = isinstance(number, Integral) and not isinstance(number, bool)
        if not (whole and number >= least):
            raise ValueError(f"{name}: expected an integer of at least {least}, found {number!r}.")


def categories(stem: str, codes: np.ndarray, n: int) -> pd.Categorical[str]:
    """Categories ``<stem>0`` and so on, `n` of them, by their codes."""
    return pd.Categorical.from_codes(codes, categories=pd.Index([f"{stem}{i}" for i in range(n)]))
