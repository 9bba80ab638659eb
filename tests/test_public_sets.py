"""Sets made from checkouts of public repositories: values, names and labels stay together."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.io import savemat

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import public_sets

CELLS = [f"c{i}" for i in range(30)]


def in_r(values: np.ndarray, features: list[str], cells: list[str], *, by_column: bool) -> Any:
    """Cells x features as a sparse matrix of R is read, by columns or triplets."""
    x = sparse.csc_matrix(values.T) if by_column else sparse.coo_matrix(values.T)
    where = {"i": x.indices, "p": x.indptr} if by_column else {"i": x.row, "j": x.col}
    names = [np.array(features), np.array(cells)]
    return SimpleNamespace(Dim=np.array(x.shape), Dimnames=names, x=x.data, **where)


@pytest.mark.parametrize("by_column", [True, False])
def test_matrix_of_r(by_column: bool) -> None:
    values = np.arange(6.0).reshape(2, 3)
    found = public_sets.matrix_of(in_r(values, ["f", "g", "g"], ["a", "b"], by_column=by_column))
    np.testing.assert_array_equal(found.X.toarray(), values)
    assert list(found.obs_names) == ["a", "b"]
    assert list(found.var_names) == ["f", "g", "g-1"]


def test_cells_are_paired_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells in another order, without a label, or of one modality alone; few genes vary."""
    rng = np.random.default_rng(0)
    genes = [f"g{j}" for j in range(40)]
    rna, protein = rng.poisson(3, (30, 40)).astype(float), rng.poisson(9, (30, 2)).astype(float)
    rna[:, 5] = 0
    backwards = CELLS[::-1]
    sides = {"dim_0": ["CD3", "CD19"], "dim_1": [*backwards[:-1], "other"]}
    dense = SimpleNamespace(
        to_numpy=protein[::-1].T.copy,
        dims=tuple(sides),
        coords={k: pd.Index(v) for k, v in sides.items()},
    )
    parsed = {"RNA.rds": in_r(rna, genes, CELLS, by_column=True), "Protein.rds": dense}
    monkeypatch.setattr(public_sets, "_read_r", lambda path: parsed[path.name])
    monkeypatch.setattr(public_sets, "N_GENES", 10)
    folder = tmp_path / "checkout" / "data" / "RealData" / "InHouse"
    folder.mkdir(parents=True)
    types = pd.DataFrame({"Barcode": CELLS, "trueType": ["B", "T"] * 15})
    types.loc[7, "trueType"] = None
    types.to_csv(folder / "truth_InHouse.csv", index=False)
    public_sets.main([str(tmp_path / "out"), "--bremsc", str(tmp_path / "checkout")])
    found = mudata.read_h5mu(tmp_path / "out" / "inhouse_cite.h5mu")
    assert set(found.obs_names) == set(CELLS) - {"c0", "c7"}  # "c0" is "other" among the proteins
    assert 10 <= found["rna"].n_vars < 20  # more where some are as variable as the tenth
    assert "g5" not in found["rna"].var_names
    for name in found.obs_names:
        i = int(name[1:])
        chosen = [int(gene[1:]) for gene in found["rna"].var_names]
        np.testing.assert_array_equal(found["rna"][name].X.toarray()[0], rna[i, chosen])
        np.testing.assert_array_equal(found["adt"][name].X[0], protein[i])
        assert found.obs.loc[name, "cell_type"] == "BT"[i % 2]


