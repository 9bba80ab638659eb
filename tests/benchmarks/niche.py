"""Seconds that `pp.niche` takes on simulated tissue of several sizes.

python tests/benchmarks/niche.py [--spots 10000 100000] [--features 2000]

Spots lie at random in a square, as dense in all sizes; features are sparse, 5 % of them not zero.
CPU seconds of the process, medians, as wall time on a shared machine tells of its neighbours.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from statistics import median

import numpy as np
from anndata import AnnData
from mudata import MuData
from scipy import sparse

import unitednet_mu as un
from unitednet_mu._compat import quiet_update

DENSITY = 0.05


def tissue(n_spots: int, n_features: int) -> MuData:
    """Spots with positions and sparse values."""
    rng = np.random.default_rng(0)
    values = sparse.random(
        n_spots, n_features, DENSITY, format="csr", dtype=np.float32, random_state=rng
    )
    rna = AnnData(values)
    rna.obsm["spatial"] = rng.uniform(0, np.sqrt(n_spots), (n_spots, 2))
    with quiet_update():
        return MuData({"rna": rna})


def seconds(mdata: MuData) -> float:
    """CPU seconds of one call."""
    begun = time.process_time()
    un.pp.niche(mdata)
    return time.process_time() - begun


def main(arguments: Sequence[str] | None = None) -> dict[int, float]:
    """Measure, print, and return the median of every size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--spots", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--features", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args(arguments)
    found = {}
    for n_spots in chosen.spots:
        mdata = tissue(n_spots, chosen.features)
        found[n_spots] = median(seconds(mdata) for _ in range(chosen.repeats))
        print(f"{n_spots:,} spots x {chosen.features:,} features: {found[n_spots]:.1f} s")
    return found


if __name__ == "__main__":
    main()
