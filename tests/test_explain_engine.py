"""The engine of explanations against shap itself, and what any such explanation must fulfil."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse
from torch import nn

from unitednet_mu import (
    _deeplift,
    _deeplift_input,
    _deeplift_sparse,
    _explain,
    _explain_chain,
    _explain_cross,
    _strongest,
)
from unitednet_mu._config import NetworkConfig
from unitednet_mu._deeplift_sparse import sparse_attributions
from unitednet_mu._explain import ExplainSample, group_relevance
from unitednet_mu._explain_cells import cell_cross_relevance, cell_group_relevance
from unitednet_mu._explain_cross import cross_relevance
from unitednet_mu._network import ModalityShape, UnitedNetwork

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its import meets deprecations of newer matplotlib
    import shap
    from shap.explainers._deep import deep_pytorch

FEATURES, N_GROUPS = (9, 6, 4), 3
EXACT = 1e-8  # of the largest value, in float64


def make_network(
    n_modalities=2, n_batches=0, likelihoods=None, dtype=torch.float64, direct=True, **config
):
    """A small network with every part away from its initial state."""
    torch.manual_seed(0)
    settings_ = {"n_latent": 5, "n_hidden": (8,), "n_projector": 6, **config}
    likelihoods = likelihoods or ["gaussian"] * n_modalities
    shapes = [ModalityShape(n, kind) for n, kind in zip(FEATURES, likelihoods, strict=False)]
    network = UnitedNetwork(shapes, N_GROUPS, n_batches, NetworkConfig(**settings_))
    for layer in network.modules():
        if isinstance(layer, nn.Linear):  # far enough apart to bend every nonlinearity
            nn.init.normal_(layer.weight, std=1.5 / layer.in_features**0.5)
        if isinstance(layer, nn.BatchNorm1d):
            nn.init.uniform_(layer.weight, 0.5, 2.0)
            nn.init.normal_(layer.bias)
    for standardiser in network.standardisers:
        standardiser.mean.normal_()
        standardiser.scale.uniform_(0.5, 3.0)
    with torch.no_grad():
        for source in range(n_modalities * direct):
            for target in set(range(n_modalities)) - {source}:
                if likelihoods[target] == "gaussian":
                    path = network.add_direct_path(source, target)
                    path.weight.normal_(std=0.3)
                    path.offset.normal_()
        network.fusion.logits.normal_()
        network.temperature.fill_(1.7)
        for _ in range(5):  # statistics of batch normalisation
            codes = [
                network.encode(m, 2 * torch.randn(16, s.n_features)) for m, s in enumerate(shapes)
            ]
            network.group_logits(torch.stack(codes).mean(0))
            for m in range(len(shapes)):
                network.decode(m, codes[0], torch.rand(16, n_batches) if n_batches else None)
    return network.to(dtype)


def make_sample(network, n_cells, seed, observed=None, as_sparse=False):
    """Cells with random values, groups and batches."""
    rng = np.random.default_rng(seed)
    x = [2 * rng.normal(size=(n_cells, s.n_features)) for s in network.shapes]
    if as_sparse:
        x = [sparse.csr_matrix(np.where(rng.random(v.shape) < 0.3, v, 0.0)) for v in x]
    if observed is None:
        observed = np.ones((n_cells, len(x)), dtype=bool)
    groups = np.arange(n_cells) % N_GROUPS
    batch = np.eye(max(network.n_batches, 1))[rng.integers(max(network.n_batches, 1), size=n_cells)]
    return ExplainSample(x, observed, groups, batch if network.n_batches else None)


def by_shap(model, inputs, background):
    """Values by `shap.DeepExplainer`, per input cells x features x outputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # our containers of layers are no layers that shap knows
        explainer = shap.DeepExplainer(model, [torch.as_tensor(b) for b in background])
        return explainer.shap_values([torch.as_tensor(x) for x in inputs], check_additivity=False)


def equal(found, expected, accuracy=EXACT):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= accuracy * np.abs(expected).max()


class Cross(nn.Module):
    """From a source to a target, for shap."""

    def __init__(self, network, source, target, batch=None):
        super().__init__()
        self.network, self.source, self.target, self.batch = network, source, target, batch

    def forward(self, x):
        batch = None if self.batch is None else self.batch.expand(len(x), -1)
        return self.network.translate(self.source, self.target, x, batch)


class Exp(nn.Module):
    def forward(self, x):
        return x.exp()


class Reciprocal(nn.Module):
    def forward(self, x):
        return 1 / x


