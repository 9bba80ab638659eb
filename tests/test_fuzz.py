"""MuData of every shape: right, or refused by name; a sample of what the benchmark runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from mudata import MuData
from strategies import mudatas

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


@settings(max_examples=25, **_SETTINGS)
@given(mdata=mudatas())
def test_any_input(mdata: MuData) -> None:
    _, wrong = _fuzz.outcome(mdata)
    assert not wrong


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
