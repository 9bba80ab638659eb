"""What two processes do together; ``python together.py JOB FOLDER`` leaves their results there.

Run by `test_processes.py`, which does the same in one process and compares.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from everything import QUICK
from mudata import MuData

import unitednet_mu as un
from unitednet_mu import _ranks
from unitednet_mu._config import NetworkConfig, TrainingConfig
from unitednet_mu._data import Dataset
from unitednet_mu._network import ModalityShape, UnitedNetwork
from unitednet_mu._open import describe_modality, open_dataset
from unitednet_mu._optimise import Optimisers
from unitednet_mu._ranks import Ranks
from unitednet_mu._setup import set_statistics
from unitednet_mu._tasks import Tasks, Terms
from unitednet_mu.tl._launch import join_processes

Arrays = dict[str, np.ndarray]
CPU = torch.device("cpu")
STILL = {**QUICK["network"], "dropout": 0.0, "input_dropout": 0.0}
PLAIN = {**QUICK["training"], "modality_dropout": 0.0}
#: Steps so small that rounding, which AdamW blows up where a gradient should be 0, shows little.
SLOWLY = {**PLAIN, "max_epochs": 4, "batch_size": 16, "learning_rate": 1e-3}
#: Mini-batches: which cells lack a modality, which cells they are, and what else is so.
CASES: dict[str, dict[str, Any]] = {
    "complete": {"missing": 0.0},
    "missing": {"missing": 0.4},
    "uneven": {"missing": 0.4, "cells": 37},
    "nowhere in one process": {"missing": 0.0, "absent": True},
    "fewer cells than processes need": {"missing": 0.0, "cells": 3},
    "batches": {"missing": 0.4, "n_batches": 2},
    "discriminators": {"missing": 0.0, "discriminators": True},
    "judged in one process": {"missing": 0.0, "absent": True, "discriminators": True},
    "no labels": {"missing": 0.4, "supervised": False},
}


def cells(missing: float = 0.0, n_batches: int = 1) -> MuData:
    """Cells with a continuous, dense and a binary, sparse modality."""
    mdata: MuData = un.datasets.simulate_multimodal(
        n_obs=90,
        n_groups=3,
        n_vars={"rna": 30, "atac": 25, "adt": 12},
        values={"atac": "binary"},
        missing=missing,
        n_batches=n_batches,
        random_state=3,
    )
    return mdata


def _dataset(mdata: MuData, *, absent: bool) -> Dataset:
    names = list(mdata.mod)
    specs = [describe_modality(mdata, name, None, None, None) for name in names]
    data = open_dataset(mdata, specs)
    data.labels[:] = mdata.obs["cell_type"].cat.codes.to_numpy()
    data.labels[::5] = -1
    if "batch" in mdata.obs:
        data.batches[:] = mdata.obs["batch"].astype("category").cat.codes.to_numpy()
    if absent:
        data.sources[1].rows[:32] = -1
        data.__post_init__()
    return data


def gradients(
    ranks: Ranks,
    *,
    missing: float,
    cells_: int = 64,
    n_batches: int = 1,
    absent: bool = False,
    discriminators: bool = False,
    supervised: bool = True,
    device: torch.device = CPU,
) -> Arrays:
    """Terms, gradients and batch statistics of one mini-batch."""
    data = _dataset(cells(missing, n_batches), absent=absent)
    shapes = [ModalityShape(len(s.spec.features), s.spec.likelihood) for s in data.sources]
    torch.manual_seed(0)
    config = NetworkConfig.build({**STILL, "discriminators": discriminators})
    network = UnitedNetwork(shapes, 3, n_batches if n_batches > 1 else 0, config)
    set_statistics(network, data, np.arange(len(data)))
    network.to(device).train()
    settings = TrainingConfig.build(PLAIN)
    class_weights = torch.ones(3, device=device) if supervised else None
    tasks = Tasks(network, settings, class_weights, ranks)
    optimisers = Optimisers(network, settings, 10, ranks)
    for optimiser in filter(None, (optimisers.network, optimisers.discriminators)):
        optimiser.clip = float("inf")
    chosen = np.arange(cells_)
    ((_, batch),) = data.batches_of(chosen, ranks.whole(len(chosen)), device, ranks)
    found: Arrays = {}
    if discriminators:
        terms = tasks.discrimination(batch)
        assert optimisers.discriminators is not None
        means = optimisers.discriminators.backward(tasks.total(terms), _values(terms))
        optimisers.discriminators.move()
        found |= _terms(terms, means) | _gradients(network)
    codes, observed = tasks.codes(batch)
    loss, terms = tasks.label_free(batch, codes, observed)
    groups = tasks.identification(batch, codes, observed)
    terms |= groups
    means = optimisers.network.backward(loss + tasks.total(groups), _values(terms))
    found |= _terms(terms, means)
    found |= {k: v for k, v in _gradients(network).items() if k not in found}
    found |= {f"statistic {name}": value.cpu().numpy() for name, value in network.named_buffers()}
    return found


def _gradients(network: UnitedNetwork) -> Arrays:
    named = network.named_parameters()
    return {
        f"gradient of {k}": p.grad.clone().cpu().numpy() for k, p in named if p.grad is not None
    }


def _values(terms: Terms) -> torch.Tensor:
    return torch.stack([value.detach() for value in terms.values()])


def _terms(terms: Terms, means: torch.Tensor) -> Arrays:
    return {f"term {name}": value.cpu().numpy() for name, value in zip(terms, means, strict=True)}


def fitted(folder: Path, devices: int, **changed: Any) -> Arrays:
    """History, weights and results of a whole fit."""
    mdata = cells(missing=0.2)
    settings = {
        "network": STILL,
        "training": {**PLAIN, "max_epochs": 4, "batch_size": 16},
        "progress": False,
        "devices": devices,
    }
    un.tl.fit(mdata, **(settings | changed))
    un.tl.integrate(mdata)
    model = un.get.model(mdata)
    history = mdata.uns["unitednet"]["history"]
    return {
        **{f"weight {name}": x.numpy() for name, x in model.network.state_dict().items()},
        **{f"history {name}": history[name].to_numpy(float) for name in history.columns[2:]},
        "embedding": mdata.obsm["X_unitednet"],
    }


def job_gradients(folder: Path) -> Arrays:
    """Of all mini-batches."""
    ranks, _ = join_processes(CPU, 2, 1, "auto")
    return {
        f"{name}: {key}": value
        for name, case in CASES.items()
        for key, value in gradients(ranks, **_renamed(case)).items()
    }


def _renamed(case: dict[str, Any]) -> dict[str, Any]:
    return {{"cells": "cells_"}.get(name, name): value for name, value in case.items()}


def job_labels(folder: Path) -> Arrays:
    """A fit with labels."""
    return fitted(folder, 2, labels_key="cell_type", training=SLOWLY)


def job_groups(folder: Path) -> Arrays:
    """A fit without labels, with dropout."""
    network = QUICK["network"]
    return fitted(folder, 2, n_groups=3, network=network, checkpoint_dir=folder / "kept")


def job_resumed(folder: Path) -> Arrays:
    """The same, stopped after its third epoch and gone on with."""
    save = _ranks.Ranks.of_each
    count = iter(range(100))

    def stopping(self: Ranks, value: Any) -> Any:
        if next(count) == 3:
            raise InterruptedError
        return save(self, value)

    _ranks.Ranks.of_each = stopping  # type: ignore[method-assign]
    network = QUICK["network"]
    settings = {"n_groups": 3, "network": network, "checkpoint_dir": folder / "stopped"}
    try:
        fitted(folder, 2, **settings)
    except InterruptedError:
        pass
    else:
        raise RuntimeError("the fit was not stopped")
    _ranks.Ranks.of_each = save  # type: ignore[method-assign]
    return fitted(folder, 2, **settings, resume=True)


def job_refused(folder: Path) -> Arrays:
    """A folder that cannot be used is an error in every process, which none waits for."""
    (folder / "file").touch()
    try:
        fitted(folder, 2, n_groups=3, checkpoint_dir=folder / "file")
    except ValueError as error:
        return {"error": np.array(str(error))}
    return {}


def job_left(folder: Path) -> Arrays:
    """What a process finds at its end: what is registered first runs last."""

    def write() -> None:
        (folder / f"{os.environ['LOCAL_RANK']}.txt").write_text(str(dist.is_initialized()))

    atexit.register(write)
    ranks, _ = join_processes(CPU, 2, 1, "auto")
    again, _ = join_processes(CPU, 2, 1, "auto")
    joined = dist.is_initialized()
    return {"joined": np.array(joined), "sum": np.array(sum(ranks.of_each(again.rank)))}


def job_interrupted(folder: Path) -> Arrays:
    """Ctrl-C reaches one process only."""
    take = _ranks.GradientSum.take
    count = iter(range(10**6))

    def pressing(self: _ranks.GradientSum, values: Any) -> Any:
        if next(count) == 60 and self._ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return take(self, values)

    _ranks.GradientSum.take = pressing  # type: ignore[method-assign]
    training = {**PLAIN, "max_epochs": 200, "batch_size": 16, "refit": False}
    return fitted(folder, 2, labels_key="cell_type", training=training)


JOBS: dict[str, Callable[[Path], Arrays]] = {
    name.removeprefix("job_"): job
    for name, job in list(globals().items())
    if name.startswith("job_")
}

if __name__ == "__main__":
    job, folder = JOBS[sys.argv[1]], Path(sys.argv[2])
    results = job(folder)
    np.savez(folder / f"{os.environ['LOCAL_RANK']}.npz", **results)
