"""The held-out deletion test: do the features that relevance names predict better than others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from mudata import MuData

from ._compat import warn_user
from ._deletion_cells import FEWEST_CELLS, HELD_OUT, Cells, Floats, Split, splits
from ._keys import DEFAULT_STEM, Keys
from ._validate import check_in_memory, check_mudata, check_random_state
from .get import cross_relevance, relevance
from .get._slots import fit_command, record, stored, texts

#: Names of the sets of features.
NAMED, RANDOM, VARIABLE = "relevance", "random", "variable"
#: Quantiles of scores over repeats.
_SPREAD = (0.05, 0.95)


def deletion_test(
    mdata: MuData,
    *,
    held_out: MuData | None = None,
    source: str | None = None,
    target: str | None = None,
    group: str | Sequence[str] | None = None,
    modality: str | Sequence[str] | None = None,
    target_feature: str | Sequence[str] | None = None,
    labels_key: str | None = None,
    batch_key: str | None = None,
    n_top: int | Sequence[int] = (1, 2, 5, 10, 20),
    n_repeats: int = 50,
    random_state: int = 0,
    key_added: str = DEFAULT_STEM,
) -> pd.DataFrame:
    """Whether the features with the largest relevance predict better than others do.

    All features but some are deleted, and a simple predictor is trained on what is left: on the
    strongest by relevance, on as many drawn at random, or on as many that vary most. It is judged
    in cells that it has not seen. Groups (without `source` and `target`) are told from all others
    by logistic regression with balanced classes; features of `target` are predicted within each
    group from features of `source` by ridge regression. Random and variable features are taken
    from the same modalities, as many from each as the named ones are of.

    This is not the network: features that matter to it only together, or not linearly, may fail.
    And it is no test of single features.

    Parameters
    ----------
    mdata
        A MuData fitted and explained; its cells train the predictors.
    held_out
        Other cells, on which predictors are judged. They should have had no part in the model: fit
        and explain on the rest of the cells, as in the example. By default 30 % of the cells of
        `mdata`, of every group its share, are held out from the predictors, anew in each repeat,
        and a warning says that relevance has seen them: scores of the named features are too good
        then.
    source, target
        Judge cross-modal relevance; both or neither.
    group
        The group or groups to judge; all by default.
    modality
        Of group relevance: the modality or modalities to take features from; all by default. Cells
        that lack one are left out.
    target_feature
        Of cross-modal relevance: the feature or features of the target to judge; all by default.
    labels_key
        Column with the group of each cell, in both objects; by default what `tl.explain` was given
        as `groupby`, or else what the explained model was trained on. For groups found without
        labels ``"unitednet_group"``, for instance, which `tl.integrate` writes: a group found from
        the features that predict it is predicted well whatever these are, so compare with the other
        sets only.
    batch_key
        Without `held_out`: column with batches, which are held out as a whole, so that what
        predicts must do so across batches.
    n_top
        Number of features of a set, or several numbers.
    n_repeats
        Number of random sets of features (and of splits, without `held_out`).
    random_state
        Seed.
    key_added
        The stem that the results were stored under.

    Returns
    -------
    pandas.DataFrame
        One row a group (with `source` and `target`: and target feature), number of features and
        set. Columns: ``group``, with `source` and `target` ``target_feature``, ``n_top``,
        ``features`` (``"relevance"``, ``"random"`` or ``"variable"``), ``score`` (mean over repeats
        of the area under the ROC curve, or of R²), ``low`` and ``high`` (5 % and 95 % quantile over
        repeats) and ``p``: of the row of ``"relevance"``, (1 + number of repeats in which the
        random set does as well or better) / (1 + number of repeats), NaN in the others. Splits with
        fewer than 10 cells of the group, or 10 others, on either side do not count; a group without
        any that does has no rows, nor have numbers of features that relevance does not have.

    Raises
    ------
    TypeError
        `mdata` or `held_out` is not a MuData.
    ValueError
        Nothing is stored to judge; an unknown group, modality, feature or column; only one of
        `source` and `target`, or an argument of the one relevance given to the other; `batch_key`
        given with `held_out`, or a single batch; matrices on disk; no group has enough cells;
        numbers below 1.

    Warns
    -----
    UserWarning
        Relevance was computed on cells that predictors are judged on.

    Notes
    -----
    The original UnitedNet judges its features in this way (Tang et al., Nature Communications
    14:2546, 2023).

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=160, n_groups=2, n_batches=4)
    >>> last = mdata.obs["batch"] == "batch3"
    >>> train, test = mdata[~last.to_numpy()].copy(), mdata[last.to_numpy()].copy()
    >>> un.tl.fit(train, labels_key="cell_type", training={"max_epochs": 5}, progress=False)
    >>> un.tl.explain(train, progress=False)
    >>> table = un.metrics.deletion_test(train, held_out=test, n_top=[5, 10], n_repeats=20)
    >>> table.shape
    (12, 7)
    """
    seed = check_random_state(random_state)
    check_in_memory(check_mudata(mdata))
    if held_out is not None:
        check_in_memory(check_mudata(held_out, "held_out"), "held_out")
    _check_choice(held_out, source, target, modality, target_feature, batch_key)
    sizes = [n_top] if isinstance(n_top, (int, np.integer)) else list(n_top)
    for what, numbers in (("n_top", sizes), ("n_repeats", [n_repeats])):
        whole = all(isinstance(number, (int, np.integer)) for number in numbers)
        if not numbers or not whole or min(numbers) < 1:
            raise ValueError(f"{what}: expected whole numbers of at least 1, found {numbers}.")
    if source is None or target is None:
        table = relevance(mdata, group=group, modality=modality, key_added=key_added)
        modalities, targets = list(dict.fromkeys(table["modality"])), None
    else:
        table = cross_relevance(
            mdata,
            source=source,
            target=target,
            group=group,
            target_feature=target_feature,
            key_added=key_added,
        ).assign(modality=source)
        modalities, targets = [source], target
    params = _params_of(mdata, source, target, key_added)
    _warn_if_seen(mdata, held_out, params)
    key = labels_key or _labels_key(mdata, params, key_added)
    layers = _layers(params.get("reads") or _data_params(mdata, key_added))
    train = Cells.of(mdata, modalities, targets, key, batch_key, layers)
    test = None if held_out is None else Cells.of(held_out, modalities, targets, key, None, layers)
    drawn = list(splits(train, test, n_repeats, seed, batch_key))
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    by = ["group"] if targets is None else ["group", "target_feature"]
    found: list[dict[str, Any]] = []
    for names, rows in table.groupby(by, sort=False):
        judged = dict(zip(by, map(str, names), strict=True))
        one = _Judge(drawn, judged["group"], judged.get("target_feature"))
        if one.possible:
            ranked = rows.sort_values("rank")[["modality", "feature"]]
            order = [tuple(row) for row in ranked.itertuples(index=False)]
            for size in sizes:
                if size <= len(order):
                    found += [judged | row for row in one.compare(order[:size], size, rng)]
    if not found:
        sides = train.sizes() if test is None else test.sizes()
        there = {name: sides.get(name, 0) for name in dict.fromkeys(table["group"])}
        kind = "these cells" if batch_key is None else "the batches"
        where = f"{HELD_OUT:.0%} of {kind}" if test is None else "held_out"
        raise ValueError(
            f"expected a group with at least {FEWEST_CELLS} cells, and as many others, to learn "
            f"from and to judge on ({where}), and relevance for n_top={min(sizes)} features; found "
            f"none. Cells of each: {there}."
        )
    return pd.DataFrame(found)


def _check_choice(
    held_out: Any, source: Any, target: Any, modality: Any, target_feature: Any, batch_key: Any
) -> None:
    if (source is None) != (target is None):
        raise ValueError(
            f"expected both source and target, or neither, found {source!r} and {target!r}."
        )
    if source is None and target_feature is not None:
        raise ValueError(
            "target_feature is for cross-modal relevance, and that of groups is judged here; name "
            "source and target, or leave it out."
        )
    if source is not None and modality is not None:
        raise ValueError(
            f"modality is for relevance of groups, and features of {source!r} are judged here; "
            "leave it out."
        )
    if held_out is not None and batch_key is not None:
        raise ValueError(
            "batch_key says how cells are held out, and held_out names them; leave one of them out."
        )


def _params_of(mdata: MuData, source: Any, target: Any, key_added: str) -> Any:
    """Return how relevance that was read already came about."""
    kind = "relevance" if source is None else "cross_relevance"
    found = stored(mdata, kind, key_added=key_added, run="")
    if source is not None:
        found = found[Keys(DEFAULT_STEM).predicted([source], target)]
    return found["params"]


def _warn_if_seen(mdata: MuData, held_out: MuData | None, params: Any) -> None:
    """Say so where relevance was computed on cells that are to judge it."""
    if held_out is None:
        warn_user(
            "deletion_test: relevance was computed on the cells that now judge it, so scores of "
            "the named features are too good. Fit and explain on some cells, and pass the others "
            "as held_out."
        )
        return
    names = mdata.obs_names.intersection(held_out.obs_names)
    explained = pd.Index(texts(params["cells"])).union(texts(params["background"]))
    names = names.union(explained.intersection(held_out.obs_names))
    if len(names):
        warn_user(
            f"deletion_test: {len(names)} of {held_out.n_obs} held-out cells were there when "
            "relevance was computed, so scores of the named features are too good. Fit and explain "
            "without the held-out cells."
        )


def _data_params(mdata: MuData, key_added: str) -> Any:
    found = record(mdata, key_added=key_added, run=fit_command(key_added))
    return found.get("params", {}).get("data", {})


def _labels_key(mdata: MuData, params: Any, key_added: str) -> str:
    """Column that cells were explained by, or else that the explained model was trained on."""
    learned = params.get("labels_key", _data_params(mdata, key_added).get("labels_key", ""))
    key = str(params.get("groupby", "") or learned)
    if not key:
        raise ValueError(
            "labels_key: expected the column with the group of each cell, as the model explained "
            f"under {key_added!r} was not trained on labels here, found None. Name it."
        )
    return key


def _layers(reads: Any) -> dict[str, tuple[str | None, str | None]]:
    """Layer and `.obsm` matrix that the explained model reads of each modality."""
    names, layers, reps = (texts(reads.get(k, [])) for k in ("modalities", "layer", "use_rep"))
    return {
        name: (layer or None, rep or None)
        for name, layer, rep in zip(names, layers, reps, strict=True)
    }


class _Judge:
    """Scores of sets of features for one group, or one target feature in one group."""

    def __init__(self, splits: Sequence[Split], group: str, target_feature: str | None) -> None:
        self.group, self.target_feature = group, target_feature
        if target_feature is not None:
            splits = [
                Split(one.train.within(group), one.test.within(group), one.n_random)
                for one in splits
            ]
        self.splits = [
            one
            for one in splits
            if all(self._enough(s.answer(group, target_feature)) for s in (one.train, one.test))
        ]

    @property
    def possible(self) -> bool:
        """Whether a split has enough cells on either side, and something varies there."""
        return bool(self.splits)

    def _enough(self, answer: Floats) -> bool:
        if self.target_feature is None:
            return bool(min(answer.sum(), (1 - answer).sum()) >= FEWEST_CELLS)
        return len(answer) >= FEWEST_CELLS and bool(np.ptp(answer) > 0)

    def compare(
        self, named: Sequence[tuple[str, str]], size: int, rng: np.random.Generator
    ) -> list[dict[str, Any]]:
        """Return one row for each set of `size` features."""
        numbers = pd.Series([modality for modality, _ in named]).value_counts(sort=False)
        scores: dict[str, list[float]] = {NAMED: [], RANDOM: [], VARIABLE: []}
        for one in self.splits:
            variable, names = [], {}
            for modality, number in numbers.items():
                variable += one.train.most_variable(str(modality), int(number))
                names[str(modality)] = list(one.train.cells.sources[str(modality)].place)
            for what, features in ((NAMED, named), (VARIABLE, variable)):
                scores[what] += [self._score(one, features)] * one.n_random
            for _ in range(one.n_random):
                drawn = [
                    (str(modality), names[str(modality)][j])
                    for modality, number in numbers.items()
                    for j in rng.choice(len(names[str(modality)]), int(number), replace=False)
                ]
                scores[RANDOM].append(self._score(one, drawn))
        as_good = np.asarray(scores[RANDOM]) >= np.asarray(scores[NAMED])
        p = (1 + int(as_good.sum())) / (1 + len(as_good))
        return [
            {
                "n_top": size,
                "features": what,
                "score": float(np.mean(found)),
                "low": float(np.quantile(found, _SPREAD[0])),
                "high": float(np.quantile(found, _SPREAD[1])),
                "p": p if what == NAMED else np.nan,
            }
            for what, found in scores.items()
        ]

    def _score(self, split: Split, features: Sequence[tuple[str, str]]) -> float:
        from sklearn.linear_model import LogisticRegression, RidgeCV
        from sklearn.metrics import r2_score, roc_auc_score
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        learn, judge = (
            (side.values(features), side.answer(self.group, self.target_feature))
            for side in (split.train, split.test)
        )
        if self.target_feature is None:
            classifier = LogisticRegression(class_weight="balanced", max_iter=1000)
            model = make_pipeline(StandardScaler(), classifier).fit(*learn)
            return float(roc_auc_score(judge[1], model.decision_function(judge[0])))
        model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 13))).fit(*learn)
        return float(r2_score(judge[1], model.predict(judge[0])))
