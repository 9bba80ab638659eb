"""How far several models agree on the strongest features, or pairs of them, of every group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from mudata import MuData

from .._keys import DEFAULT_STEM
from ..get import cross_relevance as get_cross_relevance
from ..get import relevance as get_relevance
from ..get._cross_relevance import stored_pair
from ..get._slots import check_n_top, choose, command, stored, texts
from ._matrix import add_colour_scale
from ._style import LABEL, SEQUENTIAL, TICK, TITLE, finish, literal, literals, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

N_COLUMNS = 4
#: Area in square points of a dot.
DOT = 34.0
#: Height of a panel in rows that the colour scale needs.
LEAST_ROWS = 8
_LINE = "#777777"


def stability(
    mdata: MuData,
    *,
    source: str | Sequence[str] | None = None,
    target: str | None = None,
    group: str | Sequence[str] | None = None,
    modality: str | Sequence[str] | None = None,
    n_top: int = 15,
    key_added: str = DEFAULT_STEM,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> list[Axes] | Figure | None:
    """Relevance of every group's strongest features with its spread over models, one panel a group.

    Rows are the features, or with `source` and `target` the pairs of features, with the largest
    mean absolute relevance, the strongest on top. A dot is the mean over models of the signed
    relevance, the bar one standard deviation over models to either side. The darker the dot, the
    larger the share of models in which the feature is among the group's strongest. The title gives
    the mean rank correlation between models, over all features or pairs.

    Parameters
    ----------
    mdata
        A MuData explained by `tl.explain` with several models.
    source, target
        Draw cross-modal relevance from `source` to `target`; by default that for groups.
    group
        The group or groups to draw; all by default.
    modality
        Of relevance for groups: the modality or modalities to take features from; all by default.
    n_top
        Number of features or pairs to draw of each group.
    key_added
        The stem that the results were stored under.
    ax
        Axes to draw in, where one group is drawn; new ones by default.
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
        No relevance is stored, or of one model only; a group or modality is unknown, `n_top` is not
        positive, or `ax` is given for several groups; only one of `source` and `target`, or
        `modality` with them.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False)
    >>> un.tl.explain(mdata, n_repeats=2, progress=False)
    >>> axes = un.pl.stability(mdata, n_top=10)
    >>> len(axes)  # one a group
    2

    >>> un.tl.explain(mdata, source="rna", target="adt", n_repeats=2, progress=False)
    >>> axes = un.pl.stability(mdata, source="rna", target="adt")
    """
    check_n_top(n_top)
    if (source is None) != (target is None) or (source is not None and modality is not None):
        raise ValueError(
            "expected both source and target and no modality, or neither of them, found "
            f"source={source!r}, target={target!r}, modality={modality!r}."
        )
    which = () if source is None else (f"source={source!r}", f"target={target!r}")
    run = command("explain", "mdata", *which, "model=[...]", key_added=key_added)
    if source is None or target is None:
        found = stored(mdata, "relevance", key_added=key_added, run=run)
    else:
        found = stored_pair(mdata, source, target, key_added)
    groups = texts(found["groups"])
    params = found["params"]
    if "rank_correlation" not in params:
        raise ValueError(
            f"relevance stored under {key_added!r} is of one model, expected of several; run {run} "
            "with two models or more."
        )
    names = choose(groups, group, "group")
    asked: dict[str, Any] = {"group": names, "n_top": n_top, "key_added": key_added}
    if source is None or target is None:
        table = get_relevance(mdata, modality=modality, **asked)
        labels = _labels(table, several=len(found["modalities"]) > 1)
    else:
        table = get_cross_relevance(mdata, source=source, target=target, **asked)
        labels = _pair_labels(table)
    agreement = dict(zip(groups, np.atleast_1d(params["rank_correlation"]), strict=True))
    n_rows = max(int(table["group"].value_counts().max()) if len(table) else 0, LEAST_ROWS)
    size = (2.0 + 0.05 * max(map(len, labels), default=0), 0.9 + 0.17 * n_rows)
    figure, axes = panels(len(names), ax, panel=size, n_columns=N_COLUMNS, narrow="group=")
    for axis, name, title in zip(axes, names, literals(names), strict=True):
        rows = np.flatnonzero(table["group"] == name)
        drawn = _draw(axis, table.iloc[rows], [labels[row] for row in rows])
        axis.set_title(f"{title}\n{_agreement(agreement[name])}", fontsize=TITLE, fontweight="bold")
    for axis in axes[-N_COLUMNS:]:
        axis.set_xlabel(f"mean relevance ± sd, {int(params['n_models'])} models", fontsize=LABEL)
    add_colour_scale(figure, axes, drawn, f"frequency in the top {int(params['n_top_stable'])}")
    return finish(axes, show=show, return_fig=return_fig)


def _labels(table: pd.DataFrame, *, several: bool) -> list[str]:
    """Return the features' names as text to draw, with the modality where there are several."""
    names = literals(list(table["feature"]), 24)
    if not several:
        return names
    return [f"{name} ({literal(m, 12)})" for name, m in zip(names, table["modality"], strict=True)]


def _pair_labels(table: pd.DataFrame) -> list[str]:
    sides = (literals(list(table[name]), 18) for name in ("feature", "target_feature"))
    return [f"{feature} → {target}" for feature, target in zip(*sides, strict=True)]


def _agreement(correlation: float) -> str:
    if np.isnan(correlation):
        return "rank correlation n/a"
    return f"rank correlation {correlation:z.2f}"


def _draw(ax: Axes, rows: pd.DataFrame, labels: list[str]) -> ScalarMappable:
    places = np.arange(len(rows))
    ax.axvline(0, color=_LINE, linewidth=0.8, zorder=0)
    ax.errorbar(
        rows["value"],
        places,
        xerr=rows["sd"],
        fmt="none",
        ecolor=_LINE,
        elinewidth=1.0,
        capsize=2.0,
        zorder=1,
    )
    drawn = ax.scatter(
        rows["value"],
        places,
        s=DOT,
        c=rows["stability"],
        cmap=SEQUENTIAL,
        vmin=0,
        vmax=1,
        edgecolors="#000000",
        linewidths=0.6,
        zorder=2,
    )
    if not len(rows):
        ax.text(0, 0, "no cell explained", ha="center", va="center", fontsize=TICK)
        ax.set_xticks([])
    ax.set_yticks(places, labels, fontsize=TICK)
    ax.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    ax.locator_params(axis="x", nbins=4)
    ax.tick_params(labelsize=TICK)
    ax.spines[["top", "right"]].set_visible(False)
    return drawn
