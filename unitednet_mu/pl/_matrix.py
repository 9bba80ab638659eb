"""Drawing of signed matrices, as cells or as dots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._style import DIVERGING, LABEL, MISSING, TICK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

#: Area in square points of the largest dot; the smallest drawn is a speck.
LARGEST_DOT = 90.0
SMALLEST_DOT = 1.5
#: Inches between a colour scale and what is beside it.
LEAST_GAP = 0.12
#: Inches that a colour scale is long at most; a longer one would be as wide as a panel.
LONGEST_SCALE = 3.0


def draw_cells(ax: Axes, signed: NDArray[Any], limit: float) -> ScalarMappable:
    """Draw a matrix with diverging colours from `-limit` to `limit`; what is missing stays grey."""
    ax.set_facecolor(MISSING)
    if not signed.size:
        signed = np.full((1, 1), np.nan)
        ax.text(0, 0, "nothing stored", ha="center", va="center", fontsize=TICK)
    return ax.imshow(
        np.ma.masked_invalid(signed),
        cmap=DIVERGING,
        vmin=-limit,
        vmax=limit,
        aspect="auto",
        interpolation="none",
    )


def draw_dots(
    ax: Axes,
    signed: NDArray[Any],
    absolute: NDArray[Any],
    *,
    limit: float,
    largest: float,
    outlined: NDArray[np.bool_],
) -> ScalarMappable:
    """Draw a matrix as dots: colour is `signed`, area is `absolute`, NaN is left out.

    Parameters
    ----------
    ax
        Axes to draw in.
    signed, absolute
        Values, rows x columns.
    limit
        Colours run from `-limit` to `limit`.
    largest
        The absolute value of the largest dot.
    outlined
        Entries to draw with a dark edge, rows x columns.
    """
    rows, columns = np.nonzero(~np.isnan(signed))
    edges = np.where(outlined[rows, columns], "#000000", "#BBBBBB")
    ax.set_axisbelow(True)
    ax.grid(color="#EEEEEE", linewidth=0.5)
    return ax.scatter(
        columns,
        rows,
        s=dot_area(absolute[rows, columns], largest),
        c=signed[rows, columns],
        cmap=DIVERGING,
        vmin=-limit,
        vmax=limit,
        edgecolors=edges.tolist(),
        linewidths=0.6,
    )


def dot_area(absolute: Any, largest: float) -> NDArray[Any]:
    """Return the area of dots in square points, proportional to `absolute`."""
    area: NDArray[Any] = np.asarray(absolute, dtype=float) / largest * LARGEST_DOT
    return area.clip(min=SMALLEST_DOT)


def add_colour_scale(
    figure: Figure, axes: Sequence[Axes], drawn: ScalarMappable, label: str, pad: float = 0.02
) -> None:
    """Add one colour scale for all axes, `pad` of their width beside them, or `LEAST_GAP`."""
    pad = max(pad, LEAST_GAP * figure.dpi / figure.bbox.width)
    shrink = min(0.6, LONGEST_SCALE * figure.dpi / figure.bbox.height)
    scale = figure.colorbar(drawn, ax=list(axes), shrink=shrink, aspect=25, pad=pad)
    scale.set_label(label, fontsize=LABEL)
    scale.ax.tick_params(labelsize=TICK)
    scale.outline.set_visible(False)


def above_title(ax: Axes) -> dict[str, Any]:
    """Return where a legend stands above the title of an axes of any height."""
    from matplotlib.transforms import ScaledTranslation

    shift = ScaledTranslation(0, 0.25, ax.get_figure(root=True).dpi_scale_trans)  # type: ignore[union-attr]
    anchor = {"bbox_to_anchor": (0.5, 1), "bbox_transform": ax.transAxes + shift}
    return {"loc": "lower center", **anchor}


def add_dot_scale(place: Any, largest: float, **where: Any) -> None:
    """Add a legend of dot areas to a figure or to axes."""
    from matplotlib.lines import Line2D

    values = [largest * share for share in (0.1, 0.5, 1.0)]
    sizes = np.sqrt(dot_area(values, largest))
    look: dict[str, Any] = {"linestyle": "", "marker": "o", "markerfacecolor": "#FFFFFF"}
    handles = [
        Line2D([], [], markersize=size, markeredgecolor="#777777", label=f"{value:.2g}", **look)
        for value, size in zip(values, sizes, strict=True)
    ]
    top = Line2D(
        [], [], markersize=sizes[1], markeredgecolor="#000000", label="among the top", **look
    )
    place.legend(
        handles=[*handles, top],
        title="mean absolute relevance",
        ncols=4,
        fontsize=TICK,
        title_fontsize=LABEL,
        frameon=False,
        handletextpad=0.2,
        columnspacing=1.0,
        **where,
    )
