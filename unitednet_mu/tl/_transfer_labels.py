"""Carry labels from a reference over to a query."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from mudata import MuData

from .. import _results
from .._adapt import ADAPTATION, adapt_model
from .._config import TrainingConfig
from .._data import Dataset
from .._keys import DEFAULT_STEM, check_key_added
from .._model import Encoded, Model
from .._novelty import Familiarity
from .._validate import check_mudata, check_random_state
from ._common import resolve_model
from ._levels import read_batches, with_batches, with_labels

#: What to do about labels of the reference that its model does not know.
_OTHER_LABELS = "Name the reference's labels as its model does, or pass adapt=False."


def transfer_labels(
    query: MuData,
    reference: MuData,
    *,
    adapt: bool = True,
    unknown_threshold: float = 0.5,
    novelty_threshold: float = np.inf,
    model: Model | None = None,
    training: TrainingConfig | Mapping[str, Any] | None = None,
    random_state: int = 0,
    device: str = "auto",
    progress: bool = True,
    key_added: str = DEFAULT_STEM,
    copy: bool = False,
) -> MuData | None:
    """Label the cells of a query by a model trained on a labelled reference.

    Parameters
    ----------
    query
        Cells to label; features are matched by name, modalities may be missing. Of a model with a
        `batch_key` adaptation reads that column here too; batches that the model does not know, and
        a query without the column, count as of unknown batch.
    reference
        MuData that the model was trained on with `labels_key`; holds the model unless `model` is
        given.
    adapt
        Train on with the supervised loss on the reference and the label-free losses on reference
        and query together (the paper's transfer learning), if the query differs from the reference
        as a whole: if the median novelty of its cells, ``["transfer"]["shift"]`` in
        ``.uns["unitednet"]``, is above 1.5. Otherwise there is nothing to adapt to, and training on
        would only add noise. The adapted network is kept if held-out cells say that it helps;
        ``["transfer"]["adapted"]`` says whether it was.
    unknown_threshold
        Cells whose best label has a lower probability are called ``"unknown"``; 0 for none.
    novelty_threshold
        Cells more unlike the reference than this are called ``"unknown"`` too, however sure the
        head is of them; by default none. Types that the reference lacks are found by
        ``unitednet_label_novelty`` (see below) far better than by a low probability, but a query
        that differs as a whole, by its batch, is novel as a whole: look at the values before
        choosing; 5 to 10 is a start.
    model
        Model to use instead of the one stored in `reference`.
    training
        `TrainingConfig`, or overrides of the adaptation's defaults; with `adapt` only.
    random_state
        Seed of the adaptation.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    progress
        Whether to show a progress bar.
    key_added
        Stem of the names in `query`, and of the model in `reference`.
    copy
        Return a changed copy of `query`, and leave `query` as it is. `reference` never changes.

    Returns
    -------
    None, or the changed copy with ``copy=True``. Written into the query:

    ``.obs["unitednet_label"]`` : category
        The label, or ``"unknown"``.
    ``.obs["unitednet_label_confidence"]`` : float32
        Probability of the likeliest label, given that it is one of the reference's and all of them
        are equally common (training weighs labels so): of a rare type that overlaps with a common
        one it is too high. Calibrated on held-out cells of the reference, with the modalities that
        these have; not where fewer than 20 of them had labels (``"calibration_temperature"`` in the
        reference's ``params`` is then 1).
    ``.obs["unitednet_label_novelty"]`` : float32
        How far the cell's codes are from every group of the reference: relative Mahalanobis
        distance (Ren et al. 2021), averaged over the cell's modalities, in robust standard
        deviations of the reference's own cells (at most 20,000, by the groups that the model gives
        them) from their median. About 0 for a cell like most of them.
    ``.obsm["unitednet_label_probabilities"]`` : float32, cells x labels
        Probabilities of all labels.
    ``.uns["unitednet"]["labels"]``, ``["groups"]`` : str array
        Names of the labels.
    ``.uns["unitednet"]["model"]`` : dict
        The model that labelled the cells, adapted or not.
    ``.uns["unitednet"]["transfer"]`` : dict
        Settings, and what held-out cells said about the adaptation.
    ``.uns["unitednet"]["history"]`` : DataFrame
        Of the adaptation, where there was one: one row an epoch.
    ``.uns["unitednet"]["version"]`` : str
        Version of this package; marks the stem as its own.

    A model of the query's own that stood under this stem is replaced, with all that ``.uns`` holds
    of it and what it said of its groups: their columns in ``.obs``, their probabilities, and the
    relevance in ``.varm``; `key_added` keeps both.

    Raises
    ------
    TypeError
        Either is not a MuData, or `model` not a model.
    ValueError
        The model was trained without labels, features are missing, the threshold is not in [0, 1),
        the novelty threshold is not above 0, `training` is given without `adapt`, or `query` or
        `reference`, on disk, is a view or to be copied.

    Warns
    -----
    UserWarning
        A modality looks like raw counts, and those that the model was trained on did not. One of
        the model's is missing, and one that it does not know has its features. Too few cells to
        tell whether adaptation helps, or it diverged: the model is used as it was.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=80, n_groups=2)
    >>> reference, query = mdata[:60].copy(), mdata[60:].copy()
    >>> un.tl.fit(reference, labels_key="cell_type", training={"max_epochs": 3}, progress=False)
    >>> un.tl.transfer_labels(query, reference, adapt=False)
    >>> len(query.obs["unitednet_label"])
    20
    """
    check_mudata(query, "query", copy=copy)
    check_mudata(reference, "reference")
    keys = check_key_added(query, key_added)
    seed = check_random_state(random_state)
    if not (isinstance(unknown_threshold, Real) and 0 <= unknown_threshold < 1):
        raise ValueError(
            f"unknown_threshold: expected a number in [0, 1), found {unknown_threshold!r}."
        )
    if not (isinstance(novelty_threshold, Real) and novelty_threshold > 0):
        raise ValueError(
            f"novelty_threshold: expected a number above 0, found {novelty_threshold!r}. Leave it "
            "at numpy.inf to call no cell unknown for its novelty."
        )
    if training is not None and not adapt:
        raise ValueError(
            "training is for adaptation, and adapt=False trains nothing; leave it out, or pass "
            "adapt=True."
        )
    found = resolve_model(model, reference, key_added, device)
    if found.info.labels_key is None:
        raise ValueError(
            "the model was trained without labels, there is nothing to transfer. Run "
            "unitednet_mu.tl.fit(reference, labels_key=...) first."
        )
    config = TrainingConfig.build(
        {**ADAPTATION, **training} if isinstance(training, Mapping) else training or ADAPTATION
    )
    history: pd.DataFrame | None = None
    params: dict[str, Any] = {
        "adapt": adapt,
        "unknown_threshold": float(unknown_threshold),
        "novelty_threshold": float(novelty_threshold),
        "adapted": False,
    }
    data = found.open(query)
    if not data.observed.any():
        raise ValueError(f"query: expected cells with {found.modality_names}, found none.")
    labelled = found.open(reference)
    if not labelled.observed.any():
        raise ValueError(f"reference: expected cells with {found.modality_names}, found none.")
    encoded, novelty = _encoded(found, labelled, data, seed, progress)
    if adapt:
        info = dataclasses.replace(found.info, training=config, random_state=seed)
        info = with_labels(reference, labelled, info, info.labels_key, _OTHER_LABELS)
        info = with_batches(reference, labelled, info, info.batch_key, fixed=True)
        read_batches(query, data, info)
        known = novelty[~np.isnan(novelty)]
        shift = float(np.median(known)) if len(known) else np.nan
        found, history, verdict = adapt_model(
            found, info, labelled, data, shift=shift, progress=progress
        )
        params |= verdict
        if verdict["adapted"]:
            encoded, novelty = _encoded(found, labelled, data, seed, progress)
    unknown = _unknown(encoded, novelty, unknown_threshold, novelty_threshold)
    result = _results.target_of(query, copy)
    _results.write_labels(
        result, keys, found, encoded.probabilities, novelty, unknown, params, history
    )
    return result if copy else None


def _encoded(
    model: Model, reference: Dataset, query: Dataset, seed: int, progress: bool
) -> tuple[Encoded, np.ndarray]:
    """Codes and labels of a query's cells, and how unlike the reference's cells they are."""
    encoded = model.encode(query, progress=progress)
    return encoded, Familiarity.of(model, reference, seed).novelty(encoded.codes)


def _unknown(
    encoded: Encoded, novelty: np.ndarray, unknown_threshold: float, novelty_threshold: float
) -> np.ndarray | None:
    """Cells to be called unknown; None where no cell may be."""
    if unknown_threshold == 0 and np.isinf(novelty_threshold):
        return None
    unsure = encoded.probabilities.max(1) < unknown_threshold
    return np.asarray(unsure | (novelty > novelty_threshold))
