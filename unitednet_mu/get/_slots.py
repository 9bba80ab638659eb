"""The one reader of results in `.uns`, and the checks that every getter shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._keys import DEFAULT_STEM
from .._validate import check_mudata, is_one, unknown_name


def command(function: str, *arguments: str, key_added: str = DEFAULT_STEM) -> str:
    """Return the call that a user should run, with `key_added` where it is not the default."""
    stem = () if key_added == DEFAULT_STEM else (f"key_added={key_added!r}",)
    return f"unitednet_mu.tl.{function}({', '.join((*arguments, *stem))})"


def fit_command(key_added: str) -> str:
    """Return the call of `tl.fit` that fills the slots of a stem."""
    return command("fit", "mdata", key_added=key_added)


def record(mdata: object, *, key_added: str, run: str) -> Mapping[str, Any]:
    """Return everything that is stored under a stem in `.uns`.

    Parameters
    ----------
    mdata
        The MuData with results.
    key_added
        The stem.
    run
        The call that would have stored it, for the message.

    Raises
    ------
    TypeError
        `mdata` is not a MuData, or the slot does not hold a mapping.
    ValueError
        Nothing is stored under `key_added`; the message lists the stems that are there.
    """
    uns = check_mudata(mdata).uns
    if key_added not in uns:
        stems = [name for name, value in uns.items() if _is_ours(value)]
        there = f"results are stored under {stems}" if stems else "no results are stored at all"
        raise ValueError(f"nothing stored under {key_added!r} ({there}); run {run} first.")
    found = uns[key_added]
    if not isinstance(found, Mapping):
        raise TypeError(
            f".uns[{key_added!r}]: expected the mapping written by unitednet_mu, "
            f"found {type(found).__name__}."
        )
    return found


def stored(mdata: object, name: str, *, key_added: str, run: str) -> Any:
    """Return one result of a stem.

    Parameters
    ----------
    mdata
        The MuData with results.
    name
        Name of the result: ``"history"``, ``"relevance"``, ...
    key_added
        The stem.
    run
        The call that would have stored it, for the message.

    Raises
    ------
    TypeError
        `mdata` is not a MuData, or the slot does not hold a mapping.
    ValueError
        The result is not stored; the message says what is, and what to run.
    """
    found = record(mdata, key_added=key_added, run=run)
    if name not in found:
        raise ValueError(
            f"no {name} stored under {key_added!r} (there: {', '.join(map(str, found))}); "
            f"run {run} first."
        )
    return found[name]


def texts(value: object) -> list[str]:
    """Return names as a list of `str`, however they came back from a file."""
    items = np.atleast_1d(np.asarray(value, dtype=object)).ravel()
    return [item.decode() if isinstance(item, bytes) else str(item) for item in items]


def choose(available: Sequence[str], asked: str | Sequence[str] | None, what: str) -> list[str]:
    """Return the names asked for, all of them by default, each once.

    Raises
    ------
    ValueError
        A name is unknown, or none is left; the message lists those that exist.
    """
    if asked is None:
        return list(available)
    names = list(dict.fromkeys([str(asked)] if is_one(asked) else map(str, asked)))
    if not names:
        raise ValueError(f"{what}: expected one or more of {list(available)}, found none.")
    for name in names:
        if name not in available:
            raise ValueError(unknown_name(what, name, available))
    return names


def check_n_top(n_top: int | None) -> None:
    """Check that `n_top` is `None` or a positive whole number.

    Raises
    ------
    ValueError
        It is not.
    """
    if n_top is None:
        return
    whole = isinstance(n_top, (int, np.integer)) and not isinstance(n_top, bool)
    if not whole or n_top < 1:
        raise ValueError(f"n_top: expected None or a whole number of at least 1, found {n_top!r}.")


def _is_ours(value: object) -> bool:
    return isinstance(value, Mapping) and "version" in value
