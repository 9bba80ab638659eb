"""The tasks: which parts of the network each runs, and the loss terms it returns."""

from __future__ import annotations

from collections import defaultdict
from typing import cast

import torch
from torch import Tensor

from . import _losses
from ._config import TrainingConfig
from ._data import Batch
from ._decoding import Decoding, Job, decoding_losses, discriminator_losses
from ._network import UnitedNetwork
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
        read = self._read(batch)
        usable = self._usable(batch)
        if batch.complete and all(usable):
            codes = [self.network.encode_read(m, x) for m, x in enumerate(read) if x is not None]
            return torch.stack(codes, 1), batch.observed
        shape = (len(batch), len(read), self.network.config.n_latent)
        found = torch.zeros(shape, device=self.device)
        for m, (x, rows) in enumerate(zip(read, batch.rows, strict=True)):
            if x is not None and usable[m]:
                found[rows, m] = self.network.encode_read(m, x)
        return found, self._counted(batch.observed, usable)

    def _usable(self, batch: Batch) -> list[bool]:
        """Whether each modality has cells enough, in training for batch statistics."""
        fewest = 2 if self.network.training else 1
        if batch.complete:
            return [len(batch.all_observed) >= fewest] * len(batch.x)
        counts: list[int] = batch.all_observed.sum(0).tolist()
        return [n >= fewest for n in counts]

    def _counted(self, observed: Tensor, usable: list[bool]) -> Tensor:
        return observed & torch.tensor(usable, device=self.device)

    def _everywhere(self, batch: Batch) -> Tensor:
        """Which codes of the whole mini-batch count, as :meth:`codes` says of this process's."""
        if batch.complete:
            return batch.all_observed
        return self._counted(batch.all_observed, self._usable(batch))

    def _read(self, batch: Batch) -> list[Values | None]:
        """Values of a mini-batch, standardised unless sparse; kept until another one is read."""
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
            values = self._contrastive(batch, codes)
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
        labels = batch.all_labels
        sizes = self._sizes(batch)
        if not batch.complete:
            usable, mine = self._everywhere(batch).any(1), observed.any(1)
            codes, observed, labels = codes[mine], observed[mine], labels[usable]
            sizes = self.ranks.sizes(usable)
        if len(labels) < 2:
            return {}
        fused = self._fused(codes, observed, learn=True)
        terms: dict[str, list[Tensor]] = defaultdict(list)
        for head in self.network.heads:
            logits, projected = (self.ranks.gather(one, sizes) for one in head(fused))
            if self.config.weight("cross_entropy"):
                loss = _losses.cross_entropy_loss(logits, labels, self.class_weights)
                terms["cross_entropy"].append(loss)
            if not self.supervised:
                for name, value in self.clustering(logits, projected).items():
                    terms[name].append(value)
        return _means(terms)

    def _sizes(self, batch: Batch) -> list[int]:
        return self.ranks.sizes(torch.ones(len(batch.all_labels), dtype=torch.bool))

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
        rows, everywhere = batch.rows[target], self._everywhere(batch)
        n = codes.shape[1]
        adversarial = bool(self.network.discriminators) and self.config.weight("generator") > 0
        jobs = []
        for source in range(n + (fused is not None and n > 1)):
            name = "reconstruction" if source == target else "translation"
            judged = adversarial and source < n
            if fused is not None and not (self.config.weight(name) or judged):
                continue
            code = codes[:, source] if source < n else cast("Tensor", fused)
            here: Tensor | None = None
            one_hot = self.network.one_hot(batch.batches)
            n_cells = len(batch.all_labels)
            if not batch.complete:
                counted = everywhere[:, source] if source < n else everywhere.any(1)
                n_cells = int((batch.all_observed[:, target] & counted).sum())
                seen = observed[rows, source] if source < n else observed[rows].any(1)
                here = seen.nonzero()[:, 0]
                code = code[rows[here]]
                one_hot = None if one_hot is None else one_hot[rows[here]]
            if n_cells >= 2:
                jobs.append(Job(name, judged, here, code, one_hot, n_cells / self.ranks.size))
        return Decoding(target, jobs)

    def _contrastive(self, batch: Batch, codes: Tensor) -> list[Tensor]:
        groups = batch.all_labels  # given, or those that training starts from
        codes, observed = self.ranks.gather(codes, self._sizes(batch)), self._everywhere(batch)
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
