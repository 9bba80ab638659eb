"""The training loop: phases, steps, schedule, early stopping, history, progress."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from tqdm.auto import tqdm

from ._cluster import starting_groups
from ._config import TrainingConfig
from ._data import Batch, Dataset
from ._network import Decoder, Encoder, Standardiser, UnitedNetwork
from ._noise import choose_input_dropout
from ._optimise import Optimisers, RunningAverage
from ._tasks import Tasks, Terms

logger = logging.getLogger(__name__)

_STATISTICS_BATCH = 2048
_EVALUATION_BATCH = 1024
_HEAD_STEPS = 100
#: Steps of a training by default.
_STEPS = 750
_FEWEST_GROUPS = 2
#: Fewer values (cells x features) than this in a mini-batch make a small step.
_SMALL_STEP = 2**20


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch for the block and give the caller's random state back."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        yield


@contextmanager
def threads_for(values_per_step: int) -> Iterator[None]:
    """Run small steps on one thread, and give the caller's number of threads back.

    Waiting for a second thread costs a small step more than it saves, and far more where another
    process uses the second core.
    """
    before = torch.get_num_threads()
    if values_per_step < _SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def set_statistics(network: UnitedNetwork, data: Dataset, cells: np.ndarray) -> None:
    """Set the standardisers from training cells, and the decoders' first guess to the mean.

    Sums run over the cells in the order given, in float64 and in blocks; nothing is densified as a
    whole.
    """
    for m, source in enumerate(data.sources):
        scaler = StandardScaler(with_mean=False)
        mine = cells[data.observed[cells, m]]
        if not len(mine):
            continue
        for start in range(0, len(mine), _STATISTICS_BATCH):
            scaler.partial_fit(
                source.sparse_or_dense(mine[start : start + _STATISTICS_BATCH]).astype(np.float64)
            )
        standardiser = cast("Standardiser", network.standardisers[m])
        standardiser.mean.copy_(torch.from_numpy(scaler.mean_))
        standardiser.scale.copy_(torch.from_numpy(scaler.scale_))
        with torch.no_grad():
            bias = cast("Decoder", network.decoders[m]).wide.bias
            bias.zero_()
            if network.shapes[m].likelihood == "binary":
                bias.copy_(torch.logit(standardiser.mean, 1e-4))


def split_cells(data: Dataset, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the cells for training and held out, evenly over labels, batches and modalities.

    The split depends on the names of the cells, not on their order.
    """
    cells = data.canonical
    n_held = round(fraction * len(cells))
    if not n_held:
        return cells, cells[:0]
    rng = np.random.default_rng(seed)
    strata = np.column_stack([data.labels[cells], data.batches[cells], data.observed[cells]])
    stratum = np.unique(strata, axis=0, return_inverse=True)[1].ravel()
    # systematic sampling along the sorted strata: every stratum gives its share to within one cell
    order = np.lexsort((rng.random(len(cells)), stratum))
    held = np.zeros(len(cells), bool)
    held[order[((np.arange(n_held) + rng.random()) / n_held * len(cells)).astype(int)]] = True
    return cells[~held], cells[held]


def default_batch_size(n_cells: int) -> int:
    """Cells per mini-batch: about a sixteenth of the cells, a power of two from 64 to 512."""
    return int(np.clip(2 ** round(math.log2(max(n_cells, 1) / 16)), 64, 512))


def default_epochs(n_cells: int, batch_size: int) -> int:
    """Epochs that make about 750 steps, at least 20 and at most 300."""
    return int(np.clip(round(_STEPS * batch_size / max(n_cells, 1)), 20, 300))


