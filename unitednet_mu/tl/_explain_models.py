"""Several models explained together: which fit together, whose groups are whose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from mudata import MuData

from .._data import Dataset, ModalitySpec
from .._model import Model
from .._stability import GroupStability, group_stability, in_order, match_groups
from .._stability_cross import CrossStability, Member, cross_stability
from ._common import resolve_model
from ._explain_job import Job


def resolve_models(
    model: Model | Sequence[Model] | None, mdata: MuData, key_added: str, device: str
) -> list[Model]:
    """Return the models handed in, or the one stored in `mdata`, on the device asked for.

    Raises
    ------
    TypeError
        Something is not a :class:`Model`.
    ValueError
        A single model in a sequence, or models of other data than the first; none was handed in and
        none is stored.
    """
    if model is None or isinstance(model, (Model, str)) or not isinstance(model, Sequence):
        return [resolve_model(model, mdata, key_added, device)]
    for position, one in enumerate(model):
        if not isinstance(one, Model):
            raise TypeError(
                f"model[{position}]: expected a unitednet_mu model (get.model(mdata) gives it), "
                f"found {type(one).__name__}."
            )
    if len(model) < 2:
        raise ValueError(
            "model: expected a model, or at least two to compare, found a sequence of "
            f"{len(model)}."
        )
    for position, one in enumerate(model):
        _check_fits(model[0], one, position)
    return [resolve_model(one, mdata, key_added, device) for one in model]


def _check_fits(first: Model, other: Model, position: int) -> None:
    """Refuse a model that reads something else than the first one."""
    if other.modality_names != first.modality_names:
        raise ValueError(
            f"model[{position}]: expected the first model's modalities {first.modality_names}, "
            f"found {other.modality_names}."
        )
    for one, another in zip(first.info.modalities, other.info.modalities, strict=True):
        if one.features != another.features:
            raise ValueError(
                f"model[{position}]: expected the first model's {len(one.features)} features of "
                f"{one.name!r}, in their order, found {_difference(one, another)}. Fit all models "
                "on the same features."
            )
        for what in ("layer", "use_rep", "likelihood"):
            expected, found = getattr(one, what), getattr(another, what)
            if expected != found:
                raise ValueError(
                    f"model[{position}]: expected {what}={expected!r} for {one.name!r}, as in the "
                    f"first model, found {found!r}."
                )


def _difference(one: ModalitySpec, another: ModalitySpec) -> str:
    missing = sorted(set(one.features) - set(another.features))
    if missing:
        return f"{len(another.features)}, {missing[0]!r} not among them"
    more = sorted(set(another.features) - set(one.features))
    return f"{more[0]!r} as well" if more else "another order"


def matched_orders(models: Sequence[Model], data: Dataset) -> list[np.ndarray]:
    """Per model which of its groups is each of the first model's.

    By name where both were trained on labels; else by the largest overlap over all cells.

    Raises
    ------
    ValueError
        The numbers of groups differ, or names of labels do.
    """
    first = models[0]
    names = first.info.groups
    orders = [np.arange(len(names))]
    called: np.ndarray | None = None
    for position, model in enumerate(models[1:], 1):
        found = model.info.groups
        if len(found) != len(names):
            raise ValueError(
                f"model[{position}]: expected {len(names)} groups, as the first model has, found "
                f"{len(found)}. Fit all models with the same labels_key or n_groups."
            )
        if first.info.labels_key is not None and model.info.labels_key is not None:
            if set(found) != set(names):
                raise ValueError(
                    f"model[{position}]: expected the first model's groups {list(names)}, found "
                    f"{list(found)}. Fit all models on the same labels."
                )
            orders.append(np.array([found.index(name) for name in names]))
            continue
        called = called_groups(first, data) if called is None else called
        orders.append(match_groups(called, called_groups(model, data), len(names)))
    return orders


def called_groups(model: Model, data: Dataset) -> np.ndarray:
    """Position of the group that the head gives to each cell, -1 where the cell has no modality."""
    logits = model.encode(data).logits
    seen = ~np.isnan(logits).any(1)
    return np.where(seen, np.nan_to_num(logits).argmax(1), -1).astype(np.int64)


def explain_groups(
    models: Sequence[Model],
    orders: Sequence[np.ndarray],
    job: Job,
    output: Literal["logits", "probabilities"],
    n_top: int,
) -> GroupStability:
    """Explain groups by every model, on the cells, groups and background of `job`."""
    parts = []
    for number, (model, order) in enumerate(zip(models, orders, strict=True), 1):
        own = replace(
            job,
            model=model,
            groups=np.where(job.groups >= 0, order[job.groups], -1),
            title=f"explain model {number} of {len(models)}",
        )
        parts.append(in_order(own.explain_groups(output, [])[0], order))
    return group_stability(parts, n_top)


def explain_pair(
    models: Sequence[Model],
    job: Job,
    source: str,
    target: str,
    batches: Sequence[np.ndarray | None],
    top_k: int | None,
    n_top: int,
    seed: int,
) -> CrossStability:
    """Explain one modality by another with every model, each decoding as its own of `batches`."""
    sample = job.sample
    members = [
        Member(model.network, job.values(sample.cells, batch), job.background(batch))
        for model, batch in zip(models, batches, strict=True)
    ]
    pair = job.model.modality_index(source, "source"), job.model.modality_index(target, "target")
    with job.progress_bar(f"explain {len(models)} models", len(models)) as advance:
        return cross_stability(
            members, *pair, top_k=top_k, n_top=n_top, seed=seed, progress=advance
        )


def spread_of(stable: GroupStability | CrossStability) -> dict[str, Sequence[Any]]:
    """Return how far models agree, as it is stored."""
    return {"signed_sd": stable.signed_sd, "top_frequency": stable.top_frequency}


def stability_params(
    n_models: int, n_top: int, stable: GroupStability | CrossStability
) -> dict[str, Any]:
    """Return what is recorded of several models."""
    return {
        "n_models": n_models,
        "n_top_stable": n_top,
        "rank_correlation": stable.rank_correlation,
    }
