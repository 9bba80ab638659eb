"""What must hold whatever the data: seeds, orders, labels, mini-batches, views, undone writes."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import igraph
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mudata import MuData

import unitednet_mu as un
from unitednet_mu import _model, _results
from unitednet_mu._compat import copied, quiet_update

WAYS: dict[str, dict[str, Any]] = {
    "supervised": {"labels_key": "cell_type"},
    "number": {"n_groups": 3},
    "auto": {},
    "batches": {"labels_key": "cell_type", "batch_key": "batch"},
    "adversarial": {"labels_key": "cell_type"},
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, quick: dict[str, Any]) -> dict[str, Any]:
    """Each way to fit."""
    quick["network"]["discriminators"] = request.param == "adversarial"
    return {**WAYS[request.param], **quick}


@pytest.fixture
def cells() -> MuData:
    """Two batches; a part of the cells lacks a modality."""
    return un.datasets.simulate_multimodal(
        n_obs=100, n_groups=3, n_batches=2, missing=0.2, random_state=6
    )


def state(mdata: MuData) -> dict[str, torch.Tensor]:
    return un.get.model(mdata).network.state_dict()


def assert_same(left: MuData, right: MuData) -> None:
    """Both hold the same network, bit for bit, and the same history."""
    a, b = state(left), state(right)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different
    pd.testing.assert_frame_equal(un.get.history(left), un.get.history(right))


def permuted(mdata: MuData, seed: int = 0) -> MuData:
    return mdata[np.random.default_rng(seed).permutation(mdata.n_obs)].copy()


# ------------------------------------------------------------------ seeds and orders


def test_same_seed_same_numbers(cells: MuData, way: dict[str, Any]) -> None:
    again = cells.copy()
    un.tl.fit(cells, **way)
    np.random.default_rng().standard_normal(3)
    torch.rand(3)
    un.tl.fit(again, **way)
    assert_same(cells, again)
    assert cells.uns["unitednet"]["model"]["sha256"] == again.uns["unitednet"]["model"]["sha256"]


def test_another_seed_gives_others(cells: MuData, way: dict[str, Any]) -> None:
    again = cells.copy()
    un.tl.fit(cells, random_state=0, **way)
    un.tl.fit(again, random_state=1, **way)
    a, b = state(cells), state(again)
    assert not torch.equal(a["encoders.0.wide.weight"], b["encoders.0.wide.weight"])


def test_order_of_cells_changes_nothing(cells: MuData, way: dict[str, Any]) -> None:
    shuffled = permuted(cells)
    assert not shuffled.obs_names.equals(cells.obs_names)
    for mdata in (cells, shuffled):
        un.tl.fit(mdata, **way)
    assert_same(cells, shuffled)
    for mdata in (cells, shuffled):
        un.tl.integrate(mdata)
        un.tl.predict_modality(mdata, source="rna", target="adt")
    order = shuffled.obs_names.get_indexer(cells.obs_names)
    for key in ("X_unitednet", "unitednet_probabilities"):
        np.testing.assert_allclose(shuffled.obsm[key][order], cells.obsm[key], atol=1e-6)
    assert (
        shuffled.obs["unitednet_group"].astype(str)[cells.obs_names]
        == cells.obs["unitednet_group"].astype(str)
    ).all()
    names = cells.mod["adt_from_rna"].obs_names
    np.testing.assert_allclose(
        shuffled.mod["adt_from_rna"][names].X, cells.mod["adt_from_rna"].X, atol=1e-5
    )


def test_order_of_cells_of_the_query_changes_nothing(fitted: MuData, cells: MuData) -> None:
    shuffled = permuted(cells)
    for query in (cells, shuffled):
        un.tl.transfer_labels(query, fitted, training={"max_epochs": 2}, progress=False)
    order = shuffled.obs_names.get_indexer(cells.obs_names)
    key = "unitednet_label_probabilities"
    np.testing.assert_allclose(shuffled.obsm[key][order], cells.obsm[key], atol=1e-6)
    assert torch.equal(
        state(cells)["encoders.0.wide.weight"], state(shuffled)["encoders.0.wide.weight"]
    )


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**31), n_obs=st.integers(20, 45), missing=st.sampled_from([0.0, 0.3]))
def test_any_order_of_any_cells(
    quick: dict[str, Any], seed: int, n_obs: int, missing: float
) -> None:
    mdata = un.datasets.simulate_multimodal(
        n_obs=n_obs, n_groups=2, missing=missing, random_state=seed % 1000
    )
    quick["training"] = {"max_epochs": 1}
    shuffled = permuted(mdata, seed)
    for one in (mdata, shuffled):
        un.tl.fit(one, labels_key="cell_type", random_state=seed % 97, **quick)
    assert_same(mdata, shuffled)


# ------------------------------------------------------------------ labels


@pytest.mark.parametrize("choice", [{"n_groups": 3}, {"n_groups": "auto"}, {}], ids=str)
def test_without_labels_no_label_is_read(
    cells: MuData, quick: dict[str, Any], choice: dict[str, Any]
) -> None:
    """Whatever the labels in `.obs` are, here and in modalities: not one bit differs."""
    variants = [cells.copy() for _ in range(3)]
    labels = cells.obs["cell_type"]
    shuffled = labels.sample(frac=1, random_state=0).to_numpy()
    assert (shuffled != labels.to_numpy()).any()
    variants[1].obs["cell_type"] = shuffled
    for adata in variants[1].mod.values():
        adata.obs["cell_type"] = "anything"
    del variants[2].obs["cell_type"]
    for mdata in variants:
        un.tl.fit(mdata, **choice, **quick)
        un.tl.integrate(mdata)
    for mdata in variants[1:]:
        assert_same(variants[0], mdata)
        for key in ("X_unitednet", "unitednet_probabilities"):
            np.testing.assert_array_equal(mdata.obsm[key], variants[0].obsm[key])
        assert (mdata.obs["unitednet_group"] == variants[0].obs["unitednet_group"]).all()


def test_with_labels_they_matter(cells: MuData, quick: dict[str, Any]) -> None:
    other = cells.copy()
    other.obs["cell_type"] = cells.obs["cell_type"].sample(frac=1, random_state=0).to_numpy()
    for mdata in (cells, other):
        un.tl.fit(mdata, labels_key="cell_type", **quick)
    assert not torch.equal(
        state(cells)["heads.0.logits.weight"], state(other)["heads.0.logits.weight"]
    )


# ------------------------------------------------------------------ inference, cell by cell


@pytest.fixture
def query() -> MuData:
    return un.datasets.simulate_multimodal(n_obs=40, n_groups=3, missing=0.2, random_state=11)


def answers(model: Any, mdata: MuData) -> dict[str, pd.DataFrame]:
    """All that a model says of each cell, as tables by cell name."""
    encoded = model.encode(mdata)
    found = {
        "fused": encoded.fused,
        "probabilities": encoded.probabilities,
        "rna": encoded.codes[:, 0],
        "adt": encoded.codes[:, 1],
        "adt_from_rna": model.predict(mdata, "rna", "adt"),
        "rna_from_both": model.predict(mdata, ["rna", "adt"], "rna"),
    }
    return {name: pd.DataFrame(value, index=mdata.obs_names) for name, value in found.items()}


def assert_equal_answers(
    left: dict[str, pd.DataFrame], right: dict[str, pd.DataFrame], names: pd.Index
) -> None:
    for key, table in left.items():
        np.testing.assert_allclose(table.loc[names], right[key].loc[names], rtol=0, atol=1e-6)


def test_batch_mates_do_not_matter(
    fitted: MuData, query: MuData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, among others, in mini-batches of any size: the same answer."""
    model = un.get.model(fitted)
    whole = answers(model, query)
    few = query.obs_names[[3, 17, 30]]
    assert_equal_answers(whole, answers(model, query[few].copy()), few)
    for name in few:
        assert_equal_answers(whole, answers(model, query[[name]].copy()), pd.Index([name]))
    for size in (1, 7):
        monkeypatch.setattr(_model, "_INFERENCE_CELLS", size)
        assert_equal_answers(whole, answers(model, query), query.obs_names)


