"""How far several models agree on cross-modal relevance, without holding all of any model's.

Group by group, and model by model within it: one matrix of absolute values lives for the model at
work and one for the sum over models. Signed values need none, as each model's are a small product.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from ._explain import ExplainSample, Floats, Progress, check_samples, inference
from ._explain_chain import CrossChain
from ._explain_cross import CrossRelevance, CrossSums
from ._gap import Gap
from ._network import UnitedNetwork
from ._stability import rank_correlation
from ._strongest import as_csr, strongest

#: Pairs that rank correlations are computed over; where there are more, as many drawn at random.
_RANKED_PAIRS = 250_000


@dataclass(frozen=True)
class CrossStability:
    """Relevance of every pair of features in each group over several models.

    Parameters
    ----------
    relevance
        Means over models; the largest gap.
    signed_sd, top_frequency
        Per group, of the same pairs: standard deviation over models of the signed values
        (``ddof=1``), and share of models in which the pair is among the group's strongest.
    rank_correlation
        Per group, float64: mean over pairs of models of Spearman's correlation of the absolute
        values of all pairs of features (of 250,000 drawn at random where there are more), kept or
        not; NaN where it is not defined.
    """

    relevance: CrossRelevance
    signed_sd: list[Floats | sparse.csr_matrix]
    top_frequency: list[Floats | sparse.csr_matrix]
    rank_correlation: NDArray[np.float64]


@dataclass(frozen=True)
class Member:
    """One of the models, with the cells to explain and the background in its own terms."""

    network: UnitedNetwork
    cells: ExplainSample
    background: ExplainSample


def cross_stability(
    members: Sequence[Member],
    source: int,
    target: int,
    *,
    top_k: int | None,
    n_top: int,
    tolerance: float = 1e-3,
    seed: int = 0,
    progress: Progress | None = None,
) -> CrossStability:
    """Explain one modality by another with several models, on the same cells.

    Parameters
    ----------
    members
        Two or more, on one device. Groups and observed modalities of the cells are those of the
        first.
    source, target
        Numbers of the modalities.
    top_k
        Number of pairs kept per group as CSR, the largest by absolute relevance averaged over
        models; ``None`` keeps dense arrays.
    n_top
        How many of a group's pairs, of all and not of those kept, count as a model's strongest.
    tolerance
        Largest gap of additivity of a model.
    seed
        Of the pairs drawn for the rank correlation.
    progress
        Called with the number of cells done, over all models.

    Raises
    ------
    RuntimeError
        The gap of a model exceeds `tolerance`.
    NotImplementedError
        A layer has no rule.
    ValueError
        Batches, shapes or background do not fit.

    Notes
    -----
    Memory is that of `cross_relevance` with one source x target matrix more (four with dense
    results), and per model both wide layers, the dense background twice, source features x hidden
    units and, with `top_k`, the signed values of the kept pairs.
    """
    for member in members:
        check_samples(member.network, member.cells, member.background)
    cells = members[0].cells
    groups, n_groups = cells.checked_groups()
    observing = np.flatnonzero(cells.observed[:, source])
    gaps, done = [Gap() for _ in members], 0
    found: list[_Group] = []
    with ExitStack() as stack:
        every: list[CrossSums] = []
        for member in members:
            stack.enter_context(inference(member.network))
            chain = CrossChain(member.network, source, target, member.cells, member.background)
            every.append(CrossSums(chain, units=True))
        drawn = _drawn(every[0], seed)
        for group in range(n_groups):
            mine = observing[groups[observing] == group]
            comparison = _Comparison(every, n_top, drawn)
            for sums, gap in zip(every, gaps, strict=True):
                for n_added in sums.gather(mine, gap, absolute=True):
                    done += n_added
                    if progress is not None:
                        progress(done)
                comparison.add(sums)
            found.append(comparison.result(top_k))
    signed, absolute, spread, frequency = (
        [one.matrices[part] for one in found] for part in range(4)
    )
    worst = max(gap.checked(tolerance) for gap in gaps)
    n_cells = np.bincount(groups[observing], minlength=n_groups)
    error = max(gap.standard_error for gap in gaps)
    means = CrossRelevance(signed, absolute, worst, n_cells, error)
    return CrossStability(means, spread, frequency, np.array([one.correlation for one in found]))


def _drawn(sums: CrossSums, seed: int) -> Tensor:
    """Positions in the flattened matrix of pairs of the pairs that are ranked."""
    n_pairs = sums.shape[0] * sums.shape[1]
    chosen = np.arange(n_pairs)
    if n_pairs > _RANKED_PAIRS:
        chosen = np.random.default_rng(seed).choice(n_pairs, _RANKED_PAIRS, replace=False)
    return torch.as_tensor(chosen, device=sums.weight.device)


@dataclass(frozen=True)
class _Group:
    """Of one group: signed, absolute, spread and frequency; the rank correlation."""

    matrices: Sequence[Floats | sparse.csr_matrix]
    correlation: float


class _Comparison:
    """What is kept of every model's relevance for one group."""

    def __init__(self, every: Sequence[CrossSums], n_top: int, drawn: Tensor) -> None:
        self.every, self.n_top, self.drawn = every, n_top, drawn
        self.shape = every[0].shape
        self.total: Tensor | None = None
        self.tops: list[Tensor] = []
        self.ranked: list[Floats] = []

    def add(self, sums: CrossSums) -> None:
        """Take over a model's absolute values."""
        absolute, sums.absolute = sums.absolute, None
        if absolute is None or not sums.n_cells:
            return
        absolute /= sums.n_cells
        row, column, _ = strongest(lambda rows: absolute[rows], self.shape, self.n_top)
        self.tops.append(row * self.shape[1] + column)
        self.ranked.append(absolute.flatten()[self.drawn].cpu().numpy())
        self.total = absolute if self.total is None else self.total.add_(absolute)

    def result(self, top_k: int | None) -> _Group:
        """Compare; a group without cells has no pairs."""
        if self.total is None:
            nowhere = torch.empty(0, dtype=torch.long)
            return _Group(as_csr([torch.empty(0)] * 4, nowhere, nowhere, self.shape), float("nan"))
        mean = self.total.div_(len(self.every))
        matrices = self._dense(mean) if top_k is None else self._strongest(mean, top_k)
        return _Group(matrices, rank_correlation(np.stack(self.ranked)))

    def _strongest(self, mean: Tensor, top_k: int) -> list[sparse.csr_matrix]:
        row, column, strength = strongest(lambda rows: mean[rows], self.shape, top_k)
        signed = torch.stack([sums.signed_at(row, column) for sums in self.every])
        pair = row * self.shape[1] + column
        frequency = torch.stack([torch.isin(pair, top) for top in self.tops]).to(mean).mean(0)
        values = [signed.mean(0), strength, signed.std(0), frequency]
        return as_csr(values, row, column, self.shape)

    def _dense(self, mean: Tensor) -> list[Floats]:
        n_models = len(self.every)
        signed, squares = torch.zeros_like(mean), torch.zeros_like(mean)
        for sums in self.every:
            signed += sums.signed() / n_models
        for sums in self.every:  # computed again, not kept
            squares += (sums.signed() - signed).square_()
        frequency = torch.zeros_like(mean)
        for top in self.tops:
            frequency.view(-1)[top] += 1 / n_models
        spread = squares.div_(n_models - 1).sqrt_()
        return [part.cpu().numpy() for part in (signed, mean, spread, frequency)]
