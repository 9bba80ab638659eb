"""Cross-modal relevance: every feature of one modality for every feature of another, per group.

Means of signed values need the last wide product once per group; means of absolute values need it
once per cell, in blocks that stay in cache. Cells x inputs x outputs is never held.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from ._deeplift import (
    Rows,
    add_absolute,
    precise,
)
from ._deeplift_input import SummedAttributions
from ._deeplift_sparse import is_mostly_zero, sparse_attributions
from ._explain import (
    ExplainSample,
    Floats,
    Progress,
    check_samples,
    chunks_of,
    inference,
)
from ._explain_chain import CrossChain, multiplied_out
from ._gap import Gap
from ._network import UnitedNetwork
from ._strongest import RowsAt, as_csr, strongest

#: Pairs of features looked up at a time.
_PAIRS = 2**14


@dataclass(frozen=True)
class CrossRelevance:
    """Relevance of every feature of one modality for every feature of another, per group.

    Parameters
    ----------
    signed, absolute
        Per group, source x target features: mean over its cells of the attribution and of its
        absolute value. Dense in the network's float type (NaN for a group without cells), or CSR
        with the strongest pairs, the same in both. `absolute` is ``None`` where it was not asked
        for.
    gap
        As in `GroupRelevance`.
    n_cells
        Cells that served, per group: those that observe the source.
    standard_error
        As in `GroupRelevance`, over cells and target features.
    """

    signed: list[Floats | sparse.csr_matrix]
    absolute: list[Floats | sparse.csr_matrix] | None
    gap: float
    n_cells: NDArray[np.int64]
    standard_error: float = 0.0


def cross_relevance(
    network: UnitedNetwork,
    source: int,
    target: int,
    cells: ExplainSample,
    background: ExplainSample,
    *,
    absolute: bool = True,
    top_k: int | None,
    units: bool = True,
    tolerance: float = 1e-3,
    progress: Progress | None = None,
) -> CrossRelevance:
    """Which features of one modality the prediction of which of another rests on, per group.

    From the source's input to the target's linear predictor: standardised values where they are
    continuous, logits where they are binary. Where decoders are conditioned on the batch, a cell
    and its background share the cell's.

    Parameters
    ----------
    network
        On any device, in float32 or float64; modes of its modules stay as they are.
    source, target
        Numbers of the modalities.
    cells
        To explain, with `groups`; those without the source are left out.
    background
        To compare with; rows without the source are left out.
    absolute
        Also the mean of absolute values, which takes one wide product per cell, not one per group.
    top_k
        Number of pairs kept per group as CSR: the largest by absolute relevance (without it by the
        size of the signed one), zeros never. ``None`` keeps dense arrays.
    units
        Continuous targets in the user's units instead of standardised ones.
    tolerance
        Largest gap of additivity, measured in the linear predictor.
    progress
        Called with the number of cells done.

    Returns
    -------
    Attributions of all source features of a cell add up, for every target feature, to the cell's
    output minus the mean output of the background.

    Raises
    ------
    RuntimeError
        The gap exceeds `tolerance`.
    NotImplementedError
        A layer has no rule.
    ValueError
        Groups, batches, shapes or background do not fit.

    Notes
    -----
    Memory beyond the input and the results: one source x target matrix (with `absolute`), both wide
    layers and the dense background twice, about 128 MiB (1 GiB on a GPU) of multipliers.
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: expected None or an integer >= 1, found {top_k}.")
    check_samples(network, cells, background)
    groups, n_groups = cells.checked_groups()
    observing = np.flatnonzero(cells.observed[:, source])
    n_cells = np.bincount(groups[observing], minlength=n_groups)
    gap, done = Gap(), 0
    signed: list[Floats | sparse.csr_matrix] = []
    strength: list[Floats | sparse.csr_matrix] = []
    with inference(network):
        chain = CrossChain(network, source, target, cells, background)
        sums = CrossSums(chain, units)
        for group in range(n_groups):
            for n_added in sums.gather(observing[groups[observing] == group], gap, absolute):
                done += n_added
                if progress is not None:
                    progress(done)
            means = sums.dense() if top_k is None else sums.top(top_k)
            signed.append(means[0])
            strength.extend(means[1:])
    checked, found = gap.checked(tolerance), strength if absolute else None
    return CrossRelevance(signed, found, checked, n_cells, gap.standard_error)


