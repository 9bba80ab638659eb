"""What each modality weighs, and what it does for each group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from mudata import MuData

from .._keys import DEFAULT_STEM
from ..get import modality_effects
from ..get import modality_weights as get_modality_weights
from ._matrix import add_colour_scale, draw_cells
from ._style import (
    LABEL,
    TICK,
    check_option,
    default_colours,
    finish,
    literals,
    name_ticks,
    one_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: From this value on, colours are too dark for black digits.
_DARK = 0.6


def modality_weights(
    mdata: MuData,
    *,
    kind: Literal["weights", "effects"] = "weights",
    key_added: str = DEFAULT_STEM,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Bars of the learned weight of every modality, or what leaving one out does to each group.

    A modality may weigh much and yet decide nothing, as another one tells the same: look at both.

    Parameters
    ----------
    mdata
        A MuData fitted by `tl.fit`; for ``"effects"`` also integrated by `tl.integrate`.
    kind
        ``"weights"``: bars of the learned weights, a dashed line at equal shares. ``"effects"``:
        groups x modalities, the mean drop of a group's probability when the modality is left out
        (see `get.modality_effects`); grey where no cell tells.
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
        The axes with the bars, or the matrix. The figure with `return_fig`, None with `show`.

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        No weights, or no effects, are stored; no cell has two modalities; an unknown `kind`.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False)
    >>> un.pl.modality_weights(mdata).get_xlabel()
    'learned weight in the embedding'
    """
    check_option("kind", kind, ("weights", "effects"))
    if kind == "effects":
        ax = _draw_effects(mdata, key_added, ax)
    else:
        ax = _draw_weights(mdata, key_added, ax)
    return finish(ax, show=show, return_fig=return_fig)


def _draw_weights(mdata: MuData, key_added: str, ax: Axes | None) -> Axes:
    """Draw bars, and a line at equal shares."""
    weights = get_modality_weights(mdata, key_added=key_added)["weight"]
    names = literals([str(name) for name in weights.index])
    ax = one_axes(ax, size=(3.4, 0.6 + 0.32 * len(names)))
    bars = ax.barh(range(len(names)), weights, height=0.7, color=default_colours(len(names)))
    on_white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # the line may be behind
    ax.bar_label(bars, fmt="%.2f", padding=3, fontsize=TICK, bbox=on_white)
    ax.axvline(1 / len(names), color="#555555", linestyle="--", linewidth=0.8)
    ax.set_yticks(range(len(names)), names, fontsize=LABEL)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.18 * float(weights.max()))
    ax.set_xlabel("learned weight in the embedding", fontsize=LABEL)
    ax.tick_params(labelsize=TICK)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _draw_effects(mdata: MuData, key_added: str, ax: Axes | None) -> Axes:
    """Draw a matrix of drops on a scale of probabilities, each with its number."""
    table = modality_effects(mdata, key_added=key_added)
    values = table.to_numpy(np.float64)
    if np.isnan(values).all():
        raise ValueError(
            f"no cell has two of {[str(name) for name in table.columns]}, so that none can be left "
            "out."
        )
    size = (2.2 + 0.55 * values.shape[1], 0.8 + 0.26 * values.shape[0])
    ax = one_axes(ax, size=size)
    drawn = draw_cells(ax, values, 1.0)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "#FFFFFF" if abs(value) > _DARK else "#000000"
            text = f"{value:.2f}".replace("-0.00", "0.00")
            ax.text(column, row, text, ha="center", va="center", fontsize=TICK, color=colour)
    name_ticks(ax, x=[str(name) for name in table.columns], y=[str(name) for name in table.index])
    ax.set_xlabel("modality left out", fontsize=LABEL)
    ax.set_ylabel("group", fontsize=LABEL)
    add_colour_scale(cast("Figure", ax.figure), [ax], drawn, "drop of probability")
    return ax
