"""Cross-modal feature-to-feature relevance as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy as np
import pandas as pd
from mudata import MuData
from numpy.typing import NDArray
from scipy import sparse

from .._keys import DEFAULT_STEM, Keys
from ._coordinates import add_coordinates
from ._explanation import build_explanation, check_no_n_top
from ._ranking import SPREAD, ranked
from ._slots import check_n_top, choose, command, stored, texts

if TYPE_CHECKING:
    from shap import Explanation


@dataclass(frozen=True)
class CrossRelevance:
    """Stored relevance, one matrix a group: source features (rows) x target features.

    `spread` holds, by name of the column, how far several models agree; empty for one model.
    """

    groups: list[str]
    source_features: list[str]
    target_features: list[str]
    signed: list[Any]
    absolute: list[Any]
    spread: dict[str, list[Any]]

    def pairs(self, group: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return row, column, signed and absolute value of every stored pair of a group."""
        position = self.groups.index(group)
        signed, absolute = self.signed[position], self.absolute[position]
        if not sparse.issparse(absolute):
            rows, columns = (index.ravel() for index in np.indices(np.shape(absolute)))
            return rows, columns, np.asarray(signed).ravel(), np.asarray(absolute).ravel()
        stored_pairs = sparse.coo_array(cast("Any", absolute))
        rows, columns = stored_pairs.row, stored_pairs.col
        return rows, columns, _at(signed, rows, columns), stored_pairs.data

    def spread_of(
        self, group: str, rows: NDArray[Any], columns: NDArray[Any]
    ) -> dict[str, NDArray[Any]]:
        """Return how far models agree on pairs of a group, by name of the column."""
        position = self.groups.index(group)
        return {
            name: _at(matrices[position], rows, columns) for name, matrices in self.spread.items()
        }


def _at(matrix: Any, rows: NDArray[Any], columns: NDArray[Any]) -> NDArray[Any]:
    """Return entries of a matrix, zero where a sparse one stores none."""
    if not rows.size:  # scipy answers an empty request with a sparse array
        return np.empty(0, np.float32)
    held: Any = np.asarray(matrix)
    if sparse.issparse(matrix):
        held = sparse.csr_array(cast("Any", matrix))
    return np.asarray(held[rows, columns])


def source_names(source: str | Sequence[str]) -> list[str]:
    """Return the modalities of `source` as a list."""
    return [source] if isinstance(source, str) else list(source)


def read_cross_relevance(
    mdata: MuData, *, source: str | Sequence[str], target: str, key_added: str = DEFAULT_STEM
) -> CrossRelevance:
    """Return the stored cross-modal relevance from `source` to `target`.

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        None is stored, or not for this pair; the message lists the pairs that are.
    """
    return _parse(stored_pair(mdata, source, target, key_added))


def stored_pair(
    mdata: MuData, source: str | Sequence[str], target: str, key_added: str
) -> Mapping[str, Any]:
    """Return everything stored of a pair of modalities; errors as of `read_cross_relevance`."""
    asked = source if isinstance(source, str) else source_names(source)
    run = _command(source, target, key_added)
    found = stored(mdata, "cross_relevance", key_added=key_added, run=run)
    name = _find(found, source_names(source), target)
    if name is None:
        raise ValueError(
            f"no cross_relevance of {target!r} from {asked!r} stored under {key_added!r} "
            f"(there: {', '.join(found)}); run {run} first."
        )
    pair: Mapping[str, Any] = found[name]
    return pair


def _command(source: str | Sequence[str], target: str, key_added: str, *more: str) -> str:
    asked = source if isinstance(source, str) else source_names(source)
    arguments = ("mdata", f"source={asked!r}", f"target={target!r}", *more)
    return command("explain", *arguments, key_added=key_added)


def _find(found: Mapping[str, Any], source: Sequence[str], target: str) -> str | None:
    name = Keys().predicted(source, target)
    if name in found:
        return name
    wanted = {*source}
    for other, entry in found.items():  # the same modalities, named in another order
        if str(entry["target"]) == target and {*str(entry["source"]).split("+")} == wanted:
            return other
    return None


def _parse(entry: Mapping[str, Any]) -> CrossRelevance:
    groups = texts(entry["groups"])
    columns = {"signed": "signed", "absolute": "absolute", **SPREAD}
    found = {
        column: [entry[name][str(position)] for position in range(len(groups))]
        for column, name in columns.items()
        if name in entry
    }
    features = texts(entry["source_features"]), texts(entry["target_features"])
    return CrossRelevance(groups, *features, found.pop("signed"), found.pop("absolute"), found)


@overload
def cross_relevance(
    mdata: MuData,
    *,
    source: str | Sequence[str],
    target: str,
    target_feature: str | Sequence[str] | None = ...,
    group: str | Sequence[str] | None = ...,
    n_top: int | None = ...,
    as_explanation: Literal[False] = ...,
    key_added: str = ...,
) -> pd.DataFrame: ...


@overload
def cross_relevance(
    mdata: MuData,
    *,
    source: str | Sequence[str],
    target: str,
    target_feature: str | Sequence[str] | None = ...,
    group: str | Sequence[str] | None = ...,
    n_top: int | None = ...,
    as_explanation: Literal[True],
    key_added: str = ...,
) -> Explanation: ...


