"""Every name under which something is stored in a MuData, and the rule against collisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DEFAULT_STEM = "unitednet"
UNKNOWN = "unknown"
#: `.uns` key that marks a modality made by this package, whatever its name: never trained on.
PREDICTED_MARK = "unitednet_prediction"
#: `.uns` key that marks a modality computed from others, and says from which; it may be trained on.
DERIVED_MARK = "unitednet_derived"


@dataclass(frozen=True)
class Keys:
    """Slot names built from one stem (`key_added`).

    Parameters
    ----------
    stem
        The stem that stands in every name, ``"unitednet"`` by default.
    """

    stem: str = DEFAULT_STEM

    @property
    def uns(self) -> str:
        """`.uns` key of everything that is not per cell."""
        return self.stem

    @property
    def embedding(self) -> str:
        """`.obsm` key of the fused embedding, and of a modality's own code in `mdata[mod].obsm`."""
        return f"X_{self.stem}"

    @property
    def group(self) -> str:
        """`.obs` key of the identified group."""
        return f"{self.stem}_group"

    @property
    def group_confidence(self) -> str:
        """`.obs` key of the probability of the identified group."""
        return f"{self.stem}_group_confidence"

    @property
    def probabilities(self) -> str:
        """`.obsm` key of the group probabilities, cells x groups."""
        return f"{self.stem}_probabilities"

    @property
    def label(self) -> str:
        """`.obs` key of a transferred label."""
        return f"{self.stem}_label"

    @property
    def label_confidence(self) -> str:
        """`.obs` key of the probability of the transferred label."""
        return f"{self.stem}_label_confidence"

    @property
    def label_novelty(self) -> str:
        """`.obs` key of how unlike the reference's cells a query cell is."""
        return f"{self.stem}_label_novelty"

    @property
    def label_probabilities(self) -> str:
        """`.obsm` key of the label probabilities of a query, cells x labels."""
        return f"{self.stem}_label_probabilities"

    @property
    def relevance(self) -> str:
        """`.varm` key of the signed group-to-feature relevance, features x groups."""
        return f"{self.stem}_relevance"

    @property
    def relevance_abs(self) -> str:
        """`.varm` key of the absolute group-to-feature relevance, features x groups."""
        return f"{self.stem}_relevance_abs"

    def predicted(self, source: Sequence[str], target: str) -> str:
        """Name of the modality that holds a prediction: ``adt_from_rna``, ``adt_from_rna+atac``.

        A custom stem is put behind it, so that two models' predictions can stand side by side.
        """
        name = f"{target}_from_{'+'.join(source)}"
        return name if self.stem == DEFAULT_STEM else f"{name}_{self.stem}"

    def obs_columns(self) -> tuple[str, ...]:
        """All `.obs` columns that may be written."""
        of_labels = (self.label, self.label_confidence, self.label_novelty)
        return (self.group, self.group_confidence, *of_labels)

    def obsm_keys(self) -> tuple[str, ...]:
        """All `.obsm` keys that may be written."""
        return (self.embedding, self.probabilities, self.label_probabilities)


def check_key_added(mdata: Any, key_added: str) -> Keys:
    """Return the :class:`Keys` of a stem after checking that it cannot overwrite what is not ours.

    Parameters
    ----------
    mdata
        The MuData that will be written to.
    key_added
        The stem asked for.

    Raises
    ------
    TypeError
        `key_added` is not a string.
    ValueError
        `key_added` is empty, contains ``"/"`` (which nests silently in HDF5), or a slot made from
        it is a modality's name or already holds something that this package did not write.
    """
    if not isinstance(key_added, str):
        raise TypeError(f"key_added: expected a string, found {type(key_added).__name__}.")
    if not key_added or "/" in key_added or key_added != key_added.strip():
        raise ValueError(
            "key_added: expected a non-empty name without '/' or outer spaces, found "
            f"{key_added!r}."
        )
    keys = Keys(key_added)
    names = (keys.uns, *keys.obs_columns(), *keys.obsm_keys())
    clash = [name for name in names if name in mdata.mod]
    if clash:
        raise ValueError(
            f"key_added={key_added!r} collides with the modality {clash[0]!r}; modalities are "
            f"{list(mdata.mod)}. Choose another key_added."
        )
    _refuse_foreign(mdata, keys)
    return keys


def _refuse_foreign(mdata: Any, keys: Keys) -> None:
    stored = mdata.uns.get(keys.uns)
    if isinstance(stored, Mapping) and "version" in stored:
        return
    taken = [f".uns[{keys.uns!r}]"] if stored is not None else []
    # slots of ours may outlive `.uns` (md.concat drops it): those of the default stem, and of
    # another where a group stands beside its confidence
    ours = keys.stem == DEFAULT_STEM or any(
        {name, sure} <= set(mdata.obs)
        for name, sure in (
            (keys.group, keys.group_confidence),
            (keys.label, keys.label_confidence),
        )
    )
    if not ours:
        taken += [f".obs[{name!r}]" for name in keys.obs_columns() if name in mdata.obs]
        taken += [f".obsm[{name!r}]" for name in keys.obsm_keys() if name in mdata.obsm]
        for mod, adata in mdata.mod.items():
            slots = [
                ("obsm", keys.embedding),
                ("varm", keys.relevance),
                ("varm", keys.relevance_abs),
            ]
            taken += [f".mod[{mod!r}].{s}[{n!r}]" for s, n in slots if n in getattr(adata, s)]
    if taken:
        raise ValueError(
            f"key_added={keys.stem!r} would overwrite {', '.join(taken)}, which unitednet_mu did "
            "not write. Choose another key_added, or delete that slot."
        )
