"""The plots as pictures, on slots written by hand, against pictures that were looked at.

``python tests/test_images.py`` draws the pictures anew: look at every one before it is committed.
matplotlib's own comparison is used: pytest-mpl would be another dependency for the same arithmetic.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")

import matplotlib as mpl
import matplotlib.pyplot as plt
import mudata as md
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images
from test_get import stored_mdata

from unitednet_mu import pl

FOLDER = Path(__file__).parent / "images"
#: Root mean square of the difference, of 255: what renderers of text differ by stays far below,
#: and what a missing label changes is far above.
TOLERANCE = 6.0
PAIR: dict[str, Any] = {"source": "rna", "target": "adt"}


def several_models() -> md.MuData:
    """Relevance of three models: spread, and how often each feature is among the strongest."""
    mdata = stored_mdata()
    relevance = mdata.uns["unitednet"]["relevance"]
    relevance["params"].update(
        rank_correlation=np.array([0.9, 0.4, np.nan]), n_models=3, n_top_stable=2
    )
    for block in relevance["modalities"].values():
        shape = block["signed"].shape
        block["signed_sd"] = np.resize(np.float32([0.2, 0.5, 0.1]), shape)
        block["top_frequency"] = np.resize(np.float32([1.0, 0.33, 0.67, 0.0]), shape)
    return mdata


def predicted() -> md.MuData:
    """Forty cells of two types, three proteins with predictions of different quality."""
    rng = np.random.default_rng(3)
    cells = pd.DataFrame(index=[f"c{i}" for i in range(40)])
    truth = rng.normal(size=(40, 3)).astype(np.float32)
    values = truth * np.float32([0.9, 0.5, 0.1]) + 0.3 * rng.normal(size=(40, 3))
    var = pd.DataFrame({"feature": ["CD3", "CD19", "CD14"], "expected_r": [0.9, 0.8, 0.3]})
    var["error_q05"], var["error_q95"] = -0.5, 0.5
    var.index = [f"adt_from_rna:{name}" for name in var["feature"]]
    made = AnnData(values.astype(np.float32), obs=cells, var=var)
    mark = {"source": np.array(["rna"]), "target": "adt", "key": "unitednet"}
    made.uns["unitednet_prediction"] = mark
    measured = AnnData(truth, obs=cells, var=pd.DataFrame(index=list(var["feature"])))
    rna = AnnData(np.ones((40, 2), np.float32), obs=cells, var=pd.DataFrame(index=["g", "h"]))
    mdata = md.MuData({"rna": rna, "adt": measured, "adt_from_rna": made})
    mdata.obs["type"] = pd.Categorical(np.where(np.arange(40) < 25, "B", "T"))
    return mdata


def labelled() -> md.MuData:
    """Cells with labels beside those found."""
    rng = np.random.default_rng(5)
    names = np.array(["B", "CD4 T", "CD8 T", "NK"])
    true = rng.integers(4, size=200)
    found = np.where(rng.random(200) < 0.8, true, rng.integers(4, size=200))
    mdata = md.MuData({"rna": AnnData(np.ones((200, 2), np.float32))})
    mdata.obs["type"] = pd.Categorical(names[true])
    mdata.obs["unitednet_group"] = pd.Categorical(names[found])
    return mdata


def deletion_table() -> pd.DataFrame:
    rows = [
        {"group": group, "n_top": size, "features": features, "score": score}
        for group, base in (("B", 0.5), ("CD4/CD8", 0.4))
        for size in (1, 5, 20)
        for features, score in (
            ("relevance", base + 0.1 * np.log2(1 + size)),
            ("random", base),
            ("variable", base + 0.05 * np.log2(1 + size)),
        )
    ]
    table = pd.DataFrame(rows)
    table["low"], table["high"] = table["score"] - 0.08, table["score"] + 0.08
    strong = (table["n_top"] > 1) & (table["features"] == "relevance")
    table["p"] = np.where(strong, 0.04, np.where(table["features"] == "relevance", 0.5, np.nan))
    return table


FIGURES: dict[str, Callable[..., Any]] = {
    "history": lambda **more: pl.history(stored_mdata(), **more),
    "modality_weights": lambda **more: pl.modality_weights(stored_mdata(), **more),
    "modality_effects": lambda **more: pl.modality_weights(stored_mdata(), kind="effects", **more),
    "confusion": lambda **more: pl.confusion(labelled(), groupby="type", **more),
    "prediction": lambda **more: pl.prediction(predicted(), groupby="type", **PAIR, **more),
    "transfer": lambda **more: pl.transfer(stored_mdata(), **more),
    "relevance_dot": lambda **more: pl.relevance(stored_mdata(), **more),
    "relevance_heatmap": lambda **more: pl.relevance(stored_mdata(), kind="heatmap", **more),
    "cross_relevance": lambda **more: pl.cross_relevance(stored_mdata(), **PAIR, **more),
    "cross_relevance_chord": lambda **more: pl.cross_relevance(
        stored_mdata(), kind="chord", **PAIR, **more
    ),
    "deletion": lambda **more: pl.deletion(deletion_table(), **more),
    "stability": lambda **more: pl.stability(several_models(), n_top=4, **more),
}


def unchanged(_: Any) -> None:
    """A picture as it is."""


def save(name: str, path: Path, change: Callable[[Any], None] = unchanged) -> None:
    """Draw with matplotlib's defaults, whatever was set before, and small."""
    with mpl.rc_context(mpl.rcParamsDefault | {"backend": mpl.get_backend()}):
        drawn = FIGURES[name]()
        change(drawn)
        axes = drawn if hasattr(drawn, "get_figure") else drawn[0]
        figure = axes.get_figure(root=True)
        assert isinstance(figure, Figure)
        figure.savefig(path, dpi=60, metadata={"Software": None})
        plt.close(figure)


@pytest.mark.filterwarnings("ignore:From 0.4 .update:FutureWarning")
@pytest.mark.parametrize("name", FIGURES)
def test_figure_looks_as_it_did(name: str, tmp_path: Path) -> None:
    save(name, tmp_path / f"{name}.png")
    difference = compare_images(
        str(FOLDER / f"{name}.png"), str(tmp_path / f"{name}.png"), tol=TOLERANCE
    )
    assert difference is None, difference


def test_the_comparison_sees_what_matters(tmp_path: Path) -> None:
    """Another title is a difference, and so are other colours."""
    for change in (
        lambda axes: axes.set_xlabel("something else"),
        lambda axes: axes.patches[0].set_color("#00FF00"),
    ):
        save("modality_weights", tmp_path / "other.png", change)
        other = str(tmp_path / "other.png")
        assert compare_images(str(FOLDER / "modality_weights.png"), other, tol=TOLERANCE)


def test_every_plot_has_a_picture() -> None:
    assert {path.stem for path in FOLDER.glob("*.png")} == set(FIGURES)
    drawn = {name.split("_")[0] for name in FIGURES}
    assert {name.split("_")[0] for name in pl.__all__} <= drawn


if __name__ == "__main__":
    for one in FIGURES:
        save(one, FOLDER / f"{one}.png")
