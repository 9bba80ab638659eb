"""Preparation: raw values of each usual modality into values that the network can learn from.

The arithmetic is scanpy's and muon's; :func:`niche` adds a modality, what spatial neighbours
express. Every function takes the MuData first and the rest by keyword, works in place, or returns a
changed copy with ``copy=True``, and either finishes or changes nothing.
"""

from ._atac import atac
from ._continuous import continuous
from ._niche import niche
from ._prepare import prepare
from ._protein import protein
from ._rna import rna

__all__ = ["atac", "continuous", "niche", "prepare", "protein", "rna"]
