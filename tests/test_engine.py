"""The training engine against plain autograd on dense tensors: losses, gradients, statistics."""

from __future__ import annotations

import copy
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional as F

from unitednet_mu import _values
from unitednet_mu._config import NetworkConfig, TrainingConfig
from unitednet_mu._data import Batch, Dataset, Source
from unitednet_mu._matrix import ModalitySpec
from unitednet_mu._network import Dropout, ModalityShape, Standardiser, UnitedNetwork
from unitednet_mu._optimise import Optimiser, RunningAverage
from unitednet_mu._ranks import Ranks
from unitednet_mu._setup import set_statistics
from unitednet_mu._tasks import Tasks
from unitednet_mu._values import SparseRows
from unitednet_mu._wide import Wide, log_partition, squared_errors

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

from _plain_loop import discriminator_loss, generator_loss, prediction_loss

CPU = torch.device("cpu")
N, WIDTHS = 90, {"atac": 170, "rna": 60, "levels": 130}
KINDS = {"atac": "binary", "rna": "gaussian", "levels": "gaussian"}


@pytest.fixture
def sparse_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse products however few the values are, and blocks of few rows."""
    monkeypatch.setattr(_values, "_FEWEST_VALUES", 0)
    monkeypatch.setattr(_values, "_CPU_BLOCK", 17 * 170)


def dataset(*, missing: bool, names: tuple[str, ...] = ("atac", "rna", "levels")) -> Dataset:
    """Cells with a sparse binary, a dense and a sparse continuous modality, in three batches."""
    rng = np.random.default_rng(0)
    filled = {name: rng.random((N, width)) < 0.08 for name, width in WIDTHS.items()}
    values = {
        "atac": sparse.csr_matrix(filled["atac"].astype(np.float32)),
        "rna": rng.normal(2, 3, (N, WIDTHS["rna"])).astype(np.float32),
        "levels": sparse.csr_matrix(filled["levels"] * rng.gamma(2, 1, filled["levels"].shape)),
    }
    sources = []
    for name in names:
        rows = np.arange(N)
        if missing:
            rows = np.where(rng.random(N) < 0.3, -1, rows)
        features = tuple(f"{name}{i}" for i in range(WIDTHS[name]))
        sources.append(Source(ModalitySpec(name, features, KINDS[name]), values[name], rows))  # type: ignore[arg-type]
    labels = rng.integers(-1, 3, N)
    return Dataset(pd.RangeIndex(N).astype(str), sources, labels, rng.integers(-1, 3, N))


def network_for(data: Dataset, n_batches: int = 0, **changed: Any) -> UnitedNetwork:
    shapes = [ModalityShape(len(s.spec.features), s.spec.likelihood) for s in data.sources]
    settings = {"n_hidden": (16, 12), "n_latent": 6, "input_dropout": 0.0, "dropout": 0.0}
    settings |= {"activation": "softplus"}  # without a kink, where rounding would turn a slope
    torch.manual_seed(0)
    network = UnitedNetwork(shapes, 3, n_batches, NetworkConfig(**(settings | changed)))  # type: ignore[arg-type]
    set_statistics(network, data, np.arange(len(data)))
    return network.train()


def dense(batch: Batch) -> Batch:
    """The same mini-batch, nothing sparse."""
    x = [one.dense() if isinstance(one, SparseRows) else one for one in batch.x]
    return dataclasses.replace(batch, x=x, complete=False)


def plain_terms(tasks: Tasks, batch: Batch) -> dict[str, torch.Tensor]:
    """Label-free terms by dense autograd, straight from their definition."""
    network, codes, observed = tasks.network, *tasks.codes(batch)
    fused = network.fusion(codes, observed | ~observed.any(1, keepdim=True), learn=False)
    terms: dict[str, list[torch.Tensor]] = {}
    for target, x in enumerate(batch.x):
        kind, rows = network.shapes[target].likelihood, batch.rows[target]
        real = x if kind == "binary" else network.standardisers[target](x)
        seen = [observed[rows, s] for s in range(len(batch.x))] + [observed[rows].any(1)]
        code = [codes[rows, s][seen[s]] for s in range(len(batch.x))] + [fused[rows][seen[-1]]]
        one_hot = network.one_hot(batch.batches[rows])
        conditions = None if one_hot is None else torch.cat([one_hot[here] for here in seen])
        decoded = network.decode(target, torch.cat(code), conditions).split([len(c) for c in code])
        for source, (predictor, here) in enumerate(zip(decoded, seen, strict=True)):
            name = "reconstruction" if source == target else "translation"
            terms.setdefault(name, []).append(prediction_loss(predictor, real[here], kind))
            if source < len(batch.x) and network.discriminators:
                visible = torch.sigmoid(predictor) if kind == "binary" else predictor
                score = network.discriminators[target](visible)
                terms.setdefault("generator", []).append(generator_loss(score))
    return {name: torch.stack(values).mean() for name, values in terms.items()}


def plain_discrimination(tasks: Tasks, batch: Batch) -> torch.Tensor:
    network, losses = tasks.network, []
    with torch.no_grad():
        codes, observed = tasks.codes(batch)
    for target, x in enumerate(batch.x):
        kind, rows = network.shapes[target].likelihood, batch.rows[target]
        real = x if kind == "binary" else network.standardisers[target](x)
        seen = [observed[rows, s] for s in range(len(batch.x))]
        one_hot = network.one_hot(batch.batches[rows])
        with torch.no_grad():
            decoded = [
                network.decode(
                    target, codes[rows, s][here], None if one_hot is None else one_hot[here]
                )
                for s, here in enumerate(seen)
            ]
            fakes = [torch.sigmoid(p) if kind == "binary" else p for p in decoded]
        for fake, here in zip(fakes, seen, strict=True):
            judge = network.discriminators[target]
            losses.append(discriminator_loss(judge(real[here]), judge(fake)))
    return torch.stack(losses).mean()


def gradients(network: UnitedNetwork, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def assert_close(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Equal but for rounding; what batch normalisation takes out again has a gradient of zero."""
    assert set(one) == set(other)
    largest = max(float(value.abs().max()) for value in other.values())
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=2e-4, atol=3e-6 * largest)


