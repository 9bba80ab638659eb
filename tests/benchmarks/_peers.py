"""Peers: what else one would use for the same question, each on the same cells and values.

Features are standardised by the cells a peer is trained on. Sources of more than 5,000 features
enter predictors and classifiers by their first 100 principal components.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _prepare import BATCH, COUNTS, Prepared
from sklearn.compose import TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from unitednet_mu._compat import import_muon, quiet_update
from unitednet_mu._data import to_dense

N_COMPONENTS = 30
LOGISTIC = "logistic regression, balanced"
_FACTORS = 15  # MOFA+
_WIDE, _COMPONENTS_OF_WIDE = 5_000, 100
_PENALTIES = np.logspace(0, 5, 16)
_NEIGHBOURS = (5, 15, 30, 60)
#: Package to install for each peer that needs one.
EXTRA = {"mofa": ("mofapy2", "mofapy2"), "totalvi": ("scvi", "scvi-tools")}


# ------------------------------------------------------------------ embeddings


@dataclass(frozen=True)
class Embedding:
    """Coordinates of all cells, or a neighbour graph only."""

    method: str
    coordinates: np.ndarray | None = None
    graph: Any = None


def missing(peer: str) -> str | None:
    """What to install so that a peer can run; None where nothing is missing."""
    module, package = EXTRA.get(peer, ("numpy", "numpy"))
    return None if importlib.util.find_spec(module) else package


def principal_components(values: np.ndarray, seed: int) -> np.ndarray:
    """First 30 principal components of standardised features."""
    n = min(N_COMPONENTS, values.shape[1], len(values) - 1)
    return PCA(n, random_state=seed).fit_transform(StandardScaler().fit_transform(values))


def pca(data: Prepared, seed: int) -> Iterator[Embedding]:
    """Each modality alone."""
    for name in data.modalities:
        yield Embedding(f"PCA of {name}", principal_components(data.values(name), seed))


def pca_concat(data: Prepared, seed: int) -> Iterator[Embedding]:
    """Components of all modalities side by side."""
    parts = [principal_components(data.values(name), seed) for name in data.modalities]
    yield Embedding("PCA side by side", np.hstack(parts))


def wnn(data: Prepared, seed: int) -> Iterator[Embedding]:
    """Weighted nearest neighbours of muon, on the components of each modality."""
    import scanpy as sc

    mdata = data.part(np.arange(len(data)))
    few = {"n_multineighbors": len(data) - 1} if len(data) <= 200 else {}
    with quiet_update(), warnings.catch_warnings():
        for category in (FutureWarning, RuntimeWarning):
            warnings.filterwarnings("ignore", category=category, module=r"muon|mudata|scanpy")
        for name, adata in mdata.mod.items():
            adata.obsm["X_pca"] = principal_components(data.values(name), seed)
            sc.pp.neighbors(adata, use_rep="X_pca", random_state=seed)
        _muon().pp.neighbors(mdata, random_state=seed, **few)
    yield Embedding("WNN (muon)", graph=mdata.obsp["connectivities"])


def mofa(data: Prepared, seed: int) -> Iterator[Embedding]:
    """MOFA+ with 15 factors on standardised features."""
    mdata = data.part(np.arange(len(data)))
    for name, adata in mdata.mod.items():
        adata.X = StandardScaler().fit_transform(data.values(name))
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        quiet_update(),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", module=r"muon|mudata|mofapy2")
        _muon().tl.mofa(
            mdata,
            n_factors=_FACTORS,
            use_var=None,
            seed=seed,
            save_data=False,
            outfile=str(Path(folder) / "mofa.hdf5"),
        )
    yield Embedding("MOFA+", np.asarray(mdata.obsm["X_mofa"]))


def totalvi(data: Prepared, seed: int) -> Iterator[Embedding]:
    """TotalVI of scvi-tools with its defaults, on the counts of RNA and proteins, and the batch."""
    names = {kind: name for name, kind in data.kinds.items()}
    if not {"rna", "protein"} <= set(names):
        return
    import scvi

    scvi.settings.seed = seed
    rna, protein = names["rna"], names["protein"]
    mdata = data.part(np.arange(len(data)))
    places = {"rna_layer": rna, "protein_layer": protein}
    if data.batches is not None:
        mdata[rna].obs[BATCH] = pd.Categorical(data.batches)
        places["batch_key"] = rna
    for name in (rna, protein):
        counts = mdata[name].layers[COUNTS]
        mdata[name].X = to_dense(counts) if name == protein else counts
    with quiet_update(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"scvi|lightning|mudata|anndata|torch")
        scvi.model.TOTALVI.setup_mudata(
            mdata,
            rna_layer=None,
            protein_layer=None,
            batch_key=BATCH if "batch_key" in places else None,
            modalities=places,
        )
        model = scvi.model.TOTALVI(mdata)
        model.train(enable_progress_bar=False)
        yield Embedding("totalVI", np.asarray(model.get_latent_representation()))


def _muon() -> Any:
    """Import muon through one of its parts, without the warnings of the import."""
    import_muon("prot")
    return importlib.import_module("muon")


EMBEDDINGS: Mapping[str, Callable[[Prepared, int], Iterator[Embedding]]] = {
    "pca": pca,
    "pca_concat": pca_concat,
    "wnn": wnn,
    "mofa": mofa,
    "totalvi": totalvi,
}


# ------------------------------------------------------------------ predictors


def ridge(x: np.ndarray, y: np.ndarray, labels: np.ndarray, seed: int) -> Any:
    """Ridge regression; the penalty of each feature by leave-one-out."""
    regression = RidgeCV(_PENALTIES, alpha_per_target=True)
    return _on_standardised(make_pipeline(*_inputs(x, seed), regression)).fit(x, y)


def knn(x: np.ndarray, y: np.ndarray, labels: np.ndarray, seed: int) -> Any:
    """Nearest neighbours on principal components; their number by cross-validation."""
    n = min(N_COMPONENTS, x.shape[1], len(x) // 2)
    model = Pipeline(
        [
            ("scale", StandardScaler()),
            ("components", PCA(n, random_state=seed)),
            ("neighbours", KNeighborsRegressor()),
        ]
    )
    numbers = [k for k in _NEIGHBOURS if k < len(x) // 2]
    search = GridSearchCV(model, {"neighbours__n_neighbors": numbers}, cv=3)
    return _on_standardised(search).fit(x, y)


@dataclass(frozen=True)
class GroupMeans:
    """Mean target of the group that logistic regression finds from the source."""

    classifier: Pipeline
    means: pd.DataFrame

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Means of the groups found."""
        return self.means.loc[self.classifier.predict(x)].to_numpy()


