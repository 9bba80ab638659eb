"""What the demo measures on the bundled data: held-out figures beside simple baselines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from mudata import MuData
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import adjusted_rand_score, balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from . import get, metrics, pp, tl
from ._data import to_dense

PAIRED_DONORS = ("p3_0", "p4_0")
_DIRECTIONS = (("rna", "adt"), ("adt", "rna"))
_PENALTIES = np.logspace(0, 5, 16)
_COMPONENTS = 30
_LEIDEN_STEPS = 20


@dataclass
class Scores:
    """Values by (task, method), one per held-out donor or one in all."""

    values: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, task: str, method: str, value: float) -> None:
        """Record one value."""
        self.values.setdefault((task, method), []).append(float(value))

    def table(self) -> pd.DataFrame:
        """Means, one row a task and method."""
        rows = [(*key, float(np.mean(value))) for key, value in self.values.items()]
        return pd.DataFrame(rows, columns=["task", "method", "value"])


def prepared(raw: MuData, donors: tuple[str, ...]) -> MuData:
    """Copy of some donors, prepared with no knowledge of the others."""
    part = raw[raw.obs["donor"].isin(donors).to_numpy()].copy()
    part.obs["donor"] = part.obs["donor"].cat.remove_unused_categories()
    pp.prepare(part)
    return part


def values(mdata: MuData, modality: str, cells: pd.Index | None = None) -> np.ndarray:
    """Return a modality's values as an array."""
    adata = mdata[modality] if cells is None else mdata[modality][cells]
    return to_dense(adata.X)


def held_out_scores(raw: MuData, *, seed: int, progress: bool) -> Scores:
    """Train on one paired donor, label and predict the other, in turn.

    Every model and baseline is trained on the same 400 cells and has seen none of the other
    donor's, unless the row says "adapted".
    """
    scores = Scores()
    pooled: dict[str, list[np.ndarray]] = {}
    for held_out, trained in (PAIRED_DONORS, PAIRED_DONORS[::-1]):
        reference, query = prepared(raw, (trained,)), prepared(raw, (held_out,))
        tl.fit(reference, labels_key="cell_type", random_state=seed, progress=progress)
        pooled.setdefault("true", []).append(query.obs["cell_type"].astype(str).to_numpy())
        for method, labels in _transferred(reference, query, seed, progress):
            pooled.setdefault(method, []).append(labels)
        for source, target in _DIRECTIONS:
            _score_direction(scores, reference, query, source, target)
    true = np.concatenate(pooled.pop("true"))
    for method, parts in pooled.items():
        task = "label transfer, balanced accuracy"
        scores.add(task, method, balanced_accuracy_score(true, np.concatenate(parts)))
    return scores


def _transferred(
    reference: MuData, query: MuData, seed: int, progress: bool
) -> Iterator[tuple[str, np.ndarray]]:
    """Labels of the query by each method, of every cell, as the baseline labels every cell."""
    for method, adapt in (("unitednet_mu", False), ("unitednet_mu, adapted", True)):
        labelled: Any = tl.transfer_labels(
            query,
            reference,
            adapt=adapt,
            unknown_threshold=0,
            random_state=seed,
            progress=progress,
            copy=True,
        )
        yield method, labelled.obs["unitednet_label"].astype(str).to_numpy()
    train = np.hstack([values(reference, name, reference.obs_names) for name in ("rna", "adt")])
    test = np.hstack([values(query, name, query.obs_names) for name in ("rna", "adt")])
    labels = reference.obs["cell_type"].astype(str).to_numpy()
    yield "logistic regression, balanced", _logistic(train, labels, test)


