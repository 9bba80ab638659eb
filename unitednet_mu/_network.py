"""The multi-task network: encoders, fusion, decoders, discriminators, heads; knows no MuData."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ._config import Likelihood, NetworkConfig
from ._values import Values, dropped_linear, linear

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
}


@dataclass(frozen=True)
class ModalityShape:
    """What the network has to know of a modality: number of features and kind of values."""

    n_features: int
    likelihood: Likelihood


#: Weights of a direct path at most.
_DIRECT_WEIGHTS = 2**22


def may_have_direct_path(source: ModalityShape, target: ModalityShape) -> bool:
    """Whether there can be a linear map beside the code from one modality to another."""
    small = source.n_features * target.n_features <= _DIRECT_WEIGHTS
    return small and target.likelihood == "gaussian"


class Dropout(nn.Dropout):
    """Dropout; on the CPU with one random byte an element, as torch's own mask costs twice as much.

    There the share that is dropped is rounded to a multiple of 1/256, and the rest scaled to match.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements of `input` in training."""
        if not self.training or self.p == 0:
            return input
        if input.device.type != "cpu":
            return super().forward(input)
        draws, kept = self.draws(input.shape)
        return input * (draws < kept).to(input.dtype).mul_(256 / kept)

    def draws(self, shape: Sequence[int]) -> tuple[Tensor, int]:
        """Draw a random byte for each element, on the CPU; which are below a number are kept."""
        n = math.prod(shape)
        words = torch.empty(-(-n // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = min(max(round((1 - self.p) * 256), 1), 255)
        return words.view(torch.uint8)[:n].view(shape), kept


def _activated(width: int, config: NetworkConfig) -> list[nn.Module]:
    """Layers behind a linear one: normalise, activate (one instance a place for shap), drop."""
    layers: list[nn.Module] = [nn.BatchNorm1d(width)] if config.batch_norm else []
    return [*layers, _ACTIVATIONS[config.activation](), Dropout(config.dropout)]


#: Largest distance of a feature's mean from zero, in deviations, for products of values that are
#: not standardised to be as exact as they should.
_FAR = 64.0


class Standardiser(nn.Module):
    """Fixed affine map of a modality to zero mean and unit variance over training cells."""

    mean: Tensor
    scale: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))

    def forward(self, x: Tensor) -> Tensor:
        """Standardise `x`, cells x features."""
        return (x - self.mean).div_(self.scale)

    def read(self, x: Values) -> Values:
        """Standardise values, sparse ones as sparse rows."""
        if isinstance(x, Tensor):
            return cast("Tensor", self(x))
        far = bool(((self.mean / self.scale).abs() > _FAR).any())
        return self(x.dense()) if far else x.standardised(self.mean, self.scale)

    def inverse(self, x: Tensor) -> Tensor:
        """Back to the user's units."""
        return x * self.scale + self.mean


class Encoder(nn.Module):
    """Standardised features to a code: a wide layer feeds hidden layers and the linear path."""

    def __init__(self, n_features: int, config: NetworkConfig) -> None:
        super().__init__()
        self.n_hidden = config.n_hidden[0]
        self.drop = Dropout(config.input_dropout or 0.0)  # None: set when training begins
        self.wide = nn.Linear(
            n_features, self.n_hidden + (config.n_latent if config.linear_path else 0)
        )
        layers = _activated(self.n_hidden, config)
        for n_in, n_out in zip(config.n_hidden[:-1], config.n_hidden[1:], strict=True):
            layers += [nn.Linear(n_in, n_out), *_activated(n_out, config)]
        self.deep = nn.Sequential(*layers, nn.Linear(config.n_hidden[-1], config.n_latent))

    def forward(self, x: Tensor) -> Tensor:
        """Code of `x`, standardised, cells x n_latent."""
        return self.code(self.wide(self.drop(x)))

    def read(self, x: Values) -> Tensor:
        """Return what the wide layer makes of what the standardiser has read, for `code`."""
        if not self.training or not self.drop.p:
            return linear(x, self.wide)
        if isinstance(x, Tensor):
            return cast("Tensor", self.wide(self.drop(x)))
        return dropped_linear(x, self.wide, *self.drop.draws(x.shape))

    def code(self, hidden: Tensor) -> Tensor:
        """Code of what the wide layer gives, cells x n_latent."""
        code: Tensor = self.deep(hidden[:, : self.n_hidden])
        return code + hidden[:, self.n_hidden :] if hidden.shape[1] > self.n_hidden else code


