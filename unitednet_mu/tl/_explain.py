"""Which features make a group, and what predictions rest on in it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from mudata import MuData

from .. import _results
from .._data import Dataset
from .._keys import DEFAULT_STEM, UNKNOWN, check_key_added
from .._model import Model
from .._sample import choose_sample, warn_of_background
from .._validate import as_names, check_mudata, check_random_state, obs_column, unknown_name
from ._explain_checks import check_choice, check_several, check_whole
from ._explain_cost import announce
from ._explain_job import Job
from ._explain_method import Method, MethodName
from ._explain_models import (
    called_groups,
    explain_groups,
    explain_pair,
    matched_orders,
    resolve_models,
    spread_of,
    stability_params,
)
from ._explain_null import Refits, check_permutations
from ._refit import refit

#: Pairs of features beyond which only the strongest are kept by default.
_DENSE_PAIRS = 250_000
#: Cells of each group, and of the background: with fewer, it matters much which are drawn.
_N_SAMPLED = {"groups": 200, "pairs": 100}


def explain(
    mdata: MuData,
    *,
    source: str | None = None,
    target: str | None = None,
    groupby: str | None = None,
    n_cells: int | None = None,
    n_background: int | None = None,
    cells: Sequence[str] | None = None,
    background: Sequence[str] | None = None,
    output: Literal["logits", "probabilities"] = "logits",
    method: MethodName = "deeplift",
    n_samples: int = 200,
    per_cell: bool | Sequence[str] = False,
    top_k: int | Literal["auto"] | None = "auto",
    transform_batch: str | None = None,
    model: Model | Sequence[Model] | None = None,
    n_repeats: int = 0,
    n_top_stable: int = 20,
    n_permutations: int = 0,
    random_state: int = 0,
    device: str = "auto",
    progress: bool = True,
    key_added: str = DEFAULT_STEM,
    copy: bool = False,
) -> MuData | None:
    """Attribute groups to features, or one modality's features to another's, group by group.

    DeepLIFT's rescale rule against a background, averaged over it: what ``shap.DeepExplainer``
    computes, an approximation of Shapley values that adds up exactly to the output. Without
    `source` and `target`, group identification is explained with all modalities as joint input;
    with both, each feature of the target is explained by all features of the source.

    Parameters
    ----------
    mdata
        Cells; features are matched to the model's by name.
    source, target
        Explain the prediction of `target` from `source`; both or neither.
    groupby
        Column with the group of each cell (names as in the model, or "unknown" for none); by
        default the group that the head identifies. Relevance of a group is averaged over that
        group's own cells only.
    n_cells
        Number of cells explained per group, drawn at random; by default 200 for groups, and 100 for
        pairs of features, which cost more. Where cells lack modalities so many more are drawn that
        each modality has as many, or all that there are.
    n_background
        Largest number of background cells, by default 200 and 100 likewise, drawn evenly over
        groups (a small group gives all that it has) from the cells that have all explained
        modalities that the cells to explain have; where these differ in their modalities so many
        for each set of them. Fewer cells and background take less time, and leave more to which
        are drawn.
    cells, background
        Names of the cells to explain, and of the background, instead of drawing them.
    output
        Of group identification: ``"logits"`` (centred over groups) or ``"probabilities"``.
    method
        ``"deeplift"``, or a second opinion: ``"expected_gradients"``, what
        ``shap.GradientExplainer`` estimates, the mean over background and over random points
        between it and the cell of the gradient times the difference, which adds up but for chance;
        or ``"shap"``, ``shap.DeepExplainer`` itself, output by output, for small requests.
    n_samples
        Of expected gradients: points per cell, spread evenly over the background; raised to an even
        multiple of its rows (400 for groups, by default), as ``params`` then says.
    per_cell
        Keep the attributions of every single cell too, for `get.relevance` and
        `get.cross_relevance` to hand to :mod:`shap` (``as_explanation=True``): to the outputs named
        (groups; target features with `source` and `target`), or to all of them with True. Takes
        cells x features x outputs, at most 1 GiB.
    top_k
        Of cross-modal relevance: number of strongest pairs kept per group; ``"auto"`` keeps all up
        to 250,000 pairs, and that many beyond; ``None`` keeps all.
    transform_batch
        Of cross-modal relevance: as which batch to decode, one that measured the target; by
        default the even mixture of these.
    model
        Model to use instead of the one stored in `mdata`; or several, fits of the same data with
        other seeds or folds, to see what they agree on. All are explained on the same cells, which
        count to the same groups, and background, drawn with the first model's groups. A group of
        the first model is compared with that of the same name where both were trained on labels,
        else with the one that shares most cells of `mdata` (Hungarian assignment). Cross-modal
        relevance needs no such match.
    n_repeats
        Refit this often with other seeds, and explain the model and its refits as several models,
        the model first. Data, labels or number of groups, batches and settings are the model's;
        `mdata` must have them, and should be what it was trained on.
    n_top_stable
        Of several models: how many of a group's strongest features, over all modalities together
        (or pairs of features, with `source` and `target`), count as its top.
    n_permutations
        Test the relevance of one model: refit this often, each time with half of the features read
        from other cells (see Notes), at least 6 times; 20 is a start. Costs as many fits, and
        `mdata` must be what the model was trained on.
    random_state
        Seed of the sample and background, and of permutations.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    progress
        Whether to show a progress bar.
    key_added
        Stem of the names in `mdata`.
    copy
        Return a changed copy, and leave `mdata` as it is.

    Returns
    -------
    None, or the changed copy with ``copy=True``. Without `source` and `target` written:

    ``.uns["unitednet"]["relevance"]`` : dict
        Group and feature names, and per modality ``signed`` and ``absolute`` float32 matrices,
        features x groups: the mean over the group's cells of the attribution to that group's
        output, and of its absolute value. NaN where no cell of the group has the modality;
        ``n_cells`` (int64, one a group) says how many of those explained do.
        ``params`` holds the sample, its groups, the background, the method, what the model
        ``reads`` of each modality (layer or ``.obsm`` matrix), the ``labels_key`` that it was
        trained on (``""`` without labels) and the additivity gap (largest error
        over cells, relative to the largest departure from the background); of
        expected gradients also ``gap_standard_error``, the typical error (root mean square) that
        chance lets expect, in the same terms. With `per_cell` also ``per_cell``: the names of the
        ``outputs``, ``base_values`` (float32, cells of the sample x outputs) and per modality the
        ``cells`` that have it, the attributions ``values`` (float32, these cells x features x
        outputs), whichever group a cell is of, and the features' ``data``.

        With several models ``signed`` and ``absolute`` are means over them, and there are per
        modality ``signed_sd`` (standard deviation over models of the signed values, ``ddof=1``) and
        ``top_frequency`` (share of models in which the feature is among the `n_top_stable`
        strongest of the group by absolute relevance), float32, features x groups; in ``params``
        also ``n_models``, ``n_top_stable`` and ``rank_correlation`` (float64, per group: mean over
        pairs of models of Spearman's correlation of the absolute relevance of all features).
        ``gap`` is the largest of all models'. With `n_permutations` there are per modality ``p``
        and ``q``, float32, features x groups, of the size of ``signed``; NaN where fewer than three
        of the refits that shuffle a feature gave the group any cells. Their number stands in
        ``params``.
    ``mdata[mod].varm["unitednet_relevance"]``, ``["unitednet_relevance_abs"]`` : float32
        The same, features x groups.

    With them:

    ``.uns["unitednet"]["cross_relevance"]["<target>_from_<source>"]`` : dict
        Names, and per group (by its position) sparse float32 matrices, source x target features,
        ``signed`` and ``absolute``: change of the target in its units (binary targets: in the
        logit) that a feature's departure from the background accounts for. Empty for a group
        without cells to explain. With `per_cell` also ``per_cell``, as above. With several models
        means over them, and also per group ``signed_sd`` and ``top_frequency`` of the same pairs,
        and the same ``params``. Where only `top_k` pairs are kept, they are the strongest by mean
        absolute relevance; a model's `n_top_stable` strongest are looked for among all of its
        pairs, and models' ranks compared over all pairs (250,000 at random where there are more).
        With `n_permutations` also ``p`` and ``q`` of the same pairs, of ``absolute``; pairs that
        are not kept count among the tests of ``q`` as not significant.

    Either way:

    ``.uns["unitednet"]["version"]`` : str
        Version of this package; marks the stem as its own.

    Raises
    ------
    TypeError
        `mdata` is not a MuData, or `model` not a model.
    ValueError
        Only one of `source` and `target`, an argument of the one explanation given to the other,
        unknown names, no cell or background with the modalities, or `per_cell` past its limit.
        A result that does not fit into memory, found before anything is computed. With
        ``method="shap"``: probabilities, `per_cell`, several models, permutations, or more than it
        can do. `per_cell`, `n_repeats` or `n_permutations` with several models, or models that do
        not fit together: other modalities, features, layers, likelihoods, labels or number of
        groups. With `n_repeats` or `n_permutations`, `mdata` lacks what the model was trained on.
        `n_permutations` of groups that were found without labels. `mdata` on disk is a view or to
        be copied.
    RuntimeError
        Attributions do not add up to the output; of expected gradients: the typical error exceeds
        the tolerance by more than five times what chance lets expect.
    NotImplementedError
        A layer has no rule (with ``method="shap"``: shap has none).

    Warns
    -----
    UserWarning
        A modality looks like raw counts, and those that the model was trained on did not. One of
        the model's is missing, and one that it does not know has its features. Groups are
        explained, and all cells are of one of them, or all that others can be compared with, or
        fewer than ten cells are there to compare with.

    Notes
    -----
    Shrikumar et al. 2017 (rescale rule), Lundberg & Lee 2017 (averaging over a background),
    Erion et al. 2021 (expected gradients). What a large request will take (products, time, memory)
    is logged at level INFO before it begins.

    Permutations: each refit reads a random half of the features, all together, from another cell
    of the same batch that has the same modalities (with `source` and `target`: a random half of the
    source's features, from another cell of the same group too). What a shuffled feature then gets
    is chance, but with its own scale and sparsity, as many cells, and a network that has learned
    from the other half. (Networks trained on shuffled labels learn nothing and lean less on any
    feature; compared with them, unrelated features look significant.) A value's score is its
    distance from the mean of the feature's own values under shuffling, divided by their standard
    deviation plus the median such deviation (Tusher et al. 2001); values of pairs are first divided
    by the target's median over the source's features. As a feature has only `n_permutations` / 2
    shuffled values, the scores of all of them make one null distribution for a group, and ``q`` is
    Benjamini and Hochberg's over that group. A lone feature's ``q`` cannot be below about
    2 / `n_permutations`. In simulations of known truth, with 50 cells a group, 0.11 of the pairs
    with ``q`` <= 0.1 were false (of other draws 0.13), up to 0.44 in one run.

    So a small ``q`` of a feature says that the network leans on it more than on one that tells
    nothing of the groups; of a pair, that the prediction leans on a link inside groups, beyond what
    the group tells. It does not say that the feature adds to what others tell, which of features
    that vary together is the cause, or that the groups exist. Features are not tested for groups
    that were found from them, and labels made by clustering them make every ``q`` too small, as do
    cells of few donors, which are not independent. Pairs are tested within groups however found.

    Cross-modal relevance says what a prediction rests on, which need not be what regulates: of
    features that vary together any may stand for all. Single links are found better by regression
    (benchmark of recovered links).

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False)
    >>> un.tl.explain(mdata, progress=False)
    >>> un.get.relevance(mdata, n_top=3).shape[0]
    6
    """
    check_mudata(mdata, copy=copy)
    keys = check_key_added(mdata, key_added)
    seed = check_random_state(random_state)
    check_choice(source, target, output, top_k, transform_batch)
    default = _N_SAMPLED["groups" if source is None else "pairs"]
    n_cells = default if n_cells is None else n_cells
    n_background = default if n_background is None else n_background
    for name, number in (
        ("n_cells", n_cells),
        ("n_background", n_background),
        ("n_top_stable", n_top_stable),
    ):
        check_whole(name, number)
    if n_repeats != 0:
        check_whole("n_repeats", n_repeats, "0 or ")
    check_whole("n_samples", n_samples)
    models = resolve_models(model, mdata, key_added, device)
    found = models[0]
    check_several(len(models), n_repeats, per_cell)
    how = Method(method, n_samples, seed)
    how.check(output, len(models) + n_repeats, per_cell, n_permutations)
    explained = _explained(found, source, target, transform_batch)
    check_permutations(n_permutations, found, len(models) + n_repeats, source)
    data = found.open(mdata)
    groups = _groups(mdata, data, found, groupby)
    draw = partial(
        choose_sample,
        modalities=explained,
        n_cells=n_cells,
        n_background=n_background,
        cells=cells,
        background=background,
    )
    sample = draw(data, groups, seed=seed)
    if source is None and background is None:
        warn_of_background(sample, data, groups, found.info.groups, n_background)
    job = Job(found, data, groups, sample, progress, method=how)
    n_pairs = _pairs_kept(found, source, target, top_k)
    announce(job, len(models) + n_repeats + n_permutations, source, target, n_pairs)
    if n_repeats:
        models += refit(mdata, found, n_repeats=n_repeats, progress=progress)
    refits = Refits(mdata, job, n_permutations, draw, seed)
    kept = job.outputs_kept(per_cell, explained, target)
    params = {
        "cells": np.asarray(data.obs_names[sample.cells], dtype=str),
        "cell_groups": np.asarray(found.info.groups, dtype=str)[groups[sample.cells]],
        "background": np.asarray(data.obs_names[sample.background], dtype=str),
        "groupby": groupby or "",
        "random_state": seed,
    }
    if n_permutations:
        params["n_permutations"] = int(n_permutations)
    several = len(models) > 1
    more: dict[str, Sequence[Any]] = {}
    cell: dict[str, Any] = {}
    if source is None or target is None:
        if several:
            orders = matched_orders(models, data)
            stable = explain_groups(models, orders, job, output, n_top_stable)
            whole, more = stable.relevance, spread_of(stable)
            params |= stability_params(len(models), n_top_stable, stable)
        else:
            whole, cell = job.explain_groups(output, kept)
        if n_permutations:
            more |= refits.of_groups(whole, output, fixed=groupby is not None)
        params |= {"output": output, "n_cells": whole.n_cells, **how.params(whole, job.n_points)}
        values = {"signed": whole.signed, "absolute": whole.absolute, **more}
        result = _results.target_of(mdata, copy)
        measured = data.observed[sample.cells]
        n_measured = [
            np.bincount(groups[sample.cells[has]], minlength=len(found.info.groups))
            for has in measured.T
        ]
        _results.write_relevance(result, keys, found, values, n_measured, params, cell)
    else:
        batches = [_batch_mixture(one, target, transform_batch) for one in models]
        if several:
            stable_pair = explain_pair(
                models, job, source, target, batches, n_pairs, n_top_stable, seed
            )
            pair, more = stable_pair.relevance, spread_of(stable_pair)
            params |= stability_params(len(models), n_top_stable, stable_pair)
        else:
            pair, cell = job.explain_pair(source, target, batches[0], n_pairs, kept)
        if n_permutations:
            numbers = found.modality_index(source, "source"), found.modality_index(target, "target")
            more |= refits.of_pairs(pair, *numbers, batches[0])
        params |= {"top_k": n_pairs or 0, "n_cells": pair.n_cells, **how.params(pair, job.n_points)}
        values = {"signed": pair.signed, "absolute": pair.absolute or [], **more}
        result = _results.target_of(mdata, copy)
        _results.write_cross_relevance(result, keys, found, source, target, values, params, cell)
    return result if copy else None


def _explained(
    model: Model, source: str | None, target: str | None, transform_batch: str | None
) -> list[int]:
    """Positions of the modalities whose features are explained; what is decoded is checked."""
    if source is None or target is None:
        return list(range(len(model.modality_names)))
    model.batch_vectors(target, transform_batch)
    return [model.modality_index(source, "source")]


def _groups(mdata: MuData, data: Dataset, model: Model, groupby: str | None) -> np.ndarray:
    """Group of each cell as a position among the model's groups, -1 where it has none."""
    if groupby is None:
        return called_groups(model, data)
    codes, names = as_names(obs_column(mdata, groupby, "groupby"))
    known = {name: index for index, name in enumerate(model.info.groups)}
    known.setdefault(UNKNOWN, -1)  # what `transfer_labels` says of a cell without a group
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(unknown_name(f"groupby={groupby!r}: group", unknown[0], known))
    positions = np.array([*(known[name] for name in names), -1], dtype=np.int64)
    return np.asarray(positions[codes])


def _pairs_kept(
    model: Model, source: str | None, target: str | None, top_k: int | Literal["auto"] | None
) -> int | None:
    if source is None or target is None:
        return None
    if top_k != "auto":
        return top_k
    specs = {spec.name: spec for spec in model.info.modalities}
    n_pairs = len(specs[source].features) * len(specs[target].features)
    return None if n_pairs <= _DENSE_PAIRS else _DENSE_PAIRS


def _batch_mixture(model: Model, target: str, transform_batch: str | None) -> np.ndarray | None:
    """As which batch all cells are decoded; None where decoders are not conditioned on it."""
    vectors = model.batch_vectors(target, transform_batch)
    return np.asarray(vectors.mean(0).cpu()) if model.network.n_batches else None