class Groups(nn.Module):
    """From some modalities to centred logits or probabilities, for shap."""

    def __init__(self, network, modalities, output="logits"):
        super().__init__()
        self.network, self.modalities, self.output = network, modalities, output
        self.exps = nn.ModuleList(Exp() for _ in range(N_GROUPS))
        self.inverses = nn.ModuleList(Reciprocal() for _ in range(N_GROUPS))

    def forward(self, *inputs):
        weights = torch.softmax(self.network.fusion.logits[self.modalities], 0)
        pairs = zip(self.modalities, inputs, strict=True)
        codes = torch.stack([self.network.encode(m, x) for m, x in pairs], 1)
        logits = self.network.group_logits((weights * codes).sum(1))
        if self.output == "logits":
            return logits - logits.mean(1, keepdim=True)
        probabilities = [
            self.inverses[k](self.exps[k](logits - logits[:, [k]]).sum(1, keepdim=True))
            for k in range(N_GROUPS)
        ]
        return torch.cat(probabilities, 1)


def group_means(values, groups, absolute):
    """Per group the mean over its cells of cells x features x outputs."""
    values = np.abs(values) if absolute else values
    return [values[groups == g].mean(0) for g in range(N_GROUPS)]


def check_cross(network, source, target, cells, background, scale=1.0):
    found = cross_relevance(network, source, target, cells, background, top_k=None)
    expected = np.empty((len(cells.groups), FEATURES[source], FEATURES[target]))
    batches = [None] if cells.batch is None else list(np.unique(cells.batch, axis=0))
    for batch in batches:
        same = np.ones(len(cells.groups), bool) if batch is None else (cells.batch == batch).all(1)
        model = Cross(network, source, target, None if batch is None else torch.as_tensor(batch))
        expected[same] = by_shap(model, [cells.x[source][same]], [background.x[source]])[0]
    for g, mean in enumerate(group_means(expected * scale, cells.groups, False)):
        equal(found.signed[g], mean)
    for g, mean in enumerate(group_means(expected * scale, cells.groups, True)):
        equal(found.absolute[g], mean)
    assert found.gap < EXACT
    return found


def check_groups(network, cells, background, output="logits"):
    found = group_relevance(network, cells, background, output=output)
    modalities = list(range(len(network.shapes)))
    values = by_shap(Groups(network, modalities, output), cells.x, background.x)
    for m in modalities:
        for absolute, means in ((False, found.signed[m]), (True, found.absolute[m])):
            expected = group_means(values[m], cells.groups, absolute)
            equal(means, np.stack([expected[k][:, k] for k in range(N_GROUPS)], 1))
    assert found.gap < EXACT
    return found


CONFIGS = [
    {"activation": "relu", "batch_norm": True, "linear_path": True, "n_hidden": (8, 7)},
    {"activation": "tanh", "batch_norm": False, "linear_path": True},
    {"activation": "softplus", "batch_norm": True, "linear_path": False, "fusion": "dimension"},
    {"activation": "gelu", "batch_norm": False, "linear_path": False, "n_hidden": (8, 6, 7)},
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c["activation"])
def test_equals_shap(config):
    network = make_network(**config)
    cells, background = make_sample(network, 7, 1), make_sample(network, 5, 2)
    scale = network.standardisers[1].scale.numpy()
    check_cross(network, 0, 1, cells, background, scale)
    check_groups(network, cells, background)


@pytest.mark.parametrize("as_sparse", [False, True])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c["activation"])
def test_single_cells_equal_shap(config, as_sparse):
    """Every cell's attributions to every output, one of its group or not; stored in float32."""
    network = make_network(**config)
    cells = make_sample(network, 7, 1, as_sparse=as_sparse)
    background = make_sample(network, 5, 2)
    x = [v.toarray() if as_sparse else v for v in cells.x]
    groups = [2, 0, 1]
    found = cell_group_relevance(network, cells, background, groups)
    for m, expected in enumerate(by_shap(Groups(network, [0, 1]), x, background.x)):
        equal(found.attributions[m], expected[:, :, groups], 1e-6)
    scale = network.standardisers[1].scale.numpy()
    expected = by_shap(Cross(network, 0, 1), x[:1], background.x[:1])[0] * scale
    for targets in ([4], [5, 0, 1, 2, 3, 4]):
        found = cell_cross_relevance(network, 0, 1, cells, background, targets)
        equal(found.attributions[0], expected[:, :, targets], 1e-6)
        assert found.base_values.shape == (7, len(targets))
        assert found.gap < EXACT