@pytest.mark.usefixtures("sparse_everywhere")
@pytest.mark.parametrize("missing", [False, True], ids=["complete", "mosaic"])
@pytest.mark.parametrize("n_batches", [0, 3])
@pytest.mark.parametrize("n_hidden", [(16, 12), (600, 300)], ids=["quadratic form", "decoded"])
@pytest.mark.parametrize("judged", [True, False], ids=["discriminators", ""])
def test_label_free_terms_and_gradients(
    missing: bool, n_batches: int, n_hidden: tuple[int, ...], judged: bool
) -> None:
    data = dataset(missing=missing)
    network = network_for(data, n_batches, n_hidden=n_hidden, discriminators=judged)
    weights = {"contrastive": 0, "generator": 0.7, "translation": 0.4, "reconstruction": 1.3}
    config = TrainingConfig(loss_weights=weights, modality_dropout=0.0)
    batch = data.batch(np.random.default_rng(1).permutation(N)[:70], CPU)
    assert isinstance(batch.x[0], SparseRows) and isinstance(batch.x[2], SparseRows)
    assert batch.complete is not missing
    plain = copy.deepcopy(network)

    tasks = Tasks(network, config, torch.ones(3))
    total, terms = tasks.label_free(batch, *tasks.codes(batch))
    found = gradients(network, total)

    reference = Tasks(plain, config, torch.ones(3))
    expected = plain_terms(reference, dense(batch))
    assert set(terms) == set(expected)
    assert set(terms) == {"reconstruction", "translation"} | ({"generator"} if judged else set())
    assert not any(value.requires_grad for value in terms.values())
    assert_close(terms, {name: value.detach() for name, value in expected.items()})
    assert total.item() == pytest.approx(reference.total(expected).item(), rel=1e-5)
    of_plain = gradients(plain, reference.total(expected))
    own = {name for name in of_plain if not name.startswith("discriminators")}
    assert_close({n: found[n] for n in own}, {n: of_plain[n] for n in own})
    assert_close(dict(network.named_buffers()), dict(plain.named_buffers()))


@pytest.mark.usefixtures("sparse_everywhere")
@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize("n_hidden", [(16, 12), (600, 300)], ids=["quadratic form", "decoded"])
def test_frozen_decoders_have_no_gradients(frozen: str, n_hidden: tuple[int, ...]) -> None:
    """What does not require a gradient has none, and the rest that of dense autograd."""
    data = dataset(missing=True)
    network = network_for(data, n_hidden=n_hidden)
    for decoder in network.decoders:
        getattr(decoder.wide, frozen).requires_grad_(False)
    config = TrainingConfig(loss_weights={"contrastive": 0}, modality_dropout=0.0)
    batch = data.batch(np.arange(70), CPU)
    reference = Tasks(copy.deepcopy(network), config, torch.ones(3))
    tasks = Tasks(network, config, torch.ones(3))
    found = gradients(network, tasks.label_free(batch, *tasks.codes(batch))[0])
    expected = plain_terms(reference, dense(batch))
    of_plain = gradients(reference.network, reference.total(expected))
    assert not any(f"wide.{frozen}" in name for name in found if name.startswith("decoders"))
    assert_close(found, of_plain)


