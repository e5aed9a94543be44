"""Files and folders that appear whole or not at all, and their SHA-256. Knows nothing of what is in them."""

import errno
import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mlx_lora.errors import MlxLoraError

_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space, or choose a folder on another disk",
    errno.EDQUOT: "your disk quota is used up: free some space, or choose a folder on another disk",
    errno.EFBIG: "larger than this disk's format, or `ulimit -f`, allows: raise the limit, or choose another disk",
    errno.EROFS: "this disk is read-only: choose another folder",
    errno.EACCES: "check who owns the folder and its permissions, or choose another folder",
    errno.EPERM: "check who owns the folder and its permissions, or choose another folder",
    errno.EISDIR: "a folder has this name: choose another name, or move the folder away",
    errno.ENOTDIR: "a file stands where a folder is needed: choose another folder, or move the file away",
    errno.EEXIST: "a file stands where a folder is needed: choose another folder, or move the file away",
    errno.ENOENT: "check the spelling of the path",
    errno.ENAMETOOLONG: "no disk takes so long a name: choose a shorter one",
    errno.ELOOP: "a link leads back to itself: remove it, or name the file itself",
}
_NO_FULL_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY)  # network shares, other formats
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


def write_whole(path: str | Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) to `path`, making its folders: readers see the old file or the new one.

    Raises: MlxLoraError with path, fact and remedy (disk full, read-only, not permitted); the old file then stays.
    """
    with whole_file(path) as temporary, named_errors(path):
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON with a final newline, whole or not at all; NaN and infinity are refused."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def cache_folder() -> Path:
    """What can be made again: MLX_LORA_CACHE where that is set, else mlx-lora in the user's cache folder."""
    import platformdirs

    named = os.environ.get("MLX_LORA_CACHE")
    return typed_path(named) if named else platformdirs.user_cache_path("mlx-lora")


def typed_path(text: str | Path) -> Path:
    """The path that a person typed, ~ expanded, after which asking whether it is there cannot fail.

    Raises: MlxLoraError for what cannot lead anywhere: ~ of nobody, links in a circle, too long a name, a NUL
    character, no permission.
    """
    if "\0" in str(text):
        raise MlxLoraError(f"{text}: holds a NUL character", "no file can be called so: remove it")
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise MlxLoraError(
            f"{text}: there is no such home folder", "write the whole path, or ./ before the ~"
        ) from error
    with named_errors(text), suppress(FileNotFoundError, NotADirectoryError):
        path.stat()
    return path


def refuse_unwritable(path: str | Path) -> None:
    """Raises: MlxLoraError where nothing can be written at `path`: asked before the work, not after it."""
    wanted = place = typed_path(path)
    while not place.exists():
        place = place.parent
    if place != wanted and not place.is_dir():
        raise MlxLoraError(f"{path}: {place} is a file, not a folder", _REMEDIES[errno.ENOTDIR])
    if not os.access(place, os.W_OK):
        raise MlxLoraError(f"{path}: cannot be written", _REMEDIES[errno.EACCES])


