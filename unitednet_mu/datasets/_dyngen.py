"""Output of the simulator dyngen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from ._files import StrPath, as_counts, columns, existing, h5ad_elements, together

_LAYERS = {"premrna": "counts_unspliced", "mrna": "counts_spliced", "protein": "counts_protein"}
_ORIGIN = (
    "simulate with dyngen (https://dyngen.dynverse.org) in R, and write as_anndata(model) with "
    "write_h5ad."
)


def dyngen(path: StrPath) -> MuData:
    """Read a simulation of dyngen: pre-mRNA, mRNA and protein of the same cells and genes.

    Parameters
    ----------
    path
        The ``.h5ad`` of a simulation: in R ``dyngen::as_anndata(model)``, written with its
        ``write_h5ad("dyngen.h5ad")``.

    Returns
    -------
    MuData, every cell with all modalities, and

    ``.mod["premrna"].X``, ``.mod["mrna"].X``, ``.mod["protein"].X`` : float32 CSR, cells x genes
        Counts of molecules, of the layers ``counts_unspliced``, ``counts_spliced`` and
        ``counts_protein``; names are ``premrna:<gene>`` and so on.
    ``.mod[<modality>].var["feature"]`` : str
        The gene's name, beside all that the file says of it.
    ``.obs["transition"]`` : categorical
        Between which two milestones of the trajectory the cell is, ``sA-sB``: the groups.
    ``.obs["progress"]`` : float64
        How far, from 0 to 1; beside it the file's own columns (``sim_time`` and others).
    ``.uns["truth"]`` : dict
        ``regulation``: a float64 CSR matrix, genes x genes, 1 where the row's gene raises and -1
        where it lowers transcription of the column's. ``links``: by ``"<target>_from_<source>"``
        such matrices, source x target: ``mrna_from_premrna`` and ``protein_from_mrna`` of the same
        gene, ``premrna_from_protein`` by regulation. Only if the file holds the network
        (simulated with ``compute_cellwise_grn = TRUE``).

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is of another layout: a layer or the cells' places on the trajectory are missing,
        values are no counts, the network names genes that are not measured.

    Notes
    -----
    Cannoodt et al., Nature Communications 12, 3942 (2021), doi 10.1038/s41467-021-24152-2.
    UnitedNet's authors speak of DNA as a fourth modality, which this output does not hold; for
    chromatin see :func:`simulate_regulation`.

    The layout is the one that dyngen's ``as_anndata`` writes by its source; a real simulation was
    not at hand.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.dyngen("dyngen.h5ad")
    >>> un.pp.prepare(mdata, kinds={"premrna": "rna", "mrna": "rna", "protein": "protein"})
    >>> sorted(mdata.mod), sorted(mdata.uns["truth"])
    (['mrna', 'premrna', 'protein'], ['links', 'regulation'])
    """
    file = existing(path, _ORIGIN)
    layers = [f"layers/{layer}" for layer in _LAYERS.values()]
    *counts, obs, var, uns = h5ad_elements(file, *layers, "obs", "var", "uns")
    where = _trajectory(uns, obs.index, file.name)
    modalities = {}
    for mod, values in zip(_LAYERS, counts, strict=True):
        own = var.assign(feature=var.index.to_numpy(dtype=object))
        own.index = pd.Index([f"{mod}:{gene}" for gene in var.index])
        x = as_counts(values, f"{file.name}: layers[{_LAYERS[mod]!r}]")
        modalities[mod] = AnnData(sparse.csr_matrix(x), obs=obs[[]], var=own)
    truth = _truth(uns.get("regulatory_network"), var.index, file.name)
    return together(modalities, obs.join(where), {"truth": truth} if truth else None)


def _trajectory(uns: Any, cells: pd.Index, name: str) -> pd.DataFrame:
    """Return groups and progress of cells; of a cell on several transitions the furthest."""
    table = uns.get("traj_progressions")
    if table is None:
        raise ValueError(
            f"{name}: expected uns['traj_progressions'], found {sorted(uns)}. Write "
            "dyngen::as_anndata(model)."
        )
    columns(table, ["cell_id", "from", "to", "percentage"], f"{name}: uns['traj_progressions']")
    table = table.sort_values("percentage").drop_duplicates("cell_id", keep="last")
    table = table.set_index(table["cell_id"].astype(str)).reindex(cells)
    if table["from"].isna().any():
        raise ValueError(
            f"{name}: expected every cell in uns['traj_progressions'], found "
            f"{int(table['from'].isna().sum())} of {len(cells)} missing."
        )
    between = table["from"].astype(str) + "-" + table["to"].astype(str)
    progress = table["percentage"].to_numpy(np.float64)
    return pd.DataFrame({"transition": pd.Categorical(between), "progress": progress}, index=cells)


def _truth(network: Any, genes: pd.Index, name: str) -> dict[str, Any]:
    if network is None:
        return {}
    columns(network, ["regulator", "target", "effect"], f"{name}: uns['regulatory_network']")
    rows, targets = (
        genes.get_indexer(network[column].astype(str)) for column in ("regulator", "target")
    )
    if (rows < 0).any() or (targets < 0).any():
        raise ValueError(
            f"{name}: expected regulators and targets among the {len(genes)} genes, found others "
            "in uns['regulatory_network']."
        )
    effect = np.sign(network["effect"].to_numpy(np.float64))
    regulation = sparse.csr_matrix((effect, (rows, targets)), shape=(len(genes), len(genes)))
    same = sparse.csr_matrix(sparse.eye_array(len(genes)))
    links = {"mrna_from_premrna": same, "protein_from_mrna": same.copy()}
    return {
        "regulation": regulation,
        "links": {**links, "premrna_from_protein": regulation.copy()},
    }
