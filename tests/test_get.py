"""The getters, on slots written by hand: values, order, messages, a round trip through a file."""

from __future__ import annotations

import sys
import types

import mudata as md
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import unitednet_mu as un
from unitednet_mu import get

# mudata 0.3 announces, whenever a MuData is made or read, what 0.4 changed.
pytestmark = pytest.mark.filterwarnings("ignore:From 0.4 .update:FutureWarning")

GROUPS = ["CD4/CD8", "γδ T", "7"]
GENES = ["MS4A1", "LYZ", "NKG7", "GAPDH"]
PROTEINS = ["cd4.1", "cd56.2"]

SIGNED_RNA = np.array(
    [[3.0, -0.5, 0.0], [-1.0, 2.0, 0.25], [0.5, -4.0, 1.0], [0.0, 0.0, np.nan]], dtype=np.float32
)
ABSOLUTE_RNA = np.array(
    [[3.0, 0.75, 0.5], [1.5, 2.0, 0.25], [0.5, 4.0, 1.0], [0.0, 0.25, np.nan]], dtype=np.float32
)
SIGNED_ADT = np.array([[2.0, 1.0, -3.0], [-0.25, 5.0, -0.75]], dtype=np.float32)
ABSOLUTE_ADT = np.array([[2.0, 1.0, 3.0], [0.25, 5.0, 0.75]], dtype=np.float32)

CROSS = [
    {("MS4A1", "cd4.1"): -2.0, ("LYZ", "cd56.2"): 1.0, ("LYZ", "cd4.1"): 0.5},
    {("NKG7", "cd56.2"): 4.0},
    {},
]


def cross_matrices(absolute: bool) -> dict[str, sparse.csr_matrix]:
    matrices = {}
    for position, pairs in enumerate(CROSS):
        dense = np.zeros((len(GENES), len(PROTEINS)), dtype=np.float32)
        for (gene, protein), value in pairs.items():
            dense[GENES.index(gene), PROTEINS.index(protein)] = abs(value) if absolute else value
        matrices[str(position)] = sparse.csr_matrix(dense)
    return matrices


def history_table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "epoch": [1, 2, 3, 4],
            "phase": ["warmup", "train", "train", "adapt"],
            "train_reconstruction": [4.0, 3.0, 2.0, 1.0],
            "val_reconstruction": [4.5, 3.5, 2.5, 1.5],
            "train_generator": [np.nan, 0.5, 0.25, 0.125],
            "train_entropy": [np.nan] * 4,
            "learning_rate": [1e-3] * 4,
            "val_total": [5.0, 4.0, 3.0, 2.0],
        }
    )


def results(groups: list[str] = GROUPS) -> dict[str, object]:
    """Return what stands under the stem in `.uns`."""
    n = len(groups)
    names = np.array(groups)
    blocks = {"rna": (GENES, SIGNED_RNA, ABSOLUTE_RNA), "adt": (PROTEINS, SIGNED_ADT, ABSOLUTE_ADT)}
    cross = {
        name: {
            key: value for key, value in cross_matrices(name == "absolute").items() if int(key) < n
        }
        for name in ("signed", "absolute")
    }
    return {
        "version": "0.1.0",
        "params": {"data": {"modalities": ["rna", "adt"]}, "network": {}, "training": {}},
        "history": history_table(),
        "groups": names,
        "labels": np.array(["B", *groups]),
        "modality_weights": pd.DataFrame({"weight": [0.75, 0.25]}, index=["rna", "adt"]),
        "modality_effects": pd.DataFrame(
            np.resize([0.5, 0.02, -0.1, np.nan, 0.9, 0.3], (n, 2)), names, ["rna", "adt"]
        ),
        "model": {"weights": np.arange(5, dtype=np.uint8), "config": '{"a": 1}'},
        "relevance": {
            "groups": names,
            "params": {"output": "centred_logits", "gap": 1e-7},
            "modalities": {
                mod: {"features": np.array(f), "signed": s[:, :n], "absolute": a[:, :n]}
                for mod, (f, s, a) in blocks.items()
            },
        },
        "cross_relevance": {
            "adt_from_rna": {
                "groups": names,
                "source": "rna",
                "target": "adt",
                "source_features": np.array(GENES),
                "target_features": np.array(PROTEINS),
                "params": {},
                **cross,
            }
        },
    }


