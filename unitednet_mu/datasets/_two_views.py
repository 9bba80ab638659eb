"""A simulator of two views of the same cells, decoded from shared and from own latent factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit

from .._compat import quiet_update
from .._validate import check_random_state
from ._common import categories, check_at_least, check_not_negative

#: Spread of the groups' centres on a factor, in standard deviations within a group.
_CENTRE_SD = 1.5
#: Share of features that follow no factor, and, of the others, of those that follow two.
_SILENT, _TWO_FACTORS = 0.2, 0.5
#: Width of a response that is highest in the middle, and mean of a feature before dropout.
_BUMP, _LOWEST_LEVEL, _HIGHEST_LEVEL = 0.75, 1.0, 2.0


@dataclass(frozen=True)
class _Decoder:
    """Per feature of a view the two factors that it follows (-1 for none), and how.

    Parameters
    ----------
    factors
        Features x 2, positions among shared factors and, behind them, the view's own.
    weights, shifts
        Of each of the two, features x 2.
    shape
        Kind of response to each, features x 2: 0 linear, 1 sigmoid, 2 from a threshold on, 3
        highest in the middle.
    jointly
        Whether a feature that follows two factors needs both; else their responses add up.
    """

    factors: NDArray[np.int64]
    weights: NDArray[np.float64]
    shifts: NDArray[np.float64]
    shape: NDArray[np.int64]
    jointly: NDArray[np.bool_]


def simulate_two_views(
    *,
    n_obs: int = 1000,
    n_groups: int = 10,
    n_vars: Mapping[str, int] | None = None,
    n_shared: int = 10,
    n_specific: int = 5,
    noise: float = 1.0,
    dropout: float = 0.5,
    random_state: int = 0,
) -> MuData:
    """Simulate two views of the same cells, each of which tells only some of the groups apart.

    In the manner of MUSE's simulation: cells have latent factors, normal around their group's
    centres, that random nonlinear maps decode into features, with noise and dropout. Shared factors
    are decoded into both views, others into one. The maps are sparse, each feature follows one or
    two factors, so that it is known which features of the views are linked: those that follow the
    same shared factor. Others may be correlated, as factors differ between groups.

    Groups come in pairs. Shared factors tell pairs apart; within a pair the two groups differ by
    the first view's own factors (every other pair) or by the second's.

    Parameters
    ----------
    n_obs
        Number of cells.
    n_groups
        Number of joint groups, of equal size up to one cell.
    n_vars
        Number of features of the two views, ``{"view_a": 200, "view_b": 100}`` by default.
    n_shared, n_specific
        Number of shared factors, and of each view's own.
    noise
        Standard deviation of the noise of a feature, whose signal has standard deviation 1.
    dropout
        Decay d of the probability exp(-d x²) with which a value x is lost and reads 0: the larger,
        the fewer values are lost.
    random_state
        Seed; the same seed gives the same data.

    Returns
    -------
    MuData, every cell with both views, and

    ``.mod[<view>].X`` : float32, cells x features
        Values of 0 or more, dense.
    ``.obs["cell_type"]`` : categorical
        The joint group, ``group0`` and so on.
    ``.obs["<view>_group"]`` : categorical
        The groups that a view tells apart, ``part0`` and so on.
    ``.uns["truth"]`` : dict
        ``links``: by ``"<target>_from_<source>"``, both ways, a float64 CSR matrix, source x target
        features, 1 where both follow the same shared factor. ``factors``: by view a float64 CSR
        matrix, features x factors (the shared ones first, then the view's own), 1 where the feature
        follows the factor.

    Raises
    ------
    ValueError
        Impossible sizes or names.

    Notes
    -----
    Bao et al., Nature Biotechnology 40, 1200 (2022), doi 10.1038/s41587-022-01251-z.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_two_views(n_obs=60, n_groups=4)
    >>> mdata["view_a"].shape, mdata.uns["truth"]["links"]["view_b_from_view_a"].shape
    ((60, 200), (200, 100))
    >>> mdata.obs[["view_a_group", "view_b_group"]].nunique().tolist()
    [3, 3]
    """
    sizes = {"view_a": 200, "view_b": 100} if n_vars is None else dict(n_vars)
    _check_views(sizes)
    check_at_least(2, n_groups=n_groups)
    check_at_least(n_groups, n_obs=n_obs)
    check_at_least(1, n_shared=n_shared)
    check_at_least(0, n_specific=n_specific)
    check_not_negative(noise=noise, dropout=dropout)
    rng = np.random.default_rng(check_random_state(random_state))
    groups = rng.permutation(np.arange(n_obs) % n_groups)
    parts = _partial_groups(n_groups)
    shared = _factors(rng, (np.arange(n_groups) // 2)[groups], n_shared)
    modalities, loadings, columns = {}, {}, {}
    for (view, size), part in zip(sizes.items(), parts, strict=True):
        own = _factors(rng, part[groups], n_specific)
        decoder = _decoder(rng, size, n_shared + n_specific)
        signal = _decode(decoder, np.hstack([shared, own]))
        modalities[view] = AnnData(
            X=_observe(rng, signal, noise, dropout),
            obs=pd.DataFrame(index=[f"cell{i}" for i in range(n_obs)]),
            var=pd.DataFrame(index=[f"{view}_{j}" for j in range(size)]),
        )
        loadings[view] = _loadings(decoder, n_shared + n_specific)
        columns[f"{view}_group"] = categories("part", part[groups], int(part.max()) + 1)
    with quiet_update():
        mdata = MuData(modalities)
    mdata.obs["cell_type"] = categories("group", groups, n_groups)
    for name, column in columns.items():
        mdata.obs[name] = column
    mdata.uns["truth"] = {"links": _links(loadings, n_shared), "factors": loadings}
    return mdata


def _check_views(sizes: Mapping[str, int]) -> None:
    if len(sizes) != 2:
        raise ValueError(f"n_vars: expected two views, found {list(sizes)}.")
    for view, size in sizes.items():
        if not view or "/" in view:
            raise ValueError(f"n_vars: expected names of views without '/', found {view!r}.")
        check_at_least(1, **{f"n_vars[{view!r}]": size})


def _partial_groups(n_groups: int) -> list[NDArray[np.int64]]:
    """For each view the part that each group belongs to: every other pair of groups is one part."""
    pair = np.arange(n_groups) // 2
    second = np.arange(n_groups) % 2
    told = [second * (pair % 2 == view) for view in range(2)]
    return [np.unique(2 * pair + apart, return_inverse=True)[1] for apart in told]


def _factors(rng: np.random.Generator, groups: np.ndarray, n: int) -> NDArray[np.float64]:
    centres = _CENTRE_SD * rng.standard_normal((int(groups.max()) + 1, n))
    values: NDArray[np.float64] = centres[groups] + rng.standard_normal((len(groups), n))
    return values


def _decoder(rng: np.random.Generator, n_features: int, n_factors: int) -> _Decoder:
    draws = rng.random((n_features, n_factors)).argsort(axis=1)[:, :2]
    factors = np.full((n_features, 2), -1)
    factors[:, : draws.shape[1]] = draws
    factors[rng.random(n_features) >= _TWO_FACTORS, 1] = -1
    factors[rng.random(n_features) < _SILENT] = -1
    shape = (n_features, 2)
    return _Decoder(
        factors=factors,
        weights=rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape),
        shifts=rng.standard_normal(shape),
        shape=rng.integers(4, size=shape),
        jointly=rng.random(n_features) < 0.5,
    )


def _decode(decoder: _Decoder, factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Signals, cells x features, with mean 0 and standard deviation 1 (0 where no factor acts)."""
    x = factors[:, decoder.factors] - decoder.shifts
    responses = [x, np.tanh(1.5 * x), np.maximum(x, 0), np.exp(-((x / _BUMP) ** 2) / 2)]
    follows = decoder.factors >= 0
    response = np.choose(decoder.shape, responses)
    response = _standardised(response) * decoder.weights
    added = (response * follows).sum(axis=2)
    both = expit(2 * response).prod(axis=2)
    return _standardised(np.where(decoder.jointly & follows.all(axis=1), both, added))


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    scale = values.std(axis=0)
    standardised: NDArray[np.float64] = (values - values.mean(axis=0)) / np.where(
        scale > 0, scale, 1
    )
    return standardised


def _observe(
    rng: np.random.Generator, signal: NDArray[np.float64], noise: float, dropout: float
) -> NDArray[np.float32]:
    level = rng.uniform(_LOWEST_LEVEL, _HIGHEST_LEVEL, signal.shape[1])
    values = np.maximum(level + signal + noise * rng.standard_normal(signal.shape), 0)
    lost = rng.random(values.shape) < np.exp(-dropout * values**2)
    return np.where(lost, 0, values).astype(np.float32)


def _loadings(decoder: _Decoder, n_factors: int) -> sparse.csr_matrix:
    follows = (decoder.factors[:, :, None] == np.arange(n_factors)).any(axis=1)
    return sparse.csr_matrix(follows.astype(np.float64))


def _links(loadings: Mapping[str, Any], n_shared: int) -> dict[str, sparse.csr_matrix]:
    (first, a), (second, b) = loadings.items()
    links = (a[:, :n_shared] @ b[:, :n_shared].T).sign()
    return {
        f"{second}_from_{first}": sparse.csr_matrix(links),
        f"{first}_from_{second}": sparse.csr_matrix(links.T),
    }