@pytest.mark.usefixtures("sparse_everywhere")
@pytest.mark.parametrize("missing", [False, True], ids=["complete", "mosaic"])
@pytest.mark.parametrize("n_hidden", [(16, 12), (400, 300)], ids=["one map", "decoded"])
def test_discriminators(missing: bool, n_hidden: tuple[int, ...]) -> None:
    data = dataset(missing=missing)
    network = network_for(data, 3, n_hidden=n_hidden, discriminators=True)
    batch = data.batch(np.arange(60), CPU)
    plain = copy.deepcopy(network)
    tasks, reference = (Tasks(one, TrainingConfig(), torch.ones(3)) for one in (network, plain))
    loss = tasks.discrimination(batch)["discriminator"]
    expected = plain_discrimination(reference, dense(batch))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    found = gradients(network, loss)
    assert {name.split(".")[0] for name in found} == {"discriminators"}
    assert_close(found, gradients(plain, expected))
    assert_close(dict(network.named_buffers()), dict(plain.named_buffers()))


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_running_average_is_of_the_steps_alone(decay: float) -> None:
    """Each step weighs the decay to the power of its age; what was before few does not count."""
    network = network_for(dataset(missing=False))
    averaged = RunningAverage(network, decay, 4)
    steps, shares = (3.0, -1.0, 7.0, 4.0), decay ** np.arange(3, -1, -1.0)
    for value in steps:
        for parameter in network.parameters():
            parameter.data.fill_(value)
        network.standardisers[0].mean.fill_(2 * value)
        averaged.update()
    expected = float(np.average(steps, weights=shares))
    for parameter in averaged.network.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected))
    mean = averaged.network.standardisers[0].mean
    torch.testing.assert_close(mean, torch.full_like(mean, 2 * expected))


def test_the_running_average_of_many_steps_begins_with_the_network() -> None:
    network = network_for(dataset(missing=False))
    weight = network.decoders[0].wide.weight
    before = weight.detach().clone()
    averaged = RunningAverage(network, 0.9, 29)  # 0.9 to the power of 28 is above a twentieth
    weight.data.fill_(1.0)
    averaged.update()
    kept = averaged.network.decoders[0].wide.weight
    torch.testing.assert_close(kept, 0.9 * before + 0.1)


@pytest.mark.usefixtures("sparse_everywhere")
def test_a_network_that_does_not_learn_is_judged_alike() -> None:
    """Held-out cells are judged by averaged weights, which have no gradients."""
    data = dataset(missing=True)
    network = network_for(data, discriminators=True).eval()
    frozen = copy.deepcopy(network).requires_grad_(False)
    batch = data.batch(np.arange(50), CPU)
    one, other = (Tasks(n, TrainingConfig(), torch.ones(3)) for n in (network, frozen))
    _, terms = one.label_free(batch, *one.codes(batch))
    with torch.no_grad():
        _, of_frozen = other.label_free(batch, *other.codes(batch))
    assert_close(of_frozen, terms)


@pytest.mark.usefixtures("sparse_everywhere")
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_codes_of_sparse_rows(share: float) -> None:
    """The same draws drop the same values, whether rows are sparse or dense."""
    data = dataset(missing=False)
    network = network_for(data, input_dropout=share)
    plain = copy.deepcopy(network)
    batch = data.batch(np.arange(40), CPU)
    both = []
    for one, what in ((network, batch), (plain, dense(batch))):
        torch.manual_seed(3)
        codes, _ = Tasks(one, TrainingConfig(), None).codes(what)
        both.append((codes.detach(), gradients(one, (codes**2).sum()), torch.rand(1)))
    (codes, found, drawn), (expected, of_plain, as_many) = both
    torch.testing.assert_close(codes, expected, rtol=1e-4, atol=1e-4)
    assert_close(found, of_plain)
    assert drawn == as_many


def test_features_far_from_zero_are_standardised_first() -> None:
    """Where most digits would be lost, sparse rows are made dense."""
    standardiser = Standardiser(4)
    standardiser.mean.copy_(torch.tensor([1e4, 0, 0, 0]))
    x = SparseRows(sparse.csr_matrix(np.array([[1e4 + 1, 0, 0, 2.0]], np.float32)))
    read = standardiser.read(x)
    assert isinstance(read, torch.Tensor)
    torch.testing.assert_close(read, torch.tensor([[1.0, 0, 0, 2]]))
    standardiser.mean[0] = 10
    read = standardiser.read(x)
    assert isinstance(read, SparseRows)
    torch.testing.assert_close(read.dense(), torch.tensor([[1e4 - 9, 0, 0, 2]]))