def test_probabilities_equal_shap_through_exp_and_reciprocal(monkeypatch):
    for name in ("Exp", "Reciprocal"):
        monkeypatch.setitem(deep_pytorch.op_handler, name, deep_pytorch.nonlinear_1d)
    network = make_network(n_modalities=3)
    cells, background = make_sample(network, 7, 1), make_sample(network, 5, 2)
    found = check_groups(network, cells, background, "probabilities")
    with torch.no_grad():  # the same number added to all logits changes nothing
        network.heads[0].logits.bias += 50.0
    shifted = group_relevance(network, cells, background, output="probabilities")
    equal(shifted.signed[0], found.signed[0])


def test_centred_logits_are_blind_to_what_cannot_be_identified():
    network = make_network()
    cells, background = make_sample(network, 6, 1), make_sample(network, 4, 2)
    before = group_relevance(network, cells, background)
    with torch.no_grad():
        network.heads[0].logits.weight += torch.randn(6, dtype=torch.float64)
    equal(group_relevance(network, cells, background).signed[1], before.signed[1])


def test_batch_conditioned_decoders_share_the_batch():
    network = make_network(n_batches=2)
    cells, background = make_sample(network, 8, 1), make_sample(network, 4, 2)
    found = check_cross(network, 0, 1, cells, background, network.standardisers[1].scale.numpy())
    other = ExplainSample(cells.x, cells.observed, cells.groups, cells.batch[:, ::-1].copy())
    changed = cross_relevance(network, 0, 1, other, background, top_k=None)
    assert np.abs(changed.signed[0] - found.signed[0]).max() > 1e-3
    mixed = ExplainSample(cells.x, cells.observed, cells.groups, np.full((8, 2), 0.5))
    assert cross_relevance(network, 0, 1, mixed, background, top_k=None).gap < EXACT
    for batch in (None, np.ones((8, 3))):
        wrong = ExplainSample(cells.x, cells.observed, cells.groups, batch)
        with pytest.raises(ValueError, match=r"cells\.batch: expected cells x 2"):
            cross_relevance(network, 0, 1, wrong, background, top_k=None)


def test_binary_target_is_explained_at_its_logit():
    network = make_network(likelihoods=["gaussian", "binary"])
    cells, background = make_sample(network, 6, 1), make_sample(network, 4, 2)
    check_cross(network, 0, 1, cells, background)
    check_cross(network, 1, 1, cells, background)


def test_standardised_units():
    network = make_network()
    cells, background = make_sample(network, 6, 1), make_sample(network, 4, 2)
    user = cross_relevance(network, 0, 1, cells, background, top_k=None)
    plain = cross_relevance(network, 0, 1, cells, background, top_k=None, units=False)
    scale = network.standardisers[1].scale.numpy()
    equal(plain.absolute[0] * scale, user.absolute[0])


@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    activation=st.sampled_from(["leaky_relu", "relu", "elu", "gelu", "tanh", "softplus"]),
    batch_norm=st.booleans(),
    linear_path=st.booleans(),
    fusion=st.sampled_from(["modality", "dimension"]),
    n_hidden=st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    n_latent=st.integers(1, 4),
    n_modalities=st.integers(2, 3),
    n_batches=st.sampled_from([0, 2]),
    direct=st.booleans(),
    sizes=st.tuples(st.integers(3, 4), st.integers(1, 4)),
)
def test_any_architecture_equals_shap(n_modalities, n_batches, direct, sizes, **config):
    network = make_network(n_modalities, n_batches, direct=direct, **config)
    cells, background = make_sample(network, sizes[0], 1), make_sample(network, sizes[1], 2)
    scale = network.standardisers[-1].scale.numpy()
    check_cross(network, 0, n_modalities - 1, cells, background, scale)
    check_groups(network, cells, background)


@pytest.mark.parametrize("layer", [nn.SiLU(), nn.ReLU(inplace=True), nn.Sigmoid(), nn.Identity()])
def test_other_elementwise_layers(layer, monkeypatch):
    monkeypatch.setitem(deep_pytorch.op_handler, "SiLU", deep_pytorch.nonlinear_1d)
    network = make_network(batch_norm=False)
    network.decoders[1].deep[1] = layer
    cells, background = make_sample(network, 5, 1), make_sample(network, 3, 2)
    scale = network.standardisers[1].scale.numpy()
    if getattr(layer, "inplace", False):  # shap cannot
        inplace = cross_relevance(network, 0, 1, cells, background, top_k=None)
        layer.inplace = False
        found = check_cross(network, 0, 1, cells, background, scale)
        equal(inplace.signed[0], found.signed[0])
    else:
        check_cross(network, 0, 1, cells, background, scale)


