"""The demo: ``python -m unitednet_mu demo [--out DIR]``."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from mudata import MuData

from . import __version__, datasets, pl, tl
from ._demo import group_scores, held_out_scores, prepared

#: mudata 0.3 announces its next release, scanpy 1.11 calls what anndata will drop; a donor's 400
#: cells leave a few genes without any count; umap says that a seed makes it run on one thread, and
#: looks for an optional part.
_EXPECTED_WARNINGS = (
    "From 0.4 .update",
    "The method obs_vector",
    ".*constant features carry no information",
    "n_jobs value",
    "Tensorflow not installed",
)
_REFERENCE, _QUERY = ("p1_0", "p2_0", "p3_0"), ("p4_0",)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m unitednet_mu")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo", help="the five functions on real cells, with figures and a table"
    )
    demo.add_argument(
        "--out", type=Path, default=Path("unitednet_demo"), help="folder for results and figures"
    )
    demo.add_argument("--seed", type=int, default=0, help="seed of everything random")
    demo.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(arguments)
    if options.out.exists() and not options.out.is_dir():
        demo.error(f"--out: expected a folder, found the file {str(options.out)!r}")
    with warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        run_demo(options.out, seed=options.seed, progress=not options.quiet)


def run_demo(out: Path, *, seed: int = 0, progress: bool = True) -> pd.DataFrame:
    """Run the demo on the bundled CITE-seq data.

    Parameters
    ----------
    out
        Folder for ``results.h5mu``, ``query.h5mu``, ``scores.csv`` and the figures.
    seed
        Seed of everything random.
    progress
        Whether to show progress bars.

    Returns
    -------
    The table of held-out figures: task, method, value.
    """
    begin = time.perf_counter()
    matplotlib.use("Agg")
    out.mkdir(parents=True, exist_ok=True)
    raw = datasets.pbmc_citeseq()
    print(
        f"Bundled data: {raw.n_obs} cells of 4 donors, {raw['rna'].n_vars} genes, "
        f"{raw['adt'].n_vars} antibodies."
    )
    print(
        "Donor p1_0 has RNA only, p2_0 protein only, p3_0 and p4_0 have both; p4_0 is never "
        "trained on.\n"
    )

    print("1. fit, integrate, predict and explain on p1_0, p2_0 and p3_0; transfer labels to p4_0")
    mdata, query = prepared(raw, _REFERENCE), prepared(raw, _QUERY)
    tl.fit(mdata, labels_key="cell_type", random_state=seed, progress=progress)
    tl.integrate(mdata)
    tl.predict_modality(mdata, source="rna", target="adt")  # protein for the RNA-only donor
    tl.predict_modality(mdata, source="adt", target="rna")  # RNA for the protein-only donor
    tl.transfer_labels(query, mdata, random_state=seed, progress=progress)
    tl.predict_modality(query, source="rna", target="adt")
    tl.explain(mdata, random_state=seed, progress=progress)
    tl.explain(mdata, source="rna", target="adt", random_state=seed, progress=progress)
    _umap(mdata)
    mdata.write(out / "results.h5mu")
    query.write(out / "query.h5mu")
    _draw_all(mdata, query, out)

    print(
        "2. held-out figures: p3_0 and p4_0 each predicted from a model of the other, 400 cells "
        "each"
    )
    table = pd.concat(
        [
            held_out_scores(raw, seed=seed, progress=progress).table(),
            group_scores(raw, seed=seed, progress=progress).table(),
        ],
        ignore_index=True,
    )
    table.to_csv(out / "scores.csv", index=False)
    print_table(table)
    print(f"Results, figures and scores are in {out}/ ({time.perf_counter() - begin:.0f} s).")
    return table


def print_table(table: pd.DataFrame) -> None:
    """Print the table, one block a task."""
    for task, rows in table.groupby("task", sort=False):
        print(f"\n{task}")
        for _, row in rows.iterrows():
            print(f"  {row['method']:<42} {row['value']:.3f}")
    print()


def _umap(mdata: MuData) -> None:
    import scanpy as sc

    sc.pp.neighbors(mdata, use_rep="X_unitednet", random_state=0)
    sc.tl.umap(mdata, random_state=0)


def _draw_all(mdata: MuData, query: MuData, out: Path) -> None:
    """Write every figure as PNG."""
    import matplotlib.pyplot as plt
    import scanpy as sc

    def umap() -> Any:
        figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
        for ax, color in zip(axes, ("unitednet_group", "cell_type", "donor"), strict=True):
            sc.pl.embedding(mdata, "X_umap", color=color, ax=ax, show=False, frameon=False)
        return figure

    drawings: dict[str, Callable[[], Any]] = {
        "umap": umap,
        "transfer_confusion": lambda: pl.confusion(
            query, groupby="cell_type", predicted="unitednet_label"
        ),
        "transfer_confidence": lambda: pl.transfer(query),
        "predicted_protein": lambda: pl.prediction(
            query, source="rna", target="adt", groupby="cell_type"
        ),
        "relevance": lambda: pl.relevance(mdata, n_top=4),
        "cross_relevance": lambda: pl.cross_relevance(
            mdata, source="rna", target="adt", group="Mono"
        ),
        "history": lambda: pl.history(mdata),
        "modality_weights": lambda: pl.modality_weights(mdata),
    }
    for name, draw in drawings.items():
        draw()
        plt.gcf().savefig(out / f"{name}.png", dpi=150, bbox_inches="tight")
        plt.close("all")


if __name__ == "__main__":
    main()
