"""Results as plain tables: what the functions of `tl` stored in a MuData, read back."""

from ._cross_relevance import cross_relevance
from ._model import model
from ._probabilities import probabilities
from ._relevance import relevance
from ._training import history, modality_effects, modality_weights

__all__ = [
    "cross_relevance",
    "history",
    "modality_effects",
    "modality_weights",
    "model",
    "probabilities",
    "relevance",
]
