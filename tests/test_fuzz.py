"""MuData of every shape: right, or refused by name; a sample of what the benchmark runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mudata import MuData
from strategies import mudatas, queries

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import _fuzz

import unitednet_mu as un
from unitednet_mu import _results

_SETTINGS: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
}


@settings(max_examples=12, **_SETTINGS)
@given(mdata=mudatas(), asked=st.sampled_from(_fuzz.ASKED))
def test_any_input(mdata: MuData, asked: Mapping[str, Any]) -> None:
    _, wrong = _fuzz.outcome(mdata, asked)
    assert not wrong


@pytest.fixture(scope="module")
def reference() -> MuData:
    return _fuzz.reference_cells()


@settings(max_examples=20, **_SETTINGS)
@given(data=st.data())
def test_any_query(reference: MuData, data: st.DataObject) -> None:
    _, wrong = _fuzz.outcome_of_query(data.draw(queries(reference)), reference)
    assert not wrong


def test_what_is_not_finite_would_be_noticed(reference: MuData) -> None:
    mdata = reference.copy()
    un.tl.integrate(mdata)
    assert not _fuzz._not_finite(mdata)
    mdata.obsm["X_unitednet"][0, 0] = float("nan")
    assert _fuzz._not_finite(mdata) == ".obsm['X_unitednet'] is not finite"


def test_an_error_that_names_nothing_would_be_noticed(reference: MuData) -> None:
    def fail(error: Exception) -> None:
        raise error

    for error in (KeyError("x"), RuntimeError("mat1 and mat2"), ValueError("no")):
        _, wrong = _fuzz._refused(reference, partial(fail, error))
        assert wrong
    assert _fuzz._refused(reference, partial(fail, ValueError("modality 'rna': no"))) == (True, "")


@settings(max_examples=6, **_SETTINGS)
@given(mdata=mudatas(odd=False))
def test_a_plain_input_is_not_refused(mdata: MuData) -> None:
    what, wrong = _fuzz.outcome(mdata)
    assert not wrong
    assert what == "works"


def test_results_by_position_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of an embedding that are shifted by one cell."""
    write = _results.write_embedding

    def shifted(mdata: MuData, *others: Any) -> None:
        write(mdata, *others)
        key = others[0].embedding
        mdata.obsm[key] = mdata.obsm[key][[*range(1, mdata.n_obs), 0]]

    monkeypatch.setattr(_results, "write_embedding", shifted)
    mdata = un.datasets.simulate_multimodal(n_obs=30, n_groups=3, random_state=1)
    mdata.obs["label"] = mdata.obs["cell_type"]
    un.tl.fit(mdata, labels_key="label", **_fuzz._QUICK)
    assert _fuzz._integrated(mdata) == "results follow positions, not names"
