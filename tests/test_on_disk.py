"""Data beyond memory: what is read from disk, how much at a time, and that results are the same."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import mudata
import numpy as np
import pytest
import torch
from anndata.io import sparse_dataset, write_elem
from hypothesis import given, settings
from hypothesis import strategies as st
from mudata import MuData
from scipy import sparse

import unitednet_mu as un
from unitednet_mu import _data, _heads, _held_out, _matrix, _model, _setup, _stored, _train
from unitednet_mu._compat import quiet_update
from unitednet_mu._config import NetworkConfig
from unitednet_mu._data import ModalitySpec
from unitednet_mu._matrix import to_dense
from unitednet_mu._network import ModalityShape, UnitedNetwork
from unitednet_mu._open import describe_modality, open_dataset
from unitednet_mu._ranks import Ranks
from unitednet_mu._session import Session
from unitednet_mu._setup import set_statistics, split_cells
from unitednet_mu.tl import _predict_modality

Opener = Callable[[MuData], MuData]
#: anndata 0.12 says that it will write another version of zarr some day.
pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")


def as_sparse(mdata: MuData) -> MuData:
    """`mdata` with sparse RNA, and another order of cells in each modality."""
    rna, adt = mdata["rna"], mdata["adt"]
    values = np.where(rna.X > 0.3, rna.X, 0).astype(np.float32)
    rna.X = sparse.csr_matrix(values)
    rna.layers["other"] = sparse.csr_matrix(2 * values)
    with quiet_update():
        return MuData({"rna": rna, "adt": adt[::-1].copy()})


def labelled(mdata: MuData) -> MuData:
    obs = mdata.obs[["cell_type"]].copy()
    changed = as_sparse(mdata)
    changed.obs["cell_type"] = obs["cell_type"].reindex(changed.obs_names)
    return changed


@pytest.fixture
def cells(paired: MuData) -> MuData:
    return labelled(paired)


@pytest.fixture
def cells_mosaic(mosaic: MuData) -> MuData:
    return labelled(mosaic)


@pytest.fixture
def on_disk(tmp_path: Path) -> Iterator[Opener]:
    """A function that writes a MuData and opens it again, its matrices on disk."""
    opened: list[MuData] = []

    def write(mdata: MuData) -> MuData:
        path = tmp_path / f"{len(opened)}.h5mu"
        mdata.write_h5mu(path)
        opened.append(mudata.read_h5mu(path, backed="r"))
        return opened[-1]

    yield write
    for mdata in opened:
        mdata.file.close()


@pytest.fixture
def in_zarr(tmp_path: Path) -> Opener:
    def write(mdata: MuData) -> MuData:
        mdata.write_zarr(tmp_path / "cells.zarr")
        return un.datasets.open_zarr(path=tmp_path / "cells.zarr")

    return write


@pytest.fixture
def small_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for about 30 of the simulated cells, in stretches of 4, and gaps of at most 2 rows."""
    for module, name in (
        (_model, "_INFERENCE_CELLS"),
        (_setup, "_STATISTICS_BATCH"),
        (_heads, "_FUSION_BATCH"),
        (_train, "_EVALUATION_BATCH"),
        (_held_out, "_ACCURACY_CELLS"),
    ):
        monkeypatch.setattr(module, name, 8)
    monkeypatch.setattr(_data, "_BUFFER_BYTES", 8000)
    monkeypatch.setattr(_data, "_STRETCHES", 8)
    monkeypatch.setattr(_stored, "_GAP_BYTES", 500)
    monkeypatch.setattr(_stored, "_RUN_BYTES", 2000)
    monkeypatch.setattr(_matrix, "_SCAN_ROWS", 16)


