"""Labels of a reference carried over to a query."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mudata import MuData
from scipy import sparse

import unitednet_mu as un
from unitednet_mu import _adapt
from unitednet_mu._adapt import adapt_model
from unitednet_mu._compat import quiet_update

FIXED: dict[str, Any] = {"adapt": False, "progress": False}
#: Settings by whether there is a (short) adaptation.
BRIEF = {False: FIXED, True: {"training": {"max_epochs": 2}, "progress": False}}


@pytest.fixture
def query() -> MuData:
    """Cells of the kind that `trained` and `fitted` have, which no model has seen."""
    whole = un.datasets.simulate_multimodal(n_obs=300, n_groups=3, noise=0.3, random_state=3)
    with quiet_update():
        part = whole[:60].copy()
        part.obs_names = [f"query{i}" for i in range(60)]
        for adata in part.mod.values():
            adata.obs_names = part.obs_names
        part.update()
    del part.uns["truth"]
    return part


def right(query: MuData) -> float:
    found = query.obs["unitednet_label"].astype(str)
    return float((found == query.obs["cell_type"].astype(str)).mean())


@pytest.fixture
def _any_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adaptation is tried whether or not the query differs from the reference."""
    monkeypatch.setattr(_adapt, "_SHIFT", -np.inf)


def test_labels_are_those_of_the_references_model(trained: MuData, query: MuData) -> None:
    model = un.get.model(trained)
    assert un.tl.transfer_labels(query, trained, unknown_threshold=0, **FIXED) is None
    expected = model.encode(query).probabilities
    np.testing.assert_array_equal(query.obsm["unitednet_label_probabilities"], expected)
    labels = query.obs["unitednet_label"]
    assert list(labels.cat.categories) == ["group0", "group1", "group2"]
    assert labels.tolist() == [f"group{k}" for k in expected.argmax(1)]
    np.testing.assert_array_equal(query.obs["unitednet_label_confidence"], expected.max(1))
    assert query.uns["unitednet"]["labels"].tolist() == ["group0", "group1", "group2"]
    assert un.get.probabilities(query, labels=True).columns.tolist() == [
        "group0",
        "group1",
        "group2",
    ]


def test_labels_are_right_on_cells_never_seen(quick: dict[str, Any]) -> None:
    """Two batches of the same kind of cells; the labels of the second are not used."""
    whole = un.datasets.simulate_multimodal(
        n_obs=300, n_groups=3, n_batches=2, noise=0.3, batch_effect=0.5, random_state=3
    )
    seen = (whole.obs["batch"] == "batch0").to_numpy()
    reference, query = whole[seen].copy(), whole[~seen].copy()
    quick["training"]["max_epochs"] = 30
    un.tl.fit(reference, labels_key="cell_type", **quick)
    truth = query.obs.pop("cell_type")
    for adapt in (False, True):
        un.tl.transfer_labels(
            query,
            reference,
            adapt=adapt,
            unknown_threshold=0,
            training={"max_epochs": 3} if adapt else None,
            progress=False,
        )
        assert (query.obs["unitednet_label"].astype(str) == truth.astype(str)).mean() > 0.95


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.9, 0.999999])
def test_cells_below_the_threshold_are_unknown(
    fitted: MuData, query: MuData, threshold: float
) -> None:
    un.tl.transfer_labels(query, fitted, unknown_threshold=threshold, **FIXED)
    probabilities = query.obsm["unitednet_label_probabilities"]
    confident = probabilities.max(1) >= np.float32(threshold)
    labels = query.obs["unitednet_label"]
    assert (labels[~confident] == "unknown").all()
    best = np.array([f"group{k}" for k in probabilities.argmax(1)])
    assert (labels.to_numpy()[confident] == best[confident]).all()
    known = ["group0", "group1", "group2"]
    assert list(labels.cat.categories) == (known if threshold == 0 else [*known, "unknown"])
    if threshold in (0.4, 0.9):
        assert 0 < (labels == "unknown").sum()
    assert query.uns["unitednet"]["transfer"]["unknown_threshold"] == threshold


def test_a_reference_may_have_a_label_unknown(
    paired: MuData, query: MuData, quick: dict[str, Any]
) -> None:
    labels = paired.obs["cell_type"].astype(str).replace("group0", "unknown")
    paired.obs["labels"] = labels
    with pytest.warns(UserWarning, match=r"\['unknown'\] will be learned like any other label"):
        un.tl.fit(paired, labels_key="labels", **quick)
    un.tl.transfer_labels(query, paired, unknown_threshold=0.2, **FIXED)
    found = query.obs["unitednet_label"]
    assert sorted(found.cat.categories) == ["group1", "group2", "unknown"]
    assert query.obsm["unitednet_label_probabilities"].shape == (60, 3)


