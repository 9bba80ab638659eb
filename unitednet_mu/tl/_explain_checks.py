"""Checks of the arguments of `tl.explain`, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._validate import unknown_name


def check_choice(source: Any, target: Any, output: Any, top_k: Any, transform_batch: Any) -> None:
    """Refuse arguments that contradict each other, or are for the other kind of relevance."""
    if (source is None) != (target is None):
        raise ValueError(
            f"expected both source and target, or neither, found {source!r} and {target!r}."
        )
    if output not in ("logits", "probabilities"):
        raise ValueError(unknown_name("output", output, ("logits", "probabilities")))
    if top_k is not None and top_k != "auto":
        check_whole("top_k", top_k, "'auto', None or ")
    if source is not None and output != "logits":
        raise ValueError(
            f"output is for group relevance, and {target!r} is explained by {source!r} here; leave "
            "out source and target, or output."
        )
    for name, given in (
        ("top_k", top_k != "auto"),
        ("transform_batch", transform_batch is not None),
    ):
        if source is None and given:
            raise ValueError(
                f"{name} is for cross-modal relevance, and groups are explained here; name source "
                "and target, or leave it out."
            )


def check_several(n_models: int, n_repeats: int, per_cell: bool | Sequence[str]) -> None:
    """Refuse refits of several models, and single cells' attributions of more than one."""
    if n_models > 1 and n_repeats:
        raise ValueError(
            f"n_repeats refits one model, and {n_models} are given; leave one of them out."
        )
    if n_models + n_repeats > 1 and per_cell is not False:
        raise ValueError(
            f"per_cell is for one model, and {n_models + n_repeats} are explained here; leave it "
            "out, or explain one of them."
        )


def check_whole(name: str, found: Any, other: str = "") -> None:
    """Refuse what is no integer of at least 1; `other` says in the message what else may be."""
    whole = isinstance(found, (int, np.integer)) and not isinstance(found, bool)
    if not whole or found < 1:
        raise ValueError(f"{name}: expected {other}an integer >= 1, found {found!r}.")
