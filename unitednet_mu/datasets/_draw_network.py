"""A regulatory network drawn at random: who regulates whom, and at which rates."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ._kinetics import (
    DURATION,
    Floats,
    Genes,
    Ints,
    Network,
    Peaks,
    Programmes,
    Proteins,
)

#: Shares of regulators and bystanders that are on at the root, that a second branch has too, and
#: that end before the branch does.
_AT_ROOT, _SHARED, _TRANSIENT = 0.2, 0.3, 0.25
#: Shares of genes with a second enhancer, of these that need both, and, by role, with a silencer.
_TWO_ENHANCERS, _COOPERATIVE = 0.6, 0.5
_SILENCED = {"regulator": 0.5, "target": 0.3, "bystander": 0.0}
#: Probability of being open by role: without the factor, and with all of it.
_OPEN = {
    "promoter": (0.3, 0.9),
    "enhancer": (0.05, 0.8),
    "silencer": (0.05, 0.8),
    "bystander": (0.05, 0.8),
    "constitutive": (0.3, 0.3),
}


def draw_network(
    rng: np.random.Generator,
    *,
    n_branches: int,
    n_regulators: int,
    n_targets: int,
    n_bystanders: int,
    n_housekeeping: int,
    n_proteins: int,
) -> Network:
    """Draw a network.

    Each regulator and each bystander has a signal of its own that comes on in its home branch, and
    in some cases at the root, in another branch, or for a time only. Regulators open the promoters
    and enhancers of targets, where they activate, and silencers, also of each other. Each target
    has a bystander peak: opened by the same regulator, and without effect.
    """
    roles = np.repeat(
        ["regulator", "target", "bystander", "housekeeping"],
        [n_regulators, n_targets, n_bystanders, n_housekeeping],
    )
    activators = _activators(rng, n_branches, n_regulators, n_targets, n_bystanders)
    genes, peaks = _control(rng, roles, activators, n_branches, n_regulators)
    return Network(
        programmes=_programmes(rng, n_branches, n_regulators, n_bystanders),
        peaks=peaks,
        genes=genes,
        proteins=_proteins(rng, n_regulators, n_targets + n_bystanders, n_proteins),
        regulator_decay=np.log(2) / _around(rng, 3.0, 0.3, n_regulators),
    )


class _PeakList:
    """Peaks as they are added, role by role."""

    def __init__(self, n_genes: int) -> None:
        self.n_genes, self.n = n_genes, 0
        self.gene: list[Ints] = []
        self.role: list[np.ndarray] = []
        self.factor: list[Ints] = []

    def add(self, role: str, factor: Ints, genes: Ints | None = None) -> Ints:
        """Add a peak for each factor; return the position of each gene's peak, -1 for none."""
        positions = np.full(self.n_genes, -1)
        if genes is not None:
            positions[genes] = self.n + np.arange(len(genes))
        self.gene.append(np.full(len(factor), -1) if genes is None else genes)
        self.role.append(np.repeat(role, len(factor)))
        self.factor.append(factor)
        self.n += len(factor)
        return positions


