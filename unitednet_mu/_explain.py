"""The engine of explanations: DeepLIFT-rescale attributions of all outputs at once, without MuData.

What `shap.DeepExplainer` computes output by output and cell by cell (Shrikumar et al., ICML 2017;
Lundberg & Lee, NeurIPS 2017) is, in this network, one small linear map per pair of a cell and a
background row, between two wide layers (`_deeplift`). Maps are averaged over the background before
the last wide product. Means of signed values need that product once per group; means of absolute
values need it once per cell, in blocks that stay in cache. Cells x inputs x outputs is never held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from ._deeplift import (
    EncoderChain,
    Rows,
    Values,
    add_absolute,
    compile_layers,
    dense_rows,
    precise,
    pull_back,
    softmax_multipliers,
    strongest,
    trace,
)
from ._network import UnitedNetwork

Floats = NDArray[np.floating[Any]]
Progress = Callable[[int], None]

#: Bytes of a chunk's multipliers (about four such arrays live at a time), and most cells in it.
_CHUNK_BYTES, _CHUNK_BYTES_ON_DEVICE, _CHUNK_CELLS = 2**25, 2**28, 64
#: Pairs of features looked up at a time.
_PAIRS = 2**16


def _csr(x: Values | None) -> Values | None:
    return x if x is None or isinstance(x, np.ndarray) else x.tocsr()


@dataclass(frozen=True)
class ExplainSample:
    """Cells to explain, or background cells.

    Parameters
    ----------
    x
        Per modality the values in the user's units, cells x features, dense or CSR. Every matrix
        has all cells of the sample as rows; those of cells that lack the modality are never read,
        whatever they hold. ``None`` where no cell has the modality.
    observed
        Cells x modalities, bool.
    groups
        Per cell the number of the group whose explanation it counts to. Not read of a background.
    batch
        Cells x batches, one-hot or a mixture, where decoders are conditioned on it. Not read of a
        background, which takes on the batch of the cell that it is compared with.
    n_groups
        Number of groups; by default one more than the largest of `groups`.
    """

    x: Sequence[Values | None]
    observed: NDArray[np.bool_]
    groups: NDArray[np.integer[Any]] | None = None
    batch: Floats | None = None
    n_groups: int | None = None

    def __post_init__(self) -> None:
        """Check shapes; sparse matrices become CSR."""
        object.__setattr__(self, "observed", np.asarray(self.observed, dtype=bool))
        object.__setattr__(self, "x", [_csr(x) for x in self.x])
        n_cells, n_modalities = self.observed.shape
        if len(self.x) != n_modalities:
            raise ValueError(f"x: expected {n_modalities} modalities, found {len(self.x)}.")
        named = {f"x[{m}]": x for m, x in enumerate(self.x)}
        for name, value in {**named, "groups": self.groups, "batch": self.batch}.items():
            if value is not None and value.shape[0] != n_cells:
                raise ValueError(f"{name}: expected {n_cells} rows, found {value.shape[0]}.")

    def checked_groups(self, n_groups: int | None = None) -> tuple[Rows, int]:
        """Return the cells' groups and the number of groups."""
        if self.groups is None or not len(self.groups):
            raise ValueError("cells.groups: expected one group per cell to explain, found none.")
        low, high = int(self.groups.min()), int(self.groups.max())
        number = n_groups or self.n_groups or high + 1
        if low < 0 or high >= number:
            raise ValueError(f"cells.groups: expected 0 to {number - 1}, found {low} to {high}.")
        return self.groups.astype(np.intp), number

    def rows_observing(self, modalities: NDArray[np.bool_]) -> Rows:
        """Cells that observe all of `modalities`; an error where there are none."""
        rows = np.flatnonzero((self.observed | ~modalities).all(1))
        if not len(rows):
            raise ValueError(
                "background: expected a cell with modalities "
                f"{np.flatnonzero(modalities).tolist()}, as cells to explain have, found none."
            )
        return rows


