"""MuData of every shape through the five functions: right, or refused by name."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from mudata import MuData

import unitednet_mu as un
from unitednet_mu._compat import quiet_update

sys.path.insert(0, str(Path(__file__).parents[1]))

from strategies import mudatas

#: Settings of `tl.fit`: a small network, trained for a moment.
_QUICK = {
    "network": {"n_hidden": (8,), "n_latent": 4, "n_projector": 5, "n_heads": 1},
    "training": {"max_epochs": 2, "refit": False},
    "device": "cpu",
    "progress": False,
}
_FEW = {"n_cells": 3, "n_background": 3, "device": "cpu", "progress": False}


def outcome(mdata: MuData) -> tuple[str, str]:
    """Return ``"works"`` or ``"refused"``, and what is wrong with that, ``""`` for nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work = _copied(mdata)
        before = sorted(work.uns), sorted(work.obsm), sorted(work.mod), list(work.obs)
        try:
            un.tl.fit(work, labels_key="label", **_QUICK)
        except (ValueError, TypeError) as error:
            after = sorted(work.uns), sorted(work.obsm), sorted(work.mod), list(work.obs)
            wrong = "" if before == after else "changed, though refused"
            message = str(error)
            # the culprit: a modality, the column, or how many cells there are
            named = ("modality", "label", "cells", "cell names", "features")
            if "\n" in message or not any(name in message for name in named):
                wrong = f"a message that names nothing: {message[:200]!r}"
            return "refused", wrong
        except Exception as error:  # anything else is what is looked for
            return "works", f"fit: {type(error).__name__}: {error}"[:300]
        for step in (_integrated, _predicted, _transferred, _explained):
            try:
                wrong = step(work)
            except Exception as error:
                wrong = f"{type(error).__name__}: {error}"[:300]
            if wrong:
                return "works", f"{step.__name__}: {wrong}"
    return "works", ""


def _copied(mdata: MuData) -> MuData:
    with quiet_update():
        return mdata.copy()


def _integrated(mdata: MuData) -> str:
    """Embed; then again with each modality's cells in another order: results follow names."""
    un.tl.integrate(mdata)
    found = mdata.obsm["X_unitednet"]
    if found.shape != (mdata.n_obs, 4) or not np.isfinite(found).all():
        return f"embedding of shape {found.shape}, or not finite"
    rng = np.random.default_rng(0)
    parts = {m: mdata.mod[m][rng.permutation(mdata.mod[m].n_obs)].copy() for m in mdata.mod}
    with quiet_update():
        other = MuData(parts)
    un.tl.integrate(other, model=un.get.model(mdata), key_added="again")
    rows = other.obs_names.get_indexer(mdata.obs_names)
    same = np.allclose(other.obsm["X_again"][rows], found, atol=1e-4, rtol=1e-4)
    shares = un.get.probabilities(mdata)
    if (
        not np.allclose(shares.sum(axis=1), 1, atol=1e-4)
        or not (shares.index == mdata.obs_names).all()
    ):
        return "probabilities that do not add up, or of other cells"
    return "" if same else "results follow positions, not names"


def _predicted(mdata: MuData) -> str:
    source, target = un.get.model(mdata).modality_names[:2]
    un.tl.predict_modality(mdata, source=source, target=target)
    predicted = mdata.mod[f"{target}_from_{source}"]
    if set(predicted.obs_names) != set(mdata.mod[source].obs_names):
        return "prediction of other cells than the source has"
    if list(predicted.var["feature"]) != list(mdata.mod[target].var_names):
        return "prediction of other features"
    return "" if np.isfinite(predicted.X).all() else "prediction is not finite"


def _transferred(mdata: MuData) -> str:
    names = un.get.model(mdata).modality_names
    with quiet_update():
        query = MuData({m: mdata.mod[m][::-1].copy() for m in names})
    un.tl.transfer_labels(query, mdata, adapt=False, progress=False)
    known = un.get.probabilities(mdata)
    found = un.get.probabilities(query, labels=True).loc[known.index, known.columns]
    same = np.allclose(found, known, atol=1e-4)
    return "" if same else "labels of the same cells differ"


def _explained(mdata: MuData) -> str:
    un.tl.explain(mdata, **_FEW)
    table = un.get.relevance(mdata)
    wanted = {f for m in un.get.model(mdata).modality_names for f in mdata.mod[m].var_names}
    return "" if set(table["feature"]) <= wanted and len(table) else "relevance of other features"


def prepared(mdata: MuData) -> str:
    """Prepare each modality as each kind: finite values of the same cells, or an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in ("continuous", "rna", "protein", "atac"):
            try:
                found = un.pp.prepare(
                    _copied(mdata), kinds=dict.fromkeys(mdata.mod, kind), copy=True
                )
            except (ValueError, TypeError) as error:
                if not any(f"{name!r}" in str(error) for name in mdata.mod):
                    return f"{kind}: a message that names no modality: {error}"[:300]
                continue
            except Exception as error:
                return f"{kind}: {type(error).__name__}: {error}"[:300]
            for name, adata in found.mod.items():
                if not adata.obs_names.equals(mdata.mod[name].obs_names):
                    return f"{kind}: cells of {name!r} differ"
                x = adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X
                if not np.isfinite(x).all():
                    return f"{kind}: values of {name!r} are not finite"
    return ""


def any_inputs(n: int, number: int = 0) -> tuple[Mapping[str, int], dict[str, str]]:
    """Run `n` drawn MuData; return how many worked and were refused, and problems by kind."""
    tally: Counter[str] = Counter()
    problems: dict[str, str] = {}

    @seed(number)
    @settings(
        max_examples=n,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(mdata=mudatas())
    def run(mdata: MuData) -> None:
        what, wrong = outcome(mdata)
        tally[what] += 1
        if not wrong and (unprepared := prepared(mdata)):
            wrong = f"prepare: {unprepared}"
        if wrong:
            problems.setdefault(wrong, repr(mdata))

    run()
    return dict(tally), problems
