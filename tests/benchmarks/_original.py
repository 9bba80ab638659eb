"""The original UnitedNet, from a checkout that the user names; nothing of it is kept here.

It is run as its Patch-seq notebook does without labels: `train` with its task of prediction, then
`finetune` with that of finding groups, in its Patch-seq configuration with every modality given the
layers of the first, on features standardised by the cells it is trained on. It is handed no labels.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import random
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight

ORIGINAL = "original UnitedNet"


@dataclass(frozen=True)
class Original:
    """A trained original: its torch module, and the scaler of each modality in its order."""

    module: Any
    scalers: Mapping[str, StandardScaler]

    def _outputs(self, values: Mapping[str, np.ndarray]) -> Any:
        """Return decoded values (target, source), groups, and fused codes."""
        n = len(next(iter(values.values())))
        inputs = [
            scaler.transform(values[name])
            if name in values
            else np.zeros((n, scaler.n_features_in_))
            for name, scaler in self.scalers.items()
        ]
        with torch.no_grad():
            return self.module([torch.tensor(x, dtype=torch.float32) for x in inputs])

    def identify(self, values: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Groups, and fused codes."""
        _, groups, fused = self._outputs(values)
        return np.asarray(groups), np.asarray(fused)

    def predict(self, values: np.ndarray, source: str, target: str) -> np.ndarray:
        """Predict `target` from the values of `source`; no other modality is looked at."""
        names = list(self.scalers)
        decoded = self._outputs({source: values})[0][names.index(target)][names.index(source)]
        return np.asarray(self.scalers[target].inverse_transform(decoded))


def fit_original(
    checkout: Path, values: Mapping[str, np.ndarray], n_groups: int, seed: int
) -> Original:
    """Train the original on cells that have every modality.

    Parameters
    ----------
    checkout
        Folder that holds its ``src``.
    values
        Cells x features of each modality.
    n_groups
        Number of groups to find.
    seed
        Of Python, numpy and torch; it has none itself.
    """
    scalers = {name: StandardScaler().fit(x) for name, x in values.items()}
    cells = [AnnData(scalers[name].transform(x).astype(np.float32)) for name, x in values.items()]
    with _imported(checkout) as interface, contextlib.redirect_stdout(io.StringIO()):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  (what it draws from)
        with contextlib.redirect_stderr(io.StringIO()), torch.random.fork_rng():
            torch.manual_seed(seed)
            sizes = [x.shape[1] for x in values.values()]
            net = interface.UnitedNet(
                device="cpu", technique=_configuration(interface, sizes, n_groups)
            )
            net.train(cells)
            net.finetune(cells)
        net.model.eval()
        return Original(net.model, scalers)


@dataclass(frozen=True)
class SupervisedOriginal:
    """The original's torch module, and one epoch of its training with labels."""

    module: Any
    epoch: Callable[[], None]


def supervised_original(
    checkout: Path,
    values: Sequence[np.ndarray],
    labels: np.ndarray,
    batch_size: int,
    binary: Sequence[bool] = (True, False),
    device: str = "cpu",
) -> SupervisedOriginal:
    """Its supervised training in its configuration of ATAC and RNA.

    Parameters
    ----------
    checkout
        Folder that holds its ``src``.
    values
        Cells x features of each modality.
    labels
        Group of each cell.
    batch_size
        Cells a mini-batch.
    binary
        Of each modality, whether it gets the layers that the configuration has for ATAC.
    device
        Where it is trained; it sends every mini-batch there.
    """
    adatas = [AnnData(x, obs={"label": labels.astype(str)}) for x in values]
    with _imported(checkout) as interface, contextlib.redirect_stdout(io.StringIO()):
        config = copy.deepcopy(interface.atacseq_config)
        sides = (("encoders", "input"), ("decoders", "output"), ("discriminators", "input"))
        for part, side in sides:
            config[part] = [
                {**config[part][0 if peaks else 1], side: x.shape[1]}
                for x, peaks in zip(values, binary, strict=True)
            ]
        config["clusters"]["output"] = len(np.unique(labels))
        config["train_batch_size"] = batch_size
        net = interface.UnitedNet(device=device, technique=config)
        weights = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
        net.model.class_weights = list(weights)
        cells = interface.create_dataloader(
            net.model, adatas, shuffle=True, batch_size=batch_size, fit_label=True
        )
        task = config["train_task"]
        schedules = [
            interface.Schedule(name, net.model, "train", None, True)
            for name in interface.get_schedules_by_task(task, net.model)
        ]

    def epoch() -> None:
        net.model.train()
        for schedule in schedules:
            interface.run_through_dataloader(net.model, cells, schedule, train_model=True)

    return SupervisedOriginal(net.model, epoch)


@contextlib.contextmanager
def _imported(checkout: Path) -> Iterator[Any]:
    """Import its interface, whose packages are called `src`."""
    if not (checkout / "src" / "interface.py").exists():
        raise FileNotFoundError(
            f"--original: expected a checkout of the original UnitedNet, found no src/interface.py "
            f"in {checkout}."
        )
    sys.path.insert(0, str(checkout))
    try:
        sys.modules.setdefault("src.configs", _configurations(checkout / "src" / "configs"))
        yield importlib.import_module("src.interface")
    finally:
        sys.path.remove(str(checkout))


def _configurations(folder: Path) -> ModuleType:
    """Its package of configurations, whose own import works on Windows only."""
    package = ModuleType("src.configs")
    for path in sorted(folder.glob("[!_]*.py")):
        package.__dict__.update(runpy.run_path(str(path)))
    return package


def _configuration(interface: Any, sizes: list[int], n_groups: int) -> dict[str, Any]:
    config = copy.deepcopy(interface.patchseq_config)
    for part, side in (("encoders", "input"), ("decoders", "output"), ("discriminators", "input")):
        config[part] = [{**config[part][0], side: size} for size in sizes]
    config["noise_level"] = [0.0] * len(sizes)
    config["clusters"]["output"] = n_groups
    return config
