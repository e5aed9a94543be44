"""Safetensors files: their headers checked, their contents fingerprinted. Knows nothing of models; computes nothing."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mlx_lora.errors import ModelError

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_LONGEST_HEADER = 100_000_000  # bytes, as the safetensors library has it
_SAMPLE = 4096  # bytes
_DAMAGED = "download or copy the file again"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's place in a safetensors file: `start` and `size` in bytes from the beginning of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def weight_files(folder: Path) -> list[Path]:
    """The files that mlx_lm reads, model*.safetensors, in order of name.

    Raises: ModelError when there are none, or when the index names one that is missing.
    """
    files = sorted(folder.glob("model*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = set(_read_index(index).values())
        missing = sorted(named - {file.name for file in files})
        if missing:
            raise ModelError(f"{index}: {', '.join(missing[:3])} is missing ({len(missing)} of {len(named)})", _DAMAGED)
    if files:
        return files
    others = sorted(file.name for kind in ("bin", "pt", "pth", "gguf") for file in folder.glob(f"*.{kind}"))
    raise ModelError(
        f"{folder}: has no model*.safetensors" + (f", only {', '.join(others[:3])}" if others else ""),
        "only safetensors weights are read: look for an MLX version (mlx-community/…), or run `mlx_lm.convert`",
    )


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file, its place checked against the file's size: whole, in bounds, not overlapping.

    Raises: ModelError. Source: the format of huggingface/safetensors; reports of readers that trusted the header:
    https://github.com/ml-explore/mlx/issues/3363, https://github.com/ml-explore/mlx/issues/4245.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise ModelError(f"{file}: is cut off or not a safetensors file ({size} bytes)", _DAMAGED)
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise ModelError(f"{file}: its safetensors header is not JSON", _DAMAGED) from error
    if not isinstance(header, dict):
        raise ModelError(f"{file}: its safetensors header is not a JSON object", _DAMAGED)
    header.pop("__metadata__", None)
    tensors = {name: _stored(file, name, entry, 8 + length) for name, entry in header.items()}
    end = 8 + length
    for tensor in sorted(tensors.values(), key=lambda stored: (stored.start, stored.size)):
        if tensor.start != end:
            raise ModelError(f"{file}: its tensors overlap or leave gaps at byte {tensor.start}", _DAMAGED)
        end = tensor.start + tensor.size
    if end != size:
        raise ModelError(f"{file}: is cut off: {size} bytes, its header says {end}", _DAMAGED)
    return tensors


def fingerprint_weights(files: list[Path]) -> str:
    """A SHA-256 over all tensors in order of name: name, dtype, shape and a sample of the bytes.

    The sample is the whole tensor up to 12 KiB, else 4 KiB from its start, middle and end: about 10 MB of a 4 GB model.
    It does not depend on how tensors lie in files. Another training, quantization or conversion changes it; a few bytes
    changed on purpose between the samples do not. Raises: ModelError for a file that is damaged.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        tensors.update(read_header(file))
    digest = hashlib.sha256()
    streams = {file: file.open("rb") for file in files}
    try:
        for name, tensor in sorted(tensors.items()):
            digest.update(json.dumps([name, tensor.dtype, tensor.shape]).encode())
            for sample in _samples(streams[tensor.file], tensor):
                digest.update(sample)
    finally:
        for stream in streams.values():
            stream.close()
    return digest.hexdigest()


def _samples(stream: BinaryIO, tensor: StoredTensor) -> Iterator[bytes]:
    places = [(0, tensor.size)]
    if tensor.size > 3 * _SAMPLE:
        middle = (tensor.size - _SAMPLE) // 2
        places = [(0, _SAMPLE), (middle, _SAMPLE), (tensor.size - _SAMPLE, _SAMPLE)]
    for offset, size in places:
        stream.seek(tensor.start + offset)
        yield stream.read(size)


def _stored(file: Path, name: str, entry: Any, base: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        fits = whole and end - begin == math.prod(shape) * _BITS[dtype] // 8
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{file}: tensor {name!r} has an entry that cannot be read: {entry}", _DAMAGED) from error
    if not fits:
        raise ModelError(f"{file}: tensor {name!r} has {dtype} {list(shape)} but bytes {begin} to {end}", _DAMAGED)
    return StoredTensor(file, dtype, shape, base + begin, end - begin)


def _read_index(index: Path) -> Mapping[str, str]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if all(isinstance(name, str) and "/" not in name for name in names.values()):
            return dict(names)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{index}: is not an index of weights", _DAMAGED) from error
    raise ModelError(f"{index}: names files outside of its folder", _DAMAGED)
