"""Train the network."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from mudata import MuData

from .. import _presets, _results
from .._config import Likelihood, NetworkConfig, TrainingConfig
from .._data import Dataset, ModalitySpec, describe_modality, open_dataset
from .._fit import train_new, train_on
from .._keys import DEFAULT_STEM, check_key_added
from .._model import Model, ModelInfo
from .._validate import (
    as_names,
    check_labels,
    check_modalities,
    check_mudata,
    check_random_state,
    check_shared,
    has_obs_column,
    obs_column,
    per_modality,
    unknown_name,
)
from ._common import resolve_device

logger = logging.getLogger(__name__)

_AUTO = "auto"
_FEWEST_CELLS = 10


def fit(
    mdata: MuData,
    *,
    labels_key: str | None = None,
    n_groups: int | Literal["auto"] | None = None,
    batch_key: str | None = None,
    modalities: Sequence[str] | None = None,
    layer: str | Mapping[str, str | None] | None = None,
    use_rep: str | Mapping[str, str | None] | None = None,
    likelihood: Likelihood | Mapping[str, Likelihood] | None = None,
    model: Model | None = None,
    reset_head: bool = False,
    preset: str | None = None,
    network: NetworkConfig | Mapping[str, Any] | None = None,
    training: TrainingConfig | Mapping[str, Any] | None = None,
    random_state: int = 0,
    device: str = _AUTO,
    progress: bool = True,
    key_added: str = DEFAULT_STEM,
    copy: bool = False,
) -> MuData | None:
    """Train one network to identify groups and to predict every modality from every other.

    Supervised with `labels_key` (semi-supervised where labels are missing), unsupervised with
    `n_groups`. Cells may lack modalities; what they lack is left out, never filled in.

    Parameters
    ----------
    mdata
        Prepared data (see `pp`), cells shared (``axis=0``). Sparse matrices are read in
        mini-batches.
    labels_key
        Column of ``mdata.obs`` (or of the modalities' ``.obs``) with labels; cells with a missing
        label train everything but the group identification.
    n_groups
        How many groups to find without labels; ``"auto"`` finds the number (Leiden on the codes),
        which is also what happens if neither `labels_key` nor `n_groups` is given.
    batch_key
        Column with batches; decoders are conditioned on it and codes are not.
    modalities
        Which to train on; by default all that were measured.
    layer, use_rep
        Matrix to read instead of ``.X``, one for all or ``{modality: name}``; `use_rep` names an
        ``.obsm`` matrix of the modality.
    likelihood
        ``"gaussian"`` (mean squared error) or ``"binary"`` (binary cross-entropy), one for all or
        ``{modality: likelihood}``; by default binary where all values are 0 or 1.
    model
        Continue from this model (see `get.model`); features must be those it was trained on. Its
        network, modalities and layers are used; without `labels_key` and `n_groups` also its
        labels. Its calibration and the expected accuracy of its predictions are kept: cells held
        out now may be among those that it has seen.
    reset_head
        With `model`: keep the encoders and decoders, and learn the groups anew.
    preset
        Start from a configuration of the original UnitedNet instead of the defaults:
        ``"original_patchseq"``, ``"original_multiome"``, ``"original_dbitseq"`` or
        ``"original_dlpfc"``. For comparison; the defaults are meant for all data.
    network, training
        `NetworkConfig` and `TrainingConfig`, or mappings that override their
        defaults, or the preset's.
    random_state
        Seed; the same seed gives the same numbers on the same machine and number of threads.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
    progress
        Whether to show a progress bar.
    key_added
        Stem of all names in `mdata`.
    copy
        Return a changed copy, and leave `mdata` as it is.

    Returns
    -------
    None, or the changed copy with ``copy=True``. Written:

    ``.uns["unitednet"]["params"]`` : dict
        Settings of data, network and training.
    ``.uns["unitednet"]["history"]`` : DataFrame
        One row an epoch: losses on training and held-out cells.
    ``.uns["unitednet"]["groups"]`` : str array
        Names of the groups.
    ``.uns["unitednet"]["modality_weights"]`` : DataFrame
        Learned fusion weight of each modality.
    ``.uns["unitednet"]["model"]`` : dict
        The trained model (safetensors bytes, JSON and checksum), read by `get.model`.
    ``.uns["unitednet"]["version"]`` : str
        Version of this package.

    Raises
    ------
    TypeError
        `mdata` is not a MuData, or settings are of the wrong type.
    ValueError
        Both `labels_key` and `n_groups`; an unknown modality, column, layer or setting; one class
        only or all labels missing; a column of measurements or identifiers; NaN or infinite
        values; too few cells. Nothing is trained or written then.
    RuntimeError
        Training diverged; nothing is written.

    Warns
    -----
    UserWarning
        A modality looks like raw counts (with `model`: and those it was trained on did not), or
        has constant features.

    Notes
    -----
    The method is UnitedNet's (Tang et al., Nature Communications 14:2546, 2023).

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False)
    >>> mdata.uns["unitednet"]["groups"].tolist()
    ['group0', 'group1']
    """
    check_mudata(mdata)
    keys = check_key_added(mdata, key_added)
    _check_choice(labels_key, n_groups, model, reset_head)
    seed = check_random_state(random_state)
    on = resolve_device(device)
    shape, settings = _presets.settings(preset, network, training)
    if model is None:
        specs = _describe(mdata, modalities, layer, use_rep, likelihood)
        info = ModelInfo(tuple(specs), (), shape, settings)
    else:
        fixed = (modalities, layer, use_rep, likelihood, preset, network)
        info = _inherited(model, labels_key, n_groups, reset_head, *fixed)
    info = dataclasses.replace(info, training=settings, random_state=seed)
    data = open_dataset(mdata, info.modalities) if model is None else model.open(mdata)
    info = _with_labels(mdata, data, info, labels_key or info.labels_key)
    info = _with_batches(mdata, data, info, batch_key or info.batch_key, fixed=model is not None)
    number = None if n_groups is None or n_groups == _AUTO else int(n_groups)
    if number is None and not info.groups and settings.start != "leiden":
        raise ValueError(
            f"start={settings.start!r} cannot find how many groups there are; give n_groups as a "
            "number, or leave start at 'leiden'."
        )
    _check_size(data, len(info.groups) or number or 1)
    if model is None:
        trained, history = train_new(data, info, n_groups=number, device=on, progress=progress)
    else:
        model.network.to(on)
        trained, history = train_on(
            model, data, info, n_groups=number, reset_head=reset_head, progress=progress
        )
    result = _results.target_of(mdata, copy)
    _results.write_fit(result, keys, trained, history)
    return result if copy else None


def refit(mdata: MuData, model: Model, *, n_repeats: int, progress: bool) -> list[Model]:
    """Train anew with the seeds after the model's; all else as the model was trained.

    Data, labels or number of groups, batches, network and training settings are its own. A model
    that was continued from another is trained from scratch.

    Raises
    ------
    ValueError
        As for :func:`training_data`.
    """
    data, info = training_data(mdata, model)
    return [
        train_again(model, data, info, number, progress=progress)
        for number in range(1, n_repeats + 1)
    ]


def training_data(mdata: MuData, model: Model) -> tuple[Dataset, ModelInfo]:
    """Return what a model was trained on, and with which settings, to train it anew.

    Raises
    ------
    ValueError
        `mdata` lacks a modality, or the column of labels or batches; a value of them is unknown to
        the model.
    """
    info = model.info
    if info.labels_key is None:
        info = dataclasses.replace(info, groups=())
    data = open_dataset(mdata, info.modalities)
    info = _with_labels(mdata, data, info, info.labels_key)
    info = _with_batches(mdata, data, info, info.batch_key, fixed=True)
    _check_size(data, len(model.info.groups))
    return data, info


def train_again(
    model: Model, data: Dataset, info: ModelInfo, number: int, *, progress: bool
) -> Model:
    """Train as `model` was, from scratch and with the seed `number` after its own."""
    seed = (info.random_state + number) % 2**32
    return train_new(
        data,
        dataclasses.replace(info, random_state=seed),
        n_groups=None if info.groups else len(model.info.groups),
        device=model.device,
        progress=progress,
    )[0]


def _check_choice(
    labels_key: str | None, n_groups: Any, model: Model | None, reset_head: bool
) -> None:
    if labels_key is not None and n_groups is not None:
        raise ValueError(
            f"expected labels_key or n_groups, found both ({labels_key!r} and {n_groups!r}): "
            "groups are learned from labels, or found."
        )
    integer = isinstance(n_groups, (int, np.integer)) and not isinstance(n_groups, bool)
    if not (n_groups is None or n_groups == _AUTO or (integer and n_groups >= 2)):
        raise ValueError(f"n_groups: expected an integer >= 2 or 'auto', found {n_groups!r}.")
    if model is not None and not isinstance(model, Model):
        raise TypeError(
            f"model: expected a unitednet_mu model (see get.model), found {type(model).__name__}."
        )
    if reset_head and model is None:
        raise ValueError(
            "reset_head=True needs a model to start from; pass model=unitednet_mu.get.model(mdata)."
        )


def _describe(
    mdata: MuData, modalities: Any, layer: Any, use_rep: Any, likelihood: Any
) -> list[ModalitySpec]:
    chosen = check_modalities(mdata, modalities)
    layers = per_modality(layer, chosen, "layer")
    reps = per_modality(use_rep, chosen, "use_rep")
    kinds = per_modality(likelihood, chosen, "likelihood")
    return [
        describe_modality(mdata, name, layers[name], reps[name], kinds[name]) for name in chosen
    ]


def _inherited(
    model: Model, labels_key: str | None, n_groups: Any, reset_head: bool, *fixed: Any
) -> ModelInfo:
    """Return the settings of a model to continue from: its network and data are kept."""
    for name, value in zip(
        ("modalities", "layer", "use_rep", "likelihood", "preset", "network"), fixed, strict=True
    ):
        if value is not None:
            raise ValueError(
                f"{name}: the model to continue from fixes it; leave it out, or fit anew."
            )
    info = model.info
    if reset_head:
        return dataclasses.replace(info, labels_key=labels_key, groups=())
    if n_groups is not None:
        raise ValueError(
            "n_groups: the model keeps its groups; pass reset_head=True to find groups anew."
        )
    return dataclasses.replace(info, labels_key=labels_key or info.labels_key)


def _with_labels(
    mdata: MuData, data: Dataset, info: ModelInfo, labels_key: str | None
) -> ModelInfo:
    """Read the labels into `data`; a model's own groups are kept."""
    if labels_key is None:
        return info
    codes, names = _levels(mdata, data, labels_key, "labels_key")
    if info.groups:
        unknown = [name for name in names if name not in info.groups]
        if unknown:
            known = list(info.groups)
            raise ValueError(
                f"{unknown_name('labels_key: label', unknown[0], known)} Pass reset_head=True to "
                "learn new labels."
            )
        codes = _positions(codes, names, info.groups)
    else:
        check_labels(codes, names, labels_key)
        check_shared(codes, names, "labels_key", labels_key)
    data.labels = codes
    return dataclasses.replace(info, labels_key=labels_key, groups=info.groups or tuple(names))


