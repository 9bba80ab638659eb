"""Two processes on the CPU train as one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import together
import torch
from everything import PYTHONPATH
from together import CASES, Arrays

from unitednet_mu._process import drawing_apart
from unitednet_mu._ranks import GradientSum, Ranks
from unitednet_mu.tl import _launch

pytest.importorskip("lightning_fabric")

SCRIPT = Path(together.__file__)
TIMEOUT = 240


def started(job: str, folder: Path, *launcher: str) -> list[Arrays]:
    """Run a job in two processes; what each of them left."""
    command = [*launcher, str(SCRIPT), job, str(folder)]
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE")}
    environment["PYTHONPATH"] = PYTHONPATH
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)]


def assert_equal(one: Arrays, other: Arrays) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def assert_close(one: Arrays, other: Arrays, tolerance: float) -> None:
    """Within a share of an array's largest value, or of a hundredth of its kind's largest.

    (The bias before a batch normalisation has a gradient of rounding errors only.)
    """
    assert one.keys() == other.keys()
    sizes = {name: float(np.abs(np.nan_to_num(x)).max(initial=0)) for name, x in one.items()}
    kinds = {name: name.split()[0] for name in one}
    for name, value in one.items():
        of_kind = max(size for other, size in sizes.items() if kinds[other] == kinds[name])
        largest = max(sizes[name], of_kind / 100)
        np.testing.assert_allclose(
            value, other[name], rtol=0, atol=tolerance * largest, err_msg=name
        )


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[Arrays]:
    """Gradients of each case in either process."""
    return started("gradients", tmp_path_factory.mktemp("gradients"), sys.executable)


@pytest.mark.parametrize("case", CASES)
def test_terms_gradients_and_statistics_are_those_of_one_process(
    case: str, shared: list[Arrays]
) -> None:
    mine = together.gradients(Ranks(), **together._renamed(CASES[case]))
    start = f"{case}: "
    theirs = {k.removeprefix(start): v for k, v in shared[0].items() if k.startswith(start)}
    assert sum(name.startswith("gradient") for name in mine) > 20
    assert_close(mine, theirs, 1e-4)


def test_both_processes_have_the_same_gradients(shared: list[Arrays]) -> None:
    assert_equal(*shared)


def test_a_fit_is_that_of_one_process(tmp_path: Path) -> None:
    one, other = started("labels", tmp_path, sys.executable)
    assert_equal(one, other)
    mine = together.fitted(tmp_path, 1, labels_key="cell_type", training=together.SLOWLY)
    assert_close(
        {k: v for k, v in mine.items() if k.startswith("history")},
        {k: v for k, v in one.items() if k.startswith("history")},
        1e-4,
    )


def test_a_fit_started_by_torchrun_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir()
    resumed.mkdir()
    torchrun = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"
    expected = started("groups", whole, sys.executable, *torchrun)
    found = started("resumed", resumed, sys.executable)
    assert_equal(expected[0], expected[1])
    assert_equal(expected[0], found[0])
    assert_equal(found[0], found[1])


def test_an_error_of_the_first_process_reaches_all(tmp_path: Path) -> None:
    for found in started("refused", tmp_path, sys.executable):
        assert "cannot be written to" in str(found["error"])


def test_ctrl_c_in_one_process_ends_the_training_of_all(tmp_path: Path) -> None:
    one, other = started("interrupted", tmp_path, sys.executable)
    assert_equal(one, other)
    assert 1 < len(one["history val_total"]) < 200


def test_what_they_send_by_is_ended_before_the_interpreter(tmp_path: Path) -> None:
    """Or a thread that still has a tensor of the last message may abort the process."""
    for rank, found in enumerate(started("left", tmp_path, sys.executable)):
        assert found["joined"] and found["sum"] == 1
        assert (tmp_path / f"{rank}.txt").read_text() == "False"


# ------------------------------------------------------------------ without other processes


def test_one_process_changes_nothing() -> None:
    ranks = Ranks()
    x = torch.randn(5, 2, requires_grad=True)
    assert list(ranks.gather([x], [[[5]]])) == list(ranks.own([x], [[[5]]])) == [x]
    assert ranks.mean([1.0, float("nan")])[0] == 1.0
    assert ranks.of_each("a") == ["a"]
    assert ranks.any(True) and not ranks.any(False)
    x.sum().backward()
    before = x.grad
    values = torch.ones(2)
    assert GradientSum(ranks, [x]).take(values) is values
    assert x.grad is before


def test_parts_cover_a_mini_batch_once() -> None:
    for n in range(20):
        for size in (1, 2, 3, 7):
            parts = [np.arange(n)[Ranks(rank, size).part(n)] for rank in range(size)]
            assert np.concatenate(parts).tolist() == list(range(n))
            whole = Ranks(0, size).whole(n)
            assert whole % size == 0
            assert 0 <= whole - n < size


def test_input_is_dropped_apart_and_all_else_is_drawn_alike() -> None:
    drawn = []
    for rank in range(2):
        torch.manual_seed(0)
        with drawing_apart(rank):
            apart = torch.rand(3 + rank)
        drawn.append((apart[:3], torch.rand(3)))
    assert not drawn[0][0].equal(drawn[1][0])
    assert drawn[0][1].equal(drawn[1][1])
    assert not drawn[0][0].equal(drawn[0][1])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"devices": 0}, "devices: expected an integer >= 1 or 'auto', found 0"),
        ({"devices": 1.5}, "devices: expected an integer"),
        ({"num_nodes": "auto"}, "num_nodes: expected an integer >= 1, found 'auto'"),
        ({"devices": 2, "device": "meta"}, "expected device 'cpu' or 'cuda'"),
        ({"strategy": "fsdp"}, r"strategy: expected one of \['auto', 'ddp'\] .* found 'fsdp'"),
    ],
)
def test_what_cannot_be_had_is_refused(asked: dict[str, Any], message: str) -> None:
    settings = {"devices": 1, "num_nodes": 1, "strategy": "auto", "device": "cpu"} | asked
    device = torch.device(settings.pop("device"))
    with pytest.raises(ValueError, match=message):
        _launch.join_processes(device, **settings)


def test_a_notebook_is_told_to_use_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ValueError, match="several processes run a script, not a notebook"):
        _launch.join_processes(torch.device("cpu"), 2, 1, "auto")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(ImportError, match="pip install lightning-fabric"):
        _launch.join_processes(torch.device("cpu"), 2, 1, "auto")