def stored_mdata(key_added: str = "unitednet") -> md.MuData:
    """Return 6 cells with every slot that a getter or a plot reads."""
    rng = np.random.default_rng(0)
    cells = [f"cell{i}" for i in range(6)]
    rna = AnnData(
        rng.poisson(2.0, (6, 4)).astype(np.float32),
        obs=pd.DataFrame(index=cells),
        var=pd.DataFrame(index=GENES),
    )
    adt = AnnData(
        sparse.csr_matrix(rng.normal(size=(4, 2)).astype(np.float32)),
        obs=pd.DataFrame(index=cells[2:]),
        var=pd.DataFrame(index=PROTEINS),
    )
    mdata = md.MuData({"rna": rna, "adt": adt})
    mdata.uns[key_added] = results()
    mdata.obsm[f"{key_added}_probabilities"] = rng.dirichlet(np.ones(3), 6).astype(np.float32)
    mdata.obsm[f"{key_added}_label_probabilities"] = np.array(
        [
            [0.9, 0.1, 0.0, 0.0],
            [0.5, 0.3, 0.1, 0.1],
            [0.1, 0.8, 0.1, 0.0],
            [0.0, 0.4, 0.3, 0.3],
            [0.0, 0.0, 1.0, 0.0],
            [0.02, 0.0, 0.0, 0.98],
        ],
        dtype=np.float32,
    )
    labels = ["B", "unknown", "CD4/CD8", "unknown", "γδ T", "7"]
    mdata.obs[f"{key_added}_label"] = pd.Categorical(labels)
    confidence = np.array([0.9, 0.5, 0.8, 0.4, 1.0, 0.98], dtype=np.float32)
    mdata.obs[f"{key_added}_label_confidence"] = confidence
    return mdata


@pytest.fixture(params=["memory", "file"])
def mdata(request: pytest.FixtureRequest, tmp_path: object) -> md.MuData:
    made = stored_mdata()
    if request.param == "memory":
        return made
    path = f"{tmp_path}/results.h5mu"
    made.write(path)
    return md.read_h5mu(path)


def test_probabilities(mdata: md.MuData) -> None:
    table = get.probabilities(mdata)
    assert list(table.columns) == GROUPS
    assert list(table.index) == list(mdata.obs_names)
    assert np.array_equal(table.to_numpy(), mdata.obsm["unitednet_probabilities"])
    labels = get.probabilities(mdata, labels=True)
    assert list(labels.columns) == ["B", *GROUPS]
    assert labels.loc["cell3", "CD4/CD8"] == np.float32(0.4)


def test_groups_named_by_numbers(fitted: md.MuData) -> None:
    un.tl.fit(fitted, n_groups=2, training={"max_epochs": 2, "refit": False}, progress=False)
    un.tl.explain(fitted, n_cells=2, n_background=2, progress=False)
    expected = get.relevance(fitted, group="1")
    pd.testing.assert_frame_equal(get.relevance(fitted, group=1), expected)  # type: ignore[arg-type]
    pd.testing.assert_frame_equal(get.relevance(fitted, group=[1]), expected)  # type: ignore[list-item]


def test_relevance_values(mdata: md.MuData) -> None:
    table = get.relevance(mdata)
    columns = ["feature", "modality", "group", "value", "absolute", "sign", "rank"]
    assert list(table.columns) == columns
    assert list(dict.fromkeys(table["group"])) == GROUPS  # the stored order, not the alphabet's
    first = table[table["group"] == "CD4/CD8"]
    assert list(first["feature"]) == ["MS4A1", "cd4.1", "LYZ", "NKG7", "cd56.2", "GAPDH"]
    assert list(first["modality"]) == ["rna", "adt", "rna", "rna", "adt", "rna"]
    assert list(first["value"]) == [3.0, 2.0, -1.0, 0.5, -0.25, 0.0]
    assert list(first["absolute"]) == [3.0, 2.0, 1.5, 0.5, 0.25, 0.0]
    assert list(first["sign"]) == [1, 1, -1, 1, -1, 0]
    assert list(first["rank"]) == [1, 2, 3, 4, 5, 6]
    assert len(table) == 3 * 6 - 1  # GAPDH was never measured in group 7
    assert "GAPDH" not in set(table[table["group"] == "7"]["feature"])
    assert list(table.index) == list(range(len(table)))


def test_relevance_choices(mdata: md.MuData) -> None:
    table = get.relevance(mdata, group="γδ T", n_top=2)
    assert list(zip(table["feature"], table["rank"], strict=True)) == [("cd56.2", 1), ("NKG7", 2)]
    table = get.relevance(mdata, group=["7", "CD4/CD8"], modality="rna", n_top=1)
    assert list(table["group"]) == ["7", "CD4/CD8"]
    assert list(table["feature"]) == ["NKG7", "MS4A1"]
    assert list(table["rank"]) == [1, 1]
    assert get.relevance(mdata, modality=["adt", "rna"]).groupby("group").size()["γδ T"] == 6


def test_relevance_of_a_single_group(tmp_path: object) -> None:
    made = stored_mdata()
    made.uns["unitednet"] = results(GROUPS[:1])
    made.write(f"{tmp_path}/one.h5mu")
    table = get.relevance(md.read_h5mu(f"{tmp_path}/one.h5mu"))
    assert set(table["group"]) == {"CD4/CD8"}
    assert list(table["value"]) == [3.0, 2.0, -1.0, 0.5, -0.25, 0.0]


