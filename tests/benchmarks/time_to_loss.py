"""Wall time until held-out cells are predicted as well as the original ever does.

python tests/benchmarks/time_to_loss.py DATA.h5mu ... [--original CHECKOUT]
[--epochs 30] [--whole] [--memory]

A fifth of the cells is held out, of which at most 500 are predicted. The original is trained on the
others, with labels, in its configuration for ATAC and RNA, for so many epochs; after each one the
clock stands still while held-out cells are predicted. So it does for this package, with its
defaults (no refit), until its loss is no higher than the original's best, or with --whole to its
end. The loss is the mean over all pairs of modalities, each with itself included: mean squared
error in standard deviations of the training cells, or binary cross-entropy where a modality is 0
and 1, as peaks are here. With --memory also, or without the original only, the largest resident
size of 20 epochs of ours above that before them.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from _measure import peak_above
from _original import ORIGINAL, SupervisedOriginal, supervised_original
from _prepare import COUNTS, LABELS, Prepared, read
from _splits import folds
from speed import OURS
from torch.nn.functional import binary_cross_entropy

from unitednet_mu._config import NetworkConfig, TrainingConfig
from unitednet_mu._data import Dataset
from unitednet_mu._fit import train_new
from unitednet_mu._info import ModelInfo
from unitednet_mu._network import ModalityShape, UnitedNetwork
from unitednet_mu._open import describe_modality, open_dataset
from unitednet_mu._session import Session, State

Decoded = Sequence[Sequence[np.ndarray]]
_TEST_CELLS = 500


class Course:
    """Held-out loss by seconds of training; the clock stands still while it is computed."""

    def __init__(self, loss: Callable[[Any], float]) -> None:
        self._loss = loss
        self._seconds, self._since = 0.0, perf_counter()
        self.rows: list[tuple[float, float]] = []

    def note(self, trained: Any) -> None:
        """Judge what is trained so far."""
        self._seconds += perf_counter() - self._since
        self.rows.append((self._seconds, self._loss(trained)))
        self._since = perf_counter()

    def best(self) -> tuple[float, float]:
        """Seconds until the lowest loss, and that loss."""
        return min(self.rows, key=lambda row: row[1])

    def until(self, loss: float) -> float:
        """Seconds until a loss no higher than this; NaN where there is none."""
        return next((seconds for seconds, found in self.rows if found <= loss), float("nan"))


class Watch(Session):
    """Hands the running average of the weights to a course after every epoch."""

    course: Course
    until: float = -np.inf

    def epoch_ended(self, number: int, state: Callable[[], State], *, last: bool) -> None:
        """Judge the weights that would be kept now; end the training where they will do."""
        self.course.note(state()["phase"]["averaged"])
        self.stop.requested = self.course.rows[-1][1] <= self.until


class HeldOut:
    """True values of the held-out cells, in standard deviations of the training cells."""

    def __init__(self, data: Prepared, train: np.ndarray, test: np.ndarray) -> None:
        self.train = [data.values(name, train) for name in data.modalities]
        self.test = [data.values(name, test) for name in data.modalities]
        self.binary = [bool(np.isin(x, (0, 1)).all()) for x in self.train]
        self.scales = [
            (0.0, 1.0) if binary else (x.mean(0), np.where(x.std(0) > 0, x.std(0), 1))
            for x, binary in zip(self.train, self.binary, strict=True)
        ]

    def standardised(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Values in these units; binary ones as they are."""
        pairs = zip(values, self.scales, strict=True)
        return [((x - mean) / scale).astype(np.float32) for x, (mean, scale) in pairs]

    def loss(self, decoded: Decoded) -> float:
        """Mean over targets and sources; binary targets as probabilities, others standardised."""
        truth = self.standardised(self.test)
        found = [
            _cross_entropy(true, one) if binary else float(np.square(true - one).mean())
            for true, binary, of_target in zip(truth, self.binary, decoded, strict=True)
            for one in of_target
        ]
        return float(np.mean(found))


def _cross_entropy(true: np.ndarray, probability: np.ndarray) -> float:
    return float(binary_cross_entropy(torch.from_numpy(probability), torch.from_numpy(true)))


def course_of_original(
    checkout: Path, held_out: HeldOut, labels: np.ndarray, epochs: int
) -> Course:
    """Train the original."""
    x = held_out.standardised(held_out.train)
    inputs = [torch.from_numpy(one) for one in held_out.standardised(held_out.test)]

    @torch.no_grad()
    def loss(module: Any) -> float:
        module.eval()
        return held_out.loss(module(inputs)[0])

    course = Course(loss)
    trained: SupervisedOriginal = supervised_original(checkout, x, labels, 512, held_out.binary)
    for _ in range(epochs):
        trained.epoch()
        course.note(trained.module)
    return course