class Trainer:
    """Trains one network on one dataset.

    Parameters
    ----------
    network
        Trained in place.
    data
        Cells, labels (-1 where unknown) and batches.
    config
        Schedule, loss weights, early stopping.
    supervised
        Whether groups come from `data.labels`.
    n_groups
        Number of groups to find; None lets Leiden find it. Not read where supervised.
    new_groups
        Whether groups are found anew; otherwise the network's head is trained on.
    seed
        Of everything random.
    progress
        Whether a progress bar is shown.
    """

    def __init__(
        self,
        network: UnitedNetwork,
        data: Dataset,
        config: TrainingConfig,
        *,
        supervised: bool,
        n_groups: int | None,
        new_groups: bool,
        seed: int,
        progress: bool,
    ) -> None:
        self.network, self.data, self.config, self.seed = network, data, config, seed
        self.n_groups, self.find_groups = n_groups, new_groups and not supervised
        self.device = network.fusion.logits.device
        self.rng = np.random.default_rng(seed)
        self.train_cells, self.held_out = split_cells(data, config.validation_fraction, seed)
        if len(self.train_cells) < 2:
            raise ValueError(
                f"validation_fraction: {config.validation_fraction} leaves {len(self.train_cells)} "
                "cells to train on, expected at least 2. Lower it."
            )
        if config.batch_size is not None and config.batch_size > len(self.train_cells):
            raise ValueError(
                f"batch_size: expected at most the {len(self.train_cells)} training cells, found "
                f"{config.batch_size}. Lower it, or leave it at None."
            )
        self.batch_size = config.batch_size or default_batch_size(len(self.train_cells))
        self.max_epochs = config.max_epochs or default_epochs(
            len(self.train_cells), self.batch_size
        )
        if network.config.input_dropout is None:
            shares = choose_input_dropout(data, self.train_cells, seed)
            for encoder, share in zip(network.encoders, shares, strict=True):
                cast("Encoder", encoder).drop.p = share
            logger.info("input dropout by modality: %s.", [round(share, 2) for share in shares])
        self.class_weights = self._class_weights() if supervised else None
        self.rows: list[dict[str, Any]] = []
        self.progress = progress
        #: Codes of all cells after the warm-up, of each network trained so far on these cells.
        self.starting_codes: list[np.ndarray] = []

    def _class_weights(self) -> Tensor:
        labels = self.data.labels[self.train_cells]
        counts = np.bincount(labels[labels >= 0], minlength=self.network.n_groups)
        present = counts > 0
        weights = np.where(
            present, counts.sum() / np.maximum(counts, 1) / max(present.sum(), 1), 0.0
        )
        return torch.as_tensor(weights, dtype=torch.float32, device=self.device)

    def fit(self) -> pd.DataFrame:
        """Train through all phases; the network is left in its best state.

        Returns
        -------
        History, one row an epoch.
        """
        values_per_step = self.batch_size * sum(s.n_features for s in self.network.shapes)
        what = "fit" if len(self.held_out) else "fit on all cells"
        with (
            threads_for(values_per_step),
            tqdm(total=self.max_epochs, desc=what, unit="epoch", disable=not self.progress) as bar,
        ):
            if self.find_groups:
                warmup = max(1, round(self.config.warmup * self.max_epochs))
                self._phase("warmup", warmup, bar, identify=False)
                self._start_heads()
                self._phase("train", max(1, self.max_epochs - warmup), bar, identify=True)
                self._keep_best_head()
            else:
                self._phase("train", self.max_epochs, bar, identify=True)
        self.network.eval()
        return pd.DataFrame(self.rows)

    # ------------------------------------------------------------------ one phase

    def _phase(self, name: str, n_epochs: int, bar: Any, *, identify: bool) -> None:
        """Train for up to `n_epochs`; restore the averaged weights with the best held-out loss."""
        averaged = RunningAverage(self.network, self.config.averaging)
        optimisers = Optimisers(
            self.network, self.config, n_epochs * self._steps_per_epoch(identify)
        )
        tasks = Tasks(self.network, self.config, self.class_weights)
        judged = Tasks(averaged.network, self.config, self.class_weights)
        best, best_epoch = math.inf, 0
        best_state = averaged.network.state_dict()  # the last one's, where nothing is held out
        for epoch in range(n_epochs):
            record = self._epoch(tasks, optimisers, averaged, identify)
            held_out = self._evaluate(judged, identify)
            total = self._total_value(held_out) if held_out else math.nan
            self.rows.append(
                {
                    "epoch": len(self.rows),
                    "phase": name,
                    "learning_rate": optimisers.rate,
                    "val_total": total,
                }
                | {f"train_{term}": value for term, value in record.items()}
                | {f"val_{term}": value for term, value in held_out.items()}
            )
            if held_out:
                bar.set_postfix(held_out=f"{total:.3f}")
            bar.update()
            if not held_out:
                best_epoch = epoch
            elif total < best:
                best, best_epoch, best_state = total, epoch, _copied(averaged.network)
            elif epoch - best_epoch >= self.config.patience:
                bar.total -= n_epochs - epoch - 1
                break
        self._check_finite(best_state, diverged=bool(held_out) and math.isinf(best))
        self.network.load_state_dict(best_state)

    def _check_finite(self, state: dict[str, Tensor], *, diverged: bool) -> None:
        if diverged or not all(bool(value.isfinite().all()) for value in state.values()):
            raise RuntimeError(
                "training diverged: the losses or weights became infinite or NaN; nothing was "
                f"kept. Lower learning_rate (now {self.config.learning_rate}), or look for extreme "
                "values in the data."
            )

    def _steps_per_epoch(self, identify: bool) -> int:
        per_batch = 2 if identify and self.config.alternate else 1
        return math.ceil(len(self.train_cells) / self.batch_size) * per_batch

    def _epoch(
        self, tasks: Tasks, optimisers: Optimisers, averaged: RunningAverage, identify: bool
    ) -> dict[str, float]:
        self.network.train()
        values: dict[str, list[float]] = defaultdict(list)
        order = self.train_cells[self.rng.permutation(len(self.train_cells))]
        for _, batch in self.data.batches_of(order, self.batch_size, self.device):
            for terms in self._steps(tasks, batch, identify, optimisers):
                if "discriminator" not in terms:  # that step leaves the network as it is
                    averaged.update()
                for term, value in terms.items():
                    values[term].append(float(value.detach()))
        return {term: float(np.mean(found)) for term, found in values.items()}

    def _steps(
        self, tasks: Tasks, batch: Batch, identify: bool, optimisers: Optimisers
    ) -> Iterator[Terms]:
        """Make the steps of one mini-batch: discriminators, then the tasks, together or in turn."""
        if len(batch) < 2:  # batch statistics and pairs need two cells
            return
        if self.network.discriminators and self.config.weight("discriminator"):
            judged = tasks.discrimination(batch)
            if judged:
                optimisers.step_discriminators(self._total(judged))
                yield judged
        rounds = (
            [(True, False), (False, True)]
            if identify and self.config.alternate
            else [(True, identify)]
        )
        for label_free, identification in rounds:
            codes, observed = tasks.codes(batch)
            terms: Terms = tasks.label_free(batch, codes, observed) if label_free else {}
            if identification:
                terms |= tasks.identification(batch, codes, observed)
            if terms:
                optimisers.step(self._total(terms))
                yield terms

    @torch.no_grad()
    def _evaluate(self, tasks: Tasks, identify: bool) -> dict[str, float]:
        """Mean terms over held-out cells, in evaluation mode; empty where nothing is held out."""
        tasks.network.eval()
        sums: dict[str, float] = defaultdict(float)
        cells_seen: dict[str, int] = defaultdict(int)
        for cells, batch in self.data.batches_of(self.held_out, _EVALUATION_BATCH, self.device):
            codes, observed = tasks.codes(batch)
            terms = tasks.label_free(batch, codes, observed)
            if identify:
                terms |= tasks.identification(batch, codes, observed)
            for term, value in terms.items():
                sums[term] += float(value) * len(cells)
                cells_seen[term] += len(cells)
        return {term: total / cells_seen[term] for term, total in sums.items()}

    def _total(self, terms: Terms) -> Tensor:
        weighted = [self.config.weight(term) * value for term, value in terms.items()]
        return torch.stack(weighted).sum() if weighted else torch.zeros((), device=self.device)

    def _total_value(self, terms: dict[str, float]) -> float:
        """Held-out loss that decides; the generator's is left out, since its opponent moves."""
        return sum(
            self.config.weight(term) * value for term, value in terms.items() if term != "generator"
        )

    # ------------------------------------------------------------------ groups without labels

    @torch.no_grad()
    def _fused(self, cells: np.ndarray) -> Tensor:
        tasks = Tasks(self.network.eval(), self.config, self.class_weights)
        parts = []
        for _, batch in self.data.batches_of(cells, _EVALUATION_BATCH, self.device):
            parts.append(self.network.fusion(*tasks.codes(batch)))
        return torch.cat(parts)

    def _start_heads(self) -> None:
        """Find groups on the fused codes of all cells, fit every head to them, anchor training.

        A network trained once more starts from its codes and the first one's side by side: what
        both found is less left to chance.
        """
        cells = self.data.canonical
        z = self._fused(cells)
        if self.config.start == "random":
            self.network.new_heads(self.n_groups or _FEWEST_GROUPS, self.network.config.n_heads)
            return
        self.starting_codes.append((z / z.std().clamp_min(1e-12)).cpu().numpy())
        together = np.hstack(self.starting_codes)
        groups = starting_groups(together, self.n_groups, self.config.start, self.seed)
        n_groups = max(int(groups.max()) + 1, _FEWEST_GROUPS)
        logger.info("groups start from %d clusters.", n_groups)
        anchors = np.full(len(self.data), -1, np.int64)
        anchors[cells] = groups
        self.data = replace(self.data, labels=anchors)
        self.network.new_heads(n_groups, self.network.config.n_heads)
        for head in self.network.heads:
            _fit_head(head.train(), z, torch.from_numpy(groups).to(self.device))

    @torch.no_grad()
    def _keep_best_head(self) -> None:
        """Keep the head with the lowest clustering and entropy loss on the training cells."""
        z = self._fused(self.train_cells)
        losses = []
        for head in self.network.heads:
            tasks = Tasks(self.network.eval(), self.config, None)
            losses.append(float(self._total(tasks.clustering(*head(z)))))
        self.network.heads = nn.ModuleList([self.network.heads[int(np.argmin(losses))]])


def _copied(network: UnitedNetwork) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def _fit_head(head: nn.Module, z: Tensor, labels: Tensor) -> None:
    """Fit one head to starting groups on fixed codes, all cells at a time."""
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-2, fused=True)
    for _ in range(_HEAD_STEPS):
        optimiser.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(head(z)[0], labels).backward()
        optimiser.step()
