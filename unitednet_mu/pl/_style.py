"""What all plots share: colours, figures, text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
from mudata import MuData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: One axes, or the axes of several panels.
Drawn = TypeVar("Drawn", "Axes", "list[Axes]")

#: Okabe and Ito's colours, safe with the common colour blindnesses; yellow is weak on white.
CATEGORIES = (
    "#0072B2",  # blue
    "#D55E00",  # vermilion
    "#009E73",  # green
    "#CC79A7",  # purple
    "#E69F00",  # orange
    "#56B4E9",  # sky blue
    "#000000",
    "#F0E442",  # yellow
)
NAMED, UNKNOWN_COLOUR = CATEGORIES[0], CATEGORIES[1]
DIVERGING = "RdBu_r"
SEQUENTIAL = "Blues"
MISSING = "#DDDDDD"
TITLE, LABEL, TICK = 9, 8, 7
#: Characters that names get more where fewer do not tell them apart.
_WIDER = 8


def new_figure(
    n_panels: int,
    *,
    panel: tuple[float, float],
    n_columns: int,
    layout: Literal["constrained", "compressed"] = "constrained",
    projection: str | None = None,
) -> tuple[Figure, list[Axes]]:
    """Return a figure of equal panels (`panel` is width and height in inches) and its axes.

    Panels of fixed aspect want the ``"compressed"`` layout; `projection` is matplotlib's.
    """
    import matplotlib.pyplot as plt

    n_columns = min(n_columns, n_panels)
    n_rows = math.ceil(n_panels / n_columns)
    figure, grid = plt.subplots(
        n_rows,
        n_columns,
        figsize=(panel[0] * n_columns, panel[1] * n_rows),
        layout=layout,
        squeeze=False,
        subplot_kw={"projection": projection},
    )
    axes = list(grid.ravel())
    for unused in axes[n_panels:]:
        unused.remove()
    return figure, axes[:n_panels]


def one_axes(ax: Axes | None, *, size: tuple[float, float]) -> Axes:
    """Return `ax`, or the axes of a new figure of this size in inches."""
    return ax if ax is not None else new_figure(1, panel=size, n_columns=1)[1][0]


def panels(
    n_panels: int,
    ax: Axes | None,
    *,
    panel: tuple[float, float],
    n_columns: int,
    narrow: str,
    layout: Literal["constrained", "compressed"] = "constrained",
    projection: str | None = None,
) -> tuple[Figure, list[Axes]]:
    """Return a figure and one axes a panel: new ones, or `ax` where one panel is drawn.

    Raises
    ------
    ValueError
        `ax` is given for several panels; `narrow` names the arguments that choose one.
    """
    if ax is None:
        return new_figure(
            n_panels, panel=panel, n_columns=n_columns, layout=layout, projection=projection
        )
    if n_panels != 1:
        raise ValueError(
            f"ax: expected None for {n_panels} panels, found {type(ax).__name__}; "
            f"choose one panel with {narrow}."
        )
    return cast("Figure", ax.figure), [ax]


def finish(drawn: Drawn, *, show: bool | None, return_fig: bool) -> Drawn | Figure | None:
    """Return what a plot returns, the way scanpy's plots do: axes, their figure, or None if shown.

    Parameters
    ----------
    drawn
        The axes, or a list of them, all in one figure.
    show
        Whether to show the figure, as pyplot shows it.
    return_fig
        Whether to return the figure.
    """
    if show:
        import matplotlib.pyplot as plt

        plt.show()
    if return_fig:
        one = drawn[0] if isinstance(drawn, list) else drawn
        return one.get_figure(root=True)
    return None if show else drawn


def literal(name: str, width: int = 32) -> str:
    """Return a name as text to draw: never read as mathematics, shortened in its middle if long."""
    if len(name) > width:
        tail = (width - 1) // 2
        name = f"{name[: width - 1 - tail]}…{name[-tail:]}"
    return name.replace("$", r"\$")


def literals(names: Sequence[str], width: int = 32) -> list[str]:
    """Return every name as text to draw, shortened no further than leaves different ones so."""
    different = set(names)
    while len({literal(name, width) for name in different}) < len(different):
        width += _WIDER
    return [literal(name, width) for name in names]


def room(names: Iterable[str]) -> float:
    """Return the inches that the longest name, as text at ticks, takes beyond eight letters."""
    longest = max((len(name) for name in literals(list(names))), default=0)
    return 0.06 * max(longest - 8, 0)


def name_ticks(ax: Axes, *, x: Sequence[str], y: Sequence[str], size: float = TICK) -> None:
    """Name columns (slanted, below) and rows (the first on top) of a matrix drawn in `ax`."""
    ax.set_xticks(range(len(x)), literals(x), rotation=90 if _long(x) else 0, fontsize=size)
    ax.set_yticks(range(len(y)), literals(y), fontsize=size)
    ax.set_xlim(-0.5, max(len(x), 1) - 0.5)
    ax.set_ylim(max(len(y), 1) - 0.5, -0.5)
    ax.tick_params(length=0)


def _long(names: Sequence[str]) -> bool:
    return max(map(len, names), default=0) > 2


def symmetric_limit(matrices: Iterable[Any]) -> float:
    """Return the largest absolute value of all matrices, NaN ignored; 1 if there is none."""
    values = np.abs(np.concatenate([np.ravel(np.asarray(m, dtype=float)) for m in matrices]))
    largest = float(values.max(where=np.isfinite(values), initial=0.0))
    return largest if largest > 0 else 1.0


def check_option(name: str, found: str, options: Sequence[str]) -> None:
    """Check a choice among few.

    Raises
    ------
    ValueError
        `found` is none of `options`.
    """
    if found not in options:
        raise ValueError(f"{name}: expected one of {list(options)}, found {found!r}.")


def category_colours(mdata: MuData, column: str, categories: Sequence[str]) -> dict[str, str]:
    """Return a colour for every category: from ``.uns["<column>_colors"]``, or a default.

    The MuData's own come first, then each modality's; a column that the MuData has from a modality
    (``"rna:leiden"``) has its colours there, without the prefix.
    """
    places = [(mdata, column), *((adata, column) for adata in mdata.mod.values())]
    modality, _, plain = column.partition(":")
    if modality in mdata.mod:
        places.append((mdata.mod[modality], plain))
    for holder, name in places:
        colours = holder.uns.get(f"{name}_colors")
        if colours is not None and not isinstance(colours, str) and len(colours) >= len(categories):
            return dict(zip(categories, map(str, colours), strict=False))
    return dict(zip(categories, default_colours(len(categories)), strict=True))


def default_colours(n: int) -> list[str]:
    """Return `n` different colours, colour-blind-safe up to eight."""
    if n <= len(CATEGORIES):
        return list(CATEGORIES[:n])
    from scanpy.plotting import palettes

    for palette in (palettes.default_20, palettes.default_28, palettes.default_102):
        if n <= len(palette):
            return list(palette[:n])
    return [palettes.default_102[i % 102] for i in range(n)]
