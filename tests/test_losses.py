"""Each loss term against the same thing computed by hand, in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mudata import MuData
from scipy.special import log_softmax, logsumexp
from torch.nn import functional as F

import unitednet_mu as un
from unitednet_mu import _losses
from unitednet_mu._config import LOSS_WEIGHTS, NetworkConfig, TrainingConfig
from unitednet_mu._network import ModalityShape, UnitedNetwork
from unitednet_mu._open import describe_modality, open_dataset
from unitednet_mu._tasks import Tasks
from unitednet_mu._train import Trainer

N, K, D = 13, 4, 5


def as_tensor(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(x, dtype=np.float64))


def finite_with_gradient(loss: torch.Tensor, *inputs: torch.Tensor) -> None:
    assert bool(torch.isfinite(loss))
    for gradient in torch.autograd.grad(loss, inputs):
        assert bool(torch.isfinite(gradient).all())


# ------------------------------------------------------------------ contrastive


def contrastive(a: np.ndarray, b: np.ndarray, groups: np.ndarray, temperature: float) -> float:
    """Cell by cell: the own pair against the pairs with cells of other groups."""
    losses = []
    for first, second in ((a, b), (b, a)):
        for i in range(len(a)):
            own = first[i] @ second[i] / np.linalg.norm(first[i]) / np.linalg.norm(second[i])
            others = [
                first[i] @ second[j] / np.linalg.norm(first[i]) / np.linalg.norm(second[j])
                for j in range(len(a))
                if j != i and (groups[i] != groups[j] or groups[i] < 0)
            ]
            scores = np.array([own, *others]) / temperature
            losses.append(logsumexp(scores) - scores[0])
    return float(np.mean(losses))


@pytest.mark.parametrize(
    "groups",
    [
        [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2],
        [-1] * N,
        [0, -1, 0, -1, 1, -1, 2, -1, 1, 1, -1, -1, 0],
        list(range(N)),
    ],
    ids=["known", "unknown", "some unknown", "all different"],
)
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_contrastive(rng: np.random.Generator, groups: list[int], temperature: float) -> None:
    a, b = rng.normal(size=(N, D)), rng.normal(size=(N, D))
    found = _losses.contrastive_loss(as_tensor(a), as_tensor(b), torch.tensor(groups), temperature)
    assert float(found) == pytest.approx(contrastive(a, b, np.array(groups), temperature))


@pytest.mark.parametrize("groups", [[-1] * N, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, -1, -1]])
@pytest.mark.parametrize("shared", [0.0, 0.5, 0.8, 1.5, 4.0])
def test_fitted_temperature_has_the_smallest_loss(
    rng: np.random.Generator, groups: list[int], shared: float
) -> None:
    both = shared * rng.normal(size=(N, D))
    a, b = both + rng.normal(size=(N, D)), both + rng.normal(size=(N, D))
    tried = np.geomspace(0.1, 1, 100)
    losses = [contrastive(a, b, np.array(groups), t) for t in tried]
    inputs = [as_tensor(values).requires_grad_() for values in (a, b)]
    known = torch.tensor(groups)
    same = (known[:, None] == known[None, :]) & (known[:, None] >= 0)
    same.fill_diagonal_(False)
    cosines = F.normalize(inputs[0], dim=1) @ F.normalize(inputs[1], dim=1).T
    temperature = _losses.fitted_temperature(cosines, same)
    assert float(temperature) == pytest.approx(tried[np.argmin(losses)], rel=0.06)
    found = _losses.contrastive_loss(*inputs, known, None)
    fixed = _losses.contrastive_loss(*inputs, known, float(temperature))
    torch.testing.assert_close(found, fixed)
    for one, other in zip(
        torch.autograd.grad(found, inputs), torch.autograd.grad(fixed, inputs), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_fitted_temperature_of_what_is_shared_and_of_noise() -> None:
    """Where all is shared it is the paper's, exactly."""
    same = torch.zeros(N, N, dtype=torch.bool)
    assert float(_losses.fitted_temperature(torch.eye(N), same)) == pytest.approx(0.1)
    assert float(_losses.fitted_temperature(-torch.eye(N), same)) == pytest.approx(1, rel=0.04)