@dataclass(frozen=True)
class GroupRelevance:
    """Relevance of every feature for the identification of each group.

    Parameters
    ----------
    signed, absolute
        Per modality, features x groups, in the network's float type: mean over the group's own
        cells that observe the modality (NaN where there is none) of the attribution and of its
        absolute value.
    gap
        Largest distance of a cell's attributions from adding up to its output, relative to the
        largest departure of an output from the background's mean.
    n_cells
        Cells that served, per group.
    """

    signed: list[Floats]
    absolute: list[Floats]
    gap: float
    n_cells: NDArray[np.int64]


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
    """

    signed: list[Floats | sparse.csr_matrix]
    absolute: list[Floats | sparse.csr_matrix] | None
    gap: float
    n_cells: NDArray[np.int64]


class _Gap:
    """Largest error of additivity, and largest departure from the background's mean."""

    error = scale = 0.0

    def add(self, totals: Tensor, expected: Tensor) -> None:
        error = _largest(totals - expected)
        self.error = max(self.error, error if np.isfinite(error) else np.inf)

    def depart(self, departure: Tensor) -> None:
        self.scale = max(self.scale, _largest(departure))

    def checked(self, tolerance: float) -> float:
        """Relative gap; an error above `tolerance`."""
        gap = self.error / self.scale if self.scale else self.error
        if not gap <= tolerance:
            raise RuntimeError(
                "explain: attributions do not add up to the network's output: expected a gap <= "
                f"{tolerance:.2e} of the largest departure from the background, found {gap:.2e}. "
                "Usual causes: values that are not finite or far from any training data, or matrix "
                "products in reduced precision."
            )
        return gap


def _largest(x: Tensor) -> float:
    return float(x.abs().max())


