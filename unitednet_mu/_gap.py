"""Whether attributions add up to the network's output: exactly, or as far as chance allows."""

from __future__ import annotations

import numpy as np
from torch import Tensor

#: Standard errors by which the typical error of sampled attributions may exceed the tolerance.
MULTIPLE = 5.0


class Gap:
    """Largest error of additivity, and largest departure from the background's mean."""

    error = scale = 0.0

    def __init__(self) -> None:
        self.sampled = Sampled()

    def add(self, totals: Tensor, expected: Tensor, *, sampled: bool = False) -> None:
        """Compare sums of attributions with the network's output; `sampled` ones err by chance."""
        if sampled:
            self.sampled.err(totals - expected)
            return
        error = _largest(totals - expected)
        self.error = max(self.error, error if np.isfinite(error) else np.inf)

    def depart(self, departure: Tensor) -> None:
        """Take note of how far outputs are from the background's mean."""
        self.scale = max(self.scale, _largest(departure))

    @property
    def standard_error(self) -> float:
        """Standard error of a sum of attributions, relative; 0 where nothing is sampled."""
        return self.sampled.standard_error / (self.scale or 1.0)

    def checked(self, tolerance: float) -> float:
        """Relative gap; an error above `tolerance`.

        The root mean square error of sampled attributions may exceed it by `MULTIPLE` times what
        chance lets expect.
        """
        scale = self.scale or 1.0
        gap, typical = self.error / scale, self.sampled.error / scale
        limit = tolerance + MULTIPLE * self.standard_error
        if not gap <= tolerance:
            raise RuntimeError(
                "explain: attributions do not add up to the network's output: expected a gap <= "
                f"{tolerance:.2e} of the largest departure from the background, found {gap:.2e}. "
                "Usual causes: values that are not finite or far from any training data, or matrix "
                "products in reduced precision."
            )
        if not typical <= limit:
            raise RuntimeError(
                "explain: expected gradients do not add up to the network's output: expected a "
                f"root mean square error <= {limit:.2e} of the largest departure from the "
                f"background ({tolerance:.2e} and {MULTIPLE:g} standard errors), found "
                f"{typical:.2e}. Usual causes: values that are not finite or far from any training "
                "data, or too few points; raise n_samples."
            )
        return max(gap, self.sampled.largest / scale)


class Sampled:
    """Errors of additivity that are chance, and how large chance makes them.

    Both as root mean squares over cells and outputs. A point and the one half of all further on
    are independent draws from the same part of the same line (`Path`), so that the variance of a
    mean over points is the sum of squares of their differences, over the squared number of points.
    """

    largest = 0.0

    def __init__(self) -> None:
        self._squares = self._variance = 0.0
        self._n_errors = self._n_sums = 0

    def err(self, errors: Tensor) -> None:
        """Add what sums of attributions are off by."""
        self._squares += float(errors.cpu().double().square().sum())
        self._n_errors += errors.numel()
        self.largest = max(self.largest, _largest(errors))

    def vary(self, points: Tensor, weight: Tensor | None = None) -> None:
        """Add how far the points of each cell disagree.

        Parameters
        ----------
        points
            Each point's sum of attributions, cells x points x R.
        weight
            From these to the outputs, R x outputs; without it these are the outputs.
        """
        n_cells, n_points, n_outputs = points.shape
        one, other = points.chunk(2, dim=1)
        apart = (one - other).flatten(0, 1)
        products = apart.T @ apart
        if weight is None:
            squares = products.trace()
        else:
            squares = (products * (weight @ weight.T).to(products)).sum()
            n_outputs = weight.shape[1]
        self._variance += float(squares) / n_points**2
        self._n_sums += n_cells * n_outputs

    @property
    def error(self) -> float:
        """Root mean square of the errors."""
        return float(np.sqrt(self._squares / max(self._n_errors, 1)))

    @property
    def standard_error(self) -> float:
        """What chance alone lets expect of `error`."""
        return float(np.sqrt(self._variance / max(self._n_sums, 1)))


def _largest(x: Tensor) -> float:
    return float(x.abs().max())