def _with_batches(
    mdata: MuData, data: Dataset, info: ModelInfo, batch_key: str | None, *, fixed: bool
) -> ModelInfo:
    """Read the batches into `data`; batches that a model does not know count as unknown."""
    if batch_key is None:
        return info
    if fixed and info.batch_key is None:
        raise ValueError(
            "batch_key: the model was trained without batches; leave it out, or fit anew."
        )
    codes, names = _levels(mdata, data, batch_key, "batch_key")
    if not len(names):
        raise ValueError(f"batch_key={batch_key!r}: expected batches, found every value missing.")
    if not info.batches:
        check_shared(codes, names, "batch_key", batch_key)
    batches = info.batches or tuple(names)
    data.batches = _positions(codes, names, batches)
    return dataclasses.replace(info, batch_key=batch_key, batches=batches)


def read_batches(query: MuData, data: Dataset, info: ModelInfo) -> None:
    """Read the batches of a query into `data`; those that the model does not know are unknown.

    So are all of them where the query has no such column.
    """
    if info.batch_key is None:
        return
    if not has_obs_column(query, info.batch_key):
        logger.info("query: no column %r; all of its batches are unknown.", info.batch_key)
        return
    codes, names = _levels(query, data, info.batch_key, "batch_key")
    data.batches = _positions(codes, names, info.batches)