@contextmanager
def _inference(network: UnitedNetwork) -> Iterator[None]:
    """Switch to inference without gradients; afterwards each module has its own mode again."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _encoder(
    network: UnitedNetwork, m: int, cells: ExplainSample, background: ExplainSample, rows: Rows
) -> EncoderChain:
    """Build the encoder of modality `m` with `rows` of the background."""
    expected = network.shapes[m].n_features
    for name, x in (("cells", cells.x[m]), ("background", background.x[m])):
        if x is None or x.shape[1] != expected:
            found = None if x is None else x.shape[1]
            raise ValueError(f"{name}.x[{m}]: expected {expected} features, found {found}.")
    encoder, standardiser = network.encoders[m], network.standardisers[m]
    sparse_cells = not isinstance(cells.x[m], np.ndarray)
    return EncoderChain(encoder, standardiser, background.x[m], rows, sparse_cells)


def _codes(network: UnitedNetwork, m: int, sample: ExplainSample, rows: Rows) -> Tensor:
    """Encode as the network itself does: attributions are checked with it."""
    like = network.fusion.logits
    x = torch.as_tensor(dense_rows(sample.x[m], rows), dtype=like.dtype, device=like.device)
    return network.encode(m, x)


def _chunks(rows: Rows, pair_size: int, network: UnitedNetwork) -> Iterator[Rows]:
    """Split rows so that a chunk's multipliers (`pair_size` numbers per cell) keep to the limit."""
    on_cpu = network.fusion.logits.device.type == "cpu"
    limit = _CHUNK_BYTES if on_cpu else _CHUNK_BYTES_ON_DEVICE
    size = min(_CHUNK_CELLS, max(1, limit // (8 * pair_size)))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


class _GroupChain:
    """From all modalities that some cells observe (`mask`) to the head's output."""

    def __init__(
        self,
        network: UnitedNetwork,
        cells: ExplainSample,
        background: ExplainSample,
        mask: NDArray[np.bool_],
        output: str,
    ) -> None:
        self.network, self.cells, self.output = network, cells, output
        self.mask = torch.as_tensor(mask, device=network.fusion.logits.device)
        rows = background.rows_observing(mask)
        self.encoders = {
            m: _encoder(network, m, cells, background, rows) for m in np.flatnonzero(mask).tolist()
        }
        exact = precise(self.mask.device)
        self.weights = network.fusion.weights(self.mask[None])[0].to(exact)
        self.temperature = network.temperature.to(exact)
        head: Any = network.heads[0]
        self.steps = [*compile_layers(head.project), *compile_layers(head.logits)]
        codes = {m: encoder.background.output for m, encoder in self.encoders.items()}
        self.reference = trace(self.steps, self._fused(codes))
        self.reference_outputs = self._outputs(background, rows)
        self.pair_size = len(rows) * max(e.side.weight.shape[0] for e in self.encoders.values())

    def _fused(self, codes: dict[int, Tensor]) -> Tensor:
        return torch.stack([self.weights[m] * code for m, code in codes.items()]).sum(0)

    def _outputs(self, sample: ExplainSample, rows: Rows) -> Tensor:
        """Answer as the network itself does, rows x groups."""
        network = self.network
        shape = len(rows), len(network.shapes), network.config.n_latent
        codes = torch.zeros(shape).to(network.fusion.logits)
        for m in self.encoders:
            codes[:, m] = _codes(network, m, sample, rows)
        logits = network.group_logits(network.fusion(codes, self.mask.expand(len(rows), -1)))
        if self.output == "probabilities":
            return logits.softmax(1)
        return logits - logits.mean(1, keepdim=True)

    def _start(self, logits: Tensor, groups: Tensor) -> Tensor:
        """Multipliers of the logits for each cell's own output, C x 1 x (1 or B) x groups."""
        if self.output == "probabilities":
            z, reference = logits / self.temperature, self.reference.output / self.temperature
            return softmax_multipliers(z, reference, groups) / self.temperature
        own = torch.nn.functional.one_hot(groups, logits.shape[2]).to(logits.dtype)[:, None, None]
        return (own - 1 / logits.shape[2]) / self.temperature

    def attributions(
        self, rows: Rows, groups: Tensor, gap: _Gap
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Attributions to each cell's own output: modality, features (J), values (C x J)."""
        values = {m: e.side.values(self.cells.x[m], rows) for m, e in self.encoders.items()}
        traces = {m: e.trace(values[m]) for m, e in self.encoders.items()}
        head = trace(self.steps, self._fused({m: t.output for m, t in traces.items()}))
        v = pull_back(self.steps, self._start(head.output, groups), head, self.reference)
        totals = v.new_zeros(len(rows))
        for m, encoder in self.encoders.items():
            maps = encoder.pull(v * self.weights[m], traces[m])
            for features, block in encoder.side.attributions(values[m], maps):
                totals += block.sum((1, 2))
                yield m, features, block[:, 0]
        centre = self.reference_outputs.mean(0)
        departure = (self._outputs(self.cells, rows) - centre).gather(1, groups[:, None])
        gap.depart(departure)
        gap.depart(self.reference_outputs - centre)
        gap.add(totals, departure.squeeze(1))


def group_relevance(
    network: UnitedNetwork,
    cells: ExplainSample,
    background: ExplainSample,
    *,
    output: Literal["logits", "probabilities"] = "logits",
    tolerance: float = 1e-3,
    progress: Progress | None = None,
) -> GroupRelevance:
    """Which features make a group: attributions of a group's own cells to that group's output.

    All modalities of a cell are the joint input; background rows are paired across modalities. A
    cell that lacks a modality is compared with the background rows that have what it has,
    evaluated as if they had nothing else; what it lacks does not enter the means.

    Parameters
    ----------
    network
        On any device, in float32 or float64; modes of its modules stay as they are.
    cells
        To explain, with `groups`; one that observes nothing is left out.
    background
        To compare with.
    output
        ``"logits"``: calibrated logits minus their mean over groups (logits alone are not
        identifiable). ``"probabilities"``: their softmax, by the complete rule in
        `softmax_multipliers`.
    tolerance
        Largest gap of additivity.
    progress
        Called with the number of cells done.

    Returns
    -------
    Attributions of all features of all modalities of a cell add up to the cell's output minus the
    mean output of the background.

    Raises
    ------
    RuntimeError
        The gap exceeds `tolerance`.
    NotImplementedError
        A layer has no rule.
    ValueError
        Groups, shapes or background do not fit.

    Notes
    -----
    Memory beyond the input: sums (groups x features, float64, twice), the observed modalities' wide
    weights and dense background twice, 64 cells x features, about 128 MiB (1 GiB on a GPU) of
    multipliers.
    """
    if output not in ("logits", "probabilities"):
        raise ValueError(f"output: expected 'logits' or 'probabilities', found {output!r}.")
    groups, n_groups = cells.checked_groups(network.n_groups)
    like, gap, done = network.fusion.logits, _Gap(), 0
    sums = [
        torch.zeros(2, n_groups, shape.n_features, dtype=precise(like.device), device=like.device)
        for shape in network.shapes
    ]
    with _inference(network):
        for mask in np.unique(cells.observed[cells.observed.any(1)], axis=0):
            chain = _GroupChain(network, cells, background, mask, output)
            rows = np.flatnonzero((cells.observed == mask).all(1))
            for chunk in _chunks(rows, chain.pair_size, network):
                own = torch.as_tensor(groups[chunk], device=like.device)
                for m, features, block in chain.attributions(chunk, own, gap):
                    both = torch.stack([block, block.abs()]).to(sums[m].dtype)
                    by_group = both.new_zeros(2, n_groups, len(features)).index_add_(1, own, both)
                    sums[m].index_add_(2, features, by_group)
                done += len(chunk)
                if progress is not None:
                    progress(done)
    means = []
    for m, total in enumerate(sums):
        count = np.bincount(groups[cells.observed[:, m]], minlength=n_groups)
        total /= torch.as_tensor(count, device=like.device)[:, None]
        means.append(total.mT.to(like.dtype).cpu().numpy())
    n_cells = np.bincount(groups[cells.observed.any(1)], minlength=n_groups)
    signed, absolute = [mean[0] for mean in means], [mean[1] for mean in means]
    return GroupRelevance(signed, absolute, gap.checked(tolerance), n_cells)


class _CrossChain:
    """From one modality's input to the last hidden layer of another's decoder."""

    def __init__(
        self,
        network: UnitedNetwork,
        source: int,
        target: int,
        cells: ExplainSample,
        background: ExplainSample,
    ) -> None:
        self.network, self.source, self.target, self.cells = network, source, target, cells
        if network.n_batches and (cells.batch is None or cells.batch.shape[1] != network.n_batches):
            raise ValueError(
                f"cells.batch: expected cells x {network.n_batches}, as decoders are conditioned "
                f"on the batch, found {None if cells.batch is None else cells.batch.shape}."
            )
        rows = background.rows_observing(np.arange(len(network.shapes)) == source)
        self.encoder = _encoder(network, source, cells, background, rows)
        self.codes = _codes(network, source, background, rows)
        decoder: Any = network.decoders[target]
        self.steps, self.linear_path = compile_layers(decoder.deep), decoder.linear_path
        # cell and background share the batch: its columns of the linear path explain nothing
        n_latent = network.config.n_latent
        n_outputs = decoder.wide.in_features - network.n_batches * self.linear_path
        self.weight = decoder.wide.weight[:, :n_outputs].T.contiguous()
        self.n_deep, self.n_latent = n_outputs - n_latent * self.linear_path, n_latent
        self.pair_size = n_outputs * len(rows) * self.encoder.side.weight.shape[0]

    def _batch(self, rows: Rows) -> Tensor | None:
        if not self.network.n_batches or self.cells.batch is None:
            return None
        return torch.as_tensor(self.cells.batch[rows]).to(self.codes)

    def maps(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Values of the cells (C x features) and multipliers of the wide layer's output."""
        values = self.encoder.side.values(self.cells.x[self.source], rows)
        cells, background = self.encoder.trace(values), self.encoder.background
        codes, batch = [cells.output, background.output], self._batch(rows)
        if batch is not None:
            codes = [code.expand(len(rows), -1, -1) for code in codes]
            codes = [torch.cat([c, batch[:, None].expand(-1, c.shape[1], -1)], 2) for c in codes]
        deep = [trace(self.steps, code) for code in codes]
        one = torch.eye(self.n_deep).to(self.weight)[None, :, None]
        v = pull_back(self.steps, one, deep[0], deep[1])[..., : self.n_latent]
        if self.linear_path:
            one = torch.eye(self.n_latent).to(v)[None, :, None]
            v = torch.cat([v, one.expand(len(v), -1, v.shape[2], -1)], 1)
        return values, self.encoder.pull(v, cells)

    def check(self, rows: Rows, totals: Tensor, gap: _Gap) -> None:
        """Compare attributions summed over features (C x R) with the network's own answers."""
        network, batch = self.network, self._batch(rows)
        codes = _codes(network, self.source, self.cells, rows)
        departure = network.decode(self.target, codes, batch)
        # one mean output of the background for each different batch vector
        kinds = np.zeros((len(rows), 1)) if self.cells.batch is None else self.cells.batch[rows]
        _, first, kind = np.unique(kinds, axis=0, return_index=True, return_inverse=True)
        for i, one in enumerate(first.tolist()):
            as_batch = None if batch is None else batch[one].expand(len(self.codes), -1)
            reference = network.decode(self.target, self.codes, as_batch)
            departure[np.flatnonzero(kind.ravel() == i)] -= reference.mean(0)
            gap.depart(reference - reference.mean(0))
        gap.depart(departure)
        gap.add(totals.to(self.weight) @ self.weight, departure)


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
    """Which features of one modality drive which features of another, per group.

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
    layers and the dense background twice, 64 cells x source features, about 128 MiB (1 GiB on a
    GPU) of multipliers.
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: expected None or an integer >= 1, found {top_k}.")
    groups, n_groups = cells.checked_groups()
    observing = np.flatnonzero(cells.observed[:, source])
    n_cells = np.bincount(groups[observing], minlength=n_groups)
    gap, done = _Gap(), 0
    signed: list[Floats | sparse.csr_matrix] = []
    strength: list[Floats | sparse.csr_matrix] = []
    with _inference(network):
        chain = _CrossChain(network, source, target, cells, background)
        sums = _CrossSums(chain, units)
        for group in range(n_groups):
            sums.start(absolute)
            for chunk in _chunks(observing[groups[observing] == group], chain.pair_size, network):
                sums.add(chunk, gap)
                done += len(chunk)
                if progress is not None:
                    progress(done)
            means = sums.dense() if top_k is None else sums.top(top_k)
            signed.append(means[0])
            strength.extend(means[1:])
    return CrossRelevance(signed, strength if absolute else None, gap.checked(tolerance), n_cells)


class _CrossSums:
    """Sums over a group's cells: attributions to the last hidden layer, and absolute relevance."""

    def __init__(self, chain: _CrossChain, units: bool) -> None:
        self.chain, self.weight = chain, chain.weight
        if units and chain.network.shapes[chain.target].likelihood == "gaussian":
            standardiser: Any = chain.network.standardisers[chain.target]
            self.weight = self.weight * standardiser.scale
        self.shape = chain.encoder.side.weight.shape[1], self.weight.shape[1]

    def start(self, absolute: bool) -> None:
        """Begin a group."""
        device, self.n_cells = self.weight.device, 0
        self.factor = torch.zeros(
            self.shape[0], len(self.weight), dtype=precise(device), device=device
        )
        self.absolute: Tensor | None = None  # the last group's is gone before the next is made
        if absolute:
            self.absolute = torch.zeros(self.shape, dtype=self.weight.dtype, device=device)

    def add(self, rows: Rows, gap: _Gap) -> None:
        """Add cells."""
        values, maps = self.chain.maps(rows)
        side, factor = self.chain.encoder.side, torch.zeros_like(self.factor)
        totals = factor.new_zeros(maps.shape[:2])
        if self.absolute is None:
            for features, block in side.summed_attributions(values, maps):
                factor.index_add_(0, features, block.T.to(factor.dtype))
            # no single cell's sum over features exists: each cell is checked from the wide layer's
            # output on, and the sum over features against the sum of these
            hidden = (side.hidden(values)[:, None] - side.hidden(side.background)).to(maps.dtype)
            totals += torch.einsum("crbh,cbh->cr", maps, hidden) / maps.shape[2]
            both = torch.stack([factor.sum(0), totals.sum(0)]).to(self.weight) @ self.chain.weight
            gap.add(both[0], both[1])
        else:
            for features, block in side.attributions(values, maps):
                factor.index_add_(0, features, block.sum(0).T.to(factor.dtype))
                totals += block.sum(2)
                add_absolute(self.absolute, features, block, self.weight)
        self.factor += factor
        self.n_cells += len(rows)
        self.chain.check(rows, totals, gap)

    def dense(self) -> list[Floats]:
        """Means of signed and, where there are any, absolute values; NaN without cells."""
        signed = (self.factor / self.n_cells).to(self.weight) @ self.weight
        means = [signed] if self.absolute is None else [signed, self.absolute.div_(self.n_cells)]
        return [mean.cpu().numpy() for mean in means]

    def top(self, k: int) -> list[sparse.csr_matrix]:
        """Means of the strongest pairs; the signed ones are looked up, not all computed."""
        n_cells = max(self.n_cells, 1)
        factor, absolute = (self.factor / n_cells).to(self.weight), self.absolute

        def strength(start: int, stop: int) -> Tensor:
            if absolute is not None:
                return absolute[start:stop]
            weighted: Tensor = factor[start:stop] @ self.weight
            return weighted.abs_()

        row, column = strongest(strength, self.shape, k)
        signed, by_column = torch.empty(len(row)).to(factor), self.weight.T.contiguous()
        for start in range(0, len(row), _PAIRS):
            i, j = row[start : start + _PAIRS], column[start : start + _PAIRS]
            signed[start : start + _PAIRS] = (factor[i] * by_column[j]).sum(1)
        means = [signed] if absolute is None else [signed, absolute[row, column] / n_cells]
        index = row.cpu().numpy(), column.cpu().numpy()
        return [sparse.csr_matrix((mean.cpu().numpy(), index), self.shape) for mean in means]
