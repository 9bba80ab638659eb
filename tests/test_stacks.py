"""Files written by either stack are read by the other, and every function works on them."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata
import everything
import mudata as md
import numpy as np
import pytest
from mudata import MuData

from unitednet_mu._compat import quiet_update

#: Made by `python tests/everything.py tests/files/STACK --new` on each stack.
FILES = Path(__file__).parent / "files"
STACKS = ("oldest", "newest")


def read(stack: str, name: str) -> MuData:
    with quiet_update(), warnings.catch_warnings():
        # the older anndata does not know the newer one's encoding of missing strings
        warnings.filterwarnings("ignore", category=FutureWarning)
        return md.read_h5mu(FILES / stack / f"{name}.h5mu")


def numbers_of(stack: str) -> dict[str, np.ndarray]:
    with np.load(FILES / stack / "found.npz") as found:
        return dict(found)


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Equal to rounding; trainings that go on, in which rounding builds up, nearly so."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value.dtype.kind == "U":
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        else:
            far = 1e-2 if name in ("continued", "labels") else 1e-4
            np.testing.assert_allclose(found[name], value, rtol=far, atol=far, err_msg=name)


@pytest.mark.parametrize("stack", STACKS)
def test_every_function_works_on_its_file(stack: str) -> None:
    with quiet_update():
        found = everything.run(read(stack, "cells"), read(stack, "query"))
    assert_close(found, numbers_of(stack))


@pytest.mark.parametrize("stack", STACKS)
def test_results_in_its_file_are_read(stack: str) -> None:
    expected = numbers_of(stack)
    found = everything.numbers(read(stack, "again"))
    assert found.keys() < expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize("stack", STACKS)
def test_its_file_is_written_again(stack: str, tmp_path: Path) -> None:
    mdata = read(stack, "again")
    # the newer pandas' strings are an option in the older anndata, as docs/reliability.md says
    allowed = anndata.settings.override(allow_write_nullable_strings=True)
    with quiet_update(), allowed:
        mdata.write(tmp_path / "again.h5mu")
        once_more = everything.numbers(md.read_h5mu(tmp_path / "again.h5mu"))
    for name, value in once_more.items():
        np.testing.assert_array_equal(value, numbers_of(stack)[name], err_msg=name)
