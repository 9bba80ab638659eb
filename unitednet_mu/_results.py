"""The only writer of model results into a MuData: each function writes all of its slots or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from . import _compat
from ._explain import ExplainSample
from ._explain_cells import CellRelevance
from ._keys import DEFAULT_STEM, PREDICTED_MARK, UNKNOWN, Keys
from ._model import Encoded, Model

#: Columns of a predicted modality, in the order of a model's `accuracy`.
ACCURACY = ("expected_r", "expected_r_within_groups", "error_q05", "error_q95")


@contextmanager
def writing(mdata: MuData) -> Iterator[MuData]:
    """Make a view real, and undo everything if the block fails, however it fails."""
    with _compat.undo_on_error(mdata):
        _compat.make_real(mdata)
        yield mdata


def target_of(mdata: MuData, copy: bool) -> MuData:
    """Return the object to write to: `mdata`, or a copy that shares nothing with it."""
    return _compat.copied(mdata) if copy else mdata


def read(mdata: MuData, keys: Keys) -> dict[str, Any]:
    """Everything stored under a stem (a new dictionary; empty where there is nothing)."""
    return dict(mdata.uns.get(keys.uns, {}))


def checksum(mdata: MuData, keys: Keys) -> str:
    """Checksum of the model stored under a stem; empty where there is none."""
    return str(read(mdata, keys).get("model", {}).get("sha256", ""))


def _store(mdata: MuData, keys: Keys, entries: Mapping[str, Any]) -> None:
    # replaced, never changed: a view's `.uns` shares its nested dictionaries with the parent
    mdata.uns[keys.uns] = {**read(mdata, keys), **entries}


def write_fit(mdata: MuData, keys: Keys, model: Model, history: pd.DataFrame, ended: str) -> None:
    """Replace everything in ``.uns[stem]`` by a newly trained model and its history.

    What the model before said of its groups is dropped beside it: see `_drop_groups`.

    `ended` says how the training ended: ``"finished"``, ``"interrupted"`` or ``"diverged"``.
    """
    from . import __version__

    info = model.info
    data = {
        **_reads(model),
        "likelihood": np.asarray([spec.likelihood for spec in info.modalities], dtype=str),
        "labels_key": info.labels_key or "",
        "batch_key": info.batch_key or "",
        "random_state": info.random_state,
    }
    with writing(mdata):
        _drop_groups(mdata, keys)
        mdata.uns[keys.uns] = {
            "version": __version__,
            "params": {
                "data": data,
                "network": _plain(info.network),
                "training": _plain(info.training),
                "calibration_temperature": float(model.network.temperature),
                "ended": ended,
            },
            "history": history,
            "groups": np.asarray(info.groups, dtype=str),
            "modality_weights": pd.DataFrame(
                {"weight": model.modality_weights()}, index=model.modality_names
            ),
            "model": model.to_dict(),
        }


def _drop_groups(mdata: MuData, keys: Keys) -> None:
    """Drop what names groups of a model before: another's may have the same names ("0", "1")."""
    for column in (keys.group, keys.group_confidence):
        if column in mdata.obs:
            del mdata.obs[column]
    mdata.obsm.pop(keys.probabilities, None)
    for adata in mdata.mod.values():
        _drop_relevance(adata, keys)


def _drop_relevance(adata: AnnData, keys: Keys) -> None:
    for slot in (keys.relevance, keys.relevance_abs):
        if slot in adata.varm:
            del adata.varm[slot]


def _plain(config: Any) -> dict[str, Any]:
    """Return settings as `.uns` can hold them: no None, lists as arrays."""
    plain = {k: np.asarray(v) if isinstance(v, list) else v for k, v in config.to_dict().items()}
    return {k: "auto" if v is None else v for k, v in plain.items()}


def write_embedding(
    mdata: MuData, keys: Keys, model: Model, encoded: Encoded, effects: np.ndarray
) -> None:
    """Write the fused embedding, each modality's own code, groups, confidence and probabilities.

    `effects`, groups x modalities, is what each modality does for each group.
    """
    names = np.asarray(model.info.groups, dtype=str)
    group, confidence = call_groups(encoded.probabilities, names)
    with writing(mdata):
        mdata.obsm[keys.embedding] = encoded.fused
        for m, name in enumerate(model.modality_names):
            if name in mdata.mod:
                rows = mdata.obs_names.get_indexer(mdata.mod[name].obs_names)
                mdata.mod[name].obsm[keys.embedding] = encoded.codes[rows, m]
        mdata.obs[keys.group] = group
        mdata.obs[keys.group_confidence] = confidence
        mdata.obsm[keys.probabilities] = encoded.probabilities
        table = pd.DataFrame(effects, index=names, columns=model.modality_names)
        entries = {"groups": names, "modality_effects": table, "version": _version()}
        _store(mdata, keys, {**entries, "labels_key": model.info.labels_key or ""})


