"""Training that ends early: by Ctrl-C, or because it diverges. What is kept, what is raised."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mudata import MuData

import unitednet_mu as un
from unitednet_mu import _fit, _results, _train
from unitednet_mu._model import Model
from unitednet_mu._optimise import Optimiser
from unitednet_mu._phase import Phase

ONCE = {"max_epochs": 6, "batch_size": 32, "refit": False}
TWICE = {**ONCE, "refit": True}
SUPERVISED = {"labels_key": "cell_type"}


@pytest.fixture
def press(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Phase]]:
    """Press Ctrl-C at a step of the network, counted from 1, or at several; phases are returned."""

    def pressed(*at: int, of: type = Optimiser, what: str = "move") -> list[Any]:
        plain, calls, phases = getattr(of, what), [], []
        begin = Phase.__init__

        def watched(self: Phase, *args: Any, **kwargs: Any) -> None:
            begin(self, *args, **kwargs)
            phases.append(self)

        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            found = plain(self, *args, **kwargs)
            calls.append(None)
            if len(calls) in at:
                signal.raise_signal(signal.SIGINT)
            return found

        monkeypatch.setattr(of, what, step)
        monkeypatch.setattr(Phase, "__init__", watched)
        return phases

    return pressed


@pytest.fixture(autouse=True)
def ctrl_c_is_given_back() -> Iterator[None]:
    """Ctrl-C raises, also where the tests run in the background, and does so again afterwards."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    given_back = signal.signal(signal.SIGINT, before)
    assert given_back is signal.default_int_handler


def state(mdata: MuData) -> dict[str, torch.Tensor]:
    return un.get.model(mdata).network.state_dict()


def ended(mdata: MuData) -> str:
    return str(mdata.uns["unitednet"]["params"]["ended"])


def assert_finite(mdata: MuData, quick: dict[str, Any]) -> None:
    """Nothing that is stored, or comes of it, is NaN or infinite where a finished fit's is not."""
    assert all(bool(value.isfinite().all()) for value in state(mdata).values())
    history = un.get.history(mdata)
    for name, column in history.drop(columns="phase").items():
        assert np.isfinite(column[column.notna()]).all(), name
    assert np.isfinite(history.filter(regex="reconstruction")).all(axis=None)
    un.tl.integrate(mdata)
    assert np.isfinite(mdata.obsm["X_unitednet"]).all()
    assert np.isfinite(mdata.obsm["unitednet_probabilities"]).all()


# ------------------------------------------------------------------ Ctrl-C


@pytest.mark.parametrize("fraction", [0.2, 0.0])
def test_ctrl_c_keeps_the_best_model_so_far(
    paired: MuData,
    quick: dict[str, Any],
    press: Callable[..., list[Phase]],
    caplog: pytest.LogCaptureFixture,
    fraction: float,
) -> None:
    quick["training"] = {**ONCE, "validation_fraction": fraction}
    whole = paired.copy()
    un.tl.fit(whole, **SUPERVISED, **quick)
    phases = press(10)  # three or four steps an epoch: in the third or fourth
    with caplog.at_level(logging.WARNING, logger="unitednet_mu"):
        un.tl.fit(paired, **SUPERVISED, **quick)
    history = un.get.history(paired)
    n_epochs = 9 // (3 if fraction else 4)
    assert len(history) == n_epochs
    pd.testing.assert_frame_equal(history, un.get.history(whole)[:n_epochs], check_exact=True)
    assert caplog.messages == [f"interrupted in epoch {n_epochs}: the best model so far is kept."]
    assert ended(paired) == "interrupted"
    assert ended(whole) == "finished"
    for name, value in state(paired).items():
        if name != "temperature" and not name.startswith("direct."):  # set when training is over
            assert torch.equal(value, phases[0].best_state[name])
    if fraction:
        assert phases[0].best_epoch == int(history["val_total"].argmin())
        accuracy = un.get.model(paired).accuracy["adt_from_rna"]
        assert np.isfinite(accuracy[0]).all()  # measured as after any fit
    assert_finite(paired, quick)


