"""Example data, real and simulated with known truth; a zarr store opened without reading it."""

from ._pbmc import pbmc_citeseq
from ._regulation import simulate_regulation
from ._simulate import simulate_multimodal
from ._two_views import simulate_two_views
from ._zarr import open_zarr

__all__ = [
    "open_zarr",
    "pbmc_citeseq",
    "simulate_multimodal",
    "simulate_regulation",
    "simulate_two_views",
]
