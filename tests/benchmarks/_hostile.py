"""Stored models as a stranger, or a broken disk, may hand them over; none may do harm.

Hypothesis draws what is changed: bytes, the header of safetensors, tensors, settings, or the
entries themselves, with checksums that fit in part of the draws. Each must be refused with a
ValueError of one line, or be a model whose weights are finite; nothing but the file may be touched.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from hypothesis import strategies as st

import unitednet_mu as un
from unitednet_mu._model import Model

sys.path.insert(0, str(Path(__file__).parents[1]))

from strategies import for_each

#: Bytes that reading one model may need beyond what the process holds.
MEMORY = 2**29
_LONGEST = 1200
#: What reading a model never does (events of :mod:`sys`'s audit hooks).
_HARMFUL = (
    "pickle.find_class",
    "marshal.load",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.remove",
    "os.rename",
    "os.mkdir",
    "subprocess.Popen",
    "socket.connect",
    "ctypes.dlopen",
)
_DTYPES = (
    *("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "I16", "U16", "F16", "BF16", "I32", "U32", "F32"),
    *("F64", "I64", "U64", "C64", "F4", "F6_E2M3", "PICKLE", "", "O"),
)
_NAMES = (
    *("../../etc/passwd", "/dev/zero", "C:\\nul", "a\nb", "", "network.__class__", "x" * 5000),
    *("network.direct.0_99999999999.weight", "network.direct.1_1.weight", "\ud800", "__metadata__"),
)
_HUGE = (-1, 0, 1, 2**31, 2**53, 2**63, 2**64 - 1, 10**30, 10_000_000_000)


@dataclass(frozen=True)
class Victim:
    """A model as it is stored: entries of ``.uns``, and the bytes of a file."""

    entries: dict[str, Any]
    file: bytes

    @classmethod
    def of(cls, model: Model) -> Victim:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            model.save(path)
            return cls(model.to_dict(), path.read_bytes())


@dataclass(frozen=True)
class Hostile:
    """One thing to read: entries, or the bytes of a file; `broken` if it cannot be a model."""

    what: str
    stored: Any
    broken: bool = False


class _Payload:
    """Pickled, it would create a file when it is loaded."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (self.marker, "w")


def payloads(marker: Path) -> list[bytes]:
    """Pickles and an archive of torch that would create the marker."""
    archive = io.BytesIO()
    torch.save({"network": _Payload(str(marker))}, archive)
    return [*(pickle.dumps(_Payload(str(marker)), p) for p in range(6)), archive.getvalue()]


# ------------------------------------------------------------------ what is drawn


def hostile(victim: Victim, marker: Path) -> st.SearchStrategy[Hostile]:
    """Draw something to read."""
    weights, text = victim.entries["weights"].tobytes(), victim.entries["config"]
    harm = payloads(marker)

    @st.composite
    def entries(draw: st.DrawFn) -> Hostile:
        kind = draw(st.sampled_from(["bytes", "text", "header", "tensors", "settings", "entry"]))
        sealed = kind in ("header", "tensors", "settings") or draw(st.booleans())
        new = dict(victim.entries)
        if kind == "entry":
            return Hostile("entries: " + kind, _other_entries(draw, new))
        if kind == "bytes":
            new["weights"] = np.frombuffer(_bytes(draw, weights, harm), np.uint8)
        elif kind == "text":
            new["config"] = _bytes(draw, text.encode(), harm).decode("utf-8", "replace")
        elif kind == "header":
            new["weights"] = np.frombuffer(_header(draw, weights), np.uint8)
        elif kind == "tensors":
            new["weights"] = np.frombuffer(_tensors(draw, weights), np.uint8)
        else:
            new["config"] = _settings(draw, text)
        if sealed:
            data = new["weights"].tobytes() + new["config"].encode("utf-8", "surrogatepass")
            new["sha256"] = hashlib.sha256(data).hexdigest()
        changed = new["config"] != text or new["weights"].tobytes() != weights
        seal = "sealed" if sealed else "not sealed"
        return Hostile(f"entries: {kind}, {seal}", new, changed and not sealed)

    @st.composite
    def file(draw: st.DrawFn) -> Hostile:
        kind = draw(st.sampled_from(["bytes", "header", "tensors", "settings"]))
        if kind in ("bytes", "header"):
            change = (
                _bytes(draw, victim.file, harm) if kind == "bytes" else _header(draw, victim.file)
            )
            return Hostile(f"file: {kind}", change)
        data = _tensors(draw, weights) if kind == "tensors" else weights
        words = _settings(draw, text) if kind == "settings" else text
        return Hostile(f"file: {kind}, sealed", _sealed_file(data, words))

    return st.one_of(entries(), file())


