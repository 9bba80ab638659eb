"""Fixtures for all tests."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")  # no display needed, before anything imports matplotlib
# one thread each: the sets are small, and test processes may run side by side (numba, which scanpy
# uses, would otherwise raise the number of OpenMP threads for torch too, halfway through)
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "numba" in sys.modules:  # loaded by a plugin of pytest already: too late for the variable
    sys.modules["numba"].set_num_threads(1)
else:
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import numpy as np
import pytest
from everything import QUICK
from mudata import MuData

import unitednet_mu as un

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

from _compare import fingerprint_of


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def pbmc() -> MuData:
    """The bundled set, raw counts; every test gets its own."""
    return un.datasets.pbmc_citeseq()


@pytest.fixture
def paired() -> MuData:
    """A small simulated set, every cell with both modalities, continuous values."""
    return un.datasets.simulate_multimodal(n_obs=120, n_groups=3, random_state=1)


@pytest.fixture
def mosaic() -> MuData:
    """A small simulated set in which 30 % of the cells lack each modality."""
    return un.datasets.simulate_multimodal(n_obs=120, n_groups=3, missing=0.3, random_state=1)


@pytest.fixture
def quick() -> dict[str, Any]:
    """Settings of `tl.fit` for a small network, trained for a moment."""
    return copy.deepcopy(QUICK)


@pytest.fixture(scope="session")
def _fitted() -> MuData:
    mdata = un.datasets.simulate_multimodal(n_obs=120, n_groups=3, random_state=1)
    un.tl.fit(mdata, labels_key="cell_type", **QUICK)
    return mdata


@pytest.fixture
def fitted(_fitted: MuData) -> MuData:
    """The cells of `paired` with a supervised model, briefly trained; a test's own."""
    return _fitted.copy()


@pytest.fixture(scope="session")
def _fitted_mosaic() -> MuData:
    mdata = un.datasets.simulate_multimodal(n_obs=120, n_groups=3, missing=0.3, random_state=1)
    un.tl.fit(mdata, labels_key="cell_type", **QUICK)
    return mdata


@pytest.fixture
def fitted_mosaic(_fitted_mosaic: MuData) -> MuData:
    """The cells of `mosaic` with a supervised model, briefly trained; a test's own."""
    return _fitted_mosaic.copy()


@pytest.fixture(scope="session")
def _trained() -> MuData:
    mdata = un.datasets.simulate_multimodal(n_obs=240, n_groups=3, noise=0.3, random_state=3)
    settings = {**QUICK, "training": {"max_epochs": 50, "batch_size": 32, "refit": False}}
    un.tl.fit(mdata, labels_key="cell_type", **settings)
    un.tl.integrate(mdata)
    return mdata


@pytest.fixture
def trained(_trained: MuData) -> MuData:
    """Cells with a model that has learned their groups and links, and its groups; one a test."""
    return _trained.copy()


@pytest.fixture
def fingerprint() -> Callable[[MuData], dict[str, Any]]:
    """A function from a MuData to comparable leaves, equal if and only if nothing changed."""
    return fingerprint_of
