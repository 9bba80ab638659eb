"""Where the heads begin and end when groups are found without labels: clusters, the best head."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ._cluster import starting_groups
from ._config import TrainingConfig
from ._data import Dataset
from ._network import UnitedNetwork
from ._tasks import Tasks

logger = logging.getLogger(__name__)

_HEAD_STEPS = 100
_FUSION_BATCH = 1024
_FEWEST_GROUPS = 2


def random_heads(network: UnitedNetwork, n_groups: int | None) -> None:
    """Give the network fresh heads that know of no groups yet."""
    network.new_heads(n_groups or _FEWEST_GROUPS, network.config.n_heads)


@torch.no_grad()
def fused_codes(
    network: UnitedNetwork, config: TrainingConfig, data: Dataset, cells: np.ndarray
) -> Tensor:
    """Fused codes of `cells`, in evaluation mode."""
    tasks = Tasks(network.eval(), config, None)
    parts = [
        network.fusion(*tasks.codes(batch))
        for _, batch in data.batches_of(cells, _FUSION_BATCH, tasks.device)
    ]
    return torch.cat(parts)


def start_heads(
    network: UnitedNetwork,
    config: TrainingConfig,
    z: Tensor,
    codes: Sequence[np.ndarray],
    n_groups: int | None,
    seed: int,
) -> np.ndarray:
    """Find groups in `codes`, side by side, and fit fresh heads on the fused codes `z` to them.

    Returns
    -------
    Group of every row of `z`, int64.
    """
    groups = starting_groups(np.hstack(codes), n_groups, config.start, seed)
    n_found = max(int(groups.max()) + 1, _FEWEST_GROUPS)
    logger.info("groups start from %d clusters.", n_found)
    network.new_heads(n_found, network.config.n_heads)
    for head in network.heads:
        _fit_head(head.train(), z, torch.from_numpy(groups).to(z.device))
    return groups


@torch.no_grad()
def keep_best_head(
    network: UnitedNetwork, config: TrainingConfig, data: Dataset, cells: np.ndarray
) -> None:
    """Keep the head with the lowest clustering and entropy loss on `cells`."""
    z = fused_codes(network, config, data, cells)
    tasks = Tasks(network.eval(), config, None)
    losses = [float(tasks.total(tasks.clustering(*head(z)))) for head in network.heads]
    network.heads = nn.ModuleList([network.heads[int(np.argmin(losses))]])


def _fit_head(head: nn.Module, z: Tensor, labels: Tensor) -> None:
    """Fit one head to starting groups on fixed codes, all cells at a time."""
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-2, fused=True)
    for _ in range(_HEAD_STEPS):
        optimiser.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(head(z)[0], labels).backward()
        optimiser.step()
