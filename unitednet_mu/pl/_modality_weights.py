"""Learned weights of the modalities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mudata import MuData

from .._keys import DEFAULT_STEM
from ..get import modality_weights as get_modality_weights
from ._style import LABEL, TICK, default_colours, literals, one_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def modality_weights(
    mdata: MuData, *, key_added: str = DEFAULT_STEM, ax: Axes | None = None
) -> Axes:
    """Bars of the learned weight of every modality; a dashed line marks equal shares.

    Parameters
    ----------
    mdata
        A MuData fitted by `tl.fit`.
    key_added
        The stem that the results were stored under.
    ax
        Axes to draw in; new ones by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes with the bars.

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        No weights are stored.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False)
    >>> un.pl.modality_weights(mdata).get_xlabel()
    'learned weight in the embedding'
    """
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
