"""One phase of a training: its optimisers, the running average, the best state, when it is over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ._config import TrainingConfig
from ._network import UnitedNetwork
from ._optimise import Optimisers, RunningAverage
from ._ranks import Ranks


@dataclass(frozen=True)
class Plan:
    """Name of a phase, its largest number of epochs, and whether groups are identified in it."""

    name: str
    n_epochs: int
    identify: bool


class Phase:
    """What one phase of a training keeps from epoch to epoch.

    Parameters
    ----------
    network
        The network, which the phase moves.
    config
        Settings of the training.
    plan
        What is to be done.
    n_steps
        Number of steps of all epochs, for the schedule.
    judged
        Whether held-out cells judge the epochs; otherwise the last one is the best.
    ranks
        Processes that train the network together.
    """

    def __init__(
        self,
        network: UnitedNetwork,
        config: TrainingConfig,
        plan: Plan,
        n_steps: int,
        *,
        judged: bool,
        ranks: Ranks,
    ) -> None:
        self.plan, self.judged, self._patience = plan, judged, config.patience
        self.averaged = RunningAverage(network, config.averaging, n_steps)
        self.optimisers = Optimisers(network, config, n_steps, ranks)
        self.epoch = 0  # epochs done
        self.best, self.best_epoch = math.inf, -1
        self.best_state: dict[str, Tensor] = {}
        #: Loss of the first step, before the network moved.
        self.first_loss = math.nan

    @property
    def over(self) -> bool:
        """Whether all epochs are done, or none was better for as many as patience allows."""
        idle = self.epoch - 1 - self.best_epoch
        return self.epoch >= self.plan.n_epochs or idle >= self._patience

    @property
    def usable(self) -> bool:
        """Whether an epoch has been completed in which groups were identified."""
        return self.plan.identify and bool(self.best_state)

    @property
    def learned(self) -> bool:
        """Whether the best state is better than the network was at the phase's first step."""
        return self.usable and self.best < self.first_loss

    def end_epoch(self, loss: float) -> bool:
        """Count an epoch and keep the averaged weights if they are the best so far.

        Returns
        -------
        Whether loss and averaged weights are finite.
        """
        state = self.averaged.network.state_dict()
        if not math.isfinite(loss) or not all(bool(x.isfinite().all()) for x in state.values()):
            return False
        if not self.judged or loss < self.best:
            self.best, self.best_epoch = loss, self.epoch
            self.best_state = {name: value.clone() for name, value in state.items()}
        self.epoch += 1
        return True

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`load_state_dict` needs to go on; nothing is copied."""
        return {
            "averaged": self.averaged.network.state_dict(),
            "n_averaged": self.averaged.n_steps,
            "optimisers": self.optimisers.state_dict(),
            "epoch": self.epoch,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_state": self.best_state,
            "first_loss": self.first_loss,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.averaged.network.load_state_dict(state["averaged"])
        self.averaged.n_steps = state["n_averaged"]
        self.optimisers.load_state_dict(state["optimisers"])
        self.epoch, self.best, self.best_epoch, self.best_state, self.first_loss = (
            state[name] for name in ("epoch", "best", "best_epoch", "best_state", "first_loss")
        )