def test_no_statistic_of_the_query_is_used(fitted: MuData, query: MuData) -> None:
    """Whatever happens to the other cells, a cell's answers stay."""
    model = un.get.model(fitted)
    before = answers(model, query)
    kept = query.obs_names[:10]
    changed = query.copy()
    rng = np.random.default_rng(0)
    for adata in changed.mod.values():
        other = ~adata.obs_names.isin(kept)
        values = adata.X.copy()
        values[other] = 50 * rng.standard_normal((other.sum(), adata.n_vars)) + 30
        adata.X = values
    after = answers(model, changed)
    assert_equal_answers(before, after, kept)
    others = query.obs_names[10:]
    assert np.abs(before["fused"].loc[others] - after["fused"].loc[others]).max().max() > 0.1


def test_labels_without_adaptation_use_no_statistic_of_the_query(
    fitted: MuData, query: MuData
) -> None:
    kept = query.obs_names[:10]
    part = query[kept].copy()
    for mdata in (query, part):
        un.tl.transfer_labels(mdata, fitted, adapt=False, progress=False)
    key = "unitednet_label_probabilities"
    np.testing.assert_allclose(query.obsm[key][:10], part.obsm[key], rtol=0, atol=1e-6)


def test_inference_repeats_itself(fitted: MuData, query: MuData) -> None:
    """No noise, no dropout; the network is in evaluation mode whatever was done with it before."""
    model = un.get.model(fitted)
    first = answers(model, query)
    assert not any(module.training for module in model.network.modules())
    for key, table in answers(model, query).items():
        np.testing.assert_array_equal(table, first[key])


