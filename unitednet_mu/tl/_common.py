"""What the five functions share: the model to use, and the device to run on."""

from __future__ import annotations

import torch
from mudata import MuData

from .._model import Model
from ..get import model as stored_model


def resolve_model(model: Model | None, mdata: MuData, key_added: str, device: str) -> Model:
    """Return the model handed in, or the one stored in `mdata`, on the device asked for.

    Raises
    ------
    TypeError
        `model` is not a :class:`Model`.
    ValueError
        None was handed in and none is stored.
    """
    if model is None:
        model = stored_model(mdata, key_added=key_added)
    elif not isinstance(model, Model):
        raise TypeError(
            "model: expected a unitednet_mu model (get.model(mdata) gives it), found "
            f"{type(model).__name__}."
        )
    model.network.to(resolve_device(device))
    return model


def resolve_device(device: str) -> torch.device:
    """``"auto"`` is a GPU where there is one, else the CPU.

    Raises
    ------
    ValueError
        No such device, or it is not available.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device: {device!r} is not available ({error}). Use 'auto' or 'cpu'."
        ) from error
    return found
