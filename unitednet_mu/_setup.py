"""What is settled before training: which cells train, their statistics, batch size and epochs."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch

from ._data import Dataset
from ._network import Decoder, Standardiser, UnitedNetwork

_STATISTICS_BATCH = 2048
#: Steps of a training by default.
_STEPS = 750


def set_statistics(network: UnitedNetwork, data: Dataset, cells: np.ndarray) -> None:
    """Set the standardisers from training cells, and the decoders' first guess to the mean.

    Sums run over the cells in the order given (on disk, if that takes several readings, in the
    order of the file), in float64 and in blocks; nothing is densified or read as a whole.
    """
    from sklearn.preprocessing import StandardScaler

    for m in range(len(data.sources)):
        scaler = StandardScaler(with_mean=False)
        mine = cells[data.observed[cells, m]]
        if not len(mine):
            continue
        alone = data.restricted([m])
        for _, part, here in alone.blocks_of(alone.in_file_order(mine), _STATISTICS_BATCH):
            scaler.partial_fit(part.sources[m].sparse_or_dense(here).astype(np.float64))
        standardiser = cast("Standardiser", network.standardisers[m])
        standardiser.mean.copy_(torch.from_numpy(scaler.mean_))
        standardiser.scale.copy_(torch.from_numpy(scaler.scale_))
        with torch.no_grad():
            bias = cast("Decoder", network.decoders[m]).wide.bias
            bias.zero_()
            if network.shapes[m].likelihood == "binary":
                bias.copy_(torch.logit(standardiser.mean, 1e-4))


def split_cells(data: Dataset, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the cells for training and held out, evenly over labels, batches and modalities.

    No label is held out whole: one cell at least trains. The split depends on the names of the
    cells, not on their order.
    """
    cells = data.canonical
    n_held = round(fraction * len(cells))
    if not n_held:
        return cells, cells[:0]
    rng = np.random.default_rng(seed)
    strata = np.column_stack([data.labels[cells], data.batches[cells], data.observed[cells]])
    stratum = np.unique(strata, axis=0, return_inverse=True)[1].ravel()
    # systematic sampling along the sorted strata: every stratum gives its share to within one cell
    order = np.lexsort((rng.random(len(cells)), stratum))
    held = np.zeros(len(cells), bool)
    held[order[((np.arange(n_held) + rng.random()) / n_held * len(cells)).astype(int)]] = True
    labels = data.labels[cells]
    for label in np.setdiff1d(labels[held], [-1, *labels[~held]]):
        held[np.argmax(labels == label)] = False
    return cells[~held], cells[held]


def default_batch_size(n_cells: int) -> int:
    """Cells per mini-batch: about a sixteenth of the cells, a power of two from 64 to 512."""
    return int(np.clip(2 ** round(math.log2(max(n_cells, 1) / 16)), 64, 512))


def default_epochs(n_cells: int, batch_size: int) -> int:
    """Epochs that make about 750 steps, at least 20 and at most 300."""
    return int(np.clip(round(_STEPS * batch_size / max(n_cells, 1)), 20, 300))
