"""Readers of public downloads, each on a small file of the same layout."""

from __future__ import annotations

import builtins
import gzip
import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import layouts
import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage, sparse

import unitednet_mu as un
from unitednet_mu.datasets import _mnist, _patchseq


def dense(values: Any) -> np.ndarray:
    return values.toarray() if sparse.issparse(values) else np.asarray(values)


def read_all(folder: Path) -> dict[str, Callable[[], mudata.MuData]]:
    """Every reader, on its file."""
    return {
        "bmmc": lambda: un.datasets.bmmc_multiome(layouts.bmmc(folder)),
        "patchseq": lambda: un.datasets.patchseq_gabaergic(layouts.patchseq(folder)),
        "dbitseq": lambda: un.datasets.dbitseq(*layouts.dbitseq(folder)),
        "dlpfc": lambda: un.datasets.dlpfc_visium(layouts.dlpfc(folder)),
        "dyngen": lambda: un.datasets.dyngen(layouts.dyngen(folder)),
        "mnist": lambda: un.datasets.mnist_two_views(layouts.mnist(folder)),
    }


@pytest.mark.filterwarnings("ignore:modality .* constant features carry no:UserWarning")
@pytest.mark.parametrize("name", ["bmmc", "patchseq", "dbitseq", "dlpfc", "dyngen", "mnist"])
def test_what_is_read_can_be_written_and_trained_on(
    name: str, tmp_path: Path, quick: dict[str, Any]
) -> None:
    mdata = read_all(tmp_path)[name]()
    assert mdata.var_names.is_unique
    assert all(adata.X.dtype == np.float32 for adata in mdata.mod.values())
    mdata.write(tmp_path / "x.h5mu")
    back = mudata.read_h5mu(tmp_path / "x.h5mu")
    for mod in mdata.mod:
        assert np.array_equal(dense(back[mod].X), dense(mdata[mod].X))
    if name not in ("patchseq", "mnist"):  # prepared already
        kinds = {"premrna": "rna", "mrna": "rna"}
        un.pp.prepare(mdata, kinds={mod: kinds[mod] for mod in mdata.mod if mod in kinds})
    if name in ("dbitseq", "dlpfc"):
        un.pp.niche(mdata, library_key="slice" if name == "dlpfc" else None)
    quick["training"]["batch_size"] = 8
    un.tl.fit(mdata, n_groups=2, **quick)
    un.tl.integrate(mdata)
    assert np.isfinite(mdata.obsm["X_unitednet"]).all()


def test_bmmc_takes_counts_and_parts_the_annotation(tmp_path: Path) -> None:
    path = layouts.bmmc(tmp_path)
    mdata = un.datasets.bmmc_multiome(str(path))
    with h5py.File(path) as file:
        counts = ad.io.read_elem(file["layers/counts"]).toarray()
        n_peaks = file["obs/ATAC_nCount_peaks"][:]
        codes, levels = file["obs/cell_type"][:], file["obs/__categories/cell_type"].asstr()[:]
    assert {mod: a.shape for mod, a in mdata.mod.items()} == {"rna": (30, 12), "atac": (30, 20)}
    assert np.array_equal(np.hstack([dense(mdata[mod].X) for mod in mdata.mod]), counts)
    assert list(mdata.obs) == ["cell_type", "batch", "Site"]
    assert mdata.obs["cell_type"].tolist() == levels[codes].tolist()
    assert list(mdata["rna"].obs) == ["n_genes", "phase"]
    assert mdata["atac"].obs["nCount_peaks"].tolist() == n_peaks.tolist()
    assert mdata["rna"].var_names[-1] == "GENE0-1"
    assert mdata["rna"].var["gene_id"].tolist() == [f"ENSG{i}" for i in range(12)]
    assert mdata["atac"].var_names[0] == "chr1-100-150"


