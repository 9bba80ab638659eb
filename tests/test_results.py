"""What is written beside the numbers: settings, levels, versions; by value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData
from scipy import sparse

import unitednet_mu as un
from unitednet_mu import _results
from unitednet_mu._results import call_groups


def test_what_was_read_is_written_down(paired: MuData, quick: dict[str, Any]) -> None:
    paired["rna"].layers["own"] = paired["rna"].X * 2
    paired["adt"].obsm["X_two"] = np.asarray(paired["adt"].X)[:, :2].copy()
    paired.obs["plate"] = pd.Categorical(np.arange(len(paired)) % 2)
    settings = {"layer": {"rna": "own"}, "use_rep": {"adt": "X_two"}, "batch_key": "plate"}
    un.tl.fit(paired, labels_key="cell_type", random_state=3, **settings, **quick)
    stored = paired.uns["unitednet"]
    data = stored["params"]["data"]
    assert data["modalities"].tolist() == ["rna", "adt"]
    assert data["layer"].tolist() == ["own", ""]
    assert data["use_rep"].tolist() == ["", "X_two"]
    assert data["likelihood"].tolist() == ["gaussian", "gaussian"]
    assert (data["labels_key"], data["batch_key"], data["random_state"]) == (
        "cell_type",
        "plate",
        3,
    )
    assert stored["version"] == un.__version__
    assert stored["params"]["ended"] == "finished"
    assert stored["groups"].tolist() == sorted(paired.obs["cell_type"].unique())
    weights = stored["modality_weights"]
    assert list(weights.index) == ["rna", "adt"] and weights["weight"].sum() == pytest.approx(1)


def test_what_was_not_given_is_empty(paired: MuData, quick: dict[str, Any]) -> None:
    un.tl.fit(paired, n_groups=2, **quick)
    data = paired.uns["unitednet"]["params"]["data"]
    assert data["layer"].tolist() == data["use_rep"].tolist() == ["", ""]
    assert (data["labels_key"], data["batch_key"]) == ("", "")


def test_settings_as_uns_holds_them() -> None:
    class Config:
        def to_dict(self) -> dict[str, Any]:
            return {"a": None, "b": [1, 2], "c": 0, "d": False}

    plain = _results._plain(Config())
    assert plain["a"] == "auto" and plain["c"] == 0 and plain["d"] is False
    assert isinstance(plain["b"], np.ndarray) and plain["b"].tolist() == [1, 2]


@pytest.mark.parametrize("names", [["T", "B", "NK"], ["T", "unknown", "NK"]])
def test_groups_and_confidence(names: list[str]) -> None:
    p = np.array([[0.2, 0.7, 0.1], [np.nan] * 3, [0.5, 0.3, 0.2], [0.1, 0.3, 0.6]], np.float32)
    group, confidence = call_groups(p, np.array(names))
    assert group.codes.tolist() == [1, -1, 0, 2]
    assert list(group.categories) == names
    assert confidence.dtype == np.float32
    np.testing.assert_allclose(confidence, [0.7, np.nan, 0.5, 0.6])
    unknown = np.array([False, True, True, False])
    group, confidence = call_groups(p, np.array(names), unknown)
    assert list(group.astype(object)) == [names[1], np.nan, "unknown", "NK"]
    assert list(group.categories) == (names if "unknown" in names else [*names, "unknown"])
    np.testing.assert_allclose(confidence, [0.7, np.nan, 0.5, 0.6])


def test_relevance_follows_the_names_of_variables() -> None:
    adata = AnnData(np.zeros((1, 3), np.float32), var=pd.DataFrame(index=["c", "x", "a"]))
    values = np.array([[1.0, 2], [3, 4], [5, 6]])
    found = _results._by_variable(adata, ["a", "b", "c"], values)
    np.testing.assert_array_equal(found, [[5, 6], [np.nan, np.nan], [1, 2]])
    assert found.dtype == np.float32


def test_relevance_between_modalities_is_sparse_and_empty_without_cells() -> None:
    nothing, some = np.full((2, 2), np.nan), sparse.csr_matrix(np.array([[0, 2.0], [0, 0]]))
    found = _results._by_group([nothing, some])
    assert list(found) == ["0", "1"]
    assert [matrix.nnz for matrix in found.values()] == [0, 1] and found["1"][0, 1] == 2
    assert all(matrix.format == "csr" and matrix.dtype == np.float32 for matrix in found.values())