def test_cell_equal_to_the_background_has_no_relevance_and_ties_use_the_derivative():
    network = make_network(activation="tanh")
    background = make_sample(network, 1, 1)
    same = ExplainSample(background.x, background.observed, np.zeros(1, int))
    assert not cross_relevance(network, 0, 1, same, background, top_k=None).absolute[0].any()
    # one value moved by less than the threshold: attributions are derivatives times the move
    x = [v.copy() for v in background.x]
    x[0][0, 2] += 1e-9
    moved = ExplainSample(x, background.observed, np.zeros(1, int))
    found = cross_relevance(network, 0, 1, moved, background, top_k=None).signed[0]
    at = torch.as_tensor(background.x[0])
    network.eval()
    slope = torch.autograd.functional.jacobian(Cross(network, 0, 1), at)[0, :, 0, 2]
    expected = (slope * network.standardisers[1].scale).numpy() * (x[0] - background.x[0])[0, 2]
    np.testing.assert_allclose(found[2], expected, rtol=1e-5)
    assert not np.delete(found, 2, 0).any()


def test_missing_modalities():
    network = make_network(n_modalities=3)
    cells = make_sample(network, 9, 1, np.ones((9, 3), bool))
    cells.observed[3:, 2] = False
    cells.observed[5, 1] = False
    cells.observed[6:, 0] = False
    cells.observed[8] = [False, False, False]
    background = make_sample(network, 6, 2, np.ones((6, 3), bool))
    background.observed[:2, 2] = False
    for m, x in enumerate(cells.x):  # what is not observed is not read
        x[~cells.observed[:, m]] = np.nan
    found = group_relevance(network, cells, background)
    np.testing.assert_array_equal(found.n_cells, [3, 3, 2])
    values = np.full((9, sum(FEATURES)), np.nan)
    start = np.cumsum([0, *FEATURES])
    for c in range(8):
        modalities = np.flatnonzero(cells.observed[c]).tolist()
        rows = background.observed[:, modalities].all(1)
        inputs = [cells.x[m][[c]] for m in modalities]
        reference = [background.x[m][rows] for m in modalities]
        result = by_shap(Groups(network, modalities), inputs, reference)
        for m, value in zip(modalities, result, strict=True):
            values[c, start[m] : start[m + 1]] = value[0, :, cells.groups[c]]
    for m in range(3):
        part = values[:, start[m] : start[m + 1]]
        for g in range(N_GROUPS):
            rows = cells.observed[:, m] & (cells.groups == g)
            equal(found.signed[m][:, g], part[rows].mean(0))
            equal(found.absolute[m][:, g], np.abs(part[rows]).mean(0))


