"""Example data: a small real set that ships with the package, and a simulator with known truth."""

from ._pbmc import pbmc_citeseq
from ._simulate import simulate_multimodal

__all__ = ["pbmc_citeseq", "simulate_multimodal"]
