"""The bundled CITE-seq set."""

from __future__ import annotations

from importlib.resources import as_file, files

import mudata
from mudata import MuData

from .._compat import quiet_update

_FILE = "pbmc_citeseq.h5mu"


def pbmc_citeseq() -> MuData:
    """Return 1,600 human blood cells of four donors, measured as a CITE-seq mosaic.

    Raw counts of 500 genes (``"rna"``) and 224 antibodies (``"adt"``). Of each donor there are 400
    cells: ``p1_0`` has RNA only, ``p2_0`` antibodies only, ``p3_0`` and ``p4_0`` have both. The
    file is part of the package; nothing is downloaded.

    Returns
    -------
    A new MuData at every call, with

    ``.mod["rna"].X`` : float32 CSR, 1200 x 500
        UMI counts.
    ``.mod["adt"].X`` : float32 CSR, 1200 x 224
        Antibody counts.
    ``.obs["cell_type"]`` : categorical
        B, CD4 T, CD8 T, DC, Mono, NK, other, other T, as annotated by the authors.
    ``.obs["donor"]`` : categorical
        p1_0, p2_0, p3_0, p4_0.
    ``.uns`` : dict
        ``origin``, ``licence``, ``citation``, ``values`` and ``design`` as text.

    Notes
    -----
    The cells come from Hao et al., *Integrated analysis of multimodal single-cell data*, Cell 184,
    3573-3587 (2021), doi 10.1016/j.cell.2021.04.048, GEO accession GSE164378: please cite it. The
    selection of cells and genes is the one in the package scmidas 0.3.0 on PyPI
    (``scmidas/data/quickstart_pbmc_mosaic.h5mu``, MIT licence, kept beside the file); counts and
    labels are unchanged, only the annotation was tidied.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.pbmc_citeseq()
    >>> mdata.shape
    (1600, 724)
    """
    with as_file(files(__package__) / "data" / _FILE) as path, quiet_update():
        return mudata.read_h5mu(path)
