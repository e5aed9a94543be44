"""safetensors files of adapters: read after our own check of the header, and written in one deterministic way.

Knows nothing of adapters' names or shapes.
"""

import hashlib
import io
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from mlx_lora.errors import AdapterError
from mlx_lora.files import named_errors
from mlx_lora.tensorheader import HeaderError, TensorEntry, read_tensor_header

_CODES = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16"}
_WRITTEN = {**_CODES, mx.uint64: "U64", mx.uint32: "U32", mx.int64: "I64", mx.int32: "I32"}  # optimizers count steps
_REMEDY = "the file is damaged or no safetensors file: copy or train it again"
_CHECKSUM = "mlx_lora_sha256"  # in the metadata of files that we wrote


def read_tensors(path: Path) -> dict[str, mx.array]:
    """The floating-point tensors of a safetensors file by name, in the file's dtypes, all finite.

    Raises: AdapterError with the path and the tensor for whatever is wrong; nothing is then mapped or loaded.
    """
    with named_errors(path):
        content = path.read_bytes()
    entries = check_header(content, path)
    _verify(content, path)
    for name, entry in entries.items():
        if entry.dtype not in _CODES.values():
            expected = ", ".join(_CODES.values())
            raise AdapterError(f"{path}: {name} holds {entry.dtype}, expected one of {expected}", _REMEDY)
    # From the bytes that were checked, so that a file changed meanwhile cannot slip in.
    tensors = cast(dict[str, mx.array], mx.load(io.BytesIO(content), format="safetensors"))
    for name, tensor in tensors.items():
        if not mx.isfinite(tensor).all().item():
            raise AdapterError(
                f"{path}: {name} holds NaN or infinity", "the training had failed: use an earlier adapter"
            )
    return {name: tensors[name] for name in entries}


def check_header(content: bytes, path: Path) -> dict[str, TensorEntry]:
    """The header's entries by name, when the whole file agrees with them (tensorheader.py). Raises: AdapterError."""
    try:
        return read_tensor_header(io.BytesIO(content), len(content))[1]
    except HeaderError as fault:
        raise AdapterError(f"{path}: {fault}", _REMEDY) from fault


def encode_tensors(tensors: Mapping[str, mx.array], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file as bytes; equal tensors give equal bytes, whatever their order.

    Its metadata gets the SHA-256 of the file without metadata, which read_tensors holds it against.
    """
    header, *chunks = iter_encoded(tensors)
    known = {**metadata, _CHECKSUM: hashlib.sha256(b"".join([header, *chunks])).hexdigest()}
    return b"".join([_encode_header({"__metadata__": dict(sorted(known.items())), **json.loads(header[8:])}), *chunks])


def iter_encoded(tensors: Mapping[str, mx.array]) -> Iterator[bytes]:
    """A safetensors file without metadata, in pieces: the header, then the tensors in the order of their names."""
    header: dict[str, Any] = {}
    position = 0
    for name, tensor in sorted(tensors.items()):
        end = position + tensor.nbytes
        header[name] = {
            "dtype": _WRITTEN[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    yield _encode_header(header)
    for _, tensor in sorted(tensors.items()):
        yield bytes(memoryview(mx.contiguous(tensor)))  # type: ignore[arg-type]  # MLX arrays have the buffer protocol


def _encode_header(header: Mapping[str, Any]) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return struct.pack("<Q", len(text)) + text


def _verify(content: bytes, path: Path) -> None:
    """Raises: AdapterError for a file of ours whose bits have changed since; files of others have no checksum."""
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    written = (header.pop("__metadata__", None) or {}).get(_CHECKSUM)
    if written is None:
        return
    digest = hashlib.sha256(_encode_header(header))
    digest.update(memoryview(content)[start:])
    if digest.hexdigest() != written:
        raise AdapterError(f"{path}: its checksum differs: bits of it have changed since it was written", _REMEDY)
