"""Distance from peaks to genes, and the genes of peaks, in the table of cross-modal relevance."""

from __future__ import annotations

import muon
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mudata import MuData

import unitednet_mu as un
from unitednet_mu._compat import quiet_update
from unitednet_mu.get import _coordinates
from unitednet_mu.get._coordinates import add_coordinates, parse_intervals


def multiome() -> MuData:
    """Two modalities of five peaks and four genes; `explain` needs no more than their names."""
    mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2, random_state=0)
    peaks = mdata.mod["rna"][:, :5].copy()
    peaks.var_names = ["chr1:100-200", "chr1:900-950", "chr2:100-200", "chrX:5-10", "odd peak"]
    genes = mdata.mod["adt"][:, :4].copy()
    genes.var_names = ["A", "B", "C", "D"]
    genes.var["interval"] = ["chr1:1000-2000", "chr1:150-800", "chr2:50-60", "NA"]
    genes.var["strand"] = ["+", "-", "+", "-"]
    with quiet_update():
        return MuData({"atac": peaks, "rna": genes})


def every_pair(mdata: MuData, source: str, target: str) -> pd.DataFrame:
    pairs = pd.MultiIndex.from_product(
        [mdata.mod[source].var_names, mdata.mod[target].var_names],
        names=["feature", "target_feature"],
    )
    return pairs.to_frame(index=False)


def distances(mdata: MuData) -> pd.DataFrame:
    table = add_coordinates(every_pair(mdata, "atac", "rna"), mdata, "atac", "rna")
    return table.pivot(index="feature", columns="target_feature", values="distance")


def test_distance_is_signed_and_follows_the_strand() -> None:
    mdata = multiome()
    found = distances(mdata)
    # A starts at 1000, forward; B at 800, backward; C at 50 on chromosome 2
    assert found.loc["chr1:100-200"].tolist()[:2] == [-800, 600]
    assert found.loc["chr1:900-950"].tolist()[:2] == [-50, -100]
    assert found.loc["chr2:100-200", "C"] == 50
    known = found.notna()
    assert known.sum().tolist() == [2, 2, 1, 0]
    assert not known.loc[["odd peak", "chrX:5-10"]].any(axis=None)
    mdata.mod["rna"].var["interval"] = ["chr1:120-2000", "chr1:1-150", "chr2:50-60", "NA"]
    found = distances(mdata)
    assert found.loc["chr1:100-200", ["A", "B"]].tolist() == [0, 0]  # covered
    del mdata.mod["rna"].var["strand"]  # then the interval's start counts
    found = distances(mdata)
    assert found.loc["chr1:100-200", ["A", "B"]].tolist() == [0, 99]
    assert found.loc["chr1:900-950", "B"] == 899


@pytest.mark.parametrize(
    "columns",
    [
        {"Chromosome": ["chr1", "chr1", "chr2", None], "Start": [1000.0, 150.0, 50.0, np.nan]},
        {"chrom": ["1", "1", "2", ""], "start": [1000, 150, 50, -1]},
    ],
    ids=["muon", "ensembl"],
)
def test_other_columns(columns: dict) -> None:
    mdata = multiome()
    expected = distances(mdata)
    var = mdata.mod["rna"].var
    del var["interval"]
    ends = [2000, 800, 60, 0]
    mdata.mod["rna"].var = var.assign(**columns, End=ends)
    pd.testing.assert_frame_equal(distances(mdata), expected)


def test_peaks_by_their_type_and_either_way_round() -> None:
    mdata = multiome()
    expected = distances(mdata)
    backward = add_coordinates(every_pair(mdata, "rna", "atac"), mdata, "rna", "atac")
    pd.testing.assert_frame_equal(
        backward.pivot(index="target_feature", columns="feature", values="distance"),
        expected,
        check_names=False,
    )
    peaks = mdata.mod["atac"]
    peaks.var["interval"] = peaks.var_names.to_numpy()
    peaks.var["feature_types"] = "Peaks"
    peaks.var_names = [f"peak{k}" for k in range(5)]
    with quiet_update():
        mdata.update()
    np.testing.assert_array_equal(
        np.sort(distances(mdata).to_numpy(), axis=0), np.sort(expected.to_numpy(), axis=0)
    )


def test_without_coordinates_there_are_no_columns() -> None:
    mdata = multiome()
    pairs = every_pair(mdata, "atac", "rna")
    whole = mdata.copy()
    del mdata.mod["rna"].var["interval"]
    assert list(add_coordinates(pairs, mdata, "atac", "rna")) == ["feature", "target_feature"]
    far = whole.copy()
    far.mod["rna"].var["interval"] = "chr7:1-2"
    assert add_coordinates(pairs, far, "atac", "rna")["distance"].isna().all()
    far.mod["rna"].var["interval"] = "nowhere"
    assert list(add_coordinates(pairs, far, "atac", "rna")) == ["feature", "target_feature"]
    genes = un.datasets.simulate_multimodal(n_obs=20, n_groups=2, random_state=0)
    pairs = every_pair(genes, "rna", "adt")
    assert add_coordinates(pairs, genes, "rna", "adt") is pairs
    assert add_coordinates(pairs, genes, "rna", "gone") is pairs
    assert add_coordinates(pairs, genes, "rna", "rna") is pairs


