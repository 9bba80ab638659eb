"""Speed of training and inference at the original's multiome setting, as ratios in one run.

python tests/benchmarks/speed.py [--original CHECKOUT] [--device cuda] [--threads 2] [--bf16]

4,096 cells, 13,634 binary features of which 4.5 % are 1 and 4,000 continuous ones, the network of
the preset "original_multiome". An epoch is one pass of prediction (discriminators, reconstruction,
translation, contrastive) and four of identification, as in the original. The methods take turns, an
epoch each, and medians are compared: this package; a plain loop that trains the same network with
the same losses on slices of dense tensors; and the original on the same arrays, if a checkout of it
is given. The peak is the rate of products of square matrices, measured in the same turns;
arithmetic is counted as if all products were dense, of the parts that the losses need. Memory is
the largest resident size of a process in its first epoch, above that before, input in memory (not
measured on a GPU, which keeps the input of ours and of the plain loop; the original sends it there
batch by batch).
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _measure import peak_above, seconds
from _original import ORIGINAL, supervised_original
from _plain_loop import PlainLoop
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from unitednet_mu._compat import quiet_update
from unitednet_mu._config import NetworkConfig, TrainingConfig
from unitednet_mu._data import Dataset, ModalitySpec
from unitednet_mu._info import ModelInfo
from unitednet_mu._model import Model
from unitednet_mu._network import ModalityShape, UnitedNetwork
from unitednet_mu._open import open_dataset
from unitednet_mu._phase import Phase, Plan
from unitednet_mu._presets import settings
from unitednet_mu._ranks import Ranks
from unitednet_mu._setup import set_statistics
from unitednet_mu._steps import Steps
from unitednet_mu._tasks import Tasks

OURS, PLAIN, PEAK = "unitednet_mu", "plain loop", "products of square matrices"
N_GROUPS = 22
#: Passes of identification in an epoch of the original: two a modality.
IDENTIFICATIONS = 4
_SQUARE = 2048
Epoch = Callable[[], None]


@dataclass(frozen=True)
class Size:
    """Cells, features, share of ones among the binary features, and cells a mini-batch; where."""

    cells: int = 4096
    binary: int = 13634
    continuous: int = 4000
    density: float = 0.045
    batch: int = 512
    device: str = "cpu"


def simulate(size: Size) -> tuple[MuData, np.ndarray]:
    """Cells with both modalities, the binary one sparse, and the group of each cell."""
    rng = np.random.default_rng(0)
    groups = rng.integers(N_GROUPS, size=size.cells)
    groups[:N_GROUPS] = np.arange(N_GROUPS)
    peaks = sparse.random(
        size.cells, size.binary, size.density, "csr", np.float32, rng, lambda n: np.ones(n)
    )
    centres = rng.normal(size=(N_GROUPS, size.continuous))
    genes = (centres[groups] + rng.normal(size=(size.cells, size.continuous))).astype(np.float32)
    parts = {"atac": AnnData(peaks), "rna": AnnData(genes)}
    for name, part in parts.items():
        part.var_names = [f"{name}{i}" for i in range(part.n_vars)]
    with quiet_update():
        mdata = MuData(parts)
    return mdata, groups


def opened(size: Size) -> tuple[Dataset, ModelInfo, UnitedNetwork]:
    """Cells, settings, and a network that has their statistics."""
    mdata, groups = simulate(size)
    specs = tuple(
        ModalitySpec(name, tuple(mdata[name].var_names), kind)
        for name, kind in (("atac", "binary"), ("rna", "gaussian"))
    )
    data = open_dataset(mdata, specs)
    data.labels = groups.astype(np.int64)
    network_config, training = settings("original_multiome", None, {"batch_size": size.batch})
    info = ModelInfo(specs, tuple(map(str, range(N_GROUPS))), network_config, training)
    shapes = [ModalityShape(len(spec.features), spec.likelihood) for spec in specs]
    torch.manual_seed(0)
    network = UnitedNetwork(shapes, N_GROUPS, 0, info.network)
    set_statistics(network, data, np.arange(len(data)))
    return data, info, network.to(size.device)


def our_epoch(
    data: Dataset, network: UnitedNetwork, config: TrainingConfig, ranks: Ranks | None = None
) -> Epoch:
    """An epoch of this package's engine, of several processes if there are."""
    ranks = ranks or Ranks()
    network.train()
    device = network.fusion.logits.device
    data = data.at_hand(device)
    tasks = Tasks(network, config, torch.ones(N_GROUPS, device=device), ranks)
    plan = Plan("train", 1, identify=True)
    phase = Phase(network, config, plan, 10**5, judged=False, ranks=ranks)
    size = config.batch_size or len(data)
    steps = Steps(tasks, phase.optimisers, phase.averaged, size=size)

    def epoch() -> None:
        order = np.random.default_rng(0).permutation(len(data))
        for _, batch in data.batches_of(order, size, tasks.device, ranks):
            list(steps.oppose(batch))
            list(steps.take(batch, label_free=True, identification=False))
        for _ in range(IDENTIFICATIONS):
            for _, batch in data.batches_of(order, size, tasks.device, ranks):
                list(steps.take(batch, label_free=False, identification=True))

    return epoch


