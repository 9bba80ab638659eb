"""The plots, on slots written by hand: what is drawn is what is stored."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import mudata as md
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy import sparse
from test_get import ABSOLUTE_RNA, GROUPS, SIGNED_RNA, stored_mdata
from test_images import FIGURES

import unitednet_mu as un
from unitednet_mu import metrics, pl
from unitednet_mu.pl._style import literals

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4 .update:FutureWarning")

BLUE, VERMILION = "#0072b2", "#d55e00"


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def mdata() -> md.MuData:
    return stored_mdata()


def ticks(ax: Axes, axis: str) -> list[str]:
    labels = ax.get_xticklabels() if axis == "x" else ax.get_yticklabels()
    return [label.get_text() for label in labels]


def check_layout(ax: Axes) -> None:
    """Check that no title, tick or axis label leaves the figure."""
    figure = ax.get_figure(root=True)
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert box.x0 >= -0.02
    assert box.y0 >= -0.02
    assert box.x1 <= width + 0.02
    assert box.y1 <= height + 0.02


def test_long_names_do_not_squeeze_the_matrix(mdata: md.MuData) -> None:
    """A column stays wide enough for its name, which stands upright, beside long names of rows."""

    def column_width() -> float:
        ax = pl.cross_relevance(mdata, source="rna", target="adt", group=GROUPS[0])[0]
        ax.figure.draw_without_rendering()
        inches = ax.get_window_extent().width / ax.figure.dpi
        return float(inches / np.ptp(ax.get_xlim()))

    before = column_width()
    pair = mdata.uns["unitednet"]["cross_relevance"]["adt_from_rna"]
    pair["source_features"] = np.asarray([f"chr1:{i}00000000-{i}00000500" for i in range(1, 9)])[
        : len(pair["source_features"])
    ]
    assert column_width() > 0.9 * before


# --- history ------------------------------------------------------------------


def test_history_draws_every_term_that_was_on(mdata: md.MuData) -> None:
    axes = pl.history(mdata)
    assert [ax.get_title() for ax in axes] == ["reconstruction", "generator", "total"]
    train, val = axes[0].get_lines()
    assert train.get_xydata().tolist() == [[1, 4], [2, 3], [3, 2], [4, 1]]
    assert val.get_ydata().tolist() == [4.5, 3.5, 2.5, 1.5]
    assert (train.get_color().lower(), val.get_color().lower()) == (BLUE, VERMILION)
    assert (train.get_linestyle(), val.get_linestyle()) == ("-", "--")
    generator = axes[1].get_lines()
    assert len(generator) == 1
    x, y = generator[0].get_data()
    assert x[np.isfinite(y)].tolist() == [2, 3, 4]  # off in the first epoch
    assert len(axes[2].get_lines()) == 1
    check_layout(axes[0])


def test_history_shades_phases(mdata: md.MuData) -> None:
    ax = pl.history(mdata, terms="generator")[0]
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in ax.patches]
    assert spans == [(0.5, 1.5), (1.5, 3.5), (3.5, 4.5)]
    assert len({to_hex(patch.get_facecolor()) for patch in ax.patches}) == 3
    texts = [text.get_text() for text in ax.get_figure().legends[0].get_texts()]
    assert texts == ["training cells", "held-out cells", "warmup", "train", "adapt"]
    check_layout(ax)


def test_history_breaks_where_another_network_begins(mdata: md.MuData) -> None:
    """And where a term was off, as without groups at the start of both trainings."""
    table = mdata.uns["unitednet"]["history"]
    table["phase"] = ["warmup", "train", "refit warmup", "refit train"]
    table["train_generator"] = [np.nan, 2.0, np.nan, 1.0]
    reconstruction, generator = pl.history(mdata, terms=["reconstruction", "generator"])
    x, y = reconstruction.get_lines()[0].get_data()
    assert x.tolist() == [1, 2, 3, 3, 4]
    np.testing.assert_array_equal(y, [4, 3, np.nan, 2, 1])
    _, y = generator.get_lines()[0].get_data()
    np.testing.assert_array_equal(y, [np.nan, 2, np.nan, np.nan, 1])


def test_history_counts_rows_where_a_phase_counts_anew(mdata: md.MuData) -> None:
    mdata.uns["unitednet"]["history"]["epoch"] = [1, 2, 1, 2]
    ax = pl.history(mdata, terms=["reconstruction"])[0]
    assert ax.get_lines()[0].get_xdata().tolist() == [1, 2, 3, 4]


def test_history_of_one_epoch(mdata: md.MuData) -> None:
    stored = mdata.uns["unitednet"]
    stored["history"] = stored["history"].iloc[1:2]
    axes = pl.history(mdata)
    assert axes[0].get_lines()[0].get_marker() == "o"
    texts = [text.get_text() for text in axes[0].get_figure().legends[0].get_texts()]
    assert texts == ["training cells", "held-out cells"]


def test_history_unknown_term(mdata: md.MuData) -> None:
    with pytest.raises(ValueError, match=r"terms 'entropy' not found; available: .*'generator'"):
        pl.history(mdata, terms="entropy")


# --- modality weights ---------------------------------------------------------


def test_modality_weights(mdata: md.MuData) -> None:
    ax = pl.modality_weights(mdata)
    assert [bar.get_width() for bar in ax.patches] == [0.75, 0.25]
    assert ticks(ax, "y") == ["rna", "adt"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first modality on top
    assert [text.get_text() for text in ax.texts] == ["0.75", "0.25"]
    assert list(ax.get_lines()[0].get_xdata()) == [0.5, 0.5]
    check_layout(ax)


def test_modality_effects(mdata: md.MuData) -> None:
    ax = pl.modality_weights(mdata, kind="effects")
    assert ticks(ax, "x") == ["rna", "adt"]
    assert ticks(ax, "y") == ["CD4/CD8", "γδ T", "7"]
    assert [text.get_text() for text in ax.texts] == ["0.50", "0.02", "-0.10", "0.90", "0.30"]
    assert (ax.images[0].norm.vmin, ax.images[0].norm.vmax) == (-1, 1)
    check_layout(ax)
    with pytest.raises(ValueError, match=r"kind: expected one of \['weights', 'effects'\]"):
        pl.modality_weights(mdata, kind="effect")
    mdata.uns["unitednet"]["modality_effects"][:] = np.nan
    with pytest.raises(ValueError, match=r"no cell has two of \['rna', 'adt'\]"):
        pl.modality_weights(mdata, kind="effects")
    del mdata.uns["unitednet"]["modality_effects"]
    with pytest.raises(ValueError, match=r"no modality_effects .*tl\.integrate\(mdata\)"):
        pl.modality_weights(mdata, kind="effects")


def test_one_panel_plots_draw_where_they_are_told(mdata: md.MuData) -> None:
    _, axes = plt.subplots(1, 5, layout="constrained")
    mdata.obs["truth"] = pd.Categorical(["B", "B", "CD4/CD8", "CD4/CD8", "γδ T", "7"])
    cross = {"source": "rna", "target": "adt", "group": "CD4/CD8"}
    assert pl.modality_weights(mdata, ax=axes[0]) is axes[0]
    assert pl.confusion(mdata, groupby="truth", ax=axes[1]) is axes[1]
    assert pl.transfer(mdata, ax=axes[2]) is axes[2]
    assert pl.relevance(mdata, modality="rna", ax=axes[3])[0] is axes[3]
    assert pl.cross_relevance(mdata, **cross, ax=axes[4])[0] is axes[4]
    assert len(plt.get_fignums()) == 1
    with pytest.raises(ValueError, match=r"ax: expected None for 2 panels.*modality="):
        pl.relevance(mdata, ax=axes[3])
    with pytest.raises(ValueError, match=r"ax: expected None for 3 panels.*group="):
        pl.cross_relevance(mdata, source="rna", target="adt", ax=axes[4])


# --- relevance ----------------------------------------------------------------


def test_relevance_dots(mdata: md.MuData) -> None:
    rna, adt = pl.relevance(mdata, n_top=1)
    assert (rna.get_title(), adt.get_title()) == ("rna", "adt")
    assert ticks(rna, "x") == GROUPS
    assert ticks(rna, "y") == ["MS4A1", "NKG7"]  # NKG7 leads two groups and stands once
    assert ticks(adt, "y") == ["cd4.1", "cd56.2"]
    dots = rna.collections[0]
    expected = SIGNED_RNA[[0, 2]]
    at = {(int(x), int(y)): i for i, (x, y) in enumerate(dots.get_offsets())}
    assert len(at) == expected.size
    for (column, row), i in at.items():
        assert dots.get_array()[i] == expected[row, column]
    areas = dots.get_sizes()
    assert areas[at[1, 1]] / areas[at[0, 0]] == pytest.approx(4 / 3)  # 4.0 against 3.0
    assert areas.max() == pytest.approx(90 * 4 / 5)  # the largest of all, 5.0, is a protein's
    assert adt.collections[0].get_sizes().max() == pytest.approx(90)
    for ax in (rna, adt):
        assert ax.collections[0].get_clim() == (-5, 5)
    check_layout(rna)


def test_relevance_dots_outline_the_strongest(mdata: md.MuData) -> None:
    ax = pl.relevance(mdata, modality="rna", n_top=1)[0]
    dots = ax.collections[0]
    dark = {
        (ticks(ax, "y")[int(y)], GROUPS[int(x)])
        for (x, y), edge in zip(dots.get_offsets(), dots.get_edgecolors(), strict=True)
        if to_hex(edge) == "#000000"
    }
    assert dark == {("MS4A1", "CD4/CD8"), ("NKG7", "γδ T"), ("NKG7", "7")}


def test_relevance_colour_tells_the_sign(mdata: md.MuData) -> None:
    ax = pl.relevance(mdata, modality="rna", n_top=2, group="γδ T")[0]
    assert ticks(ax, "y") == ["NKG7", "LYZ"]
    negative, positive = ax.collections[0].to_rgba([-4.0, 2.0])
    assert negative[2] > negative[0]
    assert positive[0] > positive[2]


def test_relevance_leaves_out_what_was_never_measured(mdata: md.MuData) -> None:
    ax = pl.relevance(mdata, modality="rna", n_top=4)[0]
    assert set(ticks(ax, "y")) == {"MS4A1", "LYZ", "NKG7", "GAPDH"}
    assert len(ax.collections[0].get_offsets()) == np.isfinite(ABSOLUTE_RNA).sum()


@pytest.mark.parametrize("kind", ["dot", "heatmap"])
def test_relevance_of_a_group_without_the_modality(mdata: md.MuData, kind: str) -> None:
    block = mdata.uns["unitednet"]["relevance"]["modalities"]["rna"]
    block["signed"] = np.full_like(SIGNED_RNA, np.nan)
    block["absolute"] = np.full_like(SIGNED_RNA, np.nan)
    rna, adt = pl.relevance(mdata, kind=kind)  # type: ignore[arg-type]
    assert ticks(rna, "y") == []
    assert [text.get_text() for text in rna.texts] == ["nothing stored"]
    assert len(ticks(adt, "y")) == 2 and not adt.texts
    check_layout(rna)


def test_relevance_without_values_has_no_scales(mdata: md.MuData) -> None:
    for block in mdata.uns["unitednet"]["relevance"]["modalities"].values():
        for name in ("signed", "absolute"):
            block[name] = np.full_like(block[name], np.nan)
    figure = pl.relevance(mdata, return_fig=True)
    assert [text.get_text() for ax in figure.axes for text in ax.texts] == ["nothing stored"] * 2
    assert len(figure.axes) == 2 and not figure.legends


def test_relevance_heatmap(mdata: md.MuData) -> None:
    ax = pl.relevance(mdata, modality="rna", n_top=4, kind="heatmap")[0]
    image = ax.images[0]
    rows = ticks(ax, "y")
    assert rows == ["MS4A1", "LYZ", "NKG7", "GAPDH"]
    assert np.array_equal(np.ma.filled(image.get_array(), np.nan), SIGNED_RNA, equal_nan=True)
    assert image.get_clim() == (-4, 4)
    check_layout(ax)


def test_relevance_blocks_are_parted() -> None:
    ax = pl.relevance(stored_mdata(), modality="adt", n_top=1)[0]
    assert [line.get_ydata()[0] for line in ax.get_lines()] == [0.5]


def test_relevance_is_readable_at_paper_size(mdata: md.MuData) -> None:
    """8 groups x 5 features x 2 modalities: no two names touch."""
    rng = np.random.default_rng(0)
    groups = np.array([f"{name} ({i})" for i, name in enumerate(["CD14 monocyte", "γδ T"] * 4)])
    blocks = {}
    for modality, n in (("rna", 500), ("adt", 224)):
        signed = rng.laplace(size=(n, 8)).astype(np.float32)
        names = np.array([f"{modality}-feature-{i}" for i in range(n)])
        blocks[modality] = {"features": names, "signed": signed, "absolute": np.abs(signed)}
    mdata.uns["unitednet"]["relevance"] = {"groups": groups, "params": {}, "modalities": blocks}
    for ax in pl.relevance(mdata):
        check_layout(ax)
        assert 5 < len(ticks(ax, "y")) <= 40
        for labels, side in ((ax.get_yticklabels(), 1), (ax.get_xticklabels(), 0)):
            boxes = [label.get_window_extent() for label in labels]
            ends = sorted((box.min[side], box.max[side]) for box in boxes)
            assert all(low[1] <= high[0] for low, high in pairwise(ends))
    width, height = ax.get_figure().get_size_inches()
    assert width < 9
    assert height < 9


def test_relevance_bad_choices(mdata: md.MuData) -> None:
    with pytest.raises(ValueError, match=r"kind: expected one of \['dot', 'heatmap'\]"):
        pl.relevance(mdata, kind="bar")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="group 'B' not found"):
        pl.relevance(mdata, group=["B"])
    with pytest.raises(ValueError, match="n_top"):
        pl.relevance(mdata, n_top=0)
    assert not plt.get_fignums()


# --- cross-modal relevance ----------------------------------------------------


def test_cross_relevance(mdata: md.MuData) -> None:
    axes = pl.cross_relevance(mdata, source="rna", target="adt")
    assert [ax.get_title() for ax in axes] == GROUPS
    first = axes[0]
    assert ticks(first, "y") == ["MS4A1", "LYZ"]  # 2.0 against 1.0 + 0.5
    assert ticks(first, "x") == ["cd4.1", "cd56.2"]
    values = np.ma.filled(first.images[0].get_array(), np.nan)
    assert np.array_equal(values, [[-2.0, np.nan], [0.5, 1.0]], equal_nan=True)
    assert (first.get_ylabel(), first.get_xlabel()) == ("rna", "adt")
    assert [ax.images[0].get_clim() for ax in axes] == [(-4, 4)] * 3
    assert axes[2].texts[0].get_text() == "nothing stored"
    check_layout(first)


def test_an_empty_panel_does_not_set_the_scale(mdata: md.MuData) -> None:
    entry = mdata.uns["unitednet"]["cross_relevance"]["adt_from_rna"]
    for name in ("signed", "absolute"):
        entry[name] = {key: matrix / 100 for key, matrix in entry[name].items()}
    axes = pl.cross_relevance(mdata, source="rna", target="adt")
    assert axes[0].images[0].get_clim() == pytest.approx((-0.04, 0.04))


def test_cross_relevance_of_one_group_and_fewer_pairs(mdata: md.MuData) -> None:
    axes = pl.cross_relevance(mdata, source=["rna"], target="adt", group="CD4/CD8", n_top=2)
    assert len(axes) == 1
    values = np.ma.filled(axes[0].images[0].get_array(), np.nan)
    # the third pair lies between features of the first two, so it is drawn as well
    assert np.array_equal(values, [[-2.0, np.nan], [0.5, 1.0]], equal_nan=True)
    axes = pl.cross_relevance(mdata, source="rna", target="adt", group="CD4/CD8", n_top=1)
    assert axes[0].images[0].get_array().tolist() == [[-2.0]]
    with pytest.raises(ValueError, match=r"tl\.explain\(mdata, source='adt', target='rna'\)"):
        pl.cross_relevance(mdata, source="adt", target="rna")


# --- confusion ----------------------------------------------------------------


def test_confusion_by_name(mdata: md.MuData) -> None:
    mdata.obs["truth"] = pd.Categorical(["B", "B", "CD4/CD8", "CD4/CD8", "γδ T", "B"])
    ax = pl.confusion(mdata, groupby="truth")
    assert ticks(ax, "y") == ["B (3)", "CD4/CD8 (2)", "γδ T (1)"]
    assert ticks(ax, "x") == ["B", "CD4/CD8", "γδ T", "7", "unknown"]
    third = 1 / 3
    expected = [[third, 0, 0, third, third], [0, 0.5, 0, 0, 0.5], [0, 0, 1, 0, 0]]
    assert np.allclose(ax.images[0].get_array(), expected)
    assert ax.images[0].get_clim() == (0, 1)
    assert ax.get_title() == "accuracy 0.50, balanced 0.61, n = 6"
    written = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in ax.texts}
    assert written[0, 0] == ".33"
    assert written[2, 2] == "1.00"
    assert (0, 1) not in written
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted (unitednet_label)", "true (truth)")
    check_layout(ax)


def test_confusion_matches_unsupervised_groups(mdata: md.MuData) -> None:
    mdata.obs["truth"] = ["B", "B", "B", "T", "T", None]
    mdata.obs["unitednet_group"] = pd.Categorical(["1", "1", "2", "0", "0", "0"])
    del mdata.obs["unitednet_label"]
    ax = pl.confusion(mdata, groupby="truth", normalize=False)
    assert ticks(ax, "x") == ["1", "0", "2"]
    assert ax.images[0].get_array().tolist() == [[2, 0, 1], [0, 2, 0]]
    assert ax.get_title() == "accuracy 0.80, balanced 0.83 after matching, n = 5"
    assert [text.get_text() for text in ax.texts] == ["2", "1", "2"]


def test_confusion_numbers_are_no_names_unless_labels(mdata: md.MuData) -> None:
    mdata.obs["truth"] = [0, 0, 0, 1, 1, 1]
    mdata.obs["unitednet_group"] = pd.Categorical(["1", "1", "1", "0", "0", "0"])
    mdata.obs["unitednet_label"] = mdata.obs["unitednet_group"]
    groups = pl.confusion(mdata, groupby="truth", predicted="unitednet_group")
    assert ticks(groups, "x") == ["1", "0"]
    assert groups.get_title().startswith("accuracy 1.00")
    labels = pl.confusion(mdata, groupby="truth")
    assert ticks(labels, "x") == ["0", "1"]
    assert labels.get_title().startswith("accuracy 0.00, balanced 0.00, ")
    forced = pl.confusion(mdata, groupby="truth", match=True)
    assert "after matching" in forced.get_title()


def test_confusion_takes_learned_names_at_their_word(mdata: md.MuData) -> None:
    """What a model learned as labels is right or wrong, however the labels are called."""
    mdata.obs["truth"] = ["0", "0", "0", "1", "1", "1"]
    mdata.obs["unitednet_group"] = pd.Categorical(["1", "1", "1", "0", "0", "0"])
    mdata.uns["unitednet"]["params"]["data"]["labels_key"] = "truth"
    groups = pl.confusion(mdata, groupby="truth", predicted="unitednet_group")
    assert groups.get_title().startswith("accuracy 0.00, balanced 0.00, ")
    mdata.obs["unseen"] = "a type that the reference lacks"
    labels = pl.confusion(mdata, groupby="unseen")
    assert labels.get_title().startswith("accuracy 0.00, balanced 0.00, ")


def test_confusion_knows_a_query_by_the_model_that_embedded_it() -> None:
    """A query has no settings of a fit; `integrate` says what the model learned its groups from."""
    cells = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    cells.obs["type"] = cells.obs["cell_type"].cat.rename_categories(["1", "0"])
    quick = {"training": {"max_epochs": 1}, "progress": False}
    un.tl.fit(cells, labels_key="type", **quick)
    model = un.get.model(cells)
    query = un.datasets.simulate_multimodal(n_obs=40, n_groups=2, random_state=1)
    un.tl.integrate(query, model=model)
    assert query.uns["unitednet"]["labels_key"] == "type"
    query.obs["truth"] = pd.Categorical(["0", "1"] * 20)
    query.obs["unitednet_group"] = pd.Categorical(["1", "0"] * 20)
    named = pl.confusion(query, groupby="truth")
    assert named.get_title().startswith("accuracy 0.00, balanced 0.00, ")
    un.tl.fit(cells, n_groups=2, **quick)
    un.tl.integrate(query, model=un.get.model(cells))
    query.obs["unitednet_group"] = pd.Categorical(["1", "0"] * 20)
    assert query.uns["unitednet"]["labels_key"] == ""
    assert "1.00 after matching" in pl.confusion(query, groupby="truth").get_title()


def test_confusion_leaves_what_an_earlier_model_wrote(mdata: md.MuData) -> None:
    mdata.obs["truth"] = ["B", "B", "B", "T", "T", "T"]
    mdata.obs["unitednet_group"] = mdata.obs["truth"].astype("category")
    del mdata.uns["unitednet"]["labels"]  # a fit replaces all that stands there
    assert pl.confusion(mdata, groupby="truth").get_xlabel() == "predicted (unitednet_group)"
    del mdata.obsm["unitednet_probabilities"]  # and drops these
    with pytest.raises(ValueError, match=r"of the model that is stored; run .*integrate\(mdata\)"):
        pl.confusion(mdata, groupby="truth")
    del mdata.uns["unitednet"]  # columns that came without any model
    assert pl.confusion(mdata, groupby="truth").get_xlabel() == "predicted (unitednet_label)"


def test_names_that_differ_in_their_middle_stay_apart() -> None:
    names = [f"central memory CD{k}-positive, alpha-beta T cell" for k in (4, 8)]
    shown = literals([*names, "B"])
    assert len(set(shown)) == 3
    assert "CD4" in shown[0]
    assert "CD8" in shown[1]
    assert len(literals(names[:1])[0]) == 32


def test_confusion_names_whole_numbers_as_fit_does(mdata: md.MuData) -> None:
    mdata.obs["truth"] = [1.0, 2.0, np.nan, 2.0, 1.0, 1.0]
    ax = pl.confusion(mdata, groupby="truth")
    assert ticks(ax, "y") == ["1 (3)", "2 (2)"]


def test_confusion_reads_columns_of_modalities(mdata: md.MuData) -> None:
    mdata["rna"].obs["truth"] = pd.Categorical(list("abbbba"), categories=["b", "a"])
    ax = pl.confusion(mdata, groupby="truth")
    assert ticks(ax, "y") == ["b (4)", "a (2)"]  # the modality's own order


def test_confusion_messages(mdata: md.MuData) -> None:
    with pytest.raises(ValueError, match=r"groupby: column 'cell_type' not found; available: "):
        pl.confusion(mdata, groupby="cell_type")
    mdata.obs["truth"] = [None, "a", None, "a", None, None]
    mdata.obs["found"] = ["a", None, "b", None, None, None]
    with pytest.raises(ValueError, match="no cell has both 'truth' and 'found'"):
        pl.confusion(mdata, groupby="truth", predicted="found")
    mdata.obs["measured"] = np.linspace(0, 1, 6)
    with pytest.raises(ValueError, match=r"'measured': expected names or whole numbers, .*Bin"):
        pl.confusion(mdata, groupby="measured")
    del mdata.obs["unitednet_label"]
    with pytest.raises(ValueError, match=r"tl\.transfer_labels\(query, reference\) or .*integrate"):
        pl.confusion(mdata, groupby="truth")


# --- prediction ---------------------------------------------------------------


@pytest.fixture
def predicted() -> md.MuData:
    """60 cells with RNA, the last 40 with protein, of which a half is one group."""
    rng = np.random.default_rng(3)
    cells = [f"c{i}" for i in range(60)]
    names = ["a", "b", "c$d", "e"]
    truth = rng.normal(size=(60, 4)).astype(np.float32)
    order = [3, 1, 0, 2]
    adata = AnnData(
        (0.5 * truth)[:, order].copy(),
        obs=pd.DataFrame(index=cells),
        var=pd.DataFrame(
            {
                "feature": [names[i] for i in order],
                "expected_r": [0.2, np.nan, 0.9, 0.5],
            },
            index=[f"adt_from_rna:{names[i]}" for i in order],
        ),
    )
    adata.uns["unitednet_prediction"] = {
        "source": np.array(["rna"]),
        "target": "adt",
        "key": "unitednet",
    }
    rna = AnnData(np.ones((60, 2), np.float32), obs=pd.DataFrame(index=cells))
    shuffled = rng.permutation(np.arange(20, 60))
    adt = AnnData(
        sparse.csr_matrix(truth[shuffled]),
        obs=pd.DataFrame(index=[cells[i] for i in shuffled]),
        var=pd.DataFrame(index=names),
    )
    adt.layers["doubled"] = adt.X * 2
    made = md.MuData({"rna": rna, "adt": adt, "adt_from_rna": adata})
    made.obs["type"] = pd.Categorical(np.where(np.arange(60) < 40, "x", "y"))
    return made


def scattered(ax: Axes) -> np.ndarray:
    points = np.asarray(ax.collections[0].get_offsets())
    return points[np.argsort(points[:, 0])]


def test_prediction_pairs_cells_and_features_by_name(predicted: md.MuData) -> None:
    axes = pl.prediction(predicted, source="rna", target="adt", n_top=3)
    assert [ax.get_title() for ax in axes] == [
        "a\nr = 1.00",
        "c\\$d\nr = 1.00",
        "e\nr = 1.00",
    ]  # by expected r
    for ax, feature in zip(axes, ["a", "c$d", "e"], strict=True):
        points = scattered(ax)
        measured = predicted["adt"].to_df()[feature].to_numpy()
        assert np.allclose(points[:, 0], np.sort(measured))  # 40 cells with both
        assert np.allclose(points[:, 1], 0.5 * points[:, 0], atol=1e-6)
        assert ax.get_xlim() == ax.get_ylim()
    assert axes[0].get_ylabel() == "predicted from rna"
    assert axes[1].get_ylabel() == ""
    check_layout(axes[0])


def test_prediction_features_layer_and_measured(predicted: md.MuData) -> None:
    ax = pl.prediction(predicted, source="rna", target="adt", features="b", layer="doubled")[0]
    points = scattered(ax)
    assert np.allclose(points[:, 1], 0.25 * points[:, 0], atol=1e-6)
    elsewhere = predicted["adt"][:7].copy()
    for measured in (elsewhere, "held_out"):
        others = {"rna": predicted["rna"], "adt_from_rna": predicted["adt_from_rna"]}
        made = md.MuData({**others, "held_out": elsewhere})
        ax = pl.prediction(made, source="rna", target="adt", features=["b"], measured=measured)[0]
        assert np.allclose(scattered(ax)[:, 0], np.sort(elsewhere.to_df()["b"]))


def test_prediction_of_a_layer(predicted: md.MuData) -> None:
    """The layer that the model reads is compared with; intervals are of its units alone."""
    adata, adt = predicted["adt_from_rna"], predicted["adt"]
    adata.var["error_q05"], adata.var["error_q95"] = -1.0, 2.0
    adata.uns["unitednet_prediction"]["layer"] = "doubled"
    adt.layers["counts"] = adt.X
    for settings, slope, dotted in (
        ({}, 0.25, 2),
        ({"layer": "doubled"}, 0.25, 2),
        ({"layer": "counts"}, 0.5, 0),
        ({"measured": "adt"}, 0.5, 0),
    ):
        ax = pl.prediction(predicted, source="rna", target="adt", features="a", **settings)[0]
        points = scattered(ax)
        assert np.allclose(points[:, 1], slope * points[:, 0], atol=1e-6)
        assert sum(line.get_linestyle() == ":" for line in ax.lines) == dotted


def test_prediction_with_intervals(predicted: md.MuData) -> None:
    """Dotted lines: a point on one was measured at its prediction plus that error."""
    adata = predicted["adt_from_rna"]
    adata.var["error_q05"] = [-1.0, np.nan, -0.5, -0.25]
    adata.var["error_q95"] = [2.0, np.nan, 0.5, 0.75]
    axes = pl.prediction(predicted, source="rna", target="adt", features=["a", "b"])
    dotted = [[line for line in ax.lines if line.get_linestyle() == ":"] for ax in axes]
    assert [line.get_xy1() for line in dotted[0]] == [(0, 0.5), (0, -0.5)]
    assert not dotted[1]  # unknown
    ax = pl.prediction(predicted, source="rna", target="adt", features="a", layer="doubled")[0]
    assert not any(line.get_linestyle() == ":" for line in ax.lines)


def test_prediction_of_a_modality_from_itself_says_so() -> None:
    """What was read is compared with what was decoded from it: no measure of a prediction."""
    cells = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    un.tl.fit(cells, labels_key="cell_type", training={"max_epochs": 1}, progress=False)
    un.tl.predict_modality(cells, source=["rna", "adt"], target="rna")
    (denoised,) = pl.prediction(cells, source=["rna", "adt"], target="rna", features="rna_0")
    assert denoised.get_title().endswith("\n(with its own input)")
    un.tl.predict_modality(cells, source="adt", target="rna")
    (predicted,) = pl.prediction(cells, source="adt", target="rna", features="rna_0")
    assert "input" not in predicted.get_title()


def test_prediction_without_expected_accuracy(predicted: md.MuData) -> None:
    adata = predicted["adt_from_rna"]
    adata.var["expected_r"] = np.nan
    adata.X[:, 1] *= 100  # feature b
    axes = pl.prediction(predicted, source="rna", target="adt", n_top=1)
    assert axes[0].get_title().startswith("b\n")


def test_prediction_by_group(predicted: md.MuData) -> None:
    adata = predicted["adt_from_rna"]
    adata.X[40:] *= -1  # right in one group, reversed in the other: half of the points are turned
    predicted.uns["type_colors"] = ["#112233", "#445566"]
    ax = pl.prediction(predicted, source="rna", target="adt", features="a", groupby="type")[0]
    colours = {to_hex(colour) for colour in ax.collections[0].get_facecolors()}
    assert colours == {"#112233", "#445566"}
    legend = ax.get_figure().legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["x", "y"]
    check_layout(ax)
    points, shades = ax.collections[0].get_offsets(), ax.collections[0].get_facecolors()
    right = [to_hex(s) for (x, y), s in zip(points, shades, strict=True) if x * y > 0]
    assert set(right) == {"#112233"}


def test_colours_of_a_column_that_came_from_a_modality(predicted: md.MuData) -> None:
    """As "adt:type"; the colours that scanpy set stand in the modality, as those of "type"."""
    predicted["adt"].uns["type_colors"] = ["#112233", "#445566"]
    predicted.obs["adt:type"] = predicted.obs["type"]
    which = {"source": "rna", "target": "adt", "features": "a"}
    for column, expected in (
        ("adt:type", {"#112233", "#445566"}),
        ("type", {"#112233", "#445566"}),
        ("other", {BLUE, VERMILION}),
    ):
        predicted.obs["other"] = predicted.obs["type"]
        ax = pl.prediction(predicted, groupby=column, **which)[0]
        assert {to_hex(colour) for colour in ax.collections[0].get_facecolors()} == expected


def test_prediction_within_groups_is_what_metrics_say(predicted: md.MuData) -> None:
    adata = predicted["adt_from_rna"]
    adata.X = adata.X + np.random.default_rng(1).normal(0, 0.5, adata.shape)
    adata.X[40:] *= 3  # groups of unequal spread, where a mean over groups would be another number
    truth = predicted["adt"].to_df()["a"]
    values = adata.to_df()[adata.var_names[adata.var["feature"] == "a"]].loc[truth.index]
    types = predicted.obs["type"].loc[truth.index]
    r = metrics.pearson_within_groups(truth.to_numpy()[:, None], values.to_numpy(), types)[0]
    ax = pl.prediction(predicted, source="rna", target="adt", features="a", groupby="type")[0]
    assert ax.get_title().endswith(f", within {r:.2f}")


def test_prediction_of_a_constant(predicted: md.MuData) -> None:
    predicted["adt_from_rna"].X[:, 0] = 1  # feature e
    ax = pl.prediction(predicted, source="rna", target="adt", features="e")[0]
    assert ax.get_title() == "e\nr undefined"


def test_prediction_messages(predicted: md.MuData) -> None:
    run = r"run unitednet_mu\.tl\.predict_modality\(mdata, source='adt', target='rna'\) first"
    with pytest.raises(ValueError, match=rf"'rna_from_adt' .*\['adt_from_rna'\]\); {run}"):
        pl.prediction(predicted, source="adt", target="rna")
    which = {"source": "rna", "target": "adt"}
    with pytest.raises(ValueError, match=r"features 'z' not found; available: .*'e', 'b', 'a'"):
        pl.prediction(predicted, **which, features=["z"])
    with pytest.raises(ValueError, match=r"layer 'counts' not found; available: .*'doubled'"):
        pl.prediction(predicted, **which, layer="counts")
    with pytest.raises(ValueError, match="measured modality 'protein' not found"):
        pl.prediction(predicted, **which, measured="protein")
    with pytest.raises(ValueError, match="no predicted feature was measured"):
        pl.prediction(predicted, **which, measured="rna")
    stranger = predicted["adt"].copy()
    stranger.obs_names = [f"other{i}" for i in range(40)]
    with pytest.raises(ValueError, match="no cell has both"):
        pl.prediction(predicted, **which, measured=stranger)


def test_prediction_from_sources_in_another_order(predicted: md.MuData) -> None:
    adata = predicted["adt_from_rna"].copy()
    adata.uns["unitednet_prediction"]["source"] = np.array(["rna", "atac"])
    made = md.MuData({"adt": predicted["adt"], "adt_from_rna+atac": adata})
    axes = pl.prediction(made, source=["atac", "rna"], target="adt")
    assert axes[0].get_ylabel() == "predicted from atac + rna"


# --- transfer -----------------------------------------------------------------


def test_transfer(mdata: md.MuData) -> None:
    ax = pl.transfer(mdata)
    assert ticks(ax, "y") == ["B", *GROUPS]
    bars = [bar for bar in ax.patches if bar.get_height() != 0]
    rows = {}
    for bar in bars:
        row = round(bar.get_y())
        middle = bar.get_x() + bar.get_width() / 2
        rows.setdefault(row, []).append((round(middle, 2), to_hex(bar.get_facecolor())))
    assert rows == {
        0: [(0.5, VERMILION), (0.9, BLUE)],
        1: [(0.42, VERMILION), (0.82, BLUE)],
        2: [(0.98, BLUE)],
        3: [(0.98, BLUE)],
    }
    assert [bar.get_height() for bar in bars] == pytest.approx([-0.8] * 6)
    assert [text.get_text() for text in ax.texts] == [
        "2 cells, 50% unknown",
        "2 cells, 50% unknown",
        "1 cells, 0% unknown",
        "1 cells, 0% unknown",
    ]
    check_layout(ax)


def test_transfer_stacks_and_counts(mdata: md.MuData) -> None:
    mdata.obsm["unitednet_label_probabilities"][:] = np.float32([0.7, 0.1, 0.1, 0.1])
    mdata.obs["unitednet_label_confidence"] = np.float32(0.7)
    labels = ["B", "unknown", "B", "B", "B", "unknown"]
    mdata.obs["unitednet_label"] = pd.Categorical(labels)
    ax = pl.transfer(mdata)
    bars = {to_hex(bar.get_facecolor()): bar for bar in ax.patches if bar.get_height() != 0}
    assert bars[VERMILION].get_height() == pytest.approx(-0.8 * 2 / 6)
    assert bars[BLUE].get_height() == pytest.approx(-0.8 * 4 / 6)
    assert bars[BLUE].get_y() == pytest.approx(-0.8 * 2 / 6)
    assert [text.get_text() for text in ax.texts][1:] == ["no cell"] * 3


def test_transfer_messages(mdata: md.MuData) -> None:
    del mdata.obs["unitednet_label_confidence"]
    with pytest.raises(ValueError, match=r"unitednet_label_confidence.*tl\.transfer_labels"):
        pl.transfer(mdata)


# --- all ----------------------------------------------------------------------

#: What narrows a plot of several panels down to one; the others draw one.
ONE_PANEL = {
    "history": {"terms": "total"},
    "prediction": {"features": "CD19"},
    "relevance_dot": {"modality": "adt"},
    "relevance_heatmap": {"modality": "adt"},
    "cross_relevance": {"group": "CD4/CD8"},
    "cross_relevance_chord": {"group": "CD4/CD8"},
    "deletion": {"group": "B"},
    "stability": {"group": "CD4/CD8"},
}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many figures there were each time that pyplot was asked to show them."""
    calls: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: calls.append(len(plt.get_fignums())))
    return calls