def test_what_nobody_observes_is_nan():
    network = make_network()
    observed = np.ones((6, 2), bool)
    observed[:, 1] = False
    observed[0::3, 1] = True  # only group 0 has it
    cells, background = make_sample(network, 6, 1, observed), make_sample(network, 4, 2)
    found = group_relevance(network, cells, background)
    assert np.isfinite(found.signed[1][:, 0]).all() and np.isnan(found.absolute[1][:, 1:]).all()
    cross = cross_relevance(network, 1, 0, cells, background, top_k=None)
    np.testing.assert_array_equal(cross.n_cells, [2, 0, 0])
    assert np.isfinite(cross.signed[0]).all() and np.isnan(cross.signed[1]).all()
    assert np.isnan(cross.absolute[2]).all()
    top = cross_relevance(network, 1, 0, cells, background, top_k=3)
    assert [m.nnz for m in top.signed] == [3, 0, 0]
    alone = ExplainSample([background.x[0], None], np.tile([True, False], (4, 1)))
    with pytest.raises(ValueError, match=r"background: expected a cell with modalities \[0, 1\]"):
        group_relevance(network, cells, alone)
    without = ExplainSample([cells.x[0], None], np.tile([True, False], (6, 1)), cells.groups)
    assert np.isnan(group_relevance(network, without, alone).signed[1]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sparse_equals_dense(dtype):
    network = make_network(dtype=dtype)
    accuracy = 1e-4 if dtype == torch.float32 else EXACT
    cells = make_sample(network, 9, 1, as_sparse=True)
    background = make_sample(network, 5, 2, as_sparse=True)
    for sample in (cells, background):  # a feature that is zero throughout
        sample.x[0] = sample.x[0] @ sparse.diags_array([*[1.0] * 8, 0.0]).tocsr()
    dense = [
        ExplainSample([x.toarray() for x in sample.x], sample.observed, sample.groups)
        for sample in (cells, background)
    ]
    arrays = ExplainSample([sparse.csc_array(x) for x in cells.x], cells.observed, cells.groups)
    for pair in (
        (cells, background),
        (cells, dense[1]),
        (dense[0], background),
        (arrays, dense[1]),
    ):
        one, two = group_relevance(network, *pair), group_relevance(network, *dense)
        equal(one.signed[0], two.signed[0], accuracy)
        for absolute in (True, False):
            kwargs = {"top_k": None, "absolute": absolute}
            one = cross_relevance(network, 0, 1, *pair, **kwargs)
            two = cross_relevance(network, 0, 1, *dense, **kwargs)
            equal(one.signed[2], two.signed[2], accuracy)
            assert not one.signed[2][8].any()


def test_blocks_and_chunks_do_not_matter(monkeypatch):
    network = make_network()
    cells, background = make_sample(network, 12, 1), make_sample(network, 4, 2)

    def run(absolute=True, **kwargs):
        result = cross_relevance(
            network, 0, 1, cells, background, absolute=absolute, **{"top_k": None, **kwargs}
        )
        return [*result.signed, *(result.absolute or [])]

    whole, signed, groups = run(), run(False), group_relevance(network, cells, background)
    top = run(top_k=7)
    monkeypatch.setattr(_deeplift, "_BLOCK", (2, 4))
    monkeypatch.setattr(_strongest, "_RANKED", 10)
    monkeypatch.setattr(_explain, "_CHUNK_CELLS", 3)
    monkeypatch.setattr(_explain_cross, "_PAIRS", 2)
    for blocked, unblocked in zip([*run(), *run(False)], [*whole, *signed], strict=True):
        equal(blocked, unblocked)
    for blocked, unblocked in zip(run(top_k=7), top, strict=True):
        equal(blocked.toarray(), unblocked.toarray())
    for one, two in zip(
        group_relevance(network, cells, background).signed, groups.signed, strict=True
    ):
        equal(one, two)
    for one, two in zip(whole, signed, strict=False):  # signed means, both ways
        equal(one, two)


@pytest.mark.parametrize("linear_path", [True, False])
@pytest.mark.parametrize("as_sparse", [True, False])
def test_through_the_code_or_around_it(linear_path, as_sparse, monkeypatch):
    """A narrow code decides the order of the products, never their result."""
    network = make_network(n_latent=2, n_hidden=(8, 6), linear_path=linear_path)
    cells = make_sample(network, 7, 1, as_sparse=as_sparse)
    background = make_sample(network, 4, 2, as_sparse=as_sparse)
    through = cross_relevance(network, 0, 1, cells, background, top_k=None)
    called = []

    def around(side, values, inner, outer):
        called.append(True)
        return side.attributions(values, _explain_chain.multiplied_out(inner, outer))

    monkeypatch.setattr(_deeplift_input.InputSide, "attributions_through", around)
    other = cross_relevance(network, 0, 1, cells, background, top_k=None)
    assert called
    for one, two in zip(
        [*through.signed, *through.absolute], [*other.signed, *other.absolute], strict=True
    ):
        equal(one, two)


@pytest.mark.parametrize("n_hidden", [(8, 6), (3, 3)], ids=["through the code", "around it"])
@pytest.mark.parametrize("n_batches", [0, 2])
def test_where_little_is_not_zero(n_hidden, n_batches, monkeypatch):
    """Only what is not zero is worked out, and nothing is missed."""
    network = make_network(n_latent=2, n_hidden=n_hidden, n_batches=n_batches, linear_path=False)
    cells, background = (
        make_sample(network, n, seed, as_sparse=True) for n, seed in ((9, 1), (4, 2))
    )
    kept = np.array([0.0, 1, 1, 0, 1, 0, 1, 1, 0])  # what the background has
    background.x[0] = background.x[0] @ sparse.diags_array(kept).tocsr()
    cells.x[0] = sparse.csr_array(cells.x[0].toarray() * (np.arange(81).reshape(9, 9) % 4 != 0))
    monkeypatch.setattr(_deeplift_sparse, "_MOST_FILLED", -1.0)
    expected = cross_relevance(network, 0, 1, cells, background, top_k=None)
    blocks = []

    def watched(*arguments):
        for block in sparse_attributions(*arguments):
            blocks.append(block[0])
            yield block

    monkeypatch.setattr(_deeplift_sparse, "_MOST_FILLED", 1.0)
    monkeypatch.setattr(_deeplift_sparse, "_HELD", 60)
    monkeypatch.setattr(_explain_cross, "sparse_attributions", watched)
    found = cross_relevance(network, 0, 1, cells, background, top_k=None)
    assert slice(None) in blocks and any(cells.start is not None for cells in blocks)
    for one, two in zip(
        [*found.signed, *found.absolute], [*expected.signed, *expected.absolute], strict=True
    ):
        equal(one, two)


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("top_k", [1, 10, 10_000])
def test_top_k_keeps_the_strongest_pairs(absolute, top_k):
    network = make_network()
    cells, background = make_sample(network, 8, 1), make_sample(network, 4, 2)
    kwargs = {"absolute": absolute}
    dense = cross_relevance(network, 0, 1, cells, background, top_k=None, **kwargs)
    top = cross_relevance(network, 0, 1, cells, background, top_k=top_k, **kwargs)
    assert (top.absolute is None) == (dense.absolute is None) == (not absolute)
    for g in range(N_GROUPS):
        strength = dense.absolute[g] if absolute else np.abs(dense.signed[g])
        kept = np.sort(np.argsort(-strength, axis=None)[:top_k])
        signed = top.signed[g].tocoo()
        np.testing.assert_array_equal(np.ravel_multi_index(signed.coords, strength.shape), kept)
        np.testing.assert_allclose(signed.data, dense.signed[g].flat[kept], rtol=1e-9, atol=1e-12)
        if absolute:
            assert sparse.isspmatrix_csr(top.absolute[g])
            np.testing.assert_array_equal(top.absolute[g].indices, top.signed[g].indices)
            np.testing.assert_allclose(top.absolute[g].data, strength.flat[kept], rtol=1e-9)
    with pytest.raises(ValueError, match="top_k"):
        cross_relevance(network, 0, 1, cells, background, top_k=0)


@pytest.mark.parametrize("tail", ["even", "in few rows", "in rows not sampled"])
@pytest.mark.parametrize("k", [1, 40, 300, 2900, 5000])
def test_strongest_whatever_a_sample_of_rows_says(rng, monkeypatch, tail, k):
    values = rng.standard_exponential((60, 50)) * rng.choice((-1, 1), (60, 50))
    values[rng.random((60, 50)) < 0.05] = 0
    if tail == "in few rows":
        values[:3] *= 100
    if tail == "in rows not sampled":
        values[np.linspace(0, 59, 10).astype(int)] *= 1e-3
    monkeypatch.setattr(_strongest, "_SAMPLED", 500)
    monkeypatch.setattr(_strongest, "_FEWEST_SAMPLED", 1)
    monkeypatch.setattr(_strongest, "_RANKED", 200)
    matrix = torch.as_tensor(values)
    row, column, found = _strongest.strongest(lambda rows: matrix[rows], values.shape, k)
    expected = np.flatnonzero(values)
    order = np.argsort(-np.abs(values.flat[expected]), kind="stable")[:k]
    places = row.numpy() * 50 + column.numpy()
    np.testing.assert_array_equal(places, np.sort(expected[order]))
    np.testing.assert_array_equal(found.numpy(), values.flat[places])


def test_values_add_up_and_absolute_bounds_signed():
    network = make_network(dtype=torch.float32)
    cells, background = make_sample(network, 9, 1), make_sample(network, 5, 2)
    found = group_relevance(network, cells, background)
    assert 0 < found.gap < 1e-5 and found.signed[0].dtype == np.float32
    network.eval()
    with torch.no_grad():
        logits = [
            Groups(network, [0, 1])(*[torch.as_tensor(x, dtype=torch.float32) for x in sample.x])
            for sample in (cells, background)
        ]
    departure = (logits[0] - logits[1].mean(0)).numpy()
    for g in range(N_GROUPS):
        total = sum(values[:, g].sum() for values in found.signed)
        assert total == pytest.approx(departure[cells.groups == g, g].mean(), rel=1e-4)
    for signed, absolute in zip(found.signed, found.absolute, strict=True):
        assert (absolute >= np.abs(signed) * (1 - 1e-5)).all()
    cross = cross_relevance(network, 0, 1, cells, background, top_k=None)
    assert 0 < cross.gap < 1e-5 and cross.signed[0].dtype == np.float32
    for signed, absolute in zip(cross.signed, cross.absolute, strict=True):
        assert (absolute >= np.abs(signed) * (1 - 1e-5) - 1e-7).all()


@pytest.mark.parametrize("absolute", [True, False])
def test_gap_above_tolerance_is_an_error(absolute, monkeypatch):
    network = make_network()
    cells, background = make_sample(network, 6, 1), make_sample(network, 4, 2)
    kwargs = {"top_k": None, "absolute": absolute}
    with pytest.raises(RuntimeError, match="do not add up"):
        cross_relevance(network, 0, 1, cells, background, tolerance=-1.0, **kwargs)
    right = _deeplift.secant
    monkeypatch.setattr(_deeplift, "secant", lambda f, a, b: 1.1 * right(f, a, b))
    with pytest.raises(RuntimeError, match="do not add up"):
        cross_relevance(network, 0, 1, cells, background, **kwargs)
    with pytest.raises(RuntimeError, match="do not add up"):
        group_relevance(network, cells, background)
    monkeypatch.undo()
    cells.x[0][0, 0] = np.nan
    with pytest.raises(RuntimeError, match="finite"):
        cross_relevance(network, 0, 1, cells, background, **kwargs)
    with pytest.raises(RuntimeError, match="finite"):
        group_relevance(network, cells, background)


def test_layer_without_a_rule_is_named():
    network = make_network()
    network.decoders[1].deep[2] = nn.LayerNorm(8)
    network.encoders[1].deep[0] = nn.BatchNorm1d(8, track_running_stats=False)
    cells, background = make_sample(network, 6, 1), make_sample(network, 4, 2)
    with pytest.raises(NotImplementedError, match="LayerNorm"):
        cross_relevance(network, 0, 1, cells, background, top_k=None)
    with pytest.raises(NotImplementedError, match="BatchNorm1d"):
        group_relevance(network, cells, background)
    network.encoders[0].wide = nn.Bilinear(3, 3, 3)
    with pytest.raises(NotImplementedError, match="Bilinear"):
        cross_relevance(network, 0, 1, cells, background, top_k=None)


def test_rows_of_the_background_may_be_for_cells_with_certain_modalities():
    """Cells with one modality are compared with other rows than those with both."""
    network = make_network()
    alone, both = np.array([True, False]), np.array([True, True])
    observed = np.array([alone] * 3 + [both] * 3)  # of each group one
    cells, background = make_sample(network, 6, 1, observed), make_sample(network, 4, 2)
    rows = {alone.tobytes(): np.array([0, 1]), both.tobytes(): np.array([2, 3])}
    found = group_relevance(network, cells, dataclasses.replace(background, compared=rows))

    def part(sample, kept):
        groups = sample.groups[kept]
        return ExplainSample([x[kept] for x in sample.x], sample.observed[kept], groups)

    few, many = (
        group_relevance(network, part(cells, kept), part(background, at))
        for kept, at in ((slice(3), slice(2)), (slice(3, 6), slice(2, 4)))
    )
    equal(found.signed[0], (few.signed[0] + many.signed[0]) / 2)
    equal(found.absolute[1], many.absolute[1])
    for_all = group_relevance(network, cells, background)
    assert np.abs(for_all.signed[0] - found.signed[0]).max() > 0.01


def test_modes_and_gradients_are_left_alone_and_progress_is_told():
    network = make_network()
    network.train()
    network.encoders[1].eval()
    modes = [module.training for module in network.modules()]
    cells, background = make_sample(network, 6, 1), make_sample(network, 4, 2)
    done = []
    group_relevance(network, cells, background, progress=done.append)
    with torch.inference_mode():
        cross_relevance(network, 0, 1, cells, background, top_k=None, progress=done.append)
    assert done == [6, 2, 4, 6]
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.grad is None for parameter in network.parameters())
    with pytest.raises(ValueError, match="output"):
        group_relevance(network, cells, background, output="logit")