def test_bmmc_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.h5ad: no such file.*GSE194122"):
        un.datasets.bmmc_multiome(tmp_path / "nothing.h5ad")
    path = layouts.bmmc(tmp_path)
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match=r"found another kind\. Unpack it first: gunzip"):
        un.datasets.bmmc_multiome(packed)
    adata = un.datasets.bmmc_multiome(path)["rna"]
    plain = tmp_path / "plain.h5ad"
    adata.write_h5ad(plain)
    with pytest.raises(ValueError, match="'layers/counts': element 'layers/counts' not found"):
        un.datasets.bmmc_multiome(plain)
    adata.layers["counts"] = adata.X + 0.5 * (adata.X > 1)
    adata.obs["cell_type"], adata.obs["batch"] = "a", "b"
    adata.write_h5ad(plain)
    with pytest.raises(ValueError, match=r"to hold \['ATAC', 'GEX'\], found \['GEX'\]"):
        un.datasets.bmmc_multiome(plain)
    adata.var["feature_types"] = ["GEX", "ATAC"] * 6
    adata.write_h5ad(plain)
    with pytest.raises(ValueError, match=r"layers\['counts'\]: expected raw counts .* found 2\.5"):
        un.datasets.bmmc_multiome(plain)
    del adata.obs["batch"]
    adata.write_h5ad(plain)
    with pytest.raises(ValueError, match=r"obs: column 'batch' not found; available: .*cell_type"):
        un.datasets.bmmc_multiome(plain)


def test_patchseq_reads_three_files(tmp_path: Path) -> None:
    folder = layouts.patchseq(tmp_path)
    mdata = un.datasets.patchseq_gabaergic(folder)
    assert {mod: a.n_vars for mod, a in mdata.mod.items()} == {"rna": 8, "ephys": 5, "morph": 6}
    for mod, stem in (("rna", "RNA"), ("ephys", "Ephys"), ("morph", "Morph")):
        stored = ad.read_h5ad(folder / f"adata_{stem}_TEM.h5ad")
        assert np.array_equal(mdata[mod].X, stored.X)
        assert mdata.obs["cell_type"].tolist() == stored.obs["cell_type_TEM"].tolist()
        assert mdata.obs["t_type"].tolist() == stored.obs["cell_type_T"].tolist()