def _bytes(draw: st.DrawFn, data: bytes, harm: list[bytes]) -> bytes:
    """Flip, cut, extend, overwrite or replace bytes, most often near the beginning."""
    whole = bytearray(data)
    near = st.integers(0, min(400, len(data) - 1))
    where = draw(st.one_of(near, st.integers(0, len(data) - 1)))
    how = draw(st.sampled_from(["flip", "cut", "extend", "overwrite", "length", "harm", "new"]))
    if how == "flip":
        for at in [where, *draw(st.lists(near, max_size=4))]:
            whole[at] ^= 1 << draw(st.integers(0, 7))
    elif how == "cut":
        del whole[where:]
    elif how == "extend":
        whole[where:where] = draw(st.binary(min_size=1, max_size=64))
    elif how == "overwrite":
        new = draw(st.binary(min_size=1, max_size=64))
        whole[where : where + len(new)] = new
    elif how == "length":
        any_length = st.one_of(st.sampled_from(_HUGE), st.integers(0, 2**64 - 1))
        whole[:8] = (draw(any_length) % 2**64).to_bytes(8, "little")
    elif how == "harm":
        harmful = draw(st.sampled_from(harm))
        whole = bytearray(harmful + data if draw(st.booleans()) else harmful)
    else:
        whole = bytearray(draw(st.binary(max_size=200)))
    return bytes(whole)


