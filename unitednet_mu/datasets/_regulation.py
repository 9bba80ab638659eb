"""A simulator of chromatin, pre-mRNA, mRNA and protein under a known regulatory network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from .._compat import quiet_update
from .._validate import check_random_state
from ._common import categories, check_at_least
from ._draw_network import draw_network
from ._kinetics import Floats, Network, State, integrate

_MODALITIES = ("atac", "premrna", "mrna", "adt")
#: Fragments of an open peak, and of any peak; share of RNA molecules that is captured, of pre-mRNA
#: at either of two sites; antibodies that a protein binds, and those that stick to any cell.
_FRAGMENTS, _STRAY_FRAGMENTS, _CAPTURED, _ANTIBODIES, _AMBIENT = 0.5, 0.02, 0.15, 0.005, 10.0
_PREMRNA_SITES = 2
#: Between cells, standard deviation of the logarithm of each modality's depth; between peaks and
#: between antibodies, of how well they are caught.
_DEPTH_SD, _CAUGHT_SD = 0.3, 0.4
#: Of counts beyond Poisson, variance as a share of the squared mean.
_RNA_DISPERSION, _ADT_DISPERSION = 0.05, 0.1
_N_CONTROLS = 4


def simulate_regulation(
    *,
    n_obs: int = 1000,
    n_groups: int = 5,
    n_regulators: int = 20,
    n_targets: int = 80,
    n_bystanders: int = 20,
    n_housekeeping: int = 20,
    n_proteins: int = 40,
    random_state: int = 0,
) -> MuData:
    """Simulate chromatin, pre-mRNA, mRNA and protein of branching cells, with known regulation.

    Cells leave a common root on one of several branches, each with a programme of regulators that
    come on along pseudotime. Regulators open promoters, enhancers and silencers, which open and
    close at random in each cell; a gene is transcribed while its promoter is open and an enhancer
    is open and bound (of genes with two enhancers half need both), less while a silencer is. Genes
    are spliced, translated and degraded; what is measured are counts. As chromatin differs from
    cell to cell of a branch, links are seen within groups too.

    Much is correlated without a link: genes and peaks under one regulator, bystander genes that
    come on with a branch, peaks opened by a gene's regulator but without effect on it.

    Parameters
    ----------
    n_obs
        Number of cells.
    n_groups
        Number of branches, of equal size up to one cell.
    n_regulators
        Number of regulators (transcription factors), shared out over the branches; at least
        `n_groups` and 2.
    n_targets
        Number of genes that regulators act on.
    n_bystanders
        Number of genes that follow a branch by signals of their own; none of the peaks measured
        acts on them.
    n_housekeeping
        Number of genes transcribed alike in all cells.
    n_proteins
        Number of proteins measured, of targets and bystanders; four control antibodies that bind
        nothing are added.
    random_state
        Seed; the same seed gives the same data.

    Returns
    -------
    MuData, every cell with all modalities, and

    ``.mod["atac"].X`` : float32 CSR, cells x peaks
        Fragment counts, most of them 0.
    ``.mod["premrna"].X``, ``.mod["mrna"].X`` : float32 CSR, cells x genes
        Counts of unspliced and spliced molecules, the same genes in the same order.
    ``.mod["adt"].X`` : float32 CSR, cells x proteins
        Antibody counts.
    ``.obs["cell_type"]`` : categorical
        The branch, ``branch0`` and so on.
    ``.obs["pseudotime"]`` : float64
        From 0 at the root to 1.
    ``.uns["truth"]`` : dict
        ``links``: by ``"<target>_from_<source>"`` a float64 CSR matrix, source x target features,
        1 where the source feature raises the target feature of the same gene, -1 where it lowers
        it; ``premrna_from_atac`` (peaks to the gene they act on), ``mrna_from_premrna`` and
        ``adt_from_mrna`` are direct, ``mrna_from_atac``, ``adt_from_atac`` and
        ``adt_from_premrna`` follow by composition. ``regulation``: such a matrix, genes x genes, of
        regulators' effects. ``role``: by modality a str array; peaks are ``promoter``,
        ``enhancer``, ``silencer``, ``bystander`` (opened by a target's regulator, without effect)
        or ``constitutive``; genes ``regulator``, ``target``, ``bystander`` or ``housekeeping``;
        proteins as their gene, or ``control``.

    Raises
    ------
    ValueError
        Impossible sizes.

    Notes
    -----
    Kinetics of splicing as in La Manno et al., Nature 560, 494 (2018), doi
    10.1038/s41586-018-0414-6; of chromatin and transcription a random telegraph, as in Raj et al.,
    PLoS Biology 4, e309 (2006), doi 10.1371/journal.pbio.0040309; the idea to simulate all layers
    of a branching network from Cannoodt et al., Nature Communications 12, 3942 (2021), doi
    10.1038/s41467-021-24152-2.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_regulation(n_obs=50)
    >>> {mod: adata.n_vars for mod, adata in mdata.mod.items()}
    {'atac': 403, 'premrna': 140, 'mrna': 140, 'adt': 44}
    >>> mdata.uns["truth"]["links"]["adt_from_mrna"].shape
    (140, 44)
    """
    check_at_least(2, n_groups=n_groups)
    check_at_least(max(2, n_groups), n_regulators=n_regulators)
    check_at_least(n_groups, n_obs=n_obs)
    check_at_least(1, n_targets=n_targets, n_proteins=n_proteins)
    check_at_least(0, n_bystanders=n_bystanders, n_housekeeping=n_housekeeping)
    if n_proteins > n_targets + n_bystanders:
        raise ValueError(
            f"n_proteins: expected at most n_targets + n_bystanders = {n_targets + n_bystanders}, "
            f"found {n_proteins}."
        )
    rng = np.random.default_rng(check_random_state(random_state))
    network = draw_network(
        rng,
        n_branches=n_groups,
        n_regulators=n_regulators,
        n_targets=n_targets,
        n_bystanders=n_bystanders,
        n_housekeeping=n_housekeeping,
        n_proteins=n_proteins,
    )
    branches = rng.permutation(np.arange(n_obs) % n_groups)
    pseudotime = rng.random(n_obs)
    state = integrate(network, branches, pseudotime, rng)
    shown = rng.permutation(_measured_peaks(network))
    counts = _measure(rng, state, shown)
    mdata = _assemble(counts)
    mdata.obs["cell_type"] = categories("branch", branches, n_groups)
    mdata.obs["pseudotime"] = pseudotime
    mdata.uns["truth"] = _truth(network, shown)
    return mdata


def _measured_peaks(network: Network) -> np.ndarray:
    """Positions of all peaks but those that act on bystander genes."""
    peaks = network.peaks
    acts_on = network.genes.role[peaks.gene]
    return np.flatnonzero((peaks.gene < 0) | (acts_on != "bystander"))


def _measure(rng: np.random.Generator, state: State, shown: np.ndarray) -> dict[str, Any]:
    """Draw the counts of each modality."""
    n_obs = len(state.open)

    def depth() -> Floats:
        return np.exp(_DEPTH_SD * rng.standard_normal((n_obs, 1)))

    def caught(n: int) -> Floats:
        return np.exp(_CAUGHT_SD * rng.standard_normal(n))

    fragments = _FRAGMENTS * caught(len(shown)) * state.open[:, shown] + _STRAY_FRAGMENTS
    rna_depth = _CAPTURED * depth()  # both kinds of molecules are of one library
    n_proteins = state.protein.shape[1]
    bound = np.hstack([_ANTIBODIES * state.protein, np.zeros((n_obs, _N_CONTROLS))])
    ambient = _AMBIENT * caught(n_proteins + _N_CONTROLS)
    return {
        "atac": _counts(rng, depth() * fragments, 0.0),
        "premrna": _counts(rng, _PREMRNA_SITES * rna_depth * state.premrna, _RNA_DISPERSION),
        "mrna": _counts(rng, rna_depth * state.mrna, _RNA_DISPERSION),
        "adt": _counts(rng, depth() * (bound + ambient), _ADT_DISPERSION),
    }


def _counts(rng: np.random.Generator, means: Floats, dispersion: float) -> Any:
    """Poisson counts, or negative binomial ones with variance mean + dispersion x mean^2."""
    if dispersion:
        means = means * rng.gamma(1 / dispersion, dispersion, means.shape)
    return sparse.csr_matrix(rng.poisson(means).astype(np.float32))


def _assemble(counts: dict[str, Any]) -> MuData:
    modalities = {
        mod: AnnData(
            X=x,
            obs=pd.DataFrame(index=[f"cell{i}" for i in range(x.shape[0])]),
            var=pd.DataFrame(index=[f"{mod}_{j}" for j in range(x.shape[1])]),
        )
        for mod, x in counts.items()
    }
    with quiet_update():
        return MuData(modalities)


def _truth(network: Network, shown: np.ndarray) -> dict[str, Any]:
    genes, peaks, proteins = network.genes, network.peaks, network.proteins
    n_genes, n_proteins = len(genes.role), len(proteins.gene)
    sign = np.where(peaks.role == "silencer", -1.0, 1.0)
    acting = np.flatnonzero(peaks.gene[shown] >= 0)
    of_peaks = _matrix(
        sign[shown[acting]], acting, peaks.gene[shown[acting]], (len(shown), n_genes)
    )
    of_genes = sparse.csr_matrix(sparse.eye(n_genes))
    of_proteins = _matrix(
        np.ones(n_proteins),
        proteins.gene,
        np.arange(n_proteins),
        (n_genes, n_proteins + _N_CONTROLS),
    )
    by = np.flatnonzero((peaks.gene >= 0) & (peaks.factor >= 0))
    by = by[peaks.factor[by] < genes.n_regulators]
    regulation = _matrix(sign[by], peaks.factor[by], peaks.gene[by], (n_genes, n_genes))
    return {
        "links": {
            "premrna_from_atac": of_peaks,
            "mrna_from_premrna": of_genes,
            "adt_from_mrna": of_proteins,
            "mrna_from_atac": of_peaks @ of_genes,
            "adt_from_atac": of_peaks @ of_genes @ of_proteins,
            "adt_from_premrna": of_genes @ of_proteins,
        },
        "regulation": regulation.sign(),
        "role": {
            "atac": peaks.role[shown],
            "premrna": genes.role,
            "mrna": genes.role,
            "adt": np.concatenate([genes.role[proteins.gene], np.repeat("control", _N_CONTROLS)]),
        },
    }


def _matrix(
    values: np.ndarray, rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]
) -> sparse.csr_matrix:
    return sparse.csr_matrix((values, (rows, columns)), shape=shape)