def test_shapes_are_checked():
    network = make_network()
    cells, background = make_sample(network, 6, 1), make_sample(network, 4, 2)
    with pytest.raises(ValueError, match="expected 2 modalities, found 1"):
        ExplainSample(cells.x[:1], cells.observed)
    with pytest.raises(ValueError, match=r"x\[0\]: expected 6 rows, found 4"):
        ExplainSample(background.x, cells.observed)
    with pytest.raises(ValueError, match="groups: expected 6 rows"):
        ExplainSample(cells.x, cells.observed, cells.groups[:5])
    for groups in (None, np.array([0, 1, 2, 0, 1, 3]), np.array([0, 1, 2, 0, 1, -1])):
        with pytest.raises(ValueError, match=r"cells\.groups: expected"):
            group_relevance(network, ExplainSample(cells.x, cells.observed, groups), background)
    swapped = ExplainSample(cells.x[::-1], cells.observed, cells.groups)
    with pytest.raises(ValueError, match=r"cells\.x\[0\]: expected 9 features, found 6"):
        group_relevance(network, swapped, background)
    one = ExplainSample(cells.x[:1], cells.observed[:, :1], cells.groups)
    with pytest.raises(ValueError, match=r"cells: expected the network's 2 modalities, found 1"):
        group_relevance(network, one, background)
    with pytest.raises(ValueError, match=r"background: expected the network's 2 modalities"):
        cross_relevance(network, 0, 1, cells, one, top_k=2)
    more = ExplainSample(cells.x, cells.observed, cells.groups, n_groups=5)
    assert len(cross_relevance(network, 0, 1, more, background, top_k=2).signed) == 5


