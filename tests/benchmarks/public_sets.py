"""Paired sets on which nothing of this package was chosen, from public repositories that hold them.

python tests/benchmarks/public_sets.py OUT [--bremsc DIR] [--sccnmf DIR] [--otscomics DIR]
    [--scot DIR] [--scai DIR] [--views DIR]

Writes a file (.h5mu) for `accuracy.py` of each set whose repository (below) was cloned to DIR.
R's formats are read by `rdata` (of the optional group `benchmark`).

- ``--bremsc`` (github.com/tarot0410/BREMSC): ``inhouse_cite``, CITE-seq of blood; cell types by the
  authors. The 2,000 most variable genes.
- ``--sccnmf`` (github.com/Jinsl-lab/scCNMF): ``pbmc_multiome``, a fifth of 10x Genomics' 10k blood
  cells, RNA and chromatin; types, genes and peaks as that repository has them.
- ``--otscomics`` (github.com/cantinilab/OT-scOmics): ``cell_lines``, scCAT-seq of three cell lines
  (Liu et al. 2019). The 2,000 most variable genes, the 10,000 peaks open in most cells.
- ``--scot`` (github.com/rsinghlab/SCOT): ``snare_mix``, SNARE-seq of four cell lines, as principal
  components of RNA and topics of chromatin; cell lines by RNA.
- ``--scai`` (github.com/sqjin/scAI): ``a549``, sci-CAR of A549 cells 0, 1 and 3 hours after
  dexamethasone, as prepared there. The 10,000 peaks open in most cells.
- ``--views`` (github.com/xiyu1007/Multi-view-datasets): ``bdgp`` and ``msrc``, features of pictures
  of fly embryos and of things; no cells.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from anndata.utils import make_index_unique
from mudata import MuData
from scipy import sparse
from scipy.io import loadmat

from unitednet_mu._compat import quiet_update

N_GENES, N_PEAKS = 2000, 10_000
_FEWEST_CELLS = 5  # with a gene

Named = tuple[str, MuData]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the sets whose repositories are there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    for name in SETS:
        parser.add_argument(f"--{name}", type=Path, metavar="DIR")
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for name, sets_of in SETS.items():
        checkout = getattr(chosen, name)
        for title, mdata in sets_of(checkout) if checkout else ():
            with quiet_update():
                mdata.write_h5mu(chosen.out / f"{title}.h5mu")
            sizes = ", ".join(f"{one}: {adata.n_vars}" for one, adata in mdata.mod.items())
            labels = mdata.obs["cell_type"].value_counts().to_dict()
            print(f"{title}: {mdata.n_obs} cells; {sizes}; {labels}", flush=True)


def bremsc(checkout: Path) -> Iterator[Named]:
    """CITE-seq of blood cells."""
    folder = checkout / "data" / "RealData" / "InHouse"
    rna = matrix_of(_read_r(folder / "RNA.rds"))
    protein = matrix_of(_read_r(folder / "Protein.rds"))
    types = pd.read_csv(folder / "truth_InHouse.csv", index_col=0)["trueType"].dropna()
    cells = rna.obs_names.intersection(protein.obs_names).intersection(types.index)
    rna = most_variable(rna[cells].copy(), N_GENES)
    yield "inhouse_cite", _paired({"rna": rna, "adt": protein[cells].copy()}, types[cells])


def sccnmf(checkout: Path) -> Iterator[Named]:
    """Multiome of blood cells, which comes as logarithms of normalised counts."""
    found = _read_r(checkout / "data" / "pbmcdemo.rds")
    modalities = {"rna": matrix_of(found["X1"]), "atac": matrix_of(found["X2"])}
    for adata in modalities.values():
        adata.X = whole_counts(adata.X)
    places = np.asarray(found["GeneLoc"]).astype(int)
    names = [f"{found['chr'][number - 1]}:{start}-{start}" for number, start in places]
    modalities["rna"].var["interval"] = names
    yield "pbmc_multiome", _paired(modalities, found["celltype"])


def otscomics(checkout: Path) -> Iterator[Named]:
    """Cell lines, whose names end in the line."""
    folder = checkout / "data"
    rna, atac = (
        _of_table(pd.read_csv(folder / f"liu_{name}_preprocessed.csv.gz", index_col=0).T)
        for name in ("scrna", "scatac")
    )
    rna.X = sparse.csr_matrix(np.round(2**rna.X - 1), dtype=np.float32)  # was log2(1 + count)
    lines = [name.rsplit("_", 1)[1] for name in rna.obs_names]
    modalities = {"rna": most_variable(rna, N_GENES), "atac": most_open(atac, N_PEAKS)}
    yield "cell_lines", _paired(modalities, lines)


def scot(checkout: Path) -> Iterator[Named]:
    """Cell lines, as few dense features."""
    folder = checkout / "data" / "SNARE"
    rna, atac = (np.load(folder / f"SNAREseq_{name}_feat.npy") for name in ("rna", "atac"))
    lines = np.loadtxt(folder / "SNAREseq_rna_types.txt").astype(int)
    modalities = {"rna_pcs": _dense(rna, "pc"), "atac_topics": _dense(atac, "topic")}
    yield "snare_mix", _paired(modalities, lines)


def scai(checkout: Path) -> Iterator[Named]:
    """Cells of one line at three times."""
    found = _read_r(checkout / "data" / "data_A549.rda")["data_A549"]
    rna, atac = (matrix_of(found["data"][name]) for name in ("RNA", "ATAC"))
    hours = found["labels"].iloc[:, 0].to_numpy()
    yield "a549", _paired({"rna": rna, "atac": most_open(atac, N_PEAKS)}, hours)


def views(checkout: Path) -> Iterator[Named]:
    """Pictures described in several ways."""
    folder = checkout / "Datasets"
    flies = loadmat(folder / "BDGP" / "BDGP.mat")
    values = [values.T for values in flies["data"].ravel()]
    yield "bdgp", _paired(_views(values), flies["truelabel"].ravel()[0].ravel())
    things = loadmat(folder / "MSRC_v1" / "MSRC_v1.mat")
    values = [things[f"msr{number}"] for number in range(1, 6)]
    yield "msrc", _paired(_views(values), things["truth"].ravel())


SETS = {
    "bremsc": bremsc,
    "sccnmf": sccnmf,
    "otscomics": otscomics,
    "scot": scot,
    "scai": scai,
    "views": views,
}


def matrix_of(found: Any) -> AnnData:
    """Cells x features of a matrix of R, features x cells: of the package Matrix, or an array."""
    if hasattr(found, "Dim"):
        shape = tuple(int(n) for n in found.Dim)
        if hasattr(found, "p"):
            values = sparse.csc_matrix((found.x, found.i, found.p), shape)
        else:
            values = sparse.coo_matrix((found.x, (found.i, found.j)), shape)
        features, cells = found.Dimnames
        x = values.T.tocsr().astype(np.float32)
    else:
        features, cells = (found.coords[dimension].to_numpy() for dimension in found.dims)
        x = np.ascontiguousarray(found.to_numpy().T, dtype=np.float32)
    names = make_index_unique(pd.Index(_text(features)))
    return AnnData(x, pd.DataFrame(index=_text(cells)), pd.DataFrame(index=names))


def most_variable(counts: AnnData, n: int) -> AnnData:
    """Counts of the most variable genes, by normalised dispersion."""
    sc.pp.filter_genes(counts, min_cells=_FEWEST_CELLS)
    logs = counts.copy()
    sc.pp.normalize_total(logs, target_sum=1e4)
    sc.pp.log1p(logs)
    sc.pp.highly_variable_genes(logs, n_top_genes=n)
    return counts[:, logs.var["highly_variable"]].copy()


def most_open(accessibility: AnnData, n: int) -> AnnData:
    """Peaks that are open in most cells."""
    open_in = np.asarray((accessibility.X > 0).sum(0)).ravel()
    return accessibility[:, np.sort(np.argsort(-open_in, kind="stable")[:n])].copy()


def whole_counts(logs: sparse.csr_matrix) -> sparse.csr_matrix:
    """Counts of cells whose ``log(1 + count / total * scale)`` are given; CSR, rows not empty.

    Within a cell all are multiples of what one count gives: the smallest is taken for one count,
    or for two, or up to four, whichever first makes all of them whole.
    """
    counts = logs.copy()
    for start, end in zip(logs.indptr[:-1], logs.indptr[1:], strict=True):
        ratios = np.expm1(logs.data[start:end].astype(float))
        ratios /= ratios.min()
        for smallest in range(1, 5):
            whole = np.round(smallest * ratios)
            if np.allclose(whole, smallest * ratios, rtol=1e-4, atol=1e-2):
                counts.data[start:end] = whole
                break
        else:
            raise ValueError("whole_counts: expected logarithms of normalised counts.")
    return counts


def _of_table(table: pd.DataFrame) -> AnnData:
    """Cells x features."""
    names = {"obs": pd.DataFrame(index=table.index), "var": pd.DataFrame(index=table.columns)}
    return AnnData(table.to_numpy(np.float32), **names)


def _read_r(path: Path) -> Any:
    import rdata  # optional: the group `benchmark`

    return rdata.read_rda(path) if path.suffix == ".rda" else rdata.read_rds(path)


def _text(names: Sequence[Any]) -> list[str]:
    return [str(name) for name in names]


def _dense(values: np.ndarray, name: str) -> AnnData:
    adata = AnnData(np.asarray(values, np.float32))
    adata.obs_names = [f"cell{i}" for i in range(adata.n_obs)]
    adata.var_names = [f"{name}_{j}" for j in range(adata.n_vars)]
    return adata


def _views(all_values: Sequence[np.ndarray]) -> dict[str, AnnData]:
    """Features that vary, of every view."""
    varying = [values[:, np.asarray(values).std(0) > 0] for values in all_values]
    names = [f"view{number}" for number in range(1, len(varying) + 1)]
    return {name: _dense(values, name) for name, values in zip(names, varying, strict=True)}


def _paired(modalities: dict[str, AnnData], labels: Sequence[Any] | np.ndarray) -> MuData:
    with quiet_update():
        mdata = MuData(modalities)
    mdata.obs["cell_type"] = pd.Categorical(_text(labels))
    return mdata


if __name__ == "__main__":
    main()
