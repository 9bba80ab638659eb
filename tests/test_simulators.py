"""The simulators with known links: what they plant can be seen, and nothing else is a link."""

from __future__ import annotations

import mudata
import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

import unitednet_mu as un
from unitednet_mu.datasets import _kinetics

SIMULATORS = {
    "regulation": un.datasets.simulate_regulation,
    "two_views": un.datasets.simulate_two_views,
}


@pytest.fixture(scope="module")
def regulation() -> mudata.MuData:
    return un.datasets.simulate_regulation(n_obs=1000, random_state=1)


@pytest.fixture(scope="module")
def two_views() -> mudata.MuData:
    return un.datasets.simulate_two_views(n_obs=1000, random_state=1)


def _values(mdata: mudata.MuData, mod: str) -> np.ndarray:
    x = mdata[mod].X
    return np.log1p(x.toarray()) if sparse.issparse(x) else np.asarray(x)


def _within(mdata: mudata.MuData, source: str, target: str) -> np.ndarray:
    """Correlation within groups, source x target features."""
    codes = mdata.obs["cell_type"].cat.codes.to_numpy()
    sides = []
    for mod in (source, target):
        x = _values(mdata, mod).astype(np.float64)
        means = np.stack([x[codes == code].mean(axis=0) for code in range(codes.max() + 1)])
        x = x - means[codes]
        sides.append(x / (x.std(axis=0) + 1e-12))
    return sides[0].T @ sides[1] / len(codes)


def _pair(name: str) -> tuple[str, str]:
    target, _, source = name.partition("_from_")
    return source, target


# ------------------------------------------------------------------ both


@pytest.mark.parametrize("simulate", SIMULATORS.values(), ids=SIMULATORS)
def test_simulation_follows_its_seed(simulate, fingerprint) -> None:
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (simulate(n_obs=40, random_state=seed) for seed in (3, 3, 4))
    assert fingerprint(first) == fingerprint(again)
    assert fingerprint(first) != fingerprint(other)
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("name", SIMULATORS)
def test_simulation_can_be_written_and_read(name: str, request, tmp_path) -> None:
    mdata = request.getfixturevalue(name)
    mdata.write(tmp_path / "x.h5mu")
    back = mudata.read_h5mu(tmp_path / "x.h5mu")
    assert list(back.mod) == list(mdata.mod)
    for pair, links in mdata.uns["truth"]["links"].items():
        assert sparse.issparse(back.uns["truth"]["links"][pair])
        assert (back.uns["truth"]["links"][pair] != links).nnz == 0
    assert list(back.obs.columns) == list(mdata.obs.columns)
    for column in mdata.obs:
        assert back.obs[column].tolist() == mdata.obs[column].tolist()
    for mod in mdata.mod:
        assert (sparse.csr_matrix(back[mod].X) != sparse.csr_matrix(mdata[mod].X)).nnz == 0


@pytest.mark.parametrize("name", SIMULATORS)
def test_links_name_features_of_their_modalities(name: str, request) -> None:
    mdata = request.getfixturevalue(name)
    assert mdata.obs["cell_type"].cat.categories.size == (5 if name == "regulation" else 10)
    assert all(mdata[mod].X.dtype == np.float32 for mod in mdata.mod)
    assert not len(mdata.var.columns)
    for pair, links in mdata.uns["truth"]["links"].items():
        source, target = _pair(pair)
        assert links.shape == (mdata[source].n_vars, mdata[target].n_vars)
        assert set(np.unique(links.data)) <= {-1.0, 1.0}
        assert 0 < links.nnz < 0.1 * np.prod(links.shape)


