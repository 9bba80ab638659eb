"""Significance of relevance: the null distribution from refits on shuffled features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
from mudata import MuData
from numpy.typing import NDArray
from scipy import sparse
from tqdm.auto import tqdm

from .._explain import GroupRelevance
from .._explain_cross import CrossRelevance, cross_relevance
from .._model import Model
from .._null import FEWEST, PARTS, Null, p_values, q_values, shuffled
from .._sample import Sample
from ._explain_job import Job
from ._explain_models import called_groups
from ._refit import train_again, training_data

Array = NDArray[Any]

#: Fewest refits: each feature is shuffled in one of `PARTS`.
_FEWEST_PERMUTATIONS = PARTS * FEWEST
#: Pairs of features that make a group's null distribution, where there are more: all of some source
#: features drawn at random, and at least so many of these.
_NULL_PAIRS, _FEWEST_SOURCES = 250_000, 25


def check_permutations(
    n_permutations: Any, model: Model, n_models: int, source: str | None
) -> None:
    """Refuse a null distribution that would be too small, or of another thing than is tested.

    Raises
    ------
    ValueError
        Too few permutations, several models, or groups of features that were found from these.
    """
    whole = isinstance(n_permutations, (int, np.integer)) and not isinstance(n_permutations, bool)
    if whole and n_permutations == 0:
        return
    if not whole or n_permutations < _FEWEST_PERMUTATIONS:
        raise ValueError(
            f"n_permutations: expected 0 or an integer >= {_FEWEST_PERMUTATIONS}, found "
            f"{n_permutations!r}."
        )
    if n_models > 1:
        raise ValueError(
            f"n_permutations tests one model, and {n_models} are explained here; explain one of "
            "them, or leave it out."
        )
    if source is None and model.info.labels_key is None:
        raise ValueError(
            "n_permutations: expected a model trained on labels, found one whose groups were found "
            "from the features to be tested: these differ between the groups by construction, and "
            "any q would be far too small. Say how far fits agree (n_repeats), or test features "
            "that had no part in finding the groups: find groups with some modalities "
            "(tl.fit(..., modalities=[...])), write them down (tl.integrate), and train a model of "
            "another modality on them as labels (tl.fit(..., labels_key='unitednet_group', "
            "key_added='second'))."
        )


@dataclass(frozen=True)
class Refits:
    """The refits that a null distribution is made of.

    Parameters
    ----------
    mdata
        What the model was trained on.
    job
        The explanation of the model itself.
    n_permutations
        How many.
    draw
        From data, groups and `seed` to the cells to explain and the background, as for the model.
    seed
        Of shuffling; samples are drawn with the seeds after it.
    """

    mdata: MuData
    job: Job
    n_permutations: int
    draw: Callable[..., Sample]
    seed: int

    def of_groups(
        self, relevance: GroupRelevance, output: Literal["logits", "probabilities"], fixed: bool
    ) -> dict[str, list[Array]]:
        """Significance of the size of the signed means of group relevance.

        Parameters
        ----------
        relevance
            Of the model itself.
        output
            What is explained.
        fixed
            Whether the groups of cells are given; else each refit's head identifies them.

        Returns
        -------
        ``p`` and ``q``, per modality features x groups.
        """
        sizes = [len(signed) for signed in relevance.signed]
        observed = np.abs(np.concatenate(relevance.signed))
        null = np.full((self.n_permutations, *observed.shape), np.nan, np.float32)
        every = list(range(len(sizes)))
        for row, (job, chosen) in zip(null, self._jobs(every, None, fixed=fixed), strict=True):
            found = np.abs(np.concatenate(job.explain_groups(output, [])[0].signed))
            here = np.concatenate(chosen)
            row[here] = found[here]
        blocks = np.repeat(every, sizes)
        p, q = np.full((2, *observed.shape), np.nan)
        for k in range(observed.shape[1]):
            group = Null(null[:, :, k], blocks)
            p[:, k] = p_values(observed[:, k], group, group)
            q[:, k] = q_values(p[:, k])
        cuts = np.cumsum(sizes)[:-1]
        return {"p": np.split(p, cuts), "q": np.split(q, cuts)}

    def of_pairs(
        self, relevance: CrossRelevance, source: int, target: int, batch: Array | None
    ) -> dict[str, list[Any]]:
        """Significance of the means of absolute values of cross-modal relevance.

        Parameters
        ----------
        relevance
            Of the model itself.
        source, target
            Numbers of the modalities.
        batch
            As which batch all cells are decoded.

        Returns
        -------
        ``p`` and ``q``, per group a matrix, source x target features, of the pairs that `relevance`
        has.
        """
        shape = relevance.signed[0].shape
        pair = source, target, batch
        tests = {
            k: _Tests.of(matrix, shape, self.seed)
            for k, matrix in enumerate(relevance.absolute or [])
            if relevance.n_cells[k]
        }
        observed = {k: _levelled(self.job, k, *pair)[one.kept] for k, one in tests.items()}
        null = {
            k: np.full((self.n_permutations, len(one.pairs)), np.nan, np.float32)
            for k, one in tests.items()
        }
        jobs = self._jobs([source], self.job.groups, fixed=True)
        for position, (job, (chosen,)) in enumerate(jobs):
            for k, one in tests.items():
                here = chosen[one.pairs // shape[1]]
                null[k][position, here] = _levelled(job, k, *pair)[one.pairs[here]]
        nothing = sparse.csr_matrix(shape, dtype=np.float32)
        results = [
            tests[k].significance(observed[k], null[k]) if k in tests else (nothing, nothing)
            for k in range(len(relevance.n_cells))
        ]
        return {"p": [p for p, _ in results], "q": [q for _, q in results]}

    def _jobs(
        self, modalities: Sequence[int], groups: Array | None, *, fixed: bool
    ) -> Iterator[tuple[Job, list[Array]]]:
        """Train and yield, one at a time, each refit's explanation to make, and what is shuffled.

        Parameters
        ----------
        modalities
            Whose features are shuffled.
        groups
            Groups that shuffling does not cross.
        fixed
            Whether cells count to the groups that they have in the explanation of the model.
        """
        model, job = self.job.model, self.job
        trained, info = training_data(self.mdata, model)
        draws = shuffled(trained, modalities, groups, self.n_permutations, self.seed)
        with tqdm(
            total=self.n_permutations, desc="permutations", unit="fit", disable=not job.progress
        ) as bar:
            for number, (data, chosen) in enumerate(draws, 1):
                again = train_again(model, data, info, number, progress=False)
                mine = job.groups if fixed else called_groups(again, data)
                sample = self.draw(data, mine, seed=(self.seed + number) % 2**32)
                yield (
                    replace(
                        job, model=again, data=data, groups=mine, sample=sample, progress=False
                    ),
                    chosen,
                )
                bar.update()


@dataclass(frozen=True)
class _Tests:
    """Pairs that are tested in a group, and those whose null values are pooled.

    Parameters
    ----------
    shape
        Source x target features.
    kept
        Positions in the flattened matrix of the pairs to test.
    pairs
        Positions of these and of those that are pooled, sorted, each once.
    pooled
        Positions in `pairs` of those that are pooled.
    """

    shape: tuple[int, int]
    kept: Array
    pairs: Array
    pooled: Array

    @classmethod
    def of(cls, absolute: Any, shape: tuple[int, int], seed: int) -> _Tests:
        """Test the pairs that a matrix, dense or sparse, has."""
        if sparse.issparse(absolute):
            stored = sparse.coo_array(cast("Any", absolute))
            kept = stored.row.astype(np.int64) * shape[1] + stored.col
        else:
            kept = np.arange(shape[0] * shape[1])
        n_sources = max(_FEWEST_SOURCES, _NULL_PAIRS // shape[1])
        drawn = np.arange(shape[0])
        if n_sources < shape[0]:
            drawn = np.random.default_rng(seed).choice(shape[0], n_sources, replace=False)
        null = (drawn[:, None] * shape[1] + np.arange(shape[1])).ravel()
        pairs = np.union1d(kept, null)
        return cls(shape, kept, pairs, np.searchsorted(pairs, null))

    def significance(
        self, observed: Array, null: Array
    ) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
        """Return p and q of the tested pairs, from their values and the null values of `pairs`."""
        n_pairs = self.shape[0] * self.shape[1]
        every = Null(null, self.pairs % self.shape[1])
        own = every.take(np.searchsorted(self.pairs, self.kept))
        p = p_values(observed, own, every.take(self.pooled))
        index = self.kept // self.shape[1], self.kept % self.shape[1]
        p_matrix, q_matrix = (
            sparse.csr_matrix((values, index), self.shape) for values in (p, q_values(p, n_pairs))
        )
        return p_matrix, q_matrix


def _levelled(job: Job, group: int, source: int, target: int, batch: Array | None) -> Array:
    """Mean absolute relevance in one group over that of the typical source feature, flattened.

    A network that predicts a target better leans harder on every feature for it, related or not:
    what counts is how a feature stands out of the others, target by target.
    """
    own = job.sample.cells[job.groups[job.sample.cells] == group]
    cells = job.values(own, batch)
    alone = replace(cells, groups=np.zeros(len(own), np.int64), n_groups=1)
    background = job.background(batch)
    found = cross_relevance(job.model.network, source, target, alone, background, top_k=None)
    absolute = np.asarray((found.absolute or [])[0])
    levels = [np.median(column[column > 0]) if column.any() else 1.0 for column in absolute.T]
    return np.ravel(absolute / np.asarray(levels, absolute.dtype))
