"""Frozen settings of the network and its training, and their round trip as dictionaries."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal, Self, cast

import numpy as np

from ._plain import from_plain

Likelihood = Literal["gaussian", "binary"]
LIKELIHOODS: tuple[Likelihood, ...] = ("gaussian", "binary")
ACTIVATIONS = ("leaky_relu", "relu", "elu", "gelu", "tanh", "softplus")

#: Weight of each loss term; 0 switches it off. Those of the paper (Methods), 1 for the tasks and
#: 0.1 for the rest, but for the contrastive term, to which it gives 1.
LOSS_WEIGHTS: Mapping[str, float] = {
    "reconstruction": 1.0,
    "translation": 1.0,
    "contrastive": 0.2,
    "cross_entropy": 1.0,
    "clustering": 0.1,
    "entropy": 0.1,
    "generator": 0.1,
    "discriminator": 0.1,
}


class _Config:
    """Dictionary round trip and overriding, shared by the settings below."""

    @classmethod
    def build(cls, value: Self | Mapping[str, Any] | None) -> Self:
        """Return settings from settings, from a mapping of overrides, or the defaults.

        ``"auto"`` stands for None where that is the default, so that ``params`` of a fit before
        serve as they were stored.

        Raises
        ------
        TypeError
            `value` is neither.
        ValueError
            A name is unknown (the message lists those that exist), or a value out of range or of
            another type than the setting's: such a model could not be read again.
        """
        if value is None:
            return cls()
        if isinstance(value, cls):
            return cls.build(vars(value))
        if not isinstance(value, Mapping):
            raise TypeError(
                f"{cls.__name__}: expected {cls.__name__} or a mapping of overrides, found "
                f"{type(value).__name__}."
            )
        names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        unknown = sorted(set(value) - set(names))
        if unknown:
            raise ValueError(
                f"{cls.__name__}: unknown setting {unknown[0]!r}; settings are {names}."
            )
        default = cls().to_dict()
        given = {name: _plain(one) for name, one in value.items()}
        for name, one in given.items():  # `.uns` cannot hold None, and has "auto" for it
            given[name] = None if default[name] is None and one == "auto" else one
        config = from_plain({**default, **given}, cls, cls.__name__)
        return cast("Self", config)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary of numbers, strings, lists and mappings."""
        return {
            name: list(value)
            if isinstance(value, tuple)
            else dict(value)
            if isinstance(value, Mapping)
            else value
            for name, value in vars(self).items()
        }


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's own, sequences as lists; mappings with such inside."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value


def _require(condition: bool, name: str, expected: str, found: object) -> None:
    if not condition:
        raise ValueError(f"{name}: expected {expected}, found {found!r}.")


@dataclass(frozen=True)
class NetworkConfig(_Config):
    """Shape of the network.

    Parameters
    ----------
    n_latent
        Number of code dimensions.
    n_hidden
        Width of each hidden layer of encoders (in this order) and decoders (reversed).
    n_projector
        Width of the projector between the fused code and a head's group logits.
    n_heads
        Number of heads trained side by side when groups are found without labels; the best is kept.
    activation
        Elementwise activation, one of ``leaky_relu``, ``relu``, ``elu``, ``gelu``, ``tanh``,
        ``softplus``.
    batch_norm
        Batch normalisation in the hidden layers. (Layer normalisation is not offered: DeepLIFT has
        no rule for it, explanations through it would not add up.)
    dropout
        Share of hidden units dropped in training.
    input_dropout
        Share of input features dropped in training, which keeps the code from leaning on single
        features. ``None`` finds it from the training cells, modality by modality: much where
        features are many and noisy, little where they are few and clean.
    linear_path
        A linear map beside each encoder's and decoder's hidden layers.
    direct_path
        A linear map from each modality to each other continuous one beside the code, for what the
        code does not carry: ridge regression of what the trained network's prediction leaves over.
        Its penalty is the one that predicts held-out cells best; there is no path where none
        helps, where none are held out, or where features of source x target are more than 4
        million.
    fusion
        ``"modality"``: one learned weight per modality; ``"dimension"``: one per modality and code
        dimension.
    discriminators
        Discriminators that judge decoded against real values (the adversarial part of the losses).

    Raises
    ------
    ValueError
        A value is out of range.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> network, training = {"n_latent": 8, "n_hidden": (32,)}, {"max_epochs": 2}
    >>> un.tl.fit(mdata, n_groups=2, network=network, training=training, progress=False)
    >>> mdata.uns["unitednet"]["params"]["network"]["n_latent"]
    8
    """

    n_latent: int = 32
    n_hidden: tuple[int, ...] = (256, 128)
    n_projector: int = 64
    n_heads: int = 3
    activation: str = "leaky_relu"
    batch_norm: bool = True
    dropout: float = 0.3
    input_dropout: float | None = None
    linear_path: bool = True
    direct_path: bool = True
    fusion: Literal["modality", "dimension"] = "modality"
    discriminators: bool = False

    def __post_init__(self) -> None:
        """Check ranges; lists become tuples."""
        object.__setattr__(self, "n_hidden", tuple(int(width) for width in self.n_hidden))
        for name in ("n_latent", "n_projector", "n_heads"):
            _require(int(getattr(self, name)) >= 1, name, "an integer >= 1", getattr(self, name))
        _require(
            bool(self.n_hidden) and min(self.n_hidden) >= 1,
            "n_hidden",
            "widths >= 1",
            self.n_hidden,
        )
        for name, value in (("dropout", self.dropout), ("input_dropout", self.input_dropout or 0)):
            _require(0 <= value < 1, name, "a share in [0, 1)", value)
        _require(
            self.activation in ACTIVATIONS,
            "activation",
            f"one of {list(ACTIVATIONS)}",
            self.activation,
        )
        _require(
            self.fusion in ("modality", "dimension"),
            "fusion",
            "'modality' or 'dimension'",
            self.fusion,
        )


