"""Speed of cross-modal relevance: share of the matrix-product peak, ratio to shap, memory.

python tests/benchmarks/explain.py [--cells 600] [--device cpu] [--shap-cells 2] [--shap-outputs 4]

The network is the original's for ATAC and RNA, 13,634 -> 64 -> 64 -> 64 -> 64 -> 64 -> 4,000, with
random weights, on random accessibility of 4.5 % density, 22 background cells, ten groups. shap's
`DeepExplainer` loops over cells and outputs; it is timed on a few of both and compared per cell and
output, at the same number of threads, in the same run, and its values with ours in float64. What
takes a few seconds at most, signed means and shap, is timed five times; the median counts.
"""

from __future__ import annotations

import argparse
import copy
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor, nn

from unitednet_mu._config import NetworkConfig
from unitednet_mu._explain import ExplainSample
from unitednet_mu._explain_cross import CrossRelevance, cross_relevance
from unitednet_mu._network import ModalityShape, UnitedNetwork

N_PEAKS, N_GENES, WIDTH, DENSITY = 13_634, 4_000, 64, 0.045
N_BACKGROUND, N_GROUPS = 22, 10
#: Operations that mean absolute values need per cell: the wide first layer for every background row
#: and the last for every pair of features.
FLOP_PER_CELL = 2 * WIDTH * N_PEAKS * (WIDTH * N_BACKGROUND + N_GENES)
_REPEATS = 5
_MATRIX = 2048


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Measure, print the table, and return it."""
    chosen = _parser().parse_args(arguments)
    device = torch.device(chosen.device)
    network = atac_to_rna().to(device)
    cells, background = accessibility(chosen.cells, 1), accessibility(N_BACKGROUND, 2)
    print(f"{chosen.cells} cells, {torch.get_num_threads()} threads, {_name(device)}", flush=True)
    rows: list[tuple[str, float, str]] = []
    before, per_cell = matrix_peak(device), {}
    for kind, absolute in (("absolute", True), ("signed", False)):
        # a quarter and a half first: the cost is linear in cells if the share stays as it is
        for share in (4, 2, 1):
            part = first(cells, chosen.cells // share)
            with peak_memory(device) as memory:
                seconds = timed(
                    lambda p=part, a=absolute: explained(network, p, background, a),
                    device,
                    repeats=1 if absolute else _REPEATS,
                )
            n = len(part.observed)
            rows.append((f"{kind} means, {n} cells", seconds, "s"))
            rows.append((f"{kind} means, {n} cells, memory above the input", memory.mib, "MiB"))
            per_cell[kind] = seconds / n
        if absolute:
            peak = (before + matrix_peak(device)) / 2
            rows.append(("matrix-product peak, before and after", peak / 1e9, "GFLOP/s"))
            rate = FLOP_PER_CELL / per_cell[kind] / peak
            rows.append(("absolute means, share of the peak", 100 * rate, "%"))
    if chosen.shap_cells:
        some = first(cells, chosen.shap_cells)
        by_shap, error = against_shap(network, some, background, chosen.shap_outputs, device)
        rows.append(("shap.DeepExplainer, a cell and output", 1e3 * by_shap, "ms"))
        for kind, seconds in per_cell.items():
            rows.append((f"shap, times as long as {kind} means", by_shap * N_GENES / seconds, ""))
        rows.append(("largest difference to shap, float64, relative", error, ""))
    table = pd.DataFrame(rows, columns=["what", "value", "unit"])
    print(table.to_string(index=False, formatters={"value": "{:,.4g}".format}))
    return table


def atac_to_rna() -> UnitedNetwork:
    """Return the network, in evaluation mode, with random weights and statistics."""
    torch.manual_seed(0)
    shapes = [ModalityShape(N_PEAKS, "binary"), ModalityShape(N_GENES, "gaussian")]
    config = NetworkConfig(
        n_latent=WIDTH, n_hidden=(WIDTH, WIDTH), activation="relu", batch_norm=False,
        linear_path=False,
    )  # fmt: skip
    network = UnitedNetwork(shapes, N_GROUPS, 0, config).eval()
    standardiser = network.standardisers[0]
    standardiser.mean.fill_(DENSITY)
    standardiser.scale.fill_((DENSITY * (1 - DENSITY)) ** 0.5)
    return network


def accessibility(n_cells: int, seed: int) -> ExplainSample:
    """Random sparse accessibility; the network's second modality is not looked at."""
    rng = np.random.default_rng(seed)
    x = sparse.random_array((n_cells, N_PEAKS), density=DENSITY, format="csr", rng=rng)
    x.data[:] = 1
    observed = np.tile([True, False], (n_cells, 1))
    return ExplainSample([x.astype(np.float32), None], observed, np.arange(n_cells) % N_GROUPS)


