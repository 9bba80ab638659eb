"""What is decoded from which codes, and the losses of it: prediction, generator, discriminators."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ._config import TrainingConfig
from ._network import Decoder, Discriminator, UnitedNetwork
from ._ranks import Ranks
from ._values import Values, linear, product
from ._wide import Wide, fake_distances, log_partition, squared_errors


@dataclass(frozen=True)
class Job:
    """Decode a target from one code of each cell.

    Attributes
    ----------
    name
        Term that the loss is part of.
    judged
        Whether a discriminator judges what is decoded.
    code
        Codes of the cells that are decoded, cells x n_latent.
    batch
        Their batches, one-hot, where decoders are conditioned on these.
    here
        Which they are of this process's cells that have the target; None for all.
    sizes
        How many of them each process has.
    """

    name: str
    judged: bool
    code: Tensor
    batch: Tensor | None
    here: Tensor | None
    sizes: Sequence[int]

    @property
    def n(self) -> float:
        """How many cells are decoded, of several processes the mean."""
        return sum(self.sizes) / len(self.sizes)


@dataclass(frozen=True)
class Decoding:
    """All jobs of one target.

    Codes go through the decoder side by side, so that batch statistics are of all of them. What it
    makes of those of this process's cells goes through the last layer; these are meant by rows.
    """

    target: int
    jobs: Sequence[Job]
    ranks: Ranks

    def gather(self, of_target: Tensor) -> Tensor:
        """Rows of the target's cells, once for each job that decodes them."""
        return torch.cat([of_target if j.here is None else of_target[j.here] for j in self.jobs])

    def scatter(self, rows: Tensor, n_cells: int) -> Tensor:
        """Add the rows of each of the target's cells up; the adjoint of :meth:`gather`."""
        found = rows.new_zeros(n_cells, rows.shape[1])
        for part, job in zip(self.split(rows), self.jobs, strict=True):
            if job.here is None:
                found += part
            else:
                found[job.here] += part
        return found

    def split(self, rows: Tensor) -> Sequence[Tensor]:
        """Rows of each job."""
        found: Sequence[Tensor] = rows.split([job.sizes[self.ranks.rank] for job in self.jobs])
        return found

    def weigh(self, values: Sequence[float]) -> Tensor:
        """Weight of every row, so that each job's rows together weigh as given."""
        code = self.jobs[0].code
        return torch.cat(
            [
                code.new_full((job.sizes[self.ranks.rank],), value / job.n)
                for value, job in zip(values, self.jobs, strict=True)
            ]
        )

    def means(self, rows: Tensor) -> Sequence[Tensor]:
        """Mean over the rows of each job; of several processes, what has it as its mean."""
        pairs = zip(self.split(rows), self.jobs, strict=True)
        return [part.sum() / job.n for part, job in pairs]