def test_other_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    snare = tmp_path / "scot" / "data" / "SNARE"
    snare.mkdir(parents=True)
    rna, atac = rng.normal(size=(30, 3)), rng.normal(size=(30, 4))
    np.save(snare / "SNAREseq_rna_feat.npy", rna)
    np.save(snare / "SNAREseq_atac_feat.npy", atac)
    lines = np.arange(30) % 4 + 1
    np.savetxt(snare / "SNAREseq_rna_types.txt", lines)

    peaks = (rng.random((30, 6)) < [0.1, 0.9, 0.2, 0.8, 0.7, 0.3]).astype(float)
    opened = np.sort(np.argsort(-peaks.sum(0), kind="stable")[:3])
    names = [f"p{j}" for j in range(6)]
    a549 = {
        "data": {
            "RNA": in_r(rna, ["x", "y", "z"], CELLS, by_column=True),
            "ATAC": in_r(peaks, names, CELLS, by_column=True),
        },
        "labels": pd.DataFrame({"Time": lines % 3}, index=CELLS),
    }
    monkeypatch.setattr(public_sets, "_read_r", lambda _: {"data_A549": a549})
    monkeypatch.setattr(public_sets, "N_PEAKS", 3)

    folder = tmp_path / "views" / "Datasets"
    (folder / "BDGP").mkdir(parents=True)
    (folder / "MSRC_v1").mkdir()
    both = np.empty((1, 2), object)
    both[0, 0], both[0, 1] = np.vstack([rna.T, np.ones(30)]), atac.T
    truth = np.empty((1, 2), object)
    truth[0, 0] = truth[0, 1] = lines[:, None]
    savemat(folder / "BDGP" / "BDGP.mat", {"data": both, "truelabel": truth})
    things = {f"msr{i}": rng.normal(size=(30, i + 1)) for i in range(1, 6)}
    savemat(folder / "MSRC_v1" / "MSRC_v1.mat", {**things, "truth": lines[:, None]})

    checkouts = [f"--{name}={tmp_path / name}" for name in ("scot", "scai", "views")]
    public_sets.main([str(tmp_path / "out"), *checkouts])
    said = capsys.readouterr().out
    assert "bdgp: 30 cells; view1: 3, view2: 4" in said  # what never varies is left out
    found = {
        path.stem: mudata.read_h5mu(path) for path in sorted((tmp_path / "out").glob("*.h5mu"))
    }
    assert list(found) == ["a549", "bdgp", "msrc", "snare_mix"]
    for name, of_label in (("snare_mix", lines), ("bdgp", lines), ("a549", lines % 3)):
        assert found[name].obs["cell_type"].tolist() == [str(label) for label in of_label]
    np.testing.assert_allclose(found["snare_mix"]["atac_topics"].X, atac, rtol=1e-6)
    np.testing.assert_allclose(found["bdgp"]["view1"].X, rna, rtol=1e-6)
    np.testing.assert_array_equal(found["a549"]["atac"].X.toarray(), peaks[:, opened])
    assert [found["msrc"][f"view{i}"].n_vars for i in range(1, 6)] == [2, 3, 4, 5, 6]


def test_multiome_and_cell_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts come back from logarithms, peaks of one allele in twos among them."""
    rng = np.random.default_rng(2)
    genes, peaks = [f"g{j}" for j in range(8)], [f"p{j}" for j in range(5)]
    rna, atac = rng.integers(0, 9, (30, 8)) + np.eye(8)[0], 2 * rng.integers(0, 3, (30, 5))
    atac[:, :2] = 3, 2  # two is the smallest count, and three no multiple of it
    logs = [np.log1p(x / x.sum(1, keepdims=True) * 1e4) for x in (rna, atac)]
    types = pd.Categorical(["naive B", "pDC"] * 15)
    parsed = {
        "X1": in_r(logs[0], genes, CELLS, by_column=True),
        "X2": in_r(logs[1], peaks, CELLS, by_column=True),
        "celltype": types,
        "chr": np.array(["chr1", "chr2"]),
        "GeneLoc": np.array([[1 + j % 2, 1000.0 + j] for j in range(8)]),
    }
    monkeypatch.setattr(public_sets, "_read_r", lambda _: parsed)
    monkeypatch.setattr(public_sets, "N_PEAKS", 2)
    folder = tmp_path / "lines" / "data"
    folder.mkdir(parents=True)
    cells = [f"{line}_{i}_{line}" for i, line in enumerate(["HCT", "K562"] * 15)]
    for name, table in (("rna", np.log2(1 + rna)), ("atac", atac)):
        of_cells = pd.DataFrame(table.T, index=(genes if name == "rna" else peaks), columns=cells)
        of_cells.to_csv(folder / f"liu_sc{name}_preprocessed.csv.gz")
    out = tmp_path / "out"
    public_sets.main([str(out), f"--sccnmf={tmp_path}", f"--otscomics={tmp_path / 'lines'}"])

    blood = mudata.read_h5mu(out / "pbmc_multiome.h5mu")
    np.testing.assert_array_equal(blood["rna"].X.toarray(), rna)
    np.testing.assert_array_equal(blood["atac"].X.toarray(), atac)
    assert blood.obs["cell_type"].tolist() == list(types)
    assert blood["rna"].var["interval"].tolist()[:2] == ["chr1:1000-1000", "chr2:1001-1001"]
    lines = mudata.read_h5mu(out / "cell_lines.h5mu")
    assert lines.obs["cell_type"].tolist() == ["HCT", "K562"] * 15
    assert lines["atac"].var_names[0] == "p0" and lines["atac"].n_vars == 2
    chosen = [genes.index(gene) for gene in lines["rna"].var_names]
    np.testing.assert_array_equal(lines["rna"].X.toarray(), rna[:, chosen])


def test_logarithms_of_something_else() -> None:
    with pytest.raises(ValueError, match="expected logarithms of normalised counts"):
        public_sets.whole_counts(sparse.csr_matrix(np.log1p([[0.31, 1.0, 1.7]])))