def cross_relevance(
    mdata: MuData,
    *,
    source: str | Sequence[str],
    target: str,
    target_feature: str | Sequence[str] | None = None,
    group: str | Sequence[str] | None = None,
    n_top: int | None = None,
    as_explanation: bool = False,
    key_added: str = DEFAULT_STEM,
) -> pd.DataFrame | Explanation:
    """Cross-modal relevance within groups as a tidy table, or of every cell for shap's plots.

    Parameters
    ----------
    mdata
        A MuData explained by `tl.explain` with `source` and `target`.
    source
        The modality, or modalities, that the prediction was made from.
    target
        The modality that was predicted.
    target_feature
        The feature or features of the target to return; all by default.
    group
        The group or groups to return; all by default.
    n_top
        Number of pairs to keep in each group; all stored ones by default.
    as_explanation
        Return the attributions of single cells, which ``tl.explain`` keeps with ``per_cell``, as
        shap's own object: ``shap.plots.beeswarm`` and ``shap.plots.bar`` take that of one
        `target_feature`.
    key_added
        The stem that the results were stored under.

    Returns
    -------
    pandas.DataFrame
        One row a stored pair and group, sorted by group (in the stored order) and rank. Columns:
        ``feature`` (of the source), ``target_feature``, ``group``, ``value`` (signed mean over the
        group's cells, in the target's units), ``absolute`` (mean of absolute values), ``sign`` (-1,
        0 or 1), ``rank`` (within the group, among the features returned, by ``absolute``, 1 is the
        strongest). Where only the strongest pairs were kept, the others have no row. Where several
        models were explained, ``value`` and ``absolute`` are means over them, and two columns
        follow: ``sd`` (standard deviation of the signed value over models) and ``stability`` (share
        of models in which the pair is among the strongest of the group; ``n_top_stable`` of
        `tl.explain` says how many these are). ``n_permutations`` gives ``p``, of ``absolute``, from
        refits on shuffled features, and ``q``, the false-discovery rate over all pairs of the
        group, returned or not. Of peaks and genes (either way round), where `mdata`
        knows where they lie, there is ``distance``: bases from the peak to the gene's start, 0
        where it is covered, negative upstream, NaN on another chromosome or where unknown. Peaks
        are named ``"chr1:100-200"``; genes have a column ``interval``, or chromosome, start and
        end, in ``.var``, and ``strand`` (without it the interval's start counts, as in muon; Cell
        Ranger ARC's interval is that of a gene's starts). Where
        ``muon.atac.tl.add_peak_annotation`` has run, ``peak_gene`` names the genes that the peak is
        annotated to, joined by ``";"``.
    shap.Explanation
        With `as_explanation`. Rows are the explained cells of `group`, columns the features of the
        source; ``base_values`` and the ``values`` of a cell add up to its prediction of
        `target_feature`, in the target's units (binary targets: the logit; with batches, decoded as
        `tl.explain` says, not the mean of the predictions as each batch). ``data`` holds the
        values of the source's features in the user's units, ``instance_names`` the cells. Without a
        single `target_feature` there is a third axis, ``explanation[:, :, "CD3"]``.

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        This pair of modalities was not explained (with `as_explanation`: not for single cells, or
        not this feature), a group or feature is unknown, or `n_top` is not positive or given with
        `as_explanation`.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False)
    >>> un.tl.explain(
    ...     mdata,
    ...     source="rna",
    ...     target="adt",
    ...     groupby="cell_type",
    ...     per_cell=["adt_0"],
    ...     progress=False,
    ... )
    >>> table = un.get.cross_relevance(mdata, source="rna", target="adt", group="group0")
    >>> table.columns.tolist()
    ['feature', 'target_feature', 'group', 'value', 'absolute', 'sign', 'rank']

    Every explained cell, for shap's own plots:

    >>> import shap
    >>> explanation = un.get.cross_relevance(
    ...     mdata, source="rna", target="adt", target_feature="adt_0", as_explanation=True
    ... )
    >>> explanation.shape  # cells x features
    (60, 40)
    >>> ax = shap.plots.beeswarm(explanation, show=False)
    """
    check_n_top(n_top)
    entry = stored_pair(mdata, source, target, key_added)
    found = _parse(entry)
    groups = choose(found.groups, group, "group")
    wanted = choose(found.target_features, target_feature, f"feature of {target!r}")
    if as_explanation:
        check_no_n_top(n_top)
        return build_explanation(
            entry,
            run=_command(source, target, key_added, "per_cell=True"),
            features={str(entry["source"]): found.source_features},
            output=target_feature,
            what=f"feature of {target!r}",
            in_groups=groups,
        )
    features = np.array(found.source_features, dtype=object)
    targets = np.array(found.target_features, dtype=object)
    keep = np.isin(targets, wanted)
    tables = []
    for name in groups:
        pairs = found.pairs(name)
        rows, columns, signed, absolute = (part[keep[pairs[1]]] for part in pairs)
        names = {"feature": features[rows], "target_feature": targets[columns]}
        spread = found.spread_of(name, rows, columns)
        tables.append(ranked(names, name, signed, absolute, n_top, spread))
    table = pd.concat(tables, ignore_index=True)
    return add_coordinates(table, mdata, str(entry["source"]), target)
