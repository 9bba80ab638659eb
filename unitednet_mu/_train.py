"""The training loop: tasks, schedule, early stopping, history, progress."""

from __future__ import annotations

import copy
import logging
import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from tqdm.auto import tqdm


from ._cluster import starting_groups
from ._config import TrainingConfig
from ._data import Batch, Dataset
from ._network import UnitedNetwork
from ._tasks import Tasks

logger = logging.getLogger(__name__)

_STATISTICS_BATCH = 2048


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch for the block and give the caller's random state back."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        yield


def set_statistics(network: UnitedNetwork, data: Dataset, cells: np.ndarray) -> None:
    """Set the standardisers from training cells, and the decoders' first guess to the mean.

    Sums run over the cells in the order given, in float64 and in blocks; nothing is densified as a whole.
    """
    for m, source in enumerate(data.sources):
        scaler = StandardScaler(with_mean=False)
        mine = cells[data.observed[cells, m]]
        for start in range(0, len(mine), _STATISTICS_BATCH):
            scaler.partial_fit(source.sparse_or_dense(mine[start : start + _STATISTICS_BATCH]).astype(np.float64))
        standardiser = network.standardisers[m]
        standardiser.mean.copy_(torch.from_numpy(scaler.mean_))
        standardiser.scale.copy_(torch.from_numpy(scaler.scale_))
        with torch.no_grad():
            bias = network.decoders[m].wide.bias
            bias.zero_()
            if network.shapes[m].likelihood == "binary":
                bias.copy_(torch.logit(standardiser.mean, 1e-4))


