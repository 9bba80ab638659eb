"""What is measured: groups, prediction, transfer with its confidence, unseen types, batches."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from _denoise import denoise
from _original import ORIGINAL, fit_original
from _ours import ADAPTED, OURS, OWN_GROUPS, supervised, transferred, unsupervised
from _peers import EMBEDDINGS, LOGISTIC, PREDICTORS, logistic, missing
from _prepare import Prepared
from _run import Run, prediction_scores
from _scorers import Labelled, agreement, auroc, auroc_of_unknown
from _splits import N_FOLDS, by_batch, few_members, folds
from _table import Score, mean_of
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

import unitednet_mu as un
from unitednet_mu._demo import leiden_at, leiden_groups, neighbour_graph

_LARGEST_TYPES = 8
_FEWEST_CELLS = 10  # of a type to leave out
_NEIGHBOURS = 15


# ------------------------------------------------------------------ groups


def groups(run: Run) -> Iterator[Score]:
    """ARI and NMI of groups found without labels, and kNN label accuracy of embeddings."""
    data = run.data
    if "unitednet" in run.methods:
        mdata = run.integrated
        yield from _agreement(run, OWN_GROUPS, mdata.obs["unitednet_group"].to_numpy())
        embedding = mdata.obsm["X_unitednet"]
        yield from _leiden(
            run, f"{OURS}, Leiden", neighbour_graph(embedding, random_state=run.seed)
        )
        yield _neighbour_accuracy(run, OURS, embedding)
    for name, embed in EMBEDDINGS.items():
        if name not in run.methods:
            continue
        if package := missing(name):
            run.say(f"groups, {name} skipped: pip install {package}")
            continue
        start = perf_counter()
        for found in embed(data, run.seed):
            graph = found.graph
            if found.coordinates is not None:
                graph = neighbour_graph(found.coordinates, random_state=run.seed)
                yield _neighbour_accuracy(run, found.method, found.coordinates)
            yield from _leiden(run, f"{found.method}, Leiden", graph)
        run.say(f"groups, {name}", start)
    if run.original is not None:
        start = perf_counter()
        values = {name: data.values(name) for name in data.modalities}
        original = fit_original(run.original, values, data.n_groups, run.seed)
        own, embedding = original.identify(values)
        yield from _agreement(run, f"{ORIGINAL}, its own groups", own)
        graph = neighbour_graph(embedding, random_state=run.seed)
        yield from _leiden(run, f"{ORIGINAL}, Leiden", graph)
        yield _neighbour_accuracy(run, ORIGINAL, embedding)
        run.say(f"groups, {ORIGINAL}", start)


def _leiden(run: Run, method: str, graph: Any) -> Iterator[Score]:
    found = leiden_groups(graph, run.data.n_groups, random_state=run.seed)
    n = len(np.unique(found))
    if n != run.data.n_groups:
        run.say(f"{method}: {n} groups, {run.data.n_groups} asked for")
    yield from _agreement(run, method, found)


def _agreement(
    run: Run, method: str, found: np.ndarray, task: str = "groups without labels"
) -> Iterator[Score]:
    for metric in ("ARI", "NMI"):
        scorer = agreement(run.data.labels, found, metric)
        yield run.score(task, metric, method, scorer, len(run.data))


def number(run: Run) -> Iterator[Score]:
    """Groups where their number is to be found too; peers are Leiden as it comes, resolution 1."""
    data, task = run.data, "groups, number unknown"
    everything = np.arange(len(data))
    found: dict[str, np.ndarray] = {}
    if "unitednet" in run.methods:
        start = perf_counter()
        mdata = unsupervised(data, everything, run.seed, run.settings, n_groups="auto")
        un.tl.integrate(mdata, device=run.settings.device)
        run.say(f"{OURS}, fit without labels or their number", start)
        found[OWN_GROUPS] = mdata.obs["unitednet_group"].to_numpy()
    for name in [peer for peer in ("pca_concat", "wnn") if peer in run.methods]:
        for peer in EMBEDDINGS[name](data, run.seed):
            graph = peer.graph
            if peer.coordinates is not None:
                graph = neighbour_graph(peer.coordinates, random_state=run.seed)
            found[f"{peer.method}, Leiden"] = leiden_at(graph, 1.0, random_state=run.seed)
    for method, groups_found in found.items():
        yield from _agreement(run, method, groups_found, task)
        share = len(np.unique(groups_found)) / data.n_groups
        yield run.score(task, "groups found per label", method, lambda _, v=share: v, 0)


def _neighbour_accuracy(run: Run, method: str, embedding: np.ndarray) -> Score:
    labels = run.data.labels
    splitter = StratifiedKFold(N_FOLDS, shuffle=True, random_state=run.seed)
    with few_members():
        found = cross_val_predict(KNeighborsClassifier(_NEIGHBOURS), embedding, labels, cv=splitter)
    scorer = mean_of((found == labels).astype(np.float64))
    return run.score("groups without labels", "kNN label accuracy", method, scorer, len(labels))


# ------------------------------------------------------------------ prediction


def predict(run: Run) -> Iterator[Score]:
    """Mean r, r within groups and R2 on a fifth of the cells, by models of the others."""
    data = run.data
    train, test = folds(data, run.seed)[0]
    model = None
    if "unitednet" in run.methods:
        start = perf_counter()
        model = un.get.model(unsupervised(data, train, run.seed, run.settings))
        query = data.part(test)
        run.say(f"prediction, {OURS}", start)
    if run.original is not None:
        start = perf_counter()
        values = {name: data.values(name, train) for name in data.modalities}
        original = fit_original(run.original, values, data.n_groups, run.seed)
        run.say(f"prediction, {ORIGINAL}", start)
    for source, target in data.directions:
        start = perf_counter()
        x, y = data.values(source, train), data.values(target, train)
        true, name = data.values(target, test), f"{source} to {target}"
        score = partial(prediction_scores, run, name, true, data.labels[test], y.var(axis=0))
        if model is not None:
            found = model.predict(query, source, target)
            yield from score(OURS, found)
            yield from _coverage(run, name, model, true - found)
        if run.original is not None:
            found = original.predict(data.values(source, test), source, target)
            yield from score(ORIGINAL, found)
        for peer, (method, fit) in PREDICTORS.items():
            if peer in run.methods:
                fitted = fit(x, y, data.labels[train], run.seed)
                yield from score(method, fitted.predict(data.values(source, test)))
        run.say(f"prediction, {name}, peers", start)


def _coverage(run: Run, direction: str, model: Any, errors: np.ndarray) -> Iterator[Score]:
    """Share of measurements inside the intervals that are to hold nine of ten, where there are any.

    A row of this package's own: peers give no intervals.
    """
    source, target = direction.split(" to ")
    accuracy = model.accuracy.get(f"{target}_from_{source}")
    if accuracy is None or np.isnan(accuracy[2:]).all():
        return
    low, high = accuracy[2:]
    inside = ((errors >= low) & (errors <= high)).mean(0)
    yield run.score(direction, "in 90 % intervals", OURS, mean_of(inside), len(inside))


# ------------------------------------------------------------------ labels


def transfer(run: Run) -> Iterator[Score]:
    """Accuracy and confidence of labels of each batch (or fold), by models of the others."""
    data = run.data
    found: dict[str, Labelled] = {}
    for train, test in by_batch(data, run.seed):
        start = perf_counter()
        for method, classes, probabilities, _ in _labelled(run, train, test, data.labels[train]):
            of_all = found.setdefault(method, Labelled(data.labels))
            of_all.add(test, classes, probabilities)
        run.say(f"transfer, {len(train)} cells to {len(test)}", start)
    for method, labelled in found.items():
        for task, metric, scorer, lower in labelled.scorers():
            if task in run.tasks:
                yield run.score(task, metric, method, scorer, len(data), lower_is_better=lower)


def unknown(run: Run) -> Iterator[Score]:
    """AUROC of "unknown", each of the largest types left out in turn.

    By our novelty, and by one minus logistic regression's largest probability. The query holds all
    cells of the type and a fifth of the others; the reference the other four.
    """
    data = run.data
    if data.n_groups < 3:
        run.say("unknown: without one of two labels there is nothing to learn")
        return
    train, test = folds(data, run.seed)[0]
    sizes = pd.Series(data.labels).value_counts()
    types = list(sizes.index[sizes >= _FEWEST_CELLS][:_LARGEST_TYPES])
    doubt: dict[str, list[np.ndarray]] = {}
    for left_out in types:
        start = perf_counter()
        is_type = data.labels == left_out
        seen = train[~is_type[train]]
        query = np.union1d(np.flatnonzero(is_type), test)
        for method, *_, novelty in _labelled(run, seen, query, data.labels[seen]):
            values = np.full(len(data), np.nan)
            values[query] = novelty
            doubt.setdefault(method, []).append(values)
        run.say(f"unknown, without {left_out}", start)
    unseen = [data.labels == left_out for left_out in types]
    for method, values in doubt.items():
        scorer = auroc_of_unknown(unseen, values)
        yield run.score("unknown", "AUROC, mean over types", method, scorer, len(data))
        for name, is_type, one in zip(types, unseen, values, strict=True):
            yield run.score("unknown", f"AUROC, {name}", method, auroc(is_type, one), len(data))


def _labelled(
    run: Run, train: np.ndarray, query: np.ndarray, labels: np.ndarray
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Labels of a query by each method: its name, the labels' names, probabilities, novelty."""
    data = run.data
    if "unitednet" in run.methods:
        start = perf_counter()
        reference, unlabelled = supervised(data, train, run.seed, run.settings), data.part(query)
        run.say(f"{OURS}, fit with labels on {len(train)} cells", start)
        for method, adapt in ((OURS, False), (ADAPTED, True)):
            if not adapt or "adaptation" in run.methods:
                yield (
                    method,
                    *transferred(reference, unlabelled, run.seed, run.settings, adapt=adapt),
                )
    if "logistic" in run.methods:
        model = logistic(data.side_by_side(train), labels, run.seed)
        probabilities = model.predict_proba(data.side_by_side(query))
        yield LOGISTIC, model.classes_, probabilities, 1 - probabilities.max(1)


