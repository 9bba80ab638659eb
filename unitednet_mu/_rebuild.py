"""From stored tensors and settings back to a network; nothing is trusted, nothing drawn."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ._info import ModelInfo
from ._keys import DEFAULT_STEM, Keys
from ._network import ModalityShape, UnitedNetwork, may_have_direct_path
from ._plain import one_line


def rebuild(
    tensors: Mapping[str, Tensor], text: str
) -> tuple[UnitedNetwork, ModelInfo, dict[str, np.ndarray]]:
    """Network, settings and expected accuracies of a stored model.

    Parameters
    ----------
    tensors
        Those of the network under ``network.``, accuracies under ``accuracy.``.
    text
        JSON of the settings.

    Raises
    ------
    ValueError
        Settings or tensors are not those of a trained model, or do not fit each other.
    """
    info = ModelInfo.from_json(text)
    state = _part(tensors, "network.")
    _check_depth(info, state)
    network = _outline(info)
    _add_direct_paths(network, state)
    _fill(network, state)
    accuracy = _part(tensors, "accuracy.")
    _check_accuracy(accuracy, info)
    own = {k: v.to(torch.float32, copy=True).numpy() for k, v in accuracy.items()}
    return network, info, own


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose name has the prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _check_depth(info: ModelInfo, state: Mapping[str, Tensor]) -> None:
    """Refuse more layers than there are tensors: even without weights, each takes memory."""
    n_layers = len(info.modalities) * (len(info.network.n_hidden) + 1)
    if n_layers > len(state):
        raise ValueError(
            "model: the stored weights do not fit the stored settings (expected tensors for at "
            f"least {n_layers} layers, found {len(state)})."
        )


def _outline(info: ModelInfo) -> UnitedNetwork:
    """Build the network that the settings describe, without memory for its weights."""
    shapes = [ModalityShape(len(spec.features), spec.likelihood) for spec in info.modalities]
    try:
        with torch.device("meta"):  # absurd sizes cost nothing here, and nothing is drawn
            return UnitedNetwork(shapes, len(info.groups), len(info.batches), info.network)
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ValueError(
            f"model: no network can be built from the stored settings ({one_line(error)})."
        ) from error


def _add_direct_paths(network: UnitedNetwork, state: Mapping[str, Tensor]) -> None:
    """Make room for the direct paths that are stored, between modalities that can have one."""
    for name in state:
        found = re.fullmatch(r"direct\.(\d{1,4})_(\d{1,4})\.weight", name, re.ASCII)
        source, target = map(int, found.groups()) if found else (0, 0)
        if source == target or max(source, target) >= len(network.shapes):
            continue  # if it is another name, it fits nothing, and `_fill` says so
        if may_have_direct_path(network.shapes[source], network.shapes[target]):
            with torch.device("meta"):
                network.add_direct_path(source, target)


def _fill(network: UnitedNetwork, state: Mapping[str, Tensor]) -> None:
    """Give a network the stored weights, if they are what it expects."""
    expected = network.state_dict()
    for name in dict.fromkeys([*expected, *state]):
        forms = [_form(part[name]) if name in part else "nothing" for part in (expected, state)]
        if forms[0] != forms[1]:
            raise ValueError(
                "model: the stored weights do not fit the stored settings (size mismatch for "
                f"{reprlib.repr(name)}: expected {forms[0]}, found {forms[1]})."
            )
    # copies: what was read may be mapped from a file that is written again
    own = {name: value.to(expected[name].dtype, copy=True) for name, value in state.items()}
    for name, value in own.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(
                f"model: expected finite weights, found NaN or infinite values in {name!r}."
            )
        if name.endswith(("temperature", ".scale")) and not bool((value > 0).all()):
            raise ValueError(f"model: expected values above 0, found others in {name!r}.")
        if name.endswith("running_var") and not bool((value >= 0).all()):
            raise ValueError(f"model: expected variances, found values below 0 in {name!r}.")
    network.load_state_dict(own, assign=True)


def _form(tensor: Tensor) -> str:
    """Kind of numbers and shape, for comparison."""
    kind = "float" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")
    return f"{kind} {tuple(tensor.shape)}"


def _check_accuracy(accuracy: Mapping[str, Tensor], info: ModelInfo) -> None:
    """Refuse accuracies that are not those of the model's predictions."""
    n_features = {spec.name: len(spec.features) for spec in info.modalities}
    shapes = {
        Keys(DEFAULT_STEM).predicted(sources, target): (4, n_features[target])
        for sources, target in info.predictions()
    }
    for name, value in accuracy.items():
        if name not in shapes:
            raise ValueError(
                f"model: accuracy of {reprlib.repr(name)}: expected a prediction between the "
                f"modalities, {reprlib.repr(list(shapes))}."
            )
        if tuple(value.shape) != shapes[name]:
            raise ValueError(
                f"model: accuracy of {name!r}: expected shape {shapes[name]}, found "
                f"{tuple(value.shape)}."
            )
