"""Attributions of single cells to chosen outputs, for plots that show every cell.

The arithmetic is that of `_explain` and `_explain_cross`, without the mean over cells: cells x
features x outputs is held, so outputs are chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._deeplift import Rows
from ._explain import (
    ExplainSample,
    GroupChain,
    Progress,
    check_samples,
    chunks_of,
    inference,
)
from ._explain_chain import CrossChain, multiplied_out
from ._gap import Gap
from ._network import UnitedNetwork

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class CellRelevance:
    """Attributions of single cells.

    Parameters
    ----------
    attributions
        By number of the modality: cells that observe it x features x outputs.
    base_values
        What attributions depart from, the mean output of a cell's background: cells x outputs.
    gap
        As in `GroupRelevance`.
    """

    attributions: dict[int, Floats]
    base_values: Floats
    gap: float


class _Values:
    """Room for the result, filled chunk by chunk; what is never filled is zero."""

    def __init__(self, cells: ExplainSample, n_features: dict[int, int], n_outputs: int) -> None:
        self.place = np.cumsum(cells.observed, axis=0) - 1
        counts = cells.observed.sum(0)
        self.values = {
            m: np.zeros((int(counts[m]), n, n_outputs), np.float32) for m, n in n_features.items()
        }
        self.base = np.zeros((len(cells.observed), n_outputs), np.float32)

    def put(self, m: int, rows: Rows, features: Tensor, outputs: Rows, block: Tensor) -> None:
        """Store attributions, C x J x outputs."""
        index = np.ix_(self.place[rows, m], features.cpu().numpy(), outputs)
        self.values[m][index] = block.cpu().numpy()

    def result(self, gap: Gap, tolerance: float) -> CellRelevance:
        return CellRelevance(self.values, self.base, gap.checked(tolerance))


def cell_group_relevance(
    network: UnitedNetwork,
    cells: ExplainSample,
    background: ExplainSample,
    groups: Sequence[int],
    *,
    output: Literal["logits", "probabilities"] = "logits",
    tolerance: float = 1e-3,
    progress: Progress | None = None,
) -> CellRelevance:
    """Attributions of each cell's features to the outputs of `groups`, its own or not.

    Parameters are those of `group_relevance`; the values of a cell, over all modalities that it
    has, add up to its output minus its base value.
    """
    check_samples(network, cells, background)
    gap, done = Gap(), 0
    n_features = {m: shape.n_features for m, shape in enumerate(network.shapes)}
    found = _Values(cells, n_features, len(groups))
    with inference(network):
        for mask in np.unique(cells.observed[cells.observed.any(1)], axis=0):
            chain = GroupChain(network, cells, background, mask, output)
            rows = np.flatnonzero((cells.observed == mask).all(1))
            found.base[rows] = chain.reference_outputs.mean(0)[list(groups)].cpu().numpy()
            for chunk in chunks_of(rows, chain.pair_size, network):
                for k, group in enumerate(groups):
                    as_group = torch.full((len(chunk),), group, device=chain.mask.device)
                    for m, features, block in chain.attributions(chunk, as_group, gap):
                        found.put(m, chunk, features, np.array([k]), block[..., None])
                done += len(chunk)
                if progress is not None:
                    progress(done)
    return found.result(gap, tolerance)


def cell_cross_relevance(
    network: UnitedNetwork,
    source: int,
    target: int,
    cells: ExplainSample,
    background: ExplainSample,
    targets: Sequence[int],
    *,
    tolerance: float = 1e-3,
    progress: Progress | None = None,
) -> CellRelevance:
    """Attributions of each cell's source features to the target features `targets`.

    Parameters are those of `cross_relevance`; the values of a cell add up to its prediction in the
    user's units (its logit where the target is binary) minus its base value.
    """
    check_samples(network, cells, background)
    gap, done, chosen = Gap(), 0, list(targets)
    found = _Values(cells, {source: network.shapes[source].n_features}, len(chosen))
    rows = np.flatnonzero(cells.observed[:, source])
    with inference(network):
        chain = CrossChain(network, source, target, cells, background)
        weight, side = chain.weight[:, chosen], chain.encoder.side
        direct = None if chain.direct is None else chain.direct[:, chosen]
        scale, shift = _units(network, target, chosen)
        through, every = chain.is_narrow(len(chosen)), np.arange(len(chosen))
        for chunk in chunks_of(rows, chain.pair_size(len(chosen), through=through), network):
            values, inner, outer = chain.maps(chunk)
            chain.spread(values, inner, outer, weight, gap)
            outer = outer @ weight
            totals = torch.zeros(len(chunk), len(chosen)).to(weight)
            attributions = (
                side.attributions_through(values, inner, outer)
                if through
                else side.attributions(values, multiplied_out(inner, outer))
            )
            difference = chain.difference(values)
            for features, block in attributions:
                if direct is not None:
                    block = block + difference[:, None, features] * direct[features].T
                totals += block.sum(2)
                found.put(source, chunk, features, every, block.mT * scale)
            base = chain.check(chunk, totals, gap, chosen)
            found.base[chunk] = (base * scale + shift).cpu().numpy()
            done += len(chunk)
            if progress is not None:
                progress(done)
    return found.result(gap, tolerance)


def _units(
    network: UnitedNetwork, target: int, chosen: list[int]
) -> tuple[Tensor | float, Tensor | float]:
    """Scale and shift from the linear predictor to the user's units, where it is linear in them."""
    if network.shapes[target].likelihood != "gaussian":
        return 1.0, 0.0
    standardiser: Any = network.standardisers[target]
    return standardiser.scale[chosen], standardiser.mean[chosen]
