"""Seconds that importing this package adds to importing torch and mudata, in fresh processes.

python tests/benchmarks/startup.py [--repeats 7]

The two imports take turns, medians; CPU seconds of the process, as wall time on a shared machine
tells of its neighbours.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from statistics import median

_BEFORE = "import time; import torch, mudata; begun = time.process_time(); "
_AFTER = "; print(time.process_time() - begun)"
STATEMENTS = ("import unitednet_mu", "import unitednet_mu.tl", "import unitednet_mu.pl")


def seconds(statement: str) -> float:
    """CPU seconds of a statement in a process that has imported torch and mudata."""
    command = [sys.executable, "-W", "ignore", "-c", _BEFORE + statement + _AFTER]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Measure, print, and return the median of every statement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args(arguments).repeats
    turns = [{one: seconds(one) for one in STATEMENTS} for _ in range(repeats)]
    found = {one: median(turn[one] for turn in turns) for one in STATEMENTS}
    for statement, value in found.items():
        print(f"{statement}: {value:.3f} s beyond torch and mudata")
    return found


if __name__ == "__main__":
    main()
