"""Group-to-feature relevance: the strongest features of every group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from mudata import MuData
from numpy.typing import NDArray

from .._keys import DEFAULT_STEM
from ..get._relevance import ModalityRelevance, read_relevance
from ..get._slots import check_n_top, choose
from ._matrix import above_title, add_colour_scale, add_dot_scale, draw_cells, draw_dots
from ._style import (
    TICK,
    TITLE,
    check_option,
    finish,
    literals,
    name_ticks,
    panels,
    room,
    symmetric_limit,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


#: Width in inches that the legend of dot sizes needs.
LEGEND_WIDTH = 3.6


def relevance(
    mdata: MuData,
    *,
    n_top: int = 5,
    group: str | Sequence[str] | None = None,
    modality: str | Sequence[str] | None = None,
    kind: Literal["dot", "heatmap"] = "dot",
    key_added: str = DEFAULT_STEM,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> list[Axes] | Figure | None:
    """Relevance of the strongest features of every group, one panel a modality.

    Rows are features, columns are groups. Every feature stands once, with the first group that it
    is among the strongest `n_top` of; lines part the groups' blocks. Colour is the signed mean over
    a group's cells (red speaks for the group, blue against it), the same scale in all panels; in
    the dot plot the area is the mean absolute value, and a dark edge marks what is among the
    group's strongest.

    Parameters
    ----------
    mdata
        A MuData explained by `tl.explain`.
    n_top
        Number of features of each modality to take for each group, by mean absolute relevance.
    group
        The group or groups to draw; all by default.
    modality
        The modality or modalities to draw; all by default.
    kind
        Dots, or a heat map of the signed values.
    key_added
        The stem that the results were stored under.
    ax
        Axes to draw in, where one modality is drawn; new ones by default.
    show
        Whether to show the figure now, and return None; by default it is not shown.
    return_fig
        Whether to return the figure in place of axes.

    Returns
    -------
    list of matplotlib.axes.Axes
        One a modality. The figure with `return_fig`, None with `show`.

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        No relevance is stored, a group, modality or kind is unknown, `n_top` is not positive, or
        `ax` is given for several modalities.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False)
    >>> un.tl.explain(mdata, progress=False)
    >>> axes = un.pl.relevance(mdata, n_top=3, kind="heatmap")
    >>> [ax.get_title() for ax in axes]
    ['rna', 'adt']
    """
    check_option("kind", kind, ("dot", "heatmap"))
    check_n_top(n_top)
    found = read_relevance(mdata, key_added=key_added)
    names = choose(found.groups, group, "group")
    modalities = choose(list(found.modalities), modality, "modality")
    columns = [found.groups.index(name) for name in names]
    tops = [_Top(found.modalities[mod], columns, n_top) for mod in modalities]
    return finish(_draw(modalities, names, tops, kind, ax), show=show, return_fig=return_fig)


class _Top:
    """The rows to draw of one modality: features x groups, and where blocks of rows start."""

    def __init__(self, block: ModalityRelevance, columns: list[int], n_top: int) -> None:
        signed, absolute = block.signed[:, columns], block.absolute[:, columns]
        top = _top_entries(absolute, n_top)
        first = np.where(top.any(axis=1), top.argmax(axis=1), len(columns))
        rows = [
            int(row)
            for group in range(len(columns))
            for row in np.argsort(-absolute[:, group], kind="stable")
            if first[row] == group
        ]
        self.features = [block.features[row] for row in rows]
        self.signed, self.absolute, self.top = signed[rows], absolute[rows], top[rows]
        self.starts = np.flatnonzero(np.diff(first[rows])) + 1


def _top_entries(absolute: NDArray[Any], n_top: int) -> NDArray[np.bool_]:
    """Return which entries are among the largest `n_top` of their column; NaN never is."""
    top: NDArray[np.bool_] = np.zeros(absolute.shape, dtype=bool)
    order = np.argsort(-absolute, axis=0, kind="stable")[:n_top]
    np.put_along_axis(top, order, values=True, axis=0)
    top &= ~np.isnan(absolute)
    return top


def _draw(
    modalities: list[str], groups: list[str], tops: list[_Top], kind: str, ax: Axes | None
) -> list[Axes]:
    n_rows = max(len(top.features) for top in tops)
    names_width = room(name for top in tops for name in top.features)
    width = max(1.5 + names_width + 0.26 * len(groups), LEGEND_WIDTH / len(tops))
    size = (width, 1.6 + 0.155 * n_rows)
    figure, axes = panels(len(tops), ax, panel=size, n_columns=len(tops), narrow="modality=")
    limit = symmetric_limit(top.signed for top in tops)
    largest = symmetric_limit(top.absolute for top in tops)
    for axis, name, top in zip(axes, literals(modalities), tops, strict=True):
        if kind == "dot":
            drawn = draw_dots(
                axis, top.signed, top.absolute, limit=limit, largest=largest, outlined=top.top
            )
        else:
            drawn = draw_cells(axis, top.signed, limit)
        name_ticks(axis, x=groups, y=top.features)
        for start in top.starts:
            axis.axhline(start - 0.5, color="#999999", linewidth=0.5)
        axis.set_title(name, fontsize=TITLE, fontweight="bold")
        if not top.features and kind == "dot":
            told: dict[str, Any] = {"ha": "center", "va": "center", "transform": axis.transAxes}
            axis.text(0.5, 0.5, "nothing stored", fontsize=TICK, **told)
    if not n_rows:
        return axes  # no values, so no scales
    add_colour_scale(figure, axes, drawn, "mean relevance")
    if kind == "dot" and ax is None:
        add_dot_scale(figure, largest, loc="outside lower center")
    elif kind == "dot":
        add_dot_scale(ax, largest, **above_title(axes[0]))
    return axes
