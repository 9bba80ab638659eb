"""Scores of predictions, feature by feature, in blocks; `metrics` makes them public."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        Measured and predicted values, cells x features in the same order, dense or sparse, finite.
        They are made dense a block of features at a time.

    Returns
    -------
    float64 array, one r per feature, from -1 to 1; NaN where either side is constant.

    Raises
    ------
    ValueError
        The shapes differ or hold fewer than two cells.

    Examples
    --------
    >>> import numpy as np, unitednet_mu as un
    >>> true = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> un.metrics.pearson_per_feature(true, 3 * true + 1)
    array([ 1., nan])
    """
    return _by_block(true, predicted, _pearson)


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
    ValueError
        The shapes or the number of groups' entries differ, or there are fewer than two cells.

    Examples
    --------
    >>> import numpy as np, unitednet_mu as un
    >>> true = np.array([[0.0], [1.0], [10.0], [11.0]])
    >>> un.metrics.pearson_within_groups(true, -true, ["a", "a", "b", "b"])
    array([-1.])
    """
    codes, _ = pd.factorize(np.asarray(groups, dtype=object))
    if len(codes) != true.shape[0]:
        raise ValueError(f"groups: expected {true.shape[0]} entries, found {len(codes)}.")
    kept = np.flatnonzero(codes >= 0)
    codes = codes[kept]
    return _by_block(true, predicted, lambda t, p: _within(t[kept], p[kept], codes))


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
    ValueError
        The shapes differ or hold fewer than two cells.

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


def _dense(block: Any) -> Floats:
    return np.asarray(block.toarray() if is_sparse(block) else block, dtype=np.float64)


def _is_constant(values: Floats) -> NDArray[np.bool_]:
    size = np.abs(values).max(axis=0)
    return np.asarray(values.std(axis=0) <= _CONSTANT * size)


def _pearson(true: Floats, predicted: Floats) -> Floats:
    constant = _is_constant(true) | _is_constant(predicted)
    return _correlate(true - true.mean(axis=0), predicted - predicted.mean(axis=0), constant)


def _within(true: Floats, predicted: Floats, codes: NDArray[np.int64]) -> Floats:
    constant = np.zeros(true.shape[1], dtype=bool)
    centred = []
    for values in (true, predicted):
        residual = values - _group_means(values, codes)[codes]
        constant |= residual.std(axis=0) <= _CONSTANT * np.abs(values).max(axis=0)
        centred.append(residual)
    return _correlate(centred[0], centred[1], constant)


def _group_means(values: Floats, codes: NDArray[np.int64]) -> Floats:
    n_groups = int(codes.max()) + 1
    sums = np.zeros((n_groups, values.shape[1]))
    np.add.at(sums, codes, values)
    return sums / np.bincount(codes, minlength=n_groups)[:, None]


def _correlate(left: Floats, right: Floats, constant: NDArray[np.bool_]) -> Floats:
    """Correlate columns that have mean 0 already."""
    result = np.full(left.shape[1], np.nan)
    used = ~constant
    left, right = left[:, used], right[:, used]
    left = left / np.linalg.norm(left, axis=0)
    right = right / np.linalg.norm(right, axis=0)
    result[used] = np.clip((left * right).sum(axis=0), -1.0, 1.0)
    return result