def test_contrastive_reads_directions_only(rng: np.random.Generator) -> None:
    a, b = as_tensor(rng.normal(size=(N, D))), as_tensor(rng.normal(size=(N, D)))
    groups = torch.arange(N)
    found = _losses.contrastive_loss(a, b, groups, 0.1)
    scaled = _losses.contrastive_loss(a * 7, b * 0.01, groups, 0.1)
    assert float(found) == pytest.approx(float(scaled))
    assert float(_losses.contrastive_loss(a, a, groups, 0.01)) < 1e-3 < float(found)


def test_cells_of_one_group_do_not_repel(rng: np.random.Generator) -> None:
    a = torch.tensor(rng.normal(size=(N, D)), requires_grad=True)
    b = torch.tensor(rng.normal(size=(N, D)), requires_grad=True)
    loss = _losses.contrastive_loss(a, b, torch.zeros(N, dtype=torch.long), 0.1)
    assert float(loss.detach()) == 0
    finite_with_gradient(loss, a, b)


def test_contrastive_of_a_zero_code(rng: np.random.Generator) -> None:
    a = torch.tensor(rng.normal(size=(N, D)))
    a[0] = 0
    a.requires_grad_()
    finite_with_gradient(_losses.contrastive_loss(a, a, torch.arange(N), 0.1), a)


# ------------------------------------------------------------------ cross-entropy


def test_cross_entropy_is_balanced_and_skips_the_unlabelled(rng: np.random.Generator) -> None:
    logits = rng.normal(size=(N, K))
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 2, -1, -1, 3, -1, 0])
    weights = np.array([0.2, 1.0, 2.0, 0.7])
    log_p = log_softmax(logits, axis=1)
    known = labels >= 0
    weight = weights[labels[known]]
    expected = -(weight * log_p[known, labels[known]]).sum() / weight.sum()
    found = _losses.cross_entropy_loss(as_tensor(logits), torch.tensor(labels), as_tensor(weights))
    assert float(found) == pytest.approx(expected)
    changed = logits.copy()
    changed[~known] += 100
    again = _losses.cross_entropy_loss(as_tensor(changed), torch.tensor(labels), as_tensor(weights))
    assert float(again) == float(found)


def test_no_labelled_cell_is_no_loss() -> None:
    logits = torch.randn(N, K, requires_grad=True, generator=torch.Generator().manual_seed(0))
    loss = _losses.cross_entropy_loss(logits, torch.full((N,), -1), torch.ones(K))
    assert float(loss.detach()) == 0
    assert float(torch.autograd.grad(loss, logits)[0].abs().max()) == 0