def test_a_renamed_modality_is_pointed_at(trained: MuData, query: MuData) -> None:
    """It counts as not measured, which a user may not have meant."""
    with quiet_update():
        renamed = MuData({"RNA": query["rna"].copy(), "adt": query["adt"].copy()})
    with pytest.warns(UserWarning, match=r"modality 'rna' .* 'RNA', .* has 40 of its 40 features"):
        un.tl.transfer_labels(renamed, trained, adapt=False, progress=False)
    other = query["rna"].copy()
    other.var_names = [f"other{i}" for i in range(other.n_vars)]
    with quiet_update():
        lacking = MuData({"other": other, "adt": query["adt"].copy()})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        un.tl.transfer_labels(lacking, trained, adapt=False, progress=False)


def test_reference_never_changes(trained: MuData, query: MuData, fingerprint: Any) -> None:
    before = fingerprint(trained)
    for settings in BRIEF.values():
        un.tl.transfer_labels(query, trained, **settings)
        assert fingerprint(trained) == before


def test_without_adaptation_the_model_is_the_references(trained: MuData, query: MuData) -> None:
    un.tl.transfer_labels(query, trained, **FIXED)
    theirs, ours = (un.get.model(m).network.state_dict() for m in (trained, query))
    assert all(bool((theirs[name] == ours[name]).all()) for name in theirs)
    transfer = query.uns["unitednet"]["transfer"]
    assert not transfer["adapt"]
    assert not transfer["adapted"]
    assert "history" not in query.uns["unitednet"]
    un.tl.integrate(query)  # the query has a model of its own now
    np.testing.assert_array_equal(
        query.obsm["unitednet_probabilities"], query.obsm["unitednet_label_probabilities"]
    )


@pytest.mark.usefixtures("_any_shift")
def test_adaptation_trains_on_both(trained: MuData, query: MuData) -> None:
    """The verdict is that of held-out cells, and the model kept is the one it names."""
    settings = {"max_epochs": 8, "patience": 8, "learning_rate": 1e-3}
    un.tl.transfer_labels(query, trained, training=settings, progress=False)
    record = query.uns["unitednet"]
    assert len(record["history"]) == 8
    assert {"train_cross_entropy", "train_reconstruction", "train_translation"} <= set(
        record["history"]
    )
    transfer = record["transfer"]
    assert transfer["adapt"]
    better = transfer["query_loss_after"] < transfer["query_loss_before"]
    theirs, ours = (un.get.model(m).network.state_dict() for m in (trained, query))
    changed = any(bool((theirs[name] != ours[name]).any()) for name in theirs)
    assert changed == bool(transfer["adapted"])
    if not better:
        assert not transfer["adapted"]
    probabilities = un.get.model(query).encode(query).probabilities
    np.testing.assert_array_equal(query.obsm["unitednet_label_probabilities"], probabilities)


def test_a_query_like_the_reference_is_not_adapted_to(trained: MuData, query: MuData) -> None:
    """There is nothing to adapt to; nothing is trained."""
    un.tl.transfer_labels(query, trained, progress=False)
    record = query.uns["unitednet"]
    assert not record["transfer"]["adapted"]
    assert "history" not in record
    novelty = query.obs["unitednet_label_novelty"]
    assert record["transfer"]["shift"] == pytest.approx(np.median(novelty))
    assert record["transfer"]["shift"] <= 1.5
    expected = un.get.model(trained).encode(query).probabilities
    np.testing.assert_array_equal(query.obsm["unitednet_label_probabilities"], expected)


def test_adaptation_that_helps_is_kept(quick: dict[str, Any]) -> None:
    """A query whose antibodies are shifted: training on it reconstructs it better."""
    reference = un.datasets.simulate_multimodal(n_obs=150, n_groups=3, noise=0.3, random_state=3)
    query = reference.copy()
    with quiet_update():
        query.obs_names = [f"q{i}" for i in range(150)]
        for adata in query.mod.values():
            adata.obs_names = query.obs_names
        query.update()
    query.mod["adt"].X = query.mod["adt"].X + np.float32(1.5)
    quick["training"]["max_epochs"] = 25
    un.tl.fit(reference, labels_key="cell_type", **quick)
    un.tl.transfer_labels(
        query,
        reference,
        training={"max_epochs": 25, "learning_rate": 4e-3},
        progress=False,
    )
    transfer = query.uns["unitednet"]["transfer"]
    assert transfer["adapted"]
    assert transfer["query_loss_after"] < 0.9 * transfer["query_loss_before"]
    assert right(query) > 0.9