@pytest.mark.parametrize(
    ("name", "pair", "least"),
    [
        ("regulation", "premrna_from_atac", 2.5),
        ("regulation", "mrna_from_premrna", 5),
        ("regulation", "adt_from_mrna", 5),
        ("regulation", "mrna_from_atac", 2),
        ("regulation", "adt_from_premrna", 3),
        ("two_views", "view_b_from_view_a", 3),
        ("two_views", "view_a_from_view_b", 3),
    ],
)
def test_links_show_within_groups(name: str, pair: str, least: float, request) -> None:
    """Linked features are correlated within groups, several times more than others are."""
    mdata = request.getfixturevalue(name)
    links = mdata.uns["truth"]["links"][pair].toarray()
    r = np.abs(_within(mdata, *_pair(pair)))
    assert np.median(r[links != 0]) > least * np.median(r[links == 0])
    other = np.roll(links, 1, axis=1)  # the same numbers of links, to the wrong targets
    assert np.median(r[(other != 0) & (links == 0)]) < np.median(r[links != 0]) / 1.5


# ------------------------------------------------------------------ regulation


def test_counts_are_such_as_are_measured(regulation: mudata.MuData) -> None:
    for mod in regulation.mod:
        x = regulation[mod].X
        assert isinstance(x, sparse.csr_matrix | sparse.csr_array)
        assert np.array_equal(x.data, np.rint(x.data)) and x.data.min() >= 1
    zeros = {mod: 1 - adata.X.nnz / np.prod(adata.shape) for mod, adata in regulation.mod.items()}
    assert zeros["atac"] > 0.8 and zeros["premrna"] > zeros["mrna"] > 0.3 and zeros["adt"] < 0.05
    unspliced = regulation["premrna"].X.sum() / regulation["mrna"].X.sum()
    assert 0.1 < unspliced < 0.4


def test_truth_is_consistent(regulation: mudata.MuData) -> None:
    truth = regulation.uns["truth"]
    links = {name: matrix.toarray() for name, matrix in truth["links"].items()}
    role = truth["role"]
    assert {mod: len(of_mod) for mod, of_mod in role.items()} == {
        mod: adata.n_vars for mod, adata in regulation.mod.items()
    }
    atac = links["premrna_from_atac"]
    acts = np.isin(role["atac"], ["promoter", "enhancer", "silencer"])
    assert np.array_equal((atac != 0).sum(axis=1), acts.astype(int))
    assert np.array_equal((atac < 0).any(axis=1), role["atac"] == "silencer")
    controlled = np.isin(role["premrna"], ["regulator", "target"])
    assert np.array_equal((atac != 0).any(axis=0), controlled)
    assert np.array_equal(links["mrna_from_premrna"], np.eye(regulation["mrna"].n_vars))
    proteins = links["adt_from_mrna"]
    assert np.array_equal(proteins.sum(axis=0), (role["adt"] != "control").astype(float))
    assert np.array_equal(links["mrna_from_atac"], atac)
    assert np.array_equal(links["adt_from_atac"], atac @ proteins)
    assert np.array_equal(links["adt_from_premrna"], proteins)
    by, to = truth["regulation"].nonzero()
    assert set(role["mrna"][by]) == {"regulator"}
    assert set(role["mrna"][to]) == {"regulator", "target"}
    assert not (by == to).any()
    assert set(np.unique(truth["regulation"].data)) == {-1.0, 1.0}


def test_branches_part_with_pseudotime(regulation: mudata.MuData) -> None:
    x = _values(regulation, "mrna")
    late = (regulation.obs["pseudotime"] > 0.6).to_numpy()
    early = (regulation.obs["pseudotime"] < 0.05).to_numpy()
    labels = regulation.obs["cell_type"].to_numpy()
    model = LogisticRegression(max_iter=1000, C=0.01)
    assert cross_val_score(model, x[late], labels[late], cv=5).mean() > 0.9
    assert cross_val_score(model, x[early], labels[early], cv=3).mean() < 0.5


