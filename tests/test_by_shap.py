"""shap itself as a method: the same relevance as the engine's, where shap has rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_explain_engine import CONFIGS, equal, make_network, make_sample
from torch import nn

from unitednet_mu._by_shap import ShapGroupChain, shap_cross_relevance
from unitednet_mu._explain import group_relevance
from unitednet_mu._explain_cross import cross_relevance


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c["activation"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_engine(config: Any, dtype: Any) -> None:
    network = make_network(n_batches=2, likelihoods=["gaussian", "binary"], dtype=dtype, **config)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    observed = np.ones((7, 2), bool)
    observed[2, 1] = False
    cells = make_sample(network, 7, 1, observed, as_sparse=True)
    background = make_sample(network, 4, 2)
    accuracy = 1e-8 if dtype == torch.float64 else 1e-4
    done: list[int] = []
    settings: dict[str, Any] = {"progress": done.append}
    ours = group_relevance(network, cells, background)
    theirs = group_relevance(network, cells, background, chain_type=ShapGroupChain, **settings)
    for part in ("signed", "absolute"):
        for one, other in zip(getattr(theirs, part), getattr(ours, part), strict=True):
            equal(one, other, accuracy)
    np.testing.assert_array_equal(theirs.n_cells, ours.n_cells)
    for source, target in ((0, 1), (1, 0)):
        for top_k in (None, 5):
            pair = network, source, target, cells, background
            mine = cross_relevance(*pair, top_k=top_k)
            its = shap_cross_relevance(*pair, top_k=top_k, **settings)
            for part in ("signed", "absolute"):
                for one, other in zip(getattr(its, part), getattr(mine, part), strict=True):
                    if top_k is not None:
                        one, other = one.toarray(), other.toarray()
                    equal(one, other, accuracy)
            assert its.signed[0].dtype == mine.signed[0].dtype
            np.testing.assert_array_equal(its.n_cells, mine.n_cells)
            assert 0 < its.gap < accuracy
    assert 7 in done and done[-1] == 6
    after = network.state_dict()
    assert set(after) == set(before)  # shap leaves nothing behind
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_group_without_cells() -> None:
    network = make_network()
    cells, background = make_sample(network, 2, 1), make_sample(network, 3, 2)
    whole = shap_cross_relevance(network, 0, 1, cells, background, top_k=None)
    assert len(whole.signed) == 2
    more = make_sample(network, 2, 1)
    object.__setattr__(more, "n_groups", 3)
    assert np.isnan(
        shap_cross_relevance(network, 0, 1, more, background, top_k=None).signed[2]
    ).all()
    assert shap_cross_relevance(network, 0, 1, more, background, top_k=4).signed[2].nnz == 0


def test_what_shap_cannot_do_is_said() -> None:
    network = make_network(batch_norm=False)
    cells, background = make_sample(network, 4, 1), make_sample(network, 3, 2)
    with pytest.raises(NotImplementedError, match="softmax over groups"):
        group_relevance(
            network, cells, background, output="probabilities", chain_type=ShapGroupChain
        )
    network.decoders[1].deep[1] = nn.Mish()
    network.heads[0].project[1] = nn.Mish()
    before = set(network.state_dict())
    with pytest.raises(NotImplementedError, match="shap has no rule for the layer Mish"):
        shap_cross_relevance(network, 0, 1, cells, background, top_k=None)
    with pytest.raises(NotImplementedError, match="shap has no rule for the layer Mish"):
        group_relevance(network, cells, background, chain_type=ShapGroupChain)
    assert set(network.state_dict()) == before
    network.decoders[1].deep[1] = nn.LayerNorm(8)
    with pytest.raises(NotImplementedError, match="LayerNorm"):
        shap_cross_relevance(network, 0, 1, cells, background, top_k=None)
