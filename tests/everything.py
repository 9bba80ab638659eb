"""Every function on one file, and the numbers that come out: run by tests and by other processes.

`python tests/everything.py FOLDER` reads cells.h5mu and query.h5mu in the folder, and writes
found.npz and again.h5mu beside them; with `--new` it makes the two first. tests/files holds what
that writes on each of the two stacks.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mudata as md
import numpy as np
from mudata import MuData

import unitednet_mu as un
from unitednet_mu._compat import quiet_update

#: Names that trip files up.
NAMES = {"group0": "CD4/CD8 αβ", "group1": "7", "group2": "G/M prog. #2"}
#: For another process: the package that is tested before what the caller has there.
PYTHONPATH = os.pathsep.join(
    [str(Path(un.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)
#: Settings of `tl.fit` for a small network, trained for a moment.
QUICK: dict[str, Any] = {
    "network": {"n_hidden": (32,), "n_latent": 8, "n_projector": 16, "n_heads": 2},
    "training": {"max_epochs": 3, "batch_size": 32, "refit": False},
    "device": "cpu",
    "progress": False,
}


def cells_with_model() -> MuData:
    """Cells, some without one modality, with a model of groups with odd names."""
    mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=3, missing=0.2, random_state=5)
    mdata.obs["cell_type"] = mdata.obs["cell_type"].cat.rename_categories(NAMES)
    un.tl.fit(mdata, labels_key="cell_type", **QUICK)
    return mdata


def unlabelled_cells() -> MuData:
    """Cells to hand labels to."""
    return un.datasets.simulate_multimodal(n_obs=30, n_groups=3, random_state=8)


def run(mdata: MuData, query: MuData) -> dict[str, np.ndarray]:
    """Call every function on cells with a model and on a query, and return their numbers."""
    continued, once_more = mdata.copy(), {"training": {"max_epochs": 2}, "progress": False}
    un.tl.fit(continued, model=un.get.model(mdata), **once_more)
    un.tl.integrate(mdata)
    un.tl.predict_modality(mdata, source="rna", target="adt")
    un.tl.transfer_labels(query, mdata, **once_more)
    with warnings.catch_warnings():  # after so short a training all may be called alike
        warnings.filterwarnings("ignore", "all cells are of one group")
        un.tl.explain(mdata, n_cells=4, n_background=5, progress=False)
    un.tl.explain(mdata, source="rna", target="adt", n_cells=4, n_background=5, progress=False)
    weights = un.get.model(continued).network.state_dict()
    return numbers(mdata) | {
        "labels": un.get.probabilities(query, labels=True).to_numpy(),
        "continued": np.concatenate([v.cpu().numpy().ravel() for v in weights.values()]),
    }


def numbers(mdata: MuData) -> dict[str, np.ndarray]:
    """Results that stand in `mdata`."""
    return {
        "embedding": mdata.obsm["X_unitednet"],
        "own": mdata.mod["adt"].obsm["X_unitednet"],
        "probabilities": un.get.probabilities(mdata).to_numpy(),
        "groups": mdata.obs["unitednet_group"].astype(str).to_numpy(str),
        "prediction": mdata.mod["adt_from_rna"].X,
        "expected_r": mdata.mod["adt_from_rna"].var["expected_r"].to_numpy(float),
        "relevance": un.get.relevance(mdata)["value"].to_numpy(),
        "features": un.get.relevance(mdata)["feature"].to_numpy(str),
        "cross": un.get.cross_relevance(mdata, source="rna", target="adt")["value"].to_numpy(),
        "history": un.get.history(mdata)["val_total"].to_numpy(float),
        "modality_weights": un.get.modality_weights(mdata)["weight"].to_numpy(float),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run everything on the files of a folder.

    Parameters
    ----------
    arguments
        Of the command line; by default this process's.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--new", action="store_true")
    chosen = parser.parse_args(arguments)
    cells, query = chosen.folder / "cells.h5mu", chosen.folder / "query.h5mu"
    with quiet_update():
        if chosen.new:
            chosen.folder.mkdir(parents=True, exist_ok=True)
            cells_with_model().write(cells)
            unlabelled_cells().write(query)
        mdata = md.read_h5mu(cells)
        found = run(mdata, md.read_h5mu(query))
        mdata.write(chosen.folder / "again.h5mu")
    np.savez_compressed(chosen.folder / "found.npz", **found)


if __name__ == "__main__":
    main()
