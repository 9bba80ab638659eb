"""How well the features that relevance names predict, against random and variable ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from .._deletion import NAMED, RANDOM, VARIABLE
from ..get._slots import choose
from ._style import CATEGORIES, LABEL, TICK, TITLE, finish, literal, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Name in the legend, colour, line and marker of each set of features.
_SETS = {
    NAMED: ("largest relevance", CATEGORIES[0], "-", "o"),
    VARIABLE: ("most variable", CATEGORIES[1], "--", "s"),
    RANDOM: ("random", "#555555", ":", "^"),
}
_N_COLUMNS = 4
#: Where each set stands beside the number of features, where there is only one.
_BESIDE = (0.94, 1.0, 1 / 0.94)
#: What is drawn as significant.
_SMALL = 0.05


def deletion(
    table: pd.DataFrame,
    *,
    group: str | Sequence[str] | None = None,
    target_feature: str | Sequence[str] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> list[Axes] | Figure | None:
    """Held-out score against the number of features kept, one panel a group or target feature.

    Lines are means over repeats, shades the 5 % to 95 % quantiles (bars where there is only one
    number of features). A filled marker on the line of
    the largest relevance: at most one in twenty random sets does as well (``p`` <= 0.05).

    Parameters
    ----------
    table
        What `metrics.deletion_test` returns.
    group
        The group or groups to draw; all by default.
    target_feature
        Of cross-modal relevance: the target feature or features to draw; all by default.
    ax
        Axes to draw in, where one panel is drawn; new ones by default.
    show
        Whether to show the figure now, and return None; by default it is not shown.
    return_fig
        Whether to return the figure in place of axes.

    Returns
    -------
    list of matplotlib.axes.Axes
        One a group; of cross-modal relevance one a group and target feature. The figure
        with `return_fig`, None with `show`.

    Raises
    ------
    ValueError
        `table` is not such a table, a group or feature is unknown or `ax` is given for several
        panels.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=160, n_groups=2, n_batches=4)
    >>> last = (mdata.obs["batch"] == "batch3").to_numpy()
    >>> train, test = mdata[~last].copy(), mdata[last].copy()
    >>> un.tl.fit(train, labels_key="cell_type", training={"max_epochs": 2}, progress=False)
    >>> un.tl.explain(train, progress=False)
    >>> table = un.metrics.deletion_test(train, held_out=test, n_top=[5, 10], n_repeats=5)
    >>> axes = un.pl.deletion(table)
    """
    expected = ["group", "n_top", "features", "score", "low", "high", "p"]
    missing = [column for column in expected if column not in table]
    if missing:
        raise ValueError(
            f"table: expected what unitednet_mu.metrics.deletion_test returns, with columns "
            f"{expected}, found none called {missing[0]!r}."
        )
    if not len(table):
        raise ValueError("table: expected rows to draw, found none.")
    by = ["group"]
    kept = table[table["group"].astype(str).isin(choose(_names(table, "group"), group, "group"))]
    if "target_feature" in table:
        by.append("target_feature")
        wanted = choose(_names(table, "target_feature"), target_feature, "target_feature")
        kept = kept[kept["target_feature"].astype(str).isin(wanted)]
    elif target_feature is not None:
        raise ValueError("target_feature: expected None, as the table is of groups.")
    parts = list(kept.groupby(by, sort=False))
    figure, axes = panels(
        len(parts),
        ax,
        panel=(2.3 if len(parts) > 1 else 3.4, 2.0 if len(parts) > 1 else 2.4),
        n_columns=_N_COLUMNS,
        narrow="group= and target_feature=" if len(by) > 1 else "group=",
    )
    label = "held-out R²" if len(by) > 1 else "held-out AUROC"
    for position, (axis, (names, rows)) in enumerate(zip(axes, parts, strict=True)):
        _draw(axis, rows)
        axis.set_title(
            ", ".join(literal(str(name), 24) for name in reversed(names)), fontsize=TITLE
        )
        axis.set_xlabel("features kept", fontsize=LABEL)
        if position % _N_COLUMNS == 0:
            axis.set_ylabel(label, fontsize=LABEL)
    handles, labels = axes[0].get_legend_handles_labels()
    handles += axes[0].plot([], [], "o", color=_SETS[NAMED][1], markersize=4)
    labels.append(f"p ≤ {_SMALL}")
    if ax is None:
        figure.legend(
            handles,
            labels,
            loc="outside upper center",
            ncols=len(labels) if len(parts) > 1 else 2,
            fontsize=LABEL,
            frameon=False,
        )
    else:
        ax.legend(handles, labels, fontsize=LABEL, frameon=False)
    return finish(axes, show=show, return_fig=return_fig)


def _names(table: pd.DataFrame, column: str) -> list[str]:
    return [str(name) for name in table[column].unique()]


def _draw(ax: Axes, rows: pd.DataFrame) -> None:
    sizes = sorted(rows["n_top"].unique())
    for (name, (label, colour, line, marker)), beside in zip(_SETS.items(), _BESIDE, strict=True):
        one = rows[rows["features"] == name].sort_values("n_top")
        ax.plot(one["n_top"], one["score"], color=colour, linestyle=line, label=label, zorder=2)
        if len(sizes) == 1:
            one = one.assign(n_top=one["n_top"] * beside)
            ax.vlines(one["n_top"], one["low"], one["high"], color=colour, alpha=0.6, zorder=1)
        else:
            shade: dict[str, Any] = {"color": colour, "alpha": 0.15, "linewidth": 0, "zorder": 1}
            ax.fill_between(one["n_top"], one["low"], one["high"], **shade)
        better = (one["p"] <= _SMALL).to_numpy()
        for filled, chosen in ((True, better), (False, ~better)):
            ax.scatter(
                one["n_top"][chosen],
                one["score"][chosen],
                s=16,
                marker=marker,
                facecolors=colour if filled else "#FFFFFF",
                edgecolors=colour,
                linewidths=1.0,
                zorder=3,
            )
    ax.set_xscale("log")
    if len(sizes) == 1:
        ax.set_xlim(sizes[0] * 0.7, sizes[0] / 0.7)
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.minorticks_off()
    ax.tick_params(labelsize=TICK)
    ax.locator_params(axis="y", nbins=5)
    ax.spines[["top", "right"]].set_visible(False)
