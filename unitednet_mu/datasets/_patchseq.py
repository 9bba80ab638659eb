"""The Patch-seq set of GABAergic neurons that UnitedNet's authors used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from ._files import StrPath, columns, existing, fetched, first_existing, h5ad_elements, together

#: The commit that holds the files; later ones do not.
_ADDRESS = (
    "https://raw.githubusercontent.com/LiuLab-Bioelectronics-Harvard/UnitedNet/"
    "7e9ad2b4b4e29f853e9a42519a9b2159730a9b48/data/patchseq/"
)
#: Modality, its file, and the file's checksum (of the bytes stored in that commit).
_FILES = {
    "rna": (
        "adata_RNA_TEM.h5ad",
        "sha256:3a13710273c41c6609d3604398aa936969a10e864563d49529bd49e3500d7cee",
    ),
    "ephys": (
        "adata_Ephys_TEM.h5ad",
        "sha256:c7f3da2912f54861746b6bd30dd1824e65739ede64bfddb4df3d51c90ac6dae3",
    ),
    "morph": (
        "adata_Morph_TEM.h5ad",
        "sha256:14e54310a9f55bbb4b860d30681c060557346a305b9728f8b5400cd60cbfae22",
    ),
}
_LABELS = {"cell_type_TEM": "cell_type", "cell_type_T": "t_type"}
_ORIGIN = f"the three files {[name for name, _ in _FILES.values()]} stand under {_ADDRESS}"


def patchseq_gabaergic(path: StrPath | None = None) -> MuData:
    """Read the Patch-seq set of GABAergic neurons of mouse visual cortex, as the authors used it.

    Gene expression, electrophysiology and morphology of the same 448 neurons. The values are
    prepared already: log-normalised genes, features of the other two in their own units.

    Parameters
    ----------
    path
        Folder with ``adata_RNA_TEM.h5ad``, ``adata_Ephys_TEM.h5ad`` and ``adata_Morph_TEM.h5ad``,
        of https://github.com/LiuLab-Bioelectronics-Harvard/UnitedNet (folder ``data/patchseq`` of
        its first commit). Without it they are downloaded (3.5 MB, checksums checked) by ``pooch``,
        into its cache.

    Returns
    -------
    MuData, every cell with all modalities, and

    ``.mod["rna"].X`` : float32, 448 x 1252
        Logarithm of normalised expression, dense, from 0 on.
    ``.mod["ephys"].X`` : float32, 448 x 68
        Electrophysiological features: components of traces (``spc0 first AP v``), and measures.
    ``.mod["morph"].X`` : float32, 448 x 514
        Morphological features of very different scale, 15 of them constant.
    ``.obs["cell_type"]`` : categorical
        Transcriptomic, electrophysiological and morphological (MET) type, 27 in all
        (``cell_type_TEM`` in the files).
    ``.obs["t_type"]`` : categorical
        Transcriptomic type, 52 in all (``cell_type_T``).

    Raises
    ------
    FileNotFoundError
        There is no such folder, or a file is missing in it.
    ImportError
        No `path`, and pooch is not installed.
    ValueError
        A file is of another layout, the files' cells or labels differ, a value is missing or
        infinite, or a download's checksum is wrong.

    Notes
    -----
    Gouwens et al., Cell 183, 935 (2020), doi 10.1016/j.cell.2020.09.057; features by Gala et al.,
    Nature Computational Science 1, 120 (2021), doi 10.1038/s43588-021-00030-1.

    Shapes, labels and checksums are those of the files in that commit. Which logarithm the
    expression is of, they do not say.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.patchseq_gabaergic("patchseq")
    >>> sorted(mdata.mod), list(mdata.obs)
    (['ephys', 'morph', 'rna'], ['cell_type', 't_type'])
    """
    if path is None:
        files = {mod: fetched(_ADDRESS + name, known) for mod, (name, known) in _FILES.items()}
    else:
        folder = existing(path, _ORIGIN)
        files = {mod: first_existing(folder, [name], _ORIGIN) for mod, (name, _) in _FILES.items()}
    modalities, labels = {}, {}
    for mod, file in files.items():
        modalities[mod], labels[mod] = _read(file)
    for mod in files:
        if not labels[mod].equals(labels["rna"]):
            raise ValueError(
                f"{files[mod].name}: expected the cells and labels of {files['rna'].name}, found "
                "others. Take all three files of one commit."
            )
    return together(modalities, labels["rna"])


def _read(file: Path) -> tuple[AnnData, pd.DataFrame]:
    values, obs, var = h5ad_elements(file, "X", "obs", "var")
    columns(obs, _LABELS, f"{file.name}: obs")
    values = np.asarray(values, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{file.name}: expected finite values, found NaN or infinite ones.")
    return AnnData(values, obs=obs[[]], var=var), obs[list(_LABELS)].rename(columns=_LABELS)
