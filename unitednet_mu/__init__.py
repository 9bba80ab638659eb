"""UnitedNet for :class:`~mudata.MuData`: one multi-task network for multimodal single cells.

The functions stand in submodules, each loaded when it is first used: :mod:`~unitednet_mu.tl` trains
and applies the network, :mod:`~unitednet_mu.pp` prepares modalities, :mod:`~unitednet_mu.pl` plots,
:mod:`~unitednet_mu.get` reads results, :mod:`~unitednet_mu.datasets` gives example data and
:mod:`~unitednet_mu.metrics` scores.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unitednet_mu import datasets, get, metrics, pl, pp, tl

__version__ = "0.1.0"

__all__ = ["__version__", "datasets", "get", "metrics", "pl", "pp", "tl"]

_SUBMODULES = frozenset(__all__) - {"__version__"}


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
