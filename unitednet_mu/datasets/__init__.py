"""Example data: a small real set that ships with the package, and simulators with known truth."""

from ._pbmc import pbmc_citeseq
from ._regulation import simulate_regulation
from ._simulate import simulate_multimodal
from ._two_views import simulate_two_views

__all__ = ["pbmc_citeseq", "simulate_multimodal", "simulate_regulation", "simulate_two_views"]