class Decoder(nn.Module):
    """A code (and the cell's batch, one-hot) to one value per feature, on the scale of the link."""

    def __init__(self, n_features: int, n_batches: int, config: NetworkConfig) -> None:
        super().__init__()
        widths = config.n_hidden[::-1]
        n_in = config.n_latent + n_batches
        self.linear_path = config.linear_path
        layers: list[nn.Module] = []
        for n_from, n_to in zip((n_in, *widths[:-1]), widths, strict=True):
            layers += [nn.Linear(n_from, n_to), *_activated(n_to, config)]
        self.deep = nn.Sequential(*layers)
        self.wide = nn.Linear(widths[-1] + (n_in if config.linear_path else 0), n_features)

    def hidden(self, code: Tensor) -> Tensor:
        """Return what the wide layer reads."""
        hidden: Tensor = self.deep(code)
        return torch.cat([hidden, code], 1) if self.linear_path else hidden

    def forward(self, code: Tensor) -> Tensor:
        """Linear predictor of every feature, cells x n_features."""
        out: Tensor = self.wide(self.hidden(code))
        return out


class Fusion(nn.Module):
    """Weighted mean of the observed modalities' codes; softmax weights, renormalised per cell."""

    def __init__(self, n_modalities: int, config: NetworkConfig) -> None:
        super().__init__()
        width = config.n_latent if config.fusion == "dimension" else 1
        self.logits = nn.Parameter(torch.zeros(n_modalities, width))

    def weights(self, observed: Tensor) -> Tensor:
        """Weights of each cell, cells x modalities x (1 or n_latent); zero where not observed."""
        logits = self.logits.unsqueeze(0).masked_fill(~observed.unsqueeze(2), -torch.inf)
        return torch.softmax(logits, 1)

    def forward(self, codes: Tensor, observed: Tensor, *, learn: bool = True) -> Tensor:
        """Fuse `codes` (cells x modalities x n_latent) where `observed` (cells x modalities).

        With ``learn=False`` no gradient reaches the weights.
        """
        weights = self.weights(observed)
        return ((weights if learn else weights.detach()) * codes).sum(1)


