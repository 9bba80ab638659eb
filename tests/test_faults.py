"""Errors at any step leave the object as it was, or complete; the process stays clean."""

from __future__ import annotations

import linecache
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from everything import PYTHONPATH
from mudata import MuData

import unitednet_mu as un
from unitednet_mu import _compat

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import reliability
from _faults import CALLS, ERRORS, Faults, Point, points_of, raise_at

#: Errors raised in each function; fewer where a call takes long.
N_FAULTS = {"fit": 4, "fit, groups": 2, "explain, refits": 2, "transfer_labels": 4}


#: Lines that give a state back: nothing can, if one of them is what fails.
GIVES_BACK = ("torch.set_num_threads(before)", "random.setstate(state)")


@pytest.fixture(scope="module")
def prepared() -> Faults:
    return Faults()


@pytest.mark.parametrize("name", CALLS)
def test_errors_at_any_step(prepared: Faults, name: str) -> None:
    """A sample; the benchmark of reliability raises many more."""
    as_view = list(CALLS).index(name) % 2 == 1
    points = prepared.points(name, as_view)
    assert len(points) > 300
    chosen = reliability.sample(points, N_FAULTS.get(name, 10), np.random.default_rng(0))
    todo = [(point, ERRORS[k % 2]) for k, point in enumerate(chosen)]
    found = list(prepared.outcomes(name, as_view, todo))
    assert len(found) == len(chosen) > 1
    for one in found:
        line = linecache.getline(one.point.file, one.point.line).strip()
        assert one.survived and (one.state_kept or line in GIVES_BACK), one
    for one in found:  # a RuntimeError of torch is told in our words here and there
        assert one.raised == one.error or (one.error, one.raised) == ("RuntimeError", "ValueError")


def test_the_harness_notices_what_is_half_written(
    prepared: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the undo, errors in the midst of writing are seen."""
    monkeypatch.setattr(_compat, "undo_on_error", nullcontext)
    points = [p for p in prepared.points("integrate", False) if p.file.endswith("_results.py")]
    todo = [(point, RuntimeError) for point in points]
    assert [one for one in prepared.outcomes("integrate", False, todo) if not one.survived]


def test_errors_are_raised_where_they_should_be(prepared: Faults) -> None:
    mdata, _ = prepared.prepared(False)
    points = points_of(lambda: un.tl.integrate(mdata))
    assert {Path(point.file).name for point in points} >= {"_integrate.py", "_results.py"}
    assert raise_at(points[0], KeyError, lambda: un.tl.integrate(mdata)) == "KeyError"
    assert raise_at(points[-1], KeyError, lambda: un.tl.integrate(mdata)) == "KeyError"
    assert raise_at(Point("nowhere", 1, 1), KeyError, lambda: un.tl.integrate(mdata)) == ""


TOUR = """
import sys, warnings
warnings.simplefilter("ignore")  # others' deprecations differ between releases
for kind in (UserWarning, RuntimeWarning):
    warnings.simplefilter("error", kind)
import unitednet_mu as un
mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2, random_state=1)
query = un.datasets.simulate_multimodal(n_obs=30, n_groups=2, random_state=2)
few = {"n_hidden": (16,), "n_latent": 4, "n_projector": 8, "n_heads": 1}
un.tl.fit(
    mdata, n_groups=2, network=few, training={"max_epochs": 2}, progress=False, device="cpu",
    checkpoint_dir=sys.argv[1],
)
un.tl.fit(mdata, labels_key="cell_type", network=few, training={"max_epochs": 100}, progress=False)
un.tl.integrate(mdata)
un.tl.predict_modality(mdata, source="rna", target="adt")
un.tl.transfer_labels(query, mdata, progress=False)
un.tl.explain(mdata, n_cells=2, n_background=2, progress=False)
print(mdata.uns["unitednet"]["params"]["ended"])
"""


@pytest.mark.parametrize("home", [None, "own"])
def test_nothing_is_needed_and_nothing_left(tmp_path: Path, home: str | None) -> None:
    """No home directory, no display; no file but those asked for."""
    places = {name: tmp_path / name for name in ("home", "temporary", "here")}
    for place in places.values():
        place.mkdir()
    gone = ("HOME", "DISPLAY", "MPLBACKEND", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR")
    environment = {name: value for name, value in os.environ.items() if name not in gone}
    environment |= {"TMPDIR": str(places["temporary"]), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = PYTHONPATH
    if home is not None:
        environment["HOME"] = str(places["home"])
    kept = tmp_path / "kept"
    done = subprocess.run(
        [sys.executable, "-c", TOUR, str(kept)],
        cwd=places["here"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "finished\n"
    # igraph imports matplotlib, which lists the machine's fonts, and says so where that takes long
    said = [line for line in done.stderr.splitlines() if "building the font cache" not in line]
    assert not said
    left = [path for place in places.values() for path in place.rglob("*") if path.is_file()]
    assert not [path for path in left if "matplotlib" not in path.parts]
    assert {path.suffix for path in kept.iterdir()} <= {".safetensors", ".lock"}


def test_views_and_copies_after_an_error(prepared: Faults) -> None:
    """A view in which a call failed is a view still, and can be used."""
    view, parent = prepared.prepared(True)
    point = [p for p in prepared.points("integrate", True) if p.file.endswith("_results.py")][-1]
    assert raise_at(point, KeyboardInterrupt, lambda: un.tl.integrate(view)) == "KeyboardInterrupt"
    assert isinstance(view, MuData)
    assert view.is_view
    un.tl.integrate(view)
    assert not view.is_view
    assert "X_unitednet" in view.obsm
    assert view.n_obs < parent.n_obs
