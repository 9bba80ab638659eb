"""Cells as a model reads them: which, in which order, how many at a time; by hand."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from mudata import MuData
from scipy import sparse

import unitednet_mu as un
from unitednet_mu import _data
from unitednet_mu._data import Dataset, ModalitySpec, check_values, concatenate
from unitednet_mu._matrix import Source
from unitednet_mu._open import describe_modality, open_dataset
from unitednet_mu._stored import OnDisk

CPU = torch.device("cpu")
N = 30


def source(matrix: Any, rows: Sequence[int] | np.ndarray, **spec: Any) -> Source:
    features = tuple(f"f{k}" for k in range(matrix.shape[1]))
    return Source(
        ModalitySpec(**{"name": "a", "features": features, "likelihood": "gaussian"} | spec),
        matrix,
        np.asarray(rows),
    )


def values_of(n: int, n_features: int = 2) -> np.ndarray:
    """Each value says which row and column it is of."""
    return np.arange(n)[:, None] * 10.0 + np.arange(n_features)


def stored(values: np.ndarray, row_bytes: float) -> OnDisk:
    return OnDisk(values.shape, values.dtype, row_bytes, lambda start, stop: values[start:stop])


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Thirty cells whose files hold them in other orders; the first three lack the first modality.

    Of a thousand bytes, cells of 50 are read twenty at a time.
    """
    monkeypatch.setattr(_data, "_BUFFER_BYTES", 1000)
    first = np.concatenate([[-1, -1, -1], np.random.default_rng(0).permutation(N - 3)])
    second = np.arange(N)[::-1]
    both = [
        source(stored(values_of(N - 3), 30.0), first),
        source(stored(values_of(N), 20.0), second),
    ]
    return Dataset(pd.Index([f"c{k:02}" for k in range(N)]), both)


def test_as_many_cells_are_read_as_the_buffer_holds(on_disk: Dataset) -> None:
    assert [on_disk.cells_read(size) for size in (1, 7, 8, 20, 21, 64)] == [20, 14, 16, 20, 21, 64]
    in_memory = Dataset(on_disk.obs_names, [source(values_of(N), np.arange(N))])
    assert in_memory.cells_read(8) == 0


def test_order_of_the_file(on_disk: Dataset) -> None:
    """Of the first modality's, then the second's, where one reading does not hold the cells."""
    cells = np.random.default_rng(1).permutation(N)
    first, second = (one.rows for one in on_disk.sources)
    expected = sorted(range(N), key=lambda cell: (first[cell], second[cell]))
    assert on_disk.in_file_order(cells).tolist() == expected
    assert expected[:3] == [2, 1, 0]
    np.testing.assert_array_equal(on_disk.in_file_order(cells[:20]), cells[:20])
    assert (on_disk.in_file_order(cells[:21]) != cells[:21]).any()
    in_memory = Dataset(on_disk.obs_names, [source(values_of(N), np.arange(N)[::-1])])
    np.testing.assert_array_equal(in_memory.in_file_order(cells), cells)


def test_shuffled_in_two_steps(on_disk: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_data, "_STRETCHES", 4)
    cells, rng = np.arange(N), np.random.default_rng(5)
    ordered = on_disk.in_file_order(cells)
    starts = rng.permutation([0, 4, 8, 12, 16, 20, 24, 28])  # 16 cells a reading, of 4 stretches
    joined = np.concatenate([ordered[start : start + 4] for start in starts])
    expected = [*rng.permutation(joined[:16]), *rng.permutation(joined[16:])]
    assert on_disk.shuffled(cells, 8, np.random.default_rng(5)).tolist() == expected
    few = cells[:16]  # one reading
    np.testing.assert_array_equal(
        on_disk.shuffled(few, 8, np.random.default_rng(5)),
        np.random.default_rng(5).permutation(16),
    )


def test_more_stretches_than_cells_are_single_cells(
    on_disk: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_data, "_STRETCHES", 1000)
    rng = np.random.default_rng(2)
    joined = on_disk.in_file_order(np.arange(N))[rng.permutation(N)]
    expected = [*rng.permutation(joined[:20]), *rng.permutation(joined[20:])]
    assert on_disk.shuffled(np.arange(N), 5, np.random.default_rng(2)).tolist() == expected


