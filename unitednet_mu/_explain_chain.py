"""The chain of layers from one modality's input to another's output, with its direct path."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._deeplift import Rows, block_shape, compile_layers, push_forward, trace
from ._explain import ExplainSample, encoder_chain, network_values
from ._gap import Gap
from ._network import UnitedNetwork

_ALL = slice(None)


class CrossChain:
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
        self.background, self.rows = background, rows
        self.encoder = encoder_chain(network, source, cells, background, rows)
        self.shares = background.shares(len(cells.observed), rows)
        values = network_values(network, background.x[source], rows)
        self.codes = network.encode(source, values)
        path = network.direct_path(source, target)
        self.reference = 0.0 if path is None else path(network.standardisers[source](values))
        decoder: Any = network.decoders[target]
        self.steps, self.linear_path = compile_layers(decoder.deep), decoder.linear_path
        # cell and background share the batch: its columns of the linear path explain nothing
        n_latent = network.config.n_latent
        n_outputs = decoder.wide.in_features - network.n_batches * self.linear_path
        self.weight = decoder.wide.weight[:, :n_outputs].T.contiguous()
        self.n_latent, self.n_outputs = n_latent, int(n_outputs)
        self.n_hidden: int = self.encoder.side.weight.shape[0]
        n_features: int = self.encoder.side.weight.shape[1]
        self.direct = self._direct()
        self._bases: dict[bytes, tuple[Tensor, Tensor]] = {}  # by batch vector
        self._block = min(n_features, block_shape(self.codes.device)[0])

    def _direct(self) -> Tensor | None:
        """Weights of the direct path from the user's units, source x target features."""
        path = self.network.direct_path(self.source, self.target)
        if path is None:
            return None
        standardiser: Any = self.network.standardisers[self.source]
        weight: Tensor = path.weight / standardiser.scale[:, None]
        return weight

    def difference(self, values: Tensor) -> Tensor:
        """Values of cells less the background's mean, C x features: what the direct path reads."""
        difference: Tensor = values - self.encoder.side.background.mean(0)
        return difference

    def is_narrow(self, n_outputs: int) -> bool:
        """Whether going through the code takes less than multiplying out, to the wide layer."""
        return self.n_latent * (n_outputs + self.n_hidden) < n_outputs * self.n_hidden

    def pair_size(self, n_outputs: int, *, through: bool, blocks: bool = True) -> int:
        """Numbers per cell that live at a time, `through` the code or with maps multiplied out.

        Without `blocks` no pair of a cell and a background row has features of its own.
        """
        widest = max(n_outputs, self.n_outputs)
        inner = self.n_latent * (widest + self.n_hidden + (self._block if blocks else 0))
        return len(self.codes) * (inner if through else max(inner, n_outputs * self.n_hidden))

    def _batch(self, rows: Rows) -> Tensor | None:
        if not self.network.n_batches or self.cells.batch is None:
            return None
        return torch.as_tensor(self.cells.batch[rows]).to(self.codes)

    def maps(self, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Values of the cells (C x features), and multipliers on both sides of the code.

        Returns
        -------
        Values; multipliers of the wide layer's output for the code, C x L x B x H; multipliers of
        the code for the last hidden layer, C x L x B x R.
        """
        values = self.encoder.side.values(self.cells.x[self.source], rows)
        if self.shares is None:
            cells, background = self.encoder.trace(values), self.encoder.background
        else:
            cells = background = self.encoder.trace_between(values, self.shares[rows])
        codes, batch = [cells.output, background.output], self._batch(rows)
        codes = codes[:1] if background is cells else codes
        if batch is not None:
            codes = [code.expand(len(rows), -1, -1) for code in codes]
            codes = [torch.cat([c, batch[:, None].expand(-1, c.shape[1], -1)], 2) for c in codes]
        one = torch.eye(self.n_latent, codes[0].shape[2]).to(self.weight)[None, :, None]
        deep = [trace(self.steps, code) for code in codes]
        outer = push_forward(self.steps, one, deep[0], deep[-1])
        one = one[..., : self.n_latent].expand(*outer.shape[:3], -1)
        if self.linear_path:
            outer = torch.cat([outer, one], 3)
        return values, self.encoder.pull(one, cells, background), outer.to(self.weight.dtype)

    def spread(
        self, values: Tensor, inner: Tensor, outer: Tensor, weight: Tensor, gap: Gap
    ) -> None:
        """Tell `gap` how far points disagree; arguments as `maps` gives them, outer R x outputs.

        The direct path is linear: its attributions are the same at all points.
        """
        if self.shares is not None:
            pairs = self.encoder.totals(values, inner)
            gap.sampled.vary(torch.einsum("clb,clbr->cbr", pairs, outer), weight)

    def base(self, rows: Rows, gap: Gap) -> Tensor:
        """Mean output of the background, in the batch of each cell: C x target features."""
        batch = self._batch(rows)
        # one mean for each different batch vector
        kinds = np.zeros((len(rows), 1)) if self.cells.batch is None else self.cells.batch[rows]
        _, first, kind = np.unique(kinds, axis=0, return_index=True, return_inverse=True)
        means = []
        for one in first.tolist():
            key = kinds[one].tobytes()
            if key not in self._bases:
                self._bases[key] = self._base(None if batch is None else batch[one])
            mean, spread = self._bases[key]
            means.append(mean)
            gap.depart(spread)
        return torch.stack(means)[kind.ravel()]

    def _base(self, batch: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean output of the background as one batch, and how far its rows are from it at most."""
        as_batch = None if batch is None else batch.expand(len(self.codes), -1)
        reference = self.network.decode(self.target, self.codes, as_batch) + self.reference
        mean = reference.mean(0)
        return mean, (reference - mean).abs().max()

    def check(
        self, rows: Rows, totals: Tensor, gap: Gap, chosen: list[int] | slice = _ALL
    ) -> Tensor:
        """Compare attributions summed over features with the network's own answers.

        Parameters
        ----------
        totals
            Sums, C x target features, those that are `chosen`.

        Returns
        -------
        What they depart from, as `base` gives it, C x target features that are chosen.
        """
        values = network_values(self.network, self.cells.x[self.source], rows)
        predictor = self.network.translate(self.source, self.target, values, self._batch(rows))
        base = self.base(rows, gap)
        departure = predictor - base
        gap.depart(departure)
        gap.add(totals, departure[:, chosen], sampled=self.shares is not None)
        return base[:, chosen]


def multiplied_out(inner: Tensor, outer: Tensor) -> Tensor:
    """Multipliers of the wide layer's output for the last hidden layer, C x R x B x H."""
    of_pairs = outer.permute(0, 2, 3, 1) @ inner.transpose(1, 2)
    return of_pairs.transpose(1, 2)