def test_chunks_keep_to_the_memory_that_was_promised():
    """32 MiB of multipliers on the CPU, 256 MiB on a device, 64 cells at most."""
    network, rows = make_network(), np.arange(100)

    def sizes(pair_size):
        chunks = list(_explain.chunks_of(rows, pair_size, network))
        np.testing.assert_array_equal(np.concatenate(chunks), rows)
        return [len(chunk) for chunk in chunks]

    assert sizes(1) == sizes(2**16) == [64, 36]
    assert sizes(2**17) == [32, 32, 32, 4]
    assert sizes(2**30) == [1] * 100
    network.to("meta")
    assert sizes(2**20) == [32, 32, 32, 4]


def test_chunks_are_larger_where_little_is_not_zero(monkeypatch):
    """There no pair of a cell and a background row has a block of features of its own."""
    network = make_network(n_latent=2, n_hidden=(8, 6), linear_path=False)
    cells, background = (
        make_sample(network, n, seed, as_sparse=True) for n, seed in ((18, 1), (4, 2))
    )

    def chunks(most_filled, absolute=True):
        monkeypatch.setattr(_deeplift_sparse, "_MOST_FILLED", most_filled)
        steps = []
        kwargs = {"absolute": absolute, "top_k": 2, "progress": steps.append}
        cross_relevance(network, 0, 1, cells, background, **kwargs)
        return len(steps)

    monkeypatch.setattr(_explain, "_CHUNK_BYTES", 8 * 4 * 4 * 2 * (8 + 8))
    assert chunks(1.0) == chunks(1.0, absolute=False) < chunks(-1.0)


