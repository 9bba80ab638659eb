"""True groups against predicted ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from mudata import MuData
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from .._keys import DEFAULT_STEM, UNKNOWN, Keys
from .._validate import check_mudata
from ..get._slots import command
from ._columns import text_column
from ._style import LABEL, SEQUENTIAL, TICK, TITLE, finish, name_ticks, one_axes, room

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Matrices up to this many rows and columns get a number in every cell.
NUMBERED = 20
#: Inches that the title takes.
_TITLE_WIDTH = 3.4


def confusion(
    mdata: MuData,
    *,
    groupby: str,
    predicted: str | None = None,
    normalize: bool = True,
    match: bool | None = None,
    key_added: str = DEFAULT_STEM,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Confusion matrix of true groups (rows) and predicted ones (columns).

    Cells without a true or predicted group are left out. The title gives accuracy, balanced
    accuracy (mean over true groups) and the number of cells; ``"unknown"`` counts as wrong.

    Parameters
    ----------
    mdata
        A MuData with results, or the query that labels were transferred to.
    groupby
        `.obs` column of the true groups.
    predicted
        `.obs` column of the predicted ones; by default the transferred labels, where there are none
        the identified groups, of the model that is stored.
    normalize
        Whether to show shares of each true group instead of numbers of cells.
    match
        Whether to pair predicted groups with true ones so that most cells agree (Hungarian method),
        as unsupervised groups need. By default only if they share no name, the numbers that
        unsupervised groups are called by being no names; transferred labels and groups of a model
        with labels never, as they mean what they say.
    key_added
        The stem that the results were stored under.
    ax
        Axes to draw in; new ones by default.
    show
        Whether to show the figure now, and return None; by default it is not shown.
    return_fig
        Whether to return the figure in place of axes.

    Returns
    -------
    matplotlib.axes.Axes
        The axes with the matrix. The figure with `return_fig`, None with `show`.

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        A column does not exist, nothing was predicted yet, or no cell has both groups.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=80, n_groups=2)
    >>> reference, query = mdata[:60].copy(), mdata[60:].copy()
    >>> un.tl.fit(reference, labels_key="cell_type", training={"max_epochs": 3}, progress=False)
    >>> un.tl.transfer_labels(query, reference, adapt=False)
    >>> ax = un.pl.confusion(query, groupby="cell_type")
    >>> ax.get_ylabel()
    'true (cell_type)'
    """
    column = _predicted_column(mdata, key_added) if predicted is None else predicted
    true, found = text_column(mdata, groupby, "groupby"), text_column(mdata, column, "predicted")
    counts = _count(true, found, groupby, column)
    matched = _are_nameless(mdata, column, counts, key_added) if match is None else match
    counts, agree = _match_groups(counts) if matched else _match_names(counts)
    ax = _draw(counts, normalize=normalize, ax=ax)
    ax.set_ylabel(f"true ({groupby})", fontsize=LABEL)
    ax.set_xlabel(f"predicted ({column})", fontsize=LABEL)
    ax.set_title(_accuracy(counts, agree, matched=matched), fontsize=TITLE)
    return finish(ax, show=show, return_fig=return_fig)


def _predicted_column(mdata: MuData, key_added: str) -> str:
    """Return the column to judge: a model's own, where one is stored, as a fit leaves old ones."""
    keys, found = Keys(key_added), _record(check_mudata(mdata), key_added)
    fitted = "model" in found
    if keys.label in mdata.obs and ("labels" in found or not fitted):
        return keys.label
    if keys.group in mdata.obs and (keys.probabilities in mdata.obsm or not fitted):
        return keys.group
    transfer = command("transfer_labels", "query", "reference", key_added=key_added)
    integrate = command("integrate", "mdata", key_added=key_added)
    raise ValueError(
        f"neither .obs[{keys.label!r}] nor .obs[{keys.group!r}] is of the model that is stored; "
        f"run {transfer} or {integrate} first, or name a column with predicted=."
    )


def _record(mdata: MuData, key_added: str) -> Mapping[str, Any]:
    """Return everything stored under a stem, nothing where there is none."""
    found = mdata.uns.get(key_added, {})
    return found if isinstance(found, Mapping) else {}


