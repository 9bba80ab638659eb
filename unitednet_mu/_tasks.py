"""The tasks: which parts of the network each runs, and the loss terms it returns."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from . import _losses
from ._config import TrainingConfig
from ._data import Batch
from ._network import UnitedNetwork

Terms = dict[str, Tensor]


class Tasks:
    """Loss terms of a mini-batch, task by task; a term of weight 0 is not computed.

    Parameters
    ----------
    network
        The network.
    config
        Weights of the terms.
    class_weights
        Weight of each label in the cross-entropy; None where groups are found without labels.
    """

    def __init__(
        self, network: UnitedNetwork, config: TrainingConfig, class_weights: Tensor | None
    ) -> None:
        self.network, self.config, self.class_weights = network, config, class_weights
        self.device = network.fusion.logits.device

    @property
    def supervised(self) -> bool:
        """Whether groups come from labels."""
        return self.class_weights is not None

    def total(self, terms: Terms) -> Tensor:
        """Weighted sum of loss terms."""
        weighted = [self.config.weight(term) * value for term, value in terms.items()]
        return torch.stack(weighted).sum() if weighted else torch.zeros((), device=self.device)

    def codes(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Codes of all modalities (cells x modalities x n_latent), and which count (bool)."""
        observed = batch.observed.clone()
        shape = (len(batch), len(batch.x), self.network.config.n_latent)
        codes = torch.zeros(shape, device=self.device)
        for m, (x, rows) in enumerate(zip(batch.x, batch.rows, strict=True)):
            if x is None or (
                self.network.training and len(x) < 2
            ):  # batch statistics need two cells
                observed[:, m] = False
            else:
                codes[rows, m] = self.network.encode(m, x)
        return codes, observed

    def label_free(self, batch: Batch, codes: Tensor, observed: Tensor) -> Terms:
        """Reconstruction, translation, contrastive and generator terms."""
        # Only the groups teach the weights (as in the paper): decoding would favour the modality
        # with the fewest features, which is the easiest to decode.
        fused = self._fused(codes, observed, learn=False)
        terms: dict[str, list[Tensor]] = defaultdict(list)
        for target, x in enumerate(batch.x):
            if x is not None:
                self._add_target(target, x, batch, codes, observed, fused, terms)
        if self.config.weight("contrastive"):
            terms["contrastive"] = self._contrastive(batch, codes, observed)
        return _means(terms)

    def identification(self, batch: Batch, codes: Tensor, observed: Tensor) -> Terms:
        """Identification terms of every head.

        Cross-entropy with labels, or with the groups that training starts from; without labels also
        divergence clustering and entropy.
        """
        usable = observed.any(1)
        if int(usable.sum()) < 2:
            return {}
        fused = self._fused(codes[usable], observed[usable], learn=True)
        terms: dict[str, list[Tensor]] = defaultdict(list)
        for head in self.network.heads:
            logits, projected = head(fused)
            if self.config.weight("cross_entropy"):
                loss = _losses.cross_entropy_loss(logits, batch.labels[usable], self.class_weights)
                terms["cross_entropy"].append(loss)
            if not self.supervised:
                for name, value in self.clustering(logits, projected).items():
                    terms[name].append(value)
        return _means(terms)

    def clustering(self, logits: Tensor, projected: Tensor) -> Terms:
        """Divergence clustering and entropy of one head, which finds groups without labels."""
        probabilities = torch.softmax(logits, 1)
        terms: Terms = {}
        if self.config.weight("clustering"):
            terms["clustering"] = _losses.clustering_loss(probabilities, projected)
        if self.config.weight("entropy"):
            terms["entropy"] = _losses.entropy_loss(probabilities)
        return terms

    def discrimination(self, batch: Batch) -> Terms:
        """Return the discriminators' own loss; decoded values are detached, nothing else learns."""
        losses = []
        with torch.no_grad():
            codes, observed = self.codes(batch)
        for target, x in enumerate(batch.x):
            for source in range(len(batch.x)):
                here = observed[batch.rows[target], source]
                if x is None or int(here.sum()) < 2:
                    continue
                with torch.no_grad():
                    code = codes[batch.rows[target][here], source]
                    predictor = self.network.decode(
                        target, code, self._one_hot(batch, target, here)
                    )
                    fake, real = self._visible(target, predictor), self._real(target, x[here])
                score = self.network.discriminators[target]
                losses.append(_losses.discriminator_loss(score(real), score(fake)))
        return {"discriminator": torch.stack(losses).mean()} if losses else {}

    def _fused(self, codes: Tensor, observed: Tensor, *, learn: bool) -> Tensor:
        """Fused codes; in training modalities are hidden at random, each cell keeping one."""
        kept = observed
        if self.network.training and self.config.modality_dropout and observed.shape[1] > 1:
            drawn = observed & (
                torch.rand(observed.shape, device=self.device) >= self.config.modality_dropout
            )
            kept = torch.where(drawn.any(1, keepdim=True), drawn, observed)
        nowhere = ~kept.any(1, keepdim=True)  # such a cell's fused code is never used; avoid 0/0
        fused: Tensor = self.network.fusion(codes, kept | nowhere, learn=learn)
        return fused

    def _add_target(
        self,
        target: int,
        x: Tensor,
        batch: Batch,
        codes: Tensor,
        observed: Tensor,
        fused: Tensor,
        terms: dict[str, list[Tensor]],
    ) -> None:
        """Add the terms of decoding `target` from its own, every other, and the fused code.

        All codes go through the decoder in one pass, so that batch statistics are of all of them.
        """
        rows, likelihood = batch.rows[target], self.network.shapes[target].likelihood
        real = self._real(target, x)
        adversarial = bool(self.network.discriminators) and self.config.weight("generator") > 0
        jobs: list[tuple[str, bool, Tensor, Tensor]] = []
        for source in [*range(len(batch.x)), None][: len(batch.x) + (len(batch.x) > 1)]:
            name = "reconstruction" if source == target else "translation"
            judged = adversarial and source is not None
            here = observed[rows].any(1) if source is None else observed[rows, source]
            if (self.config.weight(name) or judged) and int(here.sum()) >= 2:
                code = (fused if source is None else codes[:, source])[rows[here]]
                jobs.append((name, judged, here, code))
        if not jobs:
            return
        one_hot = [self._one_hot(batch, target, here) for _, _, here, _ in jobs]
        together = torch.cat([code for *_, code in jobs])
        batches = (
            torch.cat([o for o in one_hot if o is not None]) if self.network.n_batches else None
        )
        decoded = self.network.decode(target, together, batches)
        parts = decoded.split([len(code) for *_, code in jobs])
        for (name, judged, here, _), predictor in zip(jobs, parts, strict=True):
            if self.config.weight(name):
                terms[name].append(_losses.prediction_loss(predictor, real[here], likelihood))
            if judged:
                score = self.network.discriminators[target](self._visible(target, predictor))
                terms["generator"].append(_losses.generator_loss(score))

    def _contrastive(self, batch: Batch, codes: Tensor, observed: Tensor) -> list[Tensor]:
        groups = batch.labels  # given, or those that training starts from
        values = []
        for a in range(codes.shape[1]):
            for b in range(a + 1, codes.shape[1]):
                both = observed[:, a] & observed[:, b]
                if int(both.sum()) >= 2:
                    pair = codes[both, a], codes[both, b]
                    values.append(
                        _losses.contrastive_loss(*pair, groups[both], self.config.temperature)
                    )
        return values

    def _one_hot(self, batch: Batch, target: int, here: Tensor) -> Tensor | None:
        return self.network.one_hot(batch.batches[batch.rows[target][here]])

    def _real(self, target: int, x: Tensor) -> Tensor:
        """Return what a decoder of `target` is compared with."""
        if self.network.shapes[target].likelihood == "binary":
            return x
        standardised: Tensor = self.network.standardisers[target](x)
        return standardised

    def _visible(self, target: int, predictor: Tensor) -> Tensor:
        """Return a decoder's output on the scale of :meth:`_real`."""
        return (
            torch.sigmoid(predictor)
            if self.network.shapes[target].likelihood == "binary"
            else predictor
        )


def _means(terms: dict[str, list[Tensor]]) -> Terms:
    return {name: torch.stack(values).mean() for name, values in terms.items() if values}