# ------------------------------------------------------------------ the caller's state


def run_all(mdata: MuData, quick: dict[str, Any]) -> list[Callable[[], Any]]:
    query = mdata[:30].copy()
    return [
        lambda: un.tl.fit(mdata, labels_key="cell_type", **quick),
        lambda: un.tl.fit(mdata, n_groups=3, key_added="unsupervised", **quick),
        lambda: un.tl.fit(mdata, key_added="auto", **quick),
        lambda: un.tl.integrate(mdata),
        lambda: un.tl.predict_modality(mdata, source="rna", target="adt"),
        lambda: un.tl.transfer_labels(query, mdata, training={"max_epochs": 1}, progress=False),
        lambda: un.tl.explain(mdata, n_cells=3, n_background=3, progress=False),
    ]


def random_states() -> list[Any]:
    legacy = np.random.get_state()  # noqa: NPY002 - the caller's global state is what is compared
    return [
        random.getstate(),
        [np.asarray(part).tolist() for part in legacy],
        torch.random.get_rng_state().tolist(),
    ]


def test_global_random_states_are_left_alone(cells: MuData, quick: dict[str, Any]) -> None:
    random.seed(3)
    torch.manual_seed(3)
    for step in run_all(cells, quick):
        before = random_states()
        step()
        assert random_states() == before


def test_results_do_not_depend_on_global_random_states(
    cells: MuData, quick: dict[str, Any]
) -> None:
    again = cells.copy()
    for seed, mdata in ((1, cells), (2, again)):
        random.seed(seed)
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        un.tl.fit(mdata, **quick)
    assert_same(cells, again)


def test_igraph_goes_on_with_its_own_generator(cells: MuData, quick: dict[str, Any]) -> None:
    def draw() -> list[Any]:
        random.seed(5)
        return igraph.Graph.Erdos_Renyi(n=20, m=30).get_edgelist()

    before = draw()
    un.tl.fit(cells, **quick)
    assert draw() == before


def test_torch_settings_are_left_alone(cells: MuData, quick: dict[str, Any]) -> None:
    before = (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
    )
    for step in run_all(cells, quick):
        step()
    assert before == (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
    )


# ------------------------------------------------------------------ copies and views

STEPS: dict[str, Callable[[MuData, MuData, bool], Any]] = {
    "fit": lambda m, r, c: un.tl.fit(
        m, labels_key="cell_type", training={"max_epochs": 1}, progress=False, copy=c
    ),
    "integrate": lambda m, r, c: un.tl.integrate(m, copy=c),
    "predict_modality": lambda m, r, c: un.tl.predict_modality(
        m, source="rna", target="adt", copy=c
    ),
    "transfer_labels": lambda m, r, c: un.tl.transfer_labels(
        m, r, adapt=False, progress=False, copy=c
    ),
    "explain": lambda m, r, c: un.tl.explain(m, n_cells=3, n_background=3, progress=False, copy=c),
    "explain_pair": lambda m, r, c: un.tl.explain(
        m, source="rna", target="adt", n_cells=3, n_background=3, progress=False, copy=c
    ),
}


