"""Example data, simulators with known truth, readers of the public sets that the paper used.

A small real set ships with the package. Readers take the path of what was downloaded and return it
as a MuData; they say where it comes from, and what of it could not be checked.
"""

from ._bmmc import bmmc_multiome
from ._dbitseq import dbitseq
from ._dlpfc import dlpfc_visium
from ._dyngen import dyngen
from ._mnist import mnist_two_views
from ._patchseq import patchseq_gabaergic
from ._pbmc import pbmc_citeseq
from ._regulation import simulate_regulation
from ._simulate import simulate_multimodal
from ._two_views import simulate_two_views
from ._zarr import open_zarr

__all__ = [
    "bmmc_multiome",
    "dbitseq",
    "dlpfc_visium",
    "dyngen",
    "mnist_two_views",
    "open_zarr",
    "patchseq_gabaergic",
    "pbmc_citeseq",
    "simulate_multimodal",
    "simulate_regulation",
    "simulate_two_views",
]