def test_patchseq_names_what_is_wrong(tmp_path: Path) -> None:
    folder = layouts.patchseq(tmp_path)
    path = folder / "adata_Ephys_TEM.h5ad"
    ephys = ad.read_h5ad(path)
    ad.AnnData(ephys.X[::-1], obs=ephys.obs[::-1], var=ephys.var).write_h5ad(path)
    with pytest.raises(ValueError, match=r"expected the cells and labels of adata_RNA_TEM\.h5ad"):
        un.datasets.patchseq_gabaergic(folder)
    ephys.X[2, 1] = np.nan
    ephys.write_h5ad(path)
    with pytest.raises(ValueError, match="expected finite values"):
        un.datasets.patchseq_gabaergic(folder)
    del ephys.obs["cell_type_T"]
    ephys.write_h5ad(path)
    with pytest.raises(ValueError, match=r"obs: column 'cell_type_T' not found.*cell_type_TEM"):
        un.datasets.patchseq_gabaergic(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"\['adata_Ephys_TEM\.h5ad'\], found none"):
        un.datasets.patchseq_gabaergic(folder)


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve the folder ``files`` on this machine; pooch's cache is a folder of the test's own."""
    pooch = pytest.importorskip("pooch")
    folder = tmp_path / "files"
    folder.mkdir()
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / name)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Silent, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}/"
        http.shutdown()
        thread.join()


def test_files_with_a_checksum_are_downloaded_once(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = layouts.patchseq(tmp_path)
    monkeypatch.setattr(_patchseq, "_ADDRESS", server)
    known = {}
    for mod, (name, _) in _patchseq._FILES.items():
        shutil.copy(source / name, tmp_path / "files" / name)
        known[mod] = (name, f"sha256:{hashlib.sha256((source / name).read_bytes()).hexdigest()}")
    with pytest.raises(ValueError, match="hash"):  # not the published files
        un.datasets.patchseq_gabaergic()
    monkeypatch.setattr(_patchseq, "_FILES", known)
    first = un.datasets.patchseq_gabaergic()
    shutil.rmtree(tmp_path / "files")
    again = un.datasets.patchseq_gabaergic()
    for mod in first.mod:
        assert np.array_equal(first[mod].X, again[mod].X)
    assert len(list((tmp_path / "unitednet_mu").iterdir())) == 3


def test_digits_are_downloaded(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = layouts.mnist(tmp_path)
    labels = (source / "train-labels-idx1-ubyte").read_bytes()
    images = (source / "train-images-idx3-ubyte.gz").read_bytes()
    files = {"train-images-idx3-ubyte": images, "train-labels-idx1-ubyte": gzip.compress(labels)}
    for name, content in files.items():
        (tmp_path / "files" / f"{name}.gz").write_bytes(content)
    known = {name: f"md5:{hashlib.md5(x).hexdigest()}" for name, x in files.items()}  # noqa: S324
    monkeypatch.setattr(_mnist, "_ADDRESS", server)
    with pytest.raises(ValueError, match="hash"):
        un.datasets.mnist_two_views()
    monkeypatch.setattr(_mnist, "_FILES", known)
    mdata = un.datasets.mnist_two_views()
    assert np.array_equal(mdata["edge"].X, un.datasets.mnist_two_views(source)["edge"].X)


def test_without_pooch_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "pooch":
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install pooch, or fetch https://.*RNA_TEM\.h5ad"):
        un.datasets.patchseq_gabaergic()


def test_dbitseq_reads_pixels(tmp_path: Path) -> None:
    rna, protein = layouts.dbitseq(tmp_path)
    mdata = un.datasets.dbitseq(rna, protein)
    tables = {"rna": pd.read_csv(rna, sep="\t", index_col=0)}
    tables["protein"] = pd.read_csv(protein, sep="\t", index_col=0)
    for mod, table in tables.items():
        assert mdata[mod].var_names.tolist() == table.columns.tolist()
        assert np.array_equal(dense(mdata[mod].X), table.loc[mdata[mod].obs_names].to_numpy())
        for pixel, place in zip(mdata[mod].obs_names, mdata[mod].obsm["spatial"], strict=True):
            assert pixel == f"{place[0]:.0f}x{place[1]:.0f}"
    assert mdata.n_obs == 35
    assert mdata["protein"].n_obs == 34
    for pixel, place in zip(mdata.obs_names, mdata.obsm["spatial"], strict=True):
        assert pixel == f"{place[0]:.0f}x{place[1]:.0f}"
    assert mdata.obs.loc["2x7", ["array_col", "array_row"]].tolist() == [2, 7]


def test_dbitseq_names_what_is_wrong(tmp_path: Path) -> None:
    rna, protein = layouts.dbitseq(tmp_path)
    table = pd.read_csv(protein, sep="\t", index_col=0)
    other = tmp_path / "other.tsv"

    def refused(wrong: pd.DataFrame, message: str) -> None:
        wrong.to_csv(other, sep="\t")
        with pytest.raises(ValueError, match=message):
            un.datasets.dbitseq(rna, other)

    refused(table.T, r"rows named by pixel, like '10x35'.*found rows \['PROT0'")
    refused(table[[]], "and 0 columns")
    refused(pd.concat([table, table[:1]]), "each pixel once")
    refused(table + 0.5, r"expected raw counts .* found \d\.5")
    refused(table.astype(object).replace(table.iloc[0, 0], "x"), "found nan")
    table.index = "9" + table.index
    refused(table, "expected pixels in common")
    with pytest.raises(FileNotFoundError, match="GSE137986"):
        un.datasets.dbitseq(rna, tmp_path / "none.tsv")


def test_dlpfc_reads_slices(tmp_path: Path) -> None:
    folder = layouts.dlpfc(tmp_path)
    mdata = un.datasets.dlpfc_visium(folder)
    rna = mdata["rna"]
    assert mdata.shape == (60, 10)
    assert rna.var_names.tolist() == [*"ABCDEFGHI", "A-1"]
    assert rna.var["gene_ids"].tolist() == [f"ENSG{i}" for i in range(10)]
    assert mdata.obs["donor"].astype(str).groupby(mdata.obs["slice"].astype(str)).unique().map(
        list
    ).to_dict() == {"151507": ["Br5292"], "151673": ["Br8100"]}
    layers = pd.read_csv(folder / "barcode_level_layer_map.tsv", sep="\t", header=None, dtype=str)
    expected = dict(zip(layers[1] + "_" + layers[0], layers[2], strict=True))
    for spot, layer in mdata.obs["layer"].items():
        assert expected.get(spot) == (None if pd.isna(layer) else layer)
    assert mdata.obs["layer"].isna().sum() == 4
    for name, stem in zip(layouts.SLICES, (f"{layouts.SLICES[0]}_", ""), strict=True):
        with h5py.File(folder / name / f"{stem}filtered_feature_bc_matrix.h5") as file:
            parts = [file["matrix"][part][:] for part in ("data", "indices", "indptr")]
            stored = sparse.csc_matrix(tuple(parts), shape=tuple(file["matrix/shape"][:])).T
        inside = (mdata.obs["slice"] == name).to_numpy()
        assert np.array_equal(dense(rna[inside].X), stored.toarray())
    row, across = mdata.obs["array_row"].to_numpy(), mdata.obs["array_col"].to_numpy()
    places = np.column_stack([2174 + 138 * across, 2510 + 240 * row])
    assert np.array_equal(mdata.obsm["spatial"], places)
    assert np.array_equal(rna.obsm["spatial"], places)
    one = un.datasets.dlpfc_visium(folder, slices=[151673])
    assert one.n_obs == 30
    assert set(one.obs["slice"]) == {"151673"}


def test_dlpfc_names_what_is_wrong(tmp_path: Path) -> None:
    folder = layouts.dlpfc(tmp_path)
    read = partial(un.datasets.dlpfc_visium, folder)
    with pytest.raises(ValueError, match="slice '151500' not found; available"):
        read(slices=["151500"])
    with pytest.raises(ValueError, match="each slice once, and one at least"):
        read(slices=["151507", 151507])
    with pytest.raises(FileNotFoundError, match=r"151508: no such file or folder\. Fetch it"):
        read(slices=["151508"])
    with pytest.raises(FileNotFoundError, match="expected folders named by slice"):
        un.datasets.dlpfc_visium(_with_layers(tmp_path, folder))
    positions = folder / "151507" / "tissue_positions_list.txt"
    text = positions.read_text("utf-8")
    positions.write_text("\n".join(text.splitlines()[:-1]), "utf-8")
    with pytest.raises(ValueError, match=r"151507: expected a position for every spot .* 1 of 30"):
        read()
    positions.write_text("a,b\n1,2\n", "utf-8")
    with pytest.raises(ValueError, match="151507: positions: expected 6 columns"):
        read()
    positions.unlink()
    with pytest.raises(FileNotFoundError, match=r"tissue_positions_list\.txt.*HumanPilot"):
        read()
    (folder / "barcode_level_layer_map.tsv").write_text("barcode\tlayer\nA\tL1\n", "utf-8")
    with pytest.raises(ValueError, match="expected three columns without a header"):
        read()


def _with_layers(tmp_path: Path, folder: Path) -> Path:
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(folder / "barcode_level_layer_map.tsv", empty)
    return empty


def test_dyngen_reads_layers_and_truth(tmp_path: Path) -> None:
    path = layouts.dyngen(tmp_path)
    mdata = un.datasets.dyngen(path)
    stored = ad.read_h5ad(path)
    layers = {"premrna": "unspliced", "mrna": "spliced", "protein": "protein"}
    for mod, layer in layers.items():
        assert np.array_equal(dense(mdata[mod].X), dense(stored.layers[f"counts_{layer}"]))
        assert mdata[mod].var["feature"].tolist() == stored.var_names.tolist()
        assert mdata[mod].var["is_tf"].tolist() == stored.var["is_tf"].tolist()
    assert mdata.obs["transition"].tolist() == ["sA-sB", "sB-sC"] * 15
    assert mdata.obs["progress"].tolist() == stored.uns["traj_progressions"]["percentage"].tolist()
    assert mdata.obs["sim_time"].tolist() == stored.obs["sim_time"].tolist()
    truth = mdata.uns["truth"]
    expected = np.zeros((8, 8))
    expected[0, 1], expected[0, 3], expected[1, 4] = 1, -1, 1
    assert np.array_equal(truth["regulation"].toarray(), expected)
    assert np.array_equal(truth["links"]["premrna_from_protein"].toarray(), expected)
    assert np.array_equal(truth["links"]["protein_from_mrna"].toarray(), np.eye(8))


def test_dyngen_names_what_is_wrong(tmp_path: Path) -> None:
    path = layouts.dyngen(tmp_path)
    good = ad.read_h5ad(path)

    def written(change: Callable[[ad.AnnData], None]) -> mudata.MuData:
        adata = good.copy()
        change(adata)
        adata.write_h5ad(path)
        return un.datasets.dyngen(path)

    assert "truth" not in written(lambda a: a.uns.__delitem__("regulatory_network")).uns
    with pytest.raises(ValueError, match=r"expected uns\['traj_progressions'\], found"):
        written(lambda a: a.uns.__delitem__("traj_progressions"))
    with pytest.raises(ValueError, match="'layers/counts_protein' not found; available"):
        written(lambda a: a.layers.__delitem__("counts_protein"))
    with pytest.raises(ValueError, match=r"expected every cell in .* found 1 of 30 missing"):
        written(lambda a: a.uns.update(traj_progressions=a.uns["traj_progressions"][1:]))
    network = good.uns["regulatory_network"].assign(target="elsewhere")
    with pytest.raises(ValueError, match="expected regulators and targets among the 8 genes"):
        written(lambda a: a.uns.update(regulatory_network=network))


def test_digits_are_read_in_two_views(tmp_path: Path) -> None:
    folder = layouts.mnist(tmp_path)
    mdata = un.datasets.mnist_two_views(folder)
    packed = gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(packed, np.uint8, offset=16).reshape(12, 28, 28)
    assert np.allclose(mdata["image"].X * 255, images.reshape(12, -1))
    for image, edge in zip(images, mdata["edge"].X, strict=True):
        brightest = ndimage.maximum_filter(image, size=3)
        assert np.allclose(edge.reshape(28, 28) * 255, brightest.astype(float) - image)
    assert mdata["edge"].var_names[29] == "edge_1_1"
    assert mdata.obs["digit"].tolist() == [str(i % 10) for i in range(12)]


def test_digits_name_what_is_wrong(tmp_path: Path) -> None:
    folder = layouts.mnist(tmp_path)
    labels = folder / "train-labels-idx1-ubyte"
    labels.write_bytes(layouts.idx(np.arange(5)))
    with pytest.raises(ValueError, match="as many labels as images, found 5 and 12"):
        un.datasets.mnist_two_views(folder)
    labels.write_bytes(layouts.idx(np.arange(5))[:-1])
    with pytest.raises(ValueError, match="expected bytes in 1 dimensions in the IDX format"):
        un.datasets.mnist_two_views(folder)
    labels.write_bytes(b"")
    with pytest.raises(ValueError, match="IDX format"):
        un.datasets.mnist_two_views(folder)
    labels.unlink()
    with pytest.raises(FileNotFoundError, match="ossci-datasets"):
        un.datasets.mnist_two_views(folder)
