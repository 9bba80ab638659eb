"""Checkpoints: continued bit for bit, written whole or not at all, refused if they do not fit."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from mudata import MuData
from safetensors import SafetensorError

import unitednet_mu as un
from unitednet_mu import _checkpoint, _storage
from unitednet_mu._process import random_states, set_random_states
from unitednet_mu._session import Session, State

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import _kills
import reliability

BOTH = {"max_epochs": 3, "batch_size": 32}  # trained on a part of the cells, then on all
ONCE = {**BOTH, "refit": False}
WAYS: dict[str, dict[str, Any]] = {
    "labels": {"labels_key": "cell_type", "training": BOTH},
    "number": {"n_groups": 3, "training": BOTH},
    "auto": {"batch_key": "batch", "training": {**BOTH, "alternate": True}},
    "random": {"n_groups": 3, "training": {**ONCE, "start": "random"}},
    "adversarial": {"labels_key": "cell_type", "training": ONCE},
    "nothing held out": {"n_groups": 2, "training": {**ONCE, "validation_fraction": 0.0}},
    "early stopping": {
        "labels_key": "cell_type",
        "training": {**ONCE, "max_epochs": 40, "patience": 1, "learning_rate": 0.05},
    },
}


class Killed(BaseException):
    """What stops a fit in these tests."""


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, quick: dict[str, Any]) -> dict[str, Any]:
    """Each way to fit."""
    quick["network"]["discriminators"] = request.param == "adversarial"
    return {**quick, **WAYS[request.param]}


@pytest.fixture
def simple(quick: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Settings of the shortest fit with checkpoints."""
    return {**quick, "labels_key": "cell_type", "checkpoint_dir": tmp_path / "kept"}


@pytest.fixture
def cells() -> MuData:
    return un.datasets.simulate_multimodal(
        n_obs=100, n_groups=3, n_batches=2, missing=0.2, random_state=6
    )


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Any]:
    """Stop every fit in a block after so many epochs and, perhaps, a checkpoint."""

    def patched(n_epochs: int) -> pytest.MonkeyPatch:
        ended, done = Session.epoch_ended, []

        def stop(self: Session, number: int, state: Callable[[], State], *, last: bool) -> None:
            ended(self, number, state, last=last)
            done.append(number)
            if len(done) == n_epochs:
                raise Killed

        monkeypatch.setattr(Session, "epoch_ended", stop)
        return monkeypatch

    return patched


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*.safetensors"))


def assert_same(left: MuData, right: MuData) -> None:
    """Both hold the same model, bit for bit, and the same history and settings."""
    a, b = left.uns["unitednet"], right.uns["unitednet"]
    assert a["model"]["sha256"] == b["model"]["sha256"]
    pd.testing.assert_frame_equal(a["history"], b["history"], check_exact=True)
    assert repr(a["params"]) == repr(b["params"])
    assert a["params"]["ended"] == "finished"


# ------------------------------------------------------------------ going on


@pytest.mark.parametrize("n_epochs", [1, 4])  # after the warm-up; in the second training
def test_a_continued_fit_equals_one_never_stopped(
    cells: MuData,
    way: dict[str, Any],
    tmp_path: Path,
    n_epochs: int,
    stop_after: Callable[[int], pytest.MonkeyPatch],
) -> None:
    stopped = cells.copy()
    un.tl.fit(cells, **way)
    patch = stop_after(min(n_epochs, len(un.get.history(cells)) - 1))
    with pytest.raises(Killed):
        un.tl.fit(stopped, **way, checkpoint_dir=tmp_path)
    patch.undo()
    assert "unitednet" not in stopped.uns
    torch.rand(3)  # the caller's generator has moved on meanwhile
    un.tl.fit(stopped, **way, checkpoint_dir=tmp_path, resume=True)
    assert_same(cells, stopped)
    assert len(checkpoints(tmp_path)) == 2


