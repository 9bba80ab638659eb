"""From a MuData to a dataset: what kind of values a modality has, and features aligned by name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from mudata import MuData

from . import _validate
from ._compat import warn_user
from ._config import LIKELIHOODS, Likelihood
from ._data import Dataset
from ._matrix import Columns, ModalitySpec, Source, matrix_of, scan

logger = logging.getLogger(__name__)

#: Share of the features of a modality that is missing which another one has, if it may be the same.
_MAY_BE_THE_SAME = 0.5


def describe_modality(
    mdata: MuData,
    name: str,
    layer: str | None,
    use_rep: str | None,
    likelihood: Likelihood | Literal["auto"] | None,
) -> ModalitySpec:
    """Check one modality's values before training and say what kind they are.

    Warns
    -----
    UserWarning
        Raw counts (names the `pp` function to call), constant features, or features that float32
        cannot tell apart.
    """
    adata = mdata.mod[name]
    matrix, features = matrix_of(adata, name, layer, use_rep)
    if 0 in matrix.shape:
        raise ValueError(
            f"modality {name!r}: expected cells and features, found shape {matrix.shape}."
        )
    _validate._check_unique(pd.Index(features), f"feature names of modality {name!r}")
    found = scan(matrix, pd.Index(features), name)
    if found.constant.all():
        raise ValueError(
            f"modality {name!r}: expected features that vary, found every one of them constant."
        )
    if found.constant.any():
        warn_user(
            f"modality {name!r}: {int(found.constant.sum())} constant features carry no "
            f"information, {_validate._some(np.asarray(features)[found.constant], 3)}; consider "
            "dropping them."
        )
    if likelihood not in (None, "auto", *LIKELIHOODS):
        raise ValueError(_validate.unknown_name("likelihood", likelihood, ("auto", *LIKELIHOODS)))
    if likelihood == "binary" and not found.binary:
        raise ValueError(
            f"modality {name!r}: likelihood='binary' expects values 0 and 1 only. Use pp.atac to "
            "binarise."
        )
    if found.counts and likelihood in (None, "auto"):
        warn_user(
            f"modality {name!r} looks like raw counts. Prepare it first with unitednet_mu.pp "
            "(pp.rna, pp.protein, pp.atac or pp.prepare), or pass likelihood='gaussian' to train "
            "on the values as they are."
        )
    kind: Likelihood = "binary" if found.binary else "gaussian"
    if likelihood is not None and likelihood != "auto":
        kind = likelihood
    if matrix.dtype.itemsize > np.dtype(np.float32).itemsize and found.coarse.any():
        warn_user(
            f"modality {name!r}: {int(found.coarse.sum())} features vary by so little beside their "
            "size that float32, which is trained on, does not tell their values apart, "
            f"{_validate._some(np.asarray(features)[found.coarse], 3)}. Take an offset off first."
        )
    names = tuple(str(f) for f in features)
    return ModalitySpec(name, names, kind, layer, use_rep, found.counts)


def open_dataset(
    mdata: MuData,
    specs: Sequence[ModalitySpec],
    *,
    partial: bool = False,
    only: Sequence[str] | None = None,
) -> Dataset:
    """Align the modalities of `mdata` to a model's features by name.

    Parameters
    ----------
    partial
        Whether `mdata` may lack modalities of the model entirely (they count as unobserved in every
        cell).
    only
        Names of the modalities to read; others count as unobserved. By default all.

    Raises
    ------
    ValueError
        A modality or features of it are missing; no cell has any modality.

    Warns
    -----
    UserWarning
        A modality is missing, and one that the model does not know has its features.
    """
    sources = []
    for spec in specs:
        if only is not None and spec.name not in only:
            sources.append(Source(spec, None, np.full(mdata.n_obs, -1, np.int64)))
        elif spec.name in mdata.mod:
            sources.append(_open_source(mdata, spec))
        elif partial:
            _warn_if_renamed(mdata, spec, [one.name for one in specs])
            sources.append(Source(spec, None, np.full(mdata.n_obs, -1, np.int64)))
        else:
            raise ValueError(
                _validate.unknown_name("modality", spec.name, _validate.measured_modalities(mdata))
            )
    data = Dataset(mdata.obs_names, sources)
    if not data.observed.any():
        raise ValueError(
            f"expected cells with one of the model's modalities "
            f"{[s.name for s in specs if only is None or s.name in only]}, found none among "
            f"{list(mdata.mod)}."
        )
    return data


def _warn_if_renamed(mdata: MuData, spec: ModalitySpec, known: Sequence[str]) -> None:
    """Warn where a modality that is missing may be there under another name."""
    for name in _validate.measured_modalities(mdata):
        if name in known:
            continue
        there = np.isin(spec.features, mdata.mod[name].var_names.astype(str))
        if there.mean() > _MAY_BE_THE_SAME:
            warn_user(
                f"modality {spec.name!r} of the model is not here and counts as not measured, but "
                f"{name!r}, which the model does not know, has {int(there.sum())} of its "
                f"{len(there)} features. Rename it if it is the same."
            )


def _open_source(mdata: MuData, spec: ModalitySpec) -> Source:
    adata = mdata.mod[spec.name]
    matrix, features = matrix_of(adata, spec.name, spec.layer, spec.use_rep)
    rows = adata.obs_names.get_indexer(mdata.obs_names).astype(np.int64)
    n_unknown = adata.n_obs - int((rows >= 0).sum())
    if n_unknown:
        raise ValueError(
            f"modality {spec.name!r}: {n_unknown} of its {adata.n_obs} cells are not among "
            "mdata.obs_names. Call mdata.update() first."
        )
    found = pd.Index(features).astype(str)
    if len(found) == len(spec.features) and bool(
        (found == np.asarray(spec.features, dtype=object)).all()
    ):
        return Source(spec, matrix, rows)
    _validate._check_unique(found, f"feature names of modality {spec.name!r}")
    columns = found.get_indexer(list(spec.features))
    missing = [f for f, c in zip(spec.features, columns, strict=True) if c < 0]
    if missing:
        extra = found.difference(list(spec.features))
        raise ValueError(
            f"modality {spec.name!r}: the model expects {len(spec.features)} features, "
            f"{len(missing)} are missing: {_validate._some(missing)}; features here that the model "
            f"does not know: {_validate._some(extra, 5)}. Restrict training to the shared "
            "features, or fit anew."
        )
    if len(found) > len(spec.features):
        logger.info(
            "modality %r: %d features unknown to the model are ignored.",
            spec.name,
            len(found) - len(columns),
        )
    return Source(spec, Columns(matrix, columns), rows)