def decoding_losses(
    network: UnitedNetwork,
    config: TrainingConfig,
    decodings: Sequence[Decoding],
    raw: Sequence[Values | None],
    read: Sequence[Values | None],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Reconstruction, translation and generator: each term is the mean of its jobs.

    Parameters
    ----------
    raw, read
        Values of each modality's cells, in the user's units and as the standardiser read them.

    Returns
    -------
    Weighted sum of the terms, and the terms, from which nothing learns.
    """
    jobs = [job for decoding in decodings for job in decoding.jobs]
    names = Counter(job.name for job in jobs if config.weight(job.name))
    n_judged = sum(job.judged for job in jobs)
    total = torch.zeros((), device=network.fusion.logits.device)
    found: dict[str, list[Tensor]] = defaultdict(list)
    decodings = [decoding for decoding in decodings if decoding.jobs]
    for decoding, wide in zip(decodings, _wides(network, decodings), strict=True):
        x, seen = raw[decoding.target], read[decoding.target]
        if x is None or seen is None:
            continue
        shares = [config.weight(job.name) / max(names[job.name], 1) for job in decoding.jobs]
        fooled = [
            config.weight("generator") / n_judged * job.judged if n_judged else 0.0
            for job in decoding.jobs
        ]
        binary = network.shapes[decoding.target].likelihood == "binary"
        losses = _binary_losses if binary else _gaussian_losses
        part, errors, distances = losses(
            network,
            decoding,
            wide,
            x if binary else seen,
            decoding.weigh(shares),
            decoding.weigh(fooled),
        )
        total = total + part
        for job, error in zip(decoding.jobs, decoding.means(errors), strict=True):
            if config.weight(job.name):
                found[job.name].append(error)
        if distances is not None:
            pairs = zip(decoding.jobs, decoding.means(distances), strict=True)
            found["generator"] += [distance for job, distance in pairs if job.judged]
    return total, {name: torch.stack(values).mean() for name, values in found.items()}


def discriminator_losses(
    network: UnitedNetwork, decoding: Decoding, raw: Values, read: Values
) -> list[Tensor]:
    """Loss of a target's discriminator, one a job; decoded values are detached."""
    if not decoding.jobs:
        return []
    judge = _judge(network, decoding.target)
    binary = network.shapes[decoding.target].likelihood == "binary"
    with torch.no_grad():
        each = [replace(decoding, jobs=[job]) for job in decoding.jobs]
        apart = list(_wides(network, each))
        hidden = torch.cat([one.hidden for one in apart])
        wide = Wide(hidden, apart[0].weight, apart[0].bias).detached()
    first, rest = judge.first, judge.rest
    distances = (rest(linear(raw if binary else read, first)) - 1).square()[:, 0]
    of_real = decoding.means(decoding.gather(distances))
    if binary:
        weights = decoding.weigh([1.0] * len(decoding.jobs))
        fake = fake_distances(wide, judge, weights) / len(decoding.jobs)
        return [(one + fake) / 2 for one in of_real]
    scores = rest(_through(wide, first.weight, first.bias))
    of_fake = decoding.means(scores.square()[:, 0])
    return [(one + other) / 2 for one, other in zip(of_real, of_fake, strict=True)]


def _gaussian_losses(
    network: UnitedNetwork,
    decoding: Decoding,
    wide: Wide,
    read: Values,
    weights: Tensor,
    judged: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weighted total; mean squared error of each row; squared distance of its score from 1."""
    n_features, width = wide.weight.shape
    n_dense = len(read) if isinstance(read, Tensor) else 0
    if 2 * (width + n_dense) <= 3 * len(wide.hidden):  # dense products that either way needs
        scatter = partial(decoding.scatter, n_cells=len(read))
        errors = squared_errors(wide, read, decoding.gather, scatter)
    else:
        x = read if isinstance(read, Tensor) else read.dense()
        errors = (wide.decoded() - decoding.gather(x)).square().sum(1)
    errors = errors / n_features
    total = weights @ errors
    if not any(job.judged for job in decoding.jobs):
        return total, errors.detach(), None
    judge = _judge(network, decoding.target)
    first, rest = judge.first, judge.rest
    hidden = _through(wide, first.weight.detach(), first.bias.detach())
    distances = (rest(hidden) - 1).square()[:, 0]
    return total + judged @ distances, errors.detach(), distances.detach()


def _binary_losses(
    network: UnitedNetwork,
    decoding: Decoding,
    wide: Wide,
    raw: Values,
    weights: Tensor,
    judged: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Like :func:`_gaussian_losses`, of binary cross-entropy at the logit."""
    n_features = len(wide.weight)
    rows_of = zip(decoding.split(judged), decoding.jobs, strict=True)
    n_judged = sum(len(rows) for rows, job in rows_of if job.judged)
    judge = _judge(network, decoding.target) if n_judged else None
    weights = weights / n_features
    total, values, distances = log_partition(wide, weights, judge, judged, n_judged)
    crossed = decoding.gather(product(raw, wide.weight))
    at_bias = decoding.gather(product(raw, wide.bias[:, None])[:, 0])
    agreed = (crossed * wide.hidden).sum(1) + at_bias
    errors = (values - agreed.detach()) / n_features
    # of all processes or of none: one may have no row to judge where others do
    wanted = any(job.judged for job in decoding.jobs)
    return total - weights @ agreed, errors, distances if wanted else None


def _wides(network: UnitedNetwork, decodings: Sequence[Decoding]) -> Iterator[Wide]:
    """Find what each decoding's last layer reads, of this process's cells; and that layer."""
    if not decodings:
        return
    hidden = (_before_wide(network, decoding) for decoding in decodings)
    shares = [[job.sizes for job in decoding.jobs] for decoding in decodings]
    own = decodings[0].ranks.own(hidden, shares)
    for decoding, rows in zip(decodings, own, strict=True):
        last = cast("Decoder", network.decoders[decoding.target]).wide
        yield Wide(rows, last.weight, last.bias)


def _before_wide(network: UnitedNetwork, decoding: Decoding) -> Tensor:
    conditions = [job.batch for job in decoding.jobs if job.batch is not None]
    return network.before_wide(
        decoding.target,
        torch.cat([job.code for job in decoding.jobs]),
        torch.cat(conditions) if conditions else None,
    )


def _through(wide: Wide, weight: Tensor, bias: Tensor) -> Tensor:
    """Put decoded values through a linear layer; both layers are one map where that is cheaper."""
    if wide.hidden.shape[1] < len(wide.hidden):
        return F.linear(wide.hidden, weight @ wide.weight, F.linear(wide.bias, weight, bias))
    return F.linear(wide.decoded(), weight, bias)


def _judge(network: UnitedNetwork, target: int) -> Discriminator:
    return cast("Discriminator", network.discriminators[target])
