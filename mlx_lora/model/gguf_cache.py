"""GGUF files as MLX model folders in the cache, converted once: built-in models and a person's own files alike.

Loads no model. A marker in each folder says what it was made of, and what it holds.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_lora.console import talk
from mlx_lora.errors import MlxLoraError
from mlx_lora.files import (
    cache_folder,
    lock,
    named_errors,
    remove_leftovers,
    sha256_file,
    whole_folder,
    write_json,
    write_whole,
)

if TYPE_CHECKING:
    import numpy as np

CONVERTER = 1  # goes up when the conversion writes other files: old cache folders are then left alone and unused
SHARD_BYTES = 2 * 10**9
_MARKER = "converted.json"
_LARGEST_HASHED = 2**30  # bytes: of larger files only the size is compared at every start
_SAMPLE, _STRIDE = 4096, 2**20  # bytes


def converted_folder(name: str, key: str) -> Path:
    """Where the model called `name`, made of the file with SHA-256 or fingerprint `key`, lies in the cache."""
    return cache_folder() / "models" / f"{name}-{key[:8]}-v{CONVERTER}"


def ensure_converted(folder: Path, key: str, name: str, write: Callable[[Path], None]) -> Path:
    """`folder`, filled by `write` first when it is not there, damaged, or made of another file than `key`.

    That takes seconds, or minutes for a large file, and is said of `name` on stderr. Of processes that start at once,
    one converts and the others wait. Raises: MlxLoraError.
    """
    if is_whole(folder, key):
        return folder
    with _locked(folder.with_name(f".{folder.name}.lock")):
        if not is_whole(folder, key):  # another process may have converted it while this one waited
            talk.print(f"converting {name} once …", markup=False, soft_wrap=True)
            remove_leftovers(folder)
            with whole_folder(folder, overwrite=True) as temporary:
                write(temporary)
    return folder


def ensure_gguf(file: Path) -> Path:
    """The folder of a person's GGUF file in MLX's format, converted first when that was not done before.

    Raises: ModelError when it is no llama or holds what cannot be carried over, MlxLoraError.
    """
    from mlx_lora.model.gguf import GgufFile

    folder, key = gguf_place(file)
    if not is_whole(folder, key):
        GgufFile(file).check()  # first, so that a file which is refused leaves nothing in the cache
    origin = {"file": file.name}
    return ensure_converted(folder, key, str(file), lambda temporary: write_model(file, temporary, key, origin))


def gguf_place(file: Path) -> tuple[Path, str]:
    """The folder in the cache for a person's GGUF file, and the file's fingerprint. Raises: MlxLoraError."""
    key = fingerprint_file(file)
    return converted_folder(file.stem, key), key


def write_model(source: Path, folder: Path, key: str, origin: dict[str, Any]) -> None:
    """Write the MLX model made of GGUF file `source` into `folder`, and a marker with the size and hash of each file.

    Raises: ModelError when it holds what cannot be carried over.
    """
    from mlx_lora.model.gguf import GgufFile
    from mlx_lora.model.gguf_tokenizer import tokenizer_files

    gguf = GgufFile(source)
    write_json(folder / "config.json", gguf.config())
    for file_name, content in tokenizer_files(gguf).items():
        write_json(folder / file_name, content)
    _write_shards(folder, gguf.iter_arrays())
    files = {path.name: _facts(path) for path in sorted(folder.iterdir())}
    write_json(folder / _MARKER, {**origin, "source_sha256": key, "converter": CONVERTER, "files": files})


def is_whole(folder: Path, key: str) -> bool:
    """Whether `folder` holds exactly what the conversion of the file with `key` wrote."""
    try:
        marker = json.loads((folder / _MARKER).read_text())
        names = {path.name for path in folder.iterdir()} - {_MARKER}
        return bool(
            marker["source_sha256"] == key
            and marker["converter"] == CONVERTER
            and names == set(marker["files"])
            and all(marker["files"][name]["bytes"] == (folder / name).stat().st_size for name in names)
            and all(
                marker["files"][name] == _facts(folder / name)
                for name in names
                if marker["files"][name]["bytes"] <= _LARGEST_HASHED
            )
        )
    except (OSError, MlxLoraError, KeyError, TypeError, ValueError):  # what cannot be read is converted again
        return False


def fingerprint_file(file: Path) -> str:
    """A SHA-256 over the file's size, its first and last MiB, and 4 KiB of every MiB: milliseconds for gigabytes.

    Raises: MlxLoraError when it cannot be read.
    """
    with named_errors(file), file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        digest = hashlib.sha256(str(size).encode())
        digest.update(stream.read(_STRIDE))
        for place in range(_STRIDE, size, _STRIDE):
            stream.seek(place)
            digest.update(stream.read(_SAMPLE))
        stream.seek(max(size - _STRIDE, 0))
        digest.update(stream.read(_STRIDE))
    return digest.hexdigest()


def _write_shards(folder: Path, arrays: "Iterator[tuple[str, np.ndarray]]") -> None:
    """Write the arrays as model.safetensors, or in several files where they are many bytes."""
    # The safetensors library, not MLX's writer: its files are the same bytes on every platform.
    from safetensors.numpy import save

    shard: dict[str, np.ndarray] = {}
    written = 0
    for name, array in arrays:
        if shard and sum(value.nbytes for value in shard.values()) + array.nbytes > SHARD_BYTES:
            written += 1
            write_whole(folder / f"model-{written:05d}.safetensors", save(shard, {"format": "mlx"}))
            shard = {}
        shard[name] = array
    last = "model.safetensors" if not written else f"model-{written + 1:05d}.safetensors"
    write_whole(folder / last, save(shard, {"format": "mlx"}))


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold `path` against other processes; the system frees it even when a process dies."""
    with named_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with named_errors(path):
            lock(descriptor, wait=True)  # without locks two may convert at once: each writes a folder of its own
        yield
    finally:
        os.close(descriptor)
