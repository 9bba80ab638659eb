"""Speed of two processes beside one, each with one thread: ratios in one run.

python tests/benchmarks/processes.py [--devices 2] [--repeats 3] [--batch 512]

The data, the network and the epoch of `speed.py`; mini-batches are of as many cells however many
processes share them. One process and several take turns, a fresh one each time; of each the median
epoch counts, its first one does not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _measure import seconds
from speed import Size, opened, our_epoch

from unitednet_mu.tl._launch import join_processes

_EPOCHS = 3


def epochs(size: Size, devices: int) -> list[float]:
    """Seconds of each epoch, in this process and those that it starts or was started beside."""
    ranks, _ = join_processes(torch.device("cpu"), devices, 1, "auto")
    torch.set_num_threads(1)
    data, info, network = opened(size)
    epoch = our_epoch(data, network, info.training, ranks)
    return [seconds(epoch) for _ in range(_EPOCHS + 1)][1:]


def measure(size: Size, devices: int) -> float:
    """Median seconds of an epoch in fresh processes."""
    command = [sys.executable, str(Path(__file__).resolve()), "--devices", str(devices), "--worker"]
    command += [f"--{name}={value}" for name, value in vars(size).items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(np.median(json.loads(done.stdout.splitlines()[-1])))


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame | None:
    """Measure, print the table, and return it; None in one of the processes measured."""
    chosen = _parser().parse_args(arguments)
    size = Size(**{name: getattr(chosen, name) for name in vars(Size())})
    if chosen.worker:
        found = epochs(size, chosen.devices)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(json.dumps(found), flush=True)
        return None
    numbers = (1, chosen.devices)
    taken = {n: [] for n in numbers}
    for _ in range(chosen.repeats):
        for n in numbers:
            taken[n].append(measure(size, n))
    table = pd.DataFrame({"seconds an epoch": {n: np.median(taken[n]) for n in numbers}})
    table.index.name = "processes"
    table["times as fast as one"] = table["seconds an epoch"][1] / table["seconds an epoch"]
    each = [one / several for one, several in zip(*taken.values(), strict=True)]
    print(f"{size}, {chosen.repeats} turns, {_EPOCHS} epochs each")
    print(table.round(2).to_string())
    print(f"each turn: {np.round(each, 2).tolist()}")
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in vars(Size()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--devices", type=int, default=2, help="processes")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