def call_groups(
    probabilities: np.ndarray, names: np.ndarray, unknown: np.ndarray | None = None
) -> tuple[pd.Categorical[str], np.ndarray]:
    """Name of each cell's likeliest group, ``"unknown"`` where `unknown`, and its probability.

    A cell without any of the model's modalities has no group (missing) and no confidence (NaN).
    """
    seen = ~np.isnan(probabilities).any(1)
    best = np.where(seen, np.nan_to_num(probabilities).argmax(1), -1)
    confidence = np.where(seen, np.nan_to_num(probabilities).max(1), np.nan).astype(np.float32)
    categories = [str(name) for name in names]
    if unknown is not None:
        if UNKNOWN not in categories:
            categories.append(UNKNOWN)
        best = np.where(seen & unknown, categories.index(UNKNOWN), best)
    codes = np.asarray(best, dtype=np.intp)
    return pd.Categorical.from_codes(codes, pd.Index(categories)), confidence


def _version() -> str:
    from . import __version__

    return __version__


def write_prediction(
    mdata: MuData,
    keys: Keys,
    model: Model,
    source: Sequence[str],
    target: str,
    values: np.ndarray,
    observed: np.ndarray,
    *,
    transform_batch: str | None,
    is_stored: bool,
) -> None:
    """Add the predicted modality for every cell that has one of the sources.

    `observed` says which of the sources each cell has. Its mark names the model by checksum where
    it is the one stored here (`is_stored`). Accuracy was measured of the mean over batches, and is
    not known of a prediction as one of them.
    """
    name = keys.predicted(source, target)
    cells = ~np.isnan(values).any(1)
    spec = model.info.modalities[model.modality_index(target, "target")]
    features = np.asarray(spec.features)
    accuracy = np.full((len(ACCURACY), len(features)), np.nan, np.float32)
    if transform_batch is None:
        accuracy = _least_accuracy(model, source, target, observed[cells], accuracy)
    var = pd.DataFrame(
        {"feature": features, **dict(zip(ACCURACY, accuracy, strict=True))},
        index=[f"{name}:{feature}" for feature in features],
    )
    values = values if cells.all() else values[cells]
    predicted = AnnData(values, obs=pd.DataFrame(index=mdata.obs_names[cells]), var=var)
    predicted.uns[PREDICTED_MARK] = {
        "source": np.asarray(source, dtype=str),
        "target": target,
        "layer": spec.layer or "",
        "use_rep": spec.use_rep or "",
        "transform_batch": transform_batch or "",
        "key": keys.stem,
        "model": checksum(mdata, keys) if is_stored else "",
    }
    with writing(mdata):
        for key in mdata.obsm:
            embedding = mdata.obsm[key]
            if key not in mdata.mod and getattr(embedding, "ndim", 0) == 2:
                predicted.obsm[key] = embedding[cells]
        _compat.add_modality(mdata, name, predicted)
        _store(mdata, keys, {"version": _version()})


def _least_accuracy(
    model: Model, source: Sequence[str], target: str, observed: np.ndarray, unknown: np.ndarray
) -> np.ndarray:
    """Accuracy from the sources that cells have; where they differ in these, the least.

    `unknown` where that of some cells was not measured.
    """
    measured = []
    for has in np.unique(observed, axis=0):
        there = {name for name, one in zip(source, has, strict=True) if one}
        in_order = [name for name in model.modality_names if name in there]
        measured.append(model.accuracy.get(Keys(DEFAULT_STEM).predicted(in_order, target), unknown))
    if len(measured) == 1:
        return measured[0]
    r_overall, r_within, low, high = np.moveaxis(np.stack(measured), 1, 0)
    return np.stack([r_overall.min(0), r_within.min(0), low.min(0), high.max(0)])


def write_labels(
    query: MuData,
    keys: Keys,
    model: Model,
    probabilities: np.ndarray,
    novelty: np.ndarray,
    unknown: np.ndarray | None,
    params: Mapping[str, Any],
    history: pd.DataFrame | None,
) -> None:
    """Write transferred labels, confidence, novelty, probabilities, and the model that gave them.

    What another model has left in ``.uns[stem]`` is dropped, and what it said of its groups.
    """
    names = np.asarray(model.info.groups, dtype=str)
    label, confidence = call_groups(probabilities, names, unknown)
    entries: dict[str, Any] = {
        "version": _version(),
        "labels": names,
        "transfer": dict(params),
        "groups": names,
        "model": model.to_dict(),
    }
    if history is not None:
        entries["history"] = history
    with writing(query):
        query.obs[keys.label] = label
        query.obs[keys.label_confidence] = confidence
        query.obs[keys.label_novelty] = novelty
        query.obsm[keys.label_probabilities] = probabilities
        there = read(query, keys).get("groups", names)  # `integrate(model=)` writes another's
        another = not _is_stored(query, keys, entries["model"])
        if another:
            query.uns.pop(keys.uns, None)
        if another or not np.array_equal(there, names):
            _drop_groups(query, keys)
        _store(query, keys, entries)


def holds_another(mdata: MuData, keys: Keys, model: Model) -> bool:
    """Whether a model is stored under a stem that is not this one."""
    return bool(checksum(mdata, keys)) and not _is_stored(mdata, keys, model.to_dict())


def _is_stored(mdata: MuData, keys: Keys, model: Mapping[str, Any]) -> bool:
    return checksum(mdata, keys) == str(model["sha256"])


