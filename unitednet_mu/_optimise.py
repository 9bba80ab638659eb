"""Steps: optimisers with clipping and schedule, and the running average of the weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ._config import TrainingConfig
from ._network import UnitedNetwork
from ._ranks import GradientSum, Ranks


class RunningAverage:
    """Exponential running average of a network's weights and statistics, which is what is kept."""

    def __init__(self, network: UnitedNetwork, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self._move = get_ema_multi_avg_fn(decay)
        # listed once: torch's AveragedModel walks the whole module tree at every step
        kept, moving = (
            list(n.state_dict(keep_vars=True).values()) for n in (self.network, network)
        )
        self._pairs = [(a, b) for a, b in zip(kept, moving, strict=True) if a.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Take one step of the network in."""
        kept, moving = zip(*self._pairs, strict=True)
        self._move(list(kept), list(moving), None)


class Optimisers:
    """AdamW for the network, one-cycle schedule, another for discriminators; clipped steps."""

    def __init__(
        self, network: UnitedNetwork, config: TrainingConfig, n_steps: int, ranks: Ranks
    ) -> None:
        self.clip = config.gradient_clip
        opponents = list(network.discriminators.parameters())
        theirs = {id(p) for p in opponents}
        self.parameters = [p for p in network.parameters() if id(p) not in theirs]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser,
            config.learning_rate,
            total_steps=n_steps + 1,
            pct_start=max(0.2, 2 / (n_steps + 1)),  # it divides by 0.2 x 5 - 1 where these are 5
        )
        self.opponents = opponents
        self.opponent = (
            torch.optim.AdamW(opponents, lr=config.learning_rate, fused=True) if opponents else None
        )
        self._n_ranks = ranks.size
        self._sum = GradientSum(ranks, self.parameters)
        self._opponents_sum = GradientSum(ranks, opponents)

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        return float(self.schedule.get_last_lr()[0])

    def state_dict(self) -> dict[str, Any]:
        """Moments, learning rate and position in the schedule."""
        parts = (self.optimiser, self.schedule, self.opponent)
        return {str(k): part.state_dict() for k, part in enumerate(parts) if part is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        for k, part in enumerate((self.optimiser, self.schedule, self.opponent)):
            if part is not None:
                part.load_state_dict(state[str(k)])

    def step(self, loss: Tensor, values: Tensor) -> Tensor:
        """Move the network; the discriminators' weights stay.

        Returns
        -------
        Mean over processes of `values`, which travel with the gradients.
        """
        self.optimiser.zero_grad(set_to_none=True)
        (loss / self._n_ranks).backward()
        values = self._sum.take(values / self._n_ranks)
        nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimiser.step()
        self.schedule.step()
        return values

    def step_discriminators(self, loss: Tensor, values: Tensor) -> Tensor:
        """Move the discriminators, as :meth:`step` does the network; its weights stay."""
        if self.opponent is None:
            raise ValueError("step_discriminators: expected discriminators, found none.")
        self.opponent.zero_grad(set_to_none=True)
        (loss / self._n_ranks).backward()
        values = self._opponents_sum.take(values / self._n_ranks)
        nn.utils.clip_grad_norm_(self.opponents, self.clip)
        self.opponent.step()
        return values
