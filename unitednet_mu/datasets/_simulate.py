"""A small simulator of multimodal cells whose groups and cross-modal links are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from scipy.special import expit

from .._compat import quiet_update
from .._validate import check_random_state, per_modality, unknown_name
from ._common import categories, check_not_negative

Values = Literal["continuous", "counts", "binary"]

_MARKER_EFFECT = 2.0
_LINK_EFFECT = 1.5


@dataclass(frozen=True)
class _Cells:
    """What is common to all modalities: per cell its group, batch and the strength of each link."""

    groups: np.ndarray
    batches: np.ndarray
    links: np.ndarray
    n_groups: int
    n_batches: int


@dataclass(frozen=True)
class _Features:
    """Per feature of a modality the marked group and the link, -1 for none, and the link's sign."""

    marker: np.ndarray
    link: np.ndarray
    sign: np.ndarray


def simulate_multimodal(
    *,
    n_obs: int = 400,
    n_groups: int = 4,
    n_vars: Mapping[str, int] | None = None,
    n_links: int = 3,
    values: Values | Mapping[str, Values] = "continuous",
    noise: float = 0.5,
    missing: float | Mapping[str, float] = 0.0,
    n_batches: int = 1,
    batch_effect: float = 1.0,
    random_state: int = 0,
) -> MuData:
    """Simulate cells measured in several modalities, with planted groups and planted links.

    Each feature is of one of three sorts. *Linked* features follow a hidden quantity that varies
    from cell to cell, in every group alike; link k drives one feature of each modality, up or down,
    so that one modality predicts the other within groups. *Markers* are higher in one group. The
    others hold noise only. All three shift by batch.

    Parameters
    ----------
    n_obs
        Number of cells.
    n_groups
        Number of groups, of equal size up to one cell.
    n_vars
        Number of features per modality, ``{"rna": 40, "adt": 20}`` by default; at least
        `n_links` + `n_groups` each.
    n_links
        Number of links.
    values
        Kind of values, one for all modalities or a mapping (continuous where not named):
        ``"continuous"``, normal around the signal, dense; ``"counts"``, Poisson, sparse;
        ``"binary"``, 0 or 1, sparse.
    noise
        Standard deviation of the independent noise of every feature, in the unit in which a
        marker's group stands 2 above the others and a link has standard deviation 1.5.
    missing
        Fraction of cells without a modality, one for all modalities or a mapping. Cells that would
        lose all modalities keep one.
    n_batches
        Number of batches, drawn independently of the groups.
    batch_effect
        Standard deviation of the batches' offsets, drawn for each feature.
    random_state
        Seed; the same seed gives the same data.

    Returns
    -------
    MuData with the first modality's cells in front, then the others', and

    ``.mod[<modality>].X`` : float32, cells that have the modality x features
        The values, dense for continuous ones, CSR otherwise. Features are called
        ``<modality>_<number>``.
    ``.obs["cell_type"]`` : categorical
        The group, ``group0`` and so on.
    ``.obs["batch"]`` : categorical
        The batch, ``batch0`` and so on.
    ``.uns["truth"]`` : dict
        Per modality ``marker_of`` (str array: the group that a feature marks, ``""`` for none),
        ``link_of`` (str array: ``link0`` and so on, ``""`` for none) and ``link_sign`` (float64
        array: 1, -1, or 0 for none).

    Raises
    ------
    ValueError
        Impossible sizes, fractions or names.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=90, n_groups=3, missing={"adt": 0.5})
    >>> mdata["rna"].shape, mdata["adt"].n_obs
    ((90, 40), 45)
    >>> mdata.uns["truth"]["link_of"]["adt"][:4].tolist()
    ['link0', 'link1', 'link2', '']
    """
    sizes = {"rna": 40, "adt": 20} if n_vars is None else dict(n_vars)
    kinds = _kinds(values, sizes)
    fractions = _fractions(missing, sizes)
    _check_sizes(n_obs, n_groups, n_links, n_batches, sizes)
    check_not_negative(noise=noise, batch_effect=batch_effect)
    rng = np.random.default_rng(check_random_state(random_state))
    cells = _Cells(
        groups=rng.permutation(np.arange(n_obs) % n_groups),
        batches=rng.permutation(np.arange(n_obs) % n_batches),
        links=rng.standard_normal((n_obs, n_links)),
        n_groups=n_groups,
        n_batches=n_batches,
    )
    observed = _observed(rng, n_obs, fractions)
    names = np.asarray([f"cell{i}" for i in range(n_obs)])
    modalities, truth = {}, {}
    for position, (mod, size) in enumerate(sizes.items()):
        features = _features(rng, size, n_links, n_groups, first=position == 0)
        signal = _signal(rng, cells, features, noise, batch_effect)
        rows = observed[:, position]
        modalities[mod] = AnnData(
            X=_draw(rng, signal, kinds[mod])[rows],
            obs=pd.DataFrame(index=names[rows]),
            var=pd.DataFrame(index=[f"{mod}_{j}" for j in range(size)]),
        )
        truth[mod] = features
    return _assemble(modalities, cells, names, truth)


