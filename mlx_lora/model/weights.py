"""Safetensors files: their headers checked, their contents fingerprinted. Knows nothing of models; computes nothing."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mlx_lora.errors import ModelError
from mlx_lora.files import named_errors
from mlx_lora.tensorheader import HeaderError, read_tensor_header

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


def read_headers(files: list[Path]) -> dict[str, StoredTensor]:
    """The tensors of all files of a model, by name. Raises: MlxLoraError, for a name in two files too."""
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in read_header(file).items():
            if name in tensors:
                fact = f"{file}: holds {name}, and so does {tensors[name].file.name}"
                raise ModelError(fact, "keep the files of one model in the folder")
            tensors[name] = tensor
    return tensors


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file, after the check of its header (see tensorheader.py). Raises: MlxLoraError."""
    try:
        with named_errors(file), file.open("rb") as stream:
            start, entries = read_tensor_header(stream, file.stat().st_size)
    except HeaderError as fault:
        raise ModelError(
            f"{file}: {fault}", "the file is damaged or no safetensors file: download or copy it again"
        ) from fault
    return {
        name: StoredTensor(file, entry.dtype, entry.shape, start + entry.start, entry.end - entry.start)
        for name, entry in entries.items()
    }


def fingerprint_weights(files: list[Path]) -> str:
    """A SHA-256 over all tensors in order of name: name, dtype, shape and a sample of the bytes.

    The sample is the whole tensor up to 12 KiB, else 4 KiB from its start, middle and end: about 10 MB of a 4 GB model.
    It does not depend on how tensors lie in files. Another training, quantization or conversion changes it; a few bytes
    changed on purpose between the samples do not. Raises: ModelError for a file that is damaged.
    """
    tensors = read_headers(files)
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


def _read_index(index: Path) -> Mapping[str, str]:
    try:
        with named_errors(index):
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(name, str) for name in names.values()):
            raise TypeError("a file's name is a text")
        if not any("/" in name for name in names.values()):
            return dict(names)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{index}: is not an index of weights", _DAMAGED) from error
    raise ModelError(f"{index}: names files outside of its folder", _DAMAGED)