def test_stopped_again_and_again(
    cells: MuData, simple: dict[str, Any], stop_after: Callable[[int], pytest.MonkeyPatch]
) -> None:
    simple = {**simple, "training": {"max_epochs": 4, "batch_size": 32}}
    expected = cells.copy()
    un.tl.fit(expected, **{**simple, "checkpoint_dir": None})
    patch = stop_after(1)
    for _ in range(8):  # an epoch at a time
        with pytest.raises(Killed):
            un.tl.fit(cells, **simple, resume=True)
        patch.undo()
        patch = stop_after(1)
    un.tl.fit(cells, **simple, resume=True)  # nothing is left to train
    assert_same(cells, expected)


@pytest.mark.parametrize("reset_head", [False, True])
def test_a_warm_start_is_continued(
    fitted: MuData,
    quick: dict[str, Any],
    tmp_path: Path,
    reset_head: bool,
    stop_after: Callable[[int], pytest.MonkeyPatch],
) -> None:
    del quick["network"]
    quick |= {"model": un.get.model(fitted), "reset_head": reset_head}
    stopped = fitted.copy()
    un.tl.fit(fitted, **quick)
    patch = stop_after(2)
    with pytest.raises(Killed):
        un.tl.fit(stopped, **quick, checkpoint_dir=tmp_path)
    patch.undo()
    un.tl.fit(stopped, **quick, checkpoint_dir=tmp_path, resume=True)
    assert_same(fitted, stopped)


def test_a_finished_fit_is_only_read_again(
    cells: MuData, simple: dict[str, Any], stop_after: Callable[[int], pytest.MonkeyPatch]
) -> None:
    again = cells.copy()
    un.tl.fit(cells, **simple)
    stop_after(1)
    un.tl.fit(again, **simple, resume=True)
    assert_same(cells, again)


def test_checkpoint_every(
    cells: MuData, simple: dict[str, Any], stop_after: Callable[[int], pytest.MonkeyPatch]
) -> None:
    """What comes after the last checkpoint is trained again; the end of a phase is always kept."""
    simple |= {"training": {**ONCE, "max_epochs": 5}, "checkpoint_every": 3}
    expected, folder = cells.copy(), simple["checkpoint_dir"]
    un.tl.fit(expected, **{**simple, "checkpoint_dir": None})
    patch = stop_after(2)
    with pytest.raises(Killed):
        un.tl.fit(cells, **simple)
    assert kept(folder) == ["unitednet.lock"] or kept(folder) == []
    patch.undo()
    un.tl.fit(cells, **simple, resume=True)
    assert_same(cells, expected)
    assert [path.name for path in checkpoints(folder)] == [
        f"checkpoint-{k:08d}.safetensors"
        for k in (1, 2)  # of epochs 3 and 5
    ]


# ------------------------------------------------------------------ killed processes


@pytest.mark.parametrize("case", ["labels", "auto"])
def test_killed_at_random_moments(case: str) -> None:
    outcome = _kills.killed_at_random(case, 2, np.random.default_rng())
    assert outcome.expected is not None
    assert outcome.expected["ended"] == "finished"
    assert outcome.survived


