"""Linear maps beside the code: chosen by held-out cells, solved right, part of every prediction."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from mudata import MuData
from sklearn.linear_model import Ridge

import unitednet_mu as un
from unitednet_mu import _direct_path, _network
from unitednet_mu._direct_path import choose_penalties, penalties_of, set_direct_paths

N_PAIRS = 30


def paired_features(n_obs: int = 400, noise: float = 0.5, seed: int = 0) -> MuData:
    """Features that each drive one other and have nothing in common: no narrow code holds them."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n_obs, N_PAIRS))
    b = a[:, ::-1] + noise * rng.normal(size=a.shape)
    return as_mudata(a=a, b=b)


def as_mudata(**values: np.ndarray) -> MuData:
    def adata(name: str, x: np.ndarray) -> AnnData:
        obs = pd.DataFrame(index=[f"cell{i}" for i in range(len(x))])
        var = pd.DataFrame(index=[f"{name}{j}" for j in range(x.shape[1])])
        return AnnData(x.astype(np.float32), obs=obs, var=var)

    return MuData({name: adata(name, x) for name, x in values.items()})


@pytest.fixture(scope="module")
def _narrow() -> dict[str, Any]:
    return {
        "network": {"n_hidden": (32,), "n_latent": 3, "n_projector": 16, "n_heads": 1},
        "training": {
            "max_epochs": 6,
            "batch_size": 64,
            "validation_fraction": 0.2,
            "refit": False,
            "start": "kmeans",
        },
        "n_groups": 2,
        "device": "cpu",
        "progress": False,
    }


@pytest.fixture
def narrow(_narrow: dict[str, Any]) -> dict[str, Any]:
    """Settings of a network whose code is far too narrow; a test's own."""
    return copy.deepcopy(_narrow)


@pytest.fixture(scope="module")
def _carried(_narrow: dict[str, Any]) -> MuData:
    mdata = paired_features()
    un.tl.fit(mdata, **_narrow)
    return mdata


@pytest.fixture
def carried(_carried: MuData) -> MuData:
    """Features that each drive one other, with such a model; a test's own."""
    return _carried.copy()


def accuracy(mdata: MuData, fresh: MuData) -> float:
    predicted = un.get.model(mdata).predict(fresh, "a", "b")
    return float(np.nanmean(un.metrics.pearson_per_feature(fresh["b"].X, predicted)))


def test_carries_what_a_narrow_code_cannot(carried: MuData, narrow: dict[str, Any]) -> None:
    fresh = paired_features(seed=1)
    path = un.get.model(carried).network.direct_path(0, 1)
    assert path is not None
    strongest = path.weight.abs().argmax(0).numpy()
    np.testing.assert_array_equal(strongest, np.arange(N_PAIRS)[::-1])
    narrow["network"]["direct_path"] = False
    without = paired_features()
    un.tl.fit(without, **narrow)
    assert un.get.model(without).network.direct_path(0, 1) is None
    assert accuracy(carried, fresh) > accuracy(without, fresh) + 0.3


def test_relevance_names_the_one_driver(carried: MuData) -> None:
    un.tl.explain(carried, source="a", target="b", top_k=None, progress=False)
    table = un.get.cross_relevance(carried, source="a", target="b")
    best = table.sort_values("rank").drop_duplicates(["group", "target_feature"])
    numbers = [
        best[column].astype(str).str[1:].astype(int) for column in ("feature", "target_feature")
    ]
    assert len(best) == 2 * N_PAIRS
    assert (sum(numbers) == N_PAIRS - 1).mean() > 0.95


@pytest.mark.parametrize("n_obs", [200, 20], ids=["more cells", "more features"])
def test_is_ridge_regression_of_what_is_left_over(carried: MuData, n_obs: int) -> None:
    model = un.get.model(carried)
    network, data, cells = model.network, model.open(carried), np.arange(n_obs)
    network.direct.clear()
    set_direct_paths(network, data, cells, {(0, 1): 2.0})
    path = network.direct_path(0, 1)
    assert path is not None and penalties_of(network) == {(0, 1): 2.0}
    with torch.no_grad():
        raw = torch.from_numpy(carried["a"].X[:n_obs])
        x = network.standardisers[0](raw)
        y = network.standardisers[1](torch.from_numpy(carried["b"].X[:n_obs]))
        left_over = y - network.decode(1, network.encode(0, raw))
    expected = Ridge(2.0 * n_obs).fit(x.double().numpy(), left_over.double().numpy())
    np.testing.assert_allclose(path.weight.numpy(), expected.coef_.T, atol=1e-5)
    np.testing.assert_allclose(path.offset.numpy(), expected.intercept_, atol=1e-5)


