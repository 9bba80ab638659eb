"""MuData of every shape through the five functions: right, or refused by name."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mudata as md
import numpy as np
import pandas as pd
from _compare import fingerprint_of
from hypothesis import strategies as st
from mudata import MuData

import unitednet_mu as un
from unitednet_mu._compat import quiet_update

sys.path.insert(0, str(Path(__file__).parents[1]))

from strategies import for_each, mudatas, queries

#: Settings of `tl.fit`: a small network, trained for a moment.
_QUICK = {
    "network": {"n_hidden": (8,), "n_latent": 4, "n_projector": 5, "n_heads": 1},
    "training": {"max_epochs": 2, "refit": False},
    "device": "cpu",
    "progress": False,
}
_FEW = {"n_cells": 3, "n_background": 3, "device": "cpu", "progress": False}


#: What a message about the user's data names: a modality, the column, cells, features, values.
_NAMED = ("modality", "modalities", "label", "cells", "features", "groups", "values")
#: Ways to ask for groups.
ASKED: Sequence[Mapping[str, Any]] = (
    {"labels_key": "label"},
    {"n_groups": 2},
    {"n_groups": "auto"},
)


def outcome(mdata: MuData, asked: Mapping[str, Any] = ASKED[0]) -> tuple[str, str]:
    """Return ``"works"`` or ``"refused"``, and what is wrong with that, ``""`` for nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work = _copied(mdata)
        refused, wrong = _refused(work, lambda: un.tl.fit(work, **asked, **_QUICK))
        if refused or wrong:
            return "refused" if refused else "works", wrong
        steps = [_integrated, _from_disk, _predicted, _explained, _explained_across]
        for step in [*steps, _transferred] if "labels_key" in asked else steps:
            try:
                wrong = step(work)
            except Exception as error:
                wrong = f"{type(error).__name__}: {error}"[:300]
            if wrong:
                return "works", f"{step.__name__}: {wrong}"
    return "works", ""


def outcome_of_query(query: MuData, reference: MuData) -> tuple[str, str]:
    """Hand a query to every function with the model of `reference`, as :func:`outcome` does."""
    model, known = un.get.model(reference), {"device": "cpu", "progress": False}
    adapted = {"training": {"max_epochs": 1}, "adapt": True, "progress": False}
    calls: Mapping[str, Callable[[MuData], Any]] = {
        "integrate": lambda m: un.tl.integrate(m, model=model, device="cpu"),
        "predict_modality": lambda m: un.tl.predict_modality(
            m, model=model, source="rna", target="adt", device="cpu"
        ),
        "transfer_labels": lambda m: un.tl.transfer_labels(m, reference, adapt=False, **known),
        "transfer_labels, adapted": lambda m: un.tl.transfer_labels(m, reference, **adapted),
        "explain": lambda m: un.tl.explain(m, model=model, **_FEW),
    }
    n_refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, call in calls.items():
            work = _copied(query)
            refused, wrong = _refused(work, partial(call, work))
            if not (refused or wrong):
                wrong = _not_finite(work)
            if wrong:
                return "works", f"{name}: {wrong}"
            n_refused += refused
    return "refused" if n_refused == len(calls) else "works", ""


def _refused(mdata: MuData, call: Callable[[], Any]) -> tuple[bool, str]:
    """Call; whether that was refused, and what is wrong with how."""
    before = fingerprint_of(mdata)
    try:
        call()
    except (ValueError, TypeError, RuntimeError) as error:
        message = str(error)
        if fingerprint_of(mdata) != before:
            return True, "changed, though refused"
        if "\n" in message or not any(name in message for name in _NAMED):
            return True, f"a message that names nothing: {message[:200]!r}"
        return True, ""
    except Exception as error:  # anything else is what is looked for
        return False, f"{type(error).__name__}: {error}"[:300]
    return False, ""


def _not_finite(mdata: MuData) -> str:
    """Return what is not finite among the results, ``""`` for nothing."""
    found = {f".obsm[{key!r}]": mdata.obsm[key] for key in mdata.obsm if "unitednet" in key}
    found |= {f".mod[{name!r}]": mdata.mod[name].X for name in mdata.mod if "_from_" in name}
    for name, values in found.items():
        if not np.isfinite(np.asarray(values)).all():
            return f"{name} is not finite"
    if any("unitednet_relevance" in mdata.mod[name].varm for name in mdata.mod):
        measured = un.get.relevance(mdata)
        if np.isinf(measured["value"].to_numpy(float)).any():
            return "relevance is infinite"
    return ""


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


def _from_disk(mdata: MuData) -> str:
    """Embed from a file that is not read whole, unless it is stored by features."""
    with TemporaryDirectory() as folder, quiet_update():
        path = Path(folder) / "cells.h5mu"
        MuData({m: mdata.mod[m].copy() for m in un.get.model(mdata).modality_names}).write(path)
        backed = md.read_h5mu(path, backed="r")
        try:
            un.tl.integrate(backed, model=un.get.model(mdata))
            found = pd.DataFrame(backed.obsm["X_unitednet"], backed.obs_names)
        except ValueError as error:
            return "" if "stored by features" in str(error) else f"{error}"[:300]
        finally:
            backed.file.close()
    same = np.allclose(found.loc[mdata.obs_names], mdata.obsm["X_unitednet"], atol=1e-4, rtol=1e-4)
    return "" if same else "another embedding from disk"


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


def _explained_across(mdata: MuData) -> str:
    source, target = un.get.model(mdata).modality_names[:2]
    un.tl.explain(mdata, source=source, target=target, top_k=None, **_FEW)
    table = un.get.cross_relevance(mdata, source=source, target=target)
    known = set(mdata.mod[source].var_names), set(mdata.mod[target].var_names)
    if not (set(table["feature"]) <= known[0] and set(table["target_feature"]) <= known[1]):
        return "relevance of other features"
    return "" if np.isfinite(table["value"].to_numpy(float)).all() else "relevance is not finite"


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

    def run(mdata: MuData, asked: Mapping[str, Any]) -> tuple[str, str]:
        what, wrong = outcome(mdata, asked)
        if not wrong and (unprepared := prepared(mdata)):
            wrong = f"prepare: {unprepared}"
        return what, wrong

    return _tally(run, n, number, mudatas(), st.sampled_from(ASKED))


def any_queries(n: int, number: int = 0) -> tuple[Mapping[str, int], dict[str, str]]:
    """Run `n` drawn queries against one model; return what :func:`any_inputs` does."""
    reference = reference_cells()
    return _tally(lambda q: outcome_of_query(q, reference), n, number, queries(reference))


def reference_cells() -> MuData:
    """Plain cells with a model of their labels."""
    mdata = un.datasets.simulate_multimodal(
        n_obs=40, n_groups=3, n_vars={"rna": 8, "adt": 6}, random_state=1
    )
    un.tl.fit(mdata, labels_key="cell_type", **_QUICK)
    return mdata


def _tally(
    run: Callable[..., tuple[str, str]], n: int, number: int, *drawn: st.SearchStrategy[Any]
) -> tuple[Mapping[str, int], dict[str, str]]:
    tally: Counter[str] = Counter()
    problems: dict[str, str] = {}

    def each(*inputs: Any) -> None:
        what, wrong = run(*inputs)
        tally[what] += 1
        if wrong:
            problems.setdefault(wrong, repr(inputs))

    for_each(n, number, *drawn, run=each)
    return dict(tally), problems