def axes_of(drawn: Axes | list[Axes]) -> list[Axes]:
    return drawn if isinstance(drawn, list) else [drawn]


@pytest.mark.parametrize("name", FIGURES)
def test_plots_show_and_return_as_those_of_scanpy(name: str, shown: list[int]) -> None:
    plot = FIGURES[name]
    for show in (None, False):
        assert all(isinstance(one, Axes) for one in axes_of(plot(show=show)))
    figure = plot(return_fig=True)
    assert isinstance(figure, Figure)
    assert figure.axes
    assert not shown
    plt.close("all")
    assert plot(show=True) is None
    assert shown == [1]
    assert isinstance(plot(show=True, return_fig=True), Figure)
    assert shown == [1, 2]


@pytest.mark.parametrize("name", FIGURES)
def test_every_plot_draws_in_axes_of_the_user(name: str) -> None:
    more = ONE_PANEL.get(name, {})
    polar = {"projection": "polar"} if name.endswith("chord") else {}
    figure = plt.figure(figsize=(9, 4), layout="constrained")
    part, other = figure.subfigures(1, 2)  # what is returned is the whole figure
    ax, beside = part.subplots(subplot_kw=polar), other.subplots()
    assert axes_of(FIGURES[name](ax=ax, **more)) == [ax]
    assert ax.has_data() or ax.patches or ax.texts
    assert not beside.has_data()
    assert FIGURES[name](ax=beside if not polar else ax, return_fig=True, **more) is figure
    assert plt.get_fignums() == [figure.number]
    check_layout(ax)
    if more:
        with pytest.raises(
            ValueError, match=rf"ax: expected None for \d panels.*{next(iter(more))}="
        ):
            FIGURES[name](ax=ax)