def test_cross_relevance_values(mdata: md.MuData) -> None:
    table = get.cross_relevance(mdata, source="rna", target="adt")
    rows = list(table.itertuples(index=False, name=None))
    assert list(table.columns) == [
        "feature", "target_feature", "group", "value", "absolute", "sign", "rank",
    ]  # fmt: skip
    assert rows == [
        ("MS4A1", "cd4.1", "CD4/CD8", -2.0, 2.0, -1, 1),
        ("LYZ", "cd56.2", "CD4/CD8", 1.0, 1.0, 1, 2),
        ("LYZ", "cd4.1", "CD4/CD8", 0.5, 0.5, 1, 3),
        ("NKG7", "cd56.2", "γδ T", 4.0, 4.0, 1, 1),
    ]
    top = get.cross_relevance(mdata, source=["rna"], target="adt", group="CD4/CD8", n_top=1)
    assert list(top["feature"]) == ["MS4A1"]
    assert get.cross_relevance(mdata, source="rna", target="adt", group="7").empty


def test_cross_relevance_keeps_cancelled_and_dense_pairs() -> None:
    made = stored_mdata()
    entry = made.uns["unitednet"]["cross_relevance"]["adt_from_rna"]
    signed = entry["signed"]["1"].copy()
    signed.data[:] = 0
    signed.eliminate_zeros()  # signs cancel: nothing is left to store, the absolute mean is
    entry["signed"]["1"] = signed
    entry["signed"]["2"] = np.arange(8, dtype=np.float32).reshape(4, 2) - 4
    entry["absolute"]["2"] = np.abs(entry["signed"]["2"])
    cancelled = get.cross_relevance(made, source="rna", target="adt", group="γδ T")
    assert cancelled[["value", "absolute", "sign"]].to_numpy().tolist() == [[0.0, 4.0, 0.0]]
    dense = get.cross_relevance(made, source="rna", target="adt", group="7")
    assert len(dense) == 8
    assert dense.loc[0, ["feature", "target_feature", "value"]].tolist() == ["MS4A1", "cd4.1", -4.0]


def test_cross_relevance_from_several_sources() -> None:
    made = stored_mdata()
    found = made.uns["unitednet"]["cross_relevance"]
    found["adt_from_rna+atac"] = {**found["adt_from_rna"], "source": "rna+atac"}
    del found["adt_from_rna"]
    for source in (["rna", "atac"], ["atac", "rna"]):
        assert len(get.cross_relevance(made, source=source, target="adt")) == 4
    with pytest.raises(ValueError, match=r"no cross_relevance of 'adt' from 'rna'.*rna\+atac"):
        get.cross_relevance(made, source="rna", target="adt")


def test_history_and_weights(mdata: md.MuData) -> None:
    table = get.history(mdata)
    assert list(table["epoch"]) == [1, 2, 3, 4]
    assert list(table["phase"]) == ["warmup", "train", "train", "adapt"]
    assert list(table["val_total"]) == [5.0, 4.0, 3.0, 2.0]
    assert np.isnan(table["train_generator"][0])
    weights = get.modality_weights(mdata)
    assert weights["weight"].to_dict() == {"rna": 0.75, "adt": 0.25}


def test_tables_are_copies(mdata: md.MuData) -> None:
    for read in (get.history, get.modality_weights, get.relevance, get.probabilities):
        table = read(mdata)
        before = table.copy(deep=True)
        for column in range(table.shape[1]):
            table.iloc[:, column] = table.iloc[::-1, column].to_numpy()
        assert not table.equals(before)
        pd.testing.assert_frame_equal(read(mdata), before)


