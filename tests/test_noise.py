"""Input dropout: found from the data, and applied as it should be."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.linalg import eigh

import unitednet_mu as un
from unitednet_mu import _noise
from unitednet_mu._data import Dataset
from unitednet_mu._network import Dropout
from unitednet_mu._open import describe_modality, open_dataset


def dataset(**values: np.ndarray) -> Dataset:
    from anndata import AnnData
    from mudata import MuData

    modalities = {}
    for name, x in values.items():
        cells = [f"cell{i}" for i in range(len(x))]
        features = [f"{name}{j}" for j in range(x.shape[1])]
        modalities[name] = AnnData(
            x.astype(np.float32), pd.DataFrame(index=cells), pd.DataFrame(index=features)
        )
    mdata = MuData(modalities)
    return open_dataset(
        mdata, [describe_modality(mdata, name, None, None, None) for name in values]
    )


def two_views(n_noisy: int, n_clean: int, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(300, 3))
    noisy = z @ rng.normal(size=(3, n_noisy)) + 6 * rng.normal(size=(300, n_noisy))
    clean = z @ rng.normal(size=(3, n_clean)) + 0.1 * rng.normal(size=(300, n_clean))
    return dataset(noisy=noisy, clean=clean)


def test_scores_equal_those_of_the_hat_matrix() -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(40, p)) for p in (12, 5))
    x, y = x - x.mean(0), y - y.mean(0)
    found = _noise.cross_validation_scores(*eigh(x @ x.T), y @ y.T)
    for score, penalty in zip(found, _noise._PENALTIES, strict=True):
        left = np.eye(40) - x @ np.linalg.solve(x.T @ x + penalty * np.eye(12), x.T)
        expected = np.square(left @ y).sum() / ((np.trace(left) - 1) / 40) ** 2
        assert score == pytest.approx(expected / np.square(y).sum(), rel=1e-6)


def test_narrow_modalities_have_the_spectrum_of_their_cells() -> None:
    data, cells = two_views(400, 6), np.arange(300)
    source = data.sources[1]
    gram = _noise._gram(source, cells)
    values, vectors = _noise._thin_spectrum(source, cells)
    assert vectors.shape == (300, 6)
    np.testing.assert_allclose((vectors * values) @ vectors.T, gram, atol=1e-9 * gram.max())
    other = _noise._gram(data.sources[0], cells)
    found, expected = (
        _noise.cross_validation_scores(*spectrum, other)
        for spectrum in ((values, vectors), eigh(gram))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_noisy_features_are_dropped_often_and_clean_ones_hardly_ever() -> None:
    data = two_views(400, 6)
    noisy, clean = _noise.choose_input_dropout(data, np.arange(300), 0)
    assert noisy > 0.4
    assert clean < 0.1
    assert _noise.choose_input_dropout(data, np.arange(300), 0) == [noisy, clean]


def test_the_penalty_of_some_cells_grows_with_the_root_of_their_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, cells = two_views(400, 6), np.random.default_rng(0).permutation(300)
    monkeypatch.setattr(_noise, "_MAX_CELLS", 100)
    looked_at = np.random.default_rng(0).permutation(cells)[:100]
    some = np.array(_noise.choose_input_dropout(data, looked_at, 0))
    every = np.array(_noise.choose_input_dropout(data, cells, 0))
    penalty = 100 * some / (1 - some)
    np.testing.assert_allclose(every, penalty * 3**0.5 / (penalty * 3**0.5 + 300), rtol=1e-6)


def test_held_out_cells_are_not_read() -> None:
    data, other = two_views(50, 6), two_views(50, 6)
    for source in other.sources:
        source.matrix[200:] = 1e6
    cells = np.arange(200)
    expected = _noise.choose_input_dropout(data, cells, 0)
    assert _noise.choose_input_dropout(other, cells, 0) == expected


def test_sparse_equals_dense() -> None:
    mdata = un.datasets.simulate_multimodal(n_obs=100, n_groups=3)
    specs = [describe_modality(mdata, name, None, None, None) for name in mdata.mod]
    found = _noise.choose_input_dropout(open_dataset(mdata, specs), np.arange(100), 0)
    from scipy import sparse

    for adata in mdata.mod.values():
        adata.X = sparse.csr_matrix(adata.X)
    again = _noise.choose_input_dropout(open_dataset(mdata, specs), np.arange(100), 0)
    assert again == found
    assert all(0 <= share <= 0.9 for share in found)


def test_one_modality_alone_takes_the_middle() -> None:
    data = dataset(only=np.random.default_rng(0).normal(size=(50, 4)))
    assert _noise.choose_input_dropout(data, np.arange(50), 0) == [0.5]


def test_a_modality_that_is_constant_in_the_training_cells_says_nothing() -> None:
    rng = np.random.default_rng(0)
    constant = np.ones((50, 3))
    constant[-1] = 2
    data = dataset(varies=rng.normal(size=(50, 4)), constant=constant)
    varies, constant_too = _noise.choose_input_dropout(data, np.arange(49), 0)
    assert varies == 0.5 and 0 <= constant_too < 0.01


def test_a_constant_that_rounds_is_constant() -> None:
    """Its standard deviation is a rounding error, not one to divide by."""
    values = np.full((100, 2), 0.1)
    values[:, 1] = np.arange(100)
    values[-1, 0] = 1  # constant among the cells that are read
    cells = np.arange(99)
    assert 0 < values[cells, 0].std() < 1e-15
    (block,) = _noise._standardised(dataset(a=values).sources[0], cells)
    assert np.abs(block[:, 0]).max() < 1e-12
    assert block[:, 1].std() == pytest.approx(1)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.75])
def test_dropout_keeps_the_mean_and_drops_the_share(share: float) -> None:
    torch.manual_seed(0)
    layer = Dropout(share)
    x = torch.ones(501, 403, requires_grad=True)
    out = layer(x)
    out.sum().backward()
    kept = out != 0
    assert float(kept.float().mean()) == pytest.approx(1 - share, abs=0.005)
    assert float(out.detach().mean()) == pytest.approx(1, abs=0.01)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, out.detach())
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
