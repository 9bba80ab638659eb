"""What a GPU computes is what the CPU does, and it keeps or gets the data as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from everything import numbers
from mudata import MuData
from scipy import sparse
from together import SLOWLY, STILL, gradients

import unitednet_mu as un
from unitednet_mu._data import Dataset
from unitednet_mu._matrix import Columns, ModalitySpec, Source, Stacked
from unitednet_mu._on_gpu import OnGPU, kept
from unitednet_mu._ranks import Ranks
from unitednet_mu._tasks import Tasks, Terms

CPU = torch.device("cpu")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
TOLERANCE = 1e-4


def counts(n: int = 40, n_features: int = 30, dtype: Any = np.float32) -> np.ndarray:
    drawn = np.random.default_rng(0).poisson(0.3, (n, n_features))
    drawn[[3, 7]] = 0
    return drawn.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, bool])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csr_array])
@pytest.mark.parametrize("pinned", [True, False])
def test_rows_of_a_kept_matrix(dtype: Any, kind: Any, pinned: bool) -> None:
    x = counts(dtype=dtype)
    matrix = OnGPU(kind(x), CPU, pinned=pinned)
    rows = np.array([3, 39, 0, 0, 7, 12])
    assert matrix.shape == x.shape
    assert matrix[rows].dtype == torch.float32
    np.testing.assert_array_equal(matrix[rows], x[rows].astype(np.float32))
    assert matrix[rows[:0]].shape == (0, 30)


def test_values_that_are_stored_in_parts_are_added() -> None:
    parts = [1.0, 2.0, 4.0], [2, 2, 0], [0, 2, 3]
    matrix = sparse.csr_matrix(parts, shape=(2, 3))
    np.testing.assert_array_equal(OnGPU(matrix, CPU)[np.array([1, 0])], [[4, 0, 0], [0, 0, 3]])


def dataset() -> Dataset:
    """Three modalities: sparse, dense through a choice of columns, one set below another."""
    x = counts()
    rows = np.arange(40)
    lacking = np.where(rows % 3 == 0, -1, rows)
    matrices = (
        (sparse.csr_matrix(x), rows[::-1].copy()),
        (Columns(x, np.array([4, 1])), lacking),
        (Stacked(x[:20], x[20:], 20), rows),
    )
    sources = [
        Source(ModalitySpec(name, (), "gaussian"), matrix, of)
        for name, (matrix, of) in zip("abc", matrices, strict=True)
    ]
    return Dataset(pd.RangeIndex(40).astype(str), sources)


def values(data: Dataset) -> Iterator[list[np.ndarray]]:
    order = np.random.default_rng(1).permutation(40)
    for _, batch in data.batches_of(order, 16, CPU):
        yield [np.asarray(x) for x in batch.x]


def test_batches_of_kept_matrices_are_the_same() -> None:
    data = dataset()
    there = Dataset(data.obs_names, kept(data.sources, CPU, np.inf))
    assert all(isinstance(source.matrix, OnGPU) for source in there.sources)
    np.testing.assert_array_equal(there.observed, data.observed)
    for ours, theirs in zip(values(there), values(data), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_only_what_fits_is_kept() -> None:
    data = dataset()
    sizes = [OnGPU.size(sparse.csr_matrix(counts())), 26 * 2 * 4, 40 * 30 * 4]
    for room, fits in ((np.inf, [1, 1, 1]), (sum(sizes) - 1, [1, 1, 0]), (sizes[0] - 1, [0, 1, 0])):
        found = kept(data.sources, CPU, room)
        assert [isinstance(source.matrix, OnGPU) for source in found] == [bool(f) for f in fits]
        assert all(a is b for a, b, f in zip(found, data.sources, fits, strict=True) if not f)
    absent = Source(data.sources[0].spec, None, np.full(40, -1))
    assert kept([absent], CPU, np.inf) == [absent]


# ------------------------------------------------------------------ on a GPU


@on_gpu
@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("discriminators", [False, True])
@pytest.mark.parametrize("supervised", [False, True])
def test_gradients_agree(missing: float, discriminators: bool, supervised: bool) -> None:
    settings = {"discriminators": discriminators, "supervised": supervised, "n_batches": 2}
    cpu, gpu = (
        gradients(Ranks(), missing=missing, device=torch.device(name), **settings)
        for name in ("cpu", "cuda")
    )
    assert cpu.keys() == gpu.keys()
    for name, expected in cpu.items():
        largest = max(float(np.abs(expected).max(initial=0)), 1e-3)
        np.testing.assert_allclose(
            gpu[name], expected, rtol=TOLERANCE, atol=TOLERANCE * largest, err_msg=name
        )


def fitted_on(device: str, **settings: Any) -> MuData:
    mdata = un.datasets.simulate_multimodal(n_obs=300, n_groups=3, missing=0.2, random_state=1)
    mdata["rna"].X = sparse.csr_matrix(mdata["rna"].X)
    un.tl.fit(mdata, labels_key="cell_type", progress=False, device=device, **settings)
    return mdata


@on_gpu
@pytest.mark.parametrize("room", [0.0, 1.0])  # values sent batch by batch, or kept
def test_a_fit_agrees(room: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unitednet_mu._on_gpu._SHARE", room)
    settings = {"network": STILL, "training": {**SLOWLY, "batch_size": 64, "max_epochs": 3}}
    histories = [
        un.get.history(fitted_on(device, **settings)).select_dtypes("number")
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(*histories, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One for each step that was replayed."""
    replay, found = torch.cuda.CUDAGraph.replay, []

    def watched(self: torch.cuda.CUDAGraph) -> None:
        found.append(None)
        replay(self)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", watched)
    return found


