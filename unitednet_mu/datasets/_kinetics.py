"""Kinetics of a regulatory network: regulators, peaks, transcription, splicing, translation.

Time is in hours and amounts are molecules, but for regulators' proteins: these are relative to what
a gene that is on keeps up. Half-lives and switching times are of the order measured in mammalian
cells: minutes for splicing, hours for mRNA, regulators and open chromatin, a day for proteins of
the surface.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Texts = NDArray[np.str_]

#: Hours that a branch takes, hours before it in the root's state, and steps for both together.
DURATION, _BEFORE, _STEPS = 72.0, 24.0, 192
#: Width of the logistic curve by which a programme sets in or ends, in hours.
_ONSET_WIDTH = 3.0
#: Transcription of a gene that is off, as a share of its largest.
_LEAK = 0.02
#: Activity of a gene that is on, with chromatin opening and closing, and of a housekeeping gene.
_TYPICAL = 0.4
#: Share of transcription that a bound silencer takes away.
_SILENCING = 0.9
#: Between cells: standard deviations of logarithms of a cell's response to each signal, of its
#: size, and of the translation of each regulator, which drifts within hours.
_RESPONSE_SD, _SIZE_SD, _TRANSLATION_SD, _DRIFT_HOURS = 0.25, 0.2, 0.3, 12.0
_SMALL = 1e-6


@dataclass(frozen=True)
class Programmes:
    """Signals of each branch over time.

    Parameters
    ----------
    root
        Level before the branch begins, per signal.
    level
        Level on each branch once on, branches x signals.
    on, off
        Hours after the start of a branch at which the root's level gives way to the branch's, and
        at which that ends, branches x signals.
    """

    root: Floats
    level: Floats
    on: Floats
    off: Floats

    def at(self, hours: Floats, branches: Ints) -> Floats:
        """Levels, cells x signals, `hours` (cells x 1) after the start of each cell's branch."""
        begun = expit((hours - self.on[branches]) / _ONSET_WIDTH)
        ended = expit((hours - self.off[branches]) / _ONSET_WIDTH)
        levels = self.root * (1 - begun) + self.level[branches] * begun * (1 - ended)
        return np.asarray(levels, dtype=np.float32)


@dataclass(frozen=True)
class Peaks:
    """Stretches of chromatin that open and close.

    Parameters
    ----------
    gene
        The gene whose transcription the peak acts on, -1 for none.
    role
        ``promoter``, ``enhancer``, ``silencer`` (these act), ``bystander`` (opened by a regulator,
        acts on nothing) or ``constitutive`` (open at random).
    factor
        What opens it: a regulator's protein or, counted on from these, a signal; -1 for nothing.
    log_threshold, steepness
        Of the Hill function of the factor.
    closed, opened
        Probability of being open without the factor, and with all of it.
    switching
        Rate per hour at which the state is drawn anew.
    """

    gene: Ints
    role: Texts
    factor: Ints
    log_threshold: Floats
    steepness: Floats
    closed: Floats
    opened: Floats
    switching: Floats


@dataclass(frozen=True)
class Genes:
    """Genes; the first `n_regulators` are the regulators, the last have no peak (housekeeping).

    Parameters
    ----------
    role
        ``regulator``, ``target``, ``bystander`` or ``housekeeping``.
    promoter, enhancer, second_enhancer, silencer
        Positions of the peaks of each gene that is not housekeeping. A gene with one enhancer names
        it twice; -1 for no silencer.
    cooperative
        Whether both enhancers are needed, or either will do.
    transcription, splicing, decay
        Largest transcription per hour, and rates per hour of pre-mRNA and mRNA.
    """

    n_regulators: int
    role: Texts
    promoter: Ints
    enhancer: Ints
    second_enhancer: Ints
    silencer: Ints
    cooperative: Bools
    transcription: Floats
    splicing: Floats
    decay: Floats


@dataclass(frozen=True)
class Proteins:
    """Proteins of the surface: the gene of each, and rates per hour."""

    gene: Ints
    translation: Floats
    decay: Floats


@dataclass(frozen=True)
class Network:
    """All parts."""

    programmes: Programmes
    peaks: Peaks
    genes: Genes
    proteins: Proteins
    regulator_decay: Floats


@dataclass(frozen=True)
class State:
    """What is in each cell at its pseudotime: open peaks (0 or 1), and numbers of molecules."""

    open: Floats
    premrna: Floats
    mrna: Floats
    protein: Floats


