"""One model's attributions of a sample of cells: the engine's answers, as results are stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from tqdm.auto import tqdm

from .. import _results
from .._by_shap import ShapGroupChain, shap_cross_relevance
from .._data import Dataset
from .._explain import ExplainSample, GroupChain, GroupRelevance, Progress, group_relevance
from .._explain_cells import CellRelevance, cell_cross_relevance, cell_group_relevance
from .._explain_cross import CrossRelevance, cross_relevance
from .._model import Model
from .._process import threads_for
from .._sample import Sample
from .._validate import is_one, unknown_name
from ._explain_method import Method

#: Most that attributions of single cells may take.
_PER_CELL_BYTES = 2**30


@dataclass(frozen=True)
class Job:
    """What is explained, with what, and whether a progress bar is shown.

    Parameters
    ----------
    model, data
        The model, and the cells aligned to it.
    groups
        Position of each cell's group among the model's, -1 where it has none.
    sample
        Cells to explain, and the background.
    progress, title
        Whether to show a progress bar, and its name.
    method
        How relevance is computed.
    """

    model: Model
    data: Dataset
    groups: np.ndarray
    sample: Sample
    progress: bool
    title: str = "explain"
    method: Method = field(default_factory=Method)

    def outputs_kept(
        self, per_cell: bool | Sequence[str], explained: Sequence[int], target: str | None
    ) -> list[int]:
        """Positions of the outputs whose attributions are kept of every cell."""
        names: Sequence[str] = self.model.info.groups
        if target is not None:
            names = self._features(target)
        if isinstance(per_cell, bool | np.bool_):
            kept = list(range(len(names))) if per_cell else []
        else:
            asked = [str(name) for name in ([per_cell] if is_one(per_cell) else per_cell)]
            if per_cell is None or not asked:
                raise ValueError(
                    f"per_cell: expected names of outputs, True or False, found {per_cell!r}."
                )
            what = "per_cell: group" if target is None else f"per_cell: feature of {target!r}"
            position = {name: k for k, name in enumerate(names)}
            for name in asked:
                if name not in position:
                    raise ValueError(unknown_name(what, name, names))
            kept = [position[name] for name in dict.fromkeys(asked)]
        modalities = [self.model.info.modalities[m] for m in explained]
        n_cells = self.data.observed[self.sample.cells][:, list(explained)].sum(0)
        n_values = len(kept) * sum(
            int(n) * len(spec.features) for n, spec in zip(n_cells, modalities, strict=True)
        )
        if 4 * n_values > _PER_CELL_BYTES:
            raise ValueError(
                f"per_cell: expected attributions of at most {_PER_CELL_BYTES / 2**30:.3g} GiB, "
                f"found {len(self.sample.cells)} cells x "
                f"{sum(len(spec.features) for spec in modalities)} features x {len(kept)} outputs, "
                f"{4 * n_values / 2**30:.3g} GiB. Lower n_cells, or name fewer outputs."
            )
        return kept

    def explain_groups(
        self, output: Literal["logits", "probabilities"], kept: list[int]
    ) -> tuple[GroupRelevance, dict[str, Any]]:
        """Relevance for groups, and the entry for attributions of single cells."""
        network, cells = self.model.network, self.values(self.sample.cells)
        background = self.background()
        chain_type = ShapGroupChain if self.method.name == "shap" else GroupChain
        with self.progress_bar(self.title) as advance:
            whole = group_relevance(
                network, cells, background, output=output, progress=advance, chain_type=chain_type
            )
        if not kept:
            return whole, {}
        with self.progress_bar("explain every cell") as advance:
            cell = cell_group_relevance(
                network, cells, background, kept, output=output, progress=advance
            )
        groups = [self.model.info.groups[k] for k in kept]
        return whole, self._entry(groups, cells, cell)

    def explain_pair(
        self,
        source: str,
        target: str,
        batch: np.ndarray | None,
        top_k: int | None,
        kept: list[int],
    ) -> tuple[CrossRelevance, dict[str, Any]]:
        """Relevance of one modality for another, and the entry for that of single cells."""
        network, cells = self.model.network, self.values(self.sample.cells, batch)
        background = self.background(batch)
        explain = shap_cross_relevance if self.method.name == "shap" else cross_relevance
        pair = (
            self.model.modality_index(source, "source"),
            self.model.modality_index(target, "target"),
        )
        with self.progress_bar(self.title) as advance:
            whole = explain(network, *pair, cells, background, top_k=top_k, progress=advance)
        if not kept:
            return whole, {}
        with self.progress_bar("explain every cell") as advance:
            cell = cell_cross_relevance(network, *pair, cells, background, kept, progress=advance)
        features = self._features(target)
        return whole, self._entry([features[k] for k in kept], cells, cell)

    def _entry(
        self, outputs: Sequence[str], cells: ExplainSample, relevance: CellRelevance
    ) -> dict[str, Any]:
        names = np.asarray(self.data.obs_names[self.sample.cells], dtype=str)
        return _results.per_cell_entry(self.model, outputs, names, cells, relevance)

    def _features(self, modality: str) -> Sequence[str]:
        return self.model.info.modalities[self.model.modality_index(modality, "target")].features

    def values(self, cells: np.ndarray, batch: np.ndarray | None = None) -> ExplainSample:
        """Values of `cells` as the engine takes them: every cell is a row of every modality."""
        observed = self.data.observed[cells]
        x: list[Any] = []
        for m, source in enumerate(self.data.sources):
            has = observed[:, m]
            # rows of cells that lack the modality repeat another's: they are never read
            rows = np.where(has, np.cumsum(has) - 1, 0)
            x.append(source.sparse_or_dense(cells[has])[rows] if has.any() else None)
        batches = None if batch is None else np.repeat(batch[None], len(cells), 0)
        n_groups = len(self.model.info.groups)
        return ExplainSample(x, observed, self.groups[cells], batches, n_groups)

    def background(self, batch: np.ndarray | None = None) -> ExplainSample:
        """Values of the background, and how cells are compared with it."""
        values = self.values(self.sample.background, batch)
        return replace(values, path=self.method.path, compared=self.sample.compared)

    @property
    def n_points(self) -> int:
        """Points that a cell is compared with, at most."""
        masks = np.unique(self.data.observed[self.sample.cells], axis=0)
        n_rows, path = max(self._n_compared(mask) for mask in masks), self.method.path
        return n_rows if path is None else len(path.rows(np.arange(n_rows)))

    def _n_compared(self, mask: np.ndarray) -> int:
        """How many background cells a cell with these modalities is compared with."""
        rows = self.sample.compared.get(mask.tobytes())
        return len(self.sample.background) if rows is None else len(rows)

    @contextmanager
    def progress_bar(self, what: str, n_models: int = 1) -> Iterator[Progress]:
        """Show how many cells are done, of all cells of the sample for each model."""
        total = len(self.sample.cells) * n_models
        n_features = sum(len(spec.features) for spec in self.model.info.modalities)
        with (
            threads_for(total * n_features),
            tqdm(total=total, desc=what, unit="cell", disable=not self.progress) as bar,
        ):
            yield lambda done: bar.update(done - bar.n)
