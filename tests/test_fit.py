"""Training: the three ways to learn groups, warm starts, every loss term, and the loop itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mudata import MuData
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

import unitednet_mu as un
from unitednet_mu import _data, _heads, _matrix, _model, _noise, _setup, _train
from unitednet_mu._compat import quiet_update
from unitednet_mu._config import TrainingConfig
from unitednet_mu._data import Batch
from unitednet_mu._network import UnitedNetwork
from unitednet_mu._open import describe_modality, open_dataset
from unitednet_mu._optimise import Optimiser, Optimisers
from unitednet_mu._ranks import Ranks
from unitednet_mu._setup import split_cells
from unitednet_mu._tasks import Tasks
from unitednet_mu._train import Trainer

SUPERVISED = {"labels_key": "cell_type"}
GROUPED = {"n_groups": 3}
#: Every term of the loss, and a fit in which it takes part.
TERMS = {
    "reconstruction": SUPERVISED,
    "translation": SUPERVISED,
    "contrastive": SUPERVISED,
    "cross_entropy": SUPERVISED,
    "clustering": GROUPED,
    "entropy": GROUPED,
    "generator": SUPERVISED,
    "discriminator": SUPERVISED,
}


def weights(mdata: MuData) -> dict[str, torch.Tensor]:
    """All tensors of the network stored in `mdata`."""
    return un.get.model(mdata).network.state_dict()


def distance(
    left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], without: str = ""
) -> float:
    """Largest difference of two states, counters and names that start with `without` aside."""
    kept = [
        name
        for name, value in left.items()
        if value.is_floating_point() and not (without and name.startswith(without))
    ]
    return max(float((left[name] - right[name]).abs().max()) for name in kept)


def codes(mdata: MuData) -> np.ndarray:
    return un.get.model(mdata).encode(mdata).fused


# ------------------------------------------------------------------ ways to learn groups


def test_supervised(paired: MuData, quick: dict[str, Any]) -> None:
    assert un.tl.fit(paired, labels_key="cell_type", **quick) is None
    stored = paired.uns["unitednet"]
    assert stored["groups"].tolist() == ["group0", "group1", "group2"]
    history = un.get.history(paired)
    assert history["epoch"].tolist() == [0, 1, 2]
    assert set(history["phase"]) == {"train"}
    assert {"train_cross_entropy", "val_cross_entropy"} <= set(history)
    assert not {"train_clustering", "train_entropy"} & set(history)
    assert np.isfinite(history.drop(columns="phase").to_numpy(float)).all()
    weight = un.get.modality_weights(paired)["weight"]
    assert weight.index.tolist() == ["rna", "adt"]
    assert weight.sum() == pytest.approx(1)
    data = stored["params"]["data"]
    assert (data["labels_key"], data["batch_key"], data["random_state"]) == ("cell_type", "", 0)
    assert data["modalities"].tolist() == ["rna", "adt"]
    assert data["likelihood"].tolist() == ["gaussian", "gaussian"]
    assert stored["params"]["network"]["n_hidden"].tolist() == [32]
    assert stored["params"]["training"]["max_epochs"] == 3
    assert stored["version"] == un.__version__


def test_supervised_groups_are_learned(trained: MuData) -> None:
    assert (
        trained.obs["unitednet_group"].astype(str) == trained.obs["cell_type"].astype(str)
    ).all()
    history = un.get.history(trained)
    for term in ("reconstruction", "translation", "contrastive", "cross_entropy"):
        assert history[f"train_{term}"].iloc[-1] < history[f"train_{term}"].iloc[0]


def test_labels_of_a_modality(paired: MuData, quick: dict[str, Any]) -> None:
    """A column of a modality's own `.obs` serves as well, with or without the modality's name."""
    un.tl.fit(paired, labels_key="cell_type", **quick)
    expected = weights(paired)
    column = paired.obs["cell_type"].copy()
    for key in ("annotation", "rna:annotation"):
        moved = paired.copy()
        del moved.obs["cell_type"]
        moved.mod["rna"].obs["annotation"] = column.reindex(moved.mod["rna"].obs_names)
        un.tl.fit(moved, labels_key=key, **quick)
        assert distance(weights(moved), expected) == 0


def test_cells_without_a_label_train_everything_else(paired: MuData, quick: dict[str, Any]) -> None:
    """Their values matter, and their hidden labels do not."""
    hidden = paired.obs["cell_type"].copy()
    hidden[hidden.index[::2]] = np.nan
    paired.obs["partly"] = hidden
    un.tl.fit(paired, labels_key="partly", **quick)
    assert paired.uns["unitednet"]["groups"].tolist() == ["group0", "group1", "group2"]
    assert np.isfinite(un.get.history(paired)["val_cross_entropy"]).all()

    labelled = paired[hidden.notna().to_numpy()].copy()
    un.tl.fit(labelled, labels_key="partly", **quick)
    assert distance(weights(paired), weights(labelled)) > 1e-3


def test_settings_of_a_fit_serve_as_they_are_stored(fitted: MuData, fingerprint: Any) -> None:
    """``"auto"`` is what `.uns` holds for None."""
    stored = fitted.uns["unitednet"]["params"]
    assert stored["training"]["temperature"] == "auto"
    again = un.datasets.simulate_multimodal(n_obs=120, n_groups=3, random_state=1)
    chosen = {name: stored[name] for name in ("network", "training")}
    un.tl.fit(again, labels_key="cell_type", progress=False, **chosen)
    assert fingerprint(again) == fingerprint(fitted)


def test_few_labels_teach_all_cells(quick: dict[str, Any]) -> None:
    mdata = un.datasets.simulate_multimodal(n_obs=200, n_groups=3, noise=0.3, random_state=3)
    shown = mdata.obs["cell_type"].copy()
    shown[shown.index[30:]] = np.nan
    mdata.obs["few"] = shown
    un.tl.fit(
        mdata, labels_key="few", **{**quick, "training": {"max_epochs": 30, "batch_size": 32}}
    )
    un.tl.integrate(mdata)
    unseen = shown.isna().to_numpy()
    right = mdata.obs["unitednet_group"].astype(str) == mdata.obs["cell_type"].astype(str)
    assert right[unseen].mean() > 0.95


def test_a_class_with_one_labelled_cell(paired: MuData, quick: dict[str, Any]) -> None:
    """Wherever its only cell falls, no loss turns into NaN."""
    labels = paired.obs["cell_type"].astype(str).replace("group2", "group1")
    labels.iloc[7] = "rare"
    paired.obs["labels"] = pd.Categorical(labels)
    for seed in range(3):
        un.tl.fit(paired, labels_key="labels", random_state=seed, **quick)
        assert np.isfinite(un.get.history(paired).drop(columns="phase").to_numpy(float)).all()


@pytest.mark.parametrize("n_groups", [4, np.int64(4)], ids=["int", "numpy"])
def test_number_of_groups(paired: MuData, quick: dict[str, Any], n_groups: Any) -> None:
    un.tl.fit(paired, n_groups=n_groups, **quick)
    assert paired.uns["unitednet"]["groups"].tolist() == ["0", "1", "2", "3"]
    history = un.get.history(paired)
    assert list(dict.fromkeys(history["phase"])) == ["warmup", "train"]
    assert {"train_clustering", "train_entropy"} <= set(history)
    assert history.loc[history["phase"] == "warmup", "train_clustering"].isna().all()
    assert history.loc[history["phase"] == "train", "train_clustering"].notna().all()
    assert len(un.get.model(paired).network.heads) == 1


@pytest.mark.parametrize("start", ["leiden", "kmeans", "random"])
def test_exactly_the_groups_asked_for(paired: MuData, quick: dict[str, Any], start: str) -> None:
    quick["training"]["start"] = start
    un.tl.fit(paired, n_groups=5, **quick)
    un.tl.integrate(paired)
    assert paired.obsm["unitednet_probabilities"].shape == (120, 5)
    assert list(paired.obs["unitednet_group"].cat.categories) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("choice", [{"n_groups": 3}, {"n_groups": "auto"}, {}], ids=str)
def test_groups_are_found_without_labels(choice: dict[str, Any], quick: dict[str, Any]) -> None:
    mdata = un.datasets.simulate_multimodal(n_obs=200, n_groups=3, noise=0.3, random_state=3)
    truth = mdata.obs.pop("cell_type")
    un.tl.fit(mdata, **choice, **{**quick, "training": {"max_epochs": 20, "batch_size": 32}})
    un.tl.integrate(mdata)
    assert len(mdata.uns["unitednet"]["groups"]) == 3
    assert adjusted_rand_score(truth, mdata.obs["unitednet_group"]) > 0.9


def test_auto_is_the_default(paired: MuData, quick: dict[str, Any]) -> None:
    automatic = paired.copy()
    un.tl.fit(automatic, n_groups="auto", **quick)
    un.tl.fit(paired, **quick)
    assert distance(weights(automatic), weights(paired)) == 0


def test_cells_that_form_a_single_group(quick: dict[str, Any]) -> None:
    """Leiden may find one community; losses and results stay finite."""
    mdata = un.datasets.simulate_multimodal(n_obs=12, n_groups=1, random_state=0)
    del quick["training"]["batch_size"]
    un.tl.fit(mdata, **quick)
    history = un.get.history(mdata)
    trained = history.filter(like="train_")[history["phase"] == "train"]
    assert np.isfinite(trained.to_numpy(float)).all()
    un.tl.integrate(mdata)
    assert np.isfinite(mdata.obsm["X_unitednet"]).all()
    np.testing.assert_allclose(mdata.obsm["unitednet_probabilities"].sum(1), 1, rtol=1e-5)


# ------------------------------------------------------------------ warm start

NEARLY_STILL = {"max_epochs": 1, "learning_rate": 1e-9, "weight_decay": 0.0}


def test_warm_start_begins_at_the_model(fitted: MuData, quick: dict[str, Any]) -> None:
    before = weights(fitted)
    model = un.get.model(fitted)
    quick = {**quick, "training": NEARLY_STILL}
    del quick["network"]
    un.tl.fit(fitted, model=model, key_added="continued", **quick)
    after = un.get.model(fitted, key_added="continued")
    parameters = {name for name, _ in after.network.named_parameters()}
    state = after.network.state_dict()
    for name in parameters:
        torch.testing.assert_close(state[name], before[name], rtol=0, atol=1e-6)
    assert after.info.groups == model.info.groups
    assert after.info.labels_key == "cell_type"


@pytest.mark.parametrize("reset_head", [False, True])
def test_warm_start_leaves_the_given_model_alone(
    fitted: MuData, quick: dict[str, Any], reset_head: bool
) -> None:
    del quick["network"]
    model = un.get.model(fitted)
    state = {name: value.clone() for name, value in model.network.state_dict().items()}
    info, accuracy = model.info, {name: value.copy() for name, value in model.accuracy.items()}
    un.tl.fit(
        fitted,
        model=model,
        reset_head=reset_head,
        labels_key="cell_type",
        key_added="more",
        **quick,
    )
    assert distance(model.network.state_dict(), state) == 0
    assert not model.network.training
    assert model.info == info
    for name, value in accuracy.items():
        np.testing.assert_array_equal(model.accuracy[name], value)
    changed = weights(fitted)
    assert distance(changed, un.get.model(fitted, key_added="more").network.state_dict()) > 1e-3


def test_warm_start_with_a_new_head(fitted: MuData, quick: dict[str, Any]) -> None:
    """Encoders and decoders are kept; the head learns other labels."""
    before = weights(fitted)
    fitted.obs["two"] = np.where(fitted.obs["cell_type"] == "group0", "first", "others")
    quick = {**quick, "training": NEARLY_STILL}
    del quick["network"]
    model = un.get.model(fitted)
    un.tl.fit(fitted, model=model, reset_head=True, labels_key="two", **quick)
    assert fitted.uns["unitednet"]["groups"].tolist() == ["first", "others"]
    after = weights(fitted)
    for name in ("encoders.0.wide.weight", "encoders.1.deep.3.weight", "decoders.1.wide.weight"):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)
    for name in ("standardisers.0.mean", "standardisers.1.scale"):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)
    assert after["heads.0.logits.weight"].shape[0] == 2


@pytest.mark.parametrize(("choice", "n_groups"), [({"n_groups": 4}, 4), ({}, None)], ids=str)
def test_warm_start_finds_groups_anew(
    fitted: MuData, quick: dict[str, Any], choice: dict[str, Any], n_groups: int | None
) -> None:
    del quick["network"]
    model = un.get.model(fitted)
    un.tl.fit(fitted, model=model, reset_head=True, **choice, **quick)
    found = fitted.uns["unitednet"]["groups"].tolist()
    assert found == [str(k) for k in range(n_groups or len(found))]
    assert un.get.model(fitted).info.labels_key is None
    assert "train_clustering" in un.get.history(fitted)


def test_warm_start_of_a_model_without_labels(paired: MuData, quick: dict[str, Any]) -> None:
    un.tl.fit(paired, n_groups=3, **quick)
    del quick["network"]
    un.tl.fit(paired, model=un.get.model(paired), **quick)
    history = un.get.history(paired)
    assert set(history["phase"]) == {"train"}
    assert history["train_clustering"].notna().all()
    assert paired.uns["unitednet"]["groups"].tolist() == ["0", "1", "2"]


def test_going_on_without_any_label_is_said(fitted: MuData, quick: dict[str, Any]) -> None:
    del quick["network"]
    more = fitted.copy()
    more.obs["cell_type"] = pd.Categorical([None] * len(more), categories=["group0"])
    with pytest.warns(UserWarning, match="labels_key='cell_type': every value is missing"):
        un.tl.fit(more, model=un.get.model(fitted), **quick)


def test_warm_start_on_other_cells(fitted: MuData, quick: dict[str, Any]) -> None:
    """Other cells, fewer modalities: what is not there stays as it was."""
    del quick["network"]
    more = un.datasets.simulate_multimodal(n_obs=60, n_groups=3, random_state=1)
    del more.mod["adt"]
    more.update()
    un.tl.fit(more, model=un.get.model(fitted), **quick)
    before, after = weights(fitted), weights(more)
    assert (
        float((before["encoders.0.wide.weight"] - after["encoders.0.wide.weight"]).abs().max())
        > 1e-4
    )
    un.tl.predict_modality(more, source="rna", target="adt")
    assert more.mod["adt_from_rna"].shape == (60, 20)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": "counts"}, "layer: the model to continue from fixes it"),
        ({"modalities": ["rna"]}, "modalities: the model to continue from fixes it"),
        ({"network": {"n_latent": 4}}, "network: the model to continue from fixes it"),
        ({"n_groups": 3}, "pass reset_head=True"),
        ({"batch_key": "batch"}, "trained without batches"),
        (
            {"labels_key": "other"},
            "label 'alien' not found; available: ['group0', 'group1', 'group2']",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else "+".join(value),
)
def test_warm_start_refuses_what_the_model_fixes(
    fitted: MuData, fingerprint: Any, settings: dict[str, Any], message: str
) -> None:
    fitted.obs["other"] = np.where(fitted.obs["cell_type"] == "group0", "group0", "alien")
    model, before = un.get.model(fitted), fingerprint(fitted)
    with pytest.raises(ValueError) as caught:
        un.tl.fit(fitted, model=model, progress=False, **settings)
    assert message in str(caught.value)
    assert fingerprint(fitted) == before


# ------------------------------------------------------------------ loss terms


@pytest.mark.parametrize("term", TERMS)
def test_every_term_can_be_switched_off(paired: MuData, quick: dict[str, Any], term: str) -> None:
    quick["network"]["discriminators"] = True
    un.tl.fit(paired, **TERMS[term], key_added="on", **quick)
    quick["training"]["loss_weights"] = {term: 0}
    un.tl.fit(paired, **TERMS[term], key_added="off", **quick)
    on, off = (set(un.get.history(paired, key_added=key)) for key in ("on", "off"))
    gone = {column for column in on if column in (f"train_{term}", f"val_{term}")}
    assert f"train_{term}" in gone
    assert off == on - gone
    model = [un.get.model(paired, key_added=key).network.state_dict() for key in ("on", "off")]
    assert distance(*model) > 0


def test_all_terms_off_but_one(paired: MuData, quick: dict[str, Any]) -> None:
    quick["training"]["loss_weights"] = dict.fromkeys(TERMS, 0) | {"reconstruction": 1}
    un.tl.fit(paired, labels_key="cell_type", **quick)
    history = un.get.history(paired)
    terms = {c for c in history if c.startswith(("train_", "val_"))}
    assert terms == {"train_reconstruction", "val_reconstruction", "val_total"}
    np.testing.assert_allclose(history["val_total"], history["val_reconstruction"])


def test_weights_scale_the_total(paired: MuData, quick: dict[str, Any]) -> None:
    loss_weights = {
        "reconstruction": 2.0,
        "translation": 0.5,
        "contrastive": 3.0,
        "cross_entropy": 0.1,
    }
    quick["training"]["loss_weights"] = loss_weights
    un.tl.fit(paired, labels_key="cell_type", **quick)
    history = un.get.history(paired)
    total = sum(weight * history[f"val_{term}"] for term, weight in loss_weights.items())
    np.testing.assert_allclose(history["val_total"], total)


@pytest.mark.parametrize(
    "part",
    [
        {"network": {"linear_path": False}},
        {"network": {"batch_norm": False}},
        {"network": {"discriminators": True}},
        {"network": {"fusion": "dimension"}},
        {"network": {"dropout": 0.0, "input_dropout": 0.0}},
        {"network": {"n_hidden": (24, 16)}},
        {"network": {"activation": "gelu"}},
        {"training": {"modality_dropout": 0.0}},
        {"training": {"alternate": True}},
        {"training": {"averaging": 0.0}},
        {"training": {"validation_fraction": 0.0}},
        {"training": {"batch_size": 16}},
    ],
    ids=str,
)
def test_every_part_can_be_switched(
    paired: MuData, quick: dict[str, Any], part: dict[str, Any]
) -> None:
    un.tl.fit(paired, labels_key="cell_type", key_added="plain", **quick)
    for name, overrides in part.items():
        quick[name].update(overrides)
    un.tl.fit(paired, labels_key="cell_type", **quick)
    results = [un.get.model(paired, key_added=key).encode(paired) for key in ("plain", "unitednet")]
    assert all(np.isfinite(result.fused).all() for result in results)
    assert np.abs(results[0].logits - results[1].logits).max() > 1e-5
    for name, overrides in part.items():
        stored = paired.uns["unitednet"]["params"][name]
        for key, value in overrides.items():
            np.testing.assert_array_equal(stored[key], value)


def test_fusion_per_dimension_has_a_weight_for_each(paired: MuData, quick: dict[str, Any]) -> None:
    quick["network"]["fusion"] = "dimension"
    un.tl.fit(paired, labels_key="cell_type", **quick)
    logits = un.get.model(paired).network.fusion.logits.detach()
    assert logits.shape == (2, 8)
    expected = torch.softmax(logits, 0).mean(1).numpy()
    np.testing.assert_allclose(un.get.modality_weights(paired)["weight"], expected, rtol=1e-6)


# ------------------------------------------------------------------ adversarial step


@pytest.fixture
def opponents(fitted: MuData) -> tuple[Tasks, Optimisers, Batch]:
    """Tasks, optimisers and a mini-batch of a network with discriminators."""
    torch.manual_seed(0)
    model = un.get.model(fitted)
    info = model.info.network.to_dict() | {"discriminators": True}
    network = UnitedNetwork(
        model.network.shapes, 3, 0, type(model.info.network).build(info)
    ).train()
    others = ("reconstruction", "translation", "contrastive")
    config = TrainingConfig(
        loss_weights={"generator": 1.0} | dict.fromkeys(others, 0.0), weight_decay=0.0
    )
    data = model.open(fitted)
    batch = data.batch(np.arange(32), torch.device("cpu"))
    return Tasks(network, config, torch.ones(3)), Optimisers(network, config, 10, Ranks()), batch


#: What goes with the gradients.
NOTHING = torch.empty(0)


def parameters(network: UnitedNetwork) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Copies of the network's own parameters, and of the discriminators'."""
    named = {name: value.detach().clone() for name, value in network.named_parameters()}
    theirs = {name for name in named if name.startswith("discriminators.")}
    return {n: v for n, v in named.items() if n not in theirs}, {n: named[n] for n in theirs}


