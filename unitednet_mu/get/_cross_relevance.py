"""Cross-modal feature-to-feature relevance as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
from mudata import MuData
from numpy.typing import NDArray
from scipy import sparse

from .._keys import DEFAULT_STEM, Keys
from ._ranking import ranked
from ._slots import check_n_top, choose, command, stored, texts


@dataclass(frozen=True)
class CrossRelevance:
    """Stored relevance, one matrix a group: source features (rows) x target features."""

    groups: list[str]
    source_features: list[str]
    target_features: list[str]
    signed: list[Any]
    absolute: list[Any]

    def pairs(self, group: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return row, column, signed and absolute value of every stored pair of a group."""
        position = self.groups.index(group)
        signed, absolute = self.signed[position], self.absolute[position]
        if not sparse.issparse(absolute):
            rows, columns = (index.ravel() for index in np.indices(np.shape(absolute)))
            return rows, columns, np.asarray(signed).ravel(), np.asarray(absolute).ravel()
        stored_pairs = sparse.coo_array(cast("Any", absolute))
        rows, columns = stored_pairs.row, stored_pairs.col
        if not rows.size:  # scipy answers an empty request with a sparse array
            return rows, columns, stored_pairs.data, stored_pairs.data
        value = np.asarray(sparse.csr_array(signed)[rows, columns])
        return rows, columns, value, stored_pairs.data


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
    asked = source if isinstance(source, str) else source_names(source)
    arguments = ("mdata", f"source={asked!r}", f"target={target!r}")
    run = command("explain", *arguments, key_added=key_added)
    found = stored(mdata, "cross_relevance", key_added=key_added, run=run)
    name = _find(found, source_names(source), target)
    if name is None:
        raise ValueError(
            f"no cross_relevance of {target!r} from {asked!r} stored under {key_added!r} "
            f"(there: {', '.join(found)}); run {run} first."
        )
    return _parse(found[name])


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
    signed, absolute = (
        [entry[name][str(position)] for position in range(len(groups))]
        for name in ("signed", "absolute")
    )
    features = texts(entry["source_features"]), texts(entry["target_features"])
    return CrossRelevance(groups, *features, signed, absolute)


def cross_relevance(
    mdata: MuData,
    *,
    source: str | Sequence[str],
    target: str,
    group: str | Sequence[str] | None = None,
    n_top: int | None = None,
    key_added: str = DEFAULT_STEM,
) -> pd.DataFrame:
    """Cross-modal relevance, within groups, as a tidy table.

    Parameters
    ----------
    mdata
        A MuData explained by `tl.explain` with `source` and `target`.
    source
        The modality, or modalities, that the prediction was made from.
    target
        The modality that was predicted.
    group
        The group or groups to return; all by default.
    n_top
        Number of pairs to keep in each group; all stored ones by default.
    key_added
        The stem that the results were stored under.

    Returns
    -------
    pandas.DataFrame
        One row a stored pair and group, sorted by group (in the stored order) and rank. Columns:
        ``feature`` (of the source), ``target_feature``, ``group``, ``value`` (signed mean over the
        group's cells, in the target's units), ``absolute`` (mean of absolute values), ``sign`` (-1,
        0 or 1), ``rank`` (within the group by ``absolute``, 1 is the strongest). Where only the
        strongest pairs were kept, the others have no row.

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        This pair of modalities was not explained, a group is unknown, or `n_top` is not positive.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> un.tl.explain(mdata, source="rna", target="adt")  # doctest: +SKIP
    >>> un.get.cross_relevance(mdata, source="rna", target="adt", group="B")  # doctest: +SKIP
    """
    check_n_top(n_top)
    found = read_cross_relevance(mdata, source=source, target=target, key_added=key_added)
    features = np.array(found.source_features, dtype=object)
    targets = np.array(found.target_features, dtype=object)
    tables = []
    for name in choose(found.groups, group, "group"):
        rows, columns, signed, absolute = found.pairs(name)
        names = {"feature": features[rows], "target_feature": targets[columns]}
        tables.append(ranked(names, name, signed, absolute, n_top))
    return pd.concat(tables, ignore_index=True)