def test_decoys_follow_the_branch(regulation: mudata.MuData) -> None:
    """Peaks and genes without a regulatory link differ between branches all the same."""
    role, codes = regulation.uns["truth"]["role"], regulation.obs["cell_type"].cat.codes.to_numpy()
    for mod in ("atac", "mrna"):
        x = _values(regulation, mod)
        means = np.stack([x[codes == code].mean(axis=0) for code in range(5)])
        spread = means.std(axis=0) / x.std(axis=0)
        still = "constitutive" if mod == "atac" else "housekeeping"
        by_branch, not_by_branch = spread[role[mod] == "bystander"], spread[role[mod] == still]
        assert np.median(by_branch) > 2 * np.median(not_by_branch)


def _one_gene(**peaks: float) -> _kinetics.Network:
    """A gene with promoter, two enhancers and a silencer that are always open, or never."""
    names = ("promoter", "enhancer", "second", "silencer")
    is_open = np.array([peaks[name] for name in names], np.float32)
    level = np.ones((1, 2), np.float32)
    programmes = _kinetics.Programmes(
        root=level[0], level=level, on=0 * level, off=np.full_like(level, 1e4)
    )
    one, four = np.ones(1, np.float32), np.ones(4, np.float32)
    return _kinetics.Network(
        programmes=programmes,
        peaks=_kinetics.Peaks(
            gene=np.zeros(4, int),
            role=np.array(names),
            factor=np.full(4, 2),  # the second signal, behind one regulator
            log_threshold=-5 * four,
            steepness=4 * four,
            closed=is_open,
            opened=is_open,
            switching=four,
        ),
        genes=_kinetics.Genes(
            n_regulators=1,
            role=np.array(["target"]),
            promoter=np.array([0]),
            enhancer=np.array([1]),
            second_enhancer=np.array([2]),
            silencer=np.array([3]),
            cooperative=np.array([bool(peaks.get("cooperative", True))]),
            transcription=15 * one,
            splicing=1.5 * one,
            decay=0.2 * one,
        ),
        proteins=_kinetics.Proteins(gene=np.array([0]), translation=20 * one, decay=0.2 * one),
        regulator_decay=0.2 * one,
    )


def _mean_state(**peaks: float) -> _kinetics.State:
    rng = np.random.default_rng(0)
    return _kinetics.integrate(_one_gene(**peaks), np.zeros(200, int), np.ones(200), rng)


def test_kinetics_reach_the_steady_state() -> None:
    """u = alpha / beta, s = alpha / gamma, p = kappa s / delta, of a gene that is always on."""
    state = _mean_state(promoter=1, enhancer=1, second=1, silencer=0)
    size = state.premrna / 10  # 15 / 1.5
    assert np.median(size) == pytest.approx(1, abs=0.05)
    assert np.std(np.log(size)) == pytest.approx(0.2, abs=0.03)
    assert state.mrna == pytest.approx(75 * size, rel=1e-3)
    assert state.protein == pytest.approx(100 * state.mrna, rel=1e-3)