def integrate(
    network: Network, branches: Ints, pseudotime: Floats, rng: np.random.Generator
) -> State:
    """Follow every cell from the root's state to its pseudotime (0 to 1) on its branch.

    Chromatin is a random telegraph; what depends linearly on itself (pre-mRNA, mRNA, proteins)
    relaxes exactly towards what the step's input would keep up. All cells take the same number of
    steps, each cell its own length of step.
    """
    genes, peaks, proteins = network.genes, network.peaks, network.proteins
    n, n_regulators = len(branches), genes.n_regulators
    step = ((_BEFORE + pseudotime * DURATION) / _STEPS).astype(np.float32)[:, None]
    size = _lognormal(rng, _SIZE_SD, (n, 1))
    response = _lognormal(rng, _RESPONSE_SD, (n, len(network.programmes.root)))
    drift = rng.standard_normal((n, n_regulators), dtype=np.float32)
    keep_drift = np.exp(-step / _DRIFT_HOURS)
    redrawn = -np.expm1(-peaks.switching * step)
    keep_pre, keep_mrna, keep_protein, keep_regulator = (
        np.exp(-rate * step)
        for rate in (genes.splicing, genes.decay, proteins.decay, network.regulator_decay)
    )
    full = (_TYPICAL * genes.transcription / genes.decay)[:n_regulators]
    is_open = (rng.random((n, len(peaks.gene)), dtype=np.float32) < peaks.closed).astype(np.float32)
    pre = np.zeros((n, len(genes.role)), np.float32)
    mrna, regulators = np.zeros_like(pre), np.zeros((n, n_regulators), np.float32)
    protein = np.zeros((n, len(proteins.gene)), np.float32)
    hours = np.full((n, 1), -_BEFORE, np.float32)
    for _ in range(_STEPS):
        signals = response * network.programmes.at(hours, branches)
        bound = _bound(peaks, np.hstack([regulators, signals]))
        is_open = _switched(peaks, is_open, bound, redrawn, rng)
        pre_before = pre
        rate = genes.transcription * size * _activity(genes, is_open, bound)
        pre = _relax(pre, rate / genes.splicing, keep_pre)
        spliced = genes.splicing * (pre_before + pre) / 2
        mrna = _relax(mrna, spliced / genes.decay, keep_mrna)
        made = proteins.translation * mrna[:, proteins.gene]
        protein = _relax(protein, made / proteins.decay, keep_protein)
        fresh = rng.standard_normal(drift.shape, dtype=np.float32)
        drift = keep_drift * drift + np.sqrt(1 - keep_drift**2) * fresh
        made = mrna[:, :n_regulators] / full * np.exp(_TRANSLATION_SD * drift)
        regulators = _relax(regulators, made, keep_regulator)
        hours = hours + step
    return State(is_open, pre, mrna, protein)


def _lognormal(rng: np.random.Generator, sd: float, shape: tuple[int, int]) -> Floats:
    factors: Floats = np.exp(np.float32(sd) * rng.standard_normal(shape, dtype=np.float32))
    return factors


def _relax(value: Floats, towards: Floats, keep: Floats) -> Floats:
    return towards + (value - towards) * keep


def _bound(peaks: Peaks, factors: Floats) -> Floats:
    """Hill function of each peak's factor, cells x peaks; 0 where there is none."""
    logs = np.log(factors + np.float32(_SMALL))[:, peaks.factor]
    bound = expit(peaks.steepness * (logs - peaks.log_threshold))
    return np.asarray(np.where(peaks.factor >= 0, bound, np.float32(0)))


def _switched(
    peaks: Peaks, is_open: Floats, bound: Floats, redrawn: Floats, rng: np.random.Generator
) -> Floats:
    """States after a step: kept, or with probability `redrawn` drawn from the present odds."""
    probability = peaks.closed + (peaks.opened - peaks.closed) * bound
    draw = rng.random(is_open.shape, dtype=np.float32)
    return np.where(draw < redrawn, draw < redrawn * probability, is_open).astype(np.float32)


def _activity(genes: Genes, is_open: Floats, bound: Floats) -> Floats:
    """Transcription as a share of the largest, cells x genes.

    The promoter has to be open, and an enhancer open and bound: both enhancers where they
    cooperate, else either. A silencer that is open and bound takes most of it away.
    """
    active = is_open * bound
    first, second = active[:, genes.enhancer], active[:, genes.second_enhancer]
    enhanced = np.where(genes.cooperative, np.sqrt(first * second), np.maximum(first, second))
    silenced = active[:, genes.silencer] * (genes.silencer >= 0)
    controlled = is_open[:, genes.promoter] * enhanced * (1 - _SILENCING * silenced)
    activity = np.full((len(is_open), len(genes.role)), _TYPICAL, np.float32)
    activity[:, : controlled.shape[1]] = _LEAK + (1 - _LEAK) * controlled
    return activity