def _kinds(values: Any, sizes: Mapping[str, int]) -> dict[str, str]:
    kinds = {
        mod: v or "continuous" for mod, v in per_modality(values, list(sizes), "values").items()
    }
    for kind in kinds.values():
        if kind not in get_args(Values):
            raise ValueError(unknown_name("values: kind", kind, get_args(Values)))
    return kinds


def _fractions(missing: Any, sizes: Mapping[str, int]) -> dict[str, float]:
    spread = per_modality(missing, list(sizes), "missing")
    fractions = {mod: float(value or 0.0) for mod, value in spread.items()}
    for mod, fraction in fractions.items():
        if not 0 <= fraction < 1:
            raise ValueError(
                f"missing: expected fractions from 0 to below 1, found {fraction} for {mod!r}."
            )
    return fractions


def _check_sizes(
    n_obs: int, n_groups: int, n_links: int, n_batches: int, sizes: Mapping[str, int]
) -> None:
    if n_groups < 1 or n_batches < 1 or n_links < 0:
        raise ValueError(
            "expected n_groups and n_batches of at least 1 and n_links of at least 0, found "
            f"n_groups={n_groups}, n_batches={n_batches}, n_links={n_links}."
        )
    if n_obs < max(n_groups, n_batches):
        raise ValueError(
            f"n_obs: expected at least one cell for each of {n_groups} groups and {n_batches} "
            f"batches, found {n_obs}."
        )
    if not sizes:
        raise ValueError("n_vars: expected at least one modality, found none.")
    for mod, size in sizes.items():
        if size < n_links + n_groups:
            raise ValueError(
                f"n_vars: expected at least n_links + n_groups = {n_links + n_groups} features, "
                f"found {size} for {mod!r}."
            )
        if not mod or "/" in mod:
            raise ValueError(f"n_vars: expected modality names without '/', found {mod!r}.")


def _observed(rng: np.random.Generator, n_obs: int, fractions: Mapping[str, float]) -> np.ndarray:
    observed = np.ones((n_obs, len(fractions)), dtype=bool)
    for position, fraction in enumerate(fractions.values()):
        observed[rng.permutation(n_obs)[: round(fraction * n_obs)], position] = False
    lost = np.flatnonzero(~observed.any(axis=1))
    observed[lost, rng.integers(len(fractions), size=len(lost))] = True
    return observed


def _features(
    rng: np.random.Generator, size: int, n_links: int, n_groups: int, *, first: bool
) -> _Features:
    """Links come first, then markers, group by group in turn, then as many features of noise."""
    number = np.arange(size)
    link = np.where(number < n_links, number, -1)
    rounds = max(1, (size - n_links) // (2 * n_groups))
    is_marker = (number >= n_links) & (number < n_links + rounds * n_groups)
    marker = np.where(is_marker, (number - n_links) % n_groups, -1)
    signs = np.ones(size) if first else rng.choice([-1.0, 1.0], size=size)
    return _Features(marker=marker, link=link, sign=np.where(link >= 0, signs, 0.0))


def _signal(
    rng: np.random.Generator, cells: _Cells, features: _Features, noise: float, batch_effect: float
) -> np.ndarray:
    signal = noise * rng.standard_normal((len(cells.groups), len(features.link)))
    signal += _MARKER_EFFECT * (cells.groups[:, None] == features.marker[None, :])
    linked = np.flatnonzero(features.link >= 0)
    signal[:, linked] += (
        _LINK_EFFECT * features.sign[linked] * cells.links[:, features.link[linked]]
    )
    if cells.n_batches > 1:
        offsets = batch_effect * rng.standard_normal((cells.n_batches, len(features.link)))
        signal += offsets[cells.batches]
    return signal


def _draw(rng: np.random.Generator, signal: np.ndarray, kind: str) -> Any:
    if kind == "continuous":
        return signal.astype(np.float32)
    if kind == "counts":
        rates = np.exp(np.minimum(signal, 6.0))  # a few hundred at most
        return sparse.csr_matrix(rng.poisson(rates).astype(np.float32))
    return sparse.csr_matrix((rng.random(signal.shape) < expit(2 * signal - 1)).astype(np.float32))


def _assemble(
    modalities: dict[str, AnnData], cells: _Cells, names: np.ndarray, truth: dict[str, _Features]
) -> MuData:
    with quiet_update():
        mdata = MuData(modalities)
    order = pd.Index(names).get_indexer(mdata.obs_names)
    mdata.obs["cell_type"] = categories("group", cells.groups[order], cells.n_groups)
    mdata.obs["batch"] = categories("batch", cells.batches[order], cells.n_batches)
    mdata.uns["truth"] = {
        "marker_of": {mod: _texts("group", features.marker) for mod, features in truth.items()},
        "link_of": {mod: _texts("link", features.link) for mod, features in truth.items()},
        "link_sign": {mod: features.sign for mod, features in truth.items()},
    }
    return mdata


def _texts(stem: str, codes: np.ndarray) -> np.ndarray:
    return np.asarray(["" if code < 0 else f"{stem}{code}" for code in codes])
