"""What is seldom reached: refusals, empty and odd cases, each with what must come of it."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from torch import nn

import unitednet_mu as un
from unitednet_mu import _novelty, _process
from unitednet_mu._checkpoint import write_whole
from unitednet_mu._compat import quiet_update
from unitednet_mu._data import Dataset, ModalitySpec
from unitednet_mu._deeplift import compile_layers, trace
from unitednet_mu._deletion_cells import Matrix
from unitednet_mu._matrix import Source, matrix_of
from unitednet_mu._noise import _Grams
from unitednet_mu._novelty import Familiarity
from unitednet_mu._sample import choose_sample
from unitednet_mu._validate import check_mudata, obs_column
from unitednet_mu._values import SparseRows
from unitednet_mu.pl._style import default_colours, literal
from unitednet_mu.pp._common import _first_not_finite, _same
from unitednet_mu.tl._explain_cost import available_memory

# ------------------------------------------------------------------ inputs


def test_a_mudata_in_a_mudata_is_refused(paired: MuData) -> None:
    paired.mod["both"] = paired.copy()
    with pytest.raises(TypeError, match="modality 'both' is a MuData itself"):
        check_mudata(paired)


def test_three_dimensions_are_refused() -> None:
    adata = AnnData(np.zeros((3, 2), np.float32), obsm={"X_cube": np.zeros((3, 2, 2))})
    with pytest.raises(ValueError, match=r"'rna': expected a cells x features .* \(3, 2, 2\)"):
        matrix_of(adata, "rna", None, "X_cube")


def test_a_column_of_several_modalities_is_put_together() -> None:
    """The first value that is not missing, and the levels of all, in their order."""
    parts = {}
    for name, cells, values, levels in (
        ("rna", "abc", ["T", None, "B"], ["T", "B"]),
        ("adt", "bcd", ["NK", "B", None], ["NK", "B"]),
    ):
        column = pd.Categorical(values, categories=levels)
        obs = pd.DataFrame({"kind": column}, index=list(cells))
        var = pd.DataFrame(index=[f"{name} feature"])
        parts[name] = AnnData(np.zeros((3, 1), np.float32), obs=obs, var=var)
    with quiet_update():
        mdata = MuData(parts)
    found = obs_column(mdata, "kind", "labels_key").loc[list("abcd")]
    assert found.isna().tolist() == [False, False, False, True]
    assert found.iloc[:3].tolist() == ["T", "NK", "B"]
    assert list(found.cat.categories) == ["T", "B", "NK"]


def test_batches_that_are_all_missing(paired: MuData, quick: dict[str, Any]) -> None:
    paired.obs["plate"] = pd.Categorical([None] * len(paired), categories=["a"])
    with pytest.raises(ValueError, match="batch_key='plate': expected batches, found every value"):
        un.tl.fit(paired, labels_key="cell_type", batch_key="plate", **quick)


def test_a_prediction_does_not_replace_a_slot_of_its_name(fitted: MuData) -> None:
    fitted.obsm["adt_from_rna"] = np.zeros((len(fitted), 2))
    with pytest.raises(ValueError, match=r"would overwrite \.obsm\['adt_from_rna'\]"):
        un.tl.predict_modality(fitted, source="rna", target="adt")
    assert "adt_from_rna" not in fitted.mod


# ------------------------------------------------------------------ cells to explain


def cells_to_explain() -> Dataset:
    """Four cells; the last two lack the second modality, the last has no group."""
    names = pd.Index(["a", "b", "c", "d"])
    sources = [
        Source(ModalitySpec(name, ("f",), "gaussian"), np.zeros((4, 1)), np.array(rows))
        for name, rows in (("rna", [0, 1, 2, 3]), ("adt", [0, 1, -1, -1]))
    ]
    return Dataset(names, sources)


def test_cells_that_cannot_be_explained_are_named() -> None:
    data, groups = cells_to_explain(), np.array([0, 1, 1, -1])
    drawn: dict[str, Any] = {"n_cells": 2, "n_background": 2, "seed": 0}
    with pytest.raises(ValueError, match="cells: expected names of cells, found none"):
        choose_sample(data, groups, [0, 1], cells=[], background=None, **drawn)
    with pytest.raises(ValueError, match="cells: cell 'd' lacks a group or a modality"):
        choose_sample(data, groups, [0, 1], cells=["a", "d"], background=None, **drawn)
    with pytest.raises(ValueError, match=r"background: expected a cell with \['rna', 'adt'\]"):
        choose_sample(data, groups, [0, 1], cells=["a"], background=["c"], **drawn)
    with pytest.raises(ValueError, match="expected cells with a group and a modality"):
        choose_sample(data, np.full(4, -1), [0, 1], cells=None, background=None, **drawn)


def mosaic_to_explain(has_adt: np.ndarray) -> Dataset:
    """Cells with RNA, some of which have proteins too."""
    n = len(has_adt)
    names = pd.Index([f"c{i}" for i in range(n)])
    rows = {"rna": np.arange(n), "adt": np.where(has_adt, np.arange(n), -1)}
    sources = [
        Source(ModalitySpec(name, ("f",), "gaussian"), np.zeros((n, 1)), where)
        for name, where in rows.items()
    ]
    return Dataset(names, sources)


def test_a_seldom_modality_is_explained_by_as_many_cells() -> None:
    groups, rng = np.repeat([0, 1, 2], 100), np.random.default_rng(0)
    has = rng.random(300) < 0.3
    has[200:] = False
    has[200:205] = True
    data = mosaic_to_explain(has)
    drawn: dict[str, Any] = {"cells": None, "background": None, "seed": 0, "n_background": 10}
    found = choose_sample(data, groups, [0, 1], n_cells=20, **drawn)
    assert np.bincount(groups[found.cells][has[found.cells]]).tolist() == [20, 20, 5]
    assert (np.bincount(groups[found.cells]) >= 20).all()
    only_rna = choose_sample(data, groups, [0], n_cells=20, **drawn)
    assert np.bincount(groups[only_rna.cells]).tolist() == [20, 20, 20]


def test_each_set_of_modalities_has_a_background_of_all_groups_that_have_it() -> None:
    groups = np.repeat([0, 1, 2], 100)
    data = mosaic_to_explain(np.isin(groups, (0, 1)) & (np.arange(300) % 2 == 0))
    drawn: dict[str, Any] = {"cells": None, "background": None, "seed": 0, "n_cells": 20}
    found = choose_sample(data, groups, [0, 1], n_background=30, **drawn)
    by_mask = {mask: groups[found.background[rows]] for mask, rows in found.compared.items()}
    of_both = by_mask[np.array([True, True]).tobytes()]
    of_rna = by_mask[np.array([True, False]).tobytes()]
    assert np.bincount(of_both).tolist() == [15, 15]
    assert np.bincount(of_rna).tolist() == [10, 10, 10]
    of_pair = choose_sample(data, groups, [1], n_background=30, **drawn)
    assert list(of_pair.compared) == [np.array([False, True]).tobytes()]
    named = choose_sample(
        data, groups, [0, 1], n_background=30, **{**drawn, "background": ["c0", "c299"]}
    )
    assert named.compared == {}


def test_a_feature_that_is_not_there_is_named() -> None:
    matrix = Matrix(np.arange(6.0).reshape(2, 3), {"x": 0, "y": 2})
    np.testing.assert_array_equal(matrix.take(np.array([1]), ["y", "x"]), [[5, 3]])
    with pytest.raises(ValueError, match="feature 'z' not found"):
        matrix.take(np.array([1]), ["z"])


# ------------------------------------------------------------------ numbers


def test_rows_of_zeros_only() -> None:
    rows = SparseRows(sparse.csr_matrix((3, 4), dtype=np.float32))
    weight, out = torch.ones(4, 2), torch.ones(4, 2)
    torch.testing.assert_close(rows.product(weight), torch.zeros(3, 2))
    torch.testing.assert_close(rows.product_with_rows(weight.T), torch.zeros(3, 2))
    rows.add_transposed(torch.ones(3, 2), out, 1.0)
    torch.testing.assert_close(out, torch.ones(4, 2))
    mean, scale = torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 2, 1, 2])
    read = rows.standardised(mean, scale)
    torch.testing.assert_close(read.squares(), torch.full((3,), 1.0 + 1 + 9 + 4))
    torch.testing.assert_close(read.product(weight), torch.full((3, 2), -1.0 - 1 - 3 - 2))
    torch.testing.assert_close(read.dense(slice(2)), torch.tensor([[-1.0, -1, -3, -2]] * 2))


def test_layers_without_weights_of_their_own() -> None:
    """Batch normalisation that only standardises; a linear layer without a constant."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3, affine=False)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    layers = nn.Sequential(nn.Linear(4, 3, bias=False), norm).double().eval()
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(trace(compile_layers(layers), x).output, layers(x))


