"""Draw ``docs/images/architecture.svg``: run ``python docs/figures/architecture.py``.

Colours are Okabe and Ito's, told apart by colour-blind readers; the ground is opaque, so that the
figure stands on dark pages too.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

RNA, PROTEIN, JOINT = "#0072B2", "#D55E00", "#009E73"
INK, SOFT, GROUND = "#222222", "#5A5A5A", "#FBFBFA"
TOP, MIDDLE, BOTTOM = 4.6, 2.75, 0.9
ROWS = (("RNA", RNA, TOP, "1"), ("protein", PROTEIN, BOTTOM, "2"))


def box(ax: Axes, x: float, y: float, text: str, colour: str, *, size: tuple[float, float]) -> None:
    """Draw a rounded box around its centre, pale inside."""
    width, height = size
    corner = x - width / 2, y - height / 2
    look = {"boxstyle": "round,pad=0,rounding_size=0.12", "linewidth": 1.6, "edgecolor": colour}
    ax.add_patch(FancyBboxPatch(corner, width, height, facecolor="white", zorder=3, **look))
    ax.add_patch(
        FancyBboxPatch(corner, width, height, facecolor=colour, alpha=0.13, zorder=4, **look)
    )
    ax.text(x, y, text, ha="center", va="center", fontsize=11, color=INK, zorder=5)


def arrow(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: str,
    *,
    style: str = "-|>",
    line: str = "-",
    bend: float = 0.0,
) -> None:
    """Draw an arrow between two points."""
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle=style,
            mutation_scale=13,
            linewidth=1.6,
            linestyle=line,
            color=colour,
            shrinkA=0,
            shrinkB=0,
            connectionstyle=f"arc3,rad={bend}",
            zorder=2,
        )
    )


def note(ax: Axes, x: float, y: float, text: str, *, ha: str = "center") -> None:
    """Write what is learned, or said, at a place."""
    ax.text(x, y, text, ha=ha, va="center", fontsize=9.5, color=SOFT, zorder=6, linespacing=1.3)


def draw(ax: Axes) -> None:
    """Draw all of it."""
    box(ax, 4.55, MIDDLE, "fused\ncode $z$", JOINT, size=(0.95, 0.8))
    for name, colour, y, number in ROWS:
        other = BOTTOM if y == TOP else TOP
        box(ax, 0.75, y, f"{name}\n$x_{number}$", colour, size=(1.2, 0.8))
        box(ax, 2.35, y, f"encoder\n$E_{number}$", colour, size=(1.2, 0.8))
        box(ax, 3.85, y, f"code\n$z_{number}$", colour, size=(0.8, 0.8))
        box(ax, 7.45, y, f"decoder\n$D_{number}$", colour, size=(1.2, 0.8))
        box(ax, 9.2, y, f"predicted\n{name}", colour, size=(1.3, 0.8))
        arrow(ax, (1.35, y), (1.75, y), colour)
        arrow(ax, (2.95, y), (3.45, y), colour)
        arrow(ax, (8.05, y), (8.55, y), colour)
        arrow(ax, (4.25, y), (6.85, y), colour)  # its own decoder
        side = 0.28 if y == TOP else -0.28
        arrow(ax, (4.25, y - side / 2), (6.85, other + side), colour, bend=0.0)
        arrow(ax, (4.0, y - 1.45 * side), (4.35, MIDDLE + 1.45 * side), colour)
        arrow(ax, (5.03, MIDDLE + 0.6 * side), (6.95, y - 1.45 * side), JOINT)
    box(ax, 7.45, MIDDLE, "head", JOINT, size=(1.2, 0.8))
    box(ax, 9.2, MIDDLE, "groups,\nlabels", JOINT, size=(1.3, 0.8))
    arrow(ax, (5.03, MIDDLE), (6.85, MIDDLE), JOINT)
    arrow(ax, (8.05, MIDDLE), (8.55, MIDDLE), JOINT)
    arrow(ax, (3.6, TOP - 0.42), (3.6, BOTTOM + 0.42), SOFT, style="<|-|>", line=(0, (4, 3)))
    note(ax, 3.48, MIDDLE, "contrastive:\ncodes of one cell\nagree", ha="right")
    note(ax, 5.55, TOP + 0.22, "reconstruction")
    note(ax, 5.55, BOTTOM - 0.22, "reconstruction")
    for y in (TOP - 0.78, BOTTOM + 0.78):
        note(ax, 5.02, y, "translation", ha="left")
    note(ax, 9.2, MIDDLE - 0.68, "cross-entropy, or\nclustering + entropy")
    note(ax, 7.45, TOP + 0.62, "+ batch, if given")
    note(ax, 4.75, BOTTOM - 0.75, "fused: weighted mean over the modalities that a cell has")
    ax.set(xlim=(0, 10), ylim=(-0.15, 5.5), aspect="equal")
    ax.axis("off")


def main() -> None:
    """Write the file; the same every time."""
    plt.rcParams.update({"svg.fonttype": "path", "svg.hashsalt": "unitednet_mu"})
    figure = plt.figure(figsize=(10, 5.65), facecolor=GROUND)
    draw(figure.add_axes((0, 0, 1, 1)))
    path = Path(__file__).parent.parent / "images" / "architecture.svg"
    figure.savefig(path, metadata={"Date": None}, facecolor=GROUND)


if __name__ == "__main__":
    mpl.use("svg")
    main()