def _positions(codes: np.ndarray, names: np.ndarray, known: Sequence[str]) -> np.ndarray:
    """Turn codes into `names` into positions among `known`, -1 where missing or not among them."""
    position = {name: index for index, name in enumerate(known)}
    positions = np.array([*(position.get(name, -1) for name in names), -1], dtype=np.int64)
    return np.asarray(positions[codes])


def _levels(mdata: MuData, data: Dataset, key: str, argument: str) -> tuple[np.ndarray, np.ndarray]:
    """Code of each cell, -1 where missing, and the names in use among cells to train on."""
    seen = np.flatnonzero(data.observed.any(1))
    codes = np.full(len(data), -1, np.int64)
    codes[seen], names = as_names(obs_column(mdata, key, argument).iloc[seen])
    return codes, names


def _check_size(data: Dataset, n_groups: int) -> None:
    n_cells = int(data.observed.any(1).sum())
    fewest = max(_FEWEST_CELLS, n_groups)
    if n_cells < fewest:
        raise ValueError(f"expected at least {fewest} cells to train on, found {n_cells}.")
    if data.observed.any(0).sum() > 1 and not bool((data.observed.sum(1) > 1).any()):
        raise ValueError(
            "expected cells measured in more than one modality, found none: the modalities share "
            "no cell. Check that cell names (obs_names) agree between modalities."
        )
