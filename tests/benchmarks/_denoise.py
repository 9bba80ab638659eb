"""Denoising: counts are split in two by chance; what half of them says of the other half.

Each molecule goes to one half or the other with probability 1/2 (molecular cross-validation, Batson
et al. 2019), so that their noise is independent, and a method that only copies noise gains nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from _ours import OURS, unsupervised
from _peers import N_COMPONENTS, principal_components
from _prepare import COUNTS, Prepared, prepared_again
from _run import Run, prediction_scores
from _table import Score
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

import unitednet_mu as un

_NEIGHBOURS = 15


def denoise(run: Run) -> Iterator[Score]:
    """Mean r, r within groups and R2 of the half not seen, each modality with counts."""
    counted = [name for name, adata in run.data.modalities.items() if COUNTS in adata.layers]
    if not counted:
        run.say("denoise: no modality has counts")
        return
    seen, other = halves(run.data, counted, run.seed)
    cells = np.arange(len(seen))
    model = None
    if "unitednet" in run.methods:
        start = perf_counter()
        model = un.get.model(unsupervised(seen, cells, run.seed, run.settings))
        run.say(f"denoise, {OURS}", start)
    for name in counted:
        true = other.values(name)
        task, labels = f"denoised {name}", run.data.labels
        score = partial(prediction_scores, run, task, true, labels, true.var(axis=0))
        if model is not None:
            yield from score(OURS, model.predict(seen.part(cells), list(seen.modalities), name))
        yield from score("as measured", seen.values(name))
        if "pca" in run.methods:
            yield from score(f"PCA of {name}", low_rank(seen.values(name), run.seed))
        if "knn" in run.methods:
            yield from score("mean of neighbours, PCA side by side", smoothed(seen, name, run.seed))


def halves(data: Prepared, names: list[str], seed: int) -> tuple[Prepared, Prepared]:
    """Return the set with half of the molecules, and with the other half, both prepared."""
    rng = np.random.default_rng(seed)
    one: dict[str, Any] = {}
    two: dict[str, Any] = {}
    for name, adata in data.modalities.items():
        one[name], two[name] = adata.copy(), adata.copy()
        if name in names:
            counts = sparse.csr_matrix(adata.layers[COUNTS])
            drawn = counts.copy()
            drawn.data = rng.binomial(np.rint(counts.data).astype(np.int64), 0.5).astype(np.float32)
            one[name].X, two[name].X = drawn, counts - drawn
    one, two = (prepared_again(part, data.kinds, names) for part in (one, two))
    return dataclasses.replace(data, modalities=one), dataclasses.replace(data, modalities=two)


def low_rank(values: np.ndarray, seed: int) -> np.ndarray:
    """Values rebuilt from their first 30 principal components."""
    scaler = StandardScaler()
    standardised = scaler.fit_transform(values)
    components = PCA(min(N_COMPONENTS, *values.shape), random_state=seed)
    rebuilt = components.inverse_transform(components.fit_transform(standardised))
    return np.asarray(scaler.inverse_transform(rebuilt))


def smoothed(data: Prepared, name: str, seed: int) -> np.ndarray:
    """Mean over the cell and its nearest neighbours in the components of all modalities."""
    parts = [principal_components(data.values(m), seed) for m in data.modalities]
    embedding = np.hstack(parts)
    near = NearestNeighbors(n_neighbors=min(_NEIGHBOURS, len(data))).fit(embedding)
    weights = near.kneighbors_graph(embedding)
    return np.asarray(weights @ data.values(name) / weights.sum(1))
