"""Group-to-feature relevance as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from mudata import MuData
from numpy.typing import NDArray

from .._keys import DEFAULT_STEM
from ._ranking import ranked
from ._slots import check_n_top, choose, command, stored, texts


@dataclass(frozen=True)
class ModalityRelevance:
    """Relevance of one modality's features: `signed` and `absolute` are features x groups."""

    features: list[str]
    signed: NDArray[Any]
    absolute: NDArray[Any]


@dataclass(frozen=True)
class Relevance:
    """Stored group-to-feature relevance: group names, and one block a modality."""

    groups: list[str]
    modalities: dict[str, ModalityRelevance]


def read_relevance(mdata: MuData, *, key_added: str = DEFAULT_STEM) -> Relevance:
    """Return the stored relevance with names as lists and matrices of the right shape.

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        No relevance is stored.
    """
    run = command("explain", "mdata", key_added=key_added)
    found = stored(mdata, "relevance", key_added=key_added, run=run)
    groups = texts(found["groups"])
    blocks = {name: _block(block, len(groups)) for name, block in found["modalities"].items()}
    return Relevance(groups, blocks)


def _block(block: Any, n_groups: int) -> ModalityRelevance:
    features = texts(block["features"])
    shape = (len(features), n_groups)
    signed, absolute = (np.asarray(block[name]).reshape(shape) for name in ("signed", "absolute"))
    return ModalityRelevance(features, signed, absolute)


def relevance(
    mdata: MuData,
    *,
    group: str | Sequence[str] | None = None,
    modality: str | Sequence[str] | None = None,
    n_top: int | None = None,
    key_added: str = DEFAULT_STEM,
) -> pd.DataFrame:
    """Group-to-feature relevance as a tidy table.

    Parameters
    ----------
    mdata
        A MuData explained by `tl.explain`.
    group
        The group or groups to return; all by default.
    modality
        The modality or modalities to return; all by default.
    n_top
        Number of features to keep in each group, the strongest over all chosen modalities together;
        all by default.
    key_added
        The stem that the results were stored under.

    Returns
    -------
    pandas.DataFrame
        One row a feature and group, sorted by group (in the stored order) and rank. Columns:
        ``feature``, ``modality``, ``group``, ``value`` (signed mean over the group's cells, in the
        units of the explained output), ``absolute`` (mean of absolute values), ``sign`` (-1, 0 or
        1), ``rank`` (within the group by ``absolute``, 1 is the strongest). Features that no cell
        of the group was measured for have no row.

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        No relevance is stored, a group or modality is unknown, or `n_top` is not positive.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> un.tl.explain(mdata)  # doctest: +SKIP
    >>> un.get.relevance(mdata, group="B", n_top=10)  # doctest: +SKIP
    """
    check_n_top(n_top)
    found = read_relevance(mdata, key_added=key_added)
    groups = choose(found.groups, group, "group")
    chosen = choose(list(found.modalities), modality, "modality")
    blocks = [found.modalities[name] for name in chosen]
    names = {
        "feature": np.array([f for block in blocks for f in block.features], dtype=object),
        "modality": np.repeat(np.array(chosen, dtype=object), [len(b.features) for b in blocks]),
    }
    signed = np.concatenate([block.signed for block in blocks])
    absolute = np.concatenate([block.absolute for block in blocks])
    columns = [found.groups.index(name) for name in groups]
    tables = [
        ranked(names, name, signed[:, column], absolute[:, column], n_top)
        for name, column in zip(groups, columns, strict=True)
    ]
    return pd.concat(tables, ignore_index=True)
