"""The model and all results travel in the MuData: through files, into another process."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import everything
import mudata as md
import numpy as np
import pytest
import safetensors.torch
import torch
from everything import PYTHONPATH
from mudata import MuData

import unitednet_mu as un
from unitednet_mu._compat import quiet_update
from unitednet_mu._model import Model


@pytest.fixture
def odd() -> MuData:
    """Cells whose groups have the names that trip files up, with a model."""
    return everything.cells_with_model()


@pytest.fixture
def query() -> MuData:
    return everything.unlabelled_cells()


def test_a_new_process_gives_identical_numbers(odd: MuData, query: MuData, tmp_path: Path) -> None:
    """Every function works from the file alone."""
    with quiet_update():
        odd.write(tmp_path / "cells.h5mu")
        query.write(tmp_path / "query.h5mu")
        here = everything.run(odd, query)
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", everything.__file__, "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as there:
        assert set(there) == set(here)
        for name, value in here.items():
            np.testing.assert_array_equal(there[name], value, err_msg=name)
    assert set(here["groups"]) <= {"7", "CD4/CD8 αβ", "G/M prog. #2"}
    with quiet_update():  # what the other process wrote is read here
        again = md.read_h5mu(tmp_path / "again.h5mu")
    np.testing.assert_array_equal(again.obsm["X_unitednet"], here["embedding"])
    np.testing.assert_array_equal(again.mod["adt_from_rna"].X, here["prediction"])
    table = un.get.relevance(again)
    np.testing.assert_array_equal(table["value"].to_numpy(), here["relevance"])


@pytest.mark.parametrize("kind", ["h5mu", "zarr"])
def test_all_results_survive_a_file(odd: MuData, query: MuData, tmp_path: Path, kind: str) -> None:
    write, read = {
        "h5mu": (lambda m, p: m.write(p), md.read_h5mu),
        "zarr": (lambda m, p: m.write_zarr(p), md.read_zarr),
    }[kind]
    with quiet_update(), warnings.catch_warnings():
        # anndata and zarr tell of formats to come
        warnings.filterwarnings("ignore", message=".*[Zz]arr.*")
        everything.run(odd, query)
        before = [_results(odd), _results(query)]
        for mdata, name in ((odd, "cells"), (query, "query")):
            write(mdata, tmp_path / f"{name}.{kind}")
        again = read(tmp_path / f"cells.{kind}"), read(tmp_path / f"query.{kind}")
        after = [_results(mdata) for mdata in again]
        for old, new in zip(before, after, strict=True):
            assert old.keys() == new.keys()
            for name, value in old.items():
                np.testing.assert_array_equal(new[name], value, err_msg=name)
        # and the model goes on working
        un.tl.integrate(again[0])
        np.testing.assert_array_equal(again[0].obsm["X_unitednet"], odd.obsm["X_unitednet"])
        # once more into a file, as read
        write(again[0], tmp_path / f"twice.{kind}")


def _results(mdata: MuData) -> dict[str, np.ndarray]:
    """Numbers and names of everything under the default stem."""
    found: dict[str, Any] = {}

    def add(where: str, value: Any) -> None:
        if hasattr(value, "items") and not hasattr(value, "columns"):
            for key, item in value.items():
                add(f"{where}/{key}", item)
        elif hasattr(value, "columns"):
            for column in value.columns:
                if column != "_index":
                    add(f"{where}/{column}", value[column].to_numpy())
        elif hasattr(value, "toarray"):
            found[where] = value.toarray()
        else:
            array = np.asarray(value)
            texts = array.dtype.kind in "OUST"  # T: zarr reads names in numpy's newer type
            found[where] = np.asarray(array.tolist()).astype(str) if texts else array

    add("uns", mdata.uns["unitednet"])
    for key in mdata.obsm:
        if "unitednet" in key:
            add(f"obsm/{key}", mdata.obsm[key])
    for column in mdata.obs:
        if "unitednet" in column:
            values = mdata.obs[column]
            add(f"obs/{column}", values.astype(str) if values.dtype == "category" else values)
    for name, adata in mdata.mod.items():
        add(f"{name}/X", adata.X)
        for slot in ("obsm", "varm"):
            for key, value in getattr(adata, slot).items():
                add(f"{name}/{slot}/{key}", value)
    return found


def test_backed_data(odd: MuData, tmp_path: Path) -> None:
    """A MuData whose matrices stay in their file is read like any other."""
    expected = un.get.model(odd).encode(odd).fused
    with quiet_update():
        odd.write(tmp_path / "cells.h5mu")
        backed = md.read_h5mu(tmp_path / "cells.h5mu", backed="r")
        try:
            found = un.get.model(backed).encode(backed).fused
        finally:
            backed.file.close()
    np.testing.assert_array_equal(found, expected)


def test_older_columns_outlive_the_model(odd: MuData) -> None:
    un.tl.integrate(odd)
    del odd.uns["unitednet"]
    with pytest.raises(ValueError, match="nothing stored under 'unitednet'"):
        un.tl.integrate(odd)


# ------------------------------------------------------------------ the model on its own


def same(left: Model, right: Model) -> None:
    a, b = left.network.state_dict(), right.network.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert left.info == right.info
    assert left.accuracy.keys() == right.accuracy.keys()
    for name in left.accuracy:
        np.testing.assert_array_equal(left.accuracy[name], right.accuracy[name])


@pytest.mark.parametrize(
    "settings",
    [
        {"labels_key": "cell_type"},
        {"n_groups": 2},
        {"labels_key": "cell_type", "batch_key": "batch"},
        {"labels_key": "cell_type", "network": {"n_hidden": (8, 4), "discriminators": True}},
        {"labels_key": "cell_type", "network": {"fusion": "dimension", "batch_norm": False}},
        {
            "labels_key": "cell_type",
            "training": {"max_epochs": 1, "loss_weights": {"contrastive": 0}},
        },
    ],
    ids=str,
)
def test_model_round_trips(
    paired: MuData, quick: dict[str, Any], tmp_path: Path, settings: dict[str, Any]
) -> None:
    un.tl.fit(paired, **{**quick, **settings})
    model = un.get.model(paired)
    same(Model.from_dict(model.to_dict()), model)
    with pytest.raises(OSError, match=r"cannot write .*Does its folder exist"):
        model.save(tmp_path / "nowhere" / "model.safetensors")
    model.save(tmp_path / "model.safetensors")
    loaded = Model.load(tmp_path / "model.safetensors")
    same(loaded, model)
    assert not loaded.network.training
    np.testing.assert_array_equal(loaded.encode(paired).fused, model.encode(paired).fused)
    for path in (tmp_path / "model.safetensors", str(tmp_path / "model.safetensors")):
        same(un.get.model(path), model)


def test_a_loaded_model_works_where_nothing_is_stored(
    odd: MuData, query: MuData, tmp_path: Path
) -> None:
    un.get.model(odd).save(tmp_path / "model.safetensors")
    model = Model.load(tmp_path / "model.safetensors")
    assert "unitednet" not in query.uns
    un.tl.integrate(query, model=model)
    un.tl.predict_modality(query, source="adt", target="rna", model=model)
    un.tl.explain(query, model=model, n_cells=3, n_background=3, progress=False)
    assert query.uns["unitednet"]["groups"].tolist() == list(model.info.groups)


def test_what_get_model_returns_is_apart_from_what_is_stored(odd: MuData) -> None:
    before = odd.uns["unitednet"]["model"]["weights"].copy()
    model = un.get.model(odd)
    with torch.no_grad():
        model.network.fusion.logits.add_(1)
    np.testing.assert_array_equal(odd.uns["unitednet"]["model"]["weights"], before)
    assert float(un.get.model(odd).network.fusion.logits.detach().max()) < 0.5


def test_there_is_no_pickle(odd: MuData, tmp_path: Path) -> None:
    """The stored form is safetensors, read here by that package alone, and plain JSON."""
    stored = odd.uns["unitednet"]["model"]
    assert set(stored) == {"weights", "config", "sha256"}
    tensors = safetensors.torch.load(stored["weights"].tobytes())
    assert any(name.startswith("network.encoders.0.") for name in tensors)
    config = json.loads(stored["config"])
    assert sorted(config["groups"]) == ["7", "CD4/CD8 αβ", "G/M prog. #2"]
    un.get.model(odd).save(tmp_path / "model.safetensors")
    for data in (stored["weights"].tobytes(), (tmp_path / "model.safetensors").read_bytes()):
        assert b"torch._utils" not in data
        assert not data.startswith((b"\x80", b"PK"))


# ------------------------------------------------------------------ damage


def sealed(weights: bytes) -> dict[str, Any]:
    """Weights with a checksum that fits them."""
    return {
        "weights": np.frombuffer(weights, np.uint8),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }


def reconfigured(stored: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    config = json.loads(stored["config"])
    change(config)
    return resealed(stored, json.dumps(config))


def resealed(stored: dict[str, Any], text: str) -> dict[str, Any]:
    """Settings with a checksum that fits them."""
    data = stored["weights"].tobytes() + text.encode()
    return {"config": text, "sha256": hashlib.sha256(data).hexdigest()}


def retensored(
    stored: dict[str, Any], change: Callable[[dict[str, torch.Tensor]], Any]
) -> dict[str, Any]:
    tensors = safetensors.torch.load(stored["weights"].tobytes())
    change(tensors)
    return sealed(safetensors.torch.save(tensors))


def _flip(weights: np.ndarray) -> np.ndarray:
    flipped = weights.copy()
    flipped[len(flipped) // 2] ^= 1
    return flipped


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "one bit": (lambda s: {"weights": _flip(s["weights"])}, "checksum differs"),
    "one letter of the settings": (
        lambda s: {"config": s["config"].replace("rna_1", "rna_l", 1)},
        "checksum differs",
    ),
    "a setting twice": (
        lambda s: resealed(s, s["config"][:-1] + ', "random_state": 1}'),
        "expected each setting once, found 'random_state' twice",
    ),
    "a variance below 0": (
        lambda s: retensored(s, lambda t: t["network.encoders.0.deep.0.running_var"].fill_(-1)),
        "expected variances, found values below 0",
    ),
    "more layers than tensors": (
        lambda s: reconfigured(s, lambda c: c["network"].update(n_hidden=[1] * 100_000)),
        "do not fit the stored settings .*at least 200002 layers",
    ),
    "truncated": (lambda s: {"weights": s["weights"][:-7]}, "checksum differs"),
    "wrong checksum": (lambda s: {"sha256": "0" * 64}, "checksum differs"),
    "truncated and sealed": (lambda s: sealed(s["weights"][:-8].tobytes()), "cannot be read"),
    "empty": (lambda s: sealed(b""), "cannot be read"),
    "a pickle": (lambda s: sealed(b"\x80\x04K\x01."), "cannot be read"),
    "another width": (
        lambda s: reconfigured(s, lambda c: c["network"].update(n_latent=5)),
        "do not fit the stored settings .*size mismatch",
    ),
    "another number of groups": (
        lambda s: reconfigured(s, lambda c: c["groups"].append("new")),
        "do not fit the stored settings .*size mismatch",
    ),
    "a missing tensor": (
        lambda s: retensored(s, lambda t: t.pop("network.fusion.logits")),
        "do not fit the stored settings .*fusion.logits",
    ),
    "NaN": (
        lambda s: retensored(s, lambda t: t["network.fusion.logits"].fill_(torch.nan)),
        "finite weights, found NaN or infinite values in 'fusion.logits'",
    ),
    "infinite": (
        lambda s: retensored(s, lambda t: t["network.standardisers.0.scale"].fill_(torch.inf)),
        "finite weights, found NaN or infinite values in 'standardisers.0.scale'",
    ),
    "half a text": (lambda s: resealed(s, s["config"][:60]), "settings cannot be read"),
    "no mapping": (lambda s: resealed(s, "[]"), "settings cannot be read"),
    "an unknown setting": (
        lambda s: reconfigured(s, lambda c: c["network"].update(depth=3)),
        "unknown setting 'depth'",
    ),
    "a likelihood to come": (
        lambda s: reconfigured(s, lambda c: c["modalities"][0].update(likelihood="poisson")),
        r"modalities\[0\]\.likelihood: expected one of 'gaussian', 'binary', found 'poisson'",
    ),
    "no likelihood": (
        lambda s: reconfigured(s, lambda c: c["modalities"][0].pop("likelihood")),
        r"modalities\[0\]: expected the setting 'likelihood', found none",
    ),
    "a text for groups": (
        lambda s: reconfigured(s, lambda c: c.update(groups="abc")),
        "groups: expected a list, found 'abc'",
    ),
    "numbers for groups": (
        lambda s: reconfigured(s, lambda c: c.update(groups=[1, 2, 3])),
        r"groups\[0\]: expected str, found 1",
    ),
    "a group twice": (
        lambda s: reconfigured(s, lambda c: c.update(groups=["a", "a", "b"])),
        r"groups: expected different names, found \['a', 'a', 'b'\]",
    ),
    "no modality": (
        lambda s: reconfigured(s, lambda c: c.update(modalities=[])),
        "modalities: expected at least one, found none",
    ),
    "features that are no texts": (
        lambda s: reconfigured(s, lambda c: c["modalities"][0]["features"].insert(3, None)),
        r"modalities\[0\]\.features\[3\]: expected str, found None",
    ),
    "a text for features": (
        lambda s: reconfigured(s, lambda c: c["modalities"][0].update(features="x" * 40)),
        r"modalities\[0\]\.features: expected a list, found 'xxx",
    ),
    "a text for a number": (
        lambda s: reconfigured(s, lambda c: c["network"].update(n_latent="8")),
        r"network\.n_latent: expected int, found '8'",
    ),
    "a number for a switch": (
        lambda s: reconfigured(s, lambda c: c["network"].update(batch_norm=1)),
        r"network\.batch_norm: expected bool, found 1",
    ),
    "a list for a number": (
        lambda s: reconfigured(s, lambda c: c["training"].update(learning_rate=[1])),
        r"training\.learning_rate: expected a number, found \[1\]",
    ),
    "a width of half a unit": (
        lambda s: reconfigured(s, lambda c: c["network"].update(n_hidden=[32.5])),
        r"network\.n_hidden\[0\]: expected int, found 32.5",
    ),
    "a text for a layer's place": (
        lambda s: reconfigured(s, lambda c: c["modalities"][0].update(layer=3)),
        r"modalities\[0\]\.layer: expected str or None, found 3",
    ),
    "a value out of range": (
        lambda s: reconfigured(s, lambda c: c["network"].update(dropout=2)),
        r"dropout: expected a share in \[0, 1\), found 2",
    ),
    "a seed out of range": (
        lambda s: reconfigured(s, lambda c: c.update(random_state=-1)),
        "random_state: expected an integer from 0",
    ),
    "batches without a key": (
        lambda s: reconfigured(s, lambda c: c.update(batches=["a"], batch_measured=[[True] * 2])),
        "batches: expected them with a batch_key only",
    ),
    "batches measured elsewhere": (
        lambda s: reconfigured(
            s, lambda c: c.update(batch_key="b", batches=["a"], batch_measured=[[True]])
        ),
        "batch_measured: expected a value for each of 1 batches and 2 modalities",
    ),
    "a text for a mapping": (
        lambda s: reconfigured(s, lambda c: c.update(network="large")),
        "network: expected a mapping, found 'large'",
    ),
    "deep nesting": (lambda s: resealed(s, "[" * 100_000), "settings cannot be read"),
    "absurd widths": (
        lambda s: reconfigured(s, lambda c: c["network"].update(n_hidden=[10**9])),
        "do not fit the stored settings .*size mismatch",
    ),
    "beyond any size": (
        lambda s: reconfigured(s, lambda c: c["network"].update(n_latent=10**25)),
        "no network can be built from the stored settings",
    ),
    "a list of temperatures": (
        lambda s: retensored(s, lambda t: t.update({"network.temperature": torch.ones(3)})),
        r"size mismatch for .temperature.: expected float \(\), found float \(3,\)",
    ),
    "no temperatures": (
        lambda s: retensored(s, lambda t: t.update({"network.temperature": torch.ones(0)})),
        r"size mismatch for .temperature.: expected float \(\), found float \(0,\)",
    ),
    "a temperature of 0": (
        lambda s: retensored(s, lambda t: t["network.temperature"].zero_()),
        "expected values above 0, found others in 'temperature'",
    ),
    "whole numbers for weights": (
        lambda s: retensored(
            s, lambda t: t.update({"network.fusion.logits": torch.zeros(2, 1, dtype=torch.int64)})
        ),
        "fusion.logits.: expected float .*found int64",
    ),
    "accuracy of another shape": (
        lambda s: retensored(s, lambda t: t.update({"accuracy.adt_from_rna": torch.ones(7)})),
        r"accuracy of 'adt_from_rna': expected shape \(4, 20\), found \(7,\)",
    ),
    "accuracy of another prediction": (
        lambda s: retensored(s, lambda t: t.update({"accuracy.x_from_rna": torch.ones(2, 7)})),
        "accuracy of 'x_from_rna': expected a prediction between the modalities",
    ),
    "a format to come": (
        lambda s: reconfigured(s, lambda c: c.update(format=99)),
        "format version 99 is not known; this package reads 1. Update unitednet_mu",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_in_one_line(fitted: MuData, fingerprint: Any, damage: str) -> None:
    change, message = DAMAGES[damage]
    stored = dict(fitted.uns["unitednet"]["model"])
    fitted.uns["unitednet"] = {
        **fitted.uns["unitednet"],
        "model": {**stored, **change(stored)},
    }
    before = fingerprint(fitted)
    with pytest.raises(ValueError, match=message) as caught:
        un.tl.integrate(fitted)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert fingerprint(fitted) == before


def test_rebuilding_draws_nothing(fitted: MuData) -> None:
    """No weight is drawn to be replaced: the caller's random state stays, without a fork of it."""
    before = torch.get_rng_state()
    model = un.get.model(fitted)
    assert torch.equal(torch.get_rng_state(), before)
    parts = [*model.network.parameters(), *model.network.buffers()]
    assert {part.device.type for part in parts} == {"cpu"}
    assert {part.dtype for part in parts} == {torch.float32, torch.int64}
    assert all(p.requires_grad for p in model.network.parameters())