def _count(true: pd.Series, found: pd.Series, groupby: str, column: str) -> pd.DataFrame:
    both = (true.notna() & found.notna()).to_numpy()
    if not both.any():
        raise ValueError(f"no cell has both {groupby!r} and {column!r}.")
    counts = pd.crosstab(true[both], found[both])
    counts.index, counts.columns = counts.index.astype(str), counts.columns.astype(str)
    return counts


def _are_nameless(mdata: MuData, column: str, counts: pd.DataFrame, key_added: str) -> bool:
    """Return whether predicted groups have no names that could be right or wrong."""
    keys, found = Keys(key_added), _record(mdata, key_added)
    fitted = found.get("params", {}).get("data", {}).get("labels_key")  # of older files
    if column == keys.label or (column == keys.group and found.get("labels_key", fitted)):
        return False
    shared = set(counts.columns) & set(counts.index) - {UNKNOWN}
    return not any(not name.isdigit() for name in shared)


def _match_names(counts: pd.DataFrame) -> tuple[pd.DataFrame, NDArray[Any]]:
    """Return columns in the order of the rows, others after; and each row's agreeing cells."""
    true = list(counts.index)
    others = [name for name in counts.columns if name not in true]
    table = counts.reindex(columns=true + _unknown_last(others), fill_value=0)
    return table, np.diagonal(table.to_numpy())


def _match_groups(counts: pd.DataFrame) -> tuple[pd.DataFrame, NDArray[Any]]:
    """Return columns in the order of the rows that they match; and each row's agreeing cells."""
    names = [name for name in counts.columns if name != UNKNOWN]
    cells = counts[names].to_numpy()
    rows, matches = linear_sum_assignment(cells, maximize=True)
    agree = np.zeros(len(counts), dtype=int)
    agree[rows] = cells[rows, matches]
    first = [names[int(match)] for match in matches]
    others = [name for name in counts.columns if name not in first]
    return counts[first + _unknown_last(others)], agree


def _unknown_last(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: name == UNKNOWN)


def _accuracy(counts: pd.DataFrame, agree: NDArray[Any], *, matched: bool) -> str:
    totals = counts.to_numpy().sum(axis=1)
    after = " after matching" if matched else ""
    accuracy, balanced = agree.sum() / totals.sum(), (agree / totals).mean()
    return f"accuracy {accuracy:.2f}, balanced {balanced:.2f}{after}, n = {totals.sum():,}"


def _draw(counts: pd.DataFrame, *, normalize: bool, ax: Axes | None) -> Axes:
    numbers = counts.to_numpy()
    totals = numbers.sum(axis=1, keepdims=True)
    values = numbers / totals if normalize else numbers
    largest = 1.0 if normalize else float(numbers.max())
    n_rows, n_columns = values.shape
    rows = [f"{name} ({total:,})" for name, total in zip(counts.index, totals.ravel(), strict=True)]
    width = max(2.4 + 0.34 * n_columns, _TITLE_WIDTH) + room(rows)
    ax = one_axes(ax, size=(width, 1.5 + 0.3 * n_rows + room(counts.columns)))
    drawn = ax.imshow(values, cmap=SEQUENTIAL, vmin=0, vmax=largest, aspect="auto")
    name_ticks(ax, x=list(counts.columns), y=rows)
    if max(values.shape) <= NUMBERED:
        _write_numbers(ax, values, largest, normalize=normalize)
    scale = ax.figure.colorbar(drawn, ax=ax, shrink=0.7, pad=0.02)
    scale.set_label("share of the true group" if normalize else "cells", fontsize=LABEL)
    scale.ax.tick_params(labelsize=TICK)
    return ax


def _write_numbers(ax: Axes, values: NDArray[Any], largest: float, *, normalize: bool) -> None:
    for (row, column), value in np.ndenumerate(values):
        if value == 0:
            continue
        text = f"{value:.2f}".removeprefix("0") if normalize else f"{value:d}"
        colour = "#FFFFFF" if value > 0.6 * largest else "#000000"
        ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=6)
