"""What an explanation will take, said before it is spent: products, memory, time."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .._network import UnitedNetwork
from ._explain_job import Job

logger = logging.getLogger(__name__)

#: What is worth announcing: FLOP of matrix products, bytes of a result.
_LARGE_FLOP, _LARGE_BYTES = 1e12, 2**30
#: Outputs of single cells that shap is asked for, worth announcing too.
_LARGE_OUTPUTS = 1000
#: Most that shap itself is asked for: outputs of single cells, FLOP.
_SHAP_OUTPUTS, _SHAP_FLOP = 50_000, 2e13
#: Seconds that shap takes for one output of one cell beyond its products, roughly.
_SHAP_SECONDS = 3e-3


@dataclass(frozen=True)
class Cost:
    """What a request takes.

    Parameters
    ----------
    what
        The request, in words.
    flop
        Floating-point operations of its matrix products, at most.
    n_outputs
        Outputs of single cells that are explained one by one; 0 where all are at once.
    result
        Bytes of the result, in memory of the computer.
    working
        Bytes of what is summed up, in memory of the device.
    """

    what: str
    flop: float
    n_outputs: int
    result: int
    working: int


def announce(
    job: Job,
    n_models: int,
    source: str | None = None,
    target: str | None = None,
    top_k: int | None = None,
) -> None:
    """Log what a large request will take; refuse one that cannot be done.

    Parameters
    ----------
    job
        What is explained.
    n_models
        By how many models.
    source, target, top_k
        Of cross-modal relevance: modalities, and number of pairs kept per group.

    Raises
    ------
    ValueError
        The result does not fit into memory, or shap itself is asked for too much.
    """
    if source is None or target is None:
        cost = _group_cost(job, n_models)
    else:
        cost = _cross_cost(job, n_models, source, target, top_k)
    device = _device_of(job)
    if job.method.name == "shap" and (cost.n_outputs > _SHAP_OUTPUTS or cost.flop > _SHAP_FLOP):
        raise ValueError(
            f"method='shap' explains every output of every cell on its own: expected at most "
            f"{_SHAP_OUTPUTS:,} of them and {_SHAP_FLOP:.0e} FLOP, found {cost.n_outputs:,} and "
            f"{cost.flop:.1e} FLOP, about {_duration(_seconds(cost, device))}. Lower n_cells or "
            "n_background, name a few cells=, or use method='deeplift', which takes all outputs "
            "at once."
        )
    _check_memory(cost, device, None if source is None else _advice(top_k))
    large = cost.flop >= _LARGE_FLOP or cost.result >= _LARGE_BYTES
    if large or cost.n_outputs >= _LARGE_OUTPUTS:
        logger.info(
            "%s: %.2g FLOP of matrix products at most, about %s on this machine; a result of %s.",
            cost.what,
            cost.flop,
            _duration(_seconds(cost, device)),
            _size(cost.result),
        )


def _advice(top_k: int | None) -> str:
    if top_k is None:
        return "Keep the strongest pairs only (top_k='auto' or a number), or fit "
    return "Lower top_k, or fit "


def _check_memory(cost: Cost, device: torch.device, advice: str | None) -> None:
    fewer = "the model on fewer features (subset the modalities, as to highly variable ones)."
    room = available_memory()
    if cost.result > room:
        raise ValueError(
            f"{cost.what}: expected a result that fits into the {_size(room)} of memory available, "
            f"found one of {_size(cost.result)}. {advice or 'Fit '}{fewer}"
        )
    on_cpu = device.type == "cpu"
    left = room - cost.result if on_cpu else _device_memory(device)
    if cost.working > left:
        raise ValueError(
            f"{cost.what}: expected sums that fit into the {_size(left)} of memory available on "
            f"{device}, found {_size(cost.working)}, whatever top_k is. "
            f"{'Fit ' if on_cpu else 'Use device=' + repr('cpu') + ', or fit '}{fewer}"
        )


def _group_cost(job: Job, n_models: int) -> Cost:
    network, n_points = job.model.network, job.n_points
    n_cells, n_groups = len(job.sample.cells), len(job.model.info.groups)
    head: Any = network.heads[0]
    n_head = _n_weights(head)
    per_cell = 0.0
    for m, shape in enumerate(network.shapes):
        encoder: Any = network.encoders[m]
        wide, deep = encoder.wide.out_features, _n_weights(encoder.deep)
        if job.method.name == "shap":
            per_cell += _by_shap(n_points, wide * shape.n_features + deep + n_head)
        else:
            per_cell += 2 * n_points * (wide * shape.n_features + deep + n_head)
    n_features = sum(shape.n_features for shape in network.shapes)
    return Cost(
        f"explain {n_groups} groups by {n_features:,} features, {n_cells:,} cells"
        + _models(n_models),
        n_models * n_cells * per_cell,
        n_cells if job.method.name == "shap" else 0,
        (4 if n_models > 1 else 2) * 4 * 2 * n_features * n_groups,
        2 * 8 * n_features * n_groups,
    )


def _cross_cost(job: Job, n_models: int, source: str, target: str, top_k: int | None) -> Cost:
    model, network = job.model, job.model.network
    s, t = model.modality_index(source, "source"), model.modality_index(target, "target")
    n_source, n_target = network.shapes[s].n_features, network.shapes[t].n_features
    n_cells = int(job.data.observed[job.sample.cells, s].sum())
    n_groups, n_pairs = len(model.info.groups), n_source * n_target
    by_shap = job.method.name == "shap"
    # dense matrices are stored as sparse ones, value and column, and both live for a moment
    per_group = 12 * n_pairs if top_k is None else 8 * min(top_k, n_pairs)
    in_sums = 8 * 6 if by_shap else 4 * (2 if n_models > 1 else 1)
    return Cost(
        f"explain {n_target:,} features of {target!r} by {n_source:,} of {source!r} in {n_groups} "
        f"groups, {n_cells:,} cells" + _models(n_models),
        n_models * n_cells * _cross_flop(network, s, t, job.n_points, by_shap=by_shap),
        n_cells * n_target if by_shap else 0,
        (4 if n_models > 1 else 2) * n_groups * per_group,
        in_sums * n_pairs,
    )


def _cross_flop(network: UnitedNetwork, s: int, t: int, n_points: int, *, by_shap: bool) -> float:
    """FLOP of one cell: through the encoder and the decoder for every point, then the wide one."""
    encoder: Any = network.encoders[s]
    decoder: Any = network.decoders[t]
    n_source, n_target = network.shapes[s].n_features, network.shapes[t].n_features
    wide, last, code = (
        encoder.wide.out_features,
        decoder.wide.in_features,
        network.config.n_latent,
    )
    narrow = _n_weights(encoder.deep) + _n_weights(decoder.deep)
    if by_shap:
        return n_target * _by_shap(n_points, wide * n_source + narrow + last * n_target)
    per_point = code * narrow + n_source * min(code * (last + wide), last * wide)
    return float(2 * (n_points * per_point + n_source * last * n_target))


def _by_shap(n_points: int, n_weights: int) -> float:
    """FLOP of one output of one cell: forward and back, cell and background."""
    return 3 * 2 * 2.0 * n_points * n_weights


def _n_weights(layers: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in layers.modules() if isinstance(layer, nn.Linear))


def _device_of(job: Job) -> torch.device:
    return job.model.network.fusion.logits.device


def _models(n_models: int) -> str:
    return f", {n_models} models" if n_models > 1 else ""


def _seconds(cost: Cost, device: torch.device) -> float:
    return cost.flop / product_rate(device) + cost.n_outputs * _SHAP_SECONDS


def product_rate(device: torch.device) -> float:
    """FLOP a second of a product of the kind that explanations are made of, measured now."""
    inner, side = 64, 512 if device.type == "cpu" else 4096
    one, other = torch.ones(side, inner, device=device), torch.ones(inner, side, device=device)
    rates = []
    for _ in range(5):  # the first ones warm up
        start = time.perf_counter()
        product = one @ other
        float(product[0, 0])  # waits for the device
        rates.append(2 * inner * side**2 / (time.perf_counter() - start))
    return max(rates)


def available_memory() -> float:
    """Bytes of memory that can be had without swapping; all there is where that is not known."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = dict(line.split(":", 1) for line in file)
        return 1024.0 * int(found["MemAvailable"].split()[0])
    except (OSError, KeyError):
        pass  # not Linux
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:
        return float("inf")
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _device_memory(device: torch.device) -> float:
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else float("inf")


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:.3g} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.3g} MiB"


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.2g} s"
