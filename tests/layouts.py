"""Small files of the layouts that public downloads have, as `un.datasets` reads them."""

from __future__ import annotations

import gzip
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

SLICES = ("151507", "151673")
BMMC = "GSE194122_openproblems_neurips2021_multiome_BMMC_processed.h5ad"


def counts(rng: np.random.Generator, n_rows: int, n_columns: int) -> sparse.csr_matrix:
    return sparse.csr_matrix(rng.poisson(1.0, (n_rows, n_columns)).astype(np.float32))


def legacy_frame(file: h5py.File, name: str, table: pd.DataFrame) -> None:
    """A DataFrame as anndata 0.7 wrote it: categories apart, referred to from the codes."""
    group = file.create_group(name)
    group.attrs["encoding-type"], group.attrs["encoding-version"] = "dataframe", "0.1.0"
    group.attrs["_index"] = "_index"
    group.attrs["column-order"] = np.array(table.columns, dtype=h5py.string_dtype())
    group.create_dataset("_index", data=table.index.to_numpy(object), dtype=h5py.string_dtype())
    for column in table:
        values = table[column]
        if values.dtype.kind in "fi":
            group.create_dataset(column, data=values.to_numpy())
            continue
        levels = pd.Categorical(values)
        stored = group.require_group("__categories").create_dataset(
            column, data=levels.categories.to_numpy(object), dtype=h5py.string_dtype()
        )
        stored.attrs["ordered"] = False
        codes = group.create_dataset(column, data=levels.codes)
        codes.attrs["categories"] = stored.ref


def legacy_csr(file: h5py.File, name: str, values: sparse.csr_matrix) -> None:
    group = file.create_group(name)
    group.attrs["encoding-type"], group.attrs["encoding-version"] = "csr_matrix", "0.1.0"
    group.attrs["shape"] = np.array(values.shape)
    for part in ("data", "indices", "indptr"):
        group.create_dataset(part, data=getattr(values, part))


def bmmc(folder: Path) -> Path:
    """The multiome of NeurIPS 2021, as anndata 0.7 wrote it, with a gene's name repeated."""
    rng = np.random.default_rng(0)
    n, genes, peaks = 30, 12, 20
    obs = pd.DataFrame(
        {
            "GEX_n_genes": rng.integers(100, 999, n),
            "GEX_phase": rng.choice(["G1", "S"], n),
            "cell_type": rng.choice(["CD8+ T", "G/M prog", "NK"], n),
            "batch": rng.choice(["s1d1", "s4d8"], n),
            "ATAC_nCount_peaks": rng.random(n),
            "Site": "site1",
        },
        index=[f"AAAC{i}-1-s1d1" for i in range(n)],
    )
    names = [*(f"GENE{i}" for i in range(genes - 1)), "GENE0"]
    var = pd.DataFrame(
        {
            "feature_types": ["GEX"] * genes + ["ATAC"] * peaks,
            "gene_id": [f"ENSG{i}" for i in range(genes)] + ["chr1"] * peaks,
        },
        index=[*names, *(f"chr1-{i}00-{i}50" for i in range(1, peaks + 1))],
    )
    values = counts(rng, n, genes + peaks)
    path = folder / BMMC
    with h5py.File(path, "w") as file:
        legacy_csr(file, "X", values * 0.5)
        legacy_csr(file, "layers/counts", values)
        legacy_frame(file, "obs", obs)
        legacy_frame(file, "var", var)
    return path


def patchseq(folder: Path) -> Path:
    """The three files of UnitedNet's authors."""
    rng = np.random.default_rng(1)
    folder = folder / "patchseq"
    folder.mkdir()
    obs = pd.DataFrame(
        {
            "cell_type_TEM": pd.Categorical(rng.choice(["Sst-MET-3", "Vip-MET-2"], 20)),
            "cell_type_T": pd.Categorical(rng.choice(["Sst Esm1", "Vip Gpc3 Slc18a3"], 20)),
        },
        index=[str(i) for i in range(20)],
    )
    for stem, n in (("RNA", 8), ("Ephys", 5), ("Morph", 6)):
        var = pd.DataFrame(index=[f"{stem} {i}" for i in range(n)])
        values = rng.random((20, n)).astype(np.float32)
        ad.AnnData(values, obs=obs, var=var).write_h5ad(folder / f"adata_{stem}_TEM.h5ad")
    return folder


def dbitseq(folder: Path) -> tuple[Path, Path]:
    """Tables of pixels by features; one pixel has no protein."""
    rng = np.random.default_rng(2)
    pixels = [f"{x}x{y}" for x in range(1, 6) for y in range(1, 8)]
    tables = {
        "GSM4189613_0702cL.tsv.gz": (pixels, [f"Gene{i}" for i in range(15)]),
        "GSM4202307_0702aL.tsv.gz": (pixels[1:], [f"PROT{i}" for i in range(6)]),
    }
    for name, (rows, features) in tables.items():
        table = pd.DataFrame(
            rng.poisson(2.0, (len(rows), len(features))), index=rows, columns=features
        )
        table.sample(frac=1, random_state=0).to_csv(folder / name, sep="\t")
    rna, protein = (folder / name for name in tables)
    return rna, protein