def test_messages_say_what_was_found():
    network = make_network(n_modalities=3)
    cells, background = make_sample(network, 6, 1), make_sample(network, 4, 2)
    for found, wrong in (("0 to 3", [0, 1, 2, 0, 1, 3]), ("-1 to 2", [0, 1, 2, 0, 1, -1])):
        sample = ExplainSample(cells.x, cells.observed, np.array(wrong))
        with pytest.raises(ValueError, match=f"expected 0 to 2, found {found}"):
            group_relevance(network, sample, background)
    own = ExplainSample(cells.x, cells.observed, np.array([0, 1, 2, 0, 1, 3]))
    assert own.checked_groups()[1] == 4  # one more than the largest
    five = ExplainSample(cells.x, cells.observed, np.array([0, 1, 2, 0, 1, 4]))
    with pytest.raises(ValueError, match="expected 0 to 3, found 0 to 4"):
        five.checked_groups(4)
    background.observed[:, [0, 2]] = False
    with pytest.raises(ValueError, match=r"a cell with modalities \[0, 1, 2\], as cells"):
        group_relevance(network, cells, background)
    absent = ExplainSample([cells.x[0], None, cells.x[2]], cells.observed, cells.groups)
    with pytest.raises(ValueError, match=r"cells\.x\[1\]: expected 6 features, found None"):
        group_relevance(network, absent, make_sample(network, 4, 2))


def test_a_cell_of_nothing_is_left_out_and_one_of_the_background_is_no_reference():
    """Means are over cells that have something; the only fitting background row is found."""
    network = make_network()
    observed = np.array([[True, True], [False, False], [True, False], [True, True]])
    x = [np.random.default_rng(m).normal(size=(4, n)) for m, n in enumerate(FEATURES[:2])]
    cells = ExplainSample(x, observed, np.array([0, 0, 1, 1]))
    rows = np.array([[True, True], [False, True], [True, False]])
    background = make_sample(network, 3, 2, rows)
    np.testing.assert_array_equal(background.rows_observing(np.array([True, True])), [0])
    np.testing.assert_array_equal(background.rows_observing(np.array([True, False])), [0, 2])
    found = group_relevance(network, cells, background)
    assert found.n_cells.tolist() == [1, 2, 0] and found.standard_error == 0
    values = by_shap(Groups(network, [0, 1]), [v[[0]] for v in x], [b[[0]] for b in background.x])
    for m in (0, 1):
        equal(found.signed[m][:, 0], values[m][0, :, 0])