def plain_epoch(data: Dataset, network: UnitedNetwork, config: TrainingConfig) -> Epoch:
    """An epoch of the plain loop."""
    device = network.fusion.logits.device
    values = [x.to(device) for x in dense(data)]
    x = [network.standardisers[m](one) for m, one in enumerate(values)]
    targets = [
        one if shape.likelihood == "binary" else x[m]
        for m, (one, shape) in enumerate(zip(values, network.shapes, strict=True))
    ]
    loop = PlainLoop(network, x, targets, torch.from_numpy(data.labels).to(device), config)

    def epoch() -> None:
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).to(device)
        loop.prediction_pass(order)
        for _ in range(IDENTIFICATIONS):
            loop.identification_pass(order)

    return epoch


def dense(data: Dataset) -> list[torch.Tensor]:
    """Values of all cells of each modality."""
    return [torch.from_numpy(source.take(np.arange(len(data)))) for source in data.sources]


def square_products(size: Size) -> Epoch:
    """Product of square matrices, whose rate is the machine's."""
    a = torch.rand((_SQUARE, _SQUARE), device=size.device)
    return lambda: torch.mm(a, a)


def done(epoch: Epoch, size: Size) -> Epoch:
    """Return the same, over when a GPU has done its part too."""
    if torch.device(size.device).type != "cuda":
        return epoch

    def waited() -> None:
        epoch()
        torch.cuda.synchronize(size.device)

    return waited


def arithmetic(network: NetworkConfig, size: Size) -> float:
    """Operations of an epoch, all products dense: those of the wide layers, which are nearly all.

    Forward, and for the gradients of weights and of what goes in, one product each. Prediction: the
    encoders (no gradient of what goes in); the decoders from both codes and the fused one; the
    discriminators on two of these (no gradient of their weights). The discriminators' own step: the
    encoders and decoders forward from both codes, the discriminators on real (once) and decoded
    values. Identification: the encoders.
    """
    wide = 2.0 * size.cells * (size.binary + size.continuous) * network.n_hidden[0]
    prediction = 2 + 3 * 3 + 2 * 2
    discriminators = 1 + 2 + 2 * (1 + 2)
    return wide * (prediction + discriminators + IDENTIFICATIONS * 2)


def epochs_of(name: str, size: Size, checkout: Path | None) -> Epoch:
    """Return an epoch of a method, ready to be run."""
    data, info, network = opened(size)
    if name == OURS:
        return our_epoch(data, network, info.training)
    if name == PLAIN:
        return plain_epoch(data, network, info.training)
    if checkout is None:
        raise ValueError(f"{name}: expected --original, found none.")
    arrays = [x.numpy() for x in dense(data)]
    arrays[1] = network.cpu().standardisers[1](torch.from_numpy(arrays[1])).numpy()
    return supervised_original(checkout, arrays, data.labels, size.batch, device=size.device).epoch


def peak_memory(name: str, size: Size, checkout: Path | None, threads: int) -> float:
    """Largest resident size of an epoch above that before it, MiB; NaN where it cannot be read."""
    torch.set_num_threads(threads)
    return peak_above(epochs_of(name, size, checkout))