def _control(
    rng: np.random.Generator,
    roles: np.ndarray,
    activators: Ints,
    n_branches: int,
    n_regulators: int,
) -> tuple[Genes, Peaks]:
    n, everyone = len(activators), np.arange(len(activators))
    two = rng.random(n) < _TWO_ENHANCERS
    odds = pd.Series(roles[:n]).map(_SILENCED).to_numpy()
    silenced = np.flatnonzero(rng.random(n) < odds)
    repressors = _repressors(rng, silenced, activators[silenced], n_regulators, n_branches)
    peaks = _PeakList(n)
    promoter = peaks.add("promoter", activators[:, 0], everyone)
    enhancer = peaks.add("enhancer", activators[:, 0], everyone)
    second = peaks.add("enhancer", activators[two, 1], everyone[two])
    silencer = peaks.add("silencer", repressors, silenced)
    targets = np.flatnonzero(roles == "target")
    peaks.add("bystander", activators[targets, 0])
    peaks.add("constitutive", np.full((len(targets) + 1) // 2, -1))
    genes = Genes(
        n_regulators=n_regulators,
        role=roles,
        promoter=promoter,
        enhancer=enhancer,
        second_enhancer=np.where(two, second, enhancer),
        silencer=silencer,
        cooperative=rng.random(n) < _COOPERATIVE,
        transcription=_around(rng, 15.0, 0.6, len(roles)),
        splicing=_around(rng, 1.5, 0.3, len(roles)),
        decay=np.log(2) / _around(rng, 4.0, 0.4, len(roles)),
    )
    return genes, _peaks(rng, peaks)


def _around(rng: np.random.Generator, median: float, sd: float, size: int) -> Floats:
    """Numbers from a log-normal distribution."""
    return (median * np.exp(sd * rng.standard_normal(size))).astype(np.float32)


def _home(n: int, n_branches: int) -> Ints:
    return np.arange(n) % n_branches


def _activators(
    rng: np.random.Generator, n_branches: int, n_regulators: int, n_targets: int, n_bystanders: int
) -> Ints:
    """Factors of the first and second enhancer, controlled genes x 2.

    Regulators and bystanders follow their own signal, which no modality shows. A target's two
    regulators are of one branch.
    """
    regulators = n_regulators + np.arange(n_regulators)
    bystanders = 2 * n_regulators + np.arange(n_bystanders)
    first = rng.permutation(np.arange(n_targets) % n_regulators)
    home = _home(n_regulators, n_branches)
    second = np.asarray([rng.choice(np.flatnonzero(home == home[one])) for one in first], int)
    return np.column_stack(
        [
            np.concatenate([regulators, first, bystanders]),
            np.concatenate([regulators, second, bystanders]),
        ]
    )


def _repressors(
    rng: np.random.Generator, genes: Ints, activators: Ints, n_regulators: int, n_branches: int
) -> Ints:
    """Draw for each gene a regulator, not itself nor its activator; half of them of its branch."""
    regulators = np.arange(n_regulators)
    home = _home(n_regulators, n_branches)
    drawn = np.zeros(len(genes), int)
    for i, (gene, its) in enumerate(zip(genes, activators, strict=True)):
        able = (regulators != gene) & ~np.isin(regulators, its)
        near = able & (home == home[its[0] % n_regulators])
        drawn[i] = rng.choice(np.flatnonzero(near if near.any() and rng.random() < 0.5 else able))
    return drawn


def _programmes(
    rng: np.random.Generator, n_branches: int, n_regulators: int, n_bystanders: int
) -> Programmes:
    home = np.concatenate([_home(n_regulators, n_branches), _home(n_bystanders, n_branches)])
    n = len(home)
    level = np.zeros((n_branches, n), np.float32)
    level[home, np.arange(n)] = 1
    shared = rng.random(n) < _SHARED
    level[(home + rng.integers(1, n_branches, n)) % n_branches, np.arange(n)] += 0.7 * shared
    on = rng.uniform(0.05, 0.4, n) * DURATION
    transient = rng.random(n) < _TRANSIENT
    off = np.where(transient, on + rng.uniform(0.25, 0.4, n) * DURATION, 10 * DURATION)
    return Programmes(
        root=(rng.random(n) < _AT_ROOT).astype(np.float32),
        level=np.minimum(level, 1),
        on=np.broadcast_to(on, level.shape).astype(np.float32),
        off=np.broadcast_to(off, level.shape).astype(np.float32),
    )


def _peaks(rng: np.random.Generator, added: _PeakList) -> Peaks:
    role = np.concatenate(added.role)
    closed, opened = np.asarray([_OPEN[one] for one in role], np.float32).T
    return Peaks(
        gene=np.concatenate(added.gene),
        role=role,
        factor=np.concatenate(added.factor),
        log_threshold=np.log(rng.uniform(0.2, 0.6, added.n)).astype(np.float32),
        steepness=rng.integers(2, 5, added.n).astype(np.float32),
        closed=closed,
        opened=opened,
        switching=_around(rng, 0.2, 0.4, added.n),
    )


def _proteins(rng: np.random.Generator, first: int, n_candidates: int, n: int) -> Proteins:
    """Of targets and bystanders, not of regulators, which are inside the nucleus."""
    return Proteins(
        gene=first + rng.permutation(n_candidates)[:n],
        translation=_around(rng, 20.0, 0.7, n),
        decay=np.log(2) / _around(rng, 20.0, 0.3, n),
    )
