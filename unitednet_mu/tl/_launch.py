"""Start, or join, the processes that train one network together: Lightning Fabric does it."""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from .._ranks import Ranks

_STRATEGIES = ("auto", "ddp")


def join_processes(
    device: torch.device, devices: Any, num_nodes: Any, strategy: Any
) -> tuple[Ranks, torch.device]:
    """Return this process among those asked for, and the device that it trains on.

    Fabric starts the processes or finds that ``torchrun`` or SLURM has, and says which device is
    whose. The loop is the same as for one process (`_ranks`): its steps run parts of the network by
    turns, which a network wrapped whole would not allow.

    Raises
    ------
    ImportError
        Lightning Fabric is not installed.
    ValueError
        Not numbers of devices and nodes, or such as cannot be had; an unknown strategy.
    """
    n_devices = _number("devices", devices, auto=_all_devices(device))
    n_nodes = _number("num_nodes", num_nodes, auto=None)
    if isinstance(strategy, str) and strategy not in _STRATEGIES:
        raise ValueError(
            f"strategy: expected one of {list(_STRATEGIES)} or a DDPStrategy of Lightning Fabric, "
            f"found {strategy!r}: every process has the whole network, its cells are shared."
        )
    if n_devices * n_nodes == 1:
        return Ranks(), device
    _check_device(device, n_devices)
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise ImportError(
            f"devices={devices!r}, num_nodes={num_nodes!r}: several processes need Lightning "
            "Fabric; pip install lightning-fabric."
        ) from error
    fabric = Fabric(
        accelerator=device.type,
        devices=n_devices,
        num_nodes=n_nodes,
        strategy="ddp" if strategy == "auto" else strategy,
    )
    theirs = dist.is_initialized()
    fabric.launch()
    if not theirs:
        atexit.register(_part)
    return Ranks(fabric.global_rank, fabric.world_size), fabric.device


def _part() -> None:
    """End what the processes send by; Fabric does so for GPUs only.

    A thread of gloo may hold a tensor of the last message, and one that drops it while the
    interpreter ends aborts the process.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def _number(name: str, value: Any, auto: int | None) -> int:
    if value == "auto" and auto is not None:
        return auto
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 1:
        also = " or 'auto'" if auto is not None else ""
        raise ValueError(f"{name}: expected an integer >= 1{also}, found {value!r}.")
    return int(value)


def _all_devices(device: torch.device) -> int:
    """As many as there are processes on this machine already, else GPUs; one CPU."""
    started = os.environ.get("LOCAL_WORLD_SIZE", "")
    if started.isdecimal():
        return int(started)
    return torch.cuda.device_count() if device.type == "cuda" and device.index is None else 1


def _check_device(device: torch.device, n_devices: int) -> None:
    if device.type not in ("cpu", "cuda") or device.index is not None:
        raise ValueError(
            f"devices={n_devices}: expected device 'cpu' or 'cuda' for several processes, found "
            f"{str(device)!r}."
        )
    n_here = torch.cuda.device_count() if device.type == "cuda" else n_devices
    if n_devices > n_here:
        raise ValueError(f"devices={n_devices}: expected at most the {n_here} GPUs that there are.")
    if (hasattr(sys, "ps1") or "ipykernel" in sys.modules) and "LOCAL_RANK" not in os.environ:
        raise ValueError(
            f"devices={n_devices}: several processes run a script, not a notebook or a prompt. "
            "Save the call as a script and run it with python or torchrun; the documentation has a "
            "page about it, 'From a laptop to a cluster'."
        )