@contextmanager
def whole_file(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with its suffix; what was written there becomes `path` when the block ends.

    For writers that want a name (mx.save_safetensors). After an exception nothing is left.
    Raises: MlxLoraError as write_whole, or without `overwrite` when `path` exists.
    """
    path = Path(path)
    _refuse_existing(path, overwrite)
    temporary = _beside(path)
    with _made_parents(path):
        try:
            yield temporary
            with named_errors(path):
                _sync(temporary)
            _refuse_existing(path, overwrite)
            with named_errors(path):
                temporary.replace(path)
                _sync(path.parent)
        finally:
            with suppress(OSError):  # gone already after a rename
                temporary.unlink()


@contextmanager
def whole_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`, which becomes `path` when the block ends.

    A folder with something in it is kept, unless `overwrite`. After an exception `path` is as it was.
    Where `path` is a link, the folder that it leads to. Raises: MlxLoraError when `path` exists, or is the current
    folder, which nothing can replace, or as write_whole.
    """
    path = Path(os.path.realpath(path)) if Path(path).is_symlink() else Path(path)  # a folder cannot replace a link
    _refuse_nameless(path)
    _refuse_existing(path, overwrite)
    temporary = _beside(path)
    with _made_parents(path):
        try:
            with named_errors(path):
                temporary.mkdir()
            yield temporary
            with named_errors(path):
                for written in sorted(temporary.rglob("*")):
                    _sync(written)
                _sync(temporary)
            _refuse_existing(path, overwrite)
            with named_errors(path):
                _take_place(temporary, path)
                _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(path: str | Path) -> None:
    """Delete what writers of `path` that were killed left beside it. Only for a caller who knows that nobody writes."""
    path = Path(path)
    for leftover in path.parent.glob(f".{glob.escape(path.stem)}.partial-*{glob.escape(path.suffix)}"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with suppress(OSError):
                leftover.unlink()


def remove_all_leftovers(folder: Path) -> None:
    """Delete what killed writers left in `folder`. Only for a caller who knows that nobody writes there."""
    for leftover in folder.glob(".*.partial-*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Delete a folder: it is gone at once or not at all, so that a kill leaves no half of it under its name."""
    if not path.exists():
        return
    with named_errors(path):
        doomed = path.rename(_beside(path))
    shutil.rmtree(doomed, ignore_errors=True)  # what is left has a leftover's name: see remove_all_leftovers


def lock(descriptor: int, *, shared: bool = False, wait: bool = False) -> bool | None:
    """Lock an open file against other processes: True, False where another holds it, None without locks on this disk.

    The system frees the lock when the descriptor is closed or the process dies.
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits. Raises: MlxLoraError when it cannot be read."""
    with named_errors(path), Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def named_errors(path: str | Path) -> Iterator[None]:
    """Turn an OSError of the block into an MlxLoraError with `path`, the system's reason and a remedy."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise MlxLoraError(f"{path}: {reason}", _REMEDIES.get(error.errno or 0)) from error


@contextmanager
def _made_parents(path: Path) -> Iterator[None]:
    """The folders above `path`, made where missing; after an exception those that were made are gone again."""
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        with named_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in missing:
            with suppress(OSError):  # never made, or somebody else has put something in it
                parent.rmdir()
        raise


def _beside(path: Path) -> Path:
    return path.parent / f".{path.stem}.partial-{secrets.token_hex(4)}{path.suffix}"


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _refuse_nameless(path: Path) -> None:
    with named_errors(path):
        here = path.is_dir() and path.samefile(os.curdir)
    if here or not path.name:
        fact = "is the folder you are in" if here else "has no name"
        raise MlxLoraError(f"{path}: {fact}", "give the name of a new folder; it appears whole, under that name")


def _refuse_existing(path: Path, overwrite: bool) -> None:
    with named_errors(path):
        taken = path.exists() and not _is_empty_folder(path)
    if taken and not overwrite:
        raise MlxLoraError(f"{path}: exists already", "choose another name, or move it away; nothing was overwritten")


def _take_place(temporary: Path, path: Path) -> None:
    if not path.exists() or _is_empty_folder(path):
        temporary.rename(path)  # POSIX renames over an empty folder
        return
    old = _beside(path)
    path.rename(old)
    try:
        temporary.rename(path)
    except OSError:
        old.rename(path)
        raise
    if old.is_dir():
        shutil.rmtree(old)
    else:
        old.unlink()


def flush_to_disk(descriptor: int) -> None:
    """Return when what was written to an open file or folder survives a power cut. Raises: OSError.

    macOS: fsync leaves it in the drive's own cache, F_FULLFSYNC does not (man 2 fsync); a disk without it gets fsync.
    """
    os.fsync(descriptor)
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        try:
            fcntl.fcntl(descriptor, full)
        except OSError as error:
            if error.errno not in _NO_FULL_FLUSH:
                raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        flush_to_disk(descriptor)
    finally:
        os.close(descriptor)
