"""How relevance is computed: which methods there are, what each needs, and what is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from .._explain import GroupRelevance
from .._explain_cross import CrossRelevance
from .._path import Path
from .._validate import unknown_name

MethodName = Literal["deeplift", "expected_gradients", "shap"]


@dataclass(frozen=True)
class Method:
    """A method, and where points are drawn, how many of a cell and with which seed."""

    name: MethodName = "deeplift"
    n_samples: int = 200
    seed: int = 0

    def check(
        self, output: str, n_models: int, per_cell: bool | Sequence[str], n_permutations: int
    ) -> None:
        """Refuse what the method does not know.

        Raises
        ------
        ValueError
            An unknown method, or one that lacks what is asked for.
        """
        if self.name not in get_args(MethodName):
            raise ValueError(unknown_name("method", self.name, get_args(MethodName)))
        if self.name != "shap":
            return
        for what, asked in (
            ("output='probabilities'", output == "probabilities"),
            ("per_cell", per_cell is not False),
            ("several models", n_models > 1),
            ("n_permutations", bool(n_permutations)),
        ):
            if asked:
                raise ValueError(
                    f"method='shap' cannot do {what}; use method='deeplift', whose values are the "
                    "same where shap has rules."
                )

    @property
    def path(self) -> Path | None:
        """How points between cells and background are drawn; None where none are."""
        return Path(self.n_samples, self.seed) if self.name == "expected_gradients" else None

    def params(self, found: GroupRelevance | CrossRelevance, n_points: int) -> dict[str, Any]:
        """Return what is recorded of the method, of its points for a cell, and its errors."""
        params: dict[str, Any] = {"method": self.name, "gap": float(found.gap)}
        if self.path is not None:
            params |= {
                "n_samples": n_points,
                "gap_standard_error": float(found.standard_error),
            }
        return params
