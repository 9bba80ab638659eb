"""The trained bundle: network, settings and names; encode, predict, save, load. No pickle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from mudata import MuData
from torch import Tensor
from torch.nn import functional as F

from . import _storage
from ._data import Batch, Dataset, check_values, counted
from ._info import ModelInfo as ModelInfo
from ._network import Standardiser, UnitedNetwork
from ._open import open_dataset
from ._rebuild import rebuild
from ._validate import unknown_name

_INFERENCE_CELLS = 2048


@dataclass(frozen=True)
class Encoded:
    """Codes of cells, float32; rows follow the cells asked for.

    Attributes
    ----------
    codes
        Cells x modalities x n_latent; NaN where the cell lacks the modality.
    fused
        Cells x n_latent; NaN where the cell has none of the modalities.
    logits
        Calibrated group logits, cells x groups.
    """

    codes: np.ndarray
    fused: np.ndarray
    logits: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """Group probabilities, cells x groups, float32."""
        return torch.softmax(torch.from_numpy(self.logits), 1).numpy()


class Model:
    """A trained UnitedNet.

    Attributes
    ----------
    network
        The torch module.
    info
        Settings and names.
    accuracy
        Expected accuracy of predictions: by ``"<target>_from_<sources>"`` a float32 array
        (4 x target features) from held-out cells: Pearson r, overall and within groups, and the
        5 % and 95 % quantiles of the error; NaN where unknown.

    Examples
    --------
    >>> import unitednet_mu as un
    >>> mdata = un.datasets.simulate_multimodal(n_obs=60, n_groups=2)
    >>> un.tl.fit(mdata, labels_key="cell_type", training={"max_epochs": 2}, progress=False)
    >>> model = un.get.model(mdata)
    >>> model.encode(mdata).fused.shape
    (60, 32)
    >>> model.predict(mdata, "rna", "adt").shape
    (60, 20)
    """

    def __init__(
        self,
        network: UnitedNetwork,
        info: ModelInfo,
        accuracy: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.network, self.info = network.eval(), info
        self.accuracy = dict(accuracy or {})

    # ------------------------------------------------------------------ names

    @property
    def modality_names(self) -> list[str]:
        """Names of the modalities, in the network's order."""
        return [spec.name for spec in self.info.modalities]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.fusion.logits.device

    def modality_index(self, name: str, argument: str) -> int:
        """Position of a modality; where there is none, an error that lists the model's."""
        if name not in self.modality_names:
            raise ValueError(unknown_name(f"{argument}: modality", name, self.modality_names))
        return self.modality_names.index(name)

    def modality_weights(self) -> np.ndarray:
        """Fusion weight of each modality where a cell has all of them.

        Returns
        -------
        numpy.ndarray
            float32, one weight a modality (mean over the code); they sum to 1.
        """
        everything = torch.ones(1, len(self.modality_names), dtype=torch.bool, device=self.device)
        with torch.no_grad():
            return self.network.fusion.weights(everything).mean(2)[0].cpu().numpy()

    # ------------------------------------------------------------------ inference

    def open(self, mdata: MuData, modalities: Sequence[str] | None = None) -> Dataset:
        """Align `mdata` to the model by feature names; it may lack modalities.

        Parameters
        ----------
        mdata
            Cells.
        modalities
            Read these only, as if there were no others; by default all of the model's.

        Raises
        ------
        ValueError
            Features are missing, values are NaN or infinite, or no cell has any modality.

        Warns
        -----
        UserWarning
            A modality looks like raw counts, and those that the model was trained on did not. A
            modality is missing, and one that the model does not know has its features.
        """
        data = open_dataset(mdata, self.info.modalities, partial=True, only=modalities)
        check_values(data)
        return data

    def codes(self, batch: Batch) -> Tensor:
        """Codes of a mini-batch, cells x modalities x n_latent; zero where not observed."""
        shape = (len(batch), len(batch.x), self.info.network.n_latent)
        codes = torch.zeros(shape, device=self.device)
        for m, (x, rows) in enumerate(zip(batch.x, batch.rows, strict=True)):
            if x is not None:
                codes[rows, m] = self.network.encode(m, x)
        return codes

    def encode(
        self,
        mdata: MuData | Dataset,
        *,
        modalities: str | Sequence[str] | None = None,
        progress: bool = False,
    ) -> Encoded:
        """Codes, fused codes and group logits of all cells.

        Parameters
        ----------
        mdata
            Cells; features are matched by name.
        modalities
            Fuse only these modalities; by default all that a cell has.
        progress
            Whether to show a progress bar, once it has taken two seconds.

        Returns
        -------
        Encoded
            float32 arrays whose rows follow ``mdata.obs_names``, NaN where a cell lacks what they
            are of: ``codes`` (cells x modalities x n_latent), ``fused`` (cells x n_latent),
            ``logits`` (cells x groups, calibrated) and ``probabilities`` (cells x groups).

        Raises
        ------
        ValueError
            An unknown modality, or features are missing.
        """
        data = mdata if isinstance(mdata, Dataset) else self.open(mdata)
        used = np.ones(len(self.modality_names), dtype=bool)
        if modalities is not None:
            used[:] = False
            used[[self.modality_index(name, "modalities") for name in as_list(modalities)]] = True
            data = data.restricted(np.flatnonzero(used).tolist())
        observed = data.observed
        n, k = len(data), self.info.network.n_latent
        codes = np.full((n, len(used), k), np.nan, np.float32)
        fused = np.full((n, k), np.nan, np.float32)
        logits = np.full((n, len(self.info.groups)), np.nan, np.float32)
        known = data.in_file_order(np.flatnonzero(observed.any(1)))
        batches = data.batches_of(known, _INFERENCE_CELLS, self.device)
        with torch.no_grad():
            for cells, batch in counted(batches, len(known), "encode", progress):
                mask = torch.from_numpy(observed[cells]).to(self.device)
                values = self.codes(batch)
                z = self.network.fusion(values, mask)
                codes[cells] = values.masked_fill(~mask[:, :, None], torch.nan).cpu().numpy()
                fused[cells] = z.cpu().numpy()
                logits[cells] = self.network.group_logits(z).cpu().numpy()
        return Encoded(codes, fused, logits)

    def predict(
        self,
        mdata: MuData | Dataset,
        source: str | Sequence[str],
        target: str,
        *,
        transform_batch: str | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """Predict one modality from others.

        Parameters
        ----------
        mdata
            Cells; features are matched by name.
        source
            One or several modalities; each cell uses those of them that it has.
        target
            The modality to predict.
        transform_batch
            As which batch; by default the mean over the batches that measured the target. Only for
            models trained with a `batch_key`.
        progress
            Whether to show progress bars, of what takes more than two seconds.

        Returns
        -------
        numpy.ndarray
            float32, cells x target features, in the target's units (probabilities where binary);
            NaN for cells that have none of the sources.

        Raises
        ------
        ValueError
            An unknown modality or batch, or features are missing.
        """
        for name in as_list(source):
            self.modality_index(name, "source")
        self.batch_vectors(target, transform_batch)  # refused before any cell is read
        data = mdata if isinstance(mdata, Dataset) else self.open(mdata, as_list(source))
        fused = self.encode(data, modalities=as_list(source), progress=progress).fused
        predicted = self.decode(fused, target, transform_batch, progress=progress)
        self.add_direct(data, as_list(source), target, predicted, progress=progress)
        return predicted

    @torch.no_grad()
    def add_direct(
        self,
        data: Dataset,
        sources: Sequence[str],
        target: str,
        predicted: np.ndarray,
        *,
        progress: bool = False,
    ) -> None:
        """Add to decoded values, in place, what direct paths know beyond the codes.

        Several sources weigh as their codes do.
        """
        network, m = self.network, self.modality_index(target, "target")
        used = np.zeros(len(network.shapes), dtype=bool)
        used[[self.modality_index(name, "source") for name in sources]] = True
        paths = {s: network.direct_path(s, m) for s in np.flatnonzero(used).tolist()}
        scale = cast("Standardiser", network.standardisers[m]).scale
        for s, path in paths.items():
            if path is None:
                continue
            alone = data.restricted([s])
            cells = alone.in_file_order(np.flatnonzero(data.observed[:, s]))
            blocks = alone.blocks_of(cells, _INFERENCE_CELLS)
            for chunk, part, here in counted(blocks, len(cells), "direct path", progress):
                observed = torch.from_numpy(data.observed[chunk] & used).to(self.device)
                weight = network.fusion.weights(observed).mean(2)[:, s, None]
                x = torch.from_numpy(part.sources[s].take(here)).to(self.device)
                added = path(network.standardisers[s](x)) * weight * scale
                predicted[chunk] += added.cpu().numpy()

    def decode(
        self,
        fused: np.ndarray,
        target: str,
        transform_batch: str | None = None,
        *,
        progress: bool = False,
    ) -> np.ndarray:
        """Predict one modality from fused codes (cells x n_latent); NaN rows stay NaN.

        :meth:`predict` adds what direct paths know beyond the codes.
        """
        m = self.modality_index(target, "target")
        batches = self.batch_vectors(target, transform_batch)
        out = np.full((len(fused), self.network.shapes[m].n_features), np.nan, np.float32)
        cells = np.flatnonzero(~np.isnan(fused).any(1))
        starts = range(0, len(cells), _INFERENCE_CELLS)
        chunks = ((cells[start : start + _INFERENCE_CELLS],) for start in starts)
        with torch.no_grad():
            for (chunk,) in counted(chunks, len(cells), "decode", progress):
                code = torch.from_numpy(fused[chunk]).to(self.device)
                predictions = (  # one at a time, however many batches
                    self.network.to_units(m, self.network.decode(m, code, vector))
                    for vector in self._expanded(batches, len(chunk))
                )
                mean = reduce(torch.add, predictions) / max(len(batches), 1)
                out[chunk] = mean.cpu().numpy()
        return out

    def batch_vectors(self, target: str, transform_batch: str | None) -> Tensor:
        """One-hot rows of the batches a prediction is averaged over (none where no batch was used).

        Raises
        ------
        ValueError
            `transform_batch` is not a batch of the model, or the model has none; the target was
            not measured in it, so that nothing is known of how it would look there.
        """
        names = list(self.info.batches)
        if transform_batch is not None and transform_batch not in names:
            raise ValueError(unknown_name("transform_batch", transform_batch, names))
        m = self.modality_index(target, "target")
        chosen = [i for i, measured in enumerate(self.info.batch_measured) if measured[m]]
        if transform_batch is not None:
            if names.index(transform_batch) not in chosen and self.info.batch_measured:
                raise ValueError(
                    f"transform_batch: expected a batch in which {target!r} was measured, one of "
                    f"{[names[i] for i in chosen]}, found {transform_batch!r}. Leave it out for "
                    "their mean."
                )
            chosen = [names.index(transform_batch)]
        # measured only in cells of unknown batch: the mean over all batches
        index = torch.tensor(chosen or range(len(names)), dtype=torch.long)
        return F.one_hot(index, max(len(names), 1)).float().to(self.device)

    def _expanded(self, batches: Tensor, n: int) -> Iterator[Tensor | None]:
        if not self.network.n_batches:
            yield None
            return
        for row in batches:
            yield row.expand(n, -1)

    # ------------------------------------------------------------------ storage

    def _tensors(self) -> dict[str, Tensor]:
        state = {
            f"network.{k}": v.detach().cpu().contiguous()
            for k, v in self.network.state_dict().items()
        }
        return state | {f"accuracy.{k}": torch.from_numpy(v) for k, v in self.accuracy.items()}

    def to_dict(self) -> dict[str, Any]:
        """Form stored in ``.uns``: safetensors bytes as a uint8 array, JSON text, checksum."""
        return _storage.to_entries(self._tensors(), self.info.to_json())

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Rebuild a model from :meth:`to_dict`'s form.

        Raises
        ------
        ValueError
            Parts are missing, the checksum differs, or weights and settings do not fit.
        """
        return cls(*rebuild(*_storage.from_entries(stored)))

    def save(self, path: str | Path) -> None:
        """Write the model to one safetensors file (settings in its metadata; no pickle).

        Parameters
        ----------
        path
            File to write; one that is there is replaced.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        _storage.to_file(path, self._tensors(), self.info.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file written by :meth:`save`.

        Parameters
        ----------
        path
            File to read.

        Returns
        -------
        Model
            On the CPU.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            The file is no model of this package, or it is damaged.
        """
        return cls(*rebuild(*_storage.from_file(path)))


def as_list(names: str | Sequence[str]) -> list[str]:
    """One name, or several, as a list."""
    return [names] if isinstance(names, str) else list(names)
