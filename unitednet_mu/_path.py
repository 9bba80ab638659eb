"""Expected gradients: gradients at random points between a cell and the background.

Expectation over background rows b and a uniform share t of ``(x - b) * gradient(b + t (x - b))``
(Erion et al., Nature Machine Intelligence 2021), what ``shap.GradientExplainer`` estimates. In a
chain of affine and elementwise layers the gradient at a point is the chain of derivatives there,
where DeepLIFT has secants: a pair of a cell and a background row becomes a pair of equal points,
whose secants are derivatives, and everything else stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ._deeplift import Rows


@dataclass(frozen=True)
class Path:
    """How points are drawn.

    Every background row serves equally often for every cell. The shares of one row are drawn from
    as many equal parts of (0, 1) as there are pairs of them, two from each: unbiased, less noisy
    than draws from the whole, and how far the two of a pair disagree tells the error.

    Parameters
    ----------
    n_points
        Points per cell, at least; raised to an even multiple of the number of background rows.
    seed
        Of the shares, which are drawn anew for every cell.
    """

    n_points: int
    seed: int = 0

    def rows(self, rows: Rows) -> Rows:
        """Background rows, as often as they serve; the two of a pair are half of all apart."""
        return np.tile(rows, 2 * max(1, -(-self.n_points // (2 * len(rows)))))

    def shares(self, n_cells: int, n_points: int, n_rows: int) -> Tensor:
        """Where between background row (0) and cell (1) each point lies, cells x points, float64.

        Parameters
        ----------
        n_cells
            All cells of the sample.
        n_points
            Length of what `rows` gives.
        n_rows
            Number of different background rows.
        """
        draws = np.random.default_rng(self.seed).random((n_cells, n_points))
        n_parts = n_points // (2 * n_rows)
        part = np.tile(np.repeat(np.arange(n_parts), n_rows), 2)
        return torch.as_tensor((part + draws) / n_parts)