@on_gpu
@pytest.mark.parametrize("labels_key", ["cell_type", None])
@pytest.mark.parametrize("changed", [{}, {"alternate": True}, {"gradient_clip": 1e-3}])
@pytest.mark.parametrize("discriminators", [False, True])
def test_replayed_steps_are_the_same(
    labels_key: str | None, changed: dict[str, Any], discriminators: bool, replayed: list[None]
) -> None:
    training = SLOWLY | {"max_epochs": 4, "batch_size": 32, "start": "random", **changed}
    network = {**STILL, "discriminators": discriminators}
    histories = []
    for cuda_graphs in (False, True):
        assert not replayed
        mdata = un.datasets.simulate_multimodal(n_obs=300, n_groups=3, n_batches=2, random_state=1)
        un.tl.fit(
            mdata,
            labels_key=labels_key,
            n_groups=None if labels_key else 3,
            batch_key="batch",
            device="cuda",
            progress=False,
            network=network,
            training={**training, "cuda_graphs": cuda_graphs},
        )
        histories.append(un.get.history(mdata).select_dtypes("number"))
    # 270 cells are trained on: eight mini-batches of 32, and one of 14, which is not replayed
    kinds = discriminators + (2 if changed.get("alternate") and labels_key else 1)
    assert len(replayed) >= kinds * (4 * 8 - 2 * 3)
    np.testing.assert_allclose(*histories, rtol=TOLERANCE, atol=TOLERANCE)


@on_gpu
def test_each_replay_draws_anew(replayed: list[None]) -> None:
    mdata = un.datasets.simulate_multimodal(n_obs=300, n_groups=3, random_state=1)
    training = {"max_epochs": 12, "batch_size": 270, "learning_rate": 1e-12, "refit": False}
    network = {"batch_norm": False, "dropout": 0.5}
    settings = {"network": network, "training": training, "device": "cuda", "progress": False}
    un.tl.fit(mdata, labels_key="cell_type", **settings)
    assert len(replayed) == 9
    losses = un.get.history(mdata)["train_reconstruction"].to_numpy()[3:]
    assert len(np.unique(losses)) == 9


@on_gpu
def test_what_cannot_be_recorded_is_done_as_it_comes(
    monkeypatch: pytest.MonkeyPatch, replayed: list[None]
) -> None:
    """With dropout, whose numbers are drawn as if nothing had been tried."""
    total = Tasks.total

    def waits(self: Tasks, terms: Terms) -> torch.Tensor:
        return total(self, terms) * float(self.network.fusion.logits.isfinite().all())

    def history(**changed: bool) -> pd.DataFrame:
        mdata = un.datasets.simulate_multimodal(n_obs=300, n_groups=3, random_state=1)
        training = {**SLOWLY, "max_epochs": 4, "batch_size": 32, **changed}
        where = {"device": "cuda", "progress": False}
        un.tl.fit(mdata, labels_key="cell_type", training=training, **where)
        return un.get.history(mdata).select_dtypes("number")

    history()
    assert replayed
    replayed.clear()
    monkeypatch.setattr(Tasks, "total", waits)
    never = history(cuda_graphs=False)
    with pytest.warns(UserWarning, match="'cuda_graphs': False"):
        tried = history()
    assert not replayed
    np.testing.assert_allclose(tried, never, rtol=TOLERANCE, atol=TOLERANCE)


def results_on(device: str, mdata: MuData) -> dict[str, np.ndarray]:
    where = {"device": device}
    un.tl.integrate(mdata, **where)
    un.tl.predict_modality(mdata, source="rna", target="adt", **where)
    for pair in ({}, {"source": "rna", "target": "adt"}):
        un.tl.explain(mdata, n_cells=10, progress=False, **where, **pair)
    found = numbers(mdata)
    # features of like value may change places
    return {name: x for name, x in found.items() if x.dtype.kind == "f"} | {
        "relevance": un.get.relevance(mdata).sort_values(["group", "feature"])["value"].to_numpy()
    }


@on_gpu
def test_results_of_a_model_agree() -> None:
    mdata = fitted_on("cuda", training={"max_epochs": 5, "refit": False})
    cpu, gpu = (results_on(device, mdata.copy()) for device in ("cpu", "cuda"))
    for name, expected in cpu.items():
        largest = float(np.nanmax(np.abs(expected)))
        np.testing.assert_allclose(
            gpu[name], expected, rtol=TOLERANCE, atol=TOLERANCE * largest, err_msg=name
        )