class Readings:
    """Bytes of every reading of a stored array, and of what is held at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.held: list[int] = []
        plain, loaded = h5py.Dataset.__getitem__, _data.Dataset.loaded

        def counted(stored: h5py.Dataset, *arguments: Any, **more: Any) -> Any:
            found = plain(stored, *arguments, **more)
            if "/mod/" in str(stored.name) and "/X" in str(stored.name):
                self.sizes.append(int(np.asarray(found).nbytes))
            return found

        def weighed(data: _data.Dataset, positions: np.ndarray) -> _data.Dataset:
            found = loaded(data, positions)
            matrices = [s.matrix for s in found.sources if s.matrix is not None]
            self.held.append(sum(m.data.nbytes for m in matrices))
            return found

        monkeypatch.setattr(h5py.Dataset, "__getitem__", counted)
        monkeypatch.setattr(_data.Dataset, "loaded", weighed)


def specs_of(mdata: MuData) -> list[ModalitySpec]:
    return [ModalitySpec(m, tuple(mdata[m].var_names), "gaussian") for m in ("rna", "adt")]


def weights(mdata: MuData) -> dict[str, np.ndarray]:
    state = un.get.model(mdata).network.state_dict()
    return {name: value.numpy() for name, value in state.items()}


def assert_close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    scale = max(1.0, float(np.nanmax(np.abs(expected))))
    np.testing.assert_allclose(found, expected, atol=tolerance * scale, rtol=0)


# ------------------------------------------------------------------ rows of a stored matrix


@pytest.fixture(scope="module")
def stored_matrices(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A matrix, and the same sparse and dense in HDF5 and in zarr."""
    import zarr

    values = sparse.random_array((50, 7), density=0.3, rng=0, format="csr", dtype=np.float32)
    values = sparse.csr_matrix(values)
    folder = tmp_path_factory.mktemp("matrices")
    groups = [
        h5py.File(folder / "m.h5", "w"),
        zarr.open_group(str(folder / "m.zarr"), mode="w"),
    ]
    found = []
    for group in groups:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of zarr formats to come
            write_elem(group, "sparse", values)
            write_elem(group, "dense", values.toarray())
        found += [sparse_dataset(group["sparse"]), group["dense"]]
    yield values.toarray(), found
    groups[0].close()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.integers(0, 49), max_size=60),
    gap=st.integers(1, 300),
    run=st.integers(1, 300),
)
def test_any_rows_in_any_order(stored_matrices: Any, rows: list[int], gap: int, run: int) -> None:
    values, stored = stored_matrices
    wanted = np.array(rows, np.int64)
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(_stored, "_GAP_BYTES", gap)
        changed.setattr(_stored, "_RUN_BYTES", run)
        for matrix in stored:
            assert _stored.is_stored(matrix)
            read = _stored.on_disk(matrix, "rna")
            np.testing.assert_array_equal(to_dense(read[wanted]), values[wanted])
    assert not _stored.is_stored(values)


def test_consecutive_rows_and_long_runs(stored_matrices: Any) -> None:
    values, stored = stored_matrices
    read = _stored.on_disk(stored[1], "rna")
    np.testing.assert_array_equal(read[3:9], values[3:9])
    assert read.row_bytes == 28
    runs = read._runs(np.array([0, 1, 2, 49]))
    assert [run.tolist() for run in runs] == [[0, 1, 2, 49]]  # a gap of 1.3 kB is read through


