"""Linear maps beside the code: what a modality knows of single features of another."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve

from ._data import Dataset
from ._network import UnitedNetwork, may_have_direct_path

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
#: By numbers of source and target, the penalty of a path per cell.
Penalties = dict[tuple[int, int], float]

_PENALTIES = np.logspace(-3, 2, 16)
_FEWEST_CELLS = 20
#: Cells, and values of the source, that a path is solved from or judged by at most.
_MAX_CELLS, _MAX_VALUES = 5000, 2**26
_BATCH = 1024


def choose_penalties(
    network: UnitedNetwork, data: Dataset, cells: NDArray[np.intp], held_out: NDArray[np.intp]
) -> Penalties:
    """Penalties with which direct paths improve the prediction of held-out cells the most.

    A path is ridge regression of what the network's prediction leaves over, from the source's
    standardised features: it carries what is particular to single features, where the code
    carries what many share.

    Parameters
    ----------
    network
        Trained on `cells`.
    data
        All cells.
    cells, held_out
        Positions of the cells trained on, and of those held out.

    Returns
    -------
    By source and target the penalty per cell. Pairs that no path helps by more than the standard
    error over cells are left out, as are those that fewer than 20 held-out cells have both
    modalities of.
    """
    found: Penalties = {}
    for source, target in _pairs(network):
        seen, unseen = (_with_both(data, some, source, target) for some in (cells, held_out))
        if min(len(seen), len(unseen)) < _FEWEST_CELLS:
            continue
        problem = _Problem(network, data, seen, source, target)
        x, left_over = _values(network, data, unseen, source, target)
        without = (left_over**2).mean(1)
        errors = []
        for penalty in _PENALTIES:
            weight, offset = problem.solve(float(penalty))
            errors.append(((left_over - x @ weight - offset) ** 2).mean(1))
        best = int(np.argmin(np.mean(errors, axis=1)))
        gain = without - errors[best]
        if gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)):
            found[source, target] = float(_PENALTIES[best])
    return found


def set_direct_paths(
    network: UnitedNetwork,
    data: Dataset,
    cells: NDArray[np.intp],
    penalties: Mapping[tuple[int, int], float],
) -> None:
    """Solve for direct paths from `cells`, with these penalties, in place of any there are.

    A path that too few of the cells tell of stays as it was.
    """
    for (source, target), penalty in penalties.items():
        both = _with_both(data, cells, source, target)
        if len(both) < _FEWEST_CELLS:
            continue
        weight, offset = _Problem(network, data, both, source, target).solve(penalty)
        path = network.add_direct_path(source, target)
        for kept, value in ((path.weight, weight), (path.offset, offset)):
            kept.copy_(torch.from_numpy(value))
        path.penalty.fill_(penalty)
    names = [spec.spec.name for spec in data.sources]
    pairs = [f"{names[s]} to {names[t]}" for s, t in penalties]
    logger.info("direct paths: %s.", ", ".join(pairs) or "none helps")


def penalties_of(network: UnitedNetwork) -> Penalties:
    """Penalties of the paths that a network has."""
    found: Penalties = {}
    for source, target in _pairs(network):
        path = network.direct_path(source, target)
        if path is not None:
            found[source, target] = float(path.penalty)
    return found


def _pairs(network: UnitedNetwork) -> list[tuple[int, int]]:
    """Pairs of source and target that may have a path."""
    return [
        (s, t)
        for s, one in enumerate(network.shapes)
        for t, other in enumerate(network.shapes)
        if s != t and may_have_direct_path(one, other)
    ]


def _with_both(
    data: Dataset, cells: NDArray[np.intp], source: int, target: int
) -> NDArray[np.intp]:
    return cells[data.observed[cells][:, [source, target]].all(1)]


@torch.no_grad()
def _values(
    network: UnitedNetwork, data: Dataset, cells: NDArray[np.intp], source: int, target: int
) -> tuple[Array, Array]:
    """Standardised values of the source, and what the decoded code leaves of the target's.

    Of many cells some serve, evenly over their order, which is that of their names.
    """
    widest = max(network.shapes[source].n_features, network.shapes[target].n_features)
    most = max(1, min(_MAX_CELLS, _MAX_VALUES // widest))
    if len(cells) > most:
        cells = cells[np.linspace(0, len(cells) - 1, most).astype(int)]
    device = network.fusion.logits.device
    x: list[np.ndarray] = []
    left_over: list[np.ndarray] = []
    for start in range(0, len(cells), _BATCH):
        chunk = cells[start : start + _BATCH]
        values, true = (
            network.standardisers[m](torch.from_numpy(data.sources[m].take(chunk)).to(device))
            for m in (source, target)
        )
        batch = network.one_hot(torch.from_numpy(data.batches[chunk]).to(device))
        decoded = network.decode(target, network.encoders[source](values), batch)
        x.append(values.cpu().numpy())
        left_over.append((true - decoded).cpu().numpy())
    return np.concatenate(x).astype(np.float64), np.concatenate(left_over).astype(np.float64)


class _Problem:
    """Ridge regression with one penalty for all targets, by the smaller of its two systems."""

    def __init__(
        self,
        network: UnitedNetwork,
        data: Dataset,
        cells: NDArray[np.intp],
        source: int,
        target: int,
    ) -> None:
        self.x, self.y = _values(network, data, cells, source, target)
        self.mean_x, self.mean_y = self.x.mean(0), self.y.mean(0)
        self.x -= self.mean_x
        self.y -= self.mean_y
        self.dual = self.x.shape[0] < self.x.shape[1]
        self.gram = self.x @ self.x.T if self.dual else self.x.T @ self.x
        self.right = self.y if self.dual else self.x.T @ self.y

    def solve(self, penalty: float) -> tuple[Array, Array]:
        """Weights (source x target features) and offset for a penalty per cell."""
        gram = self.gram.copy()
        gram.flat[:: len(gram) + 1] += penalty * len(self.x)
        found = solve(gram, self.right, assume_a="pos", overwrite_a=True, check_finite=False)
        weight: Array = self.x.T @ found if self.dual else found
        return weight, self.mean_y - self.mean_x @ weight