def ten_x(path: Path, values: sparse.csr_matrix, barcodes: list[str], genes: list[str]) -> None:
    """A matrix as Cell Ranger 3 writes it: features x barcodes, by columns."""
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        stored = sparse.csc_matrix(values.T)
        for part in ("data", "indices", "indptr"):
            group.create_dataset(part, data=getattr(stored, part).astype(np.int32))
        group.create_dataset("shape", data=np.array(stored.shape, dtype=np.int32))
        group.create_dataset("barcodes", data=np.array(barcodes, dtype="S18"))
        features = group.create_group("features")
        columns = {
            "id": [f"ENSG{i}" for i in range(len(genes))],
            "name": genes,
            "feature_type": ["Gene Expression"] * len(genes),
            "genome": ["GRCh38"] * len(genes),
        }
        for name, column in columns.items():
            features.create_dataset(name, data=np.array(column, dtype="S30"))


def dlpfc(folder: Path) -> Path:
    """Two slices: one as in the authors' repository, one as Space Ranger names its files."""
    rng = np.random.default_rng(3)
    folder = folder / "10X"
    folder.mkdir()
    barcodes = [f"ACGT{i:012d}-1" for i in range(36)]
    layers = []
    for name in SLICES:
        place = folder / name
        (place / "spatial").mkdir(parents=True)
        own = name == SLICES[0]
        stem = f"{name}_filtered_feature_bc_matrix.h5" if own else "filtered_feature_bc_matrix.h5"
        ten_x(place / stem, counts(rng, 30, 10), barcodes[6:], [*"ABCDEFGHI", "A"])
        rows, across = np.indices((6, 6)).reshape(2, -1)
        lines = [
            f"{barcode},{int(i >= 6)},{row},{column},{2510 + 240 * row},{2174 + 138 * column}"
            for i, (barcode, row, column) in enumerate(zip(barcodes, rows, across, strict=True))
        ]
        positions = "tissue_positions_list.txt" if own else "spatial/tissue_positions_list.csv"
        (place / positions).write_text("\n".join(lines) + "\n", "utf-8")
        layers += [f"{b}\t{name}\t{rng.choice(['L1', 'L2', 'WM'])}" for b in barcodes[8:]]
    (folder / "barcode_level_layer_map.tsv").write_text("\n".join(layers) + "\n", "utf-8")
    return folder


def dyngen(folder: Path) -> Path:
    """What dyngen's as_anndata writes, its sparse matrices by columns as R has them."""
    rng = np.random.default_rng(4)
    n, genes = 30, [*(f"TF{i}" for i in range(3)), *(f"Target{i}" for i in range(5))]
    layers = {
        name: sparse.csc_matrix(counts(rng, n, len(genes)))
        for name in ("counts_spliced", "counts_unspliced", "counts_protein")
    }
    total = layers["counts_spliced"] + layers["counts_unspliced"]
    cells = [f"cell{i}" for i in range(n)]
    start = np.array(["sA", "sB"], dtype=object)[np.arange(n) % 2]
    adata = ad.AnnData(
        total,
        obs=pd.DataFrame({"simulation_i": 1, "sim_time": rng.random(n)}, index=cells),
        var=pd.DataFrame({"is_tf": [g.startswith("TF") for g in genes]}, index=genes),
        layers={**layers, "logcounts": total.log1p()},
    )
    adata.uns["traj_progressions"] = pd.DataFrame(
        {
            "cell_id": cells,
            "from": start,
            "to": np.where(start == "sA", "sB", "sC"),
            "percentage": rng.random(n),
        }
    )
    adata.uns["regulatory_network"] = pd.DataFrame(
        {
            "regulator": ["TF0", "TF0", "TF1"],
            "target": ["TF1", "Target0", "Target1"],
            "strength": [1.5, 2.0, 0.7],
            "effect": [1, -1, 1],
        }
    )
    path = folder / "dyngen.h5ad"
    adata.write_h5ad(path)
    return path


def idx(values: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
    return head + values.astype(np.uint8).tobytes()


def mnist(folder: Path) -> Path:
    """Images and labels in the IDX format, the images packed."""
    rng = np.random.default_rng(5)
    folder = folder / "mnist"
    folder.mkdir()
    images = rng.integers(0, 256, (12, 28, 28)) * (rng.random((12, 28, 28)) < 0.2)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(12) % 10))
    return folder


def write_all(folder: Path) -> None:
    """Every layout, under the names that the examples in docstrings use."""
    for write in (bmmc, patchseq, dbitseq, dlpfc, dyngen, mnist):
        write(folder)