def test_an_interrupted_model_is_calibrated(
    paired: MuData, quick: dict[str, Any], press: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Model] = []
    calibrate = _fit.calibrate
    monkeypatch.setattr(_fit, "calibrate", lambda m, d: (seen.append(m), calibrate(m, d))[1])
    quick["training"] = {**ONCE, "validation_fraction": 0.2}
    press(10)
    un.tl.fit(paired, **SUPERVISED, **quick)
    assert len(seen) == 1
    assert float(un.get.model(paired).network.temperature) == float(seen[0].network.temperature)
    assert float(seen[0].network.temperature) != 1


@pytest.mark.parametrize(
    ("choice", "step"), [(SUPERVISED, 1), (SUPERVISED, 4), ({"n_groups": 3}, 5)], ids=str
)
def test_ctrl_c_before_there_is_a_model(
    paired: MuData,
    quick: dict[str, Any],
    press: Any,
    fingerprint: Any,
    choice: dict[str, Any],
    step: int,
) -> None:
    """In the first epoch with groups, or in the warm-up before them: nothing is written."""
    quick["training"] = {**ONCE, "warmup": 0.5}
    press(step)
    before = fingerprint(paired)
    with pytest.raises(KeyboardInterrupt):
        un.tl.fit(paired, **choice, **quick)
    assert fingerprint(paired) == before


def test_ctrl_c_once_groups_are_found(
    paired: MuData, quick: dict[str, Any], press: Any, caplog: pytest.LogCaptureFixture
) -> None:
    quick["training"] = {**ONCE, "warmup": 0.5}
    press(3 * 4 + 2 * 4 + 1)  # after the warm-up and two epochs more
    un.tl.fit(paired, n_groups=3, **quick)
    assert un.get.history(paired)["phase"].tolist() == ["warmup"] * 3 + ["train"] * 2
    assert len(un.get.model(paired).network.heads) == 1
    assert ended(paired) == "interrupted"
    assert_finite(paired, quick)


@pytest.mark.parametrize("choice", [SUPERVISED, {"n_groups": 3}], ids=str)
def test_ctrl_c_in_the_training_on_all_cells(
    paired: MuData,
    quick: dict[str, Any],
    press: Any,
    caplog: pytest.LogCaptureFixture,
    choice: dict[str, Any],
) -> None:
    """Wherever it is, the model of the first training is better and is kept."""
    quick["training"] = ONCE
    first = paired.copy()
    un.tl.fit(first, **choice, **quick)
    quick["training"] = TWICE
    press(6 * 4 + 2 if choice is not SUPERVISED else 6 * 4 + 10)
    with caplog.at_level(logging.WARNING, logger="unitednet_mu"):
        un.tl.fit(paired, **choice, **quick)
    assert "interrupted in epoch" in caplog.text
    assert "trained without the held-out cells is kept" in caplog.text
    assert ended(paired) == "interrupted"
    a, b = state(paired), state(first)
    assert all(torch.equal(a[name], b[name]) for name in a)
    pd.testing.assert_frame_equal(un.get.history(paired), un.get.history(first))