def test_a_loaded_model_outlives_its_file(fitted: MuData, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    un.get.model(fitted).save(path)
    model = Model.load(path)
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    path.write_bytes(b"\0" * path.stat().st_size)
    assert all(torch.equal(model.network.state_dict()[name], v) for name, v in before.items())


def test_settings_added_since_have_their_default(fitted: MuData) -> None:
    stored = dict(fitted.uns["unitednet"]["model"])
    older = reconfigured(stored, lambda c: [spec.pop("counts") for spec in c["modalities"]])
    same(Model.from_dict({**stored, **older}), un.get.model(fitted))


@pytest.mark.parametrize("part", ["weights", "config", "sha256"])
def test_a_missing_part_is_named(fitted: MuData, part: str) -> None:
    stored = dict(fitted.uns["unitednet"]["model"])
    del stored[part]
    with pytest.raises(ValueError, match=rf"expected the entries .*found no \['{part}'\]"):
        Model.from_dict(stored)


def _swap(data: bytes) -> bytes:
    """One bit of the last tensor."""
    return data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-9], "not a safetensors file"),
        (lambda data: data[:30], "not a safetensors file"),
        (lambda data: b"", "not a safetensors file"),
        (lambda data: b"\x80\x04K\x01.", "not a safetensors file"),
        (_swap, "damaged"),
    ],
    ids=["truncated", "header only", "empty", "pickle", "one bit"],
)
def test_damaged_files(fitted: MuData, tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "model.safetensors"
    un.get.model(fitted).save(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as caught:
        Model.load(path)
    assert "\n" not in str(caught.value)
    assert "model.safetensors" in str(caught.value)


def test_somebody_elses_file(tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"not written by unitednet_mu's Model\.save"):
        Model.load(tmp_path / "other.safetensors")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Model.load(tmp_path / "nowhere.safetensors")