def test_cells_that_are_read_one_by_one(on_disk: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_data, "_BUFFER_BYTES", 1)
    ordered = on_disk.in_file_order(np.arange(N))
    expected = ordered[np.random.default_rng(2).permutation(N)]
    found = on_disk.shuffled(np.arange(N), 1, np.random.default_rng(2))
    np.testing.assert_array_equal(found, expected)
    assert (found != np.random.default_rng(2).permutation(N)).any()


@pytest.mark.parametrize("in_memory", [False, True])
def test_blocks(on_disk: Dataset, in_memory: bool) -> None:
    """Consecutive, with each cell's own values, whether or not they are read many at a time."""
    data = on_disk.loaded(np.arange(N)) if in_memory else on_disk
    cells = np.random.default_rng(3).permutation(N)[:27]
    seen, sizes = [], []
    for block, here, where in data.blocks_of(cells, 8):
        seen.append(block)
        sizes.append(len(block))
        batch = here.batch(where, CPU)
        for m, (own, shift) in enumerate(zip(on_disk.sources, (3, 0), strict=True)):
            has = own.rows[block] >= 0
            assert batch.rows[m].tolist() == np.flatnonzero(has).tolist()
            assert batch.observed[:, m].tolist() == has.tolist()
            expected = values_of(N - shift)[own.rows[block[has]]]
            np.testing.assert_array_equal(batch.x[m], expected)  # type: ignore[arg-type]
        assert batch.complete is bool((block >= 3).all())
        assert len(batch) == len(block)
    assert sizes == [8, 8, 8, 3]
    np.testing.assert_array_equal(np.concatenate(seen), cells)


def test_a_reading_ends_with_a_smaller_block(on_disk: Dataset) -> None:
    """Readings hold whole blocks: 14 cells in blocks of 7."""
    sizes = [len(block) for block, *_ in on_disk.blocks_of(np.arange(N), 7)]
    assert sizes == [7, 7, 7, 7, 2]
    read = {id(data) for _, data, _ in list(on_disk.blocks_of(np.arange(N), 7))}
    assert len(read) == 3


def test_labels_and_batches_follow_cells(on_disk: Dataset) -> None:
    data = Dataset(on_disk.obs_names, on_disk.sources, np.arange(N) % 3, np.arange(N) % 2)
    some = np.array([29, 4, 0, 17])
    subset = data.subset(some)
    assert list(subset.obs_names) == ["c29", "c04", "c00", "c17"]
    assert subset.labels.tolist() == [2, 1, 0, 2] and subset.batches.tolist() == [1, 0, 0, 1]
    assert subset.observed.tolist() == [[True, True], [True, True], [False, True], [True, True]]
    batch = data.batch(some, CPU)
    assert batch.labels.tolist() == [2, 1, 0, 2] and batch.batches.tolist() == [1, 0, 0, 1]
    loaded = data.loaded(some)
    assert loaded.labels.tolist() == [2, 1, 0, 2] and loaded.batches.tolist() == [1, 0, 0, 1]
    assert on_disk.labels.tolist() == on_disk.batches.tolist() == [-1] * N
    assert on_disk.labels.dtype == on_disk.batches.dtype == np.int64


def test_restricted_to_a_modality(on_disk: Dataset) -> None:
    only = on_disk.restricted([1])
    assert only.observed.tolist() == [[False, True]] * N
    assert only.batch(np.arange(4), CPU).x[0] is None
    np.testing.assert_array_equal(only.batch(np.array([4]), CPU).x[1], values_of(N)[[25]])  # type: ignore[arg-type]
    assert len(only.loaded(np.array([3, 4]))) == 2


def test_canonical_order_is_of_names() -> None:
    names = pd.Index(["b", "10", "9", "a"])
    data = Dataset(names, [source(values_of(3), [0, 1, -1, 2])])
    assert data.canonical.tolist() == [1, 3, 0]  # "9" has nothing


def test_what_is_made_dense_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_data, "_FEW_VALUES", 60)
    for n, made in ((30, True), (31, False)):
        matrix = sparse.csr_matrix(values_of(n))
        kept = Dataset(pd.RangeIndex(n).astype(str), [source(matrix, np.arange(n))]).at_hand(CPU)
        found = kept.sources[0].matrix
        assert isinstance(found, np.ndarray) is made
        if made:
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, values_of(n))
        else:
            assert found is matrix


# ------------------------------------------------------------------ opened by name