@pytest.mark.usefixtures("_any_shift")
def test_adaptation_that_harms_is_held_back(trained: MuData, query: MuData) -> None:
    un.tl.transfer_labels(
        query,
        trained,
        training={
            "max_epochs": 1,
            "learning_rate": 10.0,
            "gradient_clip": 1e6,
            "averaging": 0.0,
        },
        progress=False,
    )
    transfer = query.uns["unitednet"]["transfer"]
    assert transfer["adapt"]
    assert not transfer["adapted"]
    theirs, ours = (un.get.model(m).network.state_dict() for m in (trained, query))
    assert all(bool((theirs[name] == ours[name]).all()) for name in theirs)


def test_labels_of_the_query_are_never_read(trained: MuData, query: MuData) -> None:
    """Adaptation gives the same numbers whatever the query's own column says."""
    found = []
    for labels in (None, "group0", "something else"):
        mine = query.copy()
        if labels is None:
            del mine.obs["cell_type"]
        else:
            mine.obs["cell_type"] = pd.Categorical([labels] * 60)
        un.tl.transfer_labels(mine, trained, training={"max_epochs": 2}, progress=False)
        found.append(mine.obsm["unitednet_label_probabilities"])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize("adapt", [False, True])
@pytest.mark.parametrize("lacking", ["rna", "adt"])
def test_query_lacks_a_modality(trained: MuData, query: MuData, lacking: str, adapt: bool) -> None:
    del query.mod[lacking]
    query.update()
    un.tl.transfer_labels(query, trained, **BRIEF[adapt])
    assert query.obsm["unitednet_label_probabilities"].shape == (60, 3)
    np.testing.assert_allclose(query.obsm["unitednet_label_probabilities"].sum(1), 1, rtol=1e-5)
    left = "adt" if lacking == "rna" else "rna"
    model = un.get.model(query)
    if not adapt:
        code = model.encode(query).codes[:, ["rna", "adt"].index(left)]
        np.testing.assert_allclose(model.encode(query).fused, code, atol=1e-6)


@pytest.mark.parametrize("adapt", [False, True])
def test_reordered_features_change_nothing(trained: MuData, query: MuData, adapt: bool) -> None:
    settings = BRIEF[adapt]
    un.tl.transfer_labels(query, trained, **settings)
    rng = np.random.default_rng(0)
    with quiet_update():
        shuffled = MuData(
            {
                name: adata[:, rng.permutation(adata.n_vars)].copy()
                for name, adata in query.mod.items()
            }
        )
    for name, adata in shuffled.mod.items():
        adata.X = sparse.csr_matrix(adata.X) if name == "rna" else adata.X
    un.tl.transfer_labels(shuffled, trained, **settings)
    np.testing.assert_allclose(
        shuffled.obsm["unitednet_label_probabilities"],
        query.obsm["unitednet_label_probabilities"],
        atol=1e-4,
    )


@pytest.mark.parametrize("adapt", [False, True])
def test_query_may_share_names_of_cells_with_the_reference(
    trained: MuData, query: MuData, adapt: bool
) -> None:
    settings = BRIEF[adapt]
    un.tl.transfer_labels(query, trained, **settings)
    same = query.copy()
    with quiet_update():
        names = [f"cell{i:03}" for i in range(60)]  # in the order of `query`, as text
        same.obs_names = names
        for adata in same.mod.values():
            adata.obs_names = names
        same.update()
    for key in list(same.obsm):
        if key.startswith("unitednet"):
            del same.obsm[key]
    un.tl.transfer_labels(same, trained, **settings)
    assert same.obsm["unitednet_label_probabilities"].shape == (60, 3)
    if not adapt:  # the split of adaptation goes by names
        np.testing.assert_array_equal(
            same.obsm["unitednet_label_probabilities"],
            query.obsm["unitednet_label_probabilities"],
        )


def test_model_of_batches(query: MuData, quick: dict[str, Any]) -> None:
    """The query's batch is one of the model's; adaptation and labels work all the same."""
    reference = un.datasets.simulate_multimodal(
        n_obs=90, n_groups=3, n_batches=2, noise=0.3, random_state=3
    )
    un.tl.fit(reference, labels_key="cell_type", batch_key="batch", **quick)
    un.tl.transfer_labels(query, reference, training={"max_epochs": 2}, progress=False)
    assert np.isfinite(query.obsm["unitednet_label_probabilities"]).all()
    assert un.get.model(query).info.batches == ("batch0", "batch1")


