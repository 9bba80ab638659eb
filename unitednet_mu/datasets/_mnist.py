"""Handwritten digits in two views: the image and its edges."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from numpy.typing import NDArray
from scipy import ndimage

from ._files import StrPath, existing, fetched, first_existing, together

_ADDRESS = "https://ossci-datasets.s3.amazonaws.com/mnist/"
#: Files with their checksums, as torchvision has them.
_FILES = {
    "train-images-idx3-ubyte": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "md5:d53e105ee54ea40749a09fcbcd1e9432",
}
_ORIGIN = f"the files {[f'{name}.gz' for name in _FILES]} stand under {_ADDRESS}"
#: First bytes of the format: unsigned bytes in so many dimensions.
_UNSIGNED_BYTES = 8


def mnist_two_views(path: StrPath | None = None) -> MuData:
    """Read handwritten digits (MNIST) as two views: the image and the digit's outline.

    The 60,000 training images. The second view is computed: the image with each pixel replaced by
    the brightest of its 3 x 3 neighbourhood, minus the image.

    Parameters
    ----------
    path
        Folder with ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``, packed (``.gz``)
        or not. Without it they are downloaded (10 MB, checksums checked) by ``pooch``, into its
        cache.

    Returns
    -------
    MuData, every image with both modalities, and

    ``.mod["image"].X``, ``.mod["edge"].X`` : float32, images x pixels
        Brightness from 0 to 1, dense, 784 pixels row by row (190 MB each); names are ``image_0_0``,
        row and column.
    ``.obs["digit"]`` : categorical
        ``0`` to ``9``.

    Raises
    ------
    FileNotFoundError
        There is no such folder, or a file is missing in it.
    ImportError
        No `path`, and pooch is not installed.
    ValueError
        A file is of another format, the files hold different numbers of images, or a download's
        checksum is wrong.

    Notes
    -----
    LeCun et al., Proceedings of the IEEE 86, 2278 (1998), doi 10.1109/5.726791. The second view is
    the one of Liu and Tuzel, *Coupled generative adversarial networks* (2016), that Trosten et al.,
    *Reconsidering representation alignment for multi-view clustering* (2021), use, whose clustering
    loss UnitedNet has. UnitedNet's authors do not publish how they made theirs: figures
    on this one are not theirs.

    The format is public and the checksums are torchvision's; the files were not at hand.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.mnist_two_views("mnist")
    >>> {mod: adata.n_vars for mod, adata in mdata.mod.items()}
    {'image': 784, 'edge': 784}
    """
    if path is None:
        files = [fetched(f"{_ADDRESS}{name}.gz", known) for name, known in _FILES.items()]
    else:
        folder = existing(path, _ORIGIN)
        files = [first_existing(folder, [f"{name}.gz", name], _ORIGIN) for name in _FILES]
    images, digits = _read_idx(files[0], 3), _read_idx(files[1], 1)
    if len(images) != len(digits):
        raise ValueError(
            f"{files[0].parent}: expected as many labels as images, found {len(digits)} and "
            f"{len(images)}."
        )
    edges = ndimage.grey_dilation(images, size=(1, 3, 3)) - images
    names = pd.Index([f"digit{i}" for i in range(len(images))])
    modalities = {
        view: _view(view, values, names) for view, values in (("image", images), ("edge", edges))
    }
    labels = pd.Categorical(digits.astype(str))
    return together(modalities, pd.DataFrame({"digit": labels}, index=names))


def _view(view: str, images: NDArray[np.uint8], names: pd.Index) -> AnnData:
    rows, across = images.shape[1:]
    pixels = pd.Index([f"{view}_{i}_{j}" for i in range(rows) for j in range(across)])
    values = images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
    return AnnData(values, obs=pd.DataFrame(index=names), var=pd.DataFrame(index=pixels))


def _read_idx(file: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an array in the IDX format: two zeros, type, dimensions, sizes (big-endian), bytes."""
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    start = 4 + 4 * dimensions
    sizes = np.frombuffer(data[4:start], ">u4").astype(np.int64)
    expected = bytes([0, 0, _UNSIGNED_BYTES, dimensions])
    if data[:4] != expected or len(data) - start != sizes.prod():
        raise ValueError(
            f"{file.name}: expected bytes in {dimensions} dimensions in the IDX format, found "
            f"{data[:4].hex(' ')!r} at its head and {len(data)} bytes in all. Fetch it again."
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(sizes)
