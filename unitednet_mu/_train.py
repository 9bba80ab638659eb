"""The training loop: phases, steps, schedule, early stopping, history, progress, early ends."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ._compat import warn_user
from ._config import TrainingConfig
from ._data import Dataset
from ._heads import fused_codes, keep_best_head, random_heads, start_heads
from ._interrupt import Interrupted
from ._network import Encoder, UnitedNetwork
from ._noise import choose_input_dropout
from ._phase import Phase, Plan
from ._process import draw_from, new_seed, random_states, set_random_states, threads_for
from ._session import Session, State
from ._setup import default_batch_size, default_epochs, split_cells
from ._steps import Steps
from ._tasks import Tasks

logger = logging.getLogger(__name__)

_EVALUATION_BATCH = 1024
#: Terms that do not judge an epoch: their opponents move.
_CONTESTED = ("generator", "discriminator")

Ended = Literal["finished", "interrupted", "diverged"]


class Diverged(RuntimeError):
    """Losses or weights became infinite or NaN before anything worth keeping was learned."""


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
    session
        What may end the training early, or continue it.

    Attributes
    ----------
    ended
        How the training ended: as planned, or early, by Ctrl-C or because it diverged, with the
        best state until then.
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
        session: Session | None = None,
    ) -> None:
        self.session = session or Session()
        self.ranks = self.session.ranks
        self.network, self.data, self.config, self.seed = network, data, config, seed
        self.n_groups, self.find_groups = n_groups, new_groups and not supervised
        self.device = network.fusion.logits.device
        self._at_hand = data.at_hand(self.device)
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
        wanted = config.batch_size or default_batch_size(len(self.train_cells))
        self.batch_size = self.ranks.whole(wanted)
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
        self.progress = progress and self.ranks.first
        self.ended: Ended = "finished"
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

        Raises
        ------
        Diverged
            Losses or weights became infinite or NaN, and nothing had been learned until then, or
            there is a better model to fall back to.
        Interrupted
            Training was asked to end before an epoch in which groups are identified was completed,
            or there is a better model to fall back to.
        """
        plans = self._plans()
        resumed = self.session.take_resumed()
        first = 0 if resumed is None else self._resume(resumed)
        epochs = len(self.rows) + sum(plan.n_epochs for plan in plans[first:])
        what = "fit" if len(self.held_out) else "fit on all cells"
        cells_per_step = self.batch_size // self.ranks.size
        values_per_step = cells_per_step * sum(s.n_features for s in self.network.shapes)
        with (
            threads_for(values_per_step),
            tqdm(total=epochs, desc=what, unit="epoch", disable=not self.progress) as bar,
        ):
            bar.update(len(self.rows))
            for number, plan in enumerate(plans[first:], first):
                if self.find_groups and plan.identify and resumed is None:
                    self._start_heads()
                phase = self._begin(plan)
                if resumed is not None:
                    phase.load_state_dict(resumed["phase"])
                    set_random_states(resumed["random"][self.ranks.rank], self.device)
                    self.session.stop.keep |= phase.usable
                    bar.total -= phase.epoch
                    resumed = None
                self._run(phase, number, bar)
                self.network.load_state_dict(phase.best_state)
                self.ranks.agree(self.network)  # statistics, which no message brought together
            if self.find_groups:
                keep_best_head(self.network, self.config, self.data, self.train_cells)
        self.network.eval()
        return pd.DataFrame(self.rows)

    def _plans(self) -> list[Plan]:
        if not self.find_groups:
            return [Plan("train", self.max_epochs, identify=True)]
        warmup = max(1, round(self.config.warmup * self.max_epochs))
        return [
            Plan("warmup", warmup, identify=False),
            Plan("train", max(1, self.max_epochs - warmup), identify=True),
        ]

    # ------------------------------------------------------------------ one phase

    def _begin(self, plan: Plan) -> Phase:
        n_steps = plan.n_epochs * self._steps_per_epoch(plan.identify)
        self.ranks.agree(self.network)
        if not self.ranks.alone:
            draw_from(self.ranks.of_first(new_seed))
        judged = bool(len(self.held_out))
        return Phase(self.network, self.config, plan, n_steps, judged=judged, ranks=self.ranks)

    def _run(self, phase: Phase, number: int, bar: Any) -> None:
        """Train until the phase is over, or ends early."""
        tasks, judged = (
            Tasks(network, self.config, self.class_weights, self.ranks)
            for network in (self.network, phase.averaged.network)
        )
        stop, size = self.session.stop, self.batch_size if self.config.cuda_graphs else 0
        steps = Steps(tasks, phase.optimisers, phase.averaged, lambda: stop.requested, size)
        try:
            while not phase.over:
                if self.ranks.any(stop.requested):
                    raise self._interrupted()
                row = self._epoch(phase, steps, judged)
                self.rows.append(row)
                if phase.judged:
                    bar.set_postfix(held_out=f"{row['val_total']:.3f}")
                bar.update()
                stop.keep |= phase.usable
                self.session.epoch_ended(
                    len(self.rows), lambda: self._state(phase, number), last=phase.over
                )
        except Interrupted as early:
            if self.session.fallback or not phase.usable:
                raise
            self.ended = "interrupted"
            logger.warning("%s: the best model so far is kept.", early)
        except Diverged as error:
            if self.session.fallback or not phase.learned:
                raise
            self.ended = "diverged"
            kept = len(self.rows) - phase.epoch + phase.best_epoch
            warn_user(f"{error} The best model until then is kept, that of epoch {kept}.")
        bar.total -= phase.plan.n_epochs - phase.epoch

    def _epoch(self, phase: Phase, steps: Steps, judged: Tasks) -> dict[str, Any]:
        """Train for one epoch and judge it; the row of the history."""
        identify = phase.plan.identify
        trained = self._train_epoch(phase, steps)
        held_out = self._evaluate(judged, identify)
        total = self._judged_value(held_out) if held_out else math.nan
        if not phase.end_epoch(total if held_out else self._judged_value(trained)):
            raise self._diverged()
        return (
            {
                "epoch": len(self.rows),
                "phase": phase.plan.name,
                "learning_rate": phase.optimisers.rate,
                "val_total": total,
            }
            | {f"train_{term}": value for term, value in trained.items()}
            | {f"val_{term}": value for term, value in held_out.items()}
        )

    def _interrupted(self) -> Interrupted:
        return Interrupted(f"interrupted in epoch {len(self.rows)}")

    def _diverged(self) -> Diverged:
        return Diverged(
            f"training diverged in epoch {len(self.rows)}: the losses or weights became infinite "
            f"or NaN. Lower learning_rate (now {self.config.learning_rate}), or look for extreme "
            "values in the data."
        )

    def _steps_per_epoch(self, identify: bool) -> int:
        per_batch = 2 if identify and self.config.alternate else 1
        return math.ceil(len(self.train_cells) / self.batch_size) * per_batch

    def _train_epoch(self, phase: Phase, steps: Steps) -> dict[str, float]:
        """Step through all training cells; mean of every term."""
        self.network.train()
        values: dict[str, list[float]] = defaultdict(list)
        order = self.data.shuffled(self.train_cells, self.batch_size, self.rng)
        batches = self._at_hand.batches_of(order, self.batch_size, self.device, self.ranks)
        for _, batch in batches:
            for terms in steps.of(batch, identify=phase.plan.identify):
                for term, value in terms.items():
                    values[term].append(value)
                    if not math.isfinite(value):
                        raise self._diverged()
                if steps.stopped:
                    raise self._interrupted()
            if values and math.isnan(phase.first_loss):
                phase.first_loss = self._judged_value(_means(values))
        return _means(values)

    @torch.no_grad()
    def _evaluate(self, tasks: Tasks, identify: bool) -> dict[str, float]:
        """Mean terms over held-out cells, in evaluation mode; empty where nothing is held out."""
        tasks.network.eval()
        sums: dict[str, float] = defaultdict(float)
        cells_seen: dict[str, int] = defaultdict(int)
        held_out = self.data.in_file_order(self.held_out)
        size = self.ranks.whole(_EVALUATION_BATCH)
        for cells, batch in self._at_hand.batches_of(held_out, size, self.device, self.ranks):
            codes, observed = tasks.codes(batch)
            _, terms = tasks.label_free(batch, codes, observed)
            if identify:
                terms |= tasks.identification(batch, codes, observed)
            for term, value in terms.items():
                sums[term] += float(value) * len(cells)
                cells_seen[term] += len(cells)
        totals = self.ranks.mean(list(sums.values()))
        return {term: total / cells_seen[term] for term, total in zip(sums, totals, strict=True)}

    def _judged_value(self, terms: dict[str, float]) -> float:
        """Loss that decides."""
        return sum(
            self.config.weight(term) * value
            for term, value in terms.items()
            if term not in _CONTESTED
        )

    # ------------------------------------------------------------------ groups without labels

    def _start_heads(self) -> None:
        """Find groups on the fused codes of all cells, fit every head to them, anchor training.

        A network trained once more starts from its codes and the first one's side by side: what
        both found is less left to chance.
        """
        if self.config.start == "random":
            random_heads(self.network, self.n_groups)
            return
        cells = self.data.canonical
        z = fused_codes(self.network, self.config, self.data, cells)
        self.starting_codes.append((z / z.std().clamp_min(1e-12)).cpu().numpy())
        anchors = np.full(len(self.data), -1, np.int64)
        anchors[cells] = start_heads(
            self.network, self.config, z, self.starting_codes, self.n_groups, self.seed, self.ranks
        )
        self._set_labels(anchors)

    def _set_labels(self, labels: np.ndarray) -> None:
        self.data = replace(self.data, labels=labels)
        self._at_hand = replace(self._at_hand, labels=labels)

    # ------------------------------------------------------------------ stop and go on

    def _state(self, phase: Phase, number: int) -> State:
        """All that :meth:`_resume` needs to go on after an epoch; nothing is copied."""
        return {
            "number": number,
            "rows": self.rows,
            "order": self.rng.bit_generator.state,
            "random": self.ranks.of_each(random_states(self.device)),
            "labels": self.data.labels,
            "starting_codes": self.starting_codes,
            "heads": (self.network.n_groups, len(self.network.heads)),
            "network": self.network.state_dict(),
            "phase": phase.state_dict(),
        }

    def _resume(self, state: State) -> int:
        """Go on where :meth:`_state` was taken; the number of the phase that was running."""
        self.rows = list(state["rows"])
        self.rng.bit_generator.state = state["order"]
        self._set_labels(state["labels"])
        self.starting_codes[:] = state["starting_codes"]
        self.network.new_heads(*state["heads"])
        self.network.load_state_dict(state["network"])
        return int(state["number"])


def _means(values: dict[str, list[float]]) -> dict[str, float]:
    return {term: float(np.mean(found)) for term, found in values.items()}
