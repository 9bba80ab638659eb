"""The loss terms of the paper on codes and groups (Methods, "Loss functions"): pure functions.

Those of decoded values are in `_decoding`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_EPS = 1e-9
#: Target that cross-entropy leaves out.
_UNKNOWN = -100
#: Largest and smallest temperature of a mini-batch that is found; the smallest is the paper's.
_TEMPERATURES = 1.0, 0.1
#: Halvings of the logarithm of that range.
_N_HALVINGS = 6


def contrastive_loss(a: Tensor, b: Tensor, groups: Tensor, temperature: float | None) -> Tensor:
    """Codes of the same cell attract across modalities, those of cells of other groups repel.

    NT-Xent on cosine similarity, both directions; cells of the anchor's own group are no negatives.

    Parameters
    ----------
    a, b
        Codes of two modalities of the same cells, cells x n_latent.
    groups
        Group of each cell, negative where unknown (an unknown group differs from every other).
    temperature
        Of the similarities; None for the one of these cells that :func:`fitted_temperature` finds.
    """
    similarity = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    same = (groups[:, None] == groups[None, :]) & (groups[:, None] >= 0)
    same.fill_diagonal_(False)
    divisor = fitted_temperature(similarity, same) if temperature is None else temperature
    masked = (similarity / divisor).masked_fill(same, -torch.inf)
    target = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(masked, target) + F.cross_entropy(masked.T, target)) / 2


@torch.no_grad()
def fitted_temperature(similarity: Tensor, same: Tensor) -> Tensor:
    """Temperature, 0.1 to 1, at which the contrastive loss of these cells is smallest.

    Codes of modalities that share next to nothing tell hardly which cell is which. At a low
    temperature they would still be driven to, by whatever noise these cells have; at the fitted one
    they are asked for no more than they can tell. The loss is convex in the temperature's inverse,
    and its slope changes its sign where own similarities are as large as is expected.

    Parameters
    ----------
    similarity
        Cosine similarities of two modalities' codes, cells x cells.
    same
        Which pairs are no negatives.
    """
    own = similarity.diagonal().mean()
    low, high = (torch.full_like(own, 1 / t) for t in _TEMPERATURES)
    for _ in range(_N_HALVINGS):
        inverse = (low * high).sqrt()
        weights = ((similarity - 1) * inverse).exp().masked_fill(same, 0.0)
        weighted = weights * similarity
        expected = [weighted.sum(k) / weights.sum(k) for k in (0, 1)]
        sharper = own > torch.cat(expected).mean()
        low, high = torch.where(sharper, inverse, low), torch.where(sharper, high, inverse)
    return 1 / high


def cross_entropy_loss(logits: Tensor, labels: Tensor, class_weights: Tensor | None) -> Tensor:
    """Class-balanced cross-entropy over labelled cells (label >= 0); zero where there is none.

    Cells of classes with weight 0, which no training cell has, do not count.
    """
    known = (labels >= 0).to(logits)
    weights = known if class_weights is None else known * class_weights[labels.clamp_min(0)]
    target = torch.where(labels >= 0, labels, _UNKNOWN)  # nothing here waits for a GPU
    total = F.cross_entropy(
        logits, target, weight=class_weights, ignore_index=_UNKNOWN, reduction="sum"
    )
    return total / weights.sum().clamp_min(_EPS)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances, always by products: Apple's GPUs lack the other way's gradient."""
    return torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist")


def _gaussian_kernel(x: Tensor, relative_width: float = 0.15) -> Tensor:
    distance = _distances(x, x).square()
    width = relative_width * distance.detach().median().clamp_min(_EPS)
    return torch.exp(-distance / (2 * width))


def _mean_overlap(assignment: Tensor, kernel: Tensor) -> Tensor:
    """Mean normalised overlap of pairs of groups under the kernel (Cauchy-Schwarz divergence)."""
    k = assignment.shape[1]
    overlap = assignment.T @ kernel @ assignment
    norm = torch.sqrt(
        (overlap.diagonal()[:, None] * overlap.diagonal()[None, :]).clamp_min(_EPS**2)
    )
    return torch.triu(overlap / norm, 1).sum() * 2 / max(k * (k - 1), 1)


def clustering_loss(probabilities: Tensor, projected: Tensor) -> Tensor:
    """Deep divergence clustering (Kampffmeyer et al. 2019): separate, compact, near one-hot.

    Parameters
    ----------
    probabilities
        Group probabilities, cells x groups (at least two groups).
    projected
        The projected layer of the head, cells x n_projector.
    """
    n, k = probabilities.shape
    kernel = _gaussian_kernel(projected)
    corner = torch.eye(k, dtype=probabilities.dtype, device=probabilities.device)
    corners = torch.exp(-_distances(probabilities, corner).square())
    orthogonality = torch.triu(probabilities @ probabilities.T, 1).sum() * 2 / max(n * (n - 1), 1)
    return _mean_overlap(probabilities, kernel) + orthogonality + _mean_overlap(corners, kernel)


def entropy_loss(probabilities: Tensor) -> Tensor:
    """Negative entropy of the mean assignment, which keeps all groups in use."""
    mean = probabilities.mean(0)
    return (mean * torch.log(mean.clamp_min(_EPS))).sum()