def per_cell_entry(
    model: Model,
    outputs: Sequence[str],
    names: np.ndarray,
    cells: ExplainSample,
    relevance: CellRelevance,
) -> dict[str, Any]:
    """Attributions of single cells as `.uns` holds them, with the values of these cells."""
    modalities: dict[str, Any] = {}
    for m, values in relevance.attributions.items():
        has, x = cells.observed[:, m], cells.x[m]
        if x is not None:
            found = {"cells": names[has], "values": values, "data": x[has]}
            modalities[model.modality_names[m]] = found
    return {
        "outputs": np.asarray(outputs, dtype=str),
        "base_values": relevance.base_values,
        "gap": float(relevance.gap),
        "modalities": modalities,
    }


def write_relevance(
    mdata: MuData,
    keys: Keys,
    model: Model,
    values: Mapping[str, Sequence[np.ndarray]],
    n_cells: Sequence[np.ndarray],
    params: Mapping[str, Any],
    per_cell: Mapping[str, Any],
) -> None:
    """Write group relevance into ``.uns`` and, where features are variables, ``.varm``.

    `values` are ``signed``, ``absolute`` and, of several models, how far these agree; each has one
    matrix a modality, features x groups. `n_cells` are, per modality, the explained cells of each
    group that have it. `per_cell` is the entry for attributions of single cells,
    empty where there are none.
    """
    modalities: dict[str, Any] = {}
    with writing(mdata):
        for adata in mdata.mod.values():
            _drop_relevance(adata, keys)
        for m, spec in enumerate(model.info.modalities):
            block = {name: matrices[m].astype(np.float32) for name, matrices in values.items()}
            features = np.asarray(spec.features, dtype=str)
            modalities[spec.name] = {"features": features, "n_cells": n_cells[m], **block}
            if spec.name in mdata.mod and spec.use_rep is None:
                adata = mdata.mod[spec.name]
                for key, name in ((keys.relevance, "signed"), (keys.relevance_abs, "absolute")):
                    adata.varm[key] = _by_variable(adata, spec.features, block[name])
        groups = np.asarray(model.info.groups, dtype=str)
        entry: dict[str, Any] = {
            "groups": groups,
            "params": {**params, **_explained(model)},
            "modalities": modalities,
        }
        if per_cell:
            entry["per_cell"] = dict(per_cell)
        _store(mdata, keys, {"relevance": entry, "version": _version()})


def _explained(model: Model) -> dict[str, Any]:
    """Return what the explained model reads, and which labels it learned."""
    return {"reads": _reads(model), "labels_key": model.info.labels_key or ""}


def _reads(model: Model) -> dict[str, np.ndarray]:
    """Return modalities, and the layer or ``.obsm`` matrix that is read of each."""
    specs = model.info.modalities
    return {
        "modalities": np.asarray([spec.name for spec in specs], dtype=str),
        "layer": np.asarray([spec.layer or "" for spec in specs], dtype=str),
        "use_rep": np.asarray([spec.use_rep or "" for spec in specs], dtype=str),
    }


def _by_variable(adata: AnnData, features: Sequence[str], values: np.ndarray) -> np.ndarray:
    """Rows in the order of `adata.var_names`; NaN for variables that the model does not know."""
    where = pd.Index(features).get_indexer(adata.var_names.astype(str))
    out = np.full((adata.n_vars, values.shape[1]), np.nan, np.float32)
    out[where >= 0] = values[where[where >= 0]]
    return out


def write_cross_relevance(
    mdata: MuData,
    keys: Keys,
    model: Model,
    source: str,
    target: str,
    values: Mapping[str, Sequence[Any]],
    params: Mapping[str, Any],
    per_cell: Mapping[str, Any],
) -> None:
    """Write cross-modal relevance, one sparse matrix (source x target features) a group.

    `values` as in `write_relevance`, with a matrix a group. `per_cell` is the entry for
    attributions of single cells, empty where there are none.
    """
    specs = {spec.name: spec for spec in model.info.modalities}
    entry: dict[str, Any] = {
        "groups": np.asarray(model.info.groups, dtype=str),
        "source": source,
        "target": target,
        "source_features": np.asarray(specs[source].features, dtype=str),
        "target_features": np.asarray(specs[target].features, dtype=str),
        "params": {**params, **_explained(model)},
        **{name: _by_group(matrices) for name, matrices in values.items()},
    }
    if per_cell:
        entry["per_cell"] = dict(per_cell)
    name = Keys(DEFAULT_STEM).predicted([source], target)
    with writing(mdata):
        others = dict(read(mdata, keys).get("cross_relevance", {}))
        _store(mdata, keys, {"cross_relevance": {**others, name: entry}, "version": _version()})


def _by_group(matrices: Sequence[Any]) -> dict[str, sparse.csr_matrix]:
    """Matrices as CSR; empty where a group had no cells (NaN throughout)."""
    filled = (m if _compat.is_sparse(m) else np.nan_to_num(m, nan=0.0) for m in matrices)
    return {str(k): sparse.csr_matrix(matrix, dtype=np.float32) for k, matrix in enumerate(filled)}