def step(optimiser: Optimiser | None, loss: torch.Tensor) -> None:
    assert optimiser is not None
    optimiser.backward(loss, NOTHING)
    optimiser.move()


def test_discriminator_step_moves_discriminators_only(opponents: Any) -> None:
    tasks, optimisers, batch = opponents
    own, theirs = parameters(tasks.network)
    loss = tasks.discrimination(batch)["discriminator"]
    before = float(loss.detach())
    step(optimisers.discriminators, loss)
    own_after, theirs_after = parameters(tasks.network)
    assert distance(own, own_after) == 0
    assert all(float((theirs[n] - theirs_after[n]).abs().max()) > 0 for n in theirs)
    assert all(p.grad is None for p in optimisers.network.parameters)
    for _ in range(30):
        step(optimisers.discriminators, tasks.discrimination(batch)["discriminator"])
    assert float(tasks.discrimination(batch)["discriminator"].detach()) < 0.5 * before


def test_network_step_leaves_discriminators(opponents: Any) -> None:
    tasks, optimisers, batch = opponents
    own, theirs = parameters(tasks.network)
    total, _ = tasks.label_free(batch, *tasks.codes(batch))
    step(optimisers.network, total)
    own_after, theirs_after = parameters(tasks.network)
    assert distance(theirs, theirs_after) == 0
    moved = {name for name in own if float((own[name] - own_after[name]).abs().max()) > 0}
    assert {"decoders.0.wide.weight", "decoders.1.wide.weight", "encoders.0.wide.weight"} <= moved


