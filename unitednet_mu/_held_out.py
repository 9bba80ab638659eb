"""What held-out cells tell of a model: how confident it may be, how good its predictions are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from ._correlation import Correlation
from ._data import Dataset, ModalitySpec
from ._keys import DEFAULT_STEM, Keys
from ._model import Model

#: Fewer held-out cells than this say nothing about calibration or accuracy.
FEW_CELLS = 20
#: Standard deviation of the logarithm of the temperature before anything is known.
_TEMPERATURE_SPREAD = 0.35
#: Smallest and largest temperature. Networks of noisy features, which are dropped in training nine
#: times in ten, have weak logits.
_TEMPERATURES = (1 / 30, 3.0)
#: Cells whose predictions are compared with their measurements at a time.
_ACCURACY_CELLS = 512
#: Cells whose errors are held at once, for their quantiles.
_ERROR_CELLS = 1024
#: Share of held-out measurements below and above the interval.
_TAIL = 0.05


def calibrate(model: Model, held_out: Dataset) -> None:
    """Set the temperature, 1/30 to 3, by held-out labels (Guo et al. 2017).

    To the likeliest after them, where its logarithm was normal around 0 before: a few cells that
    are all right say little of how sure to be, and cells of another batch are harder.
    """
    from scipy.optimize import minimize_scalar

    labelled = (held_out.labels >= 0) & held_out.observed.any(1)
    if int(labelled.sum()) < FEW_CELLS:
        return
    logits = torch.from_numpy(model.encode(held_out).logits[labelled]).double()
    labels = torch.from_numpy(held_out.labels[labelled])

    def loss(log_temperature: float) -> float:
        misfit = F.cross_entropy(logits / np.exp(log_temperature), labels, reduction="sum")
        return float(misfit) + (log_temperature / _TEMPERATURE_SPREAD) ** 2 / 2

    low, high = (math.log(bound) for bound in _TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded")
    model.network.temperature.fill_(float(np.exp(found.x)))


def expected_accuracy(model: Model, held_out: Dataset) -> dict[str, np.ndarray]:
    """Accuracy per feature of every modality's prediction from each other, and from all others.

    Returns
    -------
    By ``"<target>_from_<sources>"`` a float32 array, 4 x target features: Pearson r over held-out
    cells, and within groups (true labels where given, else the head's); the 5 % and the 95 %
    quantile of the error, measured minus predicted, in the target's units (NaN where it is binary).
    NaN where fewer than 20 cells have the target and all sources; r also where a feature does not
    vary.
    """
    logits = np.nan_to_num(model.encode(held_out).logits, nan=-np.inf)
    groups = np.where(held_out.labels >= 0, held_out.labels, logits.argmax(1))
    return {
        name: np.vstack(
            [_correlations(one, groups, len(model.info.groups)), _bounds(one)], dtype=np.float32
        )
        for name, one in _predictions(model, held_out)
    }


def widen_intervals(
    accuracy: Mapping[str, np.ndarray], model: Model, held_out: Dataset
) -> dict[str, np.ndarray]:
    """Return expected accuracy whose intervals hold the errors of a second model as well.

    That model was trained on the held-out cells too, so that its errors there are too small, and
    are no measure of how wide an interval has to be. But where a feature is mostly one value they
    show by how much all of its predictions have moved.
    """
    widened = {name: found.copy() for name, found in accuracy.items()}
    for name, one in _predictions(model, held_out):
        low, high = _bounds(one)
        widened[name][2] = np.minimum(low, accuracy[name][2])
        widened[name][3] = np.maximum(high, accuracy[name][3])
    return widened


@dataclass(frozen=True)
class _Prediction:
    """One modality predicted from others, for held-out cells that have it and all of these."""

    model: Model
    held_out: Dataset
    sources: tuple[str, ...]
    target: str
    fused: np.ndarray

    @property
    def m(self) -> int:
        """Position of the target."""
        return self.model.modality_index(self.target, "target")

    @property
    def spec(self) -> ModalitySpec:
        """Names and kind of the target's features."""
        return self.held_out.sources[self.m].spec

    @property
    def cells(self) -> np.ndarray:
        """Positions of the cells; none where they are too few."""
        sources = [self.model.modality_index(name, "source") for name in self.sources]
        cells = np.flatnonzero(self.held_out.observed[:, [self.m, *sources]].all(1))
        return cells if len(cells) >= FEW_CELLS else cells[:0]

    def compared(self, cells: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield cells, measurements, predictions; only blocks of cells are ever dense."""
        read = [self.m, *(self.model.modality_index(one, "source") for one in self.sources)]
        data = self.held_out.restricted(read)
        for block, part, here in data.blocks_of(data.in_file_order(cells), _ACCURACY_CELLS):
            predicted = self.model.decode(self.fused[block], self.target)
            self.model.add_direct(part.subset(here), self.sources, self.target, predicted)
            yield block, part.sources[self.m].take(here), predicted


def _predictions(model: Model, held_out: Dataset) -> Iterator[tuple[str, _Prediction]]:
    """Yield every modality's prediction from each other, and from all others, by its name."""
    fused: dict[tuple[str, ...], np.ndarray] = {}
    for names, target in model.info.predictions():
        sources = tuple(names)
        if sources not in fused:
            fused[sources] = model.encode(held_out, modalities=sources).fused
        name = Keys(DEFAULT_STEM).predicted(sources, target)
        yield name, _Prediction(model, held_out, sources, target, fused[sources])


def _correlations(one: _Prediction, groups: np.ndarray, n_groups: int) -> np.ndarray:
    """Pearson r per feature over all cells and within groups, 2 x features."""
    cells, n_features = one.cells, len(one.spec.features)
    if not len(cells):
        return np.full((2, n_features), np.nan)
    r = Correlation(n_features, n_groups)
    for block, true, predicted in one.compared(cells):
        r.add(true, predicted, groups[block])
    return np.stack([r.overall(), r.within()])


def _bounds(one: _Prediction) -> np.ndarray:
    """Quantiles of the error per feature, measured minus predicted, 2 x features."""
    cells = one.cells
    if not len(cells) or one.spec.likelihood == "binary":
        return np.full((2, len(one.spec.features)), np.nan)
    some = cells[np.linspace(0, len(cells) - 1, min(len(cells), _ERROR_CELLS)).astype(int)]
    return _quantiles(np.concatenate([true - found for _, true, found in one.compared(some)]))


def _quantiles(errors: np.ndarray) -> np.ndarray:
    """Bounds that the next error falls between nine times in ten (split conformal prediction).

    Of n exchangeable errors and one more, the last is below the k-th smallest with probability
    k / (n + 1) (Vovk et al. 2005; Lei et al. 2018, Section 2.2). Errors are sorted in place.
    """
    n = len(errors)
    below = int(np.floor(_TAIL * (n + 1)))
    errors.sort(axis=0)
    return np.stack([errors[below - 1], errors[n - below]])
