"""Train the network."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from mudata import MuData

from .. import _presets, _results
from .._checkpoint import fingerprint_of
from .._config import Likelihood, NetworkConfig, TrainingConfig
from .._data import Dataset, ModalitySpec
from .._fit import describe_start, train_new, train_on
from .._keys import DEFAULT_STEM, check_key_added
from .._model import Model, ModelInfo
from .._open import describe_modality, open_dataset
from .._process import products_in
from .._session import session
from .._validate import (
    check_modalities,
    check_mudata,
    check_random_state,
    per_modality,
)
from ._common import resolve_device
from ._launch import join_processes
from ._levels import check_labels_key, with_batches, with_labels

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
    devices: int | Literal["auto"] = 1,
    num_nodes: int = 1,
    strategy: Any = _AUTO,
    precision: Literal["32", "bf16"] = "32",
    progress: bool = True,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1,
    resume: bool = False,
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
        mini-batches; so are matrices on disk (``mudata.read_h5mu(path, backed="r")``,
        `datasets.open_zarr`), which are never read whole: see the guide.
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
        What kind of data these are: ``"citeseq"``, ``"multiome"``, ``"patchseq"`` or
        ``"spatial"``. One set of defaults serves all data, so these change no setting: they check,
        before anything is trained, what the kind implies (see Notes). Or a configuration of the
        original UnitedNet instead of the defaults, for comparison: ``"original_patchseq"``,
        ``"original_multiome"``, ``"original_dbitseq"`` or ``"original_dlpfc"``.
    network, training
        `NetworkConfig` and `TrainingConfig`, or mappings that override their
        defaults, or the preset's; those of a fit before as ``["params"]`` has them.
    random_state
        Seed; the same seed gives the same numbers on the same machine and number of threads.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
    devices, num_nodes
        Processes that train together, one a device: how many on each machine, and how many
        machines. ``"auto"``: all GPUs, or as many as ``torchrun`` has started. For scripts; see
        Notes.
    strategy
        How Lightning Fabric starts the processes and which way they talk: ``"auto"`` and ``"ddp"``
        start them by running the script again, unless ``torchrun`` or SLURM has; or an object such
        as ``DDPStrategy(process_group_backend="gloo")``.
    precision
        ``"bf16"`` lets torch multiply float32 matrices in fewer bits (bfloat16, TF32) where the
        machine has instructions for it; weights and sums stay float32. What that gains depends on
        the machine, and numbers then do too.
    progress
        Whether to show a progress bar.
    checkpoint_dir
        Folder for checkpoints (safetensors files of about six times the model's size), made if need
        be; the last two are kept, also when the fit is done. No two fits can share one.
    checkpoint_every
        Epochs between checkpoints.
    resume
        Continue from the newest checkpoint in `checkpoint_dir`, or begin where there is none. On
        the same machine and number of threads the result is, bit for bit, that of a fit that was
        never stopped. Data and settings must be those of the checkpoint.
    key_added
        Stem of all names in `mdata`.
    copy
        Return a changed copy, and leave `mdata` as it is.

    Returns
    -------
    None, or the changed copy with ``copy=True``. Written:

    ``.uns["unitednet"]["params"]`` : dict
        Settings of data, network and training; ``["ended"]`` is ``"finished"``, or
        ``"interrupted"`` or ``"diverged"`` where training ended early (see Notes);
        ``["calibration_temperature"]`` divides the logits of groups (1: not calibrated).
    ``.uns["unitednet"]["history"]`` : DataFrame
        One row an epoch: losses on training and held-out cells.
    ``.uns["unitednet"]["groups"]`` : str array
        Names of the groups.
    ``.uns["unitednet"]["modality_weights"]`` : DataFrame
        Learned fusion weight of each modality.
    ``.uns["unitednet"]["model"]`` : dict
        The trained model (safetensors bytes, JSON and checksum), read by `get.model`.
    ``.uns["unitednet"]["version"]`` : str
        Version of this package. What a model before left in ``.uns`` under this stem is replaced.
        What it said of its groups, whose names may be the new ones', is dropped: their columns in
        ``.obs``, probabilities, and relevance in ``.varm``. Its embeddings and predicted modalities
        stay until they are written again: take another `key_added`, or run the other functions
        anew.

    Raises
    ------
    TypeError
        `mdata` is not a MuData, or settings are of the wrong type.
    ImportError
        Several processes without Lightning Fabric (``pip install lightning-fabric``).
    ValueError
        Both `labels_key` and `n_groups`, or labels in a column that is written over; several
        processes in a notebook, more than there are GPUs, or an unknown strategy; data that are not
        of the kind that `preset` names; an unknown modality, column, layer or setting; one class
        only or all labels missing; a column of measurements or identifiers; NaN or infinite values;
        too few cells; a `checkpoint_dir` that cannot be used, is in use, or holds checkpoints that
        `resume` does not ask for, that are damaged, or of other data or settings; matrices on disk
        that are stored by features, of which `mdata` is a view, or to be copied.
        Nothing is trained or written then.
    RuntimeError
        Training diverged before it had learned anything; nothing is written.
    KeyboardInterrupt
        Ctrl-C before there was a model to keep, or pressed twice; nothing is written.

    Warns
    -----
    UserWarning
        A modality looks like raw counts (with `model`: and those it was trained on did not), or
        has features that are constant or that float32 cannot tell apart. Cells are of batches that
        `model` does not know. With ``preset="spatial"``: a modality holds what neighbours express.
        Labels are called "unknown", "nan" or the like, and are learned as such; `model` trains on
        with labels that are all missing. Training diverged,
        and the best model until then is kept. A checkpoint could not be written, or the newest was
        damaged and the one before it is used.

    Notes
    -----
    The method is UnitedNet's (Tang et al., Nature Communications 14:2546, 2023).

    What a `preset` for a kind of data expects, an error where it is not so:

    - ``"citeseq"``: RNA and protein, told by their names (as `pp.prepare` tells them), prepared.
      Raw counts, elsewhere a warning, are an error here and below: their squared errors are those
      of a few abundant features.
    - ``"multiome"``: RNA and ATAC, prepared; peaks as 0 and 1 (``pp.atac(method="binarise")``) are
      trained with binary cross-entropy, TF-IDF with squared error.
    - ``"patchseq"``: RNA and another modality, such as electrophysiology in physical units: every
      feature is standardised by the model, none needs scaling.
    - ``"spatial"``: RNA and another modality (image features, protein, a niche), and positions in
      ``.obsm["spatial"]``. It warns where a niche is trained on beside what it was computed from:
      random held-out spots are neighbours of training spots.

    Ctrl-C ends training at the end of the step. The best model so far, of the last epoch or the one
    with the lowest held-out loss, is calibrated and written as at the end of any fit. So it is if
    losses or weights become infinite or NaN, if that model's loss is below the one that training
    began with. Where the second training, on all cells, ends early, the first one's model is kept.

    With several processes ``batch_size`` is that of all of them together, rounded up to a multiple
    of their number, and what is learned does not depend on how many share it: without dropout the
    gradients are those of one process. Every process runs the whole script and has the result in
    its own `mdata`; the first one writes checkpoints and shows progress, and it alone should write
    files of the script's (``torch.distributed.get_rank() == 0``).

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False)
    >>> mdata.uns["unitednet"]["groups"].tolist()
    ['group0', 'group1']
    """
    check_mudata(mdata, copy=copy)
    keys = check_key_added(mdata, key_added)
    _check_choice(labels_key, n_groups, model, reset_head)
    check_labels_key(labels_key, keys)
    _check_checkpoints(checkpoint_dir, checkpoint_every, resume)
    if precision not in ("32", "bf16"):
        raise ValueError(f"precision: expected '32' or 'bf16', found {precision!r}.")
    seed = check_random_state(random_state)
    on = resolve_device(device)
    shape, settings = _presets.settings(preset, network, training)
    if model is None:
        specs = _describe(mdata, modalities, layer, use_rep, likelihood)
        _presets.check_expected(preset, mdata, specs)
        info = ModelInfo(tuple(specs), (), shape, settings)
    else:
        fixed = (modalities, layer, use_rep, likelihood, preset, network)
        info = _inherited(model, labels_key, n_groups, reset_head, *fixed)
    info = dataclasses.replace(info, training=settings, random_state=seed)
    data = open_dataset(mdata, info.modalities) if model is None else model.open(mdata)
    info = with_labels(mdata, data, info, labels_key or info.labels_key)
    info = with_batches(mdata, data, info, batch_key or info.batch_key, fixed=model is not None)
    number = None if n_groups is None or n_groups == _AUTO else int(n_groups)
    if number is None and not info.groups and settings.start != "leiden":
        raise ValueError(
            f"start={settings.start!r} cannot find how many groups there are; give n_groups as a "
            "number, or leave start at 'leiden'."
        )
    check_size(data, len(info.groups) or number or 1)
    ranks, on = join_processes(on, devices, num_nodes, strategy)
    if model is not None:
        model.network.to(on)

    def described() -> dict[str, Any]:
        start = describe_start(model, reset_head) | {"precision": precision}
        return fingerprint_of(data, info, on, n_groups=number, processes=ranks.size, **start)

    folder = checkpoint_dir, checkpoint_every
    with (
        products_in(precision),
        session(*folder, described, resume=resume, ranks=ranks) as now,
    ):
        if model is None:
            fitted = train_new(
                data, info, n_groups=number, device=on, progress=progress, session=now
            )
        else:
            fitted = train_on(
                model,
                data,
                info,
                n_groups=number,
                reset_head=reset_head,
                progress=progress,
                session=now,
            )
        result = _results.target_of(mdata, copy)
        _results.write_fit(result, keys, fitted.model, fitted.history, fitted.ended)
        if now.stop.requested and fitted.ended == "finished":
            logger.warning("interrupted when training had finished: the model is kept.")
    return result if copy else None


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


def _check_checkpoints(directory: Any, every: Any, resume: Any) -> None:
    if directory is not None and not isinstance(directory, str | os.PathLike):
        raise TypeError(
            f"checkpoint_dir: expected a path or None, found {type(directory).__name__}."
        )
    whole = isinstance(every, (int, np.integer)) and not isinstance(every, bool)
    if not whole or every < 1:
        raise ValueError(f"checkpoint_every: expected an integer >= 1, found {every!r}.")
    if resume and directory is None:
        raise ValueError(
            "resume=True needs the folder with the checkpoints; pass it as checkpoint_dir."
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


def check_size(data: Dataset, n_groups: int) -> None:
    n_cells = int(data.observed.any(1).sum())
    fewest = max(_FEWEST_CELLS, n_groups)
    if n_cells < fewest:
        raise ValueError(f"expected at least {fewest} cells to train on, found {n_cells}.")
    if data.observed.any(0).sum() > 1 and not bool((data.observed.sum(1) > 1).any()):
        raise ValueError(
            "expected cells measured in more than one modality, found none: the modalities share "
            "no cell. Check that cell names (obs_names) agree between modalities."
        )
