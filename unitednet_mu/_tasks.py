"""The tasks: which parts of the network each runs, and the loss terms it returns."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from . import _losses
from ._config import TrainingConfig
from ._data import Batch
from ._network import UnitedNetwork


class Tasks:
    """Loss terms of a mini-batch, task by task.

    Parameters
    ----------
    network
        The network that is trained.
    config
        Weights of the terms (a term of weight 0 is not computed).
    supervised
        Whether groups come from labels.
    class_weights
        Weight of each label in the cross-entropy.
    """

    def __init__(
        self, network: UnitedNetwork, config: TrainingConfig, *, supervised: bool, class_weights: Tensor
    ) -> None:
        self.network, self.config = network, config
        self.supervised, self.class_weights = supervised, class_weights
        self.device = network.fusion.logits.device
        self.grouping = supervised
        self.started: Tensor | None = None

    # ------------------------------------------------------------------ parts of the network a task needs

    def codes(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Codes of all modalities (cells x modalities x n_latent) and which of them count."""
        observed = batch.observed.clone()
        shape = (len(batch), len(batch.x), self.network.config.n_latent)
        codes = torch.zeros(shape, device=self.device)
        for m, (x, rows) in enumerate(zip(batch.x, batch.rows, strict=True)):
            if x is None or (self.network.training and len(x) < 2):  # batch statistics need two cells
                observed[:, m] = False
                continue
            codes[rows, m] = self.network.encode(m, x)
        return codes, observed

    def _hide(self, observed: Tensor) -> Tensor:
        """Hide modalities at random, leaving each cell at least one."""
        if not self.network.training or self.config.modality_dropout == 0 or observed.shape[1] == 1:
            return observed
        kept = observed & (torch.rand(observed.shape, device=self.device) >= self.config.modality_dropout)
        return torch.where(kept.any(1, keepdim=True), kept, observed)

    def _one_hot(self, batch: Batch, rows: Tensor) -> Tensor | None:
        if not self.network.n_batches:
            return None
        return nn.functional.one_hot(batch.batches[rows], self.network.n_batches).float()

    # ------------------------------------------------------------------ tasks

    def translation(self, batch: Batch) -> dict[str, Tensor]:
        """Label-free terms: reconstruction, translation, contrastive, generator."""
        codes, observed = self.codes(batch)
        usable = observed.any(1)
        fused = self.network.fusion(codes, self._hide(observed) | ~usable[:, None])
        terms: dict[str, list[Tensor]] = defaultdict(list)
        for target, x in enumerate(batch.x):
            if x is None or not len(x):
                continue
            self._predict_target(target, x, batch, codes, observed, fused, terms)
        if self.config.weight("contrastive"):
            terms["contrastive"] = self._contrastive(batch, codes, observed, fused)
        return {name: torch.stack(values).mean() for name, values in terms.items() if values}

    def _predict_target(
        self,
        target: int,
        x: Tensor,
        batch: Batch,
        codes: Tensor,
        observed: Tensor,
        fused: Tensor,
        terms: dict[str, list[Tensor]],
    ) -> None:
        """Add the terms of decoding modality `target` from its own, every other, and the fused code."""
        network, rows, likelihood = self.network, batch.rows[target], self.network.shapes[target].likelihood
        real = x if likelihood == "binary" else network.standardisers[target](x)
        for source in [*range(len(batch.x)), None]:
            if source is None and len(batch.x) == 1:
                continue
            name = "reconstruction" if source == target else "translation"
            adversarial = self.config.weight("generator") > 0 and source is not None
            if not self.config.weight(name) and not adversarial:
                continue
            here = observed[rows].any(1) if source is None else observed[rows, source]
            if int(here.sum()) < 2:
                continue
            code = fused[rows[here]] if source is None else codes[rows[here], source]
            predictor = network.decode(target, code, self._one_hot(batch, rows[here]))
            loss = _losses.prediction_loss(predictor, real[here], likelihood)
            terms[name].append(loss)
            if adversarial:
                fake = torch.sigmoid(predictor) if likelihood == "binary" else predictor
                terms["generator"].append(_losses.generator_loss(network.discriminators[target](fake)))

    def _contrastive(self, batch: Batch, codes: Tensor, observed: Tensor, fused: Tensor) -> list[Tensor]:
        groups = batch.labels
        if self.grouping and not self.supervised:
            groups = self.network.heads[0](fused)[0].argmax(1)
        values = []
        for a in range(codes.shape[1]):
            for b in range(a + 1, codes.shape[1]):
                both = observed[:, a] & observed[:, b]
                if int(both.sum()) >= 2:
                    values.append(
                        _losses.contrastive_loss(codes[both, a], codes[both, b], groups[both], self.config.temperature)
                    )
        return values

    def identification(self, batch: Batch) -> dict[str, Tensor]:
        """Group terms: cross-entropy where labels are given, else divergence clustering and entropy."""
        codes, observed = self.codes(batch)
        usable = observed.any(1)
        if int(usable.sum()) < 2:
            return {}
        fused = self.network.fusion(codes[usable], self._hide(observed[usable]))
        terms: dict[str, list[Tensor]] = defaultdict(list)
        for head in self.network.heads:
            logits, projected = head(fused)
            if self.supervised:
                terms["cross_entropy"].append(
                    _losses.cross_entropy_loss(logits, batch.labels[usable], self.class_weights)
                )
                continue
            probabilities = torch.softmax(logits, 1)
            terms["clustering"].append(_losses.clustering_loss(probabilities, projected))
            terms["entropy"].append(_losses.entropy_loss(probabilities))
            if self.started is not None:
                terms["start"].append(self._start_loss(batch, usable, logits))
        return {name: torch.stack(values).mean() for name, values in terms.items()}

    def discrimination(self, batch: Batch) -> Tensor:
        """The discriminators' own loss: decoded values are detached, only discriminators learn from it."""
        with torch.no_grad():
            codes, observed = self.codes(batch)
        losses = []
        for target, x in enumerate(batch.x):
            if x is None:
                continue
            rows, discriminator = batch.rows[target], self.network.discriminators[target]
            binary = self.network.shapes[target].likelihood == "binary"
            for source in range(len(batch.x)):
                here = observed[rows, source]
                if int(here.sum()) < 2:
                    continue
                with torch.no_grad():
                    fake = self.network.decode(target, codes[rows[here], source], self._one_hot(batch, rows[here]))
                    fake = torch.sigmoid(fake) if binary else fake
                    real = x[here] if binary else self.network.standardisers[target](x[here])
                losses.append(_losses.discriminator_loss(discriminator(real), discriminator(fake)))
        return torch.stack(losses).mean()
