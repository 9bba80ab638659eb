"""Relevance by `shap.DeepExplainer` itself, output by output and cell by cell: small requests.

The layers that a request needs are copied, in float64, into a module of layers that shap knows;
what is affine between them (standardiser, fusion, temperature) is plain arithmetic, through which
automatic differentiation, as shap uses it, is exact.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ._deeplift import Rows, Values, precise
from ._deeplift_input import dense_rows
from ._explain import (
    ExplainSample,
    GroupChain,
    Progress,
    check_samples,
    inference,
)
from ._explain_chain import CrossChain
from ._explain_cross import CrossRelevance
from ._gap import Gap
from ._network import UnitedNetwork
from ._strongest import as_csr, strongest


class _Encoder(nn.Module):
    """One modality's values, in the user's units, to its code."""

    def __init__(self, network: UnitedNetwork, m: int) -> None:
        super().__init__()
        encoder: Any = network.encoders[m]
        standardiser: Any = network.standardisers[m]
        self.mean, self.scale = (
            part.to(precise(part.device)) for part in (standardiser.mean, standardiser.scale)
        )
        self.n_hidden = encoder.n_hidden
        self.layers = nn.ModuleList([_copied(encoder.wide), _copied(encoder.deep)])

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layers[0]((x - self.mean) / self.scale)
        code: Tensor = self.layers[1](hidden[:, : self.n_hidden])
        return code + hidden[:, self.n_hidden :] if hidden.shape[1] > self.n_hidden else code


class _ToGroup(nn.Module):
    """From the modalities that some cells observe to one group's centred logit, cells x 1."""

    def __init__(self, chain: GroupChain, group: int) -> None:
        super().__init__()
        head: Any = chain.network.heads[0]
        self.modalities, self.group = list(chain.encoders), group
        self.weights, self.temperature = chain.weights, chain.temperature
        # containers of containers: shap cleans up after itself in these only
        encoders = [_Encoder(chain.network, m) for m in self.modalities]
        self.layers = nn.ModuleList([*encoders, _copied(head.project), _copied(head.logits)])

    def forward(self, *inputs: Tensor) -> Tensor:
        encoders = zip(self.modalities, self.layers, inputs, strict=False)
        fused = torch.stack([self.weights[m] * encode(x) for m, encode, x in encoders]).sum(0)
        logits = self.layers[-1](self.layers[-2](fused)) / self.temperature
        centred: Tensor = logits[:, [self.group]] - logits.mean(1, keepdim=True)
        return centred


class _ToModality(nn.Module):
    """From one modality to another's linear predictor, in one batch, cells x features."""

    def __init__(self, chain: CrossChain, batch: Tensor | None) -> None:
        super().__init__()
        decoder: Any = chain.network.decoders[chain.target]
        self.linear_path, self.batch = decoder.linear_path, batch
        encoder = _Encoder(chain.network, chain.source)
        self.direct = None if chain.direct is None else chain.direct.to(encoder.mean)
        self.layers = nn.ModuleList([encoder, _copied(decoder.deep), _copied(decoder.wide)])

    def forward(self, x: Tensor) -> Tensor:
        code = self.layers[0](x)
        if self.batch is not None:
            code = torch.cat([code, self.batch.to(code).expand(len(code), -1)], 1)
        hidden = self.layers[1](code)
        if self.linear_path:
            hidden = torch.cat([hidden, code], 1)
        predictor: Tensor = self.layers[2](hidden)
        return predictor if self.direct is None else predictor + x @ self.direct


def _copied(layer: nn.Module) -> nn.Module:
    """Copy a layer, as shap leaves tensors behind in those that it runs."""
    like = next(layer.parameters())
    return copy.deepcopy(layer).to(precise(like.device))


def _values(
    model: nn.Module, inputs: Sequence[Tensor], background: Sequence[Tensor]
) -> list[NDArray[np.float64]]:
    """Values by shap, per input cells x features x outputs.

    Raises
    ------
    NotImplementedError
        shap has no rule for a layer; the message names it.
    """
    import shap

    with torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings("error", message="unrecognized nn.Module", category=UserWarning)
        explainer = shap.DeepExplainer(model, list(background))
        try:
            found = explainer.shap_values(list(inputs), check_additivity=False)
        except UserWarning as warning:
            name = str(warning).rsplit(" ", 1)[-1]
            raise NotImplementedError(
                f"explain: shap has no rule for the layer {name}, its attributions would not add "
                "up. Use method='deeplift', which has one."
            ) from warning
    return list(found)