def test_ctrl_c_while_calibrating(
    paired: MuData, quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first training is done, the second is left out."""
    measure = _fit.expected_accuracy

    def pressed(*args: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return measure(*args)

    monkeypatch.setattr(_fit, "expected_accuracy", pressed)
    quick["training"] = {**TWICE, "validation_fraction": 0.2}
    un.tl.fit(paired, **SUPERVISED, **quick)
    assert len(un.get.history(paired)) == 6
    assert ended(paired) == "interrupted"
    assert np.isfinite(un.get.model(paired).accuracy["adt_from_rna"]).all()


def test_ctrl_c_while_writing(
    paired: MuData,
    quick: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write = _results.write_fit

    def pressed(*args: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        write(*args)

    monkeypatch.setattr(_results, "write_fit", pressed)
    with caplog.at_level(logging.WARNING, logger="unitednet_mu"):
        un.tl.fit(paired, **SUPERVISED, **quick)
    assert caplog.messages == ["interrupted when training had finished: the model is kept."]
    assert ended(paired) == "finished"


def test_ctrl_c_at_once_after_going_on(
    paired: MuData, quick: dict[str, Any], press: Any, tmp_path: Path
) -> None:
    """The model of the checkpoint is there to be kept."""
    quick["training"] = ONCE
    press(14, 16)  # heeded once the next step is made; the second is of the fit that goes on
    settings = {**SUPERVISED, **quick, "checkpoint_dir": tmp_path}
    for _ in range(2):
        un.tl.fit(paired, **settings, resume=True)
        assert ended(paired) == "interrupted"
        assert len(un.get.history(paired)) == 3


def test_the_second_ctrl_c_raises(
    paired: MuData,
    quick: dict[str, Any],
    press: Any,
    fingerprint: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick["training"] = {**ONCE, "validation_fraction": 0.2}
    press(10)

    def again(*args: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")

    monkeypatch.setattr(_fit, "expected_accuracy", again)
    before = fingerprint(paired)
    with pytest.raises(KeyboardInterrupt):
        un.tl.fit(paired, **SUPERVISED, **quick)
    assert fingerprint(paired) == before


def test_an_interrupted_fit_can_be_continued(
    paired: MuData,
    quick: dict[str, Any],
    press: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if it had never been interrupted."""
    quick["training"] = ONCE
    expected = paired.copy()
    un.tl.fit(expected, **SUPERVISED, **quick)
    with monkeypatch.context():
        press(14)
        un.tl.fit(paired, **SUPERVISED, **quick, checkpoint_dir=tmp_path)
    assert ended(paired) == "interrupted"
    un.tl.fit(paired, **SUPERVISED, **quick, checkpoint_dir=tmp_path, resume=True)
    assert ended(paired) == "finished"
    assert (
        paired.uns["unitednet"]["model"]["sha256"] == expected.uns["unitednet"]["model"]["sha256"]
    )


def test_a_program_that_handles_ctrl_c_goes_on_doing_so(
    paired: MuData, quick: dict[str, Any], press: Any
) -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        press(3, 9)
        un.tl.fit(paired, **SUPERVISED, **quick)
    finally:
        signal.signal(signal.SIGINT, before)
    assert received == [signal.SIGINT] * 2
    assert ended(paired) == "finished"


def test_other_threads_leave_ctrl_c_alone(paired: MuData, quick: dict[str, Any]) -> None:
    seen: list[Any] = []

    def fit() -> None:
        un.tl.fit(paired, **SUPERVISED, **quick)
        seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=fit)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
    assert ended(paired) == "finished"


