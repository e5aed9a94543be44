"""safetensors files: the header checked by ourselves before MLX sees it, and one deterministic way of writing.

Knows nothing of adapters' names or shapes. Source: the format's description, github.com/huggingface/safetensors.
"""

import io
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn, cast

import mlx.core as mx

from mlx_lora.errors import AdapterError
from mlx_lora.files import named_errors

LARGEST_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
LONGEST_NAME = 1000
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2}
_BYTES |= {"U8": 1, "BOOL": 1}
_CODES = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16"}
_WRITTEN = {**_CODES, mx.uint64: "U64", mx.uint32: "U32", mx.int64: "I64", mx.int32: "I32"}  # optimizers count steps
_REMEDY = "the file is damaged or no safetensors file: copy or train it again"


@dataclass(frozen=True)
class TensorEntry:
    """What a header says of one tensor: its dtype code, its shape, and its bytes [start, end) after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_tensors(path: Path) -> dict[str, mx.array]:
    """The floating-point tensors of a safetensors file by name, in the file's dtypes, all finite.

    Raises: AdapterError with the path and the tensor for whatever is wrong; nothing is then mapped or loaded.
    """
    with named_errors(path):
        content = path.read_bytes()
    entries = check_header(content, path)
    for name, entry in entries.items():
        if entry.dtype not in _CODES.values():
            raise AdapterError(f"{path}: {name} holds {entry.dtype}, expected one of {', '.join(_CODES.values())}")
    # From the bytes that were checked, so that a file changed meanwhile cannot slip in.
    tensors = cast(dict[str, mx.array], mx.load(io.BytesIO(content), format="safetensors"))
    for name, tensor in tensors.items():
        if not mx.isfinite(tensor).all().item():
            raise AdapterError(
                f"{path}: {name} holds NaN or infinity", "the training had failed: use an earlier adapter"
            )
    return {name: tensors[name] for name in entries}


def check_header(content: bytes, path: Path) -> dict[str, TensorEntry]:
    """The header's entries by name, when the whole file agrees with them.

    Raises: AdapterError for a truncated or overlong file, a header that is no JSON object of tensors, names given
    twice, unknown dtypes, sizes that differ from shape and dtype, offsets outside the file, overlaps and holes.
    """
    length = struct.unpack("<Q", content[:8])[0] if len(content) >= 8 else -1
    if length < 0 or length > LARGEST_HEADER_BYTES or 8 + length > len(content):
        _refuse(path, f"{len(content)} bytes do not hold the header they announce")
    body = len(content) - 8 - length
    entries = {
        name: _entry(path, name, value, body)
        for name, value in _header(path, content[8 : 8 + length]).items()
        if name != "__metadata__" or _check_metadata(path, value)
    }
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            _refuse(path, f"{name} begins at byte {entry.start}, the tensor before it ends at {position}")
        position = entry.end
    if position != body:
        _refuse(path, f"{body} bytes of tensors, the header describes {position}")
    return entries


def encode_tensors(tensors: Mapping[str, mx.array], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file as bytes; equal tensors give equal bytes, whatever their order."""
    return b"".join(iter_encoded(tensors, metadata))


def iter_encoded(tensors: Mapping[str, mx.array], metadata: Mapping[str, str] | None = None) -> Iterator[bytes]:
    """The bytes of a safetensors file in pieces: the header, then tensor after tensor in the order of their names."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(sorted(metadata.items()))}
    position = 0
    for name, tensor in sorted(tensors.items()):
        end = position + tensor.nbytes
        header[name] = {
            "dtype": _WRITTEN[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    yield struct.pack("<Q", len(text)) + text
    for _, tensor in sorted(tensors.items()):
        yield bytes(memoryview(mx.contiguous(tensor)))  # type: ignore[arg-type]  # MLX arrays have the buffer protocol


def _header(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            _refuse(path, f"{next(name for name in names if names.count(name) > 1)!r} stands twice in the header")
        return found

    if not text.startswith(b"{"):
        _refuse(path, "the header is no JSON object")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: the header is no JSON: {error}", _REMEDY) from error
    return cast(dict[str, Any], header)


def _check_metadata(path: Path, value: Any) -> bool:
    if value is None:  # what MLX writes where there is none
        return False
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        _refuse(path, "__metadata__ is no mapping of text to text")
    return False


def _entry(path: Path, name: str, value: Any, body: int) -> TensorEntry:
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        _refuse(path, f"{name[:40]!r} is no name of a tensor")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse(path, f"{name}: its entry does not give exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        _refuse(path, f"{name}: unknown dtype {dtype!r}")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        _refuse(path, f"{name}: shape and data_offsets must be lists of whole numbers ≥ 0")
    start, end = offsets
    if not start <= end <= body:
        _refuse(path, f"{name}: bytes {start} to {end} lie outside the file's {body}")
    if prod(shape) * _BYTES[dtype] != end - start:
        _refuse(path, f"{name}: {end - start} bytes cannot hold shape {shape} of {dtype}")
    return TensorEntry(dtype, tuple(shape), start, end)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value
    )


def _refuse(path: Path, fact: str) -> NoReturn:
    raise AdapterError(f"{path}: {fact}", _REMEDY)