@dataclass(frozen=True)
class TrainingConfig(_Config):
    """How the network is trained.

    Parameters
    ----------
    max_epochs
        Largest number of epochs; ``None`` scales it with the number of cells.
    batch_size
        Cells per mini-batch; ``None`` scales it with the number of cells.
    learning_rate, weight_decay
        Of AdamW, with a one-cycle schedule over the epochs.
    averaging
        Share of the running average of the weights that a step keeps; the average is what is kept.
        Where so few steps are planned that the weights before the first would keep more than a
        twentieth of it, they have no part in it.
    gradient_clip
        Largest Euclidean norm of a step's gradient.
    validation_fraction
        Share of cells held out for early stopping, calibration and the expected accuracy of
        predictions.
    refit
        Whether a network trained from scratch is trained once more, on all cells, once the held-out
        ones have shown when to stop, how confident to be and what accuracy to expect. ``None``: for
        fewer than 5,000 cells, of which every one is needed.
    patience
        Epochs without a better held-out loss before training stops and the best state is restored.
    loss_weights
        Overrides of the weight of each term; 0 switches it off. Terms: ``reconstruction``,
        ``translation``, ``contrastive``, ``cross_entropy``, ``clustering``, ``entropy``,
        ``generator``, ``discriminator``.
    temperature
        Of the contrastive loss (the paper has 0.1). ``None``: the one, 0.1 to 1, that fits each
        mini-batch, so that codes of modalities that share little are not made to agree on noise.
    modality_dropout
        Probability with which a cell's modality is hidden from the fused code in training, so that
        groups are identified from any subset.
    alternate
        Tasks take turns, each with a step of its own per mini-batch (the paper's schedule);
        ``False`` sums them.
    start
        Where the heads start when groups are found without labels: on the codes after a warm-up,
        ``"leiden"``, from communities, or from k-means where that agrees with itself clearly more;
        ``"kmeans"`` always; or ``"random"``.
    warmup
        Share of the epochs before the groups start.
    cuda_graphs
        On a single GPU, steps of whole mini-batches of cells that have every modality are recorded
        once and replayed, several times as fast. Nothing else changes.

    Raises
    ------
    ValueError
        A value is out of range, or `loss_weights` names an unknown term.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> training = {"max_epochs": 2, "loss_weights": {"contrastive": 0}}
    >>> un.tl.fit(mdata, labels_key="cell_type", training=training, progress=False)
    >>> mdata.uns["unitednet"]["params"]["training"]["loss_weights"]["contrastive"]
    0.0
    """

    max_epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float = 4e-3
    weight_decay: float = 0.5
    averaging: float = 0.98
    gradient_clip: float = 5.0
    validation_fraction: float = 0.1
    refit: bool | None = None
    patience: int = 20
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    temperature: float | None = None
    modality_dropout: float = 0.2
    alternate: bool = False
    start: Literal["leiden", "kmeans", "random"] = "leiden"
    warmup: float = 0.33
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        """Check ranges and fill in the default loss weights."""
        unknown = sorted(set(self.loss_weights) - set(LOSS_WEIGHTS))
        if unknown:
            raise ValueError(
                f"loss_weights: unknown term {unknown[0]!r}; terms are {list(LOSS_WEIGHTS)}."
            )
        weights = {
            **LOSS_WEIGHTS,
            **{name: float(value) for name, value in self.loss_weights.items()},
        }
        for name, value in weights.items():
            _require(
                0 <= value < float("inf"), f"loss_weights[{name!r}]", "a finite number >= 0", value
            )
        object.__setattr__(self, "loss_weights", weights)
        for name, least in (("max_epochs", 1), ("batch_size", 2)):  # batch statistics need two
            value = getattr(self, name)
            whole = isinstance(value, Integral) and int(value) >= least
            _require(value is None or whole, name, f"None or an integer >= {least}", value)
        for name in ("learning_rate", "gradient_clip"):
            _require(getattr(self, name) > 0, name, "a number > 0", getattr(self, name))
        fits = self.temperature is None or self.temperature > 0
        _require(fits, "temperature", "None or a number > 0", self.temperature)
        _require(self.weight_decay >= 0, "weight_decay", "a number >= 0", self.weight_decay)
        _require(self.patience >= 1, "patience", "an integer >= 1", self.patience)
        for name in ("validation_fraction", "modality_dropout", "warmup", "averaging"):
            _require(0 <= getattr(self, name) < 1, name, "a share in [0, 1)", getattr(self, name))
        _require(
            self.start in ("leiden", "kmeans", "random"),
            "start",
            "leiden, kmeans or random",
            self.start,
        )

    def weight(self, term: str) -> float:
        """Weight of a loss term."""
        return self.loss_weights[term]