def test_a_class_of_weight_zero_is_no_label() -> None:
    """Where the only labelled cells are of a class that training never saw, there is no loss."""
    logits = torch.randn(N, K, requires_grad=True, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([1.0, 0.0, 1.0, 1.0])
    labels = torch.full((N,), -1)
    labels[:3] = 1
    loss = _losses.cross_entropy_loss(logits, labels, weights)
    assert float(loss.detach()) == 0
    finite_with_gradient(loss, logits)


def test_class_weights_make_classes_count_alike(paired: MuData, quick: dict[str, Any]) -> None:
    """Weights are inverse to classes' frequencies among training cells; unused ones weigh 0."""
    specs = [describe_modality(paired, name, None, None, None) for name in ("rna", "adt")]
    data = open_dataset(paired, specs)
    data.labels = np.repeat([0, 1, 3, -1], [60, 30, 10, 20])
    shapes = [ModalityShape(len(spec.features), "gaussian") for spec in specs]
    config = TrainingConfig(validation_fraction=0.0)
    network = UnitedNetwork(shapes, 4, 0, NetworkConfig(**quick["network"]))
    trainer = Trainer(
        network,
        data,
        config,
        supervised=True,
        n_groups=None,
        new_groups=False,
        seed=0,
        progress=False,
    )
    weights = trainer.class_weights.numpy()
    assert weights[2] == 0
    shares = weights[[0, 1, 3]] * np.array([60, 30, 10])
    np.testing.assert_allclose(shares, shares[0], rtol=1e-6)


# ------------------------------------------------------------------ groups without labels


def divergence_clustering(p: np.ndarray, h: np.ndarray) -> float:
    """The three terms of deep divergence clustering, pair by pair."""
    n, k = p.shape
    squared = np.array([[np.sum((h[i] - h[j]) ** 2) for j in range(n)] for i in range(n)])
    ordered = np.sort(squared.ravel())
    width = 0.15 * ordered[(n * n - 1) // 2]  # the lower median
    kernel = np.exp(-squared / (2 * width))

    def overlap(a: np.ndarray) -> float:
        total = 0.0
        for i in range(k):
            for j in range(i + 1, k):
                above = a[:, i] @ kernel @ a[:, j]
                below = np.sqrt((a[:, i] @ kernel @ a[:, i]) * (a[:, j] @ kernel @ a[:, j]))
                total += above / below
        return total / (k * (k - 1) / 2)

    corners = np.zeros((n, k))
    for i in range(n):
        for j in range(k):
            corner = np.eye(k)[j]
            corners[i, j] = np.exp(-np.sum((p[i] - corner) ** 2))
    pairs = [p[i] @ p[j] for i in range(n) for j in range(i + 1, n)]
    return overlap(p) + float(np.mean(pairs)) + overlap(corners)


@pytest.mark.parametrize(("n", "k"), [(13, 4), (8, 2), (30, 3)])
def test_divergence_clustering(rng: np.random.Generator, n: int, k: int) -> None:
    p = rng.dirichlet(np.ones(k) * 0.5, size=n)
    h = rng.normal(size=(n, D))
    found = _losses.clustering_loss(as_tensor(p), as_tensor(h))
    assert float(found) == pytest.approx(divergence_clustering(p, h), rel=1e-6)


def test_an_almost_empty_group_overlaps_like_a_full_one(rng: np.random.Generator) -> None:
    """Overlaps are normalised: one cell in a million of a group says where that group lies."""
    assignment, x = as_tensor(rng.random((N, K))), as_tensor(rng.normal(size=(N, D)))
    kernel = _losses._gaussian_kernel(x)
    found = _losses._mean_overlap(assignment * torch.tensor([1.0, 1e-6, 1, 1e-3]), kernel)
    assert float(found) == pytest.approx(float(_losses._mean_overlap(assignment, kernel)))


def test_right_groups_have_the_lowest_clustering_loss(rng: np.random.Generator) -> None:
    truth = np.repeat(np.arange(3), 10)
    h = np.eye(3)[truth] * 10 + rng.normal(size=(30, 3)) * 0.1
    losses = {
        name: float(_losses.clustering_loss(as_tensor(np.eye(3)[labels]), as_tensor(h)))
        for name, labels in {
            "right": truth,
            "random": rng.permutation(truth),
            "one": np.zeros(30, int),
        }.items()
    }
    assert losses["right"] < 0.5 * losses["random"]
    assert losses["right"] < losses["one"]


def test_entropy(rng: np.random.Generator) -> None:
    p = rng.dirichlet(np.ones(K), size=N)
    mean = p.mean(0)
    expected = float((mean * np.log(mean)).sum())
    assert float(_losses.entropy_loss(as_tensor(p))) == pytest.approx(expected)
    even = float(_losses.entropy_loss(as_tensor(np.eye(K))))
    assert even == pytest.approx(-np.log(K))
    assert float(_losses.entropy_loss(as_tensor(np.eye(K)[[0, 0]]))) > even


@pytest.mark.parametrize(
    ("p", "h"),
    [
        (np.eye(K)[np.zeros(N, int)], np.ones((N, D))),  # one point, one group
        (np.full((N, K), 1 / K), np.zeros((N, D))),
        (np.eye(K)[np.arange(N) % K], np.zeros((N, D))),
        (np.eye(K)[np.arange(N) % K], np.arange(N * D).reshape(N, D) * 1e6),
        (np.ones((N, 1)), np.arange(N * D).reshape(N, D)),  # a single group
        (np.full((2, K), 1 / K), np.eye(2, D)),
        (np.full((40, K), 1 / K), np.ones((40, D))),  # cdist's other way of computing
    ],
    ids=["collapsed", "even", "same points", "far points", "one group", "two cells", "many"],
)
def test_degenerate_groups_stay_finite(p: np.ndarray, h: np.ndarray) -> None:
    for dtype in (torch.float32, torch.float64):
        probabilities = torch.tensor(p, dtype=dtype, requires_grad=True)
        projected = torch.tensor(h, dtype=dtype, requires_grad=True)
        loss = _losses.clustering_loss(probabilities, projected)
        finite_with_gradient(loss + _losses.entropy_loss(probabilities), probabilities, projected)


# ------------------------------------------------------------------ tasks: which pairs enter


@pytest.fixture
def tasks(fitted_mosaic: MuData) -> tuple[Tasks, Any, Any]:
    """Tasks of a stored network in evaluation mode, a mini-batch of cells that lack modalities."""
    model = un.get.model(fitted_mosaic)
    data = model.open(fitted_mosaic)
    data.labels = fitted_mosaic.obs["cell_type"].cat.codes.to_numpy(np.int64)
    task = Tasks(model.network, TrainingConfig(), torch.ones(3))
    return task, data.batch(np.arange(40), torch.device("cpu")), fitted_mosaic


def test_terms_by_hand(tasks: tuple[Tasks, Any, Any]) -> None:
    """Decoders read every observed code and the fused one; cells without the target do not."""
    task, batch, _ = tasks
    network = task.network
    with torch.no_grad():
        _, terms = task.label_free(batch, *task.codes(batch))
        observed = batch.observed.numpy()
        code: dict[int, Any] = {}
        for m in range(2):
            code[m] = np.zeros((40, 8))
            code[m][observed[:, m]] = network.encode(m, batch.x[m]).numpy()
        share = np.exp(network.fusion.logits.numpy().ravel())
        weight = observed * share
        weight = weight / weight.sum(1, keepdims=True)
        fused = weight[:, :1] * code[0] + weight[:, 1:] * code[1]

        def error(target: int, values: np.ndarray, rows: np.ndarray) -> float:
            at = np.flatnonzero(rows)
            decoded = network.decode(target, torch.from_numpy(values[at]).float()).numpy()
            position = np.searchsorted(np.flatnonzero(observed[:, target]), at)
            x = batch.x[target].numpy()[position]
            standard = network.standardisers[target]
            return float(
                np.mean((decoded - (x - standard.mean.numpy()) / standard.scale.numpy()) ** 2)
            )

        both = observed.all(1)
        reconstruction = [error(m, code[m], observed[:, m]) for m in range(2)]
        translation = [
            error(0, code[1], both),
            error(0, fused, observed[:, 0]),
            error(1, code[0], both),
            error(1, fused, observed[:, 1]),
        ]
        labels = batch.labels.numpy()[both]
        pair = code[0][both], code[1][both]
        aligned = min(contrastive(*pair, labels, t) for t in np.geomspace(0.1, 1, 100))
    assert float(terms["reconstruction"]) == pytest.approx(np.mean(reconstruction), rel=1e-4)
    assert float(terms["translation"]) == pytest.approx(np.mean(translation), rel=1e-4)
    assert float(terms["contrastive"]) == pytest.approx(aligned, rel=1e-3)
    assert set(terms) == {"reconstruction", "translation", "contrastive"}


def test_identification_by_hand(tasks: tuple[Tasks, Any, Any]) -> None:
    task, batch, mdata = tasks
    with torch.no_grad():
        terms = task.identification(batch, *task.codes(batch))
    model = un.get.model(mdata)
    logits = model.encode(mdata).logits[:40] * float(model.network.temperature)
    labels = batch.labels.numpy()
    expected = -log_softmax(logits.astype(float), axis=1)[np.arange(40), labels].mean()
    assert float(terms["cross_entropy"]) == pytest.approx(expected, rel=1e-4)
    assert set(terms) == {"cross_entropy"}


def test_weights_of_the_paper() -> None:
    """The tasks weigh more than what helps them, and every term has a weight."""
    assert set(LOSS_WEIGHTS) == {
        "reconstruction",
        "translation",
        "contrastive",
        "cross_entropy",
        "clustering",
        "entropy",
        "generator",
        "discriminator",
    }
    config = TrainingConfig(loss_weights={"entropy": 0.7})
    assert config.weight("entropy") == 0.7
    others = {term: config.weight(term) for term in LOSS_WEIGHTS if term != "entropy"}
    assert others == {term: weight for term, weight in LOSS_WEIGHTS.items() if term != "entropy"}
    assert min(LOSS_WEIGHTS.values()) > 0
