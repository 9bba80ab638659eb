"""How well the true links between features of two modalities are found.

python tests/benchmarks/recovery.py [--seeds 0 1 2 3 4] [--n-obs 1000] [--out TABLE.csv]
python tests/benchmarks/recovery.py --multiome DATA.h5mu

Each seed is another network and another sample of cells, from `un.datasets.simulate_regulation` and
`un.datasets.simulate_two_views`, prepared by `un.pp`. For every pair of modalities with true links
each method scores all source features for each target feature. The value is the area under the
precision-recall curve (average precision) of the true links among the source features, one target
at a time, averaged over the targets that have a link. Signs of links are not scored. Intervals are
95 % paired bootstrap intervals, over targets, of the difference to the best other method. Random
orders show the level of chance, which for few links is above their share.

Of real chromatin and RNA no links are known. With `--multiome` peaks count as linked that lie
within 100,000 bases of the gene's start: much of what regulates a gene is there, not all that is
there regulates it, and no method is told. Places are read as `un.get.cross_relevance` reads them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mudata
import numpy as np
import pandas as pd
import torch
from _ours import OURS, Settings
from _table import N_RESAMPLES, Score, mean_of, printed, summarise
from anndata import AnnData
from mudata import MuData
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import RidgeCV
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler

import unitednet_mu as un
from unitednet_mu._compat import quiet_update
from unitednet_mu._data import to_dense
from unitednet_mu.get._coordinates import distances, parse_intervals
from unitednet_mu.get._cross_relevance import read_cross_relevance

LABELS = "cell_type"
_PENALTIES = np.logspace(0, 5, 16)
#: One forest a target with a link, so few trees; the features tried at a split as in GENIE3.
_FOREST: Mapping[str, Any] = {"n_estimators": 50, "max_features": "sqrt", "min_samples_leaf": 5}
_N_RANDOM = 20
_NEAR = 100_000  # bases


@dataclass(frozen=True)
class Pair:
    """Two modalities with known links.

    Attributes
    ----------
    x, y
        Standardised values of source and target, cells x features.
    groups
        Group of each cell as a number.
    links
        Whether there is a link, source x target features.
    seed
        For methods that draw.
    """

    x: np.ndarray
    y: np.ndarray
    groups: np.ndarray
    links: np.ndarray
    seed: int

    @property
    def linked(self) -> np.ndarray:
        """Positions of the targets that have a link."""
        return np.flatnonzero(self.links.any(axis=0))


# ------------------------------------------------------------------ methods


def correlation(pair: Pair) -> np.ndarray:
    """|Pearson correlation| over all cells."""
    return np.abs(pair.x.T @ pair.y) / len(pair.x)


def correlation_within(pair: Pair) -> np.ndarray:
    """|Pearson correlation| of the values less their group's mean."""
    x, y = (
        StandardScaler().fit_transform(values - _group_means(values, pair.groups))
        for values in (pair.x, pair.y)
    )
    return np.abs(x.T @ y) / len(x)


def _group_means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    return pd.DataFrame(values).groupby(groups).transform("mean").to_numpy()


def ridge(pair: Pair) -> np.ndarray:
    """|coefficient|, the penalty of each target by leave-one-out."""
    model = RidgeCV(alphas=_PENALTIES, alpha_per_target=True).fit(pair.x, pair.y)
    return np.abs(model.coef_.reshape(pair.y.shape[1], -1).T)


def forest(pair: Pair) -> np.ndarray:
    """Decrease of variance; 0 for targets without a link, which do not count."""
    importances = np.zeros(pair.links.shape)
    for j in pair.linked:
        model = RandomForestRegressor(**_FOREST, random_state=pair.seed)
        importances[:, j] = model.fit(pair.x, pair.y[:, j]).feature_importances_
    return importances


PEERS: Mapping[str, Callable[[Pair], np.ndarray]] = {
    "|correlation|": correlation,
    "|correlation within groups|": correlation_within,
    "|ridge coefficient|": ridge,
    "random forest importance": forest,
}


def relevance(mdata: MuData, source: str, target: str, settings: Settings) -> dict[str, np.ndarray]:
    """Ours, the mean over groups of a group's mean of absolute values, and of its |signed mean|."""
    un.tl.explain(
        mdata, source=source, target=target, top_k=None, device=settings.device, progress=False
    )
    found = read_cross_relevance(mdata, source=source, target=target)

    def mean(matrices: Sequence[Any]) -> np.ndarray:  # a group without cells has none stored
        return np.mean([np.abs(to_dense(matrix)) for matrix in matrices if matrix.nnz], axis=0)

    return {
        f"{OURS}, mean |relevance|": mean(found.absolute),
        f"{OURS}, |mean relevance|": mean(found.signed),
    }


def gradients(mdata: MuData, source: str, target: str) -> np.ndarray:
    """|mean over cells of the network's gradient|, standardised input to standardised output."""
    model = un.get.model(mdata)
    network, m = model.network, model.modality_index(source, "source")
    to = model.modality_index(target, "target")
    x = torch.as_tensor(to_dense(mdata[source].X), device=model.device)
    # both wide layers are linear: what is between them is all that differs between cells
    hidden = network.encode_wide(m, network.read(m, x)).detach().requires_grad_()
    last = network.before_wide(to, network.after_wide(m, hidden))
    between = torch.stack(
        [
            torch.autograd.grad(last[:, r].sum(), hidden, retain_graph=True)[0].mean(0)
            for r in range(last.shape[1])
        ]
    )
    encoder, decoder, path = network.encoders[m], network.decoders[to], network.direct_path(m, to)
    found = encoder.wide.weight.T @ between.T @ decoder.wide.weight.T
    found = found if path is None else found + path.weight
    return np.abs(found.detach().cpu().numpy())


