"""Plots of stored results; each returns its axes, and none needs torch."""

from ._confusion import confusion
from ._cross_relevance import cross_relevance
from ._deletion import deletion
from ._history import history
from ._modality_weights import modality_weights
from ._prediction import prediction
from ._relevance import relevance
from ._stability import stability
from ._transfer import transfer

__all__ = [
    "confusion",
    "cross_relevance",
    "deletion",
    "history",
    "modality_weights",
    "prediction",
    "relevance",
    "stability",
    "transfer",
]
