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
from ._ranks import Ranks
from ._tasks import Tasks

logger = logging.getLogger(__name__)

_HEAD_STEPS = 100
_FUSION_BATCH = 1024
_FEWEST_GROUPS = 2
#: Cells that fresh heads are fitted to, and that heads are judged on (all pairs of them), at most.
_FITTED_CELLS, _JUDGED_CELLS = 50_000, 5000


def random_heads(network: UnitedNetwork, n_groups: int | None) -> None:
    """Give the network fresh heads that know of no groups yet."""
    network.new_heads(n_groups or _FEWEST_GROUPS, network.config.n_heads)


@torch.no_grad()
def fused_codes(
    network: UnitedNetwork, config: TrainingConfig, data: Dataset, cells: np.ndarray
) -> Tensor:
    """Fused codes of `cells`, in evaluation mode."""
    tasks = Tasks(network.eval(), config, None)
    place = np.full(len(data), -1, np.int64)
    place[cells] = np.arange(len(cells))
    codes = torch.empty(len(cells), network.config.n_latent, device=tasks.device)
    ordered = data.in_file_order(cells)
    for block, batch in data.batches_of(ordered, _FUSION_BATCH, tasks.device):
        codes[torch.from_numpy(place[block]).to(tasks.device)] = network.fusion(*tasks.codes(batch))
    return codes


def start_heads(
    network: UnitedNetwork,
    config: TrainingConfig,
    z: Tensor,
    codes: Sequence[np.ndarray],
    n_groups: int | None,
    seed: int,
    ranks: Ranks,
) -> np.ndarray:
    """Find groups in `codes`, side by side, and fit fresh heads on the fused codes `z` to them.

    Of more than 50,000 cells so many, evenly over their order, are fitted to.

    Returns
    -------
    Group of every row of `z`, int64.
    """
    groups = ranks.of_first(lambda: starting_groups(np.hstack(codes), n_groups, config.start, seed))
    n_found = max(int(groups.max()) + 1, _FEWEST_GROUPS)
    logger.info("groups start from %d clusters.", n_found)
    network.new_heads(n_found, network.config.n_heads)
    some = _evenly(len(z), _FITTED_CELLS)
    labels = torch.from_numpy(groups[some]).to(z.device)
    for head in network.heads:
        _fit_head(head.train(), z[torch.from_numpy(some).to(z.device)], labels)
    return groups


@torch.no_grad()
def keep_best_head(
    network: UnitedNetwork, config: TrainingConfig, data: Dataset, cells: np.ndarray
) -> None:
    """Keep the head with the lowest clustering and entropy loss on `cells`, at most 5,000."""
    z = fused_codes(network, config, data, cells[_evenly(len(cells), _JUDGED_CELLS)])
    tasks = Tasks(network.eval(), config, None)
    losses = [float(tasks.total(tasks.clustering(*head(z)))) for head in network.heads]
    network.heads = nn.ModuleList([network.heads[int(np.argmin(losses))]])


def _evenly(n: int, most: int) -> np.ndarray:
    """Positions of at most `most` of `n`, evenly over them."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).astype(np.int64)


def _fit_head(head: nn.Module, z: Tensor, labels: Tensor) -> None:
    """Fit one head to starting groups on fixed codes, all cells at a time."""
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-2, fused=True)
    for _ in range(_HEAD_STEPS):
        optimiser.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(head(z)[0], labels).backward()
        optimiser.step()