def group_means(x: np.ndarray, y: np.ndarray, labels: np.ndarray, seed: int) -> GroupMeans:
    """Means of the true groups: the only predictor that is given labels."""
    return GroupMeans(logistic(x, labels, seed), pd.DataFrame(y).groupby(labels).mean())


PREDICTORS: Mapping[str, tuple[str, Callable[..., Any]]] = {
    "ridge": ("ridge regression", ridge),
    "knn": ("kNN on principal components", knn),
    "means": ("mean of the predicted group", group_means),
}


def _on_standardised(model: Any) -> Any:
    return TransformedTargetRegressor(model, transformer=StandardScaler(), check_inverse=False)


def _inputs(x: np.ndarray, seed: int) -> list[Any]:
    wide = x.shape[1] > _WIDE
    n = min(_COMPONENTS_OF_WIDE, len(x) - 1)
    return [StandardScaler(), *([PCA(n, random_state=seed)] if wide else [])]


# ------------------------------------------------------------------ labels


def logistic(x: np.ndarray, labels: np.ndarray, seed: int) -> Pipeline:
    """Balanced logistic regression on standardised features."""
    model = LogisticRegression(class_weight="balanced", max_iter=5000)
    return make_pipeline(*_inputs(x, seed), model).fit(x, labels)