def die_at(call: int) -> None:
    """Kill this process at a step of writing a checkpoint, the `call`-th from now on."""
    left = [call]

    def deadly(plain: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(*args, **kwargs)

        return step

    _storage.to_file = deadly(_storage.to_file)
    os.fsync, os.replace = deadly(os.fsync), deadly(os.replace)
    Path.unlink = deadly(Path.unlink)  # type: ignore[method-assign]


def test_killed_at_every_step_of_writing(tmp_path: Path) -> None:
    """Before the file is written, brought to the disk, renamed, the folder, an old one deleted."""
    expected, _ = _kills.never_killed("labels")
    folder, answer = tmp_path / "kept", tmp_path / "answer.json"
    for call in (1, 2, 3, 4, 13, 15):  # the third checkpoint is the first to delete one
        process = _kills.start("labels", folder, answer, before=partial(die_at, call))
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert len(checkpoints(folder)) <= 3
    _kills.start("labels", folder, answer).join()
    assert _kills.result(answer) == expected is not None
    assert len(checkpoints(folder)) == 2
    assert not list(folder.glob("*.unfinished"))


# ------------------------------------------------------------------ damage


@pytest.fixture
def stopped(
    cells: MuData, simple: dict[str, Any], stop_after: Callable[[int], pytest.MonkeyPatch]
) -> dict[str, Any]:
    """Settings of a fit whose folder holds two checkpoints, of three epochs."""
    patch = stop_after(2)
    with pytest.raises(Killed):
        un.tl.fit(cells.copy(), **simple)
    patch.undo()
    assert len(checkpoints(simple["checkpoint_dir"])) == 2
    return {**simple, "resume": True}


def truncate(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(path.read_bytes()[: int(rng.integers(0, path.stat().st_size))])


def flip(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def flip_in_header(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    data[int(rng.integers(int.from_bytes(data[:8], "little")))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def empty(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(b"")


def other(path: Path, rng: np.random.Generator) -> None:
    """A model, which is a safetensors file of this package as well."""
    _storage.to_file(path, {"x": torch.zeros(2)}, '{"dict": [["format", 1]]}')


DAMAGE = (truncate, flip, flip_in_header, empty)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_left_out(
    cells: MuData, stopped: dict[str, Any], damage: Callable[..., None]
) -> None:
    expected = cells.copy()
    un.tl.fit(expected, **{**stopped, "checkpoint_dir": None, "resume": False})
    newest = checkpoints(stopped["checkpoint_dir"])[-1]
    damage(newest, np.random.default_rng())
    with pytest.warns(UserWarning, match=rf"{newest.name} cannot be read and is left out"):
        un.tl.fit(cells, **stopped)
    assert_same(cells, expected)


def test_no_damage_goes_unnoticed(stopped: dict[str, Any]) -> None:
    path = checkpoints(stopped["checkpoint_dir"])[0]
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for number in range(60):
        DAMAGE[number % len(DAMAGE)](path, rng)
        if path.read_bytes() != whole:
            with pytest.raises(ValueError, match="checkpoint-"):
                _storage.from_file(path)
        path.write_bytes(whole)


def test_all_checkpoints_damaged(cells: MuData, stopped: dict[str, Any], fingerprint: Any) -> None:
    for path in checkpoints(stopped["checkpoint_dir"]):
        empty(path, np.random.default_rng())
    before = fingerprint(cells)
    with (
        pytest.warns(UserWarning, match="cannot be read"),
        pytest.raises(ValueError, match=r"none of \['checkpoint-00000002.*can be read"),
    ):
        un.tl.fit(cells, **stopped)
    assert fingerprint(cells) == before


def test_another_format_is_refused(cells: MuData, stopped: dict[str, Any]) -> None:
    other(checkpoints(stopped["checkpoint_dir"])[-1], np.random.default_rng())
    with pytest.raises(ValueError, match="expected a checkpoint of format 3, found 1"):
        un.tl.fit(cells, **stopped)


# ------------------------------------------------------------------ other data, other settings


def relabelled(mdata: MuData) -> None:
    mdata.obs["cell_type"] = mdata.obs["cell_type"].to_numpy()[::-1]


def revalued(mdata: MuData) -> None:
    mdata.mod["adt"].X[3, 4] += 1e-3


def renamed(mdata: MuData) -> None:
    mdata.mod["rna"].var_names = [f"new_{name}" for name in mdata.mod["rna"].var_names]
    mdata.update()


OTHER_DATA: dict[str, tuple[Callable[[MuData], None], str]] = {
    "values": (revalued, "values of 'adt' differ"),
    "labels": (relabelled, "labels differ"),
    "features": (renamed, "feature names of 'rna' differ"),
}


@pytest.mark.filterwarnings("ignore:.*pull:FutureWarning")
@pytest.mark.parametrize("change", OTHER_DATA)
def test_other_data_is_refused(
    cells: MuData, stopped: dict[str, Any], fingerprint: Any, change: str
) -> None:
    make, message = OTHER_DATA[change]
    make(cells)
    before, files = fingerprint(cells), kept(stopped["checkpoint_dir"])
    with pytest.raises(ValueError, match=message):
        un.tl.fit(cells, **stopped)
    assert fingerprint(cells) == before
    assert kept(stopped["checkpoint_dir"]) == files


def test_other_cells_are_refused(cells: MuData, stopped: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cell names differ"):
        un.tl.fit(cells[::-1].copy(), **stopped)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"random_state": 1}, "random_state was 0 and is 1"),
        ({"training": {**ONCE, "learning_rate": 0.1}}, r"training\['learning_rate'\] was 0.004"),
        ({"training": {**ONCE, "max_epochs": 9}}, r"training\['max_epochs'\] was 3 and is 9"),
        ({"network": {"n_latent": 4}}, r"network\['n_latent'\] was 8 and is 4"),
        ({"labels_key": None}, "labels_key was 'cell_type' and is None"),
        ({"labels_key": None, "n_groups": 3}, "n_groups was None and is 3"),
        ({"modalities": ["rna"]}, r"modalities was \['rna', 'adt'\] and is \['rna'\]"),
        ({"batch_key": "batch"}, "batch_key was None and is 'batch'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "+".join(value),
)
def test_other_settings_are_refused(
    cells: MuData, stopped: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"are of another fit: .*{message}"):
        un.tl.fit(cells, **{**stopped, **settings})
    assert "unitednet" not in cells.uns


def test_another_model_to_start_from_is_refused(
    fitted: MuData,
    quick: dict[str, Any],
    tmp_path: Path,
    stop_after: Callable[[int], pytest.MonkeyPatch],
) -> None:
    del quick["network"]
    model = un.get.model(fitted)
    patch = stop_after(1)
    with pytest.raises(Killed):
        un.tl.fit(fitted, model=model, **quick, checkpoint_dir=tmp_path)
    patch.undo()
    model.network.temperature.fill_(2.0)
    with pytest.raises(ValueError, match="are of another fit: model differ"):
        un.tl.fit(fitted, model=model, **quick, checkpoint_dir=tmp_path, resume=True)


def test_another_number_of_threads_is_said(cells: MuData, stopped: dict[str, Any]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        message = f"will not be those of .*: threads was {before} and is {before + 1}"
        with pytest.warns(UserWarning, match=message):
            un.tl.fit(cells, **stopped)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert cells.uns["unitednet"]["params"]["ended"] == "finished"


# ------------------------------------------------------------------ arguments


def test_checkpoints_of_an_earlier_fit_are_not_overwritten(
    cells: MuData, stopped: dict[str, Any]
) -> None:
    files = kept(stopped["checkpoint_dir"])
    with pytest.raises(ValueError, match=r"holds checkpoints of an earlier fit\. Pass resume"):
        un.tl.fit(cells, **{**stopped, "resume": False})
    assert kept(stopped["checkpoint_dir"]) == files


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"resume": True}, ValueError, "resume=True needs the folder"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every: expected an integer >= 1"),
        ({"checkpoint_every": 1.5}, ValueError, "checkpoint_every: expected an integer >= 1"),
        ({"checkpoint_every": True}, ValueError, "checkpoint_every: expected an integer >= 1"),
        ({"checkpoint_dir": 3}, TypeError, "checkpoint_dir: expected a path or None, found int"),
    ],
)
def test_arguments_are_checked(
    cells: MuData,
    quick: dict[str, Any],
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        un.tl.fit(cells, **quick, **arguments)


def test_a_file_is_no_folder(cells: MuData, simple: dict[str, Any]) -> None:
    simple["checkpoint_dir"].write_text("mine")
    with pytest.raises(ValueError, match="cannot be written to"):
        un.tl.fit(cells, **simple)
    assert simple["checkpoint_dir"].read_text() == "mine"


# ------------------------------------------------------------------ full disks, shared folders


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error")]
)
@pytest.mark.parametrize("place", ["to_file", "fsync", "replace"])
def test_a_checkpoint_that_cannot_be_written_stops_nothing(
    cells: MuData,
    stopped: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: Exception,
) -> None:
    expected, folder = cells.copy(), stopped["checkpoint_dir"]
    un.tl.fit(expected, **{**stopped, "checkpoint_dir": None, "resume": False})
    before = {path: path.read_bytes() for path in checkpoints(folder)}

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(_storage if place == "to_file" else os, place, fail)
    with pytest.warns(UserWarning, match="could not be written .* Training goes on"):
        un.tl.fit(cells, **stopped)
    assert_same(cells, expected)
    assert {path: path.read_bytes() for path in checkpoints(folder)} == before
    assert not list(folder.glob("*.unfinished"))


def no_room() -> None:
    """Let this process write no file beyond 20 kB: every checkpoint is larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_no_room_for_a_file(tmp_path: Path) -> None:
    """The system itself refuses the writes."""
    expected, _ = _kills.never_killed("labels")
    folder, answer = tmp_path / "kept", tmp_path / "answer.json"
    _kills.start("labels", folder, answer, before=no_room).join()
    assert _kills.result(answer) == expected is not None
    assert checkpoints(folder) == []


def test_a_folder_in_use_is_refused(cells: MuData, simple: dict[str, Any]) -> None:
    folder = simple["checkpoint_dir"]
    folder.mkdir()
    with (
        FileLock(folder / "unitednet.lock"),
        pytest.raises(ValueError, match="another fit is writing to"),
    ):
        un.tl.fit(cells, **simple)
    un.tl.fit(cells, **simple)  # free again


def test_two_processes_in_one_folder(tmp_path: Path) -> None:
    """One of them is refused, the other is not disturbed; a killed one holds nothing."""
    expected, _ = _kills.never_killed("labels")
    folder, answers = tmp_path / "kept", [tmp_path / f"{k}.json" for k in range(2)]
    first = _kills.start("labels", folder, answers[0])
    while not checkpoints(folder) and first.is_alive():
        first.join(0.01)
    second = _kills.start("labels", folder, answers[1])
    second.join()
    first.join()
    assert _kills.result(answers[0]) == expected is not None
    assert second.exitcode == 1
    assert _kills.result(answers[1]) is None


def test_two_threads(cells: MuData, quick: dict[str, Any], tmp_path: Path) -> None:
    """Side by side, each with a folder of its own: both as alone."""
    expected = [cells.copy() for _ in range(2)]
    found = [cells.copy() for _ in range(2)]
    ways = [{"labels_key": "cell_type"}, {"n_groups": 3}]
    for mdata, choice in zip(expected, ways, strict=True):
        un.tl.fit(mdata, **choice, **quick)
    threads = [
        threading.Thread(
            target=un.tl.fit,
            args=(mdata,),
            kwargs={**choice, **quick, "checkpoint_dir": tmp_path / str(k)},
        )
        for k, (mdata, choice) in enumerate(zip(found, ways, strict=True))
    ]
    state, n_threads = torch.random.get_rng_state(), torch.get_num_threads()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == n_threads
    for one, another in zip(found, expected, strict=True):
        assert_same(one, another)


# ------------------------------------------------------------------ the form of a state

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**130), 2**130), st.floats(allow_nan=False), st.text()
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(), st.integers()), inner, max_size=3),
    ),
    max_leaves=8,
)


@given(TREES)
def test_states_come_back_as_they_were(tree: Any) -> None:
    found = _checkpoint.unpack(*_checkpoint.pack(tree))
    assert found == tree
    assert repr(found) == repr(tree)


def test_tensors_and_arrays_come_back() -> None:
    tree = {"t": [torch.eye(3), torch.tensor(4)], 1: (np.arange(3), np.zeros((0, 2), np.float32))}
    found = _checkpoint.unpack(*_checkpoint.pack(tree))
    for one, another in zip([*found["t"], *found[1]], [*tree["t"], *tree[1]], strict=True):
        assert type(one) is type(another)
        assert one.dtype == another.dtype
        np.testing.assert_array_equal(one, another)


@pytest.mark.parametrize("text", ["{", '{"tensor": "none"}', '{"dict": 3}', '{"dict": [[[], 1]]}'])
def test_no_state(text: str) -> None:
    with pytest.raises(ValueError):
        _checkpoint.unpack({}, text)


def test_the_benchmark_prints_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    table = reliability.main(["--parts", "damage", "--flips", "20"])
    assert table["tried"].tolist() == [20] * 3
    assert table["held"].tolist() == [20] * 3
    assert "cut short: 20 of 20" in capsys.readouterr().out


def test_random_states_of_another_kind_of_device() -> None:
    """A training begun on a CPU goes on elsewhere with fresh numbers of that device."""
    states = random_states(torch.device("cpu"))
    expected = torch.rand(3)
    for name in ("cpu", "cuda", "mps"):
        set_random_states(states, torch.device(name))
        assert torch.equal(torch.rand(3), expected)