class CrossSums:
    """Sums over a group's cells: attributions to the last hidden layer, and absolute relevance."""

    def __init__(self, chain: CrossChain, units: bool) -> None:
        self.chain, self.weight, self.direct = chain, chain.weight, chain.direct
        if units and chain.network.shapes[chain.target].likelihood == "gaussian":
            standardiser: Any = chain.network.standardisers[chain.target]
            self.weight = self.weight * standardiser.scale
            self.direct = None if self.direct is None else self.direct * standardiser.scale
        self.shape = chain.encoder.side.weight.shape[1], self.weight.shape[1]
        self._mostly_zero = is_mostly_zero(chain.encoder.side)

    def gather(self, rows: Rows, gap: Gap, absolute: bool) -> Iterator[int]:
        """Sum over a group's cells, with or without absolute values; yield how many are added."""
        chain = self.chain
        blocks = absolute and not self._mostly_zero
        through = not blocks or chain.is_narrow(chain.n_outputs)
        pair_size = chain.pair_size(chain.n_outputs, through=through, blocks=blocks)
        self.start(absolute)
        for chunk in chunks_of(rows, pair_size, chain.network):
            self.add(chunk, gap)
            yield len(chunk)
        self.settle(gap)

    def start(self, absolute: bool) -> None:
        """Begin a group."""
        device, self.n_cells = self.weight.device, 0
        self.factor = torch.zeros(
            self.shape[0], len(self.weight), dtype=precise(device), device=device
        )
        self.differences = self.factor.new_zeros(self.shape[0])  # what the direct path reads
        self.absolute: Tensor | None = None  # the last group's is gone before the next is made
        if absolute:
            self.absolute = torch.zeros(self.shape, dtype=self.weight.dtype, device=device)
        self.signed_sums = SummedAttributions(self.chain.encoder.side, self.factor)
        self.expected = self.factor.new_zeros(len(self.weight))

    def add(self, rows: Rows, gap: Gap) -> None:
        """Add cells."""
        values, inner, outer = self.chain.maps(rows)
        self.chain.spread(values, inner, outer, self.chain.weight, gap)
        difference = None if self.direct is None else self.chain.difference(values)
        if self.absolute is None:
            totals = self._add_signed(values, inner, outer)
        else:
            totals = self._add_absolute(values, inner, outer, difference, self.absolute)
        self.n_cells += len(rows)
        totals = totals.to(self.chain.weight) @ self.chain.weight
        if self.chain.direct is not None and difference is not None:
            self.differences += difference.sum(0)
            totals += difference @ self.chain.direct
        self.chain.check(rows, totals, gap)

    def _add_signed(self, values: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
        """Add cells to `signed_sums`, and return each one's sum over features (C x R).

        Computed from the wide layer's output on; `settle` checks the sum over cells of what the
        features account for against the sum of these.
        """
        self.signed_sums.add(values, inner, outer)
        pairs = self.chain.encoder.totals(values, inner).flatten(1).unsqueeze(1)
        totals = (pairs @ outer.flatten(1, 2) / outer.shape[2]).squeeze(1).to(self.factor.dtype)
        self.expected += totals.sum(0)
        return totals

    def settle(self, gap: Gap) -> None:
        """End a group: the background's share of `signed_sums`, which then have to add up."""
        if self.signed_sums.n_cells:
            self.signed_sums.subtract_background()
            means = torch.stack([self.factor.sum(0), self.expected]) / self.n_cells
            gap.add(*(means.to(self.weight) @ self.chain.weight))

    def _add_absolute(
        self,
        values: Tensor,
        inner: Tensor,
        outer: Tensor,
        difference: Tensor | None,
        absolute: Tensor,
    ) -> Tensor:
        """Add to `factor` and `absolute`, and return each cell's sum over features (C x R)."""
        factor = self.factor
        totals = factor.new_zeros(len(values), factor.shape[1])
        for cells, features, block in self._attributions(values, inner, outer):
            factor.index_add_(0, features, block.sum(0).T.to(factor.dtype))
            totals[cells] += block.sum(2)
            beside = None
            if self.direct is not None and difference is not None:
                beside = difference[cells, features], self.direct[features]
            add_absolute(absolute, features, block, self.weight, beside)
        return totals

    def _attributions(
        self, values: Tensor, inner: Tensor, outer: Tensor
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Attributions to the last hidden layer: which cells, features, and C x R x J."""
        side = self.chain.encoder.side
        if self._mostly_zero:
            yield from sparse_attributions(side, values, inner, outer)
            return
        attributions = (
            side.attributions_through(values, inner, outer)
            if self.chain.is_narrow(self.chain.n_outputs)
            else side.attributions(values, multiplied_out(inner, outer))
        )
        for features, block in attributions:
            yield slice(None), features, block

    def signed(self) -> Tensor:
        """Mean of signed values, source x target features; NaN without cells."""
        return self._rows(slice(None), self.n_cells, self.weight.new_empty(0))

    def _rows(self, rows: RowsAt, n_cells: int, memory: Tensor) -> Tensor:
        """Mean of signed values of some source features, in `memory`, whose size is changed."""
        factor = (self.factor[rows] / n_cells).to(self.weight)
        signed = memory.resize_(len(factor), self.shape[1])
        torch.mm(factor, self.weight, out=signed)
        if self.direct is not None:
            mean = (self.differences[rows] / n_cells).to(self.weight)
            signed.addcmul_(mean[:, None], self.direct[rows])
        return signed

    def signed_at(self, row: Tensor, column: Tensor) -> Tensor:
        """Mean of signed values of some pairs: looked up, not all computed."""
        factor = (self.factor / max(self.n_cells, 1)).to(self.weight)
        signed, by_column = torch.empty(len(row)).to(factor), self.weight.T.contiguous()
        for start in range(0, len(row), _PAIRS):
            i, j = row[start : start + _PAIRS], column[start : start + _PAIRS]
            signed[start : start + _PAIRS] = (factor[i] * by_column[j]).sum(1)
            if self.direct is not None:
                mean = (self.differences[i] / max(self.n_cells, 1)).to(factor)
                signed[start : start + _PAIRS] += mean * self.direct[i, j]
        return signed

    def dense(self) -> list[Floats]:
        """Means of signed and, where there are any, absolute values; NaN without cells."""
        signed = self.signed()
        means = [signed] if self.absolute is None else [signed, self.absolute.div_(self.n_cells)]
        return [mean.cpu().numpy() for mean in means]

    def top(self, k: int) -> list[sparse.csr_matrix]:
        """Means of the strongest pairs."""
        n_cells, absolute = max(self.n_cells, 1), self.absolute
        memory = self.weight.new_empty(0)  # used again, as freshly mapped memory is slow

        def values(rows: RowsAt) -> Tensor:
            return self._rows(rows, n_cells, memory) if absolute is None else absolute[rows]

        row, column, found = strongest(values, self.shape, k)
        means = [found] if absolute is None else [self.signed_at(row, column), found / n_cells]
        return as_csr(means, row, column, self.shape)