def split_cells(data: Dataset, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the cells into training and held-out ones, evenly over labels, batches and modalities observed.

    The split depends on cell names, not on their order.
    """
    cells = data.canonical
    rng = np.random.default_rng(seed)
    if fraction == 0:
        return cells, cells[:0]
    strata = np.column_stack([data.labels[cells], data.batches[cells], data.observed[cells]])
    _, stratum = np.unique(strata, axis=0, return_inverse=True)
    held = np.zeros(len(cells), bool)
    # systematic sampling along the sorted strata: every stratum gives its share to within one cell
    order = np.lexsort((rng.random(len(cells)), stratum.ravel()))
    n_held = round(fraction * len(cells))
    if n_held:
        held[order[((np.arange(n_held) + rng.random()) / n_held * len(cells)).astype(int)]] = True
    return cells[~held], cells[held]


@dataclass
class TrainingResult:
    """History (one row an epoch) and the cells that were trained on and held out."""

    history: pd.DataFrame
    train_cells: np.ndarray
    held_out_cells: np.ndarray



class Trainer:
    """Trains one network on one dataset; see :class:`TrainingConfig` for what can be set."""

    def __init__(
        self,
        network: UnitedNetwork,
        data: Dataset,
        config: TrainingConfig,
        *,
        supervised: bool,
        n_groups: int | None,
        seed: int,
        progress: bool,
    ) -> None:
        self.network, self.data, self.config = network, data, config
        self.supervised, self.n_groups, self.seed = supervised, n_groups, seed
        self.device = network.fusion.logits.device
        self.rng = np.random.default_rng(seed)
        self.train_cells, self.held_out = split_cells(data, config.validation_fraction, seed)
        self.batch_size = config.batch_size or default_batch_size(len(self.train_cells))
        self.max_epochs = config.max_epochs or default_epochs(len(self.train_cells), self.batch_size)
        self.tasks = Tasks(network, config, supervised=supervised, class_weights=self._class_weights())
        self.rows: list[dict[str, Any]] = []
        self.bar = tqdm(total=self.max_epochs, desc="fit", unit="epoch", disable=not progress)

    def _class_weights(self) -> Tensor:
        labels = self.data.labels[self.train_cells]
        counts = np.bincount(labels[labels >= 0], minlength=self.network.n_groups)
        weights = np.where(counts > 0, counts.sum() / np.maximum(counts, 1) / max((counts > 0).sum(), 1), 0.0)
        return torch.as_tensor(weights, dtype=torch.float32, device=self.device)

    def fit(self) -> pd.DataFrame:
        """Train through all phases and return the history."""
        if self.supervised:
            self._phase("train", self.max_epochs, [self.tasks.translation, self.tasks.identification])
        else:
            warmup = max(1, round(self.config.warmup * self.max_epochs))
            self._phase("warmup", warmup, [self.tasks.translation])
            self._start_groups()
            self._phase("train", self.max_epochs - warmup, [self.tasks.translation, self.tasks.identification])
            self._keep_best_head()
        self.bar.close()
        return pd.DataFrame(self.rows)

    def _phase(self, name: str, n_epochs: int, tasks: list[Any]) -> None:
        parameters = [p for n, p in self.network.named_parameters() if not n.startswith("discriminators.")]
        rate = self.config.learning_rate
        optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=self.config.weight_decay)
        opponent = torch.optim.AdamW(self.network.discriminators.parameters(), lr=rate)
        n_batches = math.ceil(len(self.train_cells) / self.batch_size)
        n_steps = n_epochs * n_batches * (len(tasks) if self.config.alternate else 1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=n_steps + 1, pct_start=0.2)
        best, best_state, best_epoch = math.inf, None, 0
        import os
        decay = float(os.environ.get("EMA", "0"))
        ema = torch.optim.swa_utils.AveragedModel(self.network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay), use_buffers=False) if decay else None
        for epoch in range(n_epochs):
            self.network.train()
            record: dict[str, list[float]] = defaultdict(list)
            order = self.train_cells[self.rng.permutation(len(self.train_cells))]
            for _, batch in self.data.batches_of(order, self.batch_size, self.device):
                if len(batch) < 2:
                    continue
                self._discriminate(batch, opponent, record)
                groups = [[t] for t in tasks] if self.config.alternate else [tasks]
                for group in groups:
                    terms = {k: v for task in group for k, v in task(batch).items()}
                    self._step(optimiser, parameters, terms, record)
                    schedule.step()
                    if ema is not None:
                        ema.update_parameters(self.network)
            if ema is not None:
                live = copy.deepcopy(self.network.state_dict())
                state = {k[7:]: v for k, v in ema.state_dict().items() if k.startswith("module.")}
                self.network.load_state_dict({k: (v if "running" not in k and "num_b" not in k else live[k]) for k, v in state.items()})
            validation = self._validate(tasks)
            total = validation.pop("total")
            self.rows.append(
                {"epoch": len(self.rows), "phase": name, "learning_rate": schedule.get_last_lr()[0]}
                | {f"train_{k}": float(np.mean(v)) for k, v in record.items()}
                | {f"val_{k}": v for k, v in validation.items()} | {"val_total": total}
            )
            self.bar.update()
            if total < best:
                best, best_epoch, best_state = total, epoch, copy.deepcopy(self.network.state_dict())
            elif epoch - best_epoch >= self.config.patience:
                break
            if ema is not None:
                self.network.load_state_dict(live)
        if best_state is not None and len(self.held_out):
            self.network.load_state_dict(best_state)

    def _total(self, terms: dict[str, Tensor]) -> Tensor:
        return torch.stack([self.config.loss_weights.get(k, 1.0) * v for k, v in terms.items()]).sum()

    def _step(self, optimiser: Any, parameters: Any, terms: dict[str, Tensor], record: dict[str, list[float]]) -> None:
        if not terms:
            return
        optimiser.zero_grad(set_to_none=True)
        self._total(terms).backward()
        nn.utils.clip_grad_norm_(parameters, self.config.gradient_clip)
        optimiser.step()
        for k, v in terms.items():
            record[k].append(float(v))

    def _discriminate(self, batch: Batch, opponent: Any, record: dict[str, list[float]]) -> None:
        if not (self.config.weight("generator") and self.config.weight("discriminator")):
            return
        opponent.zero_grad(set_to_none=True)
        loss = self.tasks.discrimination(batch)
        (loss * self.config.weight("discriminator")).backward()
        opponent.step()
        record["discriminator"].append(float(loss))

    @torch.no_grad()
    def _validate(self, tasks: list[Any]) -> dict[str, float]:
        if len(self.held_out) < 2:
            return {"total": math.nan}
        self.network.eval()
        sums: dict[str, float] = defaultdict(float)
        weight = 0
        for cells, batch in self.data.batches_of(self.held_out, 1024, self.device):
            for task in tasks:
                for k, v in task(batch).items():
                    sums[k] += float(v) * len(cells)
            weight += len(cells)
        out = {k: v / weight for k, v in sums.items()}
        out["total"] = sum(self.config.loss_weights.get(k, 1.0) * v for k, v in out.items() if k != "generator")
        return out

    @torch.no_grad()
    def embed(self, cells: np.ndarray) -> np.ndarray:
        self.network.eval()
        out = []
        for _, batch in self.data.batches_of(cells, 2048, self.device):
            codes, observed = self.tasks.codes(batch)
            out.append(self.network.fusion(codes, observed).cpu().numpy())
        return np.concatenate(out)

    def _start_groups(self) -> None:
        z = self.embed(self.train_cells)
        labels = starting_groups(z, self.n_groups, self.config.start, self.seed)
        self.start_labels = labels
        self.start_z = z
        k = labels.max() + 1
        self.network.new_heads(int(k), self.network.config.n_heads)
        full = np.full(len(self.data), -1, np.int64)
        full[self.train_cells] = labels
        self.data.labels = full  # experimental
        self.tasks.grouping = True
        counts = np.bincount(labels, minlength=k)
        self.tasks.class_weights = torch.ones(int(k))

    def _keep_best_head(self) -> None:
        pass


def default_batch_size(n):
    return int(min(512, max(64, 2 ** round(math.log2(max(n, 1) / 12)))))


def default_epochs(n, b):
    return int(min(400, max(30, round(3000 / math.ceil(n / b)))))