def test_features_are_found_by_name(paired: MuData, caplog: pytest.LogCaptureFixture) -> None:
    features = tuple(paired["rna"].var_names)
    other = paired["rna"][:, ::-1].copy()
    mdata = MuData({"rna": other})
    shuffled = ModalitySpec("rna", (features[4], features[1], features[7]), "gaussian")
    with caplog.at_level(logging.INFO, logger="unitednet_mu"):
        data = open_dataset(mdata, [shuffled])
    expected = paired["rna"].X[:, [4, 1, 7]]
    np.testing.assert_allclose(data.sources[0].take(np.arange(len(data))), expected, rtol=1e-6)
    unknown = len(features) - 3
    assert caplog.messages == [
        f"modality 'rna': {unknown} features unknown to the model are ignored."
    ]
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="unitednet_mu"):
        open_dataset(mdata, [ModalitySpec("rna", features, "gaussian")])
    assert not caplog.messages


def test_missing_features_are_counted_and_named(paired: MuData) -> None:
    features = tuple(paired["rna"].var_names[:4])
    spec = ModalitySpec("rna", (*features, "x", "y"), "gaussian")
    extra = sorted(set(paired["rna"].var_names) - set(features))
    with pytest.raises(ValueError, match="modality 'rna'") as caught:
        open_dataset(paired, [spec])
    message = str(caught.value)
    assert "expects 6 features, 2 are missing: ['x', 'y']" in message
    assert str(extra[:5])[1:-1] in message and extra[5] not in message


@pytest.mark.filterwarnings("ignore:modality 'no' of the model is not here")
def test_what_no_cell_has_is_an_error_and_an_absent_modality_may_be(paired: MuData) -> None:
    rna, none = (ModalitySpec(n, tuple(paired["rna"].var_names), "gaussian") for n in ("rna", "no"))
    with pytest.raises(ValueError, match="modality"):
        open_dataset(paired, [rna, none])
    data = open_dataset(paired, [rna, none], partial=True)
    assert data.observed.tolist() == [[True, False]] * len(paired)
    with pytest.raises(ValueError, match=r"expected cells with one of .*\['no'\]"):
        open_dataset(paired, [none], partial=True)


def test_one_below_the_other() -> None:
    """Cells of both keep their own rows, and lack what they lack."""
    upper = Dataset(
        pd.Index(["a", "b", "c"]),
        [source(values_of(2), [1, -1, 0]), source(values_of(3), [2, 1, 0])],
        np.array([0, 1, 2]),
        np.array([3, 4, 5]),
    )
    lower = Dataset(
        pd.Index(["a", "z"]),
        [source(values_of(2) + 100, [1, 0]), source(values_of(1) + 100, [-1, 0])],
        np.array([7, 8]),
    )
    both = concatenate(upper, lower)
    assert list(both.obs_names) == ["0 a", "0 b", "0 c", "1 a", "1 z"]
    assert [one.rows.tolist() for one in both.sources] == [[1, -1, 0, 3, 2], [2, 1, 0, -1, 3]]
    assert both.observed.T.tolist() == [[1, 0, 1, 1, 1], [1, 1, 1, 0, 1]]
    assert both.labels.tolist() == [0, 1, 2, 7, 8]
    assert both.batches.tolist() == [3, 4, 5, -1, -1]
    first = both.sources[0].take(np.array([3, 0, 4, 2]))
    np.testing.assert_array_equal(first[:, 0], [110, 10, 100, 0])
    second = both.sources[1].take(np.array([4, 0, 1]))
    np.testing.assert_array_equal(second[:, 0], [100, 20, 10])


@pytest.mark.parametrize(("rows", "n_upper"), [([-1], 0), ([0], 1), ([1], 2)])
def test_rows_of_the_second_begin_where_those_of_the_first_end(
    rows: list[int], n_upper: int
) -> None:
    upper = Dataset(pd.Index(["a"]), [source(values_of(2), rows)])
    lower = Dataset(pd.Index(["b"]), [source(values_of(1) + 100, [0])])
    (both,) = concatenate(upper, lower).sources
    assert both.rows.tolist() == [*rows, n_upper]
    np.testing.assert_array_equal(both.take(np.array([1])), [[100, 101]])


# ------------------------------------------------------------------ described before training


def described(x: Any, likelihood: Any = None, **settings: Any) -> ModalitySpec:
    mdata = un.datasets.simulate_multimodal(n_obs=len(x), n_groups=2, random_state=0)
    adata = mdata["rna"][:, : x.shape[1]].copy()
    adata.X = x
    return describe_modality(MuData({"rna": adata}), "rna", None, None, likelihood, **settings)


