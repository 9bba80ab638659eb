"""Run tutorials afresh and store their outputs: ``python tests/run_tutorials.py [NOTEBOOK ...]``.

Without arguments all of them. Needs nbclient and ipykernel, which the optional group ``docs`` has.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

TUTORIALS = Path(__file__).parent.parent / "tutorials"
#: Seconds for one cell. A whole notebook took at most 270, with another process at work.
PATIENCE = 600
#: Metadata of cells that stay: what myst-nb hides, and the texts in place of figures.
KEPT = ("tags", "mystnb")
_OWN = ("MPLBACKEND", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS")


def execute(path: Path, folder: Path | None = None) -> NotebookNode:
    """Return a notebook with the outputs of a fresh kernel, which works in `folder`.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        A cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent if folder is None else folder)}}
    client = NotebookClient(
        notebook, timeout=PATIENCE, kernel_name="python3", resources=where, record_timing=False
    )
    # a kernel as a user's, whatever this process has set for itself: figures inline, all cores
    env = {name: value for name, value in os.environ.items() if name not in _OWN}
    return client.execute(env=env)


def clean(notebook: NotebookNode) -> NotebookNode:
    """Take out what names the machine, its versions, or the moment; cells get plain names."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = NotebookNode(
        kernelspec=NotebookNode(kernel), language_info=NotebookNode(name="python")
    )
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = NotebookNode({k: v for k, v in cell.metadata.items() if k in KEPT})
        for output in cell.get("outputs", []):
            output.pop("metadata", None)
            if output.output_type in ("display_data", "execute_result"):
                output.metadata = NotebookNode()
    return notebook


def cpu_seconds() -> float:
    """CPU time of the kernels that have ended: on busy cores it says more than the clock."""
    used = os.times()
    return used.children_user + used.children_system


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, help="all tutorials by default")
    for path in parser.parse_args().notebooks or sorted(TUTORIALS.glob("*.ipynb")):
        begin, worked = time.perf_counter(), cpu_seconds()
        nbformat.write(clean(execute(path)), path)
        wall, cpu = time.perf_counter() - begin, cpu_seconds() - worked
        print(f"{path.name}: {wall:.0f} s, {cpu:.0f} s of CPU time", flush=True)


if __name__ == "__main__":
    main()
