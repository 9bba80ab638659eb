"""Where peaks and genes lie on the genome: distance from a peak to a gene's start, and its gene.

Conventions of muon: the name of a peak or a column ``interval`` holds ``"chr1:100-200"``, a column
``strand`` a gene's strand, ``.uns["atac"]["peak_annotation"]`` the genes of peaks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from mudata import MuData
from numpy.typing import NDArray

#: ``chr1:100-200``, also as ``chr1-100-200`` (Signac) or ``chr1_100_200``.
_INTERVAL = r"^\s*(?:chr)?(?P<place>\S+?)[:_-](?P<start>[0-9]{1,15})[-_](?P<end>[0-9]{1,15})\s*$"
_STRANDS = {"+": 1.0, "1": 1.0, "1.0": 1.0, "-": -1.0, "-1": -1.0, "-1.0": -1.0, "−": -1.0}


class Places(NamedTuple):
    """Chromosome without ``chr`` (``""`` where unknown), first and last base, strand or NaN."""

    chromosome: NDArray[Any]
    start: NDArray[np.float64]
    end: NDArray[np.float64]
    strand: NDArray[np.float64]

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which features have a place."""
        return np.asarray(self.chromosome != "")


def parse_intervals(texts: Iterable[Any]) -> Places:
    """Read ``"chr1:100-200"`` of every feature; what is written otherwise has no place."""
    names = pd.Series(_texts(texts), dtype=object)
    found = names.str.extract(_INTERVAL)
    start, end = (
        pd.to_numeric(found[side], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
        for side in ("start", "end")
    )
    good = start <= end
    chromosome = np.where(good, found["place"].fillna("").to_numpy(dtype=object), "")
    place = np.where(good, start, np.nan), np.where(good, end, np.nan)
    return Places(chromosome, *place, np.full(len(names), np.nan))


def add_coordinates(table: pd.DataFrame, mdata: MuData, source: str, target: str) -> pd.DataFrame:
    """Return a table of pairs with `distance` and `peak_gene`, where the modalities know them.

    Parameters
    ----------
    table
        Columns `feature` (of `source`) and `target_feature` (of `target`).
    mdata
        Its modalities may hold coordinates.
    source, target
        Names of the modalities.
    """
    if source not in mdata.mod or target not in mdata.mod:
        return table
    sides = {source: "feature", target: "target_feature"}
    peaks = {name: places for name in sides if (places := _peak_places(mdata.mod[name].var))}
    if len(sides) < 2 or len(peaks) != 1:
        return table
    (of_peaks,) = peaks
    of_genes = target if of_peaks == source else source
    genes = _column_places(mdata.mod[of_genes].var)
    if genes is not None and genes.known.any():
        rows = [
            _positions(mdata.mod[name].var_names, table[sides[name]])
            for name in (of_peaks, of_genes)
        ]
        table = table.assign(distance=distances(peaks[of_peaks], genes, *rows))
    annotated = _annotated(mdata.mod[of_peaks].uns)
    if annotated is not None:
        named = table[sides[of_peaks]].map(annotated)
        table = table.assign(peak_gene=named.astype(object).where(named.notna(), ""))
    return table


def distances(
    peaks: Places, genes: Places, peak: NDArray[np.intp], gene: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Signed bases from peaks to the starts of genes, pair by pair.

    Parameters
    ----------
    peaks, genes
        Places of all peaks and genes.
    peak, gene
        Of each pair the number of its peak and gene, -1 where it is unknown.

    Returns
    -------
    0 where the peak covers the start; else to the peak's nearer end, negative upstream. NaN on
    different chromosomes and where a place is unknown.
    """
    forward = genes.strand != -1  # also where the strand is unknown
    begin = np.where(forward, genes.start, genes.end)[gene]
    start, end = peaks.start[peak], peaks.end[peak]
    along = np.where(start > begin, start - begin, np.where(end < begin, end - begin, 0.0))
    along = np.where(forward[gene], along, -along) + 0.0  # no -0.0
    same = (peaks.chromosome[peak] == genes.chromosome[gene]) & peaks.known[peak]
    return np.where(same & genes.known[gene] & (peak >= 0) & (gene >= 0), along, np.nan)


def _positions(names: pd.Index, wanted: pd.Series) -> NDArray[np.intp]:
    """Where each name stands first in an index, -1 where it does not."""
    first = pd.Series(np.arange(len(names)), index=names)[~names.duplicated()]
    return wanted.map(first).fillna(-1).to_numpy(dtype=np.intp)


def _peak_places(var: pd.DataFrame) -> Places | None:
    """Places of peaks; None where features are none: neither named by place nor called peaks."""
    named = parse_intervals(var.index)
    if len(var) and named.known.mean() > 0.5:
        return named
    if "feature_types" in var and len(var) and var["feature_types"].eq("Peaks").mean() > 0.5:
        return _column_places(var)
    return None


def _column_places(var: pd.DataFrame) -> Places | None:
    """Places by a column ``interval``, or by chromosome, start and end."""
    columns = {str(name).lower(): name for name in var.columns}
    chromosome = next((c for c in ("chromosome", "chrom", "chr") if c in columns), None)
    if "interval" in columns:
        places = parse_intervals(var[columns["interval"]])
    elif chromosome is not None and {"start", "end"} <= set(columns):
        parts = (_texts(var[columns[name]]) for name in (chromosome, "start", "end"))
        places = parse_intervals(
            [f"{c}:{_whole(s)}-{_whole(e)}" for c, s, e in zip(*parts, strict=True)]
        )
    else:
        return None
    if "strand" not in columns:
        return places
    strand = [_STRANDS.get(text.strip(), np.nan) for text in _texts(var[columns["strand"]])]
    return places._replace(strand=np.array(strand, dtype=np.float64))


def _texts(values: Iterable[Any]) -> list[str]:
    """Return every value as text, a missing one as an empty one."""
    texts = pd.Series(list(values), dtype=object)
    return ["" if gone else str(text) for text, gone in zip(texts, texts.isna(), strict=True)]


def _whole(number: str) -> str:
    return number.removesuffix(".0")  # columns with missing values are of floats


def _annotated(uns: Mapping[str, Any]) -> pd.Series | None:
    """Genes that muon's annotation gives to each peak, joined by ``;``, by name of the peak."""
    atac = uns.get("atac")
    annotation = atac.get("peak_annotation") if isinstance(atac, Mapping) else None
    if not isinstance(annotation, pd.DataFrame) or "peak" not in annotation.columns:
        return None
    column = next((name for name in ("gene_name", "gene") if name in annotation.columns), None)
    genes = annotation.index if column is None else annotation[column]
    pairs = pd.DataFrame({"peak": _texts(annotation["peak"]), "gene": _texts(genes)}, dtype=object)
    pairs = pairs[~pairs["gene"].isin(["", "nan"])].drop_duplicates()
    return pairs.groupby("peak", sort=False)["gene"].agg(";".join)