def test_peaks_cooperate_and_silence() -> None:
    def level(**peaks: float) -> float:
        state = _mean_state(**{"promoter": 1, "enhancer": 1, "second": 1, "silencer": 0} | peaks)
        return float(np.median(state.premrna))

    on, off = level(), level(promoter=0)
    assert off < 0.05 * on
    assert level(second=0, cooperative=True) == pytest.approx(off)
    assert level(second=0, cooperative=False) == pytest.approx(on)
    assert level(enhancer=0, second=0, cooperative=False) == pytest.approx(off)
    assert off < level(silencer=1) < 0.2 * on


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_groups": 1}, "n_groups: expected an integer of at least 2, found 1"),
        ({"n_regulators": 4}, "n_regulators: expected an integer of at least 5, found 4"),
        ({"n_obs": 3}, "n_obs: expected an integer of at least 5, found 3"),
        ({"n_targets": 0}, "n_targets: expected an integer of at least 1, found 0"),
        ({"n_proteins": 1.5}, "n_proteins: expected an integer of at least 1, found 1.5"),
        ({"n_housekeeping": -1}, "n_housekeeping: expected an integer of at least 0, found -1"),
        ({"n_proteins": 101}, r"at most n_targets \+ n_bystanders = 100, found 101"),
        ({"random_state": -1}, "random_state: expected"),
    ],
)
def test_regulation_refuses_impossible_settings(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        un.datasets.simulate_regulation(**settings)


def test_smallest_networks() -> None:
    mdata = un.datasets.simulate_regulation(
        n_obs=12,
        n_groups=2,
        n_regulators=2,
        n_targets=1,
        n_bystanders=0,
        n_housekeeping=0,
        n_proteins=1,
    )
    assert mdata["mrna"].shape == (12, 3)
    assert mdata.uns["truth"]["links"]["adt_from_mrna"].toarray()[2].tolist() == [1, 0, 0, 0, 0]


# ------------------------------------------------------------------ two views


def test_each_view_tells_its_groups_apart(two_views: mudata.MuData) -> None:
    obs = two_views.obs
    assert obs.groupby("cell_type", observed=True)["view_a_group"].nunique().max() == 1
    assert (
        not obs.groupby(["view_a_group", "view_b_group"], observed=True)["cell_type"]
        .nunique()
        .ne(1)
        .any()
    )
    model = LogisticRegression(max_iter=1000, C=0.01)

    def accuracy(views: list[str], column: str) -> float:
        x = np.hstack([_values(two_views, view) for view in views])
        return float(cross_val_score(model, x, obs[column].to_numpy(), cv=3).mean())

    both = accuracy(["view_a", "view_b"], "cell_type")
    for view in two_views.mod:
        assert accuracy([view], f"{view}_group") > 0.8
        assert accuracy([view], "cell_type") < both - 0.05


def test_views_are_decoded_from_their_factors(two_views: mudata.MuData) -> None:
    factors = two_views.uns["truth"]["factors"]
    a, b = factors["view_a"].toarray(), factors["view_b"].toarray()
    assert a.shape == (200, 15) and b.shape == (100, 15)
    assert set(a.sum(axis=1)) == {0, 1, 2}
    links = two_views.uns["truth"]["links"]["view_b_from_view_a"].toarray()
    assert np.array_equal(links, a[:, :10] @ b[:, :10].T > 0)
    back = two_views.uns["truth"]["links"]["view_a_from_view_b"].toarray()
    assert np.array_equal(back, links.T)
    silent = two_views["view_a"].X[:, a.sum(axis=1) == 0]
    r = np.corrcoef(silent.T)[np.triu_indices(silent.shape[1], 1)]
    assert np.abs(r).max() < 0.2
    zeros = (two_views["view_a"].X == 0).mean()
    assert 0.3 < zeros < 0.6
    assert (
        un.datasets.simulate_two_views(noise=0, dropout=1e6)["view_a"].X == 0
    ).mean() < zeros / 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_groups": 1}, "n_groups: expected an integer of at least 2, found 1"),
        ({"n_obs": 5}, "n_obs: expected an integer of at least 10, found 5"),
        ({"n_vars": {"a": 5}}, r"n_vars: expected two views, found \['a'\]"),
        ({"n_vars": {"a/b": 5, "c": 5}}, "without '/', found 'a/b'"),
        (
            {"n_vars": {"a": 0, "c": 5}},
            r"n_vars\['a'\]: expected an integer of at least 1, found 0",
        ),
        ({"n_shared": 0}, "n_shared: expected an integer of at least 1, found 0"),
        ({"n_specific": True}, "n_specific: expected an integer of at least 0, found True"),
        ({"noise": -1.0}, "noise: expected a number of 0 or more, found -1.0"),
        ({"dropout": float("inf")}, "dropout: expected a number of 0 or more, found inf"),
    ],
)
def test_two_views_refuse_impossible_settings(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        un.datasets.simulate_two_views(**settings)
