"""Scores of predictions, feature by feature, in blocks of features or of cells.

`metrics` makes the functions public.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ._compat import is_sparse

Floats = NDArray[np.float64]
Labels = Sequence[Any] | NDArray[Any] | pd.Series

_BLOCK_VALUES = 4_000_000  # at most this many values of a matrix are dense at a time
_CONSTANT = 1e-12  # a standard deviation this small beside the feature's size is rounding


def pearson_per_feature(true: Any, predicted: Any) -> Floats:
    """Pearson correlation over cells, for each feature.

    Parameters
    ----------
    true, predicted
        Measured and predicted values, cells x features in the same order, dense or sparse or
        tables, finite. They are made dense a block of features at a time.

    Returns
    -------
    float64 array, one r per feature, from -1 to 1; NaN where either side is constant.

    Raises
    ------
    TypeError
        One is no matrix.
    ValueError
        The shapes differ or hold fewer than two cells, or tables differ in their rows or columns.

    Examples
    --------
    >>> import numpy as np, unitednet_mu as un
    >>> true = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> un.metrics.pearson_per_feature(true, 3 * true + 1)
    array([ 1., nan])
    """

    def score(t: Floats, p: Floats) -> Floats:
        r = Correlation(t.shape[1])
        r.add(t, p, np.zeros(len(t), np.intp))
        return r.overall()

    return _by_block(true, predicted, score)


def pearson_within_groups(true: Any, predicted: Any, groups: Labels) -> Floats:
    """Pearson correlation over cells after taking group means off both sides, for each feature.

    What is left is how a prediction follows the differences between cells of the same group;
    knowing the group alone scores nothing (NaN, as the prediction is then constant).

    Parameters
    ----------
    true, predicted
        As for :func:`pearson_per_feature`.
    groups
        The group of each cell; cells whose group is missing are left out.

    Returns
    -------
    float64 array, one r per feature, from -1 to 1; NaN where either side is constant within every
    group.

    Raises
    ------
    TypeError
        One is no matrix.
    ValueError
        The shapes or the number of groups' entries differ, there are fewer than two cells, or
        tables differ in their rows or columns, or `groups` names other cells than a table.

    Examples
    --------
    >>> import numpy as np, unitednet_mu as un
    >>> true = np.array([[0.0], [1.0], [10.0], [11.0]])
    >>> un.metrics.pearson_within_groups(true, -true, ["a", "a", "b", "b"])
    array([-1.])
    """
    check_same_cells("groups", true, groups)
    true, predicted = _matrices(true, predicted)
    codes, names = pd.factorize(np.asarray(groups, dtype=object))
    if len(codes) != true.shape[0]:
        raise ValueError(f"groups: expected {true.shape[0]} entries, found {len(codes)}.")
    kept = np.flatnonzero(codes >= 0)
    if len(kept) < 2:
        raise ValueError(f"groups: expected at least two cells with a group, found {len(kept)}.")

    def score(t: Floats, p: Floats) -> Floats:
        r = Correlation(t.shape[1], len(names))
        r.add(t[kept], p[kept], codes[kept])
        return r.within()

    return _by_block(true, predicted, score)


def r2_per_feature(true: Any, predicted: Any) -> Floats:
    """Coefficient of determination over cells, for each feature.

    Parameters
    ----------
    true, predicted
        As for :func:`pearson_per_feature`, in the same units.

    Returns
    -------
    float64 array, one R2 per feature, 1 at best, 0 for predicting the mean of `true`; NaN where
    `true` is constant.

    Raises
    ------
    TypeError
        One is no matrix.
    ValueError
        The shapes differ or hold fewer than two cells, or tables differ in their rows or columns.

    Examples
    --------
    >>> import numpy as np, unitednet_mu as un
    >>> un.metrics.r2_per_feature(np.array([[0.0], [2.0]]), np.array([[1.0], [1.0]]))
    array([0.])
    """
    from sklearn.metrics import r2_score

    def score(t: Floats, p: Floats) -> Floats:
        values = np.asarray(r2_score(t, p, multioutput="raw_values"), dtype=np.float64)
        return np.where(_is_constant(t), np.nan, values)

    return _by_block(true, predicted, score)


def _by_block(true: Any, predicted: Any, score: Callable[[Floats, Floats], Floats]) -> Floats:
    """Apply `score` to blocks of features of both matrices, dense and in float64."""
    true, predicted = _matrices(true, predicted)
    if len(true.shape) != 2 or true.shape != predicted.shape:
        raise ValueError(
            "expected true and predicted values of one shape (cells x features), found "
            f"{tuple(true.shape)} and {tuple(predicted.shape)}."
        )
    n_cells, n_features = true.shape
    if n_cells < 2:
        raise ValueError(f"expected at least two cells, found {n_cells}.")
    width = max(1, _BLOCK_VALUES // n_cells)
    by_column = [m.tocsc() if is_sparse(m) else m for m in (true, predicted)]
    result = np.empty(n_features, dtype=np.float64)
    for start in range(0, n_features, width):
        stop = min(start + width, n_features)
        result[start:stop] = score(*(_dense(m[:, start:stop]) for m in by_column))
    return result


def _matrices(true: Any, predicted: Any) -> tuple[Any, Any]:
    """Return both as matrices; tables have to name the same cells and features in one order."""
    sides = {"true": true, "predicted": predicted}
    for name, one in sides.items():
        if isinstance(one, pd.DataFrame):
            sides[name] = one.to_numpy()
        elif isinstance(one, list | tuple):
            sides[name] = np.asarray(one)
        elif not hasattr(one, "shape") or hasattr(one, "obs_names"):
            raise TypeError(
                f"{name}: expected a matrix, cells x features, found {type(one).__name__}. Pass "
                "its .X, or a layer."
            )
    if isinstance(true, pd.DataFrame) and isinstance(predicted, pd.DataFrame):
        if not (true.index.equals(predicted.index) and true.columns.equals(predicted.columns)):
            raise ValueError(
                "expected true and predicted tables with the same rows and columns in one order; "
                "call predicted.reindex_like(true), or pass their .to_numpy()."
            )
    return sides["true"], sides["predicted"]


def check_same_cells(name: str, true: Any, other: Any) -> None:
    """Check that two tables or columns that name their cells name the same ones in one order.

    Rows that are only numbered from 0 are no names.

    Raises
    ------
    ValueError
        They do not.
    """
    named = [
        one.index
        for one in (true, other)
        if isinstance(one, pd.Series | pd.DataFrame)
        and not one.index.equals(pd.RangeIndex(len(one)))
    ]
    if len(named) == 2 and not named[0].equals(named[1]):
        known = named[1].isin(named[0])
        how = (
            "the same cells in another order"
            if known.all() and len(named[0]) == len(named[1])
            else f"{int((~known).sum())} other cells"
        )
        raise ValueError(
            f"{name}: expected the cells of the true values in their order, found {how}; call "
            ".reindex(true.index) on it, or pass .to_numpy()."
        )


def _dense(block: Any) -> Floats:
    return np.asarray(block.toarray() if is_sparse(block) else block, dtype=np.float64)


def _is_constant(values: Floats) -> NDArray[np.bool_]:
    size = np.abs(values).max(axis=0)
    return np.asarray(values.std(axis=0) <= _CONSTANT * size)


class Correlation:
    """Pearson r per feature over cells that come in blocks, overall and within groups.

    Means, and sums of squares and of products about them, are kept per group in float64 and merged
    block by block (Chan, Golub & LeVeque 1983): nothing cancels, and memory does not grow with the
    number of cells.

    Parameters
    ----------
    n_features, n_groups
        Numbers of features and of groups.
    """

    def __init__(self, n_features: int, n_groups: int = 1) -> None:
        self.n = np.zeros((n_groups, 1))
        self.means = np.zeros((2, n_groups, n_features))
        self.moments = np.zeros((3, n_groups, n_features))
        self.size = np.zeros((2, n_features))

    def add(self, true: Any, predicted: Any, groups: NDArray[np.integer[Any]]) -> None:
        """Add cells: measured and predicted values, and the number of each cell's group."""
        order = np.argsort(groups, kind="stable")
        present, starts, counts = np.unique(groups[order], return_index=True, return_counts=True)
        n = counts[:, None].astype(np.float64)
        values = np.stack([true[order], predicted[order]], dtype=np.float64)
        self.size = np.maximum(self.size, np.abs(values).max(axis=1))
        means = np.add.reduceat(values, starts, axis=1) / n
        values -= np.repeat(means, counts, axis=1)
        moments = np.stack([np.add.reduceat(product, starts) for product in _products(values)])
        step, before = means - self.means[:, present], self.n[present]
        share = n / (before + n)
        self.moments[:, present] += moments + before * share * np.stack([*_products(step)])
        self.means[:, present] += step * share
        self.n[present] += n

    def overall(self) -> Floats:
        """Return r over all cells; NaN where either side is constant."""
        means = (self.n * self.means).sum(axis=1) / self.n.sum()
        between = np.stack([*_products(self.means - means[:, None])])
        return self._r((self.moments + self.n * between).sum(axis=1))

    def within(self) -> Floats:
        """Return r after taking group means off; NaN where either side is constant within all."""
        return self._r(self.moments.sum(axis=1))

    def _r(self, moments: Floats) -> Floats:
        spread = np.sqrt(moments[:2])
        varies = (spread > _CONSTANT * self.size * np.sqrt(self.n.sum())).all(axis=0)
        result = np.full(len(varies), np.nan)
        left, right = spread[:, varies]
        result[varies] = np.clip(moments[2, varies] / left / right, -1.0, 1.0)
        return result


def _products(both: Floats) -> Iterator[Floats]:
    """Square of the one, of the other, and their product."""
    left, right = both
    yield left * left
    yield right * right
    yield left * right
