"""The same network and losses, trained by a plain loop: slices of dense tensors, and autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from unitednet_mu import _losses
from unitednet_mu._config import TrainingConfig
from unitednet_mu._network import UnitedNetwork


def prediction_loss(predictor: Tensor, target: Tensor, likelihood: str) -> Tensor:
    """Mean squared error, or binary cross-entropy at the logit."""
    if likelihood == "binary":
        return F.binary_cross_entropy_with_logits(predictor, target)
    return F.mse_loss(predictor, target)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Least squares: scores of real values to 1, of decoded ones to 0."""
    return (F.mse_loss(real, torch.ones_like(real)) + F.mse_loss(fake, torch.zeros_like(fake))) / 2


def generator_loss(fake: Tensor) -> Tensor:
    """Least squares: scores of decoded values to 1."""
    return F.mse_loss(fake, torch.ones_like(fake))


class PlainLoop:
    """Trains a network on dense tensors in memory; every cell has every modality.

    Parameters
    ----------
    network
        With discriminators, and without input dropout.
    standardised
        Values of each modality, cells x features, as the encoders read them.
    targets
        The same as the decoders are compared with: 0 and 1 where binary, else standardised.
    labels
        Group of each cell.
    config
        Loss weights, learning rate, gradient clipping and batch size.
    """

    def __init__(
        self,
        network: UnitedNetwork,
        standardised: Sequence[Tensor],
        targets: Sequence[Tensor],
        labels: Tensor,
        config: TrainingConfig,
    ) -> None:
        self.network, self.config = network.train(), config
        self.x, self.targets, self.labels = standardised, targets, labels
        opponents = list(network.discriminators.parameters())
        theirs = {id(p) for p in opponents}
        own = [p for p in network.parameters() if id(p) not in theirs]
        self.own = torch.optim.AdamW(own, lr=1e-4, weight_decay=config.weight_decay)
        self.opponents = torch.optim.AdamW(opponents, lr=1e-4)

    def prediction_pass(self, order: Tensor) -> None:
        """Step the discriminators, then the network, through all cells."""
        for cells in order.split(self.config.batch_size or len(order)):
            x, targets = [t[cells] for t in self.x], [t[cells] for t in self.targets]
            self._step(self.opponents, self.discriminators_loss(x, targets))
            self._step(self.own, self.prediction_loss(x, targets, self.labels[cells]))

    def identification_pass(self, order: Tensor) -> None:
        """Step encoders, fusion and head through all cells."""
        for cells in order.split(self.config.batch_size or len(order)):
            codes = self._codes([t[cells] for t in self.x])
            logits = self.network.heads[0](self._fused(codes))[0]
            self._step(self.own, F.cross_entropy(logits, self.labels[cells]))

    def _codes(self, x: Sequence[Tensor]) -> list[Tensor]:
        return [encoder(one) for encoder, one in zip(self.network.encoders, x, strict=True)]

    def _fused(self, codes: Sequence[Tensor]) -> Tensor:
        shape = len(codes[0]), len(codes)
        observed = torch.ones(shape, dtype=torch.bool, device=codes[0].device)
        fused: Tensor = self.network.fusion(torch.stack(list(codes), 1), observed)
        return fused

    def _visible(self, m: int, predictor: Tensor) -> Tensor:
        binary = self.network.shapes[m].likelihood == "binary"
        return torch.sigmoid(predictor) if binary else predictor

    def discriminators_loss(self, x: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Weighted loss of the discriminators, decoded values detached."""
        with torch.no_grad():
            codes = self._codes(x)
            fakes = [
                [self._visible(m, self.network.decode(m, code)) for code in codes]
                for m in range(len(x))
            ]
        losses = [
            discriminator_loss(judge(real), judge(fake))
            for judge, real, of_all in zip(self.network.discriminators, targets, fakes, strict=True)
            for fake in of_all
        ]
        return self.config.weight("discriminator") * torch.stack(losses).mean()

    def prediction_loss(
        self, x: Sequence[Tensor], targets: Sequence[Tensor], labels: Tensor
    ) -> Tensor:
        """Weighted sum of reconstruction, translation, contrastive and generator loss."""
        codes = self._codes(x)
        sources = [*codes, self._fused(codes)]
        own, other, fooled = [], [], []
        for m, target in enumerate(targets):
            decoded = self.network.decode(m, torch.cat(sources)).split(len(target))
            for s, predictor in enumerate(decoded):
                loss = prediction_loss(predictor, target, self.network.shapes[m].likelihood)
                (own if s == m else other).append(loss)
                if s < len(codes):
                    score = self.network.discriminators[m](self._visible(m, predictor))
                    fooled.append(generator_loss(score))
        contrastive = _losses.contrastive_loss(codes[0], codes[1], labels, self.config.temperature)
        terms = {"reconstruction": own, "translation": other, "generator": fooled}
        total = sum(self.config.weight(name) * torch.stack(of).mean() for name, of in terms.items())
        return total + self.config.weight("contrastive") * contrastive

    def _step(self, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
        optimiser.zero_grad()
        loss.backward()
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.config.gradient_clip)
        optimiser.step()
