"""Kinds of modalities, and the names by which the usual ones are recognised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Kind = Literal["rna", "protein", "atac", "continuous"]

#: Names in lower case.
USUAL_NAMES: Mapping[str, Kind] = {
    "rna": "rna",
    "gex": "rna",
    "gene expression": "rna",
    "adt": "protein",
    "prot": "protein",
    "protein": "protein",
    "antibody capture": "protein",
    "atac": "atac",
    "peaks": "atac",
}


def usual_kind(name: str) -> Kind | None:
    """Kind of a modality by its name, in any case of letters; None where that does not tell."""
    return USUAL_NAMES.get(name.lower())