def test_opponents_pull_apart(opponents: Any) -> None:
    """The generator's step raises what the discriminators then score, theirs lowers it again."""
    tasks, optimisers, batch = opponents
    for module in tasks.network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    def generator() -> torch.Tensor:
        return tasks.label_free(batch, *tasks.codes(batch))[0]

    for _ in range(20):
        step(optimisers.discriminators, tasks.discrimination(batch)["discriminator"])
    noticed = float(generator().detach())
    for _ in range(8):
        step(optimisers.network, generator())
    fooled = float(generator().detach())
    assert fooled < noticed
    for _ in range(20):
        step(optimisers.discriminators, tasks.discrimination(batch)["discriminator"])
    assert float(generator().detach()) > fooled


def test_generator_does_not_decide_when_to_stop(paired: MuData, quick: dict[str, Any]) -> None:
    quick["network"]["discriminators"] = True
    un.tl.fit(paired, labels_key="cell_type", **quick)
    history = un.get.history(paired)
    assert {"train_generator", "train_discriminator"} <= set(history)
    weight = paired.uns["unitednet"]["params"]["training"]["loss_weights"]
    judged = ("reconstruction", "translation", "contrastive", "cross_entropy")
    expected = sum(weight[term] * history[f"val_{term}"] for term in judged)
    np.testing.assert_allclose(history["val_total"], expected)


