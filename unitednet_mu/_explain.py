"""The engine of explanations: DeepLIFT-rescale attributions of all outputs at once, without MuData.

What `shap.DeepExplainer` computes output by output and cell by cell (Shrikumar et al., ICML 2017;
Lundberg & Lee, NeurIPS 2017) is, in this network, one small linear map per pair of a cell and a
background row, between two wide layers (`_deeplift`). Maps are averaged over the background before
the last wide product. Here: samples, what all explanations share, and the relevance of features
for groups; relevance of features for features of another modality is in `_explain_cross`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._deeplift import (
    Rows,
    Values,
    compile_layers,
    precise,
    pull_back,
    softmax_multipliers,
    trace,
)
from ._deeplift_input import EncoderChain, dense_rows
from ._gap import Gap
from ._network import UnitedNetwork
from ._path import Path

Floats = NDArray[np.floating[Any]]
Progress = Callable[[int], None]

#: Bytes of a chunk's multipliers (about four such arrays live at a time), and most cells in it.
_CHUNK_BYTES, _CHUNK_BYTES_ON_DEVICE, _CHUNK_CELLS = 2**25, 2**28, 64


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
    path
        Of a background: compare with it at random points between it and the cell (expected
        gradients) instead of end to end (DeepLIFT).
    compared
        Of a background: its rows for cells with certain modalities (bool, one for each, as bytes).
        Other cells are compared with all rows that have what they have.
    """

    x: Sequence[Values | None]
    observed: NDArray[np.bool_]
    groups: NDArray[np.integer[Any]] | None = None
    batch: Floats | None = None
    n_groups: int | None = None
    path: Path | None = None
    compared: Mapping[bytes, Rows] = field(default_factory=dict)

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
        """Rows for cells with these `modalities`, which they have; an error where none has."""
        rows = self.compared.get(modalities.tobytes())
        if rows is None:
            rows = np.flatnonzero((self.observed | ~modalities).all(1))
        if not len(rows):
            raise ValueError(
                "background: expected a cell with modalities "
                f"{np.flatnonzero(modalities).tolist()}, as cells to explain have, found none."
            )
        return rows if self.path is None else self.path.rows(rows)

    def shares(self, n_cells: int, rows: Rows) -> Tensor | None:
        """Where the points between `n_cells` and background rows lie; None without a `path`."""
        if self.path is None:
            return None
        return self.path.shares(n_cells, len(rows), len(np.unique(rows)))


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
    standard_error
        Of expected gradients: root mean square over cells of the Monte-Carlo standard error of a
        cell's sum of attributions, relative as `gap` is. 0 where nothing is drawn at random.
    """

    signed: list[Floats]
    absolute: list[Floats]
    gap: float
    n_cells: NDArray[np.int64]
    standard_error: float = 0.0


@contextmanager
def inference(network: UnitedNetwork) -> Iterator[None]:
    """Switch to inference without gradients; afterwards each module has its own mode again."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def check_samples(network: UnitedNetwork, cells: ExplainSample, background: ExplainSample) -> None:
    """Refuse samples whose number of modalities is not the network's."""
    expected = len(network.shapes)
    for name, sample in (("cells", cells), ("background", background)):
        if len(sample.x) != expected:
            raise ValueError(
                f"{name}: expected the network's {expected} modalities, found {len(sample.x)}."
            )


