"""Which features make a group, and which features of one modality drive those of another in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from mudata import MuData
from tqdm.auto import tqdm

from .. import _results
from .._data import Dataset
from .._explain import ExplainSample, GroupRelevance, Progress, group_relevance
from .._explain_cells import CellRelevance, cell_cross_relevance, cell_group_relevance
from .._explain_cross import CrossRelevance, cross_relevance
from .._keys import DEFAULT_STEM, check_key_added
from .._model import Model
from .._sample import Sample, choose_sample
from .._train import threads_for
from .._validate import as_names, check_mudata, check_random_state, obs_column, unknown_name
from ._common import resolve_model

#: Pairs of features beyond which only the strongest are kept by default.
_DENSE_PAIRS = 250_000
#: Most that attributions of single cells may take.
_PER_CELL_BYTES = 2**30


def explain(
    mdata: MuData,
    *,
    source: str | None = None,
    target: str | None = None,
    groupby: str | None = None,
    n_cells: int = 50,
    n_background: int = 50,
    cells: Sequence[str] | None = None,
    background: Sequence[str] | None = None,
    output: Literal["logits", "probabilities"] = "logits",
    per_cell: bool | Sequence[str] = False,
    top_k: int | Literal["auto"] | None = "auto",
    transform_batch: str | None = None,
    model: Model | None = None,
    random_state: int = 0,
    device: str = "auto",
    progress: bool = True,
    key_added: str = DEFAULT_STEM,
    copy: bool = False,
) -> MuData | None:
    """Attribute groups to features, or one modality's features to another's, group by group.

    DeepLIFT's rescale rule against a background, averaged over it: what ``shap.DeepExplainer``
    computes, an approximation of Shapley values that adds up exactly to the output. Without
    `source` and `target`, group identification is explained with all modalities as joint input;
    with both, each feature of the target is explained by all features of the source.

    Parameters
    ----------
    mdata
        Cells; features are matched to the model's by name.
    source, target
        Explain the prediction of `target` from `source`; both or neither.
    groupby
        Column with the group of each cell (names as in the model); by default the group that the
        head identifies. Relevance of a group is averaged over that group's own cells only.
    n_cells
        Largest number of cells explained per group, drawn at random.
    n_background
        Number of background cells, drawn evenly over groups from those that have all explained
        modalities (where there are none, for each largest set of modalities that a cell has).
    cells, background
        Names of the cells to explain, and of the background, instead of drawing them.
    output
        Of group identification: ``"logits"`` (centred over groups) or ``"probabilities"``.
    per_cell
        Keep the attributions of every single cell too, for `get.relevance` and
        `get.cross_relevance` to hand to :mod:`shap` (``as_explanation=True``): to the outputs named
        (groups; target features with `source` and `target`), or to all of them with True. Takes
        cells x features x outputs, at most 1 GiB.
    top_k
        Of cross-modal relevance: number of strongest pairs kept per group; ``"auto"`` keeps all up
        to 250,000 pairs, and that many beyond; ``None`` keeps all.
    transform_batch
        Of cross-modal relevance: as which batch to decode; by default the even mixture of the
        batches that measured the target.
    model
        Model to use instead of the one stored in `mdata`.
    random_state
        Seed of the sample and background.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    progress
        Whether to show a progress bar.
    key_added
        Stem of the names in `mdata`.
    copy
        Return a changed copy, and leave `mdata` as it is.

    Returns
    -------
    None, or the changed copy with ``copy=True``. Without `source` and `target` written:

    ``.uns["unitednet"]["relevance"]`` : dict
        Group and feature names, and per modality ``signed`` and ``absolute`` float32 matrices,
        features x groups: the mean over the group's cells of the attribution to that group's
        output, and of its absolute value. NaN where no cell of the group has the modality.
        ``params`` holds the sample, its groups, the background and the additivity gap. With
        `per_cell` also ``per_cell``: the names of the ``outputs``, ``base_values`` (float32, cells
        of the sample x outputs) and per modality the ``cells`` that have it, the attributions
        ``values`` (float32, these cells x features x outputs), whichever group a cell is of, and
        the features' ``data``.
    ``mdata[mod].varm["unitednet_relevance"]``, ``["unitednet_relevance_abs"]`` : float32
        The same, features x groups.

    With them:

    ``.uns["unitednet"]["cross_relevance"]["<target>_from_<source>"]`` : dict
        Names, and per group (by its position) sparse float32 matrices, source x target features,
        ``signed`` and ``absolute``: change of the target in its units (binary targets: in the
        logit) that a feature's departure from the background accounts for. Empty for a group
        without cells to explain. With `per_cell` also ``per_cell``, as above.

    Either way:

    ``.uns["unitednet"]["version"]`` : str
        Version of this package; marks the stem as its own.

    Raises
    ------
    TypeError
        `mdata` is not a MuData, or `model` not a model.
    ValueError
        Only one of `source` and `target`, an argument of the one explanation given to the other,
        unknown names, no cell or background with the modalities, or `per_cell` past its limit.
    RuntimeError
        Attributions do not add up to the output.

    Warns
    -----
    UserWarning
        A modality looks like raw counts, and those that the model was trained on did not.

    Notes
    -----
    Shrikumar et al. 2017 (rescale rule), Lundberg & Lee 2017 (averaging over a background).

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False)
    >>> un.tl.explain(mdata, progress=False)
    >>> un.get.relevance(mdata, n_top=3).shape[0]
    6
    """
    check_mudata(mdata)
    keys = check_key_added(mdata, key_added)
    seed = check_random_state(random_state)
    _check_choice(source, target, output, top_k, transform_batch)
    found = resolve_model(model, mdata, key_added, device)
    explained = _explained(found, source, target)
    data = found.open(mdata)
    groups = _groups(mdata, data, found, groupby)
    sample = choose_sample(
        data,
        groups,
        explained,
        n_cells=n_cells,
        n_background=n_background,
        cells=cells,
        background=background,
        seed=seed,
    )
    job = _Job(found, data, groups, sample, progress)
    kept = job.outputs_kept(per_cell, explained, target)
    params = {
        "cells": np.asarray(data.obs_names[sample.cells], dtype=str),
        "cell_groups": np.asarray(found.info.groups, dtype=str)[groups[sample.cells]],
        "background": np.asarray(data.obs_names[sample.background], dtype=str),
        "groupby": groupby or "",
        "random_state": seed,
    }
    if source is None or target is None:
        whole, cell = job.explain_groups(output, kept)
        params |= {"output": output, "gap": float(whole.gap), "n_cells": whole.n_cells}
        result = _results.target_of(mdata, copy)
        _results.write_relevance(result, keys, found, whole.signed, whole.absolute, params, cell)
    else:
        n_pairs = _pairs_kept(found, source, target, top_k)
        batch = _batch_mixture(found, target, transform_batch)
        pair, cell = job.explain_pair(source, target, batch, n_pairs, kept)
        params |= {"top_k": n_pairs or 0, "gap": float(pair.gap), "n_cells": pair.n_cells}
        result = _results.target_of(mdata, copy)
        _results.write_cross_relevance(
            result, keys, found, source, target, pair.signed, pair.absolute or [], params, cell
        )
    return result if copy else None


def _check_choice(source: Any, target: Any, output: Any, top_k: Any, transform_batch: Any) -> None:
    if (source is None) != (target is None):
        raise ValueError(
            f"expected both source and target, or neither, found {source!r} and {target!r}."
        )
    if output not in ("logits", "probabilities"):
        raise ValueError(unknown_name("output", output, ("logits", "probabilities")))
    whole = isinstance(top_k, (int, np.integer)) and not isinstance(top_k, bool)
    if not (top_k is None or top_k == "auto" or (whole and top_k >= 1)):
        raise ValueError(f"top_k: expected 'auto', None or an integer >= 1, found {top_k!r}.")
    if source is not None and output != "logits":
        raise ValueError(
            f"output is for group relevance, and {target!r} is explained by {source!r} here; leave "
            "out source and target, or output."
        )
    for name, given in (
        ("top_k", top_k != "auto"),
        ("transform_batch", transform_batch is not None),
    ):
        if source is None and given:
            raise ValueError(
                f"{name} is for cross-modal relevance, and groups are explained here; name source "
                "and target, or leave it out."
            )


def _explained(model: Model, source: str | None, target: str | None) -> list[int]:
    """Positions of the modalities whose features are explained."""
    if source is None or target is None:
        return list(range(len(model.modality_names)))
    model.modality_index(target, "target")
    return [model.modality_index(source, "source")]


def _groups(mdata: MuData, data: Dataset, model: Model, groupby: str | None) -> np.ndarray:
    """Group of each cell as a position among the model's groups, -1 where it has none."""
    if groupby is None:
        logits = model.encode(data).logits
        seen = ~np.isnan(logits).any(1)
        return np.where(seen, np.nan_to_num(logits).argmax(1), -1).astype(np.int64)
    codes, names = as_names(obs_column(mdata, groupby, "groupby"))
    known = {name: index for index, name in enumerate(model.info.groups)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(unknown_name(f"groupby={groupby!r}: group", unknown[0], known))
    positions = np.array([*(known[name] for name in names), -1], dtype=np.int64)
    return np.asarray(positions[codes])


def _pairs_kept(
    model: Model, source: str, target: str, top_k: int | Literal["auto"] | None
) -> int | None:
    if top_k != "auto":
        return top_k
    specs = {spec.name: spec for spec in model.info.modalities}
    n_pairs = len(specs[source].features) * len(specs[target].features)
    return None if n_pairs <= _DENSE_PAIRS else _DENSE_PAIRS


def _batch_mixture(model: Model, target: str, transform_batch: str | None) -> np.ndarray | None:
    """As which batch all cells are decoded; None where decoders are not conditioned on it."""
    vectors = model.batch_vectors(target, transform_batch)
    return np.asarray(vectors.mean(0).cpu()) if model.network.n_batches else None


@dataclass(frozen=True)
class _Job:
    """What is explained, with what, and whether a progress bar is shown."""

    model: Model
    data: Dataset
    groups: np.ndarray
    sample: Sample
    progress: bool

    def outputs_kept(
        self, per_cell: bool | Sequence[str], explained: Sequence[int], target: str | None
    ) -> list[int]:
        """Positions of the outputs whose attributions are kept of every cell."""
        names: Sequence[str] = self.model.info.groups
        if target is not None:
            names = self._features(target)
        if isinstance(per_cell, bool):
            kept = list(range(len(names))) if per_cell else []
        else:
            asked = [per_cell] if isinstance(per_cell, str) else list(per_cell)
            if not asked:
                raise ValueError(
                    "per_cell: expected names of outputs, True or False, found an empty list."
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
        network, cells = self.model.network, self._values(self.sample.cells)
        background = self._values(self.sample.background)
        with self._progress_bar() as advance:
            whole = group_relevance(network, cells, background, output=output, progress=advance)
        if not kept:
            return whole, {}
        with self._progress_bar("explain every cell") as advance:
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
        network, cells = self.model.network, self._values(self.sample.cells, batch)
        background = self._values(self.sample.background, batch)
        pair = (
            self.model.modality_index(source, "source"),
            self.model.modality_index(target, "target"),
        )
        with self._progress_bar() as advance:
            whole = cross_relevance(
                network, *pair, cells, background, top_k=top_k, progress=advance
            )
        if not kept:
            return whole, {}
        with self._progress_bar("explain every cell") as advance:
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

    def _values(self, cells: np.ndarray, batch: np.ndarray | None = None) -> ExplainSample:
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

    @contextmanager
    def _progress_bar(self, what: str = "explain") -> Iterator[Progress]:
        total = len(self.sample.cells)
        n_features = sum(len(spec.features) for spec in self.model.info.modalities)
        with (
            threads_for(total * n_features),
            tqdm(total=total, desc=what, unit="cell", disable=not self.progress) as bar,
        ):
            yield lambda done: bar.update(done - bar.n)
