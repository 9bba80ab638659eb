"""Chord diagrams of cross-modal relevance: ribbons as wide as pairs are strong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import mudata as md
import numpy as np
import pandas as pd
import pycirclize
import pytest
from matplotlib import colormaps
from test_get import GROUPS, stored_mdata
from test_pl import check_layout

from unitednet_mu import get, pl
from unitednet_mu.pl import _chord

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4 .update:FutureWarning")
PAIR: dict[str, Any] = {"source": "rna", "target": "adt"}


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def mdata() -> md.MuData:
    return stored_mdata()


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any, Any]]:
    """What is led from where to where, in which colour."""
    seen: list[tuple[Any, Any, Any]] = []
    right = pycirclize.Circos.link

    def link(self: Any, one: Any, other: Any, **settings: Any) -> None:
        seen.append((one, other, settings["color"]))
        right(self, one, other, **settings)

    monkeypatch.setattr(pycirclize.Circos, "link", link)
    return seen


def test_ribbons_are_the_strongest_pairs(mdata: md.MuData, links: list[Any]) -> None:
    axes = pl.cross_relevance(mdata, kind="chord", n_top=2, **PAIR)
    assert [ax.get_title() for ax in axes] == GROUPS
    tables = [get.cross_relevance(mdata, group=g, n_top=2, **PAIR) for g in GROUPS]
    expected, drawn = {}, {}
    for table in tables:
        for row in table.itertuples():
            # one scale in all panels, up to the largest value of all
            colour = colormaps["RdBu_r"](0.5 + row.value / 4.0 / 2)
            expected[row.feature, row.target_feature, row.absolute] = colour
    for (source, *at_source), (target, *at_target), colour in links:
        width = at_source[1] - at_source[0]
        assert width == pytest.approx(at_target[1] - at_target[0])
        assert (source[:2], target[:2]) == ("0:", "1:")
        drawn[source[2:], target[2:], round(width, 6)] = colour
    assert drawn.keys() == expected.keys()
    for key, colour in expected.items():
        np.testing.assert_allclose(drawn[key], colour, atol=0.01)
    names = [sorted(text.get_text() for text in ax.texts) for ax in axes]
    assert names == [["LYZ", "MS4A1", "cd4.1", "cd56.2"], ["NKG7", "cd56.2"], ["nothing stored"]]
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["rna", "adt"]
    label = axes[0].get_figure().axes[-1].get_ylabel()
    assert label == "mean relevance of rna for adt"
    check_layout(axes[0])


def a_table(rng: np.random.Generator, n_pairs: int) -> pd.DataFrame:
    """Pairs among features of the same names on both sides, as a table of relevance."""
    which = rng.choice(400, n_pairs, replace=False)
    value = rng.normal(size=n_pairs).astype(np.float32)
    return pd.DataFrame(
        {
            "feature": [f"gene {k}$" for k in which // 20],
            "target_feature": [f"gene {k}$" for k in which % 20],
            "value": value,
            "absolute": np.abs(value) * np.float32(1.5),
        }
    ).sort_values("absolute", ascending=False)


@pytest.mark.parametrize("n_pairs", [1, 30, 200])
def test_ribbons_of_a_feature_stand_side_by_side(
    rng: np.random.Generator, links: list[Any], n_pairs: int
) -> None:
    table = a_table(rng, n_pairs)
    (ax,) = _chord.draw_chords(["a"], [table], ("rna", "adt"), None)
    assert len(links) == n_pairs
    ends: dict[str, list[tuple[float, float]]] = {}
    for one, other, _ in links:
        for name, start, stop in (one, other):
            ends.setdefault(name, []).append((start, stop))
    assert len(ends) == len(ax.texts) == table[["feature", "target_feature"]].nunique().sum()
    for name, parts in ends.items():
        ordered = np.sort(np.array(parts), axis=0)
        np.testing.assert_allclose(ordered[1:, 0], ordered[:-1, 1], atol=1e-6)
        column = "feature" if name[0] == "0" else "target_feature"
        total = table.loc[table[column] == name[2:], "absolute"].sum()
        assert (ordered[:, 1] - ordered[:, 0]).sum() == pytest.approx(total, rel=1e-5)
    check_layout(ax)


def test_values_that_are_all_zero_can_be_drawn(rng: np.random.Generator) -> None:
    table = a_table(rng, 3).assign(value=0.0, absolute=0.0)
    (ax,) = _chord.draw_chords(["a"], [table], ("rna", "adt"), None)
    ax.get_figure().draw_without_rendering()


def test_axes_of_the_user(mdata: md.MuData) -> None:
    _, (polar, other) = plt.subplots(1, 2, subplot_kw={"projection": "polar"})
    drawn = pl.cross_relevance(mdata, kind="chord", group=GROUPS[1], ax=polar, **PAIR)
    assert drawn == [polar]
    assert len(plt.get_fignums()) == 1
    assert not other.texts
    with pytest.raises(ValueError, match=r"ax: expected polar axes.*kind='chord', found Axes"):
        pl.cross_relevance(mdata, kind="chord", group=GROUPS[1], ax=plt.subplots()[1], **PAIR)
    with pytest.raises(ValueError, match=r"ax: expected None for 3 panels.*group="):
        pl.cross_relevance(mdata, kind="chord", ax=polar, **PAIR)


def test_the_library_leaves_the_settings_of_matplotlib() -> None:
    """In a process of its own, as importing it once is what changes them."""
    code = (
        "import matplotlib as mpl; before = dict(mpl.rcParams);"
        "from unitednet_mu.pl import _chord; _chord._library(); after = dict(mpl.rcParams);"
        "changed = {name for name in before if before[name] != after[name]};"
        "import sys; sys.exit(f'changed: {changed}' if changed else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_the_library(mdata: md.MuData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycirclize", None)
    with pytest.raises(ImportError, match="pip install pycirclize, or use kind='heatmap'"):
        pl.cross_relevance(mdata, kind="chord", **PAIR)
    assert not plt.get_fignums()
    assert pl.cross_relevance(mdata, **PAIR)


def test_settings_of_matplotlib_stay() -> None:
    """The library sets how every figure is saved when it is imported."""
    code = (
        "import matplotlib as mpl; before = dict(mpl.rcParams); "
        "from unitednet_mu.pl import _chord; _chord._library(); "
        "changed = [name for name in before if mpl.rcParams[name] != before[name]]; "
        "raise SystemExit(str(changed) if changed else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
