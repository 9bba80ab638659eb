"""The tasks: which parts of the network each runs, and the loss terms it returns."""

from __future__ import annotations

from collections import defaultdict
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor

from . import _losses
from ._config import TrainingConfig
from ._data import Batch
from ._decoding import Decoding, Job, decoding_losses, discriminator_losses
from ._network import UnitedNetwork
from ._process import drawing_apart
from ._ranks import Ranks
from ._values import Values

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
    ranks
        Processes that share the mini-batch: the mean over them of a term is the term.
    """

    def __init__(
        self,
        network: UnitedNetwork,
        config: TrainingConfig,
        class_weights: Tensor | None,
        ranks: Ranks | None = None,
    ) -> None:
        self.network, self.config, self.class_weights = network, config, class_weights
        self.ranks = ranks or Ranks()
        self.device = network.fusion.logits.device
        self._last: tuple[Batch, list[Values | None]] | None = None

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
        fewest = 2 if self.network.training else 1  # for batch statistics
        enough = [len(rows) >= fewest for rows in batch.rows]
        usable = [m for m, one in enumerate(enough) if one]
        shares = [[self._sizes(batch, batch.observed[:, m])] for m in usable]
        hidden = self.ranks.gather((self._wide(batch, m) for m in usable), shares)
        codes = (self.network.after_wide(m, x) for m, x in zip(usable, hidden, strict=True))
        if batch.complete and all(enough):
            return torch.stack(list(codes), 1), batch.observed
        shape = (len(batch), len(enough), self.network.config.n_latent)
        found = torch.zeros(shape, device=self.device)
        for m, code in zip(usable, codes, strict=True):
            found[batch.rows[m], m] = code
        return found, batch.observed & torch.tensor(enough, device=self.device)

    def _wide(self, batch: Batch, m: int) -> Tensor:
        """Put this process's cells through the first layer of an encoder."""
        x, ranks = cast("Values", self._read(batch)[m]), self.ranks
        with nullcontext() if ranks.alone else drawing_apart(ranks.rank):
            return self.network.encode_wide(m, x)

    def _sizes(self, batch: Batch, counted: Tensor) -> list[int]:
        """How many of the cells that are counted each process has."""
        return self.ranks.sizes(len(batch), None if batch.complete else counted)

    def _read(self, batch: Batch) -> list[Values | None]:
        """Values of a mini-batch, standardised; kept until another one is read."""
        if self._last is None or self._last[0] is not batch:
            read = [None if x is None else self.network.read(m, x) for m, x in enumerate(batch.x)]
            self._last = batch, read
        return self._last[1]

    def label_free(self, batch: Batch, codes: Tensor, observed: Tensor) -> tuple[Tensor, Terms]:
        """Reconstruction, translation, contrastive and generator terms.

        Returns
        -------
        Their weighted sum, which the network learns from, and the terms, which are for the record.
        """
        # Only the groups teach the weights (as in the paper): decoding would favour the modality
        # with the fewest features, which is the easiest to decode.
        fused = self._fused(codes, observed, learn=False)
        decodings = [
            self._decoding(target, batch, codes, observed, fused)
            for target, x in enumerate(batch.x)
            if x is not None
        ]
        read = self._read(batch)
        total, terms = decoding_losses(self.network, self.config, decodings, batch.x, read)
        if self.config.weight("contrastive"):
            values = self._contrastive(batch, codes, observed)
            if values:
                contrastive = torch.stack(values).mean()
                total = total + self.config.weight("contrastive") * contrastive
                terms["contrastive"] = contrastive.detach()
        return total, terms

    def identification(self, batch: Batch, codes: Tensor, observed: Tensor) -> Terms:
        """Identification terms of every head.

        Cross-entropy with labels, or with the groups that training starts from; without labels also
        divergence clustering and entropy.
        """
        labels = batch.labels
        if not batch.complete:
            usable = observed.any(1)
            codes, observed, labels = codes[usable], observed[usable], labels[usable]
        if len(labels) < 2:
            return {}
        fused = self._fused(codes, observed, learn=True)
        terms: dict[str, list[Tensor]] = defaultdict(list)
        for head in self.network.heads:
            logits, projected = head(fused)
            if self.config.weight("cross_entropy"):
                loss = _losses.cross_entropy_loss(logits, labels, self.class_weights)
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
        with torch.no_grad():
            codes, observed = self.codes(batch)
        losses = []
        for target, (x, read) in enumerate(zip(batch.x, self._read(batch), strict=True)):
            if x is None or read is None:
                continue
            jobs = self._decoding(target, batch, codes, observed, None)
            losses += discriminator_losses(self.network, jobs, x, read)
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

    def _decoding(
        self, target: int, batch: Batch, codes: Tensor, observed: Tensor, fused: Tensor | None
    ) -> Decoding:
        """Which codes `target` is decoded from: its own, every other, and the fused one if given.

        Cells that lack the target, or what it is decoded from, are left out.
        """
        rows, own = batch.rows[target], self.ranks.part(len(batch))
        n = codes.shape[1]
        adversarial = bool(self.network.discriminators) and self.config.weight("generator") > 0
        one_hot = self.network.one_hot(batch.batches)
        jobs = []
        for source in range(n + (fused is not None and n > 1)):
            name = "reconstruction" if source == target else "translation"
            judged = adversarial and source < n
            if fused is not None and not (self.config.weight(name) or judged):
                continue
            code = codes[:, source] if source < n else cast("Tensor", fused)
            here: Tensor | None = None
            condition = one_hot
            counted = batch.observed[:, target]
            if not batch.complete:
                usable = observed[:, source] if source < n else observed.any(1)
                here = usable[own][counted[own]].nonzero()[:, 0]
                seen = rows[usable[rows]]
                code = code[seen]
                condition = None if one_hot is None else one_hot[seen]
                counted = counted & usable
            if len(code) >= 2:
                sizes = self._sizes(batch, counted)
                jobs.append(Job(name, judged, code, condition, here, sizes))
        return Decoding(target, jobs, self.ranks)

    def _contrastive(self, batch: Batch, codes: Tensor, observed: Tensor) -> list[Tensor]:
        groups = batch.labels  # given, or those that training starts from
        values = []
        for a in range(codes.shape[1]):
            for b in range(a + 1, codes.shape[1]):
                pair, of_pair = (codes[:, a], codes[:, b]), groups
                if not batch.complete:
                    both = observed[:, a] & observed[:, b]
                    pair, of_pair = (codes[both, a], codes[both, b]), groups[both]
                if len(of_pair) >= 2:
                    values.append(_losses.contrastive_loss(*pair, of_pair, self.config.temperature))
        return values


def _means(terms: dict[str, list[Tensor]]) -> Terms:
    return {name: torch.stack(values).mean() for name, values in terms.items() if values}
