"""Chord diagram of the strongest pairs of one group: features on a circle, pairs as ribbons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from ._matrix import add_colour_scale
from ._style import (
    CATEGORIES,
    DIVERGING,
    LABEL,
    TICK,
    TITLE,
    literal,
    literals,
    panels,
    symmetric_limit,
)

if TYPE_CHECKING:
    from types import ModuleType

    from matplotlib.axes import Axes

_COLUMNS = ("feature", "target_feature")
Feature = tuple[int, str]  # 0 of the source, 1 of the target; name

#: Degrees between the features of the two modalities, and between two of one; of an arc at least.
_APART, _BETWEEN, _LEAST = 12.0, 1.0, 4.0
#: Longest name drawn, and points between circle and title that a character of it takes.
_LONGEST, _CHARACTER = 18, 4.0
#: Radii (the circle's is 100): of the features' arcs, and of their names.
_ARC, _NAME = (92.0, 97.0), 100.0
#: Colours of the modalities' arcs: neither is near an end of the ribbons' scale.
_SIDES = CATEGORIES[2], CATEGORIES[4]
#: Rounding must not lead a ribbon past the end of its arc.
_SLACK = 1 + 1e-9
_EDGE = "#777777"


def _library() -> ModuleType:
    """Return the library that draws on circles; its import leaves matplotlib's settings alone.

    Raises
    ------
    ImportError
        It is not installed; the message says how to install it.
    """
    import matplotlib as mpl

    try:
        with mpl.rc_context():  # importing it changes margins and more for the whole process
            import pycirclize
    except ImportError as error:
        raise ImportError(
            "kind='chord' draws with pycirclize, which is not installed. Run pip install "
            "pycirclize, or use kind='heatmap'."
        ) from error
    module: ModuleType = pycirclize
    return module


def draw_chords(
    groups: Sequence[str],
    tables: Sequence[pd.DataFrame],
    names: tuple[str, str],
    ax: Axes | None,
) -> list[Axes]:
    """Draw one circle a group.

    Parameters
    ----------
    groups
        Names of the groups.
    tables
        Pairs of each, as `get.cross_relevance` gives them: the strongest, which are drawn.
    names
        Names of source and target.
    ax
        Polar axes to draw in, where one group is drawn.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.projections.polar import PolarAxes

    circos = _library().Circos
    if ax is not None and not isinstance(ax, PolarAxes):
        raise ValueError(
            "ax: expected polar axes (plt.subplots(subplot_kw={'projection': 'polar'})) with "
            f"kind='chord', found {type(ax).__name__}."
        )
    figure, axes = panels(
        len(tables), ax, panel=(4.4, 4.4), n_columns=3, narrow="group=", projection="polar"
    )
    if ax is None:
        figure.set_layout_engine("constrained", h_pad=0.2, w_pad=0.2)
    drawn = [str(name) for t in tables for column in _COLUMNS for name in t[column]]
    pad = 6 + _CHARACTER * max(map(len, literals(drawn, _LONGEST)), default=0)
    limit = symmetric_limit([table["value"] for table in tables])
    scale = ScalarMappable(Normalize(-limit, limit), DIVERGING)
    for axis, group, table in zip(axes, literals(groups), tables, strict=True):
        if len(table):
            _circle(circos, table, scale).plotfig(ax=axis)
        else:
            axis.set_axis_off()
            axis.text(0, 0, "nothing stored", ha="center", va="center", fontsize=TICK)
        axis.set_title(group, fontsize=TITLE, fontweight="bold", pad=pad)
    source, target = literal(names[0]), literal(names[1])
    _name_sides(axes[0], (source, target))
    label = f"mean relevance of {source} for {target}"
    # names stand beside the circle, and only our own layout makes room for them
    add_colour_scale(figure, axes, scale, label, pad=0.02 if ax is None else 0.2)
    return axes


def _circle(circos: Any, table: pd.DataFrame, scale: Any) -> Any:
    """Lay out sources down the right and targets down the left, the strongest on top."""
    table = table.astype({"absolute": float, "value": float})
    strengths = [
        table.groupby(column)["absolute"].sum().sort_values(ascending=False, kind="stable")
        for column in _COLUMNS
    ]
    strengths[1] = strengths[1][::-1]  # clockwise: up the left
    features = [(side, str(name)) for side in (0, 1) for name in strengths[side].index]
    n_sources = len(strengths[0])
    spaces = [
        _APART if k in (n_sources - 1, len(features) - 1) else _BETWEEN
        for k in range(len(features))
    ]
    # every arc is wide enough for its name; where it is wider than its ribbons these lie in it
    room = 360 - sum(spaces)
    total = sum(float(part.sum()) for part in strengths)
    least = (total or 1.0) * min(_LEAST, room / len(features)) / room
    widths = {key: max(float(strengths[key[0]][key[1]]) * _SLACK, least) for key in features}
    circle = circos(
        {_key(*key): width for key, width in widths.items()},
        start=_APART / 2 - 360,  # so that a gap is on top
        end=_APART / 2,
        space=spaces,
    )
    free: dict[Feature, float] = {}
    shown = literals([name for _, name in features], _LONGEST)
    for (side, name), text in zip(features, shown, strict=True):
        sector = circle.get_sector(_key(side, name))
        sector.add_track(_ARC).axis(fc=_SIDES[side], ec="none")
        sector.text(text, r=_NAME, size=TICK, orientation="vertical")
        free[side, name] = (widths[side, name] - float(strengths[side][name])) / 2
    _ribbons(circle, table, features, free, scale)
    return circle


def _ribbons(
    circle: Any,
    table: pd.DataFrame,
    features: list[Feature],
    free: dict[Feature, float],
    scale: Any,
) -> None:
    """Lead a ribbon from each source to its targets; `free` is where the next begins in an arc."""
    place = {key: position for position, key in enumerate(features)}
    columns = [*_COLUMNS, "absolute", "value"]
    pairs: list[tuple[tuple[Feature, Feature], float, float]] = [
        (((0, str(feature)), (1, str(target))), float(absolute), float(value))
        for feature, target, absolute, value in table[columns].itertuples(index=False)
    ]
    ends: dict[tuple[Feature, Feature], list[tuple[float, float]]] = {}
    # in every arc the ribbons leave in the order that lets fewest of them cross
    for own, other in ((0, 1), (1, 0)):
        for pair, width, _ in sorted(pairs, key=lambda pair: -place[pair[0][other]]):
            start = free[pair[own]]
            free[pair[own]] = start + width
            ends.setdefault(pair, []).append((start, start + width))
    for pair, _, value in sorted(pairs, key=lambda pair: pair[1]):  # the strongest on top
        (source, target), (at_source, at_target) = pair, ends[pair]
        circle.link(
            (_key(*source), *at_source),
            (_key(*target), *at_target),
            color=scale.to_rgba(value),
            alpha=1.0,
            ec=_EDGE,
            lw=0.3,
            allow_twist=False,
        )


def _key(side: int, name: str) -> str:
    return f"{side}:{name}"  # one name may stand in both modalities


def _name_sides(ax: Axes, names: tuple[str, str]) -> None:
    """Say which arcs are which modality's."""
    from matplotlib.patches import Patch

    ax.legend(
        handles=[
            Patch(color=colour, label=name) for colour, name in zip(_SIDES, names, strict=True)
        ],
        loc="lower left",
        bbox_to_anchor=(-0.25, -0.25),
        fontsize=LABEL,
        frameon=False,
    )