def test_penalty_is_the_best_for_held_out_cells(carried: MuData) -> None:
    model = un.get.model(carried)
    data, cells, held_out = model.open(carried), np.arange(320), np.arange(320, 400)
    chosen = choose_penalties(model.network, data, cells, held_out)
    errors = {}
    for penalty in _direct_path._PENALTIES:
        set_direct_paths(model.network, data, cells, {(0, 1): penalty})
        found = model.predict(carried[held_out], "a", "b")
        scale = model.network.standardisers[1].scale.numpy()
        errors[penalty] = float((((found - carried["b"].X[held_out]) / scale) ** 2).mean())
    assert chosen[0, 1] == pytest.approx(min(errors, key=lambda penalty: errors[penalty]))


def test_none_where_none_can_be_chosen(
    narrow: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    mdata = paired_features()
    for change in ({"validation_fraction": 0.0}, {"validation_fraction": 0.02}):  # 0 and 8 cells
        un.tl.fit(mdata, **{**narrow, "training": {**narrow["training"], **change}})
        assert len(un.get.model(mdata).network.direct) == 0
    monkeypatch.setattr(_network, "_DIRECT_WEIGHTS", N_PAIRS**2 - 1)
    un.tl.fit(mdata, **narrow)
    assert len(un.get.model(mdata).network.direct) == 0


def test_noise_gets_none(narrow: dict[str, Any]) -> None:
    """A network that predicts the mean leaves nothing over but noise."""
    found = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        noise = as_mudata(a=rng.normal(size=(400, 20)), b=rng.normal(size=(400, 20)))
        un.tl.fit(noise, **narrow)
        model = un.get.model(noise)
        for part in model.network.decoders[1].wide.parameters():  # type: ignore[union-attr]
            part.data.zero_()
        chosen = choose_penalties(
            model.network, model.open(noise), np.arange(200), np.arange(200, 400)
        )
        found.append((0, 1) in chosen)
    assert sum(found) <= 1, found


def test_binary_targets_have_none(narrow: dict[str, Any]) -> None:
    mdata = paired_features(noise=0.1)
    mdata.mod["b"].X = (mdata["b"].X > 0).astype(np.float32)
    un.tl.fit(mdata, **narrow)
    network = un.get.model(mdata).network
    assert network.direct_path(0, 1) is None
    assert network.direct_path(1, 0) is not None


def test_all_cells_serve_in_the_second_training(narrow: dict[str, Any]) -> None:
    """The penalty is the first network's, the map that of the network that is kept."""
    narrow["training"]["refit"] = True
    mdata = paired_features()
    un.tl.fit(mdata, **narrow)
    model = un.get.model(mdata)
    path = model.network.direct_path(0, 1)
    assert path is not None
    kept, penalties = path.weight.clone(), penalties_of(model.network)
    data = model.open(mdata)
    set_direct_paths(model.network, data, data.canonical, penalties)
    again = model.network.direct_path(0, 1)
    assert again is not None
    torch.testing.assert_close(again.weight, kept)


def test_travels_with_the_model(carried: MuData, tmp_path: Any) -> None:
    model = un.get.model(carried)
    model.save(tmp_path / "model.safetensors")
    loaded = type(model).load(tmp_path / "model.safetensors")
    assert penalties_of(loaded.network) == penalties_of(model.network)
    np.testing.assert_array_equal(
        loaded.predict(carried, "a", "b"), model.predict(carried, "a", "b")
    )


@pytest.mark.parametrize("harm", ["shape", "self", "binary", "nan"])
def test_a_path_that_cannot_be_is_refused(narrow: dict[str, Any], harm: str) -> None:
    mdata = paired_features()
    if harm == "binary":
        mdata.mod["b"].X = (mdata["b"].X > 0).astype(np.float32)
    un.tl.fit(mdata, **narrow)
    model = un.get.model(mdata)
    path = model.network.add_direct_path(*{"self": (0, 0)}.get(harm, (0, 1)))
    if harm == "shape":
        path.weight = torch.zeros(N_PAIRS, N_PAIRS + 1)
    if harm == "nan":
        path.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"model: .*direct"):
        type(model).from_dict(model.to_dict())