def test_what_is_kept_sparse() -> None:
    """Large and sparse blocks are; small ones, and those that are filled, are not."""
    rng = np.random.default_rng(0)

    def kept(n_cells: int, filled: float) -> bool:
        matrix = sparse.random(n_cells, 2000, filled, "csr", np.float32, rng)
        features = tuple(str(i) for i in range(2000))
        source = Source(ModalitySpec("a", features, "gaussian"), matrix, np.arange(n_cells))
        data = Dataset(pd.RangeIndex(n_cells).astype(str), [source])
        x = data.batch(np.arange(n_cells), CPU).x[0]
        values = x.dense() if isinstance(x, SparseRows) else x
        np.testing.assert_array_equal(values, matrix.toarray())  # type: ignore[arg-type]
        return isinstance(x, SparseRows)

    assert kept(200, 0.1)
    assert not kept(200, 0.3)
    assert not kept(20, 0.1)


def test_log_partition_of_extreme_logits() -> None:
    """Exact to rounding far from 0 on both sides, for any number of features."""
    for n_features in (1, 63, 64, 200):
        p = torch.linspace(-120, 120, 5 * n_features).view(5, n_features)
        wide = Wide(torch.eye(5), p.T.contiguous(), torch.zeros(n_features))
        none = torch.zeros(5)
        total, values, _ = log_partition(wide, torch.ones(5), None, none, 0)
        torch.testing.assert_close(values, F.softplus(p).sum(1), rtol=1e-6, atol=1e-4)
        assert float(total) == pytest.approx(float(values.sum()), rel=1e-6)


def test_squared_errors_keep_their_digits_near_a_perfect_fit() -> None:
    """At 0.1 % of the variance left over, the quadratic form still has three digits."""
    torch.manual_seed(0)
    wide = Wide(torch.randn(50, 8), torch.randn(3000, 8), torch.randn(3000))
    x = wide.decoded() + 0.03 * 3 * torch.randn(50, 3000)
    found = squared_errors(wide, x, lambda rows: rows, lambda rows: rows)
    expected = (wide.decoded() - x).square().sum(1)
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=0)


def test_dropout_draws_are_one_stream() -> None:
    """The bytes that sparse rows read are those that the layer itself would have read."""
    layer = Dropout(0.3).train()
    torch.manual_seed(0)
    dropped = layer(torch.ones(7, 9))
    torch.manual_seed(0)
    draws, kept = layer.draws((7, 9))
    torch.testing.assert_close(dropped, (draws < kept).float() * 256 / kept)


def test_gradients_keep_their_memory_only_where_something_was_added() -> None:
    """Large ones start from zeros at the next step; of what did not learn there is none."""
    used, unused = (nn.Parameter(torch.ones(300, 300)) for _ in range(2))
    optimiser = Optimiser([used, unused], TrainingConfig(gradient_clip=1e9), Ranks())
    optimiser.backward((used + unused).sum(), torch.zeros(1))
    memory = used.grad
    assert memory is not None and unused.grad is not None
    optimiser.backward(3 * used.sum(), torch.zeros(1))
    assert used.grad is memory and unused.grad is None
    torch.testing.assert_close(memory, torch.full((300, 300), 3.0))


# ------------------------------------------------------------------ what it is compared with


def test_plain_losses_by_hand(rng: np.random.Generator) -> None:
    p, x = torch.from_numpy(rng.normal(size=(2, 13, 5)) * 3)
    expected = sum((p.numpy() - x.numpy()).ravel() ** 2) / (13 * 5)
    assert float(prediction_loss(p, x, "gaussian")) == pytest.approx(expected)
    ones, share = (x.numpy() > 0).astype(float), 1 / (1 + np.exp(-p.numpy()))
    expected = -np.mean(ones * np.log(share) + (1 - ones) * np.log(1 - share))
    found = prediction_loss(p, torch.from_numpy(ones), "binary")
    assert float(found) == pytest.approx(expected)
    real, fake = p.numpy(), x.numpy()
    judged = (np.mean((real - 1) ** 2) + np.mean(fake**2)) / 2
    assert float(discriminator_loss(p, x)) == pytest.approx(judged)
    assert float(generator_loss(x)) == pytest.approx(np.mean((fake - 1) ** 2))
