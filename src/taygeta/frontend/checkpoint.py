"""Checkpoints on disk: a directory of Hugging Face's layout, its tensors read lazily from memory-mapped safetensors.

The file format (huggingface.co/docs/safetensors, "Format"): 8 bytes, the little-endian length of a header; the header,
a JSON object {name: {dtype, shape, data_offsets}} with an optional __metadata__ of texts; then the data, which the
tensors cover without gap or overlap. Everything a header says is checked before a byte of data is touched, so that a
damaged file ends in one sentence and never in a signal.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taygeta.base.errors import InputError, UnsupportedError, require
from taygeta.frontend.config import shown

if TYPE_CHECKING:
    import numpy as np

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# The largest published shards have headers of under 1 MiB, the largest index (Kimi K2, 160,000 tensors) 12 MB.
MAX_HEADER = 32 * 1024 * 1024
MAX_INDEX = 64 * 1024 * 1024
MAX_TENSORS = 500_000
MAX_SHARDS = 4_096
MAX_NAME = 1_024
MAX_RANK = 16
MAX_SIDE = 2**48
RUN_BYTES = 8e9  # bytes of bf16 that a machine of modest memory can still execute

# dtype of the file: (bits, NumPy type where NumPy or ml_dtypes has one for whole bytes).
_TYPES: dict[str, tuple[int, str | None]] = {
    "BOOL": (8, "bool"), "U8": (8, "uint8"), "I8": (8, "int8"), "U16": (16, "uint16"), "I16": (16, "int16"),
    "U32": (32, "uint32"), "I32": (32, "int32"), "U64": (64, "uint64"), "I64": (64, "int64"),
    "F16": (16, "float16"), "F32": (32, "float32"), "F64": (64, "float64"), "BF16": (16, "bfloat16"),
    "F8_E4M3": (8, "float8_e4m3fn"), "F8_E5M2": (8, "float8_e5m2"), "F8_E8M0": (8, "float8_e8m0fnu"),
    "F4": (4, None), "F6_E2M3": (6, None), "F6_E3M2": (6, None),
}  # fmt: skip
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,250}\.safetensors")
_AGAIN = "download the checkpoint again, or write it again with save_pretrained(..., safe_serialization=True)"


@dataclass(frozen=True)
class TensorView:
    """One tensor of a checkpoint: what the header says of it, and its data when asked.

    dtype is the name in the file (BF16, F8_E4M3, ...); start and size are bytes within `file`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    size: int
    _shard: _Shard = field(repr=False, compare=False)

    @property
    def elements(self) -> int:
        """The product of the shape."""
        return prod(self.shape)

    def array(self) -> np.ndarray:
        """Return the data in its own type, read-only, paged in from the file as it is touched.

        bf16 and fp8 are the types of ml_dtypes. Raises UnsupportedError for packed types, InputError when the file has
        shrunk since it was opened, MissingExtraError.
        """
        import numpy as np

        kind = _TYPES[self.dtype][1]
        if kind is None:
            raise UnsupportedError(
                f"{self.file}: tensor {shown(self.name)} is {self.dtype}, packed below a byte, which is not supported; "
                f"convert it to U8 blocks and scales (as gpt-oss has them) or to BF16."
            )
        known = hasattr(np, kind) or kind == "bool"
        dtype = np.dtype(kind) if known else np.dtype(getattr(require("ml_dtypes", "run", f"{self.dtype} data"), kind))
        if not self.elements:
            return np.empty(self.shape, dtype)
        whole = np.frombuffer(self._shard.data(), dtype.newbyteorder("<"), self.elements, self.start)
        return np.require(whole, requirements="A").reshape(self.shape)

    def float32(self) -> np.ndarray:
        """Return the values as fp32: exact for bf16, fp16 and fp8, rounded to nearest for fp64.

        Scales that a checkpoint keeps beside a quantised tensor are tensors of their own and not applied. Raises
        UnsupportedError for whole numbers and for packed types, InputError.
        """
        import numpy as np

        if not self.dtype.startswith(("F", "BF")):
            raise UnsupportedError(
                f"{self.file}: tensor {shown(self.name)} is {self.dtype}, whole numbers without a stated meaning as "
                f"fp32; floating-point tensors (F32, F16, BF16, F8_E4M3, F8_E5M2, F8_E8M0, F64) have one."
            )
        if self.dtype == "BF16" and self.elements:  # the upper half of an fp32
            halves = np.frombuffer(self._shard.data(), "<u2", self.elements, self.start)
            return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(self.shape)
        with np.errstate(over="ignore"):
            return self.array().astype(np.float32)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """Return the data for NumPy, in its own type unless `dtype` says another."""
        data = self.array()
        return data.copy() if copy and dtype is None else data if dtype is None else data.astype(dtype)