def test_several_sources_weigh_as_their_codes(narrow: dict[str, Any]) -> None:
    """Each cell counts the sources that it has."""
    rng = np.random.default_rng(0)
    a, c = rng.normal(size=(2, 300, 12))
    mdata = as_mudata(a=a, b=a + c + 0.1 * rng.normal(size=a.shape), c=c)
    mdata = MuData({"a": mdata["a"][:250].copy(), "b": mdata["b"], "c": mdata["c"][50:].copy()})
    un.tl.fit(mdata, **narrow)
    model = un.get.model(mdata)
    with torch.no_grad():
        model.network.fusion.logits.copy_(torch.tensor([[0.7], [0.1], [-0.4]]))
    names = mdata.obs_names
    fused = model.encode(mdata, modalities=["a", "c"]).fused
    added = model.predict(mdata, ["a", "c"], "b") - model.decode(fused, "b")
    share = pd.DataFrame(0.0, index=names, columns=["a", "c"])
    expected = np.zeros_like(added)
    for s, name in ((0, "a"), (2, "c")):
        share.loc[mdata[name].obs_names, name] = float(
            model.network.fusion.logits[s].detach().exp()
        )
    share = share.div(share.sum(axis=1), axis=0)
    scale = model.network.standardisers[1].scale
    for s, name in ((0, "a"), (2, "c")):
        path = model.network.direct_path(s, 1)
        assert path is not None
        x = torch.from_numpy(mdata[name].X)
        one = (path(model.network.standardisers[s](x)) * scale).numpy()
        at = names.get_indexer(mdata[name].obs_names)
        expected[at] += one * share[name].to_numpy()[at, None]
    np.testing.assert_allclose(added, expected, atol=1e-5)
    assert np.abs(expected).max() > 0.1


def test_expected_accuracy_counts_it(carried: MuData) -> None:
    un.tl.predict_modality(carried, source="a", target="b")
    expected = carried["b_from_a"].var["expected_r"].mean()
    assert expected == pytest.approx(accuracy(carried, paired_features(seed=1)), abs=0.1)


def test_training_on_keeps_the_penalty(carried: MuData, narrow: dict[str, Any]) -> None:
    before = un.get.model(carried)
    more = paired_features(seed=2)
    again = {name: value for name, value in narrow.items() if name not in ("network", "n_groups")}
    un.tl.fit(more, model=before, **again)
    after = un.get.model(more)
    assert penalties_of(after.network) == penalties_of(before.network)
    one, other = (m.network.direct_path(0, 1) for m in (before, after))
    assert one is not None and other is not None and not torch.equal(one.weight, other.weight)
    # too few cells that have both modalities tell nothing of it
    alone = MuData({"a": more["a"][:200].copy(), "b": more["b"][195:].copy()})
    un.tl.fit(alone, model=before, **again)
    kept = un.get.model(alone).network.direct_path(0, 1)
    assert kept is not None
    torch.testing.assert_close(kept.weight, one.weight)


def test_of_many_cells_some_serve(carried: MuData, monkeypatch: pytest.MonkeyPatch) -> None:
    model = un.get.model(carried)
    data, some = model.open(carried), np.array([0, 199, 399])
    monkeypatch.setattr(_direct_path, "_MAX_CELLS", 3)
    few = _direct_path._values(model.network, data, np.arange(400), 0, 1)
    monkeypatch.undo()
    for one, other in zip(few, _direct_path._values(model.network, data, some, 0, 1), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_fewer_cells_serve_the_wider_either_modality_is(
    fitted: MuData, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = un.get.model(fitted)
    data, widths = model.open(fitted), [shape.n_features for shape in model.network.shapes]
    assert widths[0] != widths[1]
    monkeypatch.setattr(_direct_path, "_MAX_VALUES", 5 * max(widths))
    for source, target in ((0, 1), (1, 0)):
        x, y = _direct_path._values(model.network, data, data.canonical, source, target)
        assert x.shape == (5, widths[source])
        assert y.shape == (5, widths[target])