def test_likelihood_is_found_or_chosen(rng: np.random.Generator) -> None:
    binary = (rng.random((20, 4)) < 0.5).astype(np.float32)
    counts = rng.poisson(9, (20, 4)).astype(np.float32) + np.arange(4)
    assert described(binary).likelihood == described(binary, "auto").likelihood == "binary"
    assert described(binary, "gaussian").likelihood == "gaussian"
    assert not described(binary).counts
    continuous = rng.normal(size=(20, 4)).astype(np.float32)
    assert described(continuous, "auto").likelihood == "gaussian"
    for automatic in (None, "auto"):
        with pytest.warns(UserWarning, match="looks like raw counts"):
            assert described(counts, automatic).counts
    assert described(counts, "gaussian").counts  # without a warning


def test_constant_features_are_counted_and_three_are_named(rng: np.random.Generator) -> None:
    x = rng.normal(size=(20, 7)).astype(np.float32)
    x[:, :5] = 1.5
    with pytest.warns(UserWarning, match="modality 'rna': 5 constant features") as caught:
        described(x)
    (message,) = (str(one.message) for one in caught if "constant" in str(one.message))
    mdata = un.datasets.simulate_multimodal(n_obs=20, n_groups=2, random_state=0)
    named = [f"'{name}'" in message for name in mdata["rna"].var_names[:7]]
    assert named == [True, True, True, False, False, False, False]


def test_features_that_float32_cannot_tell_apart_are_named(rng: np.random.Generator) -> None:
    x = rng.standard_normal((40, 6))
    x[:, 2] += 1e7
    mdata = MuData({"a": AnnData(x)})
    with pytest.warns(UserWarning, match=r"'a': 1 features vary by so little .* \['2'\]. Take an"):
        describe_modality(mdata, "a", None, None, None)
    describe_modality(MuData({"a": AnnData(x.astype(np.float32))}), "a", None, None, None)
    x[:, 2] -= 1e7 - 100
    describe_modality(MuData({"a": AnnData(x)}), "a", None, None, None)


@pytest.mark.parametrize(("counts", "warned"), [(False, True), (True, False)])
def test_counts_are_answered_where_the_model_read_none(
    rng: np.random.Generator, counts: bool, warned: bool
) -> None:
    one = source(rng.poisson(9, (20, 3)).astype(float) + 1, np.arange(20), counts=counts)
    nothing = Source(one.spec, None, np.full(20, -1))
    data = Dataset(pd.RangeIndex(20).astype(str), [nothing, one])
    if warned:
        with pytest.warns(UserWarning, match="modality 'a' looks like raw counts, unlike"):
            check_values(data)
    else:
        check_values(data)


def test_a_binary_model_reads_binary_values_only() -> None:
    for top, fine in ((1.0, True), (2.0, False)):
        one = source(np.array([[0.0, 1], [top, 0]]), np.arange(2), likelihood="binary")
        data = Dataset(pd.Index(["a", "b"]), [one])
        if fine:
            check_values(data)
        else:
            with pytest.raises(ValueError, match=r"modality 'a': expected values 0 and 1 only"):
                check_values(data)


# ------------------------------------------------------------------ sizes that were promised


def test_a_reading_is_of_128_mib_and_128_stretches() -> None:
    x = np.zeros((1024, 1))
    names = pd.RangeIndex(1024).astype(str)
    data = Dataset(names, [source(stored(x, 2.0**18), np.arange(1024))])
    assert data.cells_read(1) == data.cells_read(64) == 512
    order = data.shuffled(np.arange(1024), 64, np.random.default_rng(0))
    together = set(order[:512].tolist())
    starts = sum(cell - 1 not in together for cell in together)
    assert 512 / 4 / 2 * 0.7 < starts <= 128  # stretches of 4, a few of them side by side
    assert all(set(range(cell - cell % 4, cell - cell % 4 + 4)) <= together for cell in together)


def test_what_64_mib_hold_is_made_dense() -> None:
    for n, made in ((2**24, True), (2**24 + 1, False)):
        matrix = sparse.csr_matrix((1, n), dtype=np.float32)
        one = Source(ModalitySpec("a", (), "gaussian"), matrix, np.zeros(1, np.int64))
        found = Dataset(pd.Index(["a"]), [one]).at_hand(CPU).sources[0].matrix
        assert isinstance(found, np.ndarray) is made