# ------------------------------------------------------------------ the loop


def gradient_norms(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Norms of the gradients that every later step of AdamW is made with."""
    norms: list[float] = []
    plain = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        grads = [
            p.grad for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        norms.append(
            float(torch.linalg.vector_norm(torch.cat([g.ravel() for g in grads]).double()))
        )
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    return norms


@pytest.mark.parametrize("discriminators", [False, True])
def test_gradients_are_clipped(
    paired: MuData, quick: dict[str, Any], discriminators: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick["network"]["discriminators"] = discriminators
    norms = gradient_norms(monkeypatch)
    un.tl.fit(paired, labels_key="cell_type", **quick)
    free = len(norms)
    assert max(norms) > 0.1
    quick["training"]["gradient_clip"] = 0.01
    un.tl.fit(paired, labels_key="cell_type", **quick)
    clipped = norms[free:]
    assert len(clipped) == free
    assert max(clipped) <= 0.01 * (1 + 1e-4)
    assert max(clipped) > 0.009  # a clipped gradient keeps its direction and has the largest length


def held_out_loss(mdata: MuData, term: str) -> float:
    """A label-free term of the stored model on the cells that its training held out."""
    model = un.get.model(mdata)
    data = model.open(mdata)
    labels, names = pd.factorize(mdata.obs["cell_type"], sort=True)
    assert names.tolist() == list(model.info.groups)
    data.labels = labels.astype(np.int64)
    _, held_out = split_cells(
        data, model.info.training.validation_fraction, model.info.random_state
    )
    tasks = Tasks(model.network, model.info.training, None)
    batch = data.batch(held_out, torch.device("cpu"))
    with torch.no_grad():
        return float(tasks.label_free(batch, *tasks.codes(batch))[1][term])


def test_early_stopping_restores_the_best_state(paired: MuData, quick: dict[str, Any]) -> None:
    """Nothing but noise is left to learn at this rate, so that the held-out loss soon rises."""
    quick["training"] = {
        "max_epochs": 60,
        "patience": 3,
        "refit": False,
        "learning_rate": 0.05,
        "weight_decay": 0.0,
        "averaging": 0.0,
        "loss_weights": {"contrastive": 0, "cross_entropy": 0, "translation": 0},
    }
    quick["network"].update(dropout=0.0, input_dropout=0.0)
    un.tl.fit(paired, labels_key="cell_type", **quick)
    history = un.get.history(paired)
    best = int(history["val_total"].argmin())
    assert len(history) == best + 1 + 3 < 60
    assert history["val_total"].iloc[-1] > history["val_total"].iloc[best] * 1.001
    found = held_out_loss(paired, "reconstruction")
    assert found == pytest.approx(history["val_reconstruction"].iloc[best], rel=1e-4)


def test_without_held_out_cells_the_last_state_is_kept(
    paired: MuData, quick: dict[str, Any]
) -> None:
    quick["training"] = {"max_epochs": 4, "patience": 1, "validation_fraction": 0.0}
    un.tl.fit(paired, labels_key="cell_type", **quick)
    history = un.get.history(paired)
    assert len(history) == 4
    assert history["val_total"].isna().all()
    assert not [column for column in history if column.startswith("val_") and column != "val_total"]
    un.tl.predict_modality(paired, source="rna", target="adt")
    assert paired.mod["adt_from_rna"].var["expected_r"].isna().all()


def test_held_out_cells_train_nothing(paired: MuData, quick: dict[str, Any]) -> None:
    """Changing a held-out cell changes neither weights nor statistics."""
    quick["training"]["max_epochs"] = 1  # one epoch: held-out cells cannot even choose the best one
    un.tl.fit(paired, labels_key="cell_type", **quick)
    model = un.get.model(paired)
    data = model.open(paired)
    data.labels = pd.factorize(paired.obs["cell_type"], sort=True)[0].astype(np.int64)
    train, held_out = split_cells(data, 0.1, 0)
    assert len(held_out) == 12
    assert not set(train) & set(held_out)
    values = paired.mod["rna"].X.copy()
    mean, scale = values[train].mean(0, dtype=float), values[train].std(0, dtype=float)
    np.testing.assert_allclose(model.network.standardisers[0].mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.network.standardisers[0].scale, scale, rtol=1e-4)
    changed = paired.copy()
    values[held_out] += 100
    changed.mod["rna"].X = values
    un.tl.fit(changed, labels_key="cell_type", **quick)
    state, other = weights(paired), weights(changed)
    state.pop("temperature"), other.pop("temperature")
    assert distance(state, other) == 0


def test_progress_bar(paired: MuData, quick: dict[str, Any], capfd: pytest.CaptureFixture) -> None:
    un.tl.fit(paired, labels_key="cell_type", **quick)
    assert capfd.readouterr() == ("", "")
    quick["progress"] = True
    un.tl.fit(paired, labels_key="cell_type", **quick)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "fit" in shown.err
    assert "3/3" in shown.err
    assert "held_out=" in shown.err


def test_nothing_is_printed_by_any_function(fitted: MuData, capfd: pytest.CaptureFixture) -> None:
    un.tl.integrate(fitted, progress=False)
    un.tl.predict_modality(fitted, source="rna", target="adt", progress=False)
    un.tl.explain(fitted, n_cells=3, n_background=3, progress=False)
    query = un.datasets.simulate_multimodal(n_obs=40, n_groups=3, random_state=1)
    un.tl.transfer_labels(query, fitted, training={"max_epochs": 1}, progress=False)
    assert capfd.readouterr() == ("", "")


def test_bars_of_what_reads_all_cells(
    trained: MuData, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for every pass over the cells, but for passes that are over in a moment."""
    query = un.datasets.simulate_multimodal(n_obs=40, n_groups=3, random_state=1)

    def shown(**progress: bool) -> str:
        un.tl.integrate(trained, **progress)
        un.tl.predict_modality(trained, source="rna", target="adt", **progress)
        un.tl.transfer_labels(query, trained, adapt=False, **progress)
        out, err = capfd.readouterr()
        assert out == ""
        return err

    assert shown() == ""
    monkeypatch.setattr("unitednet_mu._data._BAR_AFTER", 0.0)
    assert shown(progress=False) == ""
    bars = shown()
    for bar in ("encode: 100%", "decode: 100%", "direct path: 100%", "240/240", "40/40"):
        assert bar in bars


def test_trainer_counts_its_steps(paired: MuData, quick: dict[str, Any]) -> None:
    """The schedule ends where training does: the last learning rate is the lowest."""
    un.tl.fit(paired, labels_key="cell_type", **quick)
    rate = un.get.history(paired)["learning_rate"]
    assert rate.iloc[-1] == rate.min() < 1e-3 * quick["training"].get("learning_rate", 4e-3)


def test_batch_size_beyond_the_cells_is_refused_before_training(
    paired: MuData, quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("trained"))
    quick["training"]["batch_size"] = 109
    with pytest.raises(
        ValueError, match=r"batch_size: expected at most the 108 training cells, found 109"
    ):
        un.tl.fit(paired, labels_key="cell_type", **quick)


# ------------------------------------------------------------------ input in every form

FORMS: dict[str, Any] = {
    "csr_matrix": sparse.csr_matrix,
    "csc_matrix": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
    "dense": np.asarray,
}


@pytest.fixture(scope="module")
def whole_numbers() -> MuData:
    """Cells with small whole numbers, which every dtype holds exactly, in a float32 CSR matrix."""
    mdata = un.datasets.simulate_multimodal(n_obs=80, n_groups=3, random_state=2)
    for name, adata in mdata.mod.items():
        values = np.clip(np.rint(np.abs(adata.X)), 0, 6)
        values[:, 0] = np.arange(80) % 5  # no feature is constant
        mdata.mod[name].X = sparse.csr_matrix(values.astype(np.float32))
    return mdata


@pytest.fixture(scope="module")
def whole_numbers_codes(whole_numbers: MuData) -> np.ndarray:
    settings = {"network": {"n_hidden": (16,), "n_latent": 4, "n_projector": 8}}
    mdata = whole_numbers.copy()
    un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False, **settings)
    return codes(mdata)