def test_legends_stand_in_axes_of_the_user(mdata: md.MuData) -> None:
    _, axes = plt.subplots(1, 2, layout="constrained")
    pl.history(mdata, terms="reconstruction", ax=axes[0])
    texts = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert texts[:2] == ["training cells", "held-out cells"]
    FIGURES["prediction"](features="CD3", ax=axes[1])
    assert [text.get_text() for text in axes[1].get_legend().get_texts()] == ["B", "T"]
    assert not axes[0].get_figure().legends


def test_plots_change_nothing_and_work_from_a_file(mdata: md.MuData, tmp_path: object) -> None:
    mdata.obs["truth"] = pd.Categorical(["B", "B", "CD4/CD8", "CD4/CD8", "γδ T", "B"])
    mdata.write(f"{tmp_path}/results.h5mu")
    read = md.read_h5mu(f"{tmp_path}/results.h5mu")
    slots = set(read.uns), set(read.obs), set(read.obsm)
    assert len(pl.history(read)) == 3
    assert ticks(pl.modality_weights(read), "y") == ["rna", "adt"]
    assert ticks(pl.relevance(read, modality="rna", n_top=1)[0], "x") == GROUPS
    assert len(pl.cross_relevance(read, source="rna", target="adt")) == 3
    assert ticks(pl.confusion(read, groupby="truth"), "y")[0] == "B (3)"
    assert ticks(pl.transfer(read), "y") == ["B", *GROUPS]
    assert (set(read.uns), set(read.obs), set(read.obsm)) == slots


def test_names_are_never_mathematics(mdata: md.MuData) -> None:
    mdata.uns["unitednet"]["relevance"]["groups"] = np.array(["a$_2$", "x^$2", "7"])
    rna = pl.relevance(mdata, modality="rna")[0]
    rna.get_figure().draw_without_rendering()
    assert ticks(rna, "x")[0] == r"a\$_2\$"


def test_neither_torch_nor_pyplot_is_needed_to_import() -> None:
    code = (
        "import sys, warnings; warnings.simplefilter('ignore'); import unitednet_mu.pl; "
        "sys.exit(' '.join({'torch', 'matplotlib.pyplot'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