# ------------------------------------------------------------------ scores


def precision_by_target(links: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Average precision of the links of each target, NaN for targets without any.

    Parameters
    ----------
    links
        Bool, source x target features.
    scores
        The same shape, larger for likelier links.
    """
    found = np.full(links.shape[1], np.nan)
    for j in np.flatnonzero(links.any(axis=0)):
        found[j] = average_precision_score(links[:, j], scores[:, j])
    return found


def by_chance(pair: Pair) -> np.ndarray:
    """Average precision of each target, mean over random orders."""
    rng = np.random.default_rng(pair.seed)
    draws = [
        precision_by_target(pair.links, rng.random(pair.links.shape)) for _ in range(_N_RANDOM)
    ]
    return np.mean(draws, axis=0)


def measure(
    name: str, mdata: MuData, seed: int, settings: Settings, peers: Sequence[str] = tuple(PEERS)
) -> Iterator[Score]:
    """Fit one network and score every method on every pair of a simulated set.

    Parameters
    ----------
    name
        Of the set.
    mdata
        Prepared, with the links in ``.uns["truth"]``.
    seed, settings
        Of the fit.
    peers
        Methods to compare with.
    """
    settings.fit(mdata, seed, labels_key=LABELS)
    for entry, links in mdata.uns["truth"]["links"].items():
        target, _, source = entry.partition("_from_")
        begun = time.monotonic()
        x, y = (
            StandardScaler().fit_transform(to_dense(mdata[mod].X).astype(np.float64))
            for mod in (source, target)
        )
        groups = mdata.obs[LABELS].cat.codes.to_numpy()
        pair = Pair(x, y, groups, to_dense(links) != 0, seed)
        scores = relevance(mdata, source, target, settings)
        ours = set(scores)
        scores |= {method: PEERS[method](pair) for method in peers}
        scores["|gradient|, same network"] = gradients(mdata, source, target)
        found = {method: precision_by_target(pair.links, s) for method, s in scores.items()}
        found["random order"] = by_chance(pair)
        task = f"{source} to {target}"
        for method, values in found.items():
            yield Score(
                task, "AUPRC", method, seed, mean_of(values), len(values), ours=method in ours
            )
        share = pair.links[:, pair.linked].mean()
        _say(
            f"{name}, seed {seed}, {task}: {len(pair.linked)} targets, share of links "
            f"{share:.3f}, {time.monotonic() - begun:.0f} s"
        )


def regulation(n_obs: int, seed: int) -> MuData:
    """Simulated regulatory network, prepared."""
    mdata = un.datasets.simulate_regulation(n_obs=n_obs, random_state=seed)
    un.pp.prepare(mdata, kinds={"premrna": "rna", "mrna": "rna"})
    return mdata


def two_views(n_obs: int, seed: int) -> MuData:
    """Simulated views, prepared."""
    mdata = un.datasets.simulate_two_views(n_obs=n_obs, random_state=seed)
    un.pp.prepare(mdata, kinds=dict.fromkeys(mdata.mod, "continuous"))
    return mdata


def multiome(path: Path) -> MuData:
    """Raw counts of `rna` and `atac`, prepared; links are peaks near the start of a gene."""
    with quiet_update():
        mdata = mudata.read_h5mu(path)
    un.pp.prepare(mdata)
    mdata.uns["truth"] = {"links": {"rna_from_atac": near(mdata["atac"], mdata["rna"])}}
    return mdata


def near(peaks: AnnData, genes: AnnData) -> np.ndarray:
    """Whether a peak is near a gene's start, peaks x genes; `genes.var["interval"]` is read."""
    places = parse_intervals(peaks.var_names), parse_intervals(genes.var["interval"])
    every = np.ogrid[: peaks.n_vars, : genes.n_vars]
    return np.abs(distances(*places, *every)) <= _NEAR


SETS: Mapping[str, Callable[[int, int], MuData]] = {
    "regulation": regulation,
    "two views": two_views,
}


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Measure, print the table, and return it.

    Parameters
    ----------
    arguments
        Of the command line; by default this process's.
    """
    chosen = _parser().parse_args(arguments)
    settings = Settings(chosen.network, chosen.training, chosen.device)
    tables = []
    sets = {name: SETS[name] for name in chosen.sets}
    if chosen.multiome:
        sets = {"multiome": lambda _, __: multiome(chosen.multiome)}
    for name, make in sets.items():
        scores = [
            score
            for seed in chosen.seeds
            for score in measure(name, make(chosen.n_obs, seed), seed, settings, chosen.methods)
        ]
        tables.append(summarise(scores, name, chosen.resamples))
        if chosen.out is not None:
            pd.concat(tables).to_csv(chosen.out, index=False)
    table = pd.concat(tables, ignore_index=True)
    print(printed(table))
    return table


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--n-obs", type=int, default=1000, help="number of cells")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--multiome", type=Path, metavar="DATA", help="in place of simulated sets")
    parser.add_argument(
        "--methods", nargs="+", default=list(PEERS), choices=list(PEERS), metavar="METHOD"
    )
    parser.add_argument("--network", type=json.loads, default={}, help="overrides, as JSON")
    parser.add_argument("--training", type=json.loads, default={}, help="overrides, as JSON")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--resamples", type=int, default=N_RESAMPLES, help="of the bootstrap")
    parser.add_argument("--out", type=Path, help="CSV file for the table")
    return parser


if __name__ == "__main__":
    main()
