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

    Every background row serves equally often for every cell, and the shares of one row are drawn
    from as many equal parts of (0, 1): unbiased, and never noisier than independent draws.

    Parameters
    ----------
    n_points
        Points per cell, at least; raised to a multiple of the number of background rows, and to
        two, which a standard error needs.
    seed
        Of the shares, which are drawn anew for every cell.
    """

    n_points: int
    seed: int = 0

    def repeats(self, n_rows: int) -> int:
        """How often each of `n_rows` background rows serves."""
        return max(1 if n_rows > 1 else 2, -(-self.n_points // n_rows))

    def rows(self, rows: Rows) -> Rows:
        """Background rows, as often as they serve."""
        return np.tile(rows, self.repeats(len(rows)))

    def shares(self, n_cells: int, n_pairs: int, n_rows: int) -> Tensor:
        """Where between background row (0) and cell (1) each point lies, cells x pairs, float64.

        Parameters
        ----------
        n_cells
            All cells of the sample.
        n_pairs
            Length of what `rows` gives.
        n_rows
            Number of different background rows.
        """
        draws = np.random.default_rng(self.seed).random((n_cells, n_pairs))
        n_repeats = n_pairs // n_rows
        stratum = np.repeat(np.arange(n_repeats), n_rows)
        return torch.as_tensor((stratum + draws) / n_repeats)