def test_long_runs_and_wide_gaps_are_cut(
    stored_matrices: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = _stored.on_disk(stored_matrices[1][1], "rna")
    monkeypatch.setattr(_stored, "_GAP_BYTES", 28 * 3)
    monkeypatch.setattr(_stored, "_RUN_BYTES", 28 * 5)
    runs = read._runs(np.array([0, 1, 2, 3, 4, 5, 8, 12, 13]))
    assert [run.tolist() for run in runs] == [[0, 1, 2, 3, 4], [5, 8], [12, 13]]


def test_reading_ahead_is_one_block_and_hands_errors_on() -> None:
    made: list[int] = []
    threads = set()

    def blocks() -> Iterator[int]:
        for number in range(5):
            threads.add(threading.current_thread())
            made.append(number)
            yield number
        raise KeyError("broken")

    seen = []
    with pytest.raises(KeyError, match="broken"):
        for block in _stored.ahead(blocks()):
            assert len(made) <= block + 2
            seen.append(block)
    assert seen == list(range(5))
    assert threading.current_thread() not in threads and len(threads) == 1


# ------------------------------------------------------------------ the same results


@pytest.mark.parametrize("how", ["groups", "refit"])
def test_a_fit_from_disk_is_that_in_memory(
    cells_mosaic: MuData, on_disk: Opener, quick: dict[str, Any], how: str
) -> None:
    settings = {"n_groups": 3} if how == "groups" else {"labels_key": "cell_type"}
    quick["training"]["refit"] = how == "refit"
    stored = on_disk(cells_mosaic)
    for mdata in (cells_mosaic, stored):
        un.tl.fit(mdata, **settings, **quick)
    expected, found = weights(cells_mosaic), weights(stored)
    assert list(expected) == list(found)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    for name, value in un.get.model(cells_mosaic).accuracy.items():
        np.testing.assert_array_equal(un.get.model(stored).accuracy[name], value)


def test_a_fit_from_zarr_and_of_a_layer(
    cells: MuData, in_zarr: Opener, quick: dict[str, Any]
) -> None:
    stored = in_zarr(cells)
    assert sorted(stored.obs_names) == sorted(cells.obs_names)
    assert _stored.is_stored(stored["rna"].layers["other"])
    for mdata in (cells, stored):
        un.tl.fit(mdata, labels_key="cell_type", layer={"rna": "other"}, **quick)
        un.tl.integrate(mdata)
    for name, value in weights(cells).items():
        np.testing.assert_array_equal(weights(stored)[name], value)
    order = stored.obs_names.get_indexer(cells.obs_names)
    assert_close(stored.obsm["X_unitednet"][order], cells.obsm["X_unitednet"])
    assert _stored.is_stored(stored["rna"].X) and _stored.is_stored(stored["adt"].X)


@pytest.mark.usefixtures("small_readings")
@pytest.mark.parametrize("store", ["on_disk", "in_zarr"])
def test_results_from_disk_are_those_in_memory(
    cells_mosaic: MuData, store: str, quick: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    un.tl.fit(cells_mosaic, labels_key="cell_type", **quick)
    stored = request.getfixturevalue(store)(cells_mosaic)
    for mdata in (cells_mosaic, stored):
        un.tl.integrate(mdata)
        un.tl.predict_modality(mdata, source="rna", target="adt")
        un.tl.predict_modality(mdata, source=["rna", "adt"], target="rna")
        un.tl.explain(mdata, n_cells=10, progress=False)
        un.tl.explain(mdata, source="rna", target="adt", n_cells=10, progress=False)
    order = stored.obs_names.get_indexer(cells_mosaic.obs_names)
    for key in ("X_unitednet", "unitednet_probabilities"):
        assert_close(stored.obsm[key][order], cells_mosaic.obsm[key])
    same = stored.obs["unitednet_group"].iloc[order].to_numpy() == (
        cells_mosaic.obs["unitednet_group"].to_numpy()
    )
    assert same.all()
    for name in ("adt_from_rna", "rna_from_rna+adt"):
        predicted = cells_mosaic[name]
        here = stored[name].obs_names.get_indexer(predicted.obs_names)
        assert_close(stored[name].X[here], predicted.X)
    for name in ("rna", "adt"):
        relevance = [m[name].varm["unitednet_relevance"] for m in (stored, cells_mosaic)]
        assert_close(*relevance)
    pairs = [m.uns["unitednet"]["cross_relevance"]["adt_from_rna"] for m in (stored, cells_mosaic)]
    for group in pairs[0]["signed"]:
        assert_close(*(pair["signed"][group].toarray() for pair in pairs))


@pytest.mark.parametrize("shift", [0.0, 10.0])
def test_labels_are_transferred_from_disk(
    cells: MuData, on_disk: Opener, quick: dict[str, Any], shift: float
) -> None:
    un.tl.fit(cells, labels_key="cell_type", **quick)
    query = cells[::2].copy()
    query["adt"].X = query["adt"].X + np.float32(shift)
    expected = un.tl.transfer_labels(query, cells, progress=False, copy=True)
    stored = on_disk(query)
    un.tl.transfer_labels(stored, on_disk(cells), progress=False)
    transfer = stored.uns["unitednet"]["transfer"]
    assert ("query_loss_before" in transfer) == (shift > 0)  # the query was adapted to, or not
    for key in ("unitednet_label_confidence", "unitednet_label_novelty"):
        assert_close(stored.obs[key], expected.obs[key])
    key = "unitednet_label_probabilities"
    assert_close(stored.obsm[key], expected.obsm[key])


@pytest.mark.usefixtures("small_readings")
def test_transfer_in_several_readings_is_like_that_in_memory(
    cells: MuData, on_disk: Opener, quick: dict[str, Any]
) -> None:
    un.tl.fit(cells, labels_key="cell_type", **quick)
    query = cells[::2].copy()
    expected = un.tl.transfer_labels(query, cells, adapt=False, copy=True)
    stored = on_disk(query)
    un.tl.transfer_labels(stored, on_disk(cells), adapt=False)
    for key in ("unitednet_label_confidence", "unitednet_label_novelty"):
        assert_close(stored.obs[key], expected.obs[key])
    query["adt"].X = query["adt"].X + np.float32(10)
    shifted = on_disk(query)
    un.tl.transfer_labels(shifted, on_disk(cells), progress=False)  # adapts, from two files
    assert "query_loss_before" in shifted.uns["unitednet"]["transfer"]


@pytest.mark.usefixtures("small_readings")
def test_statistics_are_those_in_memory(cells_mosaic: MuData, on_disk: Opener) -> None:
    specs = specs_of(cells_mosaic)
    found = []
    for mdata in (cells_mosaic, on_disk(cells_mosaic)):
        data = open_dataset(mdata, specs)
        shapes = [ModalityShape(len(spec.features), "gaussian") for spec in specs]
        network = UnitedNetwork(shapes, 2, 0, NetworkConfig())
        set_statistics(network, data, split_cells(data, 0.1, 0)[0])
        found.append([(s.mean.numpy(), s.scale.numpy()) for s in network.standardisers])
    for (mean, scale), (other_mean, other_scale) in zip(*found, strict=True):
        np.testing.assert_allclose(other_mean, mean, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(other_scale, scale, rtol=1e-6)


@pytest.mark.usefixtures("small_readings")
def test_training_in_several_readings_learns_as_well(
    trained: MuData, on_disk: Opener, quick: dict[str, Any]
) -> None:
    stored = on_disk(labelled(trained))
    quick["training"]["max_epochs"] = 15
    un.tl.fit(stored, n_groups=3, **quick)
    un.tl.integrate(stored)
    groups = stored.obs["unitednet_group"]
    assert un.metrics.clustering_scores(stored.obs["cell_type"], groups)["ari"] > 0.9


@pytest.mark.usefixtures("small_readings")
def test_a_fit_in_several_readings_is_continued_bit_for_bit(
    cells: MuData,
    on_disk: Opener,
    tmp_path: Path,
    quick: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick |= {"labels_key": "cell_type"}
    whole, stopped = on_disk(cells), on_disk(cells)
    un.tl.fit(whole, **quick)
    epoch_ended = Session.epoch_ended

    def stop(session: Session, number: int, *arguments: Any, **more: Any) -> None:
        epoch_ended(session, number, *arguments, **more)
        if number == 2:
            raise SystemExit

    folder = tmp_path / "checkpoints"
    with monkeypatch.context() as changed, pytest.raises(SystemExit):
        changed.setattr(Session, "epoch_ended", stop)
        un.tl.fit(stopped, checkpoint_dir=folder, **quick)
    un.tl.fit(stopped, checkpoint_dir=folder, resume=True, **quick)
    for name, value in weights(whole).items():
        np.testing.assert_array_equal(weights(stopped)[name], value)


# ------------------------------------------------------------------ how much is read


@pytest.mark.usefixtures("small_readings")
def test_memory_is_bounded_and_passes_are_few(
    on_disk: Opener, quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = labelled(un.datasets.simulate_multimodal(n_obs=400, n_groups=3))
    stored = on_disk(cells)
    whole = sum(
        int(x.nbytes) for x in (cells["rna"].X.data, cells["rna"].X.indices, cells["adt"].X)
    )
    readings = Readings(monkeypatch)
    pointers = 8 * (cells.n_obs + 1)

    def passes(work: Callable[[], Any]) -> float:
        readings.sizes.clear()
        readings.held.clear()
        work()
        of_rows = [size for size in readings.sizes if size != pointers]
        assert max(of_rows) <= 6000 < whole / 4  # 16 rows that are checked, or a run
        assert max(readings.held, default=0) <= 8000 < whole / 4
        return sum(of_rows) / whole

    un.tl.fit(cells, labels_key="cell_type", **quick)
    kept = un.get.model(cells)
    assert passes(lambda: un.tl.integrate(stored, model=kept)) <= 2.5
    assert (
        passes(lambda: un.tl.predict_modality(stored, source="rna", target="adt", model=kept)) < 4
    )
    assert passes(lambda: un.tl.explain(stored, n_cells=5, progress=False, model=kept)) < 4
    quick["training"]["max_epochs"] = 1
    one = passes(lambda: un.tl.fit(stored, labels_key="cell_type", **quick))
    quick["training"]["max_epochs"] = 4
    four = passes(lambda: un.tl.fit(stored, labels_key="cell_type", **quick))
    assert four - one <= 3 * 1.5  # an epoch is one pass, and a little for gaps


@pytest.mark.usefixtures("small_readings")
def test_order_of_training_is_shuffled_stretches(cells: MuData, on_disk: Opener) -> None:
    specs = specs_of(cells)
    data = open_dataset(on_disk(cells), specs)
    together = data.cells_read(8)
    assert together % 8 == 0 and 8 <= together < 40
    every = np.arange(len(data))
    orders = [data.shuffled(every, 8, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(orders[0], orders[1])
    assert (orders[0] != orders[2]).any()
    np.testing.assert_array_equal(np.sort(orders[0]), every)
    stretch = together // 8
    place = data.sources[0].rows
    for start in range(0, len(data), together):
        read = np.sort(place[orders[0][start : start + together]])
        assert (np.diff(read) > 1).sum() <= together // stretch  # few stretches of the file ...
        assert (np.diff(place[orders[0][start : start + together]]) != 1).any()  # ... and mixed
    batches = [np.ptp(place[orders[0][s : s + 8]]) for s in range(0, len(data) - 8, 8)]
    assert np.mean(batches) > 2 * 8  # cells of a mini-batch come from far apart


def test_what_one_reading_holds_is_shuffled_as_in_memory(cells: MuData, on_disk: Opener) -> None:
    specs = specs_of(cells)
    some = np.arange(3, 90)
    orders = [
        open_dataset(mdata, specs).shuffled(some, 8, np.random.default_rng(0))
        for mdata in (cells, on_disk(cells))
    ]
    np.testing.assert_array_equal(*orders)


@pytest.mark.parametrize("n", [35, 25, 0])
@pytest.mark.usefixtures("small_readings")
def test_processes_have_parts_of_each_mini_batch(
    n: int, cells_mosaic: MuData, on_disk: Opener
) -> None:
    """The last mini-batch may leave nothing for some of them."""
    cpu = torch.device("cpu")
    for mdata in (cells_mosaic, on_disk(cells_mosaic)):
        specs = [describe_modality(mdata, name, None, None, None) for name in mdata.mod]
        data = open_dataset(mdata, specs)
        data.labels = np.arange(len(data))
        order = data.shuffled(np.arange(len(data)), 12, np.random.default_rng(0))[:n]
        whole = list(data.batches_of(order, 12, cpu))
        shares = [list(data.batches_of(order, 12, cpu, Ranks(rank, 3))) for rank in range(3)]
        for (block, batch), *parts in zip(whole, *shares, strict=True):
            assert all((part == block).all() for part, _ in parts)
            found = [share for _, share in parts]
            for one in found:
                assert one.labels.equal(batch.labels)
                assert one.observed.equal(batch.observed)
                assert one.complete == batch.complete
            for m, values in enumerate(batch.x):
                if values is None:
                    assert all(one.x[m] is None for one in found)
                else:
                    assert torch.cat([one.x[m] for one in found]).equal(values)


# ------------------------------------------------------------------ errors, warnings, files


def test_results_are_written_in_place_and_values_stay(
    cells: MuData, tmp_path: Path, quick: dict[str, Any]
) -> None:
    path = tmp_path / "cells.h5mu"
    cells.write_h5mu(path)
    stored = mudata.read_h5mu(path, backed="r+")
    un.tl.fit(stored, labels_key="cell_type", **quick)
    un.tl.integrate(stored)
    un.tl.predict_modality(stored, source="rna", target="adt")
    before = mudata.read_h5mu(path)
    assert "unitednet" not in before.uns and "X_unitednet" not in before.obsm  # in memory only
    with quiet_update():
        stored.write()
    again = mudata.read_h5mu(path)
    np.testing.assert_array_equal(again.obsm["X_unitednet"], stored.obsm["X_unitednet"])
    np.testing.assert_array_equal(again["adt_from_rna"].X, stored["adt_from_rna"].X)
    for name in ("rna", "adt"):
        np.testing.assert_array_equal(to_dense(again[name].X), to_dense(cells[name].X))
    kept = stored.obsm.pop("X_unitednet")
    un.tl.integrate(stored)  # writing has closed the file, which opens itself
    np.testing.assert_array_equal(stored.obsm["X_unitednet"], kept)
    stored.file.close()
    backed = mudata.read_h5mu(path, backed="r")
    assert _stored.is_stored(backed["adt_from_rna"].X)
    un.tl.predict_modality(backed, source="rna", target="adt")
    np.testing.assert_array_equal(backed["adt_from_rna"].X, again["adt_from_rna"].X)
    backed.file.close()


@pytest.mark.parametrize("store", ["on_disk", "in_zarr"])
def test_what_would_be_read_whole_is_refused(
    fitted: MuData, store: str, request: pytest.FixtureRequest
) -> None:
    stored = request.getfixturevalue(store)(fitted)
    pair = {"source": "rna", "target": "adt"}
    calls: dict[str, tuple[list[MuData], dict[str, Any]]] = {
        "fit": ([stored], {"labels_key": "cell_type"}),
        "integrate": ([stored], {}),
        "predict_modality": ([stored], pair),
        "explain": ([stored], {}),
        "transfer_labels": ([stored, fitted], {}),
    }
    for name, (objects, named) in calls.items():
        with pytest.raises(ValueError, match=r"found copy=True.*mdata\.copy\(filename="):
            getattr(un.tl, name)(*objects, **named, copy=True)
    with pytest.raises(ValueError, match=r"reference: .* found a view of it"):
        un.tl.transfer_labels(fitted, stored[:50])
    with pytest.raises(ValueError, match="expected data in memory, found it"):
        un.pp.prepare(stored)
    with pytest.raises(ValueError, match="expected data in memory, found it"):
        un.pp.prepare(stored, copy=True)
    with pytest.raises(ValueError, match="mdata: expected data in memory, found it"):
        un.metrics.deletion_test(stored)
    with pytest.raises(ValueError, match="held_out: expected data in memory, found it"):
        un.metrics.deletion_test(fitted, held_out=stored)


def test_a_view_on_disk_in_a_file_of_its_own(
    cells: MuData, on_disk: Opener, tmp_path: Path, quick: dict[str, Any]
) -> None:
    un.tl.fit(cells, labels_key="cell_type", **quick)
    part = on_disk(cells)[:50].copy(filename=str(tmp_path / "part.h5mu"))
    un.tl.integrate(part)
    expected = un.tl.integrate(cells[:50].copy(), copy=True)
    assert_close(part.obsm["X_unitednet"], expected.obsm["X_unitednet"])
    part.file.close()


def test_values_stored_by_features_are_refused(
    cells: MuData, on_disk: Opener, quick: dict[str, Any]
) -> None:
    cells["rna"].X = cells["rna"].X.tocsc()
    with pytest.raises(ValueError, match=r"modality 'rna': .* stored by cells \(CSR\).*tocsr"):
        un.tl.fit(on_disk(cells), labels_key="cell_type", **quick)
    un.tl.fit(cells, labels_key="cell_type", **quick)  # in memory it is turned


def test_values_on_disk_are_checked(cells: MuData, on_disk: Opener, quick: dict[str, Any]) -> None:
    cells["adt"].X[100, 3] = np.nan
    with pytest.raises(ValueError, match=r"modality 'adt'.*found 1 NaN or infinite.*in 1 features"):
        un.tl.fit(on_disk(cells), labels_key="cell_type", **quick)
    cells["adt"].X = np.random.default_rng(0).poisson(9, cells["adt"].shape).astype(np.float32)
    with pytest.warns(UserWarning, match="modality 'adt' looks like raw counts"):
        un.tl.fit(on_disk(cells), labels_key="cell_type", **quick)


def test_a_prediction_that_memory_cannot_hold(
    fitted: MuData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_predict_modality, "available_memory", lambda: 1000.0)
    with pytest.raises(ValueError, match=r"120 cells x 20 features of 'adt'.*are free"):
        un.tl.predict_modality(fitted, source="rna", target="adt")
    assert "adt_from_rna" not in fitted.mod


def test_a_store_of_layers_and_of_integers(cells: MuData, tmp_path: Path) -> None:
    """A modality may have layers only; positions in pixels stay integers."""
    rna = cells["rna"].copy()
    rna.layers["own"], rna.X = rna.X, None
    made = MuData({"rna": rna, "adt": cells["adt"].copy()})
    made.obsm["pixels"] = np.arange(2 * made.n_obs).reshape(-1, 2)
    made.obs["number"] = np.arange(made.n_obs)
    made.write_zarr(tmp_path / "cells.zarr")
    found = un.datasets.open_zarr(path=tmp_path / "cells.zarr")
    assert found["rna"].X is None
    assert set(found["rna"].layers) == set(rna.layers)
    assert found.obsm["pixels"].dtype == np.int64
    np.testing.assert_array_equal(found.obsm["pixels"], made.obsm["pixels"])
    assert found.obs["number"].dtype == np.int64
    assert found.obsm["rna"].all()


def test_what_is_no_store_of_a_mudata(cells: MuData, tmp_path: Path) -> None:
    cells["rna"].write_zarr(tmp_path / "rna.zarr")
    with pytest.raises(ValueError, match="expected a MuData"):
        un.datasets.open_zarr(path=tmp_path / "rna.zarr")
    with pytest.raises(FileNotFoundError):
        un.datasets.open_zarr(path=tmp_path / "nothing.zarr")
