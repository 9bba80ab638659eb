"""Data beyond memory: cells per second and peak memory from disk and in memory, by number of cells.

python tests/benchmarks/scale.py [--cells 10000 100000 1000000] [--folder FOLDER] [--device cuda]

Writes simulated cells (2,000 sparse features of about 5 % density, 100 dense ones) to a file in
FOLDER, block by block, trains one epoch, embeds all cells, and deletes the file. Each measurement
is a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import mudata
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import sparse_dataset, write_elem
from mudata import MuData
from scipy import sparse

import unitednet_mu as un
from unitednet_mu._compat import quiet_update
from unitednet_mu._train import Trainer
from unitednet_mu.tl._explain_cost import available_memory

N_FACTORS, N_GROUPS, DENSITY = 16, 10, 0.05
#: Cells drawn and written at a time.
BLOCK = 5000
#: Bytes of a cell's value in the file: a sparse one with its index, a dense one.
SPARSE_BYTES, DENSE_BYTES = 8, 4
#: What data in memory take for a while when they are read, in sizes of the file.
IN_MEMORY = 3.0


class Cells:
    """Low-rank cells in ten groups: log counts, sparse, and continuous values, drawn by block."""

    def __init__(self, n_sparse: int, n_dense: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.seed = seed
        self.centres = rng.normal(0, 1, (N_GROUPS, N_FACTORS))
        self.loadings = rng.normal(0, 0.3, (N_FACTORS, n_sparse)).astype(np.float32)
        self.offsets = rng.normal(0, 1, n_sparse).astype(np.float32)
        self.dense_loadings = rng.normal(0, 0.5, (N_FACTORS, n_dense)).astype(np.float32)
        rates = self._rates(self._factors(rng, rng.integers(N_GROUPS, size=1000)))
        low, high = -20.0, 20.0
        while high - low > 1e-3:  # shift of all log rates that gives the density
            middle = (low + high) / 2
            dense = float((1 - np.exp(-rates * np.exp(middle))).mean()) > DENSITY
            low, high = (low, middle) if dense else (middle, high)
        self.offsets += np.float32(low)

    def _factors(self, rng: np.random.Generator, groups: np.ndarray) -> np.ndarray:
        noise = rng.normal(0, 0.5, (len(groups), N_FACTORS))
        return np.asarray(self.centres[groups] + noise, np.float32)

    def _rates(self, factors: np.ndarray) -> np.ndarray:
        return np.exp(factors @ self.loadings + self.offsets)

    def blocks(
        self, n_cells: int
    ) -> Iterator[tuple[np.ndarray, sparse.csr_matrix[Any], np.ndarray]]:
        """Yield groups, log counts (CSR float32) and continuous values (float32) of some cells."""
        for start in range(0, n_cells, BLOCK):
            rng = np.random.default_rng([self.seed, start])
            groups = rng.integers(N_GROUPS, size=min(BLOCK, n_cells - start))
            factors = self._factors(rng, groups)
            counts = sparse.csr_matrix(rng.poisson(self._rates(factors)), dtype=np.float32)
            noise = rng.normal(0, 1, (len(groups), self.dense_loadings.shape[1]))
            yield groups, counts.log1p(), (factors @ self.dense_loadings + noise).astype("f4")


def file_bytes(n_cells: int, n_sparse: int, n_dense: int) -> float:
    """Size of the file, roughly."""
    values = n_sparse * DENSITY * SPARSE_BYTES + n_dense * DENSE_BYTES
    return n_cells * (values + 200)  # names, in several places


def write_cells(path: Path, n_cells: int, n_sparse: int, n_dense: int, seed: int = 0) -> None:
    """Write cells without ever holding more than a block of their values."""
    cells = Cells(n_sparse, n_dense, seed)
    names = _barcodes(n_cells, seed)
    empty = {
        name: AnnData(
            sparse.csr_matrix((n_cells, width), dtype=np.float32),
            obs=pd.DataFrame(index=names),
            var=pd.DataFrame(index=[f"{name}{j}" for j in range(width)]),
        )
        for name, width in (("rna", n_sparse), ("adt", n_dense))
    }
    with quiet_update():
        mdata = MuData(empty)
        mdata.write_h5mu(path)
    del mdata, empty
    groups_seen = []
    with h5py.File(path, "r+") as file:
        rna, adt = file["mod/rna"], file["mod/adt"]
        del rna["X"], adt["X"]
        dense = adt.create_dataset("X", (n_cells, n_dense), "f4")
        dense.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        start = 0
        for groups, counts, values in cells.blocks(n_cells):
            if start == 0:
                write_elem(rna, "X", counts)
            else:
                sparse_dataset(rna["X"]).append(counts)
            dense[start : start + len(groups)] = values
            groups_seen.append(groups)
            start += len(groups)
        labels = pd.Categorical.from_codes(
            np.concatenate(groups_seen), [f"group{k}" for k in range(N_GROUPS)]
        )
        write_elem(file, "obs", pd.DataFrame({"cell_type": labels}, index=names))


def _barcodes(n_cells: int, seed: int) -> pd.Index:
    """Names whose order says nothing of the order in the file, as those of real cells."""
    letters = np.random.default_rng(seed).choice(list("ACGT"), (n_cells, 12))
    return pd.Index(["".join(row) + f"-{i}" for i, row in enumerate(letters)], dtype=object)


def measure(path: Path, where: str, device: str) -> dict[str, float]:
    """One epoch and one embedding; seconds, cells and peak memory of this process."""
    epochs: list[float] = []
    train_epoch = Trainer._train_epoch

    def timed(self: Trainer, *args: Any) -> dict[str, float]:
        start = time.perf_counter()
        found = train_epoch(self, *args)
        epochs.append(time.perf_counter() - start)
        return found

    start = time.perf_counter()
    mdata = mudata.read_h5mu(path, backed="r" if where == "disk" else None)
    opened = time.perf_counter()
    settings = {"max_epochs": 1, "refit": False}
    with patch.object(Trainer, "_train_epoch", timed):
        un.tl.fit(mdata, labels_key="cell_type", training=settings, device=device, progress=False)
    fitted = time.perf_counter()
    un.tl.integrate(mdata, device=device)
    done = time.perf_counter()
    share = un.get.model(mdata).info.training.validation_fraction
    return {
        "cells": mdata.n_obs,
        "trained": mdata.n_obs - round(share * mdata.n_obs),
        "open": opened - start,
        "epoch": sum(epochs),
        "fit": fitted - opened,
        "integrate": done - fitted,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "correct": float(
            (mdata.obs["unitednet_group"].astype(str) == mdata.obs["cell_type"].astype(str)).mean()
        ),
    }


def apart(path: Path, where: str, device: str) -> dict[str, float]:
    """:func:`measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", where, str(path), "--device", device]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(found: list[tuple[str, dict[str, float]]]) -> pd.DataFrame:
    """Rows of the report."""
    rows, before, memory = [], {}, {}
    for where, values in found:
        if where == "memory":
            memory[values["cells"]] = values
    for where, values in found:
        cost = {name: values[name] / values["cells"] for name in ("epoch", "integrate")}
        row = {
            "cells": int(values["cells"]),
            "read from": where,
            "epoch, cells/s": round(values["trained"] / values["epoch"]),
            "integrate, cells/s": round(values["cells"] / values["integrate"]),
            "fit of one epoch, s": round(values["fit"], 1),
            "peak RSS, GiB": round(values["peak"] / 2**30, 2),
        }
        for name in cost:
            reference = memory.get(values["cells"])
            row[f"{name}: speed of in memory"] = (
                f"{reference[name] / values[name]:.2f}" if where == "disk" and reference else ""
            )
            last = before.get(where)
            row[f"{name}: cost a cell to size before"] = (
                f"{cost[name] / last[name]:.2f}" if last else ""
            )
        before[where] = cost
        rows.append(row)
    return pd.DataFrame(rows)


def run(
    sizes: list[int], n_sparse: int, n_dense: int, folder: str | None, device: str
) -> pd.DataFrame:
    """Write, measure and delete each size; print every figure as it comes, then the table."""
    found = []
    with tempfile.TemporaryDirectory(dir=folder) as work:
        for n_cells in sizes:
            needed, free = file_bytes(n_cells, n_sparse, n_dense), shutil.disk_usage(work).free
            if needed * 1.2 > free:
                print(f"{n_cells} cells: left out, {needed:.3g} bytes do not fit on the disk")
                continue
            path = Path(work) / "cells.h5mu"
            start = time.perf_counter()
            write_cells(path, n_cells, n_sparse, n_dense)
            seconds = time.perf_counter() - start
            print(f"{n_cells} cells: {path.stat().st_size / 2**30:.3g} GiB in {seconds:.0f} s")
            for where in ("disk", "memory"):
                if where == "memory" and IN_MEMORY * path.stat().st_size > available_memory():
                    print(f"{n_cells} cells: do not fit into memory")
                    continue
                values = apart(path, where, device)
                print(where, json.dumps(values), flush=True)
                found.append((where, values))
            path.unlink()
    report = table(found)
    print(report.to_string(index=False))
    return report


def main(arguments: list[str] | None = None) -> pd.DataFrame | None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--features", type=int, nargs=2, default=[2000, 100])
    parser.add_argument("--folder", help="where files are written; the system's folder by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.measure:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            where, path = given.measure
            print(json.dumps(measure(Path(path), where, given.device)))
        return None
    return run(given.cells, *given.features, given.folder, given.device)


if __name__ == "__main__":
    main()
