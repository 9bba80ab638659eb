"""Steps: optimisers with clipping and schedule, and the running average of the weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ._config import TrainingConfig
from ._network import UnitedNetwork
from ._ranks import GradientSum, Ranks

#: Fewest numbers in a gradient whose memory is kept from step to step.
_LARGE = 2**16
#: Share of the running average that the weights before the first step may keep.
_FEW_STEPS = 0.05


class RunningAverage:
    """Exponential running average of a network's weights and statistics, which is what is kept.

    Where so few steps are planned that the weights before the first would keep more than a
    twentieth of it, they have no part in it, as in Adam's corrected moments (Kingma & Ba, ICLR
    2015).

    Parameters
    ----------
    network
        What moves.
    decay
        Share that a step keeps of the average, when many are made.
    n_planned
        Number of steps that there will be.

    Attributes
    ----------
    network
        A copy, with the average.
    n_steps
        How many have been taken in.
    """

    def __init__(self, network: UnitedNetwork, decay: float, n_planned: int) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self._decay, self.n_steps = decay, 0
        self._corrected = decay**n_planned > _FEW_STEPS
        # listed once: torch's AveragedModel walks the whole module tree at every step
        kept, moving = (
            list(n.state_dict(keep_vars=True).values()) for n in (self.network, network)
        )
        self._pairs = [(a, b) for a, b in zip(kept, moving, strict=True) if a.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Take one step of the network in."""
        kept, moving = zip(*self._pairs, strict=True)
        self.n_steps += 1
        share = 1 - self._decay
        if self._corrected:
            share /= 1 - self._decay**self.n_steps
        get_ema_multi_avg_fn(1 - share)(list(kept), list(moving), None)


class Optimiser:
    """AdamW for some parameters; steps are clipped.

    Parameters
    ----------
    parameters
        What moves.
    config
        Learning rate and clipping.
    ranks
        Processes whose gradients are summed.
    weight_decay
        Of the parameters.
    n_steps
        Length of a one-cycle schedule; None for a learning rate that stays.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        config: TrainingConfig,
        ranks: Ranks,
        *,
        weight_decay: float = 1e-2,
        n_steps: int | None = None,
    ) -> None:
        self.parameters, self.clip = parameters, config.gradient_clip
        self.adamw = torch.optim.AdamW(
            parameters, lr=config.learning_rate, weight_decay=weight_decay, fused=True
        )
        self.schedule = None if n_steps is None else _one_cycle(self.adamw, config, n_steps)
        self._n_ranks, self._sum = ranks.size, GradientSum(ranks, parameters)

    def backward(self, loss: Tensor, values: Tensor) -> Tensor:
        """Set the gradients, the sum of all processes', clipped.

        Returns
        -------
        Mean over processes of `values`, which travel with the gradients.
        """
        kept = self._clear()
        (loss / self._n_ranks).backward()
        for parameter, version in kept:
            if cast("Tensor", parameter.grad)._version == version:  # nothing was added
                parameter.grad = None
        values = self._sum.take(values / self._n_ranks)
        nn.utils.clip_grad_norm_(self.parameters, self.clip)
        return values

    def _clear(self) -> list[tuple[nn.Parameter, int]]:
        """Set all gradients to None, but keep large ones' memory on the CPU, filled with zeros.

        With steps in turn (`alternate`) those of decoders are not kept: every other one adds none.

        Returns
        -------
        Parameters with such a gradient, and the version of what it is then.
        """
        kept = []
        for parameter in self.parameters:
            gradient = parameter.grad
            if gradient is None or gradient.device.type != "cpu" or gradient.numel() < _LARGE:
                parameter.grad = None
            else:
                kept.append((parameter, gradient.zero_()._version))
        return kept

    def move(self) -> None:
        """Move the parameters by their gradients."""
        self.adamw.step()
        if self.schedule is not None:
            self.schedule.step()


def _one_cycle(
    adamw: torch.optim.AdamW, config: TrainingConfig, n_steps: int
) -> torch.optim.lr_scheduler.OneCycleLR:
    return torch.optim.lr_scheduler.OneCycleLR(
        adamw,
        config.learning_rate,
        total_steps=n_steps + 1,
        pct_start=max(0.2, 2 / (n_steps + 1)),  # it divides by 0.2 x 5 - 1 where these are 5
    )


class Optimisers:
    """One for the network, with a schedule, and another for its discriminators, if it has any."""

    def __init__(
        self, network: UnitedNetwork, config: TrainingConfig, n_steps: int, ranks: Ranks
    ) -> None:
        opponents = list(network.discriminators.parameters())
        theirs = {id(p) for p in opponents}
        own = [p for p in network.parameters() if id(p) not in theirs]
        decay = config.weight_decay
        self.network = Optimiser(own, config, ranks, weight_decay=decay, n_steps=n_steps)
        self.discriminators = Optimiser(opponents, config, ranks) if opponents else None

    @property
    def rate(self) -> float:
        """Learning rate of the network's next step."""
        return float(self.network.adamw.param_groups[0]["lr"])

    def _parts(self) -> dict[str, Any]:
        theirs = self.discriminators and self.discriminators.adamw
        parts = (self.network.adamw, self.network.schedule, theirs)
        return {str(k): part for k, part in enumerate(parts) if part is not None}

    def state_dict(self) -> dict[str, Any]:
        """Moments, learning rate and position in the schedule."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