def _header(draw: st.DrawFn, data: bytes) -> bytes:
    """Change what the header of safetensors says of one tensor."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    names = sorted(name for name in header if name != "__metadata__")
    name = draw(st.sampled_from(names))
    number = st.one_of(st.sampled_from(_HUGE), st.integers(-5, 300))
    what = draw(
        st.sampled_from(["dtype", "shape", "offsets", "name", "metadata", "missing", "any"])
    )
    if what == "dtype":
        header[name]["dtype"] = draw(st.sampled_from(_DTYPES))
    elif what == "shape":
        header[name]["shape"] = draw(st.lists(number, max_size=6))
    elif what == "offsets":
        header[name]["data_offsets"] = draw(st.lists(number, min_size=2, max_size=3))
    elif what == "name":
        header[draw(st.sampled_from(_NAMES))] = header.pop(name)
    elif what == "metadata":
        header["__metadata__"] = draw(st.one_of(_JSON, st.dictionaries(st.text(), st.text())))
    elif what == "missing":
        del header[name]
    else:
        header[name] = draw(_JSON)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def _tensors(draw: st.DrawFn, data: bytes) -> bytes:
    """Change one tensor, keeping the file whole."""
    tensors = safetensors.torch.load(data)
    name = draw(st.sampled_from(sorted(tensors)))
    value = tensors[name]
    what = draw(st.sampled_from(["value", "dtype", "shape", "drop", "name", "more"]))
    if what == "value":
        bad = draw(st.sampled_from([np.nan, np.inf, -np.inf, -1.0, 0.0, 3e38]))
        flat = value.reshape(-1).to(torch.float32, copy=True)
        flat[draw(st.integers(0, max(len(flat) - 1, 0))) :] = bad
        tensors[name] = flat.reshape(value.shape)
    elif what == "dtype":
        kinds = (torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool)
        kind = draw(st.sampled_from([*kinds, torch.float8_e4m3fn, torch.float8_e5m2]))
        tensors[name] = value.to(kind)
        if kind == torch.float64 and draw(st.booleans()):
            tensors[name] = torch.full_like(tensors[name], 1e300)
    elif what == "shape":
        shape = draw(st.lists(st.integers(0, 3), max_size=4))
        tensors[name] = torch.zeros(shape, dtype=value.dtype)
    elif what == "drop":
        del tensors[name]
    else:
        new = draw(st.one_of(st.sampled_from(_NAMES[:-2]), st.text(max_size=20)))
        new = new.encode("utf-8", "ignore").decode()
        tensors["network." + new] = tensors.pop(name) if what == "name" else value.clone()
    return safetensors.torch.save(tensors)


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from(_HUGE),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(_NAMES),
)
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def _settings(draw: st.DrawFn, text: str) -> str:
    """Change one setting, or make a bomb of the text."""
    what = draw(st.sampled_from(["replace"] * 5 + ["drop", "add", "twice", "bomb", "cut"]))
    config = json.loads(text)
    holder, key = draw(st.sampled_from(list(_places(config))))
    if what == "replace":
        holder[key] = draw(_JSON)
    elif what == "drop":
        del holder[key]
    elif what == "add" and isinstance(holder, dict):
        holder[draw(st.one_of(st.text(), st.sampled_from(_NAMES)))] = draw(_JSON)
    elif what == "twice":
        name = draw(st.sampled_from(sorted(config)))
        return text[:-1] + f", {json.dumps(name)}: {json.dumps(config[name])}}}"
    elif what == "cut":
        return text[: draw(st.integers(0, len(text)))]
    elif what == "bomb":
        return _bomb(draw, text, config)
    return json.dumps(config)


def _bomb(draw: st.DrawFn, text: str, config: dict[str, Any]) -> str:
    depth = draw(st.sampled_from([500, 5_000, 200_000]))
    open_, close = draw(st.sampled_from([("[", "]"), ('{"a":', "}")]))
    nested = open_ * depth + "1" + close * depth
    choice = draw(st.sampled_from(["bare", "inside", "digits", "exponent", "layers", "modalities"]))
    if choice == "bare":
        return nested
    if choice == "inside":
        return text[:-1] + f', "groups2": {nested}}}'
    if choice in ("digits", "exponent"):
        number = "9" * depth if choice == "digits" else f"1e{depth}"
        return text.replace('"random_state": ', f'"random_state": {number}', 1)
    if choice == "layers":
        config["network"]["n_hidden"] = [1] * depth
    else:
        some = {"features": ["a"], "likelihood": "gaussian"}
        config["modalities"] = [{"name": str(k), **some} for k in range(depth)]
    return json.dumps(config)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key in parsed JSON, but of long lists the ends only."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys if len(keys) < 12 or isinstance(value, dict) else [*keys[:2], keys[-1]]:
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


def _other_entries(draw: st.DrawFn, entries: dict[str, Any]) -> Any:
    odd = st.one_of(
        _SCALARS,
        st.binary(max_size=9),
        st.just(np.zeros((2, 3))),
        st.just(np.array(["a"], dtype=object)),
        st.just(np.zeros(0, np.uint8)),
        st.just({"a": 1}),
        st.just([[1], [2, 3]]),
    )
    if draw(st.integers(0, 5)) == 0:
        return draw(odd)
    name = draw(st.sampled_from(sorted(entries)))
    if draw(st.booleans()):
        del entries[name]
    else:
        entries[name] = draw(odd)
    return entries


def _sealed_file(weights: bytes, text: str) -> bytes:
    """Bytes of a file whose checksum fits, whatever it holds."""
    tensors = safetensors.torch.load(weights)
    text = text.encode("utf-8", "ignore").decode()
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        values = tensors[name].contiguous().reshape(-1).view(torch.uint8)
        digest.update(name.encode() + values.numpy().tobytes())
    return safetensors.torch.save(tensors, {"unitednet_mu": text, "sha256": digest.hexdigest()})


# ------------------------------------------------------------------ what is found


@contextmanager
def limited(extra: int = MEMORY) -> Iterator[None]:
    """Let the process have at most `extra` bytes of address space more than now (Linux)."""
    import resource

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + extra, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class Watch:
    """Notes what happens in the process that reading a model must not do."""

    def __init__(self) -> None:
        self.on, self.seen = False, list[str]()
        sys.addaudithook(self._note)  # for the life of the process; off but in `watching`

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and (event.startswith(_HARMFUL) or self._writes(event, arguments)):
            self.seen.append(f"{event} {arguments!r:.100}")

    def _writes(self, event: str, arguments: tuple[Any, ...]) -> bool:
        return event == "open" and isinstance(arguments[1], str) and arguments[1][:1] in "wax"

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.on, self.seen = True, []
        try:
            yield
        finally:
            self.on = False


class Reader:
    """Reads hostile models and says what came of it."""

    def __init__(self, folder: Path, model: Model) -> None:
        self.victim, self.marker = Victim.of(model), folder / "marker"
        self.path, self.watch = folder / "model.safetensors", Watch()
        self.tally: Counter[str] = Counter()
        self.limit = limited if sys.platform == "linux" else nullcontext

    def problem(self, hostile: Hostile) -> str:
        """Return what is wrong with how this was read, ``""`` for nothing."""
        if isinstance(hostile.stored, bytes):
            self.path.write_bytes(hostile.stored)
        with self.watch.watching(), self.limit():
            try:
                model = self._read(hostile.stored)
            except ValueError as error:
                outcome, found = "refused", _unreadable(str(error))
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                outcome, found = "crashed", f"{type(error).__name__}: {error}"[:300]
            else:
                outcome, found = "read", _unfit(model)
                if hostile.broken:
                    found = "its checksum differs, and it was read"
        self.tally[outcome] += 1
        if self.marker.exists():
            found = "code was run"
        return found or "; ".join(self.watch.seen)

    def _read(self, stored: Any) -> Model:
        return Model.load(self.path) if isinstance(stored, bytes) else Model.from_dict(stored)


def _unreadable(message: str) -> str:
    if "\n" in message or len(message) > _LONGEST:
        return f"expected a message of one line, found {message[:300]!r} ({len(message)})"
    return ""


def _unfit(model: Model) -> str:
    """Say what is wrong with a model that was read."""
    if not isinstance(model, Model):
        return f"no model, but {type(model).__name__}"
    for name, value in model.network.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            return f"weights that are not finite, in {name}"
    again = Model.from_dict(model.to_dict())
    return "" if again.info == model.info else "settings that differ when stored again"


def small_model() -> Model:
    """Return a model with batches and direct paths, to be damaged."""
    mdata = un.datasets.simulate_multimodal(
        n_obs=60, n_groups=3, n_batches=2, n_vars={"rna": 8, "adt": 7}, random_state=1
    )
    network = {"n_hidden": (8, 6), "n_latent": 4, "n_projector": 5}
    training = {"max_epochs": 2, "refit": False}
    settings_ = {"network": network, "training": training, "progress": False, "device": "cpu"}
    un.tl.fit(mdata, labels_key="cell_type", batch_key="batch", **settings_)
    return un.get.model(mdata)


def hostile_models(n: int, number: int = 0) -> tuple[Mapping[str, int], dict[str, str]]:
    """Read `n` hostile models; return how many were refused and read, and problems by kind."""
    problems: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        reader = Reader(Path(name), small_model())
        for stored in (reader.victim.entries, reader.victim.file):  # whole, it is read
            if found := reader.problem(Hostile("whole", stored)):
                raise RuntimeError(f"a model as it was stored: {found}")
        reader.tally.clear()

        def read(drawn: Hostile) -> None:
            if found := reader.problem(drawn):
                problems.setdefault(f"{drawn.what}: {found}", repr(drawn.stored)[:500])

        for_each(n, number, hostile(reader.victim, reader.marker), run=read)
        return dict(reader.tally), problems