def _tensor(x: Values | None, rows: Rows, like: Tensor) -> Tensor:
    return torch.as_tensor(dense_rows(x, rows), dtype=precise(like.device), device=like.device)


class ShapGroupChain(GroupChain):
    """Attributions to groups by shap; for `group_relevance`."""

    def attributions(
        self, rows: Rows, groups: Tensor, gap: Gap
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """As of `GroupChain`."""
        if self.output != "logits":
            raise NotImplementedError(
                "explain: shap has no rule for the softmax over groups, its attributions would not "
                "add up. Use output='logits', or method='deeplift'."
            )
        x = {m: _tensor(self.cells.x[m], rows, self.weights) for m in self.encoders}
        background = [_tensor(self.background.x[m], self.rows, self.weights) for m in self.encoders]
        found = {m: torch.zeros_like(part) for m, part in x.items()}
        for group in groups.unique().tolist():
            mine = groups == group
            inputs = [part[mine] for part in x.values()]
            values = _values(_ToGroup(self, group), inputs, background)
            for m, part in zip(x, values, strict=True):
                found[m][mine] = torch.as_tensor(part[..., 0]).to(found[m])
        for m, block in found.items():
            yield m, torch.arange(block.shape[1], device=block.device), block
        totals = torch.stack([block.sum(1) for block in found.values()]).sum(0)
        self.check(rows, groups, totals, gap)


def shap_cross_relevance(
    network: UnitedNetwork,
    source: int,
    target: int,
    cells: ExplainSample,
    background: ExplainSample,
    *,
    top_k: int | None,
    tolerance: float = 1e-3,
    progress: Progress | None = None,
) -> CrossRelevance:
    """Relevance of one modality for another by shap; parameters and result of `cross_relevance`.

    Raises
    ------
    RuntimeError
        The gap exceeds `tolerance`.
    NotImplementedError
        shap has no rule for a layer.
    ValueError
        Groups, batches, shapes or background do not fit.
    """
    check_samples(network, cells, background)
    groups, n_groups = cells.checked_groups()
    observing = np.flatnonzero(cells.observed[:, source])
    gap, done = Gap(), 0
    signed: list[Any] = []
    absolute: list[Any] = []
    with inference(network):
        chain = _ShapCrossChain(network, source, target, cells, background)
        for group in range(n_groups):
            rows = observing[groups[observing] == group]
            sums = torch.zeros(2, *chain.shape, dtype=torch.float64)
            for row in rows:
                values = chain.values(row, gap)
                sums += torch.stack([values, values.abs()])
                done += 1
                if progress is not None:
                    progress(done)
            means = (sums / len(rows)).to(network.fusion.logits.dtype)
            kept = _strongest(means, top_k, n_cells=len(rows))
            signed.append(kept[0])
            absolute.append(kept[1])
    n_cells = np.bincount(groups[observing], minlength=n_groups)
    return CrossRelevance(signed, absolute, gap.checked(tolerance), n_cells)


class _ShapCrossChain(CrossChain):
    """One cell after the other, as each may have its own batch."""

    @property
    def shape(self) -> tuple[int, int]:
        shapes = self.network.shapes
        return shapes[self.source].n_features, shapes[self.target].n_features

    def values(self, row: int, gap: Gap) -> Tensor:
        """Attributions of a cell in the user's units, source x target features."""
        rows = np.array([row])
        like = self.network.fusion.logits
        model = _ToModality(self, self._batch(rows))
        pair = (self.cells, rows), (self.background, self.rows)
        x, background = (_tensor(sample.x[self.source], which, like) for sample, which in pair)
        values = torch.as_tensor(_values(model, [x], [background])[0][0])
        self.check(rows, values.sum(0)[None].to(like), gap)
        if self.network.shapes[self.target].likelihood == "gaussian":
            standardiser: Any = self.network.standardisers[self.target]
            values = values * standardiser.scale.cpu()
        return values


def _strongest(means: Tensor, top_k: int | None, n_cells: int) -> list[Any]:
    if top_k is None:
        return [mean.numpy() for mean in means]
    means = means if n_cells else torch.zeros_like(means)
    shape = means.shape[1], means.shape[2]
    row, column, _ = strongest(lambda rows: means[1, rows], shape, top_k)
    return as_csr([mean[row, column] for mean in means], row, column, shape)