@pytest.mark.parametrize(
    ("form", "dtype"),
    [(form, "float64") for form in FORMS]
    + [
        (form, dtype) for form in ("csr_matrix", "dense") for dtype in ("float32", "int64", "uint8")
    ],
)
def test_form_and_dtype_change_nothing(
    whole_numbers: MuData, whole_numbers_codes: np.ndarray, form: str, dtype: str
) -> None:
    mdata = whole_numbers.copy()
    for adata in mdata.mod.values():
        adata.X = FORMS[form](adata.X.toarray().astype(dtype))
    settings = {"network": {"n_hidden": (16,), "n_latent": 4, "n_projector": 8}}
    un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False, **settings)
    np.testing.assert_allclose(codes(mdata), whole_numbers_codes, rtol=1e-4, atol=1e-5)
    for adata in mdata.mod.values():  # as it was
        assert adata.X.dtype == dtype
        assert isinstance(adata.X, np.ndarray if form == "dense" else FORMS[form])
    un.tl.integrate(mdata)
    un.tl.predict_modality(mdata, source="rna", target="adt")
    un.tl.explain(mdata, n_cells=4, n_background=4, progress=False)
    un.tl.explain(mdata, source="rna", target="adt", n_cells=4, n_background=4, progress=False)


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_array])
def test_sparse_stays_sparse(
    paired: MuData, quick: dict[str, Any], form: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is made dense is a mini-batch; no function ever holds a modality as a whole."""
    for adata in paired.mod.values():
        adata.X = form(np.where(adata.X > 0.5, adata.X, 0))
    for module, name in (
        (_setup, "_STATISTICS_BATCH"),
        (_heads, "_FUSION_BATCH"),
        (_train, "_EVALUATION_BATCH"),
        (_matrix, "_SCAN_ROWS"),
        (_model, "_INFERENCE_CELLS"),
    ):
        assert getattr(module, name) >= 1024
        monkeypatch.setattr(module, name, 40)
    monkeypatch.setattr(_noise, "_MAX_CELLS", 40)
    assert 4 * _data._FEW_VALUES == 64 * 2**20  # bytes; what is smaller is made dense
    monkeypatch.setattr(_data, "_FEW_VALUES", 0)
    dense: list[int] = []
    for kind in (sparse.csr_matrix, sparse.csr_array, sparse.csc_matrix, sparse.csc_array):
        plain = kind.toarray

        def watched(self: Any, *args: Any, _plain: Any = plain, **kwargs: Any) -> Any:
            dense.append(self.shape[0])
            return _plain(self, *args, **kwargs)

        monkeypatch.setattr(kind, "toarray", watched)
    un.tl.fit(paired, labels_key="cell_type", **quick)
    un.tl.fit(paired, n_groups=3, key_added="found", **quick)
    un.tl.integrate(paired)
    un.tl.predict_modality(paired, source="rna", target="adt")
    query = paired[:60].copy()
    un.tl.transfer_labels(query, paired, training={"max_epochs": 1}, progress=False)
    un.tl.explain(paired, n_cells=5, n_background=10, progress=False)
    un.tl.explain(paired, source="rna", target="adt", n_cells=5, n_background=10, progress=False)
    assert len(dense) > 20
    assert max(dense) <= 64  # the adaptation's own mini-batches
    assert all(sparse.issparse(paired.mod[name].X) for name in ("rna", "adt"))


def test_layer_and_use_rep_equal_x(paired: MuData, quick: dict[str, Any]) -> None:
    un.tl.fit(paired, labels_key="cell_type", **quick)
    expected = codes(paired)
    for adata in paired.mod.values():
        adata.layers["prepared"] = adata.X.copy()
        adata.obsm["rep"] = adata.X.copy()
        adata.X = np.zeros_like(adata.X)
    un.tl.fit(paired, labels_key="cell_type", layer="prepared", **quick)
    np.testing.assert_array_equal(codes(paired), expected)
    assert un.get.model(paired).info.modalities[0].layer == "prepared"

    un.tl.fit(paired, labels_key="cell_type", use_rep="rep", **quick)
    np.testing.assert_array_equal(codes(paired), expected)
    assert un.get.model(paired).info.modalities[0].features[:2] == ("rep:0", "rep:1")

    mixed = {"layer": {"rna": "prepared"}, "use_rep": {"adt": "rep"}}
    un.tl.fit(paired, labels_key="cell_type", **mixed, **quick)
    np.testing.assert_array_equal(codes(paired), expected)
    assert paired.uns["unitednet"]["params"]["data"]["layer"].tolist() == ["prepared", ""]
    assert paired.uns["unitednet"]["params"]["data"]["use_rep"].tolist() == ["", "rep"]


def test_use_rep_reads_a_table(paired: MuData, quick: dict[str, Any]) -> None:
    """Columns of a DataFrame in `.obsm` are features by name, in whatever order they stand."""
    adata = paired.mod["rna"]
    adata.obsm["pca"] = pd.DataFrame(
        adata.X[:, :5].copy(), index=adata.obs_names, columns=[f"PC{i}" for i in range(5)]
    )
    un.tl.fit(paired, labels_key="cell_type", use_rep={"rna": "pca"}, **quick)
    assert un.get.model(paired).info.modalities[0].features == ("PC0", "PC1", "PC2", "PC3", "PC4")
    expected = codes(paired)
    adata.obsm["pca"] = adata.obsm["pca"][["PC3", "PC1", "PC0", "PC4", "PC2"]]
    np.testing.assert_allclose(codes(paired), expected, atol=1e-6)
    un.tl.predict_modality(paired, source="adt", target="rna")
    assert paired.mod["rna_from_adt"].var["feature"].tolist() == ["PC0", "PC1", "PC2", "PC3", "PC4"]
    un.tl.explain(paired, n_cells=3, n_background=3, progress=False)
    assert "unitednet_relevance" not in paired.mod["rna"].varm  # its features are no variables
    assert paired.mod["adt"].varm["unitednet_relevance"].shape == (20, 3)


def test_a_view_gives_what_its_copy_gives(paired: MuData, quick: dict[str, Any]) -> None:
    some = np.arange(120) % 3 > 0
    real = paired[some].copy()
    un.tl.fit(real, labels_key="cell_type", **quick)
    view = paired[some]
    un.tl.fit(view, labels_key="cell_type", **quick)
    assert distance(weights(view), weights(real)) == 0
    assert not view.is_view
    assert "unitednet" not in paired.uns


def test_one_modality(paired: MuData, quick: dict[str, Any]) -> None:
    un.tl.fit(paired, labels_key="cell_type", modalities=["adt"], **quick)
    history = un.get.history(paired)
    assert not {"train_translation", "train_contrastive"} & set(history)
    assert un.get.modality_weights(paired)["weight"].to_dict() == {"adt": 1.0}
    un.tl.integrate(paired)
    np.testing.assert_array_equal(paired.obsm["X_unitednet"], paired.mod["adt"].obsm["X_unitednet"])
    assert "X_unitednet" not in paired.mod["rna"].obsm
    un.tl.explain(paired, n_cells=3, n_background=3, progress=False)


def test_three_modalities_of_different_kinds(quick: dict[str, Any]) -> None:
    mdata = un.datasets.simulate_multimodal(
        n_obs=100,
        n_groups=3,
        n_vars={"rna": 20, "adt": 12, "atac": 16},
        values={"atac": "binary"},
        random_state=1,
    )
    un.tl.fit(mdata, labels_key="cell_type", **quick)
    assert [spec.likelihood for spec in un.get.model(mdata).info.modalities] == [
        "gaussian",
        "gaussian",
        "binary",
    ]
    assert len(un.get.modality_weights(mdata)) == 3
    un.tl.predict_modality(mdata, source=["rna", "adt"], target="atac")
    values = mdata.mod["atac_from_rna+adt"].X
    assert values.min() > 0
    assert values.max() < 1
    assert np.isfinite(mdata.mod["atac_from_rna+adt"].var["expected_r"].dropna()).all()


def test_likelihood_can_be_chosen(quick: dict[str, Any]) -> None:
    mdata = un.datasets.simulate_multimodal(
        n_obs=80, n_groups=2, values={"adt": "binary"}, random_state=1
    )
    longer = {**quick, "training": {**quick["training"], "max_epochs": 40}}
    un.tl.fit(mdata, labels_key="cell_type", likelihood={"adt": "gaussian"}, **longer)
    assert un.get.model(mdata).info.modalities[1].likelihood == "gaussian"
    un.tl.predict_modality(mdata, source="rna", target="adt")
    found = mdata.mod["adt_from_rna"].X
    assert found.min() < 0 or found.max() > 1  # a mean is not bound to probabilities


def test_predicted_modalities_are_never_trained_on(fitted: MuData, quick: dict[str, Any]) -> None:
    un.tl.predict_modality(fitted, source="rna", target="adt")
    un.tl.fit(fitted, labels_key="cell_type", **quick)
    assert un.get.model(fitted).modality_names == ["rna", "adt"]


def test_training_again_replaces_all_that_was_stored(fitted: MuData, quick: dict[str, Any]) -> None:
    un.tl.explain(fitted, n_cells=3, n_background=3, progress=False)
    assert "relevance" in fitted.uns["unitednet"]
    un.tl.fit(fitted, n_groups=2, **quick)
    assert "relevance" not in fitted.uns["unitednet"]
    assert fitted.uns["unitednet"]["groups"].tolist() == ["0", "1"]


def test_refit_trains_on_all_cells(paired: MuData, quick: dict[str, Any]) -> None:
    """Once more, without held-out cells; what those said about confidence and accuracy is kept."""
    once = paired.copy()
    un.tl.fit(once, labels_key="cell_type", **quick)
    quick["training"]["refit"] = None
    un.tl.fit(paired, labels_key="cell_type", **quick)
    first, history = un.get.history(once), un.get.history(paired)
    assert history["phase"].tolist() == ["train"] * 3 + ["refit train"] * 3
    assert history["val_total"].notna().tolist() == [True] * 3 + [False] * 3
    assert history["val_total"].tolist()[:3] == first["val_total"].tolist()
    model, before = un.get.model(paired), un.get.model(once)
    assert model.info.training.validation_fraction == 0.1
    assert float(model.network.temperature) == float(before.network.temperature)
    for name, scores in before.accuracy.items():
        np.testing.assert_array_equal(model.accuracy[name][:2], scores[:2])
        assert (model.accuracy[name][2] <= scores[2]).all()
        assert (model.accuracy[name][3] >= scores[3]).all()
    everyone = np.asarray(paired["rna"].X).mean(0)
    np.testing.assert_allclose(model.network.standardisers[0].mean, everyone, rtol=1e-4, atol=1e-6)
    some = before.network.standardisers[0].mean.numpy()
    assert not np.allclose(some, everyone, rtol=1e-4, atol=1e-6)


def test_only_groups_teach_the_fusion_weights(paired: MuData, quick: dict[str, Any]) -> None:
    quick["training"]["loss_weights"] = {"cross_entropy": 0.0}
    un.tl.fit(paired, labels_key="cell_type", **quick)
    weights = un.get.model(paired).modality_weights()
    np.testing.assert_allclose(weights, 1 / len(weights), atol=1e-7)
    quick["training"]["loss_weights"] = {}
    un.tl.fit(paired, labels_key="cell_type", **quick)
    weights = un.get.model(paired).modality_weights()
    assert not np.allclose(weights, 1 / len(weights), atol=1e-6)


def test_a_continued_model_keeps_what_was_measured_before(quick: dict[str, Any]) -> None:
    """Cells held out now may have been trained on; batches seen before stay measured."""
    mdata = un.datasets.simulate_multimodal(n_obs=300, n_groups=3, n_batches=2, random_state=2)
    un.tl.fit(mdata, labels_key="cell_type", batch_key="batch", **quick)
    before = un.get.model(mdata)
    one = mdata[(mdata.obs["batch"] == "batch0").to_numpy()].copy()
    del one.mod["adt"]
    with quiet_update():
        one.update()
    del quick["network"]
    un.tl.fit(one, model=before, **quick)
    after = un.get.model(one)
    assert after.info.batch_measured == before.info.batch_measured == ((True, True),) * 2
    assert float(after.network.temperature) == float(before.network.temperature)
    assert before.accuracy.keys() == after.accuracy.keys()
    for name, values in before.accuracy.items():
        np.testing.assert_array_equal(after.accuracy[name], values)


@pytest.mark.parametrize("fraction", [0.0, 0.2])
def test_training_that_diverges_is_an_error(
    paired: MuData, quick: dict[str, Any], fraction: float
) -> None:
    quick["training"] |= {"learning_rate": 1e12, "validation_fraction": fraction}
    with pytest.raises(RuntimeError, match=r"training diverged.*Lower learning_rate"):
        un.tl.fit(paired, labels_key="cell_type", **quick)
    assert "unitednet" not in paired.uns


@pytest.mark.parametrize("start", ["random", "kmeans"])
def test_only_leiden_finds_the_number_of_groups(
    paired: MuData, quick: dict[str, Any], start: str
) -> None:
    quick["training"]["start"] = start
    with pytest.raises(ValueError, match=f"start='{start}' cannot find how many groups"):
        un.tl.fit(paired, **quick)
    un.tl.fit(paired, n_groups=3, **quick)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training": {"patience": 20.5}}, "TrainingConfig.patience: expected int, found 20.5"),
        ({"training": {"refit": 0}}, "TrainingConfig.refit: expected bool or None, found 0"),
        ({"network": {"batch_norm": 1}}, "NetworkConfig.batch_norm: expected bool, found 1"),
    ],
    ids=str,
)
def test_settings_of_another_type_are_refused(
    paired: MuData, settings: dict[str, Any], message: str
) -> None:
    """A model with such settings could not be read again."""
    with pytest.raises(ValueError, match=message):
        un.tl.fit(paired, labels_key="cell_type", progress=False, **settings)


def test_settings_may_be_numbers_of_numpy(paired: MuData, quick: dict[str, Any]) -> None:
    quick["network"]["n_latent"] = np.int64(8)
    quick["network"]["n_hidden"] = np.array([32])
    quick["training"] |= {
        "learning_rate": np.float32(0.004),
        "max_epochs": np.int64(2),
        "refit": np.bool_(False),
        "loss_weights": {"contrastive": np.float64(0.5)},
    }
    un.tl.fit(paired, labels_key="cell_type", **quick)
    un.tl.integrate(paired)
    assert un.get.model(paired).info.training.loss_weights["contrastive"] == 0.5


def test_no_label_is_held_out_whole(paired: MuData) -> None:
    """It would be learned from no cell, and be among the groups all the same."""
    data = open_dataset(paired, [describe_modality(paired, "rna", None, None, None)])
    data.labels = np.zeros(len(data), np.int64)
    data.labels[[3, 5, 7]] = 1, 2, 2
    for seed in range(60):
        train, held_out = split_cells(data, 0.5, seed)
        assert {0, 1, 2} == set(data.labels[train])
        assert len(train) + len(held_out) == len(data)
        assert len(np.intersect1d(train, held_out)) == 0


def test_batches_that_a_continued_model_does_not_know(quick: dict[str, Any]) -> None:
    mdata = un.datasets.simulate_multimodal(n_obs=120, n_groups=3, n_batches=2, random_state=2)
    un.tl.fit(mdata, labels_key="cell_type", batch_key="batch", **quick)
    other = mdata.copy()
    other.obs["batch"] = other.obs["batch"].cat.rename_categories({"batch1": "new"})
    n = int((other.obs["batch"] == "new").sum())
    with pytest.warns(UserWarning, match=rf"{n} cells are of batches .* \(\['new'\]\)"):
        un.tl.fit(other, model=un.get.model(mdata), training=quick["training"], progress=False)
    assert un.get.model(other).info.batches == ("batch0", "batch1")


def test_refit_repeats_the_first_training(quick: dict[str, Any]) -> None:
    """The same mini-batches and the same epochs in each phase, whatever the number of cells."""
    mdata = un.datasets.simulate_multimodal(n_obs=1500, n_groups=3, random_state=1)
    quick["training"] = {"max_epochs": 5, "warmup": 0.4}
    un.tl.fit(mdata, n_groups=3, **quick)
    history = un.get.history(mdata)
    epochs = history["phase"].value_counts()
    assert epochs["warmup"] == epochs["refit warmup"] == 2
    assert epochs["train"] == epochs["refit train"] == 3


def test_a_binary_modality_stays_binary(quick: dict[str, Any]) -> None:
    mdata = un.datasets.simulate_multimodal(n_obs=120, n_groups=3, random_state=1)
    mdata["adt"].X = (mdata["adt"].X > 0).astype(np.float32)
    un.tl.fit(mdata, labels_key="cell_type", **quick)
    other = mdata.copy()
    other["adt"].X = other["adt"].X - 0.5
    for function in (un.tl.integrate, un.tl.fit):
        with pytest.raises(ValueError, match=r"'adt': expected values 0 and 1 only"):
            function(other, model=un.get.model(mdata))


@pytest.mark.parametrize(("precision", "during"), [("32", "highest"), ("bf16", "medium")])
def test_precision_is_that_of_products_during_the_fit_only(
    precision: Any, during: str, paired: MuData, quick: dict[str, Any], monkeypatch: Any
) -> None:
    seen = set()
    backward = Optimiser.backward

    def watched(self: Optimiser, *values: torch.Tensor) -> torch.Tensor:
        seen.add(torch.get_float32_matmul_precision())
        return backward(self, *values)

    monkeypatch.setattr(Optimiser, "backward", watched)
    un.tl.fit(paired, labels_key="cell_type", precision=precision, **quick)
    assert seen == {during}
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("library", ["cuda", "mkldnn"])
def test_precision_where_the_caller_has_torchs_newer_settings(
    library: str, precision: Any, paired: MuData, quick: dict[str, Any]
) -> None:
    """They do not mix with the older one, which cannot even be read then."""
    backends: Any = torch.backends
    settings = {name: getattr(backends, name).matmul for name in ("cuda", "mkldnn")}
    if not hasattr(settings["cuda"], "fp32_precision"):
        pytest.skip("this torch has the older setting only")
    before = {name: one.fp32_precision for name, one in settings.items()}
    try:
        settings[library].fp32_precision = "tf32"
        theirs = {name: one.fp32_precision for name, one in settings.items()}
        un.tl.fit(paired, labels_key="cell_type", precision=precision, **quick)
        assert {name: one.fp32_precision for name, one in settings.items()} == theirs
    finally:
        for name, one in settings.items():
            one.fp32_precision = before[name]
    assert torch.get_float32_matmul_precision() == "highest"


def test_an_unknown_precision_is_refused(paired: MuData, quick: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="precision: expected '32' or 'bf16', found '16'"):
        un.tl.fit(paired, labels_key="cell_type", precision="16", **quick)  # type: ignore[arg-type]
    assert "unitednet" not in paired.uns


def test_values_stored_in_parts_are_added(quick: dict[str, Any]) -> None:
    """A sparse matrix may hold a value as several that add up to it."""
    models = []
    for parts in (1, 2):
        mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2, random_state=1)
        whole = sparse.csr_matrix(np.round(mdata["rna"].X), dtype=np.float64)
        if parts == 2:
            data, indices = np.repeat(whole.data / 2, 2), np.repeat(whole.indices, 2)
            whole = sparse.csr_matrix((data, indices, whole.indptr * 2), shape=whole.shape)
        mdata["rna"].X = whole
        un.tl.fit(mdata, labels_key="cell_type", **quick)
        models.append(un.get.model(mdata).network.state_dict())
        assert mdata["rna"].X.nnz == whole.nnz  # the caller's matrix stays as it is
    for name, values in models[0].items():
        torch.testing.assert_close(models[1][name], values, msg=name)


def test_nothing_is_refitted_where_nothing_was_held_out(quick: dict[str, Any]) -> None:
    mdata = un.datasets.simulate_multimodal(n_obs=40, n_groups=2, random_state=1)
    quick["training"] |= {"validation_fraction": 0.01, "refit": True}  # of 40 cells none
    un.tl.fit(mdata, labels_key="cell_type", **quick)
    assert not un.get.history(mdata)["phase"].str.startswith("refit").any()