BATCHES: dict[str, tuple[Any, list[int]]] = {
    "known": (["batch1", "batch0", None], [1, 0, -1]),
    "some known": (["batch1", "new", "batch0"], [1, -1, 0]),
    "unknown": (["x", "y", "z"], [-1, -1, -1]),
    "missing": ([None, None, None], [-1, -1, -1]),
    "no column": (None, [-1, -1, -1]),
}


@pytest.mark.parametrize("case", BATCHES)
@pytest.mark.parametrize("own", [False, True], ids=["joint column", "a modality's column"])
def test_batches_of_the_query_are_read(
    query: MuData, quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch, case: str, own: bool
) -> None:
    """Adaptation's decoders see the query's batches that the model knows, others as unknown."""
    reference = un.datasets.simulate_multimodal(
        n_obs=90, n_groups=3, n_batches=2, noise=0.3, random_state=3
    )
    un.tl.fit(reference, labels_key="cell_type", batch_key="batch", **quick)
    names, expected = BATCHES[case]
    del query.obs["batch"]
    if names is not None:
        column = pd.Series([names[i % 3] for i in range(60)], index=query.obs_names, dtype=object)
        (query.mod["rna"] if own else query).obs["batch"] = column
    seen = []

    def adapt(model: Any, info: Any, labelled: Any, data: Any, **settings: Any) -> Any:
        seen.append(data.batches.tolist())
        assert set(labelled.batches) == {0, 1}
        return adapt_model(model, info, labelled, data, **settings)

    monkeypatch.setattr(sys.modules["unitednet_mu.tl._transfer_labels"], "adapt_model", adapt)
    un.tl.transfer_labels(query, reference, training={"max_epochs": 1}, progress=False)
    assert seen == [expected * 20]
    assert np.isfinite(query.obsm["unitednet_label_probabilities"]).all()


def test_batches_of_the_query_condition_the_decoders(query: MuData, quick: dict[str, Any]) -> None:
    """Known batches change what adaptation learns; an unknown one is like no column."""
    reference = un.datasets.simulate_multimodal(
        n_obs=90, n_groups=3, n_batches=2, noise=0.3, random_state=3
    )
    un.tl.fit(reference, labels_key="cell_type", batch_key="batch", **quick)
    losses = {}
    for name in ("batch0", "batch1", "new", None):
        mine = query.copy()
        mine.obs["batch"] = name
        if name is None:
            del mine.obs["batch"]
        un.tl.transfer_labels(mine, reference, training={"max_epochs": 1}, progress=False)
        losses[name] = mine.uns["unitednet"]["transfer"]["query_loss_before"]
    assert losses["new"] == losses[None]
    assert len(set(losses.values())) == 3


def test_another_model(fitted: MuData, query: MuData, quick: dict[str, Any]) -> None:
    other = fitted.copy()
    un.tl.fit(other, labels_key="cell_type", random_state=9, **quick)
    model = un.get.model(other)
    un.tl.transfer_labels(query, fitted, model=model, **FIXED)
    np.testing.assert_array_equal(
        query.obsm["unitednet_label_probabilities"], model.encode(query).probabilities
    )


@pytest.mark.usefixtures("_any_shift")
def test_settings_of_the_adaptation(trained: MuData, query: MuData) -> None:
    un.tl.transfer_labels(query, trained, training={"max_epochs": 3}, progress=False)
    assert len(query.uns["unitednet"]["history"]) == 3


@pytest.mark.usefixtures("_any_shift")
def test_adaptation_that_cannot_be_judged_is_not_made(trained: MuData, query: MuData) -> None:
    with pytest.warns(UserWarning, match="held-out cells .* to tell whether adaptation helps"):
        un.tl.transfer_labels(query, trained, training={"validation_fraction": 0.0}, progress=False)
    assert not query.uns["unitednet"]["transfer"]["adapted"]
    assert "history" not in query.uns["unitednet"]
    expected = un.get.model(trained).encode(query).probabilities
    np.testing.assert_array_equal(query.obsm["unitednet_label_probabilities"], expected)


