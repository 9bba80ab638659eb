"""What held-out cells tell of a model: how confident it may be, how good its predictions are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from ._correlation import Correlation
from ._data import Dataset
from ._keys import DEFAULT_STEM, Keys
from ._model import Model

#: Fewer held-out cells than this say nothing about calibration or accuracy.
FEW_CELLS = 20
#: Standard deviation of the logarithm of the temperature before anything is known.
_TEMPERATURE_SPREAD = 0.35
#: Cells whose predictions are compared with their measurements at a time.
_ACCURACY_CELLS = 512
#: Cells whose errors are held at once, for their quantiles.
_ERROR_CELLS = 1024
#: Share of held-out measurements below and above the interval.
_TAIL = 0.05


def calibrate(model: Model, held_out: Dataset) -> None:
    """Set the temperature, 1/3 to 3, by held-out labels (Guo et al. 2017).

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

    found = minimize_scalar(loss, bounds=(-np.log(3), np.log(3)), method="bounded")
    model.network.temperature.fill_(float(np.exp(found.x)))


def expected_accuracy(model: Model, held_out: Dataset) -> dict[str, np.ndarray]:
    """Accuracy per feature of every modality's prediction from each other, and from all others.

    Returns
    -------
    By ``"<target>_from_<sources>"`` a float32 array, 4 x target features: Pearson r over held-out
    cells, and within groups (true labels where given, else the head's); the 5 % and the 95 %
    quantile of the error, measured minus predicted, in the target's units (NaN where it is binary).
    NaN where fewer than 20 cells have source and target; r also where a feature does not vary.
    """
    logits = np.nan_to_num(model.encode(held_out).logits, nan=-np.inf)
    groups = np.where(held_out.labels >= 0, held_out.labels, logits.argmax(1))
    predictions = [(tuple(sources), target) for sources, target in model.info.predictions()]
    fused = {
        sources: model.encode(held_out, modalities=sources).fused
        for sources in dict.fromkeys(sources for sources, _ in predictions)
    }
    return {
        Keys(DEFAULT_STEM).predicted(sources, target): _accuracy(
            model, held_out, groups, fused[sources], sources, target
        )
        for sources, target in predictions
    }


def _accuracy(
    model: Model,
    held_out: Dataset,
    groups: np.ndarray,
    fused: np.ndarray,
    sources: Sequence[str],
    target: str,
) -> np.ndarray:
    m = model.modality_index(target, "target")
    spec = held_out.sources[m].spec
    cells = np.flatnonzero(held_out.observed[:, m] & ~np.isnan(fused).any(1))
    found = np.full((4, len(spec.features)), np.nan, np.float32)
    if len(cells) < FEW_CELLS:
        return found
    r = Correlation(len(spec.features), len(model.info.groups))
    for block, true, predicted in _compared(model, held_out, cells, fused, sources, target):
        r.add(true, predicted, groups[block])
    found[:2] = r.overall(), r.within()
    if spec.likelihood != "binary":
        some = cells[np.linspace(0, len(cells) - 1, min(len(cells), _ERROR_CELLS)).astype(int)]
        compared = _compared(model, held_out, some, fused, sources, target)
        found[2:] = _quantiles(
            np.concatenate([true - predicted for _, true, predicted in compared])
        )
    return found


def _compared(
    model: Model,
    held_out: Dataset,
    cells: np.ndarray,
    fused: np.ndarray,
    sources: Sequence[str],
    target: str,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield cells, their measurements, their predictions; only blocks of cells are ever dense."""
    m = model.modality_index(target, "target")
    read = [m, *(model.modality_index(source, "source") for source in sources)]
    data = held_out.restricted(read)
    for block, part, here in data.blocks_of(data.in_file_order(cells), _ACCURACY_CELLS):
        predicted = model.decode(fused[block], target)
        model.add_direct(part.subset(here), sources, target, predicted)
        yield block, part.sources[m].take(here), predicted


def _quantiles(errors: np.ndarray) -> np.ndarray:
    """Bounds that the next error falls between nine times in ten (split conformal prediction).

    Of n exchangeable errors and one more, the last is below the k-th smallest with probability
    k / (n + 1) (Vovk et al. 2005; Lei et al. 2018, Section 2.2). Errors are sorted in place.
    """
    n = len(errors)
    below = int(np.floor(_TAIL * (n + 1)))
    errors.sort(axis=0)
    return np.stack([errors[below - 1], errors[n - below]])
