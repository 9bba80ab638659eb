"""Predicted and measured values of the same cells and features, matched by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from numpy.typing import NDArray

from .._compat import warn_user
from .._keys import PREDICTED_MARK, Keys
from .._matrix import matrix_of
from .._validate import check_mudata, unknown_name
from ..get._cross_relevance import source_names
from ..get._slots import choose, command, texts


def find_prediction(
    mdata: MuData, source: str | Sequence[str], target: str, key_added: str
) -> AnnData:
    """Return the modality that holds a prediction, whatever the order of its sources."""
    names = source_names(source)
    modalities = check_mudata(mdata).mod
    exact = Keys(key_added).predicted(names, target)
    if exact in modalities:
        return modalities[exact]
    there = []
    for name, adata in modalities.items():
        mark = adata.uns.get(PREDICTED_MARK)
        if mark is None:
            continue
        there.append(name)
        same = str(mark["target"]) == target and str(mark["key"]) == key_added
        if same and set(texts(mark["source"])) == set(names):
            return adata
    asked = source if isinstance(source, str) else names
    arguments = ("mdata", f"source={asked!r}", f"target={target!r}")
    raise ValueError(
        f"no predicted modality {exact!r} (predictions there: {there}); "
        f"run {command('predict_modality', *arguments, key_added=key_added)} first."
    )


def warn_of_another_model(mdata: MuData, predicted: AnnData, key_added: str) -> None:
    """Warn of a prediction by the model that was stored before the one that is now."""
    mark = predicted.uns.get(PREDICTED_MARK, {})
    made_by = str(mark.get("model", ""))
    stored = str(mdata.uns.get(key_added, {}).get("model", {}).get("sha256", ""))
    if made_by and stored and made_by != stored:
        sources = texts(mark["source"])
        asked = sources[0] if len(sources) == 1 else sources
        arguments = ("mdata", f"source={asked!r}", f"target={str(mark['target'])!r}")
        warn_user(
            "the prediction was made by a model that has been replaced since; run "
            f"{command('predict_modality', *arguments, key_added=key_added)} anew."
        )


def find_measured(mdata: MuData, measured: str | AnnData, use_rep: str | None) -> AnnData:
    """Return the measured values, of a modality or as handed in.

    Of a modality those in the ``.obsm`` matrix `use_rep`, where that is given.
    """
    if isinstance(measured, AnnData):
        return measured
    if measured not in mdata.mod:
        todo = "Name a modality with measured=, or hand in an AnnData."
        raise ValueError(unknown_name("measured modality", measured, mdata.mod, todo))
    adata = mdata.mod[measured]
    if use_rep is None:
        return adata
    matrix, features = matrix_of(adata, measured, None, use_rep)
    names = {"obs": pd.DataFrame(index=adata.obs_names), "var": pd.DataFrame(index=features)}
    return AnnData(matrix, **names)


def read_of_prediction(predicted: AnnData) -> tuple[str | None, str | None]:
    """Return the layer and the ``.obsm`` matrix that the model reads of the target; else None."""
    mark = predicted.uns.get(PREDICTED_MARK, {})
    return str(mark.get("layer", "")) or None, str(mark.get("use_rep", "")) or None


def _plain_names(predicted: AnnData) -> list[str]:
    return texts(predicted.var.get("feature", predicted.var_names))


def choose_features(
    predicted: AnnData, truth: AnnData, features: str | Sequence[str] | None, n_top: int
) -> list[str]:
    """Return the features asked for, or the `n_top` with the highest expected accuracy."""
    plain = _plain_names(predicted)
    measured = set(truth.var_names)
    both = [name for name in plain if name in measured]
    if features is not None:
        return choose(both, features, "features")
    if not both:
        raise ValueError(
            "no predicted feature was measured: "
            f"predicted are {plain[:3]}..., measured are {list(truth.var_names[:3])}..."
        )
    score = pd.Series(_score(predicted), index=plain).loc[both]
    return [str(name) for name in score.sort_values(ascending=False, kind="stable").index[:n_top]]


def _score(predicted: AnnData) -> NDArray[Any]:
    if "expected_r" in predicted.var:
        expected: NDArray[Any] = predicted.var["expected_r"].to_numpy(dtype=float)
        if np.isfinite(expected).any():
            return expected
    spread: NDArray[Any] = np.asarray(predicted.X).var(axis=0)
    return spread


def intervals(predicted: AnnData) -> dict[str, tuple[float, float]]:
    """Return by feature what bounds nine of ten errors, for the features where it is known."""
    bounds = ("error_q05", "error_q95")
    if not set(bounds) <= set(predicted.var):
        return {}
    table = predicted.var[list(bounds)].astype(float).set_axis(_plain_names(predicted)).dropna()
    return {str(name): (float(low), float(high)) for name, low, high in table.itertuples()}


def paired_values(
    predicted: AnnData, truth: AnnData, features: list[str], layer: str | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return measured and predicted values, cells x features, of the cells that have both."""
    if layer is not None and layer not in truth.layers:
        raise ValueError(unknown_name("layer", layer, filter(None, truth.layers)))
    measured = truth[:, features].to_df(layer=layer)
    measured = measured[measured.notna().any(axis=1)]
    cells = predicted.obs_names.intersection(measured.index, sort=False)
    if not len(cells):
        raise ValueError("no cell has both a predicted and a measured value.")
    plain = _plain_names(predicted)
    wanted = predicted[cells, [plain.index(name) for name in features]].to_df()
    wanted.columns = pd.Index(features)
    return measured.loc[cells], wanted
