"""A run's folder: who may write into it, and its metrics. Knows nothing of the loop or the screen."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mlx_lora.errors import MlxLoraError
from mlx_lora.files import named_errors, refuse_unwritable, write_whole

ADAPTER_FILE = "adapters.safetensors"


class Metrics:
    """`metrics.jsonl`: one event a line, in the order of the steps, without gaps or doubles after a resume."""

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        kept = ""
        if resume_step is not None and path.exists():
            kept = "".join(line for line in path.read_text().splitlines(keepends=True) if _step(line) <= resume_step)
        write_whole(path, kept)
        with named_errors(path):
            self._file = path.open("a", encoding="utf-8")
        self._path = path

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, event: str, values: Mapping[str, Any]) -> None:
        """Append one event."""
        with named_errors(self._path):
            self._file.write(json.dumps({"event": event, **values}, allow_nan=True) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Make sure that what was written survives a power cut: called with every checkpoint."""
        with named_errors(self._path):
            os.fsync(self._file.fileno())


def _step(line: str) -> int:
    """The step of an event; a torn last line belongs to no step that was kept."""
    try:
        return int(json.loads(line).get("step", 0))
    except ValueError:
        return 2**62


def claim_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Make sure that a run may write into `folder`.

    Raises: MlxLoraError when it holds a run already and neither `resume` nor `overwrite` was asked for.
    """
    if folder.exists() and not folder.is_dir():
        raise MlxLoraError(f"{folder}: is a file", "set output_dir to a folder")
    if (folder / "config.json").exists():
        raise MlxLoraError(f"{folder}: holds a model (config.json)", "set output_dir to a folder of its own")
    held = [name for name in (ADAPTER_FILE, "checkpoints", "metrics.jsonl") if (folder / name).exists()]
    if held and not resume and not overwrite:
        raise MlxLoraError(
            f"{folder}: holds a run already ({', '.join(held)})",
            "--resume continues it, --overwrite begins again, output_dir names another folder",
        )
    refuse_unwritable(folder)
