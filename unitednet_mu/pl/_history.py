"""Training and validation curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from mudata import MuData

from .._keys import DEFAULT_STEM
from ..get import history as get_history
from ..get._slots import choose
from ._style import CATEGORIES, LABEL, TICK, TITLE, finish, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Prefix of the columns, name in the legend, and look of the curve.
CURVES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("train", "training cells", {"color": CATEGORIES[0], "linestyle": "-"}),
    ("val", "held-out cells", {"color": CATEGORIES[1], "linestyle": "--"}),
)
PHASES = {
    "warmup": "#F3E3C3",
    "train": "#FFFFFF",
    "refit warmup": "#F3E3C3",
    "refit train": "#E9F2E6",
    "adapt": "#DCEBF5",
}
OTHER_PHASE = "#E5E5E5"
#: Height in inches of a row of the legend.
LEGEND_ROW = 0.17


def history(
    mdata: MuData,
    *,
    terms: str | Sequence[str] | None = None,
    key_added: str = DEFAULT_STEM,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> list[Axes] | Figure | None:
    """Losses over the epochs of training, one panel a term; phases of training are shaded.

    Parameters
    ----------
    mdata
        A MuData fitted by `tl.fit`.
    terms
        The loss terms to draw, such as ``"reconstruction"``; all that were on by default.
    key_added
        The stem that the results were stored under.
    ax
        Axes to draw in, where one term is drawn; new ones by default.
    show
        Whether to show the figure now, and return None; by default it is not shown.
    return_fig
        Whether to return the figure in place of axes.

    Returns
    -------
    list of matplotlib.axes.Axes
        One a term. The figure with `return_fig`, None with `show`.

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        No history is stored, a term is unknown, or `ax` is given for several terms.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False)
    >>> axes = un.pl.history(mdata, terms=["reconstruction", "translation"])
    >>> [ax.get_title() for ax in axes]
    ['reconstruction', 'translation']
    """
    table = get_history(mdata, key_added=key_added)
    chosen = choose(_terms(table), terms, "terms")
    width = 3.2 if len(chosen) == 1 else 2.5
    figure, axes = panels(len(chosen), ax, panel=(width, 1.8), n_columns=4, narrow="terms=")
    epochs = _epochs(table)
    for axis, term in zip(axes, chosen, strict=True):
        _shade_phases(axis, epochs, table)
        _draw_term(axis, epochs, table, term)
    handles = _legend(table)
    if ax is None:
        _legend_above(figure, handles)
    else:
        ax.legend(handles=handles, fontsize=TICK, frameon=False)
    return finish(axes, show=show, return_fig=return_fig)


def _terms(table: pd.DataFrame) -> list[str]:
    """Return the terms with at least one value, in the order of the columns."""
    names = [
        str(column).removeprefix(f"{prefix}_")
        for column in table.columns
        for prefix, _, _ in CURVES
        if str(column).startswith(f"{prefix}_") and table[column].notna().any()
    ]
    return list(dict.fromkeys(names))


def _epochs(table: pd.DataFrame) -> np.ndarray[Any, Any]:
    """Return the epochs; row numbers where a later phase counts anew."""
    epochs = table["epoch"].to_numpy(dtype=float)
    return epochs if (np.diff(epochs) > 0).all() else np.arange(1, len(table) + 1, dtype=float)


def _draw_term(ax: Axes, epochs: np.ndarray[Any, Any], table: pd.DataFrame, term: str) -> None:
    for prefix, name, look in CURVES:
        column = f"{prefix}_{term}"
        if column not in table or table[column].isna().all():
            continue
        values = table[column].to_numpy(dtype=float)
        marker = "o" if np.isfinite(values).sum() == 1 else None
        x, y = _parted(epochs, values, table["phase"].astype(str).str.startswith("refit"))
        ax.plot(x, y, label=name, linewidth=1.2, marker=marker, markersize=3, **look)
    ax.set_title(term.replace("_", " "), fontsize=TITLE)
    ax.set_xlabel("epoch", fontsize=LABEL)
    ax.tick_params(labelsize=TICK)
    ax.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    ax.locator_params(axis="x", integer=True, nbins=5)
    ax.spines[["top", "right"]].set_visible(False)


def _parted(
    epochs: np.ndarray[Any, Any], values: np.ndarray[Any, Any], refit: pd.Series
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return a curve that breaks where another network begins, and where nothing was computed."""
    begins = np.flatnonzero(np.diff(refit.to_numpy(dtype=int)) > 0) + 1
    return np.insert(epochs, begins, epochs[begins]), np.insert(values, begins, np.nan)


def _shade_phases(ax: Axes, epochs: np.ndarray[Any, Any], table: pd.DataFrame) -> None:
    phases = table["phase"].astype(str).to_numpy()
    starts = [0, *(np.flatnonzero(phases[1:] != phases[:-1]) + 1), len(phases)]
    edges = [epochs[0] - 0.5, *((epochs[1:] + epochs[:-1]) / 2), epochs[-1] + 0.5]
    for start, end in pairwise(starts):
        colour = PHASES.get(phases[start], OTHER_PHASE)
        ax.axvspan(edges[start], edges[end], color=colour, linewidth=0, zorder=0)


def _legend(table: pd.DataFrame) -> list[Any]:
    """Return what the curves and, where there are several, the phases look like."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Line2D([], [], label=name, **look) for _, name, look in CURVES]
    phases = list(dict.fromkeys(table["phase"].astype(str)))
    if len(phases) > 1:
        handles += [
            Patch(facecolor=PHASES.get(phase, OTHER_PHASE), edgecolor="#999999", label=phase)
            for phase in phases
        ]
    return handles


def _legend_above(figure: Figure, handles: list[Any]) -> None:
    width, height = figure.get_size_inches()
    n_columns = min(len(handles), max(2, int(width / 1.15)))
    figure.set_size_inches(width, height + LEGEND_ROW * math.ceil(len(handles) / n_columns))
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=n_columns,
        fontsize=LABEL,
        frameon=False,
    )