@pytest.mark.usefixtures("_any_shift")
def test_adaptation_keeps_calibration_and_expected_accuracy(trained: MuData, query: MuData) -> None:
    """Cells held out from adaptation were trained on before; they would flatter the model."""
    before = un.get.model(trained)
    un.tl.transfer_labels(query, trained, training={"max_epochs": 2}, progress=False)
    after = un.get.model(query)
    assert float(after.network.temperature) == float(before.network.temperature)
    for name, values in before.accuracy.items():
        np.testing.assert_array_equal(after.accuracy[name], values)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"unknown_threshold": 1.0},
            ValueError,
            r"unknown_threshold: expected a number in \[0, 1\), found 1.0",
        ),
        ({"unknown_threshold": -0.1}, ValueError, "unknown_threshold"),
        ({"unknown_threshold": "0.5"}, ValueError, r"unknown_threshold: .*, found '0.5'"),
        ({"novelty_threshold": None}, ValueError, "novelty_threshold: .*, found None"),
        (
            {"training": {"epochs": 3}},
            ValueError,
            "unknown setting 'epochs'; settings are .*'max_epochs'",
        ),
        (
            {"adapt": False, "training": {"max_epochs": 3}},
            ValueError,
            "training is for adaptation.*leave it out, or pass adapt=True",
        ),
        ({"model": "model"}, TypeError, "expected a unitednet_mu model .*, found str"),
        ({"key_added": "nothing"}, ValueError, "nothing stored under 'nothing'.*'unitednet'"),
    ],
    ids=["one", "negative", "text", "none", "training", "no training", "model", "stem"],
)
def test_refusals(
    fitted: MuData,
    query: MuData,
    fingerprint: Any,
    settings: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    before = fingerprint(query), fingerprint(fitted)
    with pytest.raises(error, match=message):
        un.tl.transfer_labels(query, fitted, progress=False, **settings)
    assert (fingerprint(query), fingerprint(fitted)) == before


def test_a_reference_without_labels(
    paired: MuData, query: MuData, quick: dict[str, Any], fingerprint: Any
) -> None:
    un.tl.fit(paired, n_groups=3, **quick)
    before = fingerprint(query)
    with pytest.raises(ValueError, match="trained without labels, there is nothing to transfer"):
        un.tl.transfer_labels(query, paired, progress=False)
    assert fingerprint(query) == before


@pytest.mark.parametrize("which", ["query", "reference"])
def test_not_a_mudata(fitted: MuData, query: MuData, which: str) -> None:
    both = {"query": query, "reference": fitted} | {which: query.mod["rna"]}
    with pytest.raises(TypeError, match=f"{which}: expected a MuData, found an AnnData"):
        un.tl.transfer_labels(both["query"], both["reference"], progress=False)


@pytest.mark.filterwarnings("ignore:modality 'rna' of the model is not here")
def test_query_has_none_of_the_modalities(fitted: MuData, query: MuData, fingerprint: Any) -> None:
    other = query.mod["rna"].copy()
    with quiet_update():
        strange = MuData({"atac": other})
    before = fingerprint(strange)
    with pytest.raises(ValueError, match=r"\['rna', 'adt'\].*found none.*atac"):
        un.tl.transfer_labels(strange, fitted, progress=False)
    assert fingerprint(strange) == before


@pytest.mark.parametrize("adapt", [False, True])
@pytest.mark.parametrize("n_left", [0, 1])
def test_a_reference_that_lacks_a_modality(
    trained: MuData, query: MuData, adapt: bool, n_left: int
) -> None:
    """Or has it in one cell, which has no spread: cells are judged by the other modality."""
    model = un.get.model(trained)
    parts = {"rna": trained["rna"].copy()}
    if n_left:
        parts["adt"] = trained["adt"][:n_left].copy()
    reference = MuData(parts)
    reference.obs["cell_type"] = trained.obs["cell_type"]
    un.tl.transfer_labels(query, reference, model=model, **(BRIEF[adapt] | {"adapt": adapt}))
    assert right(query) > 0.9
    assert query.obs["unitednet_label_novelty"].notna().all()


def test_a_query_without_a_modality_of_the_reference(trained: MuData, query: MuData) -> None:
    """Nothing tells how unlike they are: novelty is missing, and nothing is adapted."""
    reference, other = MuData({"rna": trained["rna"].copy()}), MuData({"adt": query["adt"].copy()})
    reference.obs["cell_type"] = trained.obs["cell_type"]
    un.tl.transfer_labels(other, reference, model=un.get.model(trained), progress=False)
    assert other.obs["unitednet_label_novelty"].isna().all()
    stored = other.uns["unitednet"]["transfer"]
    assert np.isnan(stored["shift"])
    assert not stored["adapted"]


@pytest.mark.usefixtures("_any_shift")
def test_an_adaptation_that_diverges_is_dropped(trained: MuData, query: MuData) -> None:
    training = {"max_epochs": 3, "learning_rate": 1e30}
    with pytest.warns(UserWarning, match=r"adapt: training diverged .* used as it was"):
        un.tl.transfer_labels(query, trained, training=training, progress=False)
    assert not query.uns["unitednet"]["transfer"]["adapted"]
    assert right(query) > 0.9