def opened(data: Prepared, train: np.ndarray) -> tuple[Dataset, ModelInfo]:
    """Training cells with their labels, and the default settings."""
    mdata = data.part(train, LABELS)
    specs = [describe_modality(mdata, name, None, None, None) for name in mdata.mod]
    training = TrainingConfig(refit=False)
    groups = mdata.obs[LABELS].cat.categories
    info = ModelInfo(tuple(specs), tuple(groups), NetworkConfig(), training, LABELS)
    dataset = open_dataset(mdata, specs)
    dataset.labels = mdata.obs[LABELS].cat.codes.to_numpy().astype(np.int64)
    return dataset, info


def course_of_ours(
    data: Prepared, train: np.ndarray, held_out: HeldOut, until: float = -np.inf
) -> Course:
    """Train this package's network, at most until a loss."""
    watch = Watch()
    watch.until = until
    shown: list[UnitedNetwork] = []

    @torch.no_grad()
    def loss(state: State) -> float:
        network = shown[0]
        network.load_state_dict(state)
        codes = [network.encode(m, torch.from_numpy(x)) for m, x in enumerate(held_out.test)]
        decoded = [
            [network.to_units(m, network.decode(m, code)).numpy() for code in codes]
            for m in range(len(codes))
        ]
        pairs = zip(decoded, held_out.scales, strict=True)
        return held_out.loss([[(x - mean) / scale for x in of] for of, (mean, scale) in pairs])

    dataset, info = opened(data, train)
    shapes = [ModalityShape(len(spec.features), spec.likelihood) for spec in info.modalities]
    shown.append(UnitedNetwork(shapes, len(info.groups), 0, info.network).eval())
    watch.course = Course(loss)
    _train(dataset, info, watch)
    return watch.course


def _train(dataset: Dataset, info: ModelInfo, session: Session | None = None) -> None:
    train_new(
        dataset, info, n_groups=None, device=torch.device("cpu"), progress=False, session=session
    )


def read_peaks(path: Path) -> tuple[Prepared, list[str]]:
    """Read a set; peaks become open or closed."""
    data, notes = read(path)
    for name, kind in data.kinds.items():
        if kind == "atac":
            data.modalities[name].X = (data.modalities[name].layers[COUNTS] > 0).astype(np.float32)
            notes.append(f"{name}: 1 where there is a count, 0 elsewhere")
    return data, notes


def compare(path: Path, checkout: Path, epochs: int, *, whole: bool) -> dict[str, float]:
    """One row of the table."""
    data, notes = read_peaks(path)
    print(data.name, *notes, sep="\n  ", flush=True)
    train, test = folds(data, 0)[0]
    test = np.random.default_rng(0).permutation(test)[:_TEST_CELLS]
    held_out = HeldOut(data, train, test)
    original = course_of_original(checkout, held_out, data.labels[train], epochs)
    took, best = original.best()
    ours = course_of_ours(data, train, held_out, -np.inf if whole else best)
    until = ours.until(best)
    return {
        f"best loss, {ORIGINAL}": best,
        f"seconds to it, {ORIGINAL}": took,
        f"seconds to it, {OURS}": until,
        "times as fast": took / until,
        f"best loss, {OURS}": ours.best()[1],
        f"all seconds, {OURS}": ours.rows[-1][0],
    }


def memory_of_training(path: Path, threads: int) -> float:
    """Peak of 20 epochs of all cells above the data, MiB."""
    torch.set_num_threads(threads)
    data, _ = read_peaks(path)
    dataset, info = opened(data, np.arange(len(data)))
    info = replace(info, training=replace(info.training, max_epochs=20))
    return peak_above(lambda: _train(dataset, info))


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Measure, print the table, and return it."""
    chosen = _parser().parse_args(arguments)
    before = torch.get_num_threads()
    torch.set_num_threads(chosen.threads)
    try:
        rows = {
            path.stem: compare(path, chosen.original, chosen.epochs, whole=chosen.whole)
            for path in chosen.data
            if chosen.original is not None
        }
    finally:
        torch.set_num_threads(before)
    table = pd.DataFrame(rows).T
    if chosen.memory or chosen.original is None:
        fresh = multiprocessing.get_context("spawn")
        for path in chosen.data:
            with fresh.Pool(1) as pool:
                peak = pool.apply(memory_of_training, (path, chosen.threads))
            table.loc[path.stem, "peak memory of 20 epochs, MiB"] = peak
    epochs = "" if chosen.original is None else f"{chosen.epochs} epochs of the original, "
    print(f"{epochs}{chosen.threads} threads")
    print(table.round(4).T.to_string())
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", type=Path, help="paired MuData with labels (.h5mu)")
    parser.add_argument("--original", type=Path, help="checkout of the original")
    parser.add_argument("--epochs", type=int, default=30, help="of the original")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--whole", action="store_true", help="train ours to its end")
    parser.add_argument("--memory", action="store_true")
    return parser


if __name__ == "__main__":
    main()