def test_model_is_built_from_what_is_stored(
    mdata: md.MuData, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = types.ModuleType("unitednet_mu._model")
    fake.Model = types.SimpleNamespace(from_dict=lambda stored: ("model", stored))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unitednet_mu._model", fake)
    kind, stored = get.model(mdata)
    assert kind == "model"
    assert np.array_equal(stored["weights"], np.arange(5))
    assert stored["config"] == '{"a": 1}'


def test_another_stem() -> None:
    made = stored_mdata("second")
    assert list(get.relevance(made, group="7", key_added="second")["rank"]) == [1, 2, 3, 4, 5]
    assert list(get.probabilities(made, key_added="second").columns) == GROUPS
    with pytest.raises(ValueError, match=r"nothing stored under 'unitednet' .*\['second'\]"):
        get.history(made)


READERS = {
    "history": (get.history, {}, "unitednet_mu.tl.fit(mdata)"),
    "modality_weights": (get.modality_weights, {}, "unitednet_mu.tl.fit(mdata)"),
    "model": (get.model, {}, "unitednet_mu.tl.fit(mdata)"),
    "relevance": (get.relevance, {}, "unitednet_mu.tl.explain(mdata)"),
    "cross_relevance": (
        get.cross_relevance,
        {"source": ["rna", "atac"], "target": "adt"},
        "unitednet_mu.tl.explain(mdata, source=['rna', 'atac'], target='adt')",
    ),
    "groups": (get.probabilities, {}, "unitednet_mu.tl.integrate(mdata)"),
    "labels": (
        get.probabilities,
        {"labels": True},
        "unitednet_mu.tl.transfer_labels(query, reference)",
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_message_where_a_result_is_missing(name: str) -> None:
    reader, arguments, command = READERS[name]
    made = stored_mdata()
    del made.uns["unitednet"][name]
    with pytest.raises(ValueError) as caught:
        reader(made, **arguments)
    message = str(caught.value)
    assert f"no {name} stored under 'unitednet'" in message
    assert "there: version, params" in message
    assert message.endswith(f"run {command} first.")


@pytest.mark.parametrize("name", READERS)
def test_message_where_nothing_is_stored(name: str) -> None:
    reader, arguments, command = READERS[name]
    made = stored_mdata()
    del made.uns["unitednet"]
    with pytest.raises(ValueError, match="nothing stored under 'unitednet'") as caught:
        reader(made, **arguments)
    assert "no results are stored at all" in str(caught.value)
    assert command in str(caught.value)


def test_messages_name_the_stem_to_run_with() -> None:
    with pytest.raises(ValueError, match=r"tl\.explain\(mdata, key_added='second'\)"):
        get.relevance(stored_mdata(), key_added="second")


def test_messages_list_what_exists() -> None:
    made = stored_mdata()
    with pytest.raises(
        ValueError, match=r"group 'CD4' not found; available: .*'CD4/CD8', 'γδ T', '7'"
    ):
        get.relevance(made, group="CD4")
    with pytest.raises(ValueError, match=r"modality 'atac' not found; available: .*'rna', 'adt'"):
        get.relevance(made, modality="atac")
    with pytest.raises(ValueError, match="group: expected one or more"):
        get.relevance(made, group=[])
    with pytest.raises(ValueError, match="group 'B' not found"):
        get.cross_relevance(made, source="rna", target="adt", group="B")
    for n_top in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="n_top: expected None or a whole number"):
            get.relevance(made, n_top=n_top)  # type: ignore[arg-type]


def test_probabilities_of_a_model_before(fitted: md.MuData, query: md.MuData) -> None:
    """Names of a model that came to stand there since are not put on them."""
    run = (
        r"no \.obsm\['unitednet_probabilities'\] .* run unitednet_mu\.tl\.integrate\(mdata\) first"
    )
    quick = {"training": {"max_epochs": 2, "refit": False}, "progress": False}
    un.tl.fit(query, n_groups=3, **quick)
    un.tl.integrate(query)
    assert get.probabilities(query).columns.tolist() == ["0", "1", "2"]
    un.tl.transfer_labels(query, fitted, adapt=False, progress=False)
    with pytest.raises(ValueError, match=run):
        get.probabilities(query)
    un.tl.integrate(query)
    before = get.probabilities(query)
    un.tl.transfer_labels(query, fitted, adapt=False, progress=False)  # the same model
    pd.testing.assert_frame_equal(get.probabilities(query), before)
    query.obs["other"] = query.obs["cell_type"].astype(str).map(lambda name: f"not {name}")
    un.tl.fit(query, labels_key="other", **quick)
    with pytest.raises(ValueError, match=run):
        get.probabilities(query)


@pytest.fixture
def query() -> md.MuData:
    return un.datasets.simulate_multimodal(n_obs=60, n_groups=3, random_state=4)


def test_probabilities_that_do_not_fit() -> None:
    made = stored_mdata()
    made.uns["unitednet"]["groups"] = np.array(GROUPS[:2])
    with pytest.raises(ValueError, match=r"one column for each of .* found shape \(6, 3\)"):
        get.probabilities(made)
    del made.obsm["unitednet_probabilities"]
    with pytest.raises(ValueError, match=r"no \.obsm\['unitednet_probabilities'\].*tl\.integrate"):
        get.probabilities(made)


@pytest.mark.parametrize("name", READERS)
def test_not_a_mudata(name: str) -> None:
    reader, arguments, _ = READERS[name]
    with pytest.raises(TypeError, match="expected a MuData, found an AnnData"):
        reader(stored_mdata()["rna"], **arguments)


def test_foreign_slot() -> None:
    made = stored_mdata()
    made.uns["unitednet"] = "mine"
    with pytest.raises(TypeError, match="expected the mapping written by unitednet_mu, found str"):
        get.history(made)
