"""The cache folder of what frozen layers gave: files that are whole, checked, and in all within a budget.

A file is the bytes of a (tokens, D) array and their SHA-256. Knows nothing of models or rows.
"""

import hashlib
import mmap
import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from mlx_lora.files import lock, named_errors

BUDGET_BYTES = 20 * 10**9  # of all stores in the folder; a run that needs more by itself gets it
_CHECKSUM_BYTES = 32
_CHUNK = 2**22


class OpenStore:
    """A stored array, memory-mapped; nobody removes its file while this is open."""

    def __init__(self, descriptor: int, states: np.ndarray) -> None:
        self.states = states  # (tokens, D)
        weakref.finalize(self, os.close, descriptor)  # with it goes the lock


class StoreWriter:
    """Writes rows of an array at their places. Not through a memory map: a full disk would end the process."""

    def __init__(self, descriptor: int, dtype: np.dtype[Any], width: int) -> None:
        self._descriptor, self._dtype, self._row_bytes = descriptor, dtype, width * dtype.itemsize

    def write(self, first: int, states: np.ndarray) -> None:
        """Put `states` (rows, D) from row `first` on."""
        content = np.ascontiguousarray(states, self._dtype).data.cast("B")
        place = first * self._row_bytes
        while content:
            written = os.pwrite(self._descriptor, content, place)
            content, place = content[written:], place + written


def open_store(path: Path, dtype: np.dtype[Any], shape: tuple[int, int]) -> OpenStore | None:
    """The array at `path`, held until it is let go; None where there is none, or its checksum or size is wrong.

    Raises: MlxLoraError when it cannot be read.
    """
    with named_errors(path):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            lock(descriptor, shared=True, wait=True)
            if not _is_whole(descriptor, shape[0] * shape[1] * dtype.itemsize):
                os.close(descriptor)
                return None
            with suppress(OSError):  # somebody else's file: only the order of removal is less good
                os.utime(path)
            mapped = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        except OSError:
            os.close(descriptor)
            raise
    return OpenStore(descriptor, np.frombuffer(mapped, dtype, shape[0] * shape[1]).reshape(shape))


@contextmanager
def new_store(path: Path, dtype: np.dtype[Any], shape: tuple[int, int]) -> Iterator[StoreWriter]:
    """Yield a writer; the file is at `path`, whole, when the block ends without an exception.

    Raises: MlxLoraError when it cannot be written (disk full).
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with named_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            lock(descriptor)  # make_room removes a part that nobody holds
            yield StoreWriter(descriptor, dtype, shape[1])
            size = shape[0] * shape[1] * dtype.itemsize
            os.pwrite(descriptor, _checksum(descriptor, size), size)
            os.fsync(descriptor)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
            os.close(descriptor)


def make_room(folder: Path, wanted: Mapping[Path, int], budget: int = BUDGET_BYTES) -> tuple[int, int]:
    """Remove the stores longest unused until `wanted` (path → bytes) fits `budget`; (files, bytes) that were removed.

    A store that a living run uses stays, and so do those of `wanted`. What killed runs left half-written goes.
    Raises: MlxLoraError when the folder cannot be read or changed.
    """
    if not folder.is_dir():
        return 0, 0
    removed = freed = 0
    with named_errors(folder):
        others = []
        for path in folder.iterdir():
            if path in wanted or not path.is_file():
                continue
            if path.suffix == ".part":
                _remove_unused(path)
            else:
                about = path.stat()
                others.append((about.st_mtime_ns, about.st_size, path))
        total = sum(wanted.values()) + sum(size for _, size, _ in others)
        for _, size, path in sorted(others):
            if total <= budget:
                break
            if _remove_unused(path):
                removed, freed, total = removed + 1, freed + size, total - size
    return removed, freed


def _remove_unused(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if not lock(descriptor):  # in use, or a disk without locks, where nobody can tell
            return False
        path.unlink()
    finally:
        os.close(descriptor)
    return True


def _is_whole(descriptor: int, size: int) -> bool:
    if os.fstat(descriptor).st_size != size + _CHECKSUM_BYTES:
        return False
    return os.pread(descriptor, _CHECKSUM_BYTES, size) == _checksum(descriptor, size)


def _checksum(descriptor: int, size: int) -> bytes:
    digest = hashlib.sha256()
    for place in range(0, size, _CHUNK):
        digest.update(os.pread(descriptor, min(_CHUNK, size - place), place))
    return digest.digest()