class Discriminator(nn.Module):
    """Scores how real a modality's values look (least-squares GAN)."""

    def __init__(self, n_features: int, config: NetworkConfig) -> None:
        super().__init__()
        width = config.n_hidden[0]
        self.layers = nn.Sequential(
            nn.Linear(n_features, width), nn.LeakyReLU(0.2), nn.Linear(width, 1)
        )

    @property
    def first(self) -> nn.Linear:
        """Layer that reads the values."""
        return cast("nn.Linear", self.layers[0])

    @property
    def rest(self) -> nn.Sequential:
        """Layers that make a score of what the first one gives."""
        return cast("nn.Sequential", self.layers[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Score of each cell, cells x 1."""
        score: Tensor = self.layers(x)
        return score


class Head(nn.Module):
    """Fused code to group logits, by a projected layer that the clustering loss also reads."""

    def __init__(self, n_groups: int, config: NetworkConfig) -> None:
        super().__init__()
        self.project = nn.Sequential(
            nn.Linear(config.n_latent, config.n_projector), *_activated(config.n_projector, config)
        )
        self.logits = nn.Linear(config.n_projector, n_groups)

    def forward(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """Return group logits (cells x groups) and the projected layer (cells x n_projector)."""
        projected = self.project(fused)
        return self.logits(projected), projected


class DirectPath(nn.Module):
    """Linear map from one modality's standardised values to what another's decoder leaves over.

    Not trained with the network: it is solved for once the network is (`_direct_path`).
    """

    weight: Tensor
    offset: Tensor
    penalty: Tensor

    def __init__(self, n_source: int, n_target: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(n_source, n_target))
        self.register_buffer("offset", torch.zeros(n_target))
        self.register_buffer("penalty", torch.zeros(()))  # per cell

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to the decoder's output, cells x target features."""
        return x @ self.weight + self.offset


class UnitedNetwork(nn.Module):
    """All parts for all modalities (paper, Fig. 1 and Methods).

    Parameters
    ----------
    shapes
        Features and kind of values of each modality, in the model's order.
    n_groups
        Number of groups of a head.
    n_batches
        Number of batches that decoders are conditioned on; 0 for none.
    config
        Sizes and parts.
    """

    temperature: Tensor

    def __init__(
        self, shapes: Sequence[ModalityShape], n_groups: int, n_batches: int, config: NetworkConfig
    ) -> None:
        super().__init__()
        self.shapes, self.n_batches, self.config = tuple(shapes), n_batches, config
        self.standardisers = nn.ModuleList(Standardiser(s.n_features) for s in shapes)
        self.encoders = nn.ModuleList(Encoder(s.n_features, config) for s in shapes)
        self.fusion = Fusion(len(shapes), config)
        self.decoders = nn.ModuleList(Decoder(s.n_features, n_batches, config) for s in shapes)
        judged = shapes if config.discriminators else ()
        self.discriminators = nn.ModuleList(Discriminator(s.n_features, config) for s in judged)
        self.direct = nn.ModuleDict()
        self.new_heads(n_groups, 1)
        self.register_buffer("temperature", torch.ones(()))

    def new_heads(self, n_groups: int, n_heads: int) -> None:
        """Replace the heads by `n_heads` fresh ones for `n_groups` groups."""
        self.n_groups = n_groups
        device = self.fusion.logits.device
        self.heads = nn.ModuleList(Head(n_groups, self.config) for _ in range(n_heads)).to(device)

    def encode(self, m: int, x: Values) -> Tensor:
        """Code of modality `m` from values in the user's units, cells x n_latent."""
        return self.after_wide(m, self.encode_wide(m, self.read(m, x)))

    def read(self, m: int, x: Values) -> Values:
        """Standardise values of modality `m` for :meth:`encode_wide`; sparse ones stay sparse."""
        return cast("Standardiser", self.standardisers[m]).read(x)

    def encode_wide(self, m: int, x: Values) -> Tensor:
        """Put what :meth:`read` returned through the first layer of an encoder."""
        return cast("Encoder", self.encoders[m]).read(x)

    def after_wide(self, m: int, hidden: Tensor) -> Tensor:
        """Code of modality `m` from what :meth:`encode_wide` returned, cells x n_latent."""
        return cast("Encoder", self.encoders[m]).code(hidden)

    def decode(self, m: int, code: Tensor, batch: Tensor | None = None) -> Tensor:
        """Linear predictor of modality `m` (standardised values, or logits where binary).

        `batch` is one-hot (or a mixture), cells x n_batches; needed where decoders are
        batch-conditioned.
        """
        predictor: Tensor = self.decoders[m](self._conditioned(code, batch))
        return predictor

    def before_wide(self, m: int, code: Tensor, batch: Tensor | None = None) -> Tensor:
        """Return what the last layer of a decoder reads; `batch` as in :meth:`decode`."""
        return cast("Decoder", self.decoders[m]).hidden(self._conditioned(code, batch))

    def _conditioned(self, code: Tensor, batch: Tensor | None) -> Tensor:
        if not self.n_batches:
            return code
        if batch is None:
            raise ValueError("decode: the decoders are conditioned on the batch, found batch=None.")
        return torch.cat([code, batch], 1)

    def one_hot(self, batches: Tensor) -> Tensor | None:
        """Batch vectors of cells, None without batches; an unknown one (-1) is an even mixture."""
        n = self.n_batches
        if not n:
            return None
        known = nn.functional.one_hot(batches.clamp_min(0), n).float()
        return torch.where((batches >= 0)[:, None], known, torch.full_like(known, 1 / n))

    def add_direct_path(self, source: int, target: int) -> DirectPath:
        """Put a map of zeros beside the code between two modalities, and return it."""
        sizes = self.shapes[source].n_features, self.shapes[target].n_features
        path = DirectPath(*sizes).to(self.fusion.logits)
        self.direct[f"{source}_{target}"] = path
        return path

    def direct_path(self, source: int, target: int) -> DirectPath | None:
        """Return the map beside the code between two modalities, if there is one."""
        name = f"{source}_{target}"
        return cast("DirectPath", self.direct[name]) if name in self.direct else None

    def translate(self, source: int, target: int, x: Tensor, batch: Tensor | None = None) -> Tensor:
        """Linear predictor of one modality from another's values in the user's units.

        The decoded code and, where there is one, the direct path; `batch` as in :meth:`decode`.
        """
        x = self.standardisers[source](x)
        predictor = self.decode(target, self.encoders[source](x), batch)
        path = self.direct_path(source, target)
        return predictor if path is None else predictor + path(x)

    def to_units(self, m: int, predictor: Tensor) -> Tensor:
        """Return a linear predictor in the user's units (probabilities where binary)."""
        if self.shapes[m].likelihood == "binary":
            return torch.sigmoid(predictor)
        return cast("Standardiser", self.standardisers[m]).inverse(predictor)

    def group_logits(self, fused: Tensor) -> Tensor:
        """Calibrated group logits of the kept head, cells x n_groups."""
        logits: Tensor = self.heads[0](fused)[0]
        return logits / self.temperature