def test_genes_of_peaks_by_muons_annotation() -> None:
    mdata = multiome()
    annotation = pd.DataFrame(
        {
            "peak": ["chr1_100_200", "chr1_900_950", "chr2_100_200"],
            "gene": ["A;B", "A", ""],
            "distance": ["-800;600", "-50", "0"],
            "peak_type": ["distal;distal", "promoter", "intergenic"],
        }
    )
    muon.atac.tl.add_peak_annotation(mdata, annotation)
    table = add_coordinates(every_pair(mdata, "atac", "rna"), mdata, "atac", "rna")
    genes = table.groupby("feature")["peak_gene"].unique().str[0]
    assert genes.to_dict() == {
        "chr1:100-200": "A;B",
        "chr1:900-950": "A",
        "chr2:100-200": "",
        "chrX:5-10": "",
        "odd peak": "",
    }
    mdata.mod["rna"].var["gene_ids"] = [f"ENSG{k}" for k in range(4)]
    ids = annotation.assign(gene=["ENSG0;ENSG1", "ENSG0", ""])
    muon.atac.tl.add_peak_annotation(mdata, ids)
    muon.atac.tl.add_peak_annotation_gene_names(mdata)
    named = add_coordinates(every_pair(mdata, "atac", "rna"), mdata, "atac", "rna")
    assert set(named["peak_gene"]) == {"A;B", "A", ""}


def test_the_table_has_them(quick: dict) -> None:
    mdata = multiome()
    un.tl.fit(mdata, n_groups=2, **quick)
    un.tl.explain(mdata, source="atac", target="rna", n_cells=5, n_background=5, progress=False)
    table = un.get.cross_relevance(mdata, source="atac", target="rna")
    assert list(table)[-1] == "distance"
    one = table[(table["feature"] == "chr1:900-950") & (table["target_feature"] == "A")]
    assert set(one["distance"]) == {-50}
    un.pl.cross_relevance(mdata, source="atac", target="rna")


ODD = st.one_of(
    st.text(max_size=12),
    st.none(),
    st.floats(),
    st.integers(),
    st.from_regex(r"(chr)?[0-9XY]{0,2}[:_-][0-9]{0,25}[-_][0-9]{0,25}", fullmatch=True),
    st.from_regex(r"\\A[^:]{0,4}:\\d{1,3}-\\d{1,3}\\Z"),
)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(ODD, max_size=6))
def test_no_name_is_too_odd(names: list) -> None:
    places = parse_intervals(names)
    assert all(len(part) == len(names) for part in places)
    assert (places.start[places.known] <= places.end[places.known]).all()
    assert np.isnan(places.start[~places.known]).all()
    for name, known in zip(names, places.known, strict=True):
        if known:
            assert sum(c.isdigit() for c in str(name)) >= 2
    with_columns = pd.DataFrame({"interval": names, "strand": names}, dtype=object)
    found = _coordinates._column_places(with_columns)
    assert found is not None
    np.testing.assert_array_equal(found.known, places.known)
    pieces = pd.DataFrame({"chr": names, "start": names, "end": names}, dtype=object)
    assert _coordinates._column_places(pieces) is not None


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.integers(0, 10**9),
    st.integers(0, 10**5),
    st.integers(0, 10**9),
    st.integers(0, 10**5),
    st.sampled_from("+-"),
)
def test_distance_by_its_definition(
    start: int, width: int, gene: int, length: int, strand: str
) -> None:
    """Moving everything, or reading the other strand of a mirrored genome, changes nothing."""
    mirror = 2 * 10**9

    def one(peak: tuple[int, int], where: tuple[int, int], sense: str) -> float:
        peaks = parse_intervals([f"chr1:{peak[0]}-{peak[1]}"])
        genes = parse_intervals([f"chr1:{where[0]}-{where[1]}"])
        genes = genes._replace(strand=np.array([1.0 if sense == "+" else -1.0]))
        zero = np.zeros(1, np.intp)
        return float(_coordinates.distances(peaks, genes, zero, zero)[0])

    peak, where = (start, start + width), (gene, gene + length)
    found = one(peak, where, strand)
    begin = where[0] if strand == "+" else where[1]
    nearest = min(max(begin, peak[0]), peak[1])
    assert found == (nearest - begin) * (1 if strand == "+" else -1)
    turned = [(mirror - stop, mirror - first) for first, stop in (peak, where)]
    assert one(*turned, "-" if strand == "+" else "+") == found
