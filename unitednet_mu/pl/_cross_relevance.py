"""Cross-modal relevance: which features of one modality another is predicted from, in a group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from mudata import MuData

from .._keys import DEFAULT_STEM
from ..get._cross_relevance import cross_relevance as get_cross_relevance
from ..get._cross_relevance import read_cross_relevance, source_names
from ..get._slots import check_n_top, choose
from ._chord import draw_chords
from ._matrix import add_colour_scale, draw_cells
from ._style import (
    LABEL,
    TITLE,
    check_option,
    finish,
    literal,
    literals,
    name_ticks,
    panels,
    room,
    symmetric_limit,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def cross_relevance(
    mdata: MuData,
    *,
    source: str | Sequence[str],
    target: str,
    group: str | Sequence[str] | None = None,
    n_top: int = 30,
    kind: Literal["heatmap", "chord"] = "heatmap",
    key_added: str = DEFAULT_STEM,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> list[Axes] | Figure | None:
    """Heat map or chord diagram of the strongest cross-modal relations, one panel a group.

    Heat map: the strongest `n_top` pairs of a group name its rows (features of the source) and
    columns (features of the target), the strongest first; everything stored between them is drawn,
    and grey pairs are not stored. Chord diagram (Tang et al. 2023): the strongest `n_top` pairs are
    ribbons between features on a circle, as wide as their mean absolute relevance. Colour is the
    signed mean over the group's cells, the same scale in all panels.

    Parameters
    ----------
    mdata
        A MuData explained by `tl.explain` with `source` and `target`.
    source
        The modality, or modalities, that the prediction was made from.
    target
        The modality that was predicted.
    group
        The group or groups to draw; all by default.
    n_top
        Number of strongest pairs of each group, by mean absolute relevance.
    kind
        ``"heatmap"`` or ``"chord"``, which needs ``pip install pycirclize``.
    key_added
        The stem that the results were stored under.
    ax
        Axes to draw in, where one group is drawn; new ones by default. Polar for chords.
    show
        Whether to show the figure now, and return None; by default it is not shown.
    return_fig
        Whether to return the figure in place of axes.

    Returns
    -------
    list of matplotlib.axes.Axes
        One a group. The figure with `return_fig`, None with `show`.

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        This pair of modalities was not explained, a group or kind is unknown, `n_top` is not
        positive, or `ax` is given for several groups, or is not polar for chords.
    ImportError
        pycirclize is not installed, and `kind` is ``"chord"``.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False)
    >>> un.tl.explain(mdata, source="rna", target="adt", progress=False)
    >>> axes = un.pl.cross_relevance(mdata, source="rna", target="adt", group="group0", n_top=10)
    >>> len(axes)
    1
    """
    check_option("kind", kind, ("heatmap", "chord"))
    check_n_top(n_top)
    which: dict[str, Any] = {"source": source, "target": target, "key_added": key_added}
    groups = choose(read_cross_relevance(mdata, **which).groups, group, "group")
    names = " + ".join(source_names(source)), target
    if kind == "chord":
        strongest = [get_cross_relevance(mdata, group=g, n_top=n_top, **which) for g in groups]
        axes = draw_chords(groups, strongest, names, ax)
    else:
        pairs = [get_cross_relevance(mdata, group=name, **which) for name in groups]
        axes = _draw(groups, [_square(table, n_top) for table in pairs], names, ax)
    return finish(axes, show=show, return_fig=return_fig)


def _square(pairs: pd.DataFrame, n_top: int) -> pd.DataFrame:
    """Return signed values between the features of the strongest pairs, strongest first."""
    top = pairs[pairs["rank"] <= n_top]
    rows, columns = (
        list(top.groupby(name)["absolute"].sum().sort_values(ascending=False, kind="stable").index)
        for name in ("feature", "target_feature")
    )
    inside = pairs[pairs["feature"].isin(rows) & pairs["target_feature"].isin(columns)]
    table = inside.pivot(index="feature", columns="target_feature", values="value")
    return table.reindex(index=rows, columns=columns)


def _draw(
    groups: Sequence[str], tables: Sequence[pd.DataFrame], names: tuple[str, str], ax: Axes | None
) -> list[Axes]:
    n_rows, n_columns = (max(table.shape[axis] for table in tables) for axis in (0, 1))
    wide = room(str(name) for table in tables for name in table.index)
    high = room(str(name) for table in tables for name in table.columns)
    size = (1.4 + wide + 0.16 * max(n_columns, 6), 1.5 + high + 0.16 * max(n_rows, 6))
    figure, axes = panels(len(tables), ax, panel=size, n_columns=3, narrow="group=")
    limit = symmetric_limit(tables)
    source, target = literal(names[0]), literal(names[1])
    for axis, name, table in zip(axes, literals(groups), tables, strict=True):
        drawn = draw_cells(axis, table.to_numpy(dtype=float), limit)
        name_ticks(axis, x=list(table.columns), y=list(table.index))
        axis.set_title(name, fontsize=TITLE, fontweight="bold")
        axis.set_xlabel(target, fontsize=LABEL)
        axis.set_ylabel(source, fontsize=LABEL)
    label = f"mean relevance of {source} for {target}\n(grey: not stored)"
    add_colour_scale(figure, axes, drawn, label)
    return axes
