"""Confidence of transferred labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from mudata import MuData
from numpy.typing import NDArray

from .._keys import DEFAULT_STEM, UNKNOWN, Keys
from ..get import probabilities
from ..get._slots import command
from ._style import LABEL, NAMED, TICK, UNKNOWN_COLOUR, finish, literals, one_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = np.linspace(0, 1, 26)
#: Height of a row's highest bar, where rows are 1 apart.
ROW_HEIGHT = 0.8


def transfer(
    query: MuData,
    *,
    key_added: str = DEFAULT_STEM,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Histograms of the confidence of transferred labels, one row a label.

    A cell stands in the row of its most probable label, also if that was too uncertain and the cell
    was called ``"unknown"`` (drawn in another colour). Rows are scaled to their own highest bar;
    the number of cells and the share that is unknown stand on the right.

    Parameters
    ----------
    query
        A MuData with labels from `tl.transfer_labels`.
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
        The axes with the histograms. The figure with `return_fig`, None with `show`.

    Raises
    ------
    TypeError
        `query` is not a MuData.
    ValueError
        No transferred labels are stored.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=80, n_groups=2)
    >>> reference, query = mdata[:60].copy(), mdata[60:].copy()
    >>> un.tl.fit(reference, labels_key="cell_type", training={"max_epochs": 3}, progress=False)
    >>> un.tl.transfer_labels(query, reference, adapt=False)
    >>> un.pl.transfer(query).get_xlabel()
    'confidence of the label'
    """
    table = probabilities(query, key_added=key_added, labels=True)
    confidence, unknown = _confidence(query, key_added)
    known = ~np.isnan(table.to_numpy()).any(axis=1) & ~np.isnan(confidence)
    best = table.to_numpy()[known].argmax(axis=1)
    labels = [str(name) for name in table.columns]
    ax = one_axes(ax, size=(4.6, 1.0 + 0.36 * len(labels)))
    notes = [
        _draw_row(ax, row, confidence[known][best == row], unknown[known][best == row])
        for row in range(len(labels))
    ]
    _label(ax, labels, notes)
    return finish(ax, show=show, return_fig=return_fig)


def _confidence(query: MuData, key_added: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    keys = Keys(key_added)
    for name in (keys.label, keys.label_confidence):
        if name not in query.obs:
            run = command("transfer_labels", "query", "reference", key_added=key_added)
            raise ValueError(f"no .obs[{name!r}]; run {run} first.")
    unknown = query.obs[keys.label].astype(object).eq(UNKNOWN).to_numpy(dtype=bool)
    return pd.to_numeric(query.obs[keys.label_confidence]).to_numpy(dtype=float), unknown


def _draw_row(ax: Axes, row: int, confidence: NDArray[Any], unknown: NDArray[np.bool_]) -> str:
    """Draw one label's histogram on its base line; return its note."""
    parts = [np.histogram(confidence[which], BINS)[0] for which in (unknown, ~unknown)]
    highest = max(int((parts[0] + parts[1]).max()), 1)
    base = np.full(len(BINS) - 1, float(row))
    for part, colour in zip(parts, (UNKNOWN_COLOUR, NAMED), strict=True):
        height = part / highest * ROW_HEIGHT
        # Rows run downwards, so bars grow towards smaller numbers.
        ax.bar(BINS[:-1], -height, np.diff(BINS), base, align="edge", color=colour, linewidth=0)
        base = base - height
    ax.axhline(row, color="#999999", linewidth=0.5)
    if not len(confidence):
        return "no cell"
    return f"{len(confidence):,} cells, {unknown.mean():.0%} unknown"


def _label(ax: Axes, labels: list[str], notes: list[str]) -> None:
    from matplotlib.patches import Patch

    ax.set_yticks(np.arange(len(labels)) - 0.25, literals(labels), fontsize=TICK)
    ax.set_ylim(len(labels) - 0.85, -0.95)
    ax.set_xlim(0, 1)
    ax.set_xlabel("confidence of the label", fontsize=LABEL)
    ax.tick_params(axis="x", labelsize=TICK)
    ax.tick_params(axis="y", length=0)
    beside = ax.get_yaxis_transform()
    for row, note in enumerate(notes):
        ax.text(1.02, row - 0.25, note, va="center", fontsize=TICK, transform=beside)
    ax.spines[["top", "right", "left"]].set_visible(False)
    handles = [
        Patch(color=NAMED, label="named"),
        Patch(color=UNKNOWN_COLOUR, label=f'called "{UNKNOWN}"'),
    ]
    ax.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=2,
        fontsize=TICK,
        frameon=False,
    )
