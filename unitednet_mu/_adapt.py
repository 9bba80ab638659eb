"""Adaptation of a labelled model to a query, and the check whether it helped."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from ._compat import warn_user
from ._data import Dataset, concatenate
from ._fit import train_on
from ._model import Model, ModelInfo
from ._setup import split_cells
from ._tasks import Tasks
from ._train import Diverged

logger = logging.getLogger(__name__)

#: Cells whose losses are computed at a time.
_CHECKED_CELLS = 512
#: Median novelty of a query's cells above which it differs from the reference as a whole.
_SHIFT = 1.5
#: What differs from the defaults of a fit: a gentler and shorter training.
ADAPTATION = {"learning_rate": 1e-3, "max_epochs": 20, "patience": 5}


def adapt_model(
    model: Model,
    info: ModelInfo,
    reference: Dataset,
    query: Dataset,
    *,
    shift: float,
    progress: bool,
) -> tuple[Model, pd.DataFrame | None, dict[str, float | bool]]:
    """Train on with the reference's labels and the label-free losses on both (paper, Methods).

    Only a query that is novel as a whole is adapted to: one whose cells' median novelty, `shift`,
    is large. The adapted model is kept if, on cells held out from adaptation, the query is
    reconstructed and translated better and the labels of the reference are identified no worse
    (within one standard error).

    Returns
    -------
    The model to use, the history of the adaptation (None where there was none), and the verdict:
    ``adapted``, the query's ``shift`` and, if it was tried, the losses before and after.

    Warns
    -----
    UserWarning
        Too few cells are held out to tell, or training diverged: the history is None.
    """
    verdict: dict[str, float | bool] = {"adapted": False, "shift": shift}
    if not shift > _SHIFT:  # not a number where query and reference have no modality in common
        logger.info(
            "adaptation held back: expected a shift above %.1f, found %.2f (about 0 where the "
            "query is like the reference, NaN where they have no modality in common); the model is "
            "used as it was.",
            _SHIFT,
            shift,
        )
        return model, None, verdict
    joint = concatenate(reference, query)
    _, held_out = split_cells(joint, info.training.validation_fraction, info.random_state)
    of_reference = held_out[(held_out < len(reference)) & (joint.labels[held_out] >= 0)]
    of_query = held_out[held_out >= len(reference)]
    if len(of_reference) < 2 or not len(of_query):
        warn_user(
            "adapt: expected held-out cells of the query and at least 2 labelled ones of the "
            f"reference to tell whether adaptation helps, found {len(of_query)} and "
            f"{len(of_reference)}; the model is used as it was. Raise validation_fraction "
            f"(now {info.training.validation_fraction}), or pass adapt=False."
        )
        return model, None, verdict
    try:
        tried = train_on(model, joint, info, n_groups=None, reset_head=False, progress=progress)
    except Diverged as reason:
        warn_user(f"adapt: {reason} The model is used as it was.")
        return model, None, verdict
    adapted = tried.model
    before, after = (_label_losses(m, joint, of_reference) for m in (model, adapted))
    query_before, query_after = (
        _label_free_loss(m, info, joint, of_query) for m in (model, adapted)
    )
    change = after - before
    error = change.std(ddof=1) / np.sqrt(len(change))
    kept = bool(change.mean() <= error and query_after < query_before)
    if not kept:
        logger.info(
            "adaptation held back: it did not help on held-out cells; the model is used as it was."
        )
    verdict |= {
        "adapted": kept,
        "reference_loss_before": float(before.mean()),
        "reference_loss_after": float(after.mean()),
        "query_loss_before": query_before,
        "query_loss_after": query_after,
    }
    return (adapted if kept else model), tried.history, verdict


def _label_losses(model: Model, data: Dataset, cells: np.ndarray) -> np.ndarray:
    """Cross-entropy of each of `cells`, which are labelled."""
    logits = torch.from_numpy(model.encode(data.subset(cells)).logits).double()
    losses = F.cross_entropy(logits, torch.from_numpy(data.labels[cells]), reduction="none")
    return losses.numpy()


@torch.no_grad()
def _label_free_loss(model: Model, info: ModelInfo, data: Dataset, cells: np.ndarray) -> float:
    """Reconstruction and translation loss of cells."""
    tasks = Tasks(model.network.eval(), info.training, None)
    total, n_cells = 0.0, 0
    for chunk, batch in data.batches_of(data.in_file_order(cells), _CHECKED_CELLS, model.device):
        _, terms = tasks.label_free(batch, *tasks.codes(batch))
        found = [float(terms[name]) for name in ("reconstruction", "translation") if name in terms]
        if found:
            total, n_cells = total + len(chunk) * sum(found), n_cells + len(chunk)
    return total / n_cells if n_cells else float("nan")
