"""From a file to cells that every method sees alike: prepared values, labels, batches, places."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mudata
import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

import unitednet_mu as un
from unitednet_mu._compat import is_sparse, quiet_update
from unitednet_mu._data import to_dense
from unitednet_mu._kinds import USUAL_NAMES, Kind
from unitednet_mu._validate import derived_from, measured_modalities, obs_column

#: Labels that say that a cell has none.
NO_LABEL = ("", "nan", "none", "na", "unknown", "unassigned", "unlabelled", "unlabeled")
#: Modalities of which one is computed from the other, where the file does not say so (`pp.niche`
#: marks what it makes): predicting between them shows nothing.
DERIVED = (frozenset({"rna", "niche"}),)
LABELS, BATCH, COUNTS = "label", "batch", "counts"


@dataclass(frozen=True)
class Prepared:
    """Cells that have every modality and a label, in one order.

    Attributes
    ----------
    name
        Name of the set.
    modalities
        Prepared values of each modality, with the raw counts as layer ``"counts"`` if it had any.
    kinds
        What each modality was taken for.
    labels
        Label of each cell, as text.
    batches
        Batch of each cell, as text; None where there are fewer than two.
    coordinates
        Place of each cell in the tissue, cells x 2; None where it has none.
    """

    name: str
    modalities: dict[str, AnnData]
    kinds: dict[str, Kind]
    labels: np.ndarray
    batches: np.ndarray | None = None
    coordinates: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_groups(self) -> int:
        """Number of different labels."""
        return len(np.unique(self.labels))

    @property
    def directions(self) -> list[tuple[str, str]]:
        """Pairs of a modality to predict from and one to predict."""
        names = list(self.modalities)
        return [
            (source, target)
            for source in names
            for target in names
            if source != target and not self._is_derived(source, target)
        ]

    def _is_derived(self, one: str, other: str) -> bool:
        """Whether one of two modalities was computed from the other."""
        made = (
            one in derived_from(self.modalities, other),
            other in derived_from(self.modalities, one),
        )
        return any(made) or frozenset({one, other}) in DERIVED

    def values(self, name: str, cells: np.ndarray | None = None) -> np.ndarray:
        """Values of a modality as an array, of all or of some cells."""
        x = self.modalities[name].X
        return to_dense(x if cells is None else x[cells]).astype(np.float32, copy=False)

    def side_by_side(self, cells: np.ndarray) -> np.ndarray:
        """Values of all modalities of some cells, features side by side."""
        return np.hstack([self.values(name, cells) for name in self.modalities])

    def part(self, cells: np.ndarray, *columns: str) -> MuData:
        """MuData of some cells that holds nothing but their values, and the columns asked for.

        Parameters
        ----------
        cells
            Positions.
        columns
            ``LABELS``, ``BATCH`` or both: a method that is to work without labels gets none.
        """
        modalities = {
            name: AnnData(
                adata.X[cells],
                obs=pd.DataFrame(index=adata.obs_names[cells]),
                var=pd.DataFrame(index=adata.var_names),
                layers={COUNTS: adata.layers[COUNTS][cells]} if COUNTS in adata.layers else {},
            )
            for name, adata in self.modalities.items()
        }
        with _mudata_quietly():
            mdata = MuData(modalities)
        for column in columns:
            of_all = self.labels if column == LABELS else self.batches
            if of_all is None:
                raise ValueError(f"{self.name}: there are no batches.")
            mdata.obs[column] = pd.Categorical(of_all[cells])
        return mdata


def read(
    path: str | Path,
    *,
    labels_key: str = "cell_type",
    batch_key: str = "batch",
    max_cells: int | None = None,
    layers: Mapping[str, str] | None = None,
) -> tuple[Prepared, list[str]]:
    """Read a paired MuData and prepare it.

    All cells are prepared together: library-size normalisation and the logarithm look at one cell
    at a time, the centred log-ratio and TF-IDF scale each feature by all cells. Standardisation is
    left to the methods, which take its statistics from the cells they are trained on.

    Parameters
    ----------
    path
        File (``.h5mu``).
    labels_key, batch_key
        Columns of ``.obs``, or of the modalities' ``.obs``; batches may be missing.
    max_cells
        Draw this many cells, of every label its share.
    layers
        By modality a layer with values that are prepared already, to be taken as they are.

    Returns
    -------
    The prepared set, and what was decided, one line each.
    """
    with _mudata_quietly():
        raw = mudata.read_h5mu(path)
    names = measured_modalities(raw)
    labels = obs_column(raw, labels_key, "--labels-key").astype(object)
    text = labels.astype(str)
    labelled = (labels.notna() & ~text.str.lower().isin(NO_LABEL)).to_numpy()
    paired = np.logical_and.reduce([raw.obs_names.isin(raw[name].obs_names) for name in names])
    cells = np.flatnonzero(labelled & paired)
    if not len(cells):
        raise ValueError(f"{path}: expected cells with a label and all of {names}, found none.")
    notes = [
        f"{raw.n_obs} cells; left out: {int((~paired).sum())} without all of "
        f"{', '.join(names)}; {int((paired & ~labelled).sum())} without a label"
    ]
    if max_cells is not None and len(cells) > max_cells:
        cells = cells[_subsample(text.to_numpy()[cells], max_cells)]
        notes.append(f"{len(cells)} cells drawn, of every label its share")
    chosen = raw.obs_names[cells]
    modalities = {name: raw[name][chosen].copy() for name in names}
    for name, layer in (layers or {}).items():
        modalities[name] = _of_layer(modalities, name, layer)
    kinds = {name: _kind(name, adata) for name, adata in modalities.items()}
    notes += [
        f"{name}: {adata.n_vars} features, {_WORDS[kinds[name]]}"
        for name, adata in modalities.items()
    ]
    prepared = _prepare(modalities, kinds)
    batches = _batches(raw, batch_key, cells)
    coordinates = _coordinates(raw, cells)
    data = Prepared(Path(path).stem, prepared, kinds, text.to_numpy()[cells], batches, coordinates)
    notes.append(
        f"{len(data)} cells, {data.n_groups} labels, "
        f"{1 if batches is None else len(np.unique(batches))} batches"
        + ("" if coordinates is None else "; held-out cells are blocks of the tissue")
    )
    return data, notes


@contextmanager
def _mudata_quietly() -> Iterator[None]:
    """Let pass that a gene and a protein have the same name: they are told apart by modality."""
    with quiet_update(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="var_names are not unique", category=UserWarning)
        yield


_WORDS = {
    "rna": "RNA counts: library size, logarithm",
    "protein": "antibody counts: centred log-ratio",
    "atac": "peak counts: TF-IDF",
    "continuous": "taken as they are",
}


def _of_layer(modalities: Mapping[str, AnnData], name: str, layer: str) -> AnnData:
    """Return a modality of which a layer is all there is."""
    there = {one: list(adata.layers) for one, adata in modalities.items()}
    if layer not in there.get(name, []):
        raise ValueError(f"--layers {name}={layer}: expected a layer of a modality, of {there}.")
    adata = modalities[name]
    return AnnData(adata.layers[layer], obs=adata.obs, var=adata.var, uns=adata.uns)


def _kind(name: str, adata: AnnData) -> Kind:
    """What a modality is by its name; as it is where the name is unusual or there are no counts.

    Where counts stand in a layer ``"counts"`` beside other values, they become ``.X``.
    """
    kind = USUAL_NAMES.get(name.lower(), "continuous")
    if kind != "continuous" and not _are_counts(adata.X):
        if COUNTS not in adata.layers or not _are_counts(adata.layers[COUNTS]):
            return "continuous"
        adata.X = adata.layers[COUNTS].copy()
    return kind


def _are_counts(values: Any) -> bool:
    x = values.data if is_sparse(values) else np.asarray(values)
    return bool((x >= 0).all() and (x == np.rint(x)).all())


def _prepare(modalities: dict[str, AnnData], kinds: dict[str, Kind]) -> dict[str, AnnData]:
    with _mudata_quietly():
        mdata = MuData(modalities)
        un.pp.prepare(mdata, kinds=kinds)
    return dict(mdata.mod)


def prepared_again(
    modalities: dict[str, AnnData], kinds: dict[str, Kind], counted: list[str]
) -> dict[str, AnnData]:
    """Prepare modalities of which those `counted` hold new counts in ``.X``."""
    for name in counted:
        del modalities[name].layers[COUNTS]
    return _prepare(modalities, kinds)


def _subsample(labels: np.ndarray, n: int) -> np.ndarray:
    """Positions of `n` cells, in order; of every label its share, the same cells at every call."""
    rng = np.random.default_rng(0)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        cells = rng.permutation(np.flatnonzero(labels == label))
        place[cells] = (np.arange(len(cells)) + rng.random()) / len(cells)
    return np.sort(np.argsort(place, kind="stable")[:n])


def _batches(raw: MuData, batch_key: str, cells: np.ndarray) -> np.ndarray | None:
    try:
        batches = obs_column(raw, batch_key, "--batch-key")
    except ValueError:
        return None
    text = batches.astype(object).astype(str).to_numpy()[cells]
    return text if len(np.unique(text)) > 1 else None


def _coordinates(raw: MuData, cells: np.ndarray) -> np.ndarray | None:
    """Places from ``.obsm["spatial"]``, of the whole or of a modality, or from grid columns."""
    for thing in (raw, *raw.mod.values()):
        if "spatial" in thing.obsm and "spatial" not in raw.mod:
            places = pd.DataFrame(np.asarray(thing.obsm["spatial"])[:, :2], index=thing.obs_names)
            return places.reindex(raw.obs_names[cells]).to_numpy(np.float64)
        if {"array_row", "array_col"} <= set(thing.obs):
            grid = thing.obs[["array_row", "array_col"]].reindex(raw.obs_names[cells])
            return grid.to_numpy(np.float64)
    return None