def test_decoders_of_batches_need_the_batch(paired: MuData, quick: dict[str, Any]) -> None:
    paired.obs["plate"] = pd.Categorical(np.arange(len(paired)) % 2)
    un.tl.fit(paired, labels_key="cell_type", batch_key="plate", **quick)
    network = un.get.model(paired).network
    with pytest.raises(ValueError, match="conditioned on the batch, found batch=None"):
        network.decode(0, torch.zeros(2, network.config.n_latent), None)


@pytest.mark.parametrize(("values", "during"), [(1, 1), (10**12, 2)])
def test_large_steps_keep_their_threads(values: int, during: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with _process.threads_for(values):
            assert torch.get_num_threads() == during
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_gram_matrices_are_kept_for_a_while_only(rng: np.random.Generator) -> None:
    x = rng.normal(size=(9, 3))
    spec = ModalitySpec("rna", ("a", "b", "c"), "gaussian")
    grams = _Grams(Dataset(pd.RangeIndex(9).astype(str), [Source(spec, x, np.arange(9))]))
    first = grams.of(0, np.arange(6))
    assert grams.of(0, np.arange(6)) is first
    for n in (5, 7, 8, 9):
        grams.of(0, np.arange(n))
    again = grams.of(0, np.arange(6))
    assert again is not first
    np.testing.assert_array_equal(again, first)
    standard = (x[:6] - x[:6].mean(0)) / x[:6].std(0)
    np.testing.assert_allclose(first, standard @ standard.T, atol=1e-5)


def test_novelty_of_a_large_reference(fitted: MuData, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draw, which neither the order of cells nor a second call changes."""
    model = un.get.model(fitted)
    monkeypatch.setattr(_novelty, "_REFERENCE_CELLS", 60)
    seen: list[int] = []
    encode = type(model).encode

    def counted(self: Any, data: Any) -> Any:
        seen.append(len(data))
        return encode(self, data)

    monkeypatch.setattr(type(model), "encode", counted)
    codes = encode(model, model.open(fitted)).codes
    with quiet_update():
        reversed_ = fitted[::-1].copy()
    found = [
        Familiarity.of(model, model.open(mdata), seed).novelty(codes)
        for mdata, seed in ((fitted, 0), (reversed_, 0), (fitted, 1))
    ]
    assert seen == [60] * 3
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any() and np.isfinite(found[0]).all()


def test_first_value_that_is_not_finite() -> None:
    x = np.zeros((4, 3))
    x[2, 1] = x[2, 2] = x[3, 0] = np.nan
    assert _first_not_finite(x) == _first_not_finite(sparse.csr_matrix(x)) == (2, 1)


def test_what_is_the_same() -> None:
    x = np.eye(2)
    assert _same(x, x) and _same(x, x.copy()) and not _same(x, 2 * x)
    sparse_x = sparse.csr_matrix(x)
    assert _same(sparse_x, sparse_x.copy()) and not _same(sparse_x, 2 * sparse_x)
    assert _same(x, sparse_x) and not _same(2 * x, sparse_x) and not _same(x, x[:1])


# ------------------------------------------------------------------ surroundings


def test_what_a_killed_fit_left_behind_is_removed(
    paired: MuData, tmp_path: Path, quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**quick, "checkpoint_dir": tmp_path, "labels_key": "cell_type"}
    un.tl.fit(paired.copy(), **settings)
    finished = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    whole = tmp_path / finished[-1]
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # killed: nothing is tidied
    with pytest.raises(KeyboardInterrupt):
        write_whole(whole, {"a": torch.zeros(1)}, "{}")
    monkeypatch.undo()
    leftovers = {p for p in tmp_path.iterdir() if p.name not in finished and p.suffix != ".lock"}
    assert leftovers
    un.tl.fit(paired, resume=True, **settings)
    assert not any(path.exists() for path in leftovers)


def test_memory_where_linux_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2**20 < available_memory() < 2**50

    def fails(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(builtins, "open", fails)
    names = {"SC_PHYS_PAGES": 1, "SC_PAGE_SIZE": 2}
    monkeypatch.setattr("os.sysconf_names", names)
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert available_memory() == 4096000
    monkeypatch.setattr("os.sysconf_names", {})
    assert available_memory() == np.inf


def test_any_number_of_colours() -> None:
    for n in (1, 8, 9, 20, 21, 28, 29, 102, 103):
        colours = default_colours(n)
        assert len(colours) == n
        assert len(set(colours)) == min(n, 102)


def test_long_names_are_shortened_in_their_middle() -> None:
    assert literal("abcdefghij", 10) == "abcdefghij"
    assert literal("abcdefghijk", 10) == "abcde…hijk"
    assert literal("$x$") == r"\$x\$"
