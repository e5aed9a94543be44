"""Where chat finds adapters and keeps its files: adapters/, the history, saved conversations. Imports no MLX."""

import difflib
import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_lora.errors import AdapterError, MlxLoraError
from mlx_lora.files import flush_to_disk, named_errors, typed_path

ADAPTERS = Path("adapters")
_CONFIG = "adapter_config.json"


def adapter_names(root: Path = ADAPTERS) -> list[str]:
    """The names of the adapter folders under `root`, sorted."""
    return sorted(config.parent.name for config in root.glob(f"*/{_CONFIG}"))


def is_adapter(text: str, root: Path = ADAPTERS) -> bool:
    """Whether find_adapter finds an adapter by `text`."""
    return _adapter_folder(typed_path(text), root) is not None


def find_adapter(text: str, root: Path = ADAPTERS) -> Path:
    """The folder of the adapter that a person named: a path, or the name of a folder under `root`.

    Raises: AdapterError with near names, or with all there are.
    """
    path = typed_path(text)
    found = _adapter_folder(path, root)
    if found is not None:
        return found
    if path.is_dir() or (root / path).is_dir():
        folder = path if path.is_dir() else root / path
        if (folder / "metrics.jsonl").is_file():
            raise AdapterError(
                f"{folder}: its run has kept no adapter",
                f"mlx-lora report {shlex.quote(str(folder))} says how it ended",
            )
        inner = adapter_names(folder)
        held = ", ".join(str(folder / name) for name in inner)
        hint = f"it holds the adapters {held}" if inner else _what_there_is(root)
        raise AdapterError(f"{folder}: has no {_CONFIG}, so it is no adapter", hint)
    if mixed := _mixed(text, root):
        parts, weights = zip(*mixed, strict=True)
        command = f"mlx-lora adapters merge {shlex.join(parts)} --weights {','.join(weights)} -o DIR"
        raise AdapterError(f"{text}: is a mix, and one adapter is expected", f"chat takes mixes; here: {command}")
    names = adapter_names(root)
    near = difflib.get_close_matches(path.name.lower(), names, n=3, cutoff=0.5)
    near = near or [name for name in names if path.name.lower() in name.lower()]
    hint = f"did you mean {' or '.join(near)}?" if near else _what_there_is(root)
    raise AdapterError(f"adapter {text}: no such folder, and none of that name under {root}/", hint)


def _mixed(text: str, root: Path) -> list[tuple[str, str]]:
    """Names and weights, where `text` is a mix of adapters that there are, as mix.py reads them; else nothing."""
    parts = [(part, ":", "1") if is_adapter(part, root) else part.rpartition(":") for part in text.split("+")]
    whole = all(name and is_adapter(name, root) for name, _, _ in parts)
    return [(name, weight) for name, _, weight in parts] if whole else []


def _adapter_folder(path: Path, root: Path) -> Path | None:
    folders = (path, path.parent) if path.is_file() else (path, root / path)
    return next((folder for folder in folders if (folder / _CONFIG).is_file()), None)


def _what_there_is(root: Path) -> str:
    names = adapter_names(root)
    return f"there are {', '.join(names)}" if names else f"{root}/ holds no adapters yet: `mlx-lora train` makes them"


def adapter_label(folder: Path, root: Path = ADAPTERS) -> str:
    """The shortest text that `find_adapter` finds `folder` by: its name under `root`, otherwise its path."""
    inside = folder.resolve().parent == root.resolve()
    return folder.resolve().name if inside else str(folder)


def history_path() -> Path:
    """The file of past input lines: in MLX_LORA_CACHE where that is set, else in the user's state folder."""
    cache = os.environ.get("MLX_LORA_CACHE")
    if cache:
        return typed_path(cache) / "chat_history"
    import platformdirs

    return platformdirs.user_state_path("mlx-lora") / "chat_history"


def open_history(path: Path) -> None:
    """Make sure that `path` can be read and written, by its owner only. Raises: MlxLoraError."""
    with named_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))


def append_row(path: Path, row: Mapping[str, Any]) -> int:
    """Append `row` as one JSON line to `path`, made if missing, and return the number of that line.

    Nothing is left of a row that could not be written whole. Raises: MlxLoraError.
    """
    if path.suffix != ".jsonl":
        named = path.name.strip(".")  # nothing is left of `.`, `..` and `/`, which no suffix makes a file
        other = path.with_suffix(".jsonl") if named else path / "chats.jsonl"
        raise MlxLoraError(f"{path}: rows go into a .jsonl file, one a line", f"/save {other}")
    line = json.dumps(row, ensure_ascii=False).encode("utf-8", errors="replace") + b"\n"
    with named_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:  # a buffer would write again after the truncation
            size = file.tell()
            file.seek(0)
            before = file.readall()
            if before and not before.endswith(b"\n"):
                line = b"\n" + line
            try:
                rest = line
                while rest:  # a disk that is nearly full takes the first part, and refuses the next
                    rest = rest[file.write(rest) :]
                flush_to_disk(file.fileno())
            except OSError:
                file.truncate(size)
                raise
    return (before + line).count(b"\n")