def first(cells: ExplainSample, n: int) -> ExplainSample:
    """Return the first cells of a sample."""
    x = [None if values is None else values[:n] for values in cells.x]
    groups = None if cells.groups is None else cells.groups[:n]
    return ExplainSample(x, cells.observed[:n], groups, n_groups=N_GROUPS)


def explained(
    network: UnitedNetwork, cells: ExplainSample, background: ExplainSample, absolute: bool
) -> CrossRelevance:
    """Explain as `tl.explain` does by default, which keeps each group's 250,000 strongest pairs."""
    return cross_relevance(network, 0, 1, cells, background, absolute=absolute, top_k=250_000)


def matrix_peak(device: torch.device) -> float:
    """Operations per second of a large float32 matrix product, the best of several."""
    a, b = torch.rand(2, _MATRIX, _MATRIX, device=device)
    best = min(timed(lambda: a @ b, device) for _ in range(3 * _REPEATS))
    return 2 * _MATRIX**3 / best


def timed(run: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Wall time in seconds, the median of several."""
    taken = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


class Path(nn.Module):
    """From peaks to some genes, as layers that shap knows."""

    def __init__(self, network: UnitedNetwork, genes: int) -> None:
        super().__init__()
        encoder, decoder = network.encoders[0], network.decoders[1]
        scale = nn.Linear(N_PEAKS, WIDTH).to(encoder.wide.weight)
        standardiser = network.standardisers[0]
        last = nn.Linear(WIDTH, genes).to(decoder.wide.weight)
        with torch.no_grad():
            scale.weight.copy_(encoder.wide.weight / standardiser.scale)
            shift = scale.weight @ standardiser.mean
            scale.bias.copy_(encoder.wide.bias - shift)
            last.weight.copy_(decoder.wide.weight[:genes])
            last.bias.copy_(decoder.wide.bias[:genes])
        parts = [*encoder.deep, *decoder.deep]
        kept = [copy.deepcopy(layer) for layer in parts if isinstance(layer, nn.Linear | nn.ReLU)]
        self.layers = nn.Sequential(scale, *kept, last)

    def forward(self, x: Tensor) -> Tensor:
        """Genes of each cell."""
        return self.layers(x)


def against_shap(
    network: UnitedNetwork,
    cells: ExplainSample,
    background: ExplainSample,
    n_outputs: int,
    device: torch.device,
) -> tuple[float, float]:
    """Seconds that shap takes per cell and output in float32; our distance to it in float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import shap
    x, reference = (
        torch.as_tensor(sample.x[0].toarray(), device=device) for sample in (cells, background)
    )
    n = len(x)
    explainer = shap.DeepExplainer(Path(network, n_outputs).to(device), reference)
    seconds = timed(lambda: explainer.shap_values(x, check_additivity=False), device, _REPEATS)

    exact = copy.deepcopy(network).double()
    explainer = shap.DeepExplainer(Path(exact, n_outputs).to(device), reference.double())
    values = explainer.shap_values(x.double(), check_additivity=False)
    one_by_one = ExplainSample(cells.x, cells.observed, np.arange(n), n_groups=n)
    ours = cross_relevance(exact, 0, 1, one_by_one, background, top_k=None, units=False).signed
    found = np.stack([np.asarray(one)[:, :n_outputs] for one in ours])
    return seconds / n / n_outputs, float(np.abs(found - values).max() / np.abs(values).max())


@dataclass
class Memory:
    """Most memory that a block held above what it began with."""

    mib: float = 0.0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Memory]:
    """Watch this process's resident memory from a thread (Linux; elsewhere NaN), or a GPU's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        found = Memory()
        yield found
        found.mib = (torch.cuda.max_memory_allocated(device) - held) / 2**20
        return
    found, done = Memory(), threading.Event()
    start = _resident()

    def watch() -> None:
        while not done.wait(0.02):
            found.mib = max(found.mib, (_resident() - start) / 2**20)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def _resident() -> float:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        return float("nan")


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=600)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shap-cells", type=int, default=2, help="0 leaves shap out")
    parser.add_argument("--shap-outputs", type=int, default=4)
    return parser


if __name__ == "__main__":
    main()