def encoder_chain(
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


def network_values(network: UnitedNetwork, x: Values | None, rows: Rows) -> Tensor:
    """Values as the network itself reads them: attributions are checked with its answers."""
    like = network.fusion.logits
    return torch.as_tensor(dense_rows(x, rows), dtype=like.dtype, device=like.device)


def chunks_of(rows: Rows, pair_size: int, network: UnitedNetwork) -> Iterator[Rows]:
    """Split rows so that a chunk's multipliers (`pair_size` numbers per cell) keep to the limit."""
    on_cpu = network.fusion.logits.device.type == "cpu"
    limit = _CHUNK_BYTES if on_cpu else _CHUNK_BYTES_ON_DEVICE
    size = min(_CHUNK_CELLS, max(1, limit // (8 * pair_size)))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


class GroupChain:
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
        self.background, self.rows = background, rows
        self.encoders = {
            m: encoder_chain(network, m, cells, background, rows)
            for m in np.flatnonzero(mask).tolist()
        }
        exact = precise(self.mask.device)
        self.weights = network.fusion.weights(self.mask[None])[0].to(exact)
        self.temperature = network.temperature.to(exact)
        head: Any = network.heads[0]
        self.steps = [*compile_layers(head.project), *compile_layers(head.logits)]
        codes = {m: encoder.background.output for m, encoder in self.encoders.items()}
        self.reference = trace(self.steps, self._fused(codes))
        self.shares = background.shares(len(cells.observed), rows)
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
            codes[:, m] = network.encode(m, network_values(network, sample.x[m], rows))
        logits = network.group_logits(network.fusion(codes, self.mask.expand(len(rows), -1)))
        if self.output == "probabilities":
            return logits.softmax(1)
        return logits - logits.mean(1, keepdim=True)

    def _start(self, logits: Tensor, reference: Tensor, groups: Tensor) -> Tensor:
        """Multipliers of the logits for each cell's own output, C x 1 x (1 or B) x groups."""
        if self.output == "probabilities":
            scaled = logits / self.temperature, reference / self.temperature
            return softmax_multipliers(*scaled, groups) / self.temperature
        own = torch.nn.functional.one_hot(groups, logits.shape[2]).to(logits.dtype)[:, None, None]
        return (own - 1 / logits.shape[2]) / self.temperature

    def attributions(
        self, rows: Rows, groups: Tensor, gap: Gap
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Attributions to each cell's own output: modality, features (J), values (C x J)."""
        values = {m: e.side.values(self.cells.x[m], rows) for m, e in self.encoders.items()}
        if self.shares is None:
            traces = {m: e.trace(values[m]) for m, e in self.encoders.items()}
        else:
            shares = self.shares[rows]
            traces = {m: e.trace_between(values[m], shares) for m, e in self.encoders.items()}
        head = trace(self.steps, self._fused({m: t.output for m, t in traces.items()}))
        reference = self.reference if self.shares is None else head
        v = pull_back(
            self.steps, self._start(head.output, reference.output, groups), head, reference
        )
        totals, pairs = v.new_zeros(len(rows)), v.new_zeros(len(rows), 1, v.shape[2])
        for m, encoder in self.encoders.items():
            before = encoder.background if self.shares is None else traces[m]
            maps = encoder.pull(v * self.weights[m], traces[m], before)
            if self.shares is not None:
                pairs += encoder.totals(values[m], maps)
            for features, block in encoder.side.attributions(values[m], maps):
                totals += block.sum((1, 2))
                yield m, features, block[:, 0]
        if self.shares is not None:
            gap.sampled.vary(pairs.mT)
        self.check(rows, groups, totals, gap)

    def check(self, rows: Rows, groups: Tensor, totals: Tensor, gap: Gap) -> None:
        """Compare attributions summed over features with the network's own answers."""
        centre = self.reference_outputs.mean(0)
        departure = (self._outputs(self.cells, rows) - centre).gather(1, groups[:, None])
        gap.depart(departure)
        gap.depart(self.reference_outputs - centre)
        gap.add(totals, departure.squeeze(1), sampled=self.shares is not None)


def group_relevance(
    network: UnitedNetwork,
    cells: ExplainSample,
    background: ExplainSample,
    *,
    output: Literal["logits", "probabilities"] = "logits",
    tolerance: float = 1e-3,
    progress: Progress | None = None,
    chain_type: type[GroupChain] = GroupChain,
) -> GroupRelevance:
    """Which features make a group: attributions of a group's own cells to that group's output.

    All modalities of a cell are the joint input; background rows are paired across modalities. A
    cell that lacks a modality is compared with background rows that have what it has, evaluated as
    if they had nothing else; what it lacks does not enter the means.

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
    chain_type
        What computes attributions.

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
    check_samples(network, cells, background)
    groups, n_groups = cells.checked_groups(network.n_groups)
    like, gap, done = network.fusion.logits, Gap(), 0
    sums = [
        torch.zeros(2, n_groups, shape.n_features, dtype=precise(like.device), device=like.device)
        for shape in network.shapes
    ]
    with inference(network):
        for mask in np.unique(cells.observed[cells.observed.any(1)], axis=0):
            chain = chain_type(network, cells, background, mask, output)
            rows = np.flatnonzero((cells.observed == mask).all(1))
            for chunk in chunks_of(rows, chain.pair_size, network):
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
    checked = gap.checked(tolerance)
    return GroupRelevance(signed, absolute, checked, n_cells, gap.standard_error)