# ------------------------------------------------------------------ batches


def batches(run: Run) -> Iterator[Score]:
    """Mixing of batches and conservation of labels (scib-metrics), with `batch_key` and without."""
    data = run.data
    if data.batches is None:
        run.say("batches: there is only one")
        return
    if importlib.util.find_spec("scib_metrics") is None:
        run.say("batches skipped: pip install scib-metrics")
        return
    if "unitednet" not in run.methods:
        return
    start = perf_counter()
    mdata = unsupervised(data, np.arange(len(data)), run.seed, run.settings, batches=True)
    un.tl.integrate(mdata, device=run.settings.device)
    run.say(f"{OURS}, fit without labels, with batches", start)
    embeddings = {
        f"{OURS}, batch_key": mdata.obsm["X_unitednet"],
        f"{OURS} without batch_key": run.integrated.obsm["X_unitednet"],
    }
    for method, embedding in embeddings.items():
        ours = method.endswith(", batch_key")
        for metric, value in _scib(data, embedding, run.seed).items():
            yield run.score("batches", metric, method, lambda _, v=value: v, 0, ours=ours)


def _scib(data: Prepared, embedding: np.ndarray, seed: int) -> dict[str, float]:
    import scib_metrics as scib
    from scib_metrics.nearest_neighbors import pynndescent

    near = pynndescent(embedding, n_neighbors=min(90, len(data) - 1), random_state=seed, n_jobs=1)
    batch = pd.factorize(data.batches)[0]
    labels = pd.factorize(data.labels)[0]
    kmeans = scib.nmi_ari_cluster_labels_kmeans(embedding, labels)
    return {
        "mixing: iLISI": float(scib.ilisi_knn(near, batch)),
        "mixing: BRAS": float(scib.bras(embedding, labels, batch)),
        "conservation: cLISI": float(scib.clisi_knn(near, labels)),
        "conservation: silhouette": float(scib.silhouette_label(embedding, labels)),
        "conservation: k-means NMI": float(kmeans["nmi"]),
        "conservation: k-means ARI": float(kmeans["ari"]),
    }


TASKS: Mapping[str, Callable[[Run], Iterator[Score]]] = {
    "groups": groups,
    "number": number,
    "predict": predict,
    "denoise": denoise,
    "transfer": transfer,
    "confidence": transfer,
    "unknown": unknown,
    "batches": batches,
}