def _logistic(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    scaler = StandardScaler().fit(train)
    model = LogisticRegression(class_weight="balanced", max_iter=5000)
    model.fit(scaler.transform(train), labels)
    return np.asarray(model.predict(scaler.transform(test)))


def _score_direction(
    scores: Scores, reference: MuData, query: MuData, source: str, target: str
) -> None:
    """Pearson r over features, and within the true groups, of our prediction and two baselines."""
    x, y = (values(reference, name, reference.obs_names) for name in (source, target))
    unseen, true = (values(query, name, query.obs_names) for name in (source, target))
    labels = reference.obs["cell_type"].astype(str).to_numpy()
    groups = query.obs["cell_type"].astype(str).to_numpy()
    means = pd.DataFrame(y).groupby(labels).mean()
    predictions = {
        "unitednet_mu": get.model(reference).predict(query, source, target),
        "ridge regression": RidgeCV(_PENALTIES).fit(x, y).predict(unseen),
        "mean of the predicted group": means.loc[_logistic(x, labels, unseen)].to_numpy(),
    }
    for method, predicted in predictions.items():
        overall = metrics.pearson_per_feature(true, predicted)
        within = metrics.pearson_within_groups(true, predicted, groups)
        scores.add(f"{source} to {target}, mean r", method, float(np.nanmean(overall)))
        if method != "mean of the predicted group":  # constant within a group: no r there
            scores.add(
                f"{source} to {target}, mean r within groups", method, float(np.nanmean(within))
            )


def group_scores(raw: MuData, *, seed: int, progress: bool) -> Scores:
    """Score groups of the 800 paired cells, without labels: the head's own, PCA and Leiden."""
    paired = prepared(raw, PAIRED_DONORS)
    true = paired.obs["cell_type"].astype(str).to_numpy()
    n_groups = len(np.unique(true))
    tl.fit(paired, n_groups=n_groups, random_state=seed, progress=progress)
    tl.integrate(paired)
    scores = Scores()
    task = "groups without labels, ARI"
    scores.add(
        task,
        "unitednet_mu, its own groups",
        adjusted_rand_score(true, paired.obs["unitednet_group"]),
    )
    embedding = paired.obsm["X_unitednet"]
    scores.add(
        task,
        "unitednet_mu, Leiden on its embedding",
        _leiden_score(true, embedding, n_groups, seed),
    )
    components = [
        PCA(_COMPONENTS, random_state=seed).fit_transform(values(paired, m)) for m in ("rna", "adt")
    ]
    scores.add(
        task, "PCA side by side, Leiden", _leiden_score(true, np.hstack(components), n_groups, seed)
    )
    return scores


def _leiden_score(true: np.ndarray, embedding: np.ndarray, n_groups: int, seed: int) -> float:
    """ARI of scanpy's Leiden, the resolution searched for the number of groups."""
    graph = neighbour_graph(embedding, random_state=seed)
    found = leiden_groups(graph, n_groups, random_state=seed)
    return float(adjusted_rand_score(true, found))


def neighbour_graph(embedding: np.ndarray, *, random_state: int = 0) -> Any:
    """Return scanpy's neighbour graph of the rows of `embedding`, cells x cells."""
    import scanpy as sc
    from anndata import AnnData

    adata = AnnData(np.zeros((len(embedding), 1), np.float32), obsm={"X": embedding})
    sc.pp.neighbors(adata, use_rep="X", random_state=random_state)
    return adata.obsp["connectivities"]


def leiden_groups(graph: Any, n_groups: int, *, random_state: int = 0) -> np.ndarray:
    """Find groups by scanpy's Leiden, the resolution searched for the number of groups."""
    low, high = 0.01, 10.0
    for _ in range(_LEIDEN_STEPS):
        resolution = float(np.sqrt(low * high))
        labels = leiden_at(graph, resolution, random_state=random_state)
        found = len(np.unique(labels))
        if found == n_groups:
            break
        low, high = (low, resolution) if found > n_groups else (resolution, high)
    return labels


def leiden_at(graph: Any, resolution: float, *, random_state: int = 0) -> np.ndarray:
    """Find groups by scanpy's Leiden at a resolution."""
    import scanpy as sc
    from anndata import AnnData

    adata = AnnData(np.zeros((graph.shape[0], 1), np.float32))
    sc.tl.leiden(
        adata,
        resolution=resolution,
        adjacency=graph,
        flavor="igraph",
        n_iterations=2,
        directed=False,
        random_state=random_state,
    )
    return np.asarray(adata.obs["leiden"], dtype=np.int64)
