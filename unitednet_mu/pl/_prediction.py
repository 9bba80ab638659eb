"""Predicted against measured features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from numpy.typing import NDArray

from .._correlation import pearson_within_groups
from .._keys import DEFAULT_STEM
from ..get._cross_relevance import source_names
from ..get._slots import check_n_top
from ._columns import text_column
from ._pairs import (
    choose_features,
    find_measured,
    find_prediction,
    intervals,
    paired_values,
    read_of_prediction,
    warn_of_another_model,
)
from ._style import (
    CATEGORIES,
    LABEL,
    MISSING,
    TICK,
    category_colours,
    finish,
    literal,
    literals,
    panels,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D


N_COLUMNS = 3
_GUIDE = "#777777"


def prediction(
    mdata: MuData,
    *,
    source: str | Sequence[str],
    target: str,
    features: str | Sequence[str] | None = None,
    measured: str | AnnData | None = None,
    layer: str | None = None,
    groupby: str | None = None,
    n_top: int = 6,
    key_added: str = DEFAULT_STEM,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> list[Axes] | Figure | None:
    """Scatter of predicted against measured values, one panel a feature, with Pearson's r.

    Cells that have both are drawn, matched by name; whether the model saw them in training is for
    the caller to choose; of a modality predicted from itself, too, the title says that the values
    were its input. With `groupby`, r within groups (`metrics.pearson_within_groups`: after
    group means are taken off both sides) stands beside the overall one. The dashed line is
    equality; nine of ten measurements are expected between the dotted ones (`.var["error_q05"]`,
    `.var["error_q95"]`: see `tl.predict_modality`; not drawn beside another layer than the model
    reads, of other units).

    Parameters
    ----------
    mdata
        A MuData with a prediction by `tl.predict_modality`.
    source
        The modality, or modalities, that the prediction was made from.
    target
        The modality that was predicted.
    features
        Plain names of the features to draw; by default the `n_top` with the highest expected
        accuracy (`.var["expected_r"]`, from held-out cells; without it, those whose prediction
        varies most).
    measured
        Where the measured values are: the name of a modality, or an AnnData; `mdata[target]` by
        default.
    layer
        Layer of the measured values; by default the one that the model reads of `target`, or `X`
        with `measured`.
    groupby
        `.obs` column to colour cells by.
    n_top
        Number of features to draw where `features` does not say.
    key_added
        The stem that the results were stored under.
    ax
        Axes to draw in, where one feature is drawn; new ones by default.
    show
        Whether to show the figure now, and return None; by default it is not shown.
    return_fig
        Whether to return the figure in place of axes.

    Returns
    -------
    list of matplotlib.axes.Axes
        One a feature. The figure with `return_fig`, None with `show`.

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        There is no such prediction, nothing measured to compare with, a feature, layer or column is
        unknown, no cell has both, or `ax` is given for several features.

    Warns
    -----
    UserWarning
        The prediction was made by a model that has been replaced since.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False)
    >>> un.tl.predict_modality(mdata, source="rna", target="adt")
    >>> axes = un.pl.prediction(mdata, source="rna", target="adt", groupby="cell_type", n_top=3)
    >>> len(axes)
    3
    """
    check_n_top(n_top)
    predicted = find_prediction(mdata, source, target, key_added)
    warn_of_another_model(mdata, predicted, key_added)
    modelled, use_rep = read_of_prediction(predicted)
    here = layer is None and measured is None
    truth = find_measured(
        mdata, target if measured is None else measured, use_rep if here else None
    )
    layer = modelled if here else layer
    chosen = choose_features(predicted, truth, features, n_top)
    x, y = paired_values(predicted, truth, chosen, layer)
    groups = None if groupby is None else text_column(mdata, groupby, "groupby").reindex(x.index)
    colours = (
        {} if groups is None else category_colours(mdata, str(groupby), list(groups.cat.categories))
    )
    figure, axes = panels(
        len(chosen),
        ax,
        panel=(2.0, 2.25),
        n_columns=N_COLUMNS,
        narrow="features=",
        layout="compressed",
    )
    bounds = intervals(predicted) if layer == modelled else {}
    for axis, feature in zip(axes, chosen, strict=True):
        _draw(axis, feature, x[feature].to_numpy(), y[feature].to_numpy(), groups, colours)
        if here and target in source_names(source):
            axis.set_title(f"{axis.get_title()}\n(with its own input)", fontsize=LABEL)
        for error in bounds.get(feature, ()):  # measured = predicted + error
            axis.axline((0, -error), slope=1, color=_GUIDE, linestyle=":", linewidth=0.8, zorder=0)
    for axis in axes[-N_COLUMNS:]:
        axis.set_xlabel("measured", fontsize=LABEL)
    for axis in axes[::N_COLUMNS]:
        axis.set_ylabel(f"predicted from {' + '.join(source_names(source))}", fontsize=LABEL)
    if groups is not None:
        handles = _legend(groups, colours)
        if ax is None:
            _legend_beside(figure, handles)
        else:
            place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
            ax.legend(handles=handles, fontsize=TICK, frameon=False, **place)
    return finish(axes, show=show, return_fig=return_fig)


def _draw(
    ax: Axes,
    feature: str,
    x: NDArray[Any],
    y: NDArray[Any],
    groups: pd.Series | None,
    colours: dict[str, str],
) -> None:
    both = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    both = np.random.default_rng(0).permutation(both)  # so that no group covers the others
    x, y = x[both], y[both]
    names = None if groups is None else groups.to_numpy()[both]
    shades = CATEGORIES[0] if names is None else [colours.get(name, MISSING) for name in names]
    area = float(np.clip(4000 / max(len(x), 1), 2, 14))
    ax.scatter(x, y, s=area, c=shades, alpha=0.7, linewidths=0, rasterized=True)
    low, high = _range(x, y)
    ax.plot([low, high], [low, high], color=_GUIDE, linestyle="--", linewidth=0.8, zorder=0)
    ax.set(xlim=(low, high), ylim=(low, high))
    ax.set_aspect("equal")
    ax.locator_params(nbins=4)
    ax.tick_params(labelsize=TICK)
    ax.spines[["top", "right"]].set_visible(False)
    r = _r_text(_pearson(x, y), None if names is None else _within(x, y, names))
    ax.set_title(f"{literal(feature, 24)}\n{r}", fontsize=LABEL)


def _range(x: NDArray[Any], y: NDArray[Any]) -> tuple[float, float]:
    values = np.concatenate([x, y])
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def _pearson(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Return Pearson's r, NaN where it is not defined."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x.astype(float), y.astype(float))[0, 1])


def _within(x: NDArray[Any], y: NDArray[Any], groups: NDArray[Any]) -> float:
    """Return r after group means are taken off, NaN where it is not defined."""
    if int(pd.notna(groups).sum()) < 2:
        return float("nan")
    return float(pearson_within_groups(x[:, None], y[:, None], groups)[0])


def _r_text(overall: float, within: float | None) -> str:
    texts_ = [f"r = {overall:z.2f}" if np.isfinite(overall) else "r undefined"]
    if within is not None and np.isfinite(within):
        texts_.append(f"within {within:z.2f}")
    return ", ".join(texts_)


def _legend(groups: pd.Series, colours: dict[str, str]) -> list[Line2D]:
    from matplotlib.lines import Line2D

    shown = [name for name in groups.cat.categories if (groups == name).any()]
    look: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 5}
    return [
        Line2D([], [], color=colours[name], label=label, **look)
        for name, label in zip(shown, literals(shown), strict=True)
    ]


def _legend_beside(figure: Figure, handles: list[Line2D]) -> None:
    width, height = figure.get_size_inches()
    n_columns = math.ceil(len(handles) * 0.17 / height)
    widest = max((len(str(handle.get_label())) for handle in handles), default=0)
    figure.set_size_inches(width + n_columns * (0.4 + 0.06 * widest), height)
    place: dict[str, Any] = {"loc": "outside right center", "ncols": n_columns}
    figure.legend(handles=handles, fontsize=TICK, frameon=False, **place)