@pytest.mark.parametrize("step", STEPS)
def test_copy_leaves_the_original(fitted_mosaic: MuData, fingerprint: Any, step: str) -> None:
    """And what is written into the copy is what would be written in place."""
    reference = fitted_mosaic.copy()
    before = fingerprint(fitted_mosaic)
    result = STEPS[step](fitted_mosaic, reference, True)
    assert fingerprint(fitted_mosaic) == before
    assert isinstance(result, MuData)
    assert result is not fitted_mosaic
    written = fingerprint(result)
    assert written != before
    assert STEPS[step](fitted_mosaic, reference, False) is None
    assert fingerprint(fitted_mosaic) == written
    # nothing is shared
    for name, adata in result.mod.items():
        adata.X[:] = 0
        adata.obs["new"] = 1
        assert "new" not in fitted_mosaic.mod[name].obs
    result.uns["unitednet"].clear()
    result.uns["unitednet"]["x"] = 1
    assert fingerprint(fitted_mosaic) == written


@pytest.mark.parametrize("copy_", [False, True], ids=["in place", "copy"])
@pytest.mark.parametrize("step", STEPS)
def test_views_never_change_their_parent(
    fitted_mosaic: MuData, fingerprint: Any, step: str, copy_: bool
) -> None:
    un.tl.integrate(fitted_mosaic)
    reference = fitted_mosaic.copy()
    some = np.arange(fitted_mosaic.n_obs) % 2 == 0
    before = fingerprint(fitted_mosaic)
    view = fitted_mosaic[some]
    assert view.is_view
    result = STEPS[step](view, reference, copy_)
    assert fingerprint(fitted_mosaic) == before
    written = result if copy_ else view
    assert not written.is_view
    assert view.is_view == copy_
    assert written.n_obs == some.sum()
    real = fitted_mosaic[some].copy()
    STEPS[step](real, reference, False)
    assert fingerprint(written) == fingerprint(real)


def test_modalities_may_be_views(fitted: MuData, fingerprint: Any) -> None:
    """AnnData views among the modalities of a real MuData stay away from their parents."""
    parents = {name: adata.copy() for name, adata in fitted.mod.items()}
    with quiet_update():
        mdata = MuData({name: adata[:, ::2] for name, adata in parents.items()})
    mdata.obs["cell_type"] = fitted.obs["cell_type"]
    before = {name: copy.deepcopy(adata.obsm.keys()) for name, adata in parents.items()}
    un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 1}, progress=False)
    un.tl.integrate(mdata)
    un.tl.explain(mdata, n_cells=3, n_background=3, progress=False)
    for name, adata in parents.items():
        assert adata.obsm.keys() == before[name]
        assert "unitednet_relevance" not in adata.varm
        assert mdata.mod[name].varm["unitednet_relevance"].shape == (
            len(range(0, adata.n_vars, 2)),
            3,
        )


# ------------------------------------------------------------------ all or nothing


class Injected(Exception):
    """An error that no code of the package raises."""


#: What each function calls last, or in the middle of its writing.
LAST = {
    "fit": (_model.Model, "to_dict"),
    "integrate": (_results, "_store"),
    "predict_modality": (_results, "_store"),
    "transfer_labels": (_results, "_store"),
    "explain": (_results, "_store"),
    "explain_pair": (_results, "_store"),
}


@pytest.mark.parametrize("as_view", [False, True], ids=["real", "view"])
@pytest.mark.parametrize("error", [Injected, KeyboardInterrupt])
@pytest.mark.parametrize("step", STEPS)
def test_all_or_nothing(
    fitted_mosaic: MuData,
    fingerprint: Any,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: type[BaseException],
    as_view: bool,
) -> None:
    reference = fitted_mosaic.copy()
    un.tl.fit(fitted_mosaic, n_groups=2, training={"max_epochs": 1}, progress=False)
    un.tl.integrate(fitted_mosaic)  # results that the step is about to replace
    un.tl.predict_modality(fitted_mosaic, source="rna", target="adt")
    fitted_mosaic.uns["unitednet"] = {
        **fitted_mosaic.uns["unitednet"],
        "model": reference.uns["unitednet"]["model"],
    }
    some = np.arange(fitted_mosaic.n_obs) % 2 == 0
    mdata = fitted_mosaic[some] if as_view else fitted_mosaic
    before, parent = fingerprint(mdata), fingerprint(fitted_mosaic)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error("injected")

    with monkeypatch.context() as patched:
        patched.setattr(*LAST[step], fail)
        with pytest.raises(error, match="injected"):
            STEPS[step](mdata, reference, False)
    assert fingerprint(mdata) == before
    assert fingerprint(fitted_mosaic) == parent
    expected = copied(mdata)
    for one in (mdata, expected):  # and it is usable: the same call succeeds
        STEPS[step](one, reference, False)
    assert fingerprint(mdata) == fingerprint(expected) != before
