"""Group-to-feature relevance as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import pandas as pd
from mudata import MuData
from numpy.typing import NDArray

from .._keys import DEFAULT_STEM
from ._explanation import build_explanation, check_no_n_top
from ._ranking import SPREAD, ranked
from ._slots import check_n_top, choose, command, stored, texts

if TYPE_CHECKING:
    from shap import Explanation


@dataclass(frozen=True)
class ModalityRelevance:
    """Relevance of one modality's features: `signed` and `absolute` are features x groups.

    So are `sd` and `stability`, which are there where several models were explained, and `p` and
    `q`, where the model was compared with refits on shuffled features.
    """

    features: list[str]
    signed: NDArray[Any]
    absolute: NDArray[Any]
    sd: NDArray[Any] | None = None
    stability: NDArray[Any] | None = None
    p: NDArray[Any] | None = None
    q: NDArray[Any] | None = None


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
    blocks = found["modalities"]
    # files give dictionaries back in the order of the alphabet
    order = dict.fromkeys([*(name for name in mdata.mod if name in blocks), *blocks])
    return Relevance(groups, {name: _block(blocks[name], len(groups)) for name in order})


def _block(block: Any, n_groups: int) -> ModalityRelevance:
    features = texts(block["features"])
    shape = (len(features), n_groups)
    columns = {"signed": "signed", "absolute": "absolute", **SPREAD}
    found = {
        column: np.asarray(block[name]).reshape(shape)
        for column, name in columns.items()
        if name in block
    }
    return ModalityRelevance(features, **found)


@overload
def relevance(
    mdata: MuData,
    *,
    group: str | Sequence[str] | None = ...,
    modality: str | Sequence[str] | None = ...,
    n_top: int | None = ...,
    as_explanation: Literal[False] = ...,
    key_added: str = ...,
) -> pd.DataFrame: ...


@overload
def relevance(
    mdata: MuData,
    *,
    group: str | Sequence[str] | None = ...,
    modality: str | Sequence[str] | None = ...,
    n_top: int | None = ...,
    as_explanation: Literal[True],
    key_added: str = ...,
) -> Explanation: ...


def relevance(
    mdata: MuData,
    *,
    group: str | Sequence[str] | None = None,
    modality: str | Sequence[str] | None = None,
    n_top: int | None = None,
    as_explanation: bool = False,
    key_added: str = DEFAULT_STEM,
) -> pd.DataFrame | Explanation:
    """Group-to-feature relevance as a tidy table, or of every explained cell for shap's plots.

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
    as_explanation
        Return the attributions of single cells, which ``tl.explain(mdata, per_cell=True)`` keeps,
        as shap's own object: ``shap.plots.beeswarm`` and ``shap.plots.bar`` take that of one group.
    key_added
        The stem that the results were stored under.

    Returns
    -------
    pandas.DataFrame
        One row a feature and group, sorted by group (in the stored order) and rank. Columns:
        ``feature``, ``modality``, ``group``, ``value`` (signed mean over the group's cells, in the
        units of the explained output), ``absolute`` (mean of absolute values), ``sign`` (-1, 0 or
        1), ``rank`` (within the group by ``absolute``, 1 is the strongest). Features that no cell
        of the group was measured for have no row. Where several models were explained, ``value``
        and ``absolute`` are means over them, and two columns follow: ``sd`` (standard deviation of
        the signed value over models) and ``stability`` (share of models in which the feature is
        among the strongest of the group; ``n_top_stable`` of `tl.explain` says how many these are).
        ``n_permutations`` gives ``p``, of the size of ``value``, from refits on shuffled features,
        and ``q``, the false-discovery rate over all features of the group, returned or not.
    shap.Explanation
        With `as_explanation`. Rows are all explained cells that have one of the modalities,
        whichever group they are of: ``values[i, j]`` is what feature j contributes to the output of
        `group` for cell i, compared with the background. ``base_values`` and the ``values`` of a
        cell, over all modalities, add up to its output (the centred logit or the probability).
        ``data`` holds the values of the features in the user's units, ``instance_names`` the cells,
        ``feature_names`` the features (``modality:feature`` where two modalities share the name).
        Where a cell lacks a modality, 0 and NaN. Without a single `group` there is a third axis,
        ``explanation[:, :, "B"]``.

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        No relevance is stored (with `as_explanation`: of single cells, or of this group), a group
        or modality is unknown, or `n_top` is not positive or given with `as_explanation`.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False)
    >>> un.tl.explain(mdata, groupby="cell_type", per_cell=True, progress=False)
    >>> un.get.relevance(mdata, group="group0", n_top=3)["rank"].tolist()
    [1, 2, 3]

    Every explained cell, for shap's own plots:

    >>> import shap
    >>> explanation = un.get.relevance(mdata, group="group0", as_explanation=True)
    >>> explanation.shape  # cells x features
    (60, 60)
    >>> ax = shap.plots.beeswarm(explanation, show=False)
    """
    check_n_top(n_top)
    found = read_relevance(mdata, key_added=key_added)
    if as_explanation:
        check_no_n_top(n_top)
        choose(found.groups, group, "group")
        run = command("explain", "mdata", "per_cell=True", key_added=key_added)
        modalities = choose(list(found.modalities), modality, "modality")
        return build_explanation(
            stored(mdata, "relevance", key_added=key_added, run=run),
            run=run,
            features={name: found.modalities[name].features for name in modalities},
            output=group,
            what="group",
        )
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
    spread = {
        name: np.concatenate([getattr(block, name) for block in blocks])
        for name in SPREAD
        if all(getattr(block, name) is not None for block in blocks)
    }
    tables = [
        ranked(
            names,
            name,
            signed[:, column],
            absolute[:, column],
            n_top,
            {what: values[:, column] for what, values in spread.items()},
        )
        for name, column in zip(groups, columns, strict=True)
    ]
    return pd.concat(tables, ignore_index=True)
