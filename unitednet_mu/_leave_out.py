"""How much each modality moves each group: probabilities again, without it."""

from __future__ import annotations

import numpy as np
import torch

from ._model import Encoded, Model

_CELLS = 4096


def leave_one_out(model: Model, encoded: Encoded) -> np.ndarray:
    """Mean drop of the probability of a cell's own group when a modality is left out.

    Codes are fused again, not computed again.

    Parameters
    ----------
    model
        The model.
    encoded
        Codes and probabilities of cells by that model, with all that each cell has.

    Returns
    -------
    numpy.ndarray
        float64, groups x modalities: over the cells identified as the group that have the modality
        and another one; NaN where there are none. Positive where the modality speaks for the group.
    """
    observed = ~np.isnan(encoded.codes).any(2)
    probabilities = encoded.probabilities
    seen = observed.any(1)
    own = np.where(seen, np.nan_to_num(probabilities).argmax(1), -1)
    n_groups, n_modalities = probabilities.shape[1], observed.shape[1]
    drops = np.full((n_groups, n_modalities), np.nan)
    for m in range(n_modalities):
        rest = observed.copy()
        rest[:, m] = False
        cells = np.flatnonzero(observed[:, m] & rest.any(1))
        without = _probability(model, encoded.codes, rest, own, cells)
        drop = probabilities[cells, own[cells]].astype(np.float64) - without
        sums = np.bincount(own[cells], weights=drop, minlength=n_groups)
        counts = np.bincount(own[cells], minlength=n_groups)
        np.divide(sums, counts, out=drops[:, m], where=counts > 0)
    return drops


@torch.no_grad()
def _probability(
    model: Model, codes: np.ndarray, observed: np.ndarray, group: np.ndarray, cells: np.ndarray
) -> np.ndarray:
    """Probability of each cell's `group` from the modalities `observed` alone."""
    found = np.empty(len(cells))
    for start in range(0, len(cells), _CELLS):
        chunk = cells[start : start + _CELLS]
        values = torch.from_numpy(np.nan_to_num(codes[chunk])).to(model.device)
        mask = torch.from_numpy(observed[chunk]).to(model.device)
        logits = model.network.group_logits(model.network.fusion(values, mask))
        probabilities = torch.softmax(logits, 1).cpu().numpy()
        found[start : start + _CELLS] = probabilities[np.arange(len(chunk)), group[chunk]]
    return found