class Checkpoint(Mapping[str, TensorView]):
    """The tensors of a checkpoint by name, with the paths of what lies beside them."""

    def __init__(self, directory: Path, tensors: Mapping[str, TensorView]) -> None:
        self.directory = directory
        self.config = directory / "config.json"
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> TensorView:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.directory)!r}, {len(self)} tensors, {self.bytes} bytes)"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors, in the order of the files."""
        return tuple(self._tensors)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold them, each once."""
        return tuple(dict.fromkeys(view.file for view in self._tensors.values()))

    @property
    def bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(view.size for view in self._tensors.values())

    def parameters(self) -> int:
        """Return how many parameters the tensors hold; 4-bit values packed in whole numbers count one by one."""
        return sum(view.elements * self._packed(view) for view in self._tensors.values())

    def _packed(self, view: TensorView) -> int:
        """How many 4-bit parameters are in one element: gpt-oss's blocks, ModelOpt's weights, compressed-tensors."""
        if view.dtype in ("U8", "I32") and view.name.endswith(("_blocks", "_packed", ".weight")):
            return _TYPES[view.dtype][0] // 4
        return 1

    def check_size(self, most: float = RUN_BYTES) -> None:
        """Refuse a checkpoint whose parameters take more than `most` bytes in bf16. Raises InputError."""
        needed = 2 * self.parameters()
        if needed > most:
            raise InputError(
                f"{self.directory} holds {self.parameters():,} parameters, {needed / 1e9:.1f} GB in bf16, and running "
                f"a checkpoint is bounded to {most / 1e9:.1f} GB; a smaller model of the family runs, "
                f"and predictions need no weights."
            )


def open_checkpoint(directory: str | Path) -> Checkpoint:
    """Return the checkpoint in a local directory: config.json beside model.safetensors, or beside the shards that a
    model.safetensors.index.json names.

    Links to files elsewhere are followed, as the Hugging Face cache has them. model.safetensors comes first where both
    are there, as in transformers. Raises InputError and UnsupportedError: every header is read and checked here.
    """
    path = Path(directory)
    try:
        names = set(os.listdir(path))
    except (OSError, ValueError) as error:
        usable = isinstance(error, OSError)
        reason = (error.strerror or str(error)) if usable else "not a usable file name"
        raise InputError(
            f"{path if usable else shown(str(path))} cannot be read as a checkpoint: {reason}; give a local directory "
            f"with config.json and {SINGLE}."
        ) from None
    if "config.json" not in names:
        raise InputError(
            f"{path} has no config.json; a checkpoint is a directory with config.json, {SINGLE} and tokenizer.json."
        )
    if SINGLE in names:
        return Checkpoint(path, {view.name: view for view in _read_shard(path / SINGLE)})
    if INDEX in names:
        return Checkpoint(path, _sharded(path, names))
    raise _nothing_to_open(path, names)


def _nothing_to_open(path: Path, names: set[str]) -> InputError:
    """Say why a directory without the two known names holds no checkpoint."""
    pickles = sorted(n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".bin.index.json")))
    others = sorted(n for n in names if n.endswith(".safetensors"))
    if others:
        return InputError(
            f"{path} holds {shown(others[0])} and neither {SINGLE} nor {INDEX}; "
            f"a single file must be called {SINGLE}, several need the index."
        )
    if pickles:
        return UnsupportedError(
            f"{path / pickles[0]} is a pickle, which can run code when it is read, and is not opened; convert it to "
            f"safetensors: AutoModelForCausalLM.from_pretrained(...).save_pretrained(..., safe_serialization=True)."
        )
    return InputError(f"{path} has config.json and no weights; put {SINGLE}, or shards and {INDEX}, beside it.")


def _sharded(path: Path, names: set[str]) -> dict[str, TensorView]:
    """Return the tensors of every shard that the index names; index and shards must agree."""
    where = path / INDEX
    weight_map = _weight_map(where)
    files = sorted(set(weight_map.values()))
    if len(files) > MAX_SHARDS:
        raise InputError(f"{where}: weight_map names {len(files)} files; at most {MAX_SHARDS} are read.")
    found: dict[str, TensorView] = {}
    for file in files:
        if file not in names:
            raise InputError(f"{where} names {file}, which is not in {path}; {_AGAIN}.")
        for view in _read_shard(path / file):
            if view.name in found:
                raise InputError(
                    f"{path / file}: tensor {shown(view.name)} is also in {found[view.name].file.name}; {_AGAIN}."
                )
            if view.name not in weight_map:
                raise InputError(f"{path / file}: tensor {shown(view.name)} is not in {INDEX}; {_AGAIN}.")
            found[view.name] = view
    for name, file in weight_map.items():
        if name not in found or found[name].file.name != file:
            raise InputError(f"{where} says that tensor {shown(name)} is in {file}, which does not hold it; {_AGAIN}.")
    return found


def _weight_map(where: Path) -> dict[str, str]:
    """Return the table tensor -> file of an index, its types and file names checked."""
    shard = _Shard(where)
    if shard.bytes > MAX_INDEX:
        raise InputError(f"{where} has {shard.bytes} bytes; at most {MAX_INDEX} are read.")
    table = _json(shard.read(0, shard.bytes), f"{where}")
    weight_map = table.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        state = "is missing" if weight_map is None else f"must be a table of file names, not {shown(weight_map)}"
        raise InputError(f"{where}: weight_map {state}; {_AGAIN}.")
    if len(weight_map) > MAX_TENSORS:
        raise InputError(f"{where}: weight_map has {len(weight_map)} tensors; at most {MAX_TENSORS} are read.")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _PLAIN_NAME.fullmatch(file):
            raise InputError(
                f"{where}: the file of tensor {shown(name)} must be the plain name of a .safetensors file in the same "
                f"directory, not {shown(file)}."
            )
    return weight_map


class _Shard:
    """One regular file, opened for reading and mapped when its data is first asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: mmap.mmap | None = None
        try:
            state = os.stat(path)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', error)}.") from None
        if not stat.S_ISREG(state.st_mode):  # a pipe would wait for ever, a device has no end
            raise InputError(f"{path} is not a regular file; a checkpoint is read from files on disk.")
        self.bytes = state.st_size

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start` on, by reading; fewer where the file ends."""
        try:
            with open(self.path, "rb") as stream:
                stream.seek(start)
                return stream.read(size)
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}.") from None

    def data(self) -> mmap.mmap:
        """Return the map of the whole file. A file that has shrunk is refused: touching lost pages is a signal."""
        try:
            if self._map is None:
                with open(self.path, "rb") as stream:
                    self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            now = min(self._map.size(), os.stat(self.path).st_size)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path} cannot be mapped: {getattr(error, 'strerror', error)}.") from None
        if now < self.bytes or len(self._map) < self.bytes:
            raise InputError(f"{self.path} had {self.bytes} bytes when it was opened and has {now} now; {_AGAIN}.")
        return self._map


def _read_shard(path: Path) -> list[TensorView]:
    """Return the tensors of one safetensors file in the order of their data, the header checked throughout."""
    shard = _Shard(path)
    prefix = shard.read(0, 8)
    if len(prefix) < 8:
        raise InputError(f"{path} has {len(prefix)} bytes, too few for a safetensors file; {_AGAIN}.")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER:
        raise InputError(
            f"{path}: the header would be {length} bytes and at most {MAX_HEADER} are read, "
            f"so this is not a safetensors file or a damaged one; {_AGAIN}."
        )
    if 8 + length > shard.bytes:
        raise InputError(f"{path} is cut off: the header ends at byte {8 + length} of {shard.bytes}; {_AGAIN}.")
    table = _json(shard.read(8, length), f"{path}: the header")
    _check_metadata(table.pop("__metadata__", None), path)
    if len(table) > MAX_TENSORS:
        raise InputError(f"{path}: the header has {len(table)} tensors; at most {MAX_TENSORS} are read.")
    views = [_view(name, entry, shard, 8 + length) for name, entry in table.items()]
    views.sort(key=lambda view: (view.start, view.size))
    end = 8 + length
    for view in views:
        if view.start != end:
            kind = "overlaps the tensor before it" if view.start < end else f"leaves {view.start - end} bytes unused"
            raise InputError(f"{path}: the data of tensor {shown(view.name)} {kind}; {_AGAIN}.")
        end += view.size
    if end != shard.bytes:
        kind = "is cut off" if end > shard.bytes else "has bytes that no tensor uses"
        raise InputError(f"{path} {kind}: the tensors end at byte {end} of {shard.bytes}; {_AGAIN}.")
    return views


def _check_metadata(metadata: object, path: Path) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise InputError(f"{path}: __metadata__ must be a table of texts; {_AGAIN}.")


def _view(name: str, entry: object, shard: _Shard, base: int) -> TensorView:
    """Return one tensor of a header whose data begins at byte `base`, its fields and its size checked."""
    where = f"{shard.path}: tensor {shown(name)}"
    if len(name) > MAX_NAME:
        raise InputError(f"{where} has a name of {len(name)} characters; at most {MAX_NAME} are read.")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"{where} must have exactly dtype, shape and data_offsets; {_AGAIN}.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _TYPES:
        raise UnsupportedError(f"{where}: dtype {shown(dtype)} is not known; it can be {', '.join(_TYPES)}.")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(_natural(n, MAX_SIDE) for n in shape):
        raise InputError(f"{where}: shape must be a list of at most {MAX_RANK} whole numbers from 0 to {MAX_SIDE}.")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_natural(n, 2**62) for n in offsets):
        raise InputError(f"{where}: data_offsets must be two whole numbers; {_AGAIN}.")
    start, end = offsets
    if start > end or base + end > shard.bytes:
        raise InputError(
            f"{where}: its data would be bytes {start} to {end} of the {shard.bytes - base} that the file holds; "
            f"{_AGAIN}."
        )
    bits = prod(shape) * _TYPES[dtype][0]
    if bits != 8 * (end - start):
        raise InputError(
            f"{where}: {dtype} of shape {_shape(shape)} takes {bits / 8:g} bytes, and data_offsets give {end - start}; "
            f"{_AGAIN}."
        )
    return TensorView(name, dtype, tuple(shape), shard.path, base + start, end - start, shard)


def _natural(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _shape(shape: list[int]) -> str:
    return " x ".join(map(str, shape)) or "()"


def _json(data: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object in `data`; a name that appears twice is refused."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(items)
        if len(out) < len(items):
            seen: set[str] = set()
            twice = next(name for name, _ in items if name in seen or seen.add(name))
            raise InputError(f"{where} has {shown(twice)} twice; {_AGAIN}.")
        return out

    def constant(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    try:
        table = json.loads(data.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise InputError(f"{where} is not JSON ({reason}); {_AGAIN}.") from None
    if not isinstance(table, dict):
        raise InputError(f"{where} must be a JSON object, not {shown(table)}; {_AGAIN}.")
    return table
