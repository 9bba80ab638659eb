"""All modalities of a MuData in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

from mudata import MuData

from .._compat import copied, undo_on_error
from .._kinds import USUAL_NAMES, Kind, usual_kind
from .._validate import (
    check_in_memory,
    check_modalities,
    check_mudata,
    derived_from,
    unknown_name,
)
from ._atac import atac
from ._continuous import continuous
from ._protein import protein
from ._rna import rna

_PREPARE: dict[str, Callable[..., Any]] = {
    "rna": rna,
    "protein": protein,
    "atac": atac,
    "continuous": continuous,
}


def prepare(
    mdata: MuData, *, kinds: Mapping[str, Kind] | None = None, copy: bool = False
) -> MuData | None:
    """Prepare every measured modality with the defaults for its kind.

    Parameters
    ----------
    mdata
        MuData with raw counts, or continuous values. A view is made real first.
    kinds
        Mapping ``{modality: kind}`` with the kinds ``"rna"``, ``"protein"``, ``"atac"`` and
        ``"continuous"``. Modalities that it does not name are recognised by their own name, in any
        case of letters: rna, gex, gene expression; adt, prot, protein, antibody capture; atac,
        peaks. What :func:`niche` computed is continuous.
    copy
        Return a changed copy and leave `mdata` as it is.

    Returns
    -------
    None, or the changed copy with ``copy=True``. In each modality what :func:`rna`,
    :func:`protein`, :func:`atac` or :func:`continuous` writes:

    ``.X`` : float32, cells x features
        The prepared values (continuous ones as they were).
    ``.layers["counts"]`` : dtype of the counts
        The raw counts, as they were stored (not for continuous ones).

    Raises
    ------
    TypeError
        `mdata` is not a MuData.
    ValueError
        A modality is not recognised, `kinds` names an unknown modality or kind, or one of the
        preparations refuses its modality. `mdata` is left untouched, all modalities of it.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.pbmc_citeseq()
    >>> un.pp.prepare(mdata)
    >>> sorted(mdata.mod)
    ['adt', 'rna']
    """
    checked = check_mudata(mdata)
    check_in_memory(checked)
    chosen = _kinds(checked, check_modalities(checked, None), dict(kinds or {}))
    if copy:
        checked = copied(checked)
    with undo_on_error(checked):
        for mod, kind in chosen.items():
            _PREPARE[kind](checked, mod=mod)
    return checked if copy else None


def _kinds(mdata: MuData, modalities: list[str], given: dict[str, Kind]) -> dict[str, Kind]:
    for mod, kind in given.items():
        if mod not in modalities:
            raise ValueError(unknown_name("kinds: modality", mod, modalities))
        if kind not in get_args(Kind):
            raise ValueError(
                unknown_name(f"kinds: kind of modality {mod!r},", kind, get_args(Kind))
            )
    derived: dict[str, Kind] = {
        mod: "continuous" for mod in modalities if derived_from(mdata.mod, mod)
    }
    known = {**derived, **given}
    found = {mod: known.get(mod) or usual_kind(mod) for mod in modalities}
    unrecognised = [mod for mod, kind in found.items() if kind is None]
    if unrecognised:
        raise ValueError(
            f"kinds: expected modalities named like {', '.join(USUAL_NAMES)}, found "
            f"{unrecognised}. Say what they are, for example "
            f"kinds={{{unrecognised[0]!r}: 'continuous'}}; kinds are {list(get_args(Kind))}."
        )
    return {mod: kind for mod, kind in found.items() if kind is not None}
