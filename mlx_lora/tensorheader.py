"""The header of a safetensors file, held against the file's size before anything maps it. Knows nothing of arrays.

Source: the format's description, github.com/huggingface/safetensors. Reports of readers that trusted the header:
https://github.com/ml-explore/mlx/issues/3363, https://github.com/ml-explore/mlx/issues/4245.
"""

import json
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

LARGEST_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
LONGEST_NAME = 1000
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


class HeaderError(ValueError):
    """What is wrong with a safetensors file, in words that follow `file: `."""


@dataclass(frozen=True)
class TensorEntry:
    """What a header says of one tensor: its dtype code, its shape, and its bytes [start, end) after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_tensor_header(stream: BinaryIO, size: int) -> tuple[int, dict[str, TensorEntry]]:
    """The bytes before the first tensor, and the entries by name, when a file of `size` bytes agrees with its header.

    Raises: HeaderError for a truncated or overlong file, a header that is no JSON object of tensors, names given
    twice, unknown dtypes, sizes that differ from shape and dtype, offsets outside the file, overlaps and holes.
    """
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > min(size - 8, LARGEST_HEADER_BYTES):
        raise HeaderError(f"{size} bytes do not hold the header they announce")
    body = size - 8 - length
    entries = {
        name: _entry(name, value, body)
        for name, value in _header(stream.read(length)).items()
        if name != "__metadata__" or _check_metadata(value)
    }
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            raise HeaderError(f"{name} begins at byte {entry.start}, the tensor before it ends at {position}")
        position = entry.end
    if position != body:
        raise HeaderError(f"{body} bytes of tensors, the header describes {position}")
    return 8 + length, entries


def _header(text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            raise HeaderError(
                f"{_shown(next(name for name in names if names.count(name) > 1))} stands twice in the header"
            )
        return found

    if not text.startswith(b"{"):
        raise HeaderError("the header is no JSON object")
    try:
        header: dict[str, Any] = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except HeaderError:
        raise
    except RecursionError as error:
        raise HeaderError("the header is no JSON of tensors: nested too deeply") from error
    except ValueError as error:
        raise HeaderError(f"the header is no JSON: {error}") from error
    return header


def _check_metadata(value: Any) -> bool:
    if value is None:  # what MLX writes where there is none
        return False
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise HeaderError("__metadata__ is no mapping of text to text")
    return False


def _entry(name: str, value: Any, body: int) -> TensorEntry:
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise HeaderError(f"{_shown(name)} is no name of a tensor")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise HeaderError(f"{name}: its entry does not give exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise HeaderError(f"{name}: unknown dtype {_shown(dtype)}")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise HeaderError(f"{name}: shape and data_offsets must be lists of whole numbers ≥ 0")
    start, end = offsets
    if not start <= end <= body:
        raise HeaderError(f"{name}: bytes {start} to {end} lie outside the file's {body}")
    if prod(shape) * _BITS[dtype] != 8 * (end - start):
        raise HeaderError(f"{name}: {end - start} bytes cannot hold shape {shape} of {dtype}")
    return TensorEntry(dtype, tuple(shape), start, end)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value
    )


def _shown(value: Any) -> str:
    return repr(value)[:60]