def inference(size: Size) -> pd.DataFrame:
    """Cells embedded a second, and predicted, beside a plain loop over dense slices."""
    data, info, network = opened(size)
    model = Model(network.eval(), info)
    x = [values.to(size.device) for values in dense(data)]

    @torch.no_grad()
    def plain() -> None:
        for cells in torch.arange(len(data)).split(size.batch):
            codes = torch.stack([network.encode(m, x[m][cells]) for m in range(2)], 1)
            observed = torch.ones(codes.shape[:2], dtype=torch.bool, device=codes.device)
            network.heads[0](network.fusion(codes, observed))

    calls = {f"{OURS}, encode": lambda: model.encode(data), "plain loop, encode": plain}
    taken = {name: min(seconds(done(call, size)) for _ in range(3)) for name, call in calls.items()}
    rate = {name: size.cells / taken[name] for name in taken}
    return pd.DataFrame({"cells a second": rate})


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Measure, print the table, and return it."""
    chosen = _parser().parse_args(arguments)
    size = Size(
        chosen.cells, chosen.binary, chosen.continuous, chosen.density, chosen.batch, chosen.device
    )
    threads = chosen.threads or torch.get_num_threads()
    names = [OURS, PLAIN, *([ORIGINAL] if chosen.original else [])]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        if chosen.bf16:
            torch.set_float32_matmul_precision("medium")
        table = _measured(names, size, chosen.original, chosen.repeats)
        fresh = multiprocessing.get_context("spawn")
        if chosen.memory and chosen.device == "cpu":
            for name in names:
                with fresh.Pool(1) as pool:
                    what = name, size, chosen.original, threads
                    table.loc[name, "peak memory, MiB"] = pool.apply(peak_memory, what)
        print(f"{size}, {threads} threads, {chosen.repeats} epochs each, in turn")
        print(table.round(3).to_string())
        print(inference(size).round(0).to_string())
    finally:
        torch.set_num_threads(before)
        torch.set_float32_matmul_precision("highest")
    return table


def _measured(
    names: Sequence[str], size: Size, checkout: Path | None, repeats: int
) -> pd.DataFrame:
    epochs = {name: epochs_of(name, size, checkout) for name in names}
    epochs[PEAK] = square_products(size)
    taken: dict[str, list[float]] = {name: [] for name in epochs}
    for turn in range(repeats + 1):
        for name, epoch in epochs.items():
            took = seconds(done(epoch, size))
            if turn:  # the first one warms up
                taken[name].append(took)
    median = {name: float(np.median(values)) for name, values in taken.items()}
    rate = 2 * _SQUARE**3 / median.pop(PEAK)
    network, _ = settings("original_multiome", None, None)
    table = pd.DataFrame({"seconds an epoch": median})
    table["fastest"] = {name: min(taken[name]) for name in median}
    table["cells a second"] = size.cells / table["seconds an epoch"]
    table["times as fast as the plain loop"] = median[PLAIN] / table["seconds an epoch"]
    if ORIGINAL in median:
        table["times as fast as the original"] = median[ORIGINAL] / table["seconds an epoch"]
    dense_rate = arithmetic(network, size) / table["seconds an epoch"]
    table["share of the peak"] = dense_rate / rate
    table.loc[table.index == ORIGINAL, "share of the peak"] = np.nan  # it computes other parts
    print(f"products of square matrices: {rate / 1e9:.0f} GFLOP/s")
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = Size()
    parser.add_argument("--cells", type=int, default=size.cells)
    parser.add_argument("--binary", type=int, default=size.binary, help="binary features")
    parser.add_argument("--continuous", type=int, default=size.continuous)
    parser.add_argument("--density", type=float, default=size.density)
    parser.add_argument("--batch", type=int, default=size.batch, help="cells a mini-batch")
    parser.add_argument("--device", default=size.device)
    parser.add_argument("--repeats", type=int, default=5, help="epochs of each method")
    parser.add_argument("--threads", type=int, help="by default as many as torch takes")
    parser.add_argument("--original", type=Path, help="checkout of the original UnitedNet")
    parser.add_argument("--bf16", action="store_true", help="fit's precision, for all methods")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    return parser


if __name__ == "__main__":
    main()
