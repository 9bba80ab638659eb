"""How far several models agree on group relevance: groups matched, spread, ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ._explain import Floats, GroupRelevance


@dataclass(frozen=True)
class GroupStability:
    """Relevance of every feature for each group over several models.

    Parameters
    ----------
    relevance
        Means over models; the largest gap.
    signed_sd
        Per modality, features x groups: standard deviation over models of the signed values
        (``ddof=1``).
    top_frequency
        Per modality, features x groups: share of models in which the feature is among a group's
        strongest, NaN where it was not observed.
    rank_correlation
        Per group, float64: mean over pairs of models of Spearman's correlation of the absolute
        values, over the observed features of all modalities; NaN where it is not defined.
    """

    relevance: GroupRelevance
    signed_sd: list[Floats]
    top_frequency: list[Floats]
    rank_correlation: NDArray[np.float64]


def match_groups(
    reference: NDArray[np.int64], other: NDArray[np.int64], n_groups: int
) -> NDArray[np.intp]:
    """Which of another model's groups is each of the reference's: the largest overlap in all.

    Parameters
    ----------
    reference, other
        Group of each cell in either model, -1 where it has none.
    n_groups
        Number of groups, the same in both.

    Returns
    -------
    One group of the other model for each group of the reference (Hungarian assignment).
    """
    from scipy.optimize import linear_sum_assignment

    both = (reference >= 0) & (other >= 0)
    overlap = np.zeros((n_groups, n_groups), np.int64)
    np.add.at(overlap, (reference[both], other[both]), 1)
    return np.asarray(linear_sum_assignment(overlap, maximize=True)[1], np.intp)


def in_order(found: GroupRelevance, order: NDArray[np.intp]) -> GroupRelevance:
    """Relevance with its groups in another order."""
    signed, absolute = ([x[:, order] for x in part] for part in (found.signed, found.absolute))
    return GroupRelevance(signed, absolute, found.gap, found.n_cells[order], found.standard_error)


def group_stability(parts: Sequence[GroupRelevance], n_top: int) -> GroupStability:
    """Compare the relevance of several models, whose groups agree.

    Parameters
    ----------
    parts
        One a model, two or more, explained on the same cells.
    n_top
        How many of a group's features, over all modalities together, count as its strongest.
    """
    first = parts[0]
    sizes = [len(x) for x in first.signed]
    signed = np.stack([np.concatenate(part.signed) for part in parts])
    absolute = np.stack([np.concatenate(part.absolute) for part in parts])
    observed = np.asarray(np.isfinite(absolute).all(0))
    frequency = np.where(observed, top_entries(absolute, n_top).mean(0), np.nan)
    correlation = [
        rank_correlation(absolute[:, observed[:, k], k]) for k in range(absolute.shape[2])
    ]
    cuts = np.cumsum(sizes)[:-1]
    means = GroupRelevance(
        np.split(signed.mean(0), cuts),
        np.split(absolute.mean(0), cuts),
        max(part.gap for part in parts),
        first.n_cells,
        max(part.standard_error for part in parts),
    )
    spread = np.split(signed.std(0, ddof=1), cuts)
    return GroupStability(means, spread, np.split(frequency, cuts), np.array(correlation))


def top_entries(absolute: Floats, n_top: int) -> NDArray[np.bool_]:
    """Which features are among the `n_top` largest of a model and group; zero and NaN never are.

    Parameters
    ----------
    absolute
        Models x features x groups.
    """
    order = np.argsort(-absolute, axis=1, kind="stable")[:, :n_top]
    top = np.zeros(absolute.shape, bool)
    np.put_along_axis(top, order, values=True, axis=1)
    return np.asarray(top & (absolute > 0))


def rank_correlation(values: Floats) -> float:
    """Mean over pairs of rows of Spearman's rank correlation; NaN where it is not defined.

    Parameters
    ----------
    values
        Models x features.
    """
    from scipy.stats import rankdata

    if values.shape[1] < 2 or (np.ptp(values, axis=1) == 0).any():
        return float("nan")
    between = np.atleast_2d(np.corrcoef(rankdata(values, axis=1)))
    return float(between[np.triu_indices(len(values), 1)].mean())