@pytest.mark.parametrize("function", ["transfer_labels", "explain"])
def test_ctrl_c_elsewhere_raises(
    fitted: MuData, press: Any, fingerprint: Any, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """An adaptation, or refits of an explanation, cut short would be of no use."""
    query = fitted.copy()
    monkeypatch.setattr("unitednet_mu._adapt._SHIFT", -np.inf)
    before = fingerprint(query), fingerprint(fitted)
    phases = press(6)
    with pytest.raises(KeyboardInterrupt):
        if function == "explain":
            un.tl.explain(fitted, n_repeats=1, n_cells=2, n_background=2, progress=False)
        else:
            un.tl.transfer_labels(query, fitted, progress=False)
    assert len(phases) == 1
    assert (fingerprint(query), fingerprint(fitted)) == before


# ------------------------------------------------------------------ divergence


@pytest.fixture
def blow_up(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Make a step of the network, counted from 1, so large that all after it fail."""

    def blown(at: int, size: float = 1e30) -> list[int]:
        plain, steps = Optimiser.move, [0]

        def step(self: Optimiser) -> None:
            plain(self)
            steps[0] += 1
            if steps[0] == at:
                with torch.no_grad():
                    for parameter in self.parameters:
                        parameter.mul_(size)

        monkeypatch.setattr(Optimiser, "move", step)
        return steps

    return blown


@pytest.mark.parametrize("fraction", [0.2, 0.0])
@pytest.mark.parametrize("size", [1e30, np.nan, np.inf])
def test_divergence_restores_the_best_state(
    paired: MuData, quick: dict[str, Any], blow_up: Any, fraction: float, size: float
) -> None:
    quick["training"] = {**ONCE, "max_epochs": 100, "validation_fraction": fraction}
    steps = blow_up(17, size)
    with pytest.warns(
        UserWarning,
        match=r"training diverged in epoch \d+: .* Lower learning_rate \(now 0.004\).* The best "
        r"model until then is kept, that of epoch \d+\.",
    ):
        un.tl.fit(paired, **SUPERVISED, **quick)
    assert steps[0] <= 19  # and not 100 epochs
    assert ended(paired) == "diverged"
    assert len(un.get.history(paired)) == 16 // (3 if fraction else 4)
    assert_finite(paired, quick)


@pytest.mark.parametrize(
    ("choice", "at"), [(SUPERVISED, 2), ({"n_groups": 3}, 2), ({"n_groups": 3}, 8)], ids=str
)
def test_divergence_before_anything_was_learned(
    paired: MuData,
    quick: dict[str, Any],
    blow_up: Any,
    fingerprint: Any,
    choice: dict[str, Any],
    at: int,
) -> None:
    quick["training"] = {**ONCE, "max_epochs": 30}
    steps, before = blow_up(at, np.nan), fingerprint(paired)
    with pytest.raises(RuntimeError, match=r"training diverged in epoch \d: .*Lower learning_rate"):
        un.tl.fit(paired, **choice, **quick)
    assert steps[0] <= at + 1
    assert fingerprint(paired) == before


def test_divergence_that_begins_slowly(paired: MuData, quick: dict[str, Any]) -> None:
    """A learning rate far too high: the first epochs are finite, but worse than the beginning."""
    quick["training"] = {**ONCE, "learning_rate": 1e12, "max_epochs": 1000, "patience": 1000}
    with pytest.raises(RuntimeError, match="training diverged"):
        un.tl.fit(paired, **SUPERVISED, **quick)
    assert "unitednet" not in paired.uns


def test_divergence_of_the_training_on_all_cells(
    paired: MuData, quick: dict[str, Any], blow_up: Any
) -> None:
    quick["training"] = ONCE
    first = paired.copy()
    un.tl.fit(first, **SUPERVISED, **quick)
    quick["training"] = TWICE
    blow_up(6 * 4 + 10)
    with pytest.warns(UserWarning, match="trained without the held-out cells is kept"):
        un.tl.fit(paired, **SUPERVISED, **quick)
    assert ended(paired) == "diverged"
    a, b = state(paired), state(first)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_an_averaged_weight_that_overflows_is_divergence(
    paired: MuData, quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses may be finite where a weight that no cell uses is not."""
    evaluate = _train.Trainer._evaluate

    def spoiled(self: Any, tasks: Any, identify: bool) -> dict[str, float]:
        found = evaluate(self, tasks, identify)
        if len(self.rows) == 3:
            with torch.no_grad():
                tasks.network.heads[0].logits.bias[0] = torch.inf
        return found

    monkeypatch.setattr(_train.Trainer, "_evaluate", spoiled)
    quick["training"] = ONCE
    with pytest.warns(UserWarning, match="training diverged in epoch 3"):
        un.tl.fit(paired, **SUPERVISED, **quick)
    assert len(un.get.history(paired)) == 3
    assert_finite(paired, quick)
