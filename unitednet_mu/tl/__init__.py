"""The five functions that do the work; each reads a MuData and writes its results back into it."""

from ._explain import explain
from ._fit import fit
from ._integrate import integrate
from ._predict_modality import predict_modality
from ._transfer_labels import transfer_labels

__all__ = ["explain", "fit", "integrate", "predict_modality", "transfer_labels"]
