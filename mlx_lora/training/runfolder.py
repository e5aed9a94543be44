"""A run's folder: who may write into it, and its metrics. Knows nothing of the loop or the screen."""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from mlx_lora.errors import MlxLoraError
from mlx_lora.files import flush_to_disk, lock, named_errors, refuse_unwritable, remove_all_leftovers, write_whole

ADAPTER_FILE, ADAPTER_CONFIG = "adapters.safetensors", "adapter_config.json"
LOCK_FILE = ".lock"


class Metrics:
    """`metrics.jsonl`: one event a line, in the order of the steps, without gaps or doubles after a resume.

    `kept` holds the events up to `resume_step`; `notes` says what of them is damaged or missing.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        lines: list[str] = []
        if resume_step is not None and path.exists():
            with named_errors(path):
                lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        events = [_event(line) for line in lines[:-1]]  # what follows the last newline is torn
        self.kept = [event for event in events if event is not None and _stays(event, resume_step or 0)]
        self.notes = _gaps(path, self.kept, resume_step or 0)
        self._path, self._last_step = path, resume_step or 0
        write_whole(path, "".join(map(_line, self.kept)))
        with named_errors(path):
            self._file = path.open("ab", buffering=0)  # a buffer would be written again, and fail again, at the end

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            if isinstance(value, MlxLoraError):
                with suppress(MlxLoraError):  # a full disk is the error that is on its way already
                    self.write("end", {"step": self._last_step, "ended_by": "error", "message": value.message})
        finally:
            self._file.close()

    @property
    def seconds_before(self) -> float:
        """What the kept steps and validations took."""
        return sum(float(event.get("seconds") or 0.0) for event in self.kept)

    @property
    def peak_before(self) -> int:
        """The largest memory peak of the kept steps, in bytes."""
        return max((int(event.get("peak_bytes") or 0) for event in self.kept), default=0)

    def write(self, event: str, values: Mapping[str, Any]) -> None:
        """Append one event."""
        line = _line({"event": event, **values}).encode()
        with named_errors(self._path):
            while line:  # a disk that is nearly full takes the first part, and refuses the next
                line = line[self._file.write(line) :]
        self._last_step = values.get("step", self._last_step)

    def sync(self) -> None:
        """Make sure that what was written survives a power cut: called with every checkpoint."""
        with named_errors(self._path):
            flush_to_disk(self._file.fileno())


def adapter_files(folder: Path) -> list[Path]:
    """The files of the adapter in `folder`: the best one so far, or the last one without validation; none at first."""
    return [folder / name for name in (ADAPTER_FILE, ADAPTER_CONFIG) if (folder / name).exists()]


def _stays(event: Mapping[str, Any], resume_step: int) -> bool:
    """Whether a resumed run keeps the event; its end is another, and the retention set is asked anew there."""
    return bool(event["step"] <= resume_step and event["event"] not in ("retention", "end"))


def _line(event: Mapping[str, Any]) -> str:
    return json.dumps(event, allow_nan=True) + "\n"


def _event(line: str) -> dict[str, Any] | None:
    """The event of a line; None for one that is damaged."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(event, dict) and isinstance(event.get("step"), int) and isinstance(event.get("event"), str)
    return event if whole else None


def _gaps(path: Path, events: list[dict[str, Any]], last: int) -> list[str]:
    missing = sorted(set(range(1, last + 1)) - {event["step"] for event in events if event["event"] == "step"})
    if not missing:
        return []
    return [f"{path}: {len(missing)} of the first {last} steps are missing in it; the weights are not touched by this"]


@contextmanager
def claimed_folder(folder: Path, *, resume: bool, overwrite: bool) -> Iterator[list[str]]:
    """Hold `folder` for this run alone, made where it is missing; yields what the user should know of it.

    What killed runs left half-written in it is removed, and so is the folder where it was made for nothing.
    Raises: MlxLoraError when another run holds it, when it cannot be written, or when it holds a run already and
    neither `resume` nor `overwrite` was asked for.
    """
    with named_errors(folder):
        if folder.exists() and not folder.is_dir():
            raise MlxLoraError(f"{folder}: is a file", "set output_dir to a folder")
        refuse_unwritable(folder)
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(folder) as notes:
            _refuse_held(folder, resume=resume, overwrite=overwrite)
            for place in (folder, folder / "checkpoints"):
                remove_all_leftovers(place)
            yield notes
    finally:
        for path in made:
            with suppress(OSError):  # not empty: what is in it is kept
                path.rmdir()


def _refuse_held(folder: Path, *, resume: bool, overwrite: bool) -> None:
    if (folder / "config.json").exists():
        raise MlxLoraError(f"{folder}: holds a model (config.json)", "set output_dir to a folder of its own")
    held = [name for name in (ADAPTER_FILE, "checkpoints", "metrics.jsonl") if (folder / name).exists()]
    if not held or resume or overwrite:
        return
    saved = any((folder / "checkpoints").glob("[0-9]*"))
    raise MlxLoraError(
        f"{folder}: holds a run already ({', '.join(held)})",
        f"{'--resume continues it, ' if saved else ''}--overwrite begins again, output_dir names another folder",
    )


@contextmanager
def _locked(folder: Path) -> Iterator[list[str]]:
    """Hold the folder's lock file, which goes with the run; one that a killed run left behind locks nothing."""
    path = folder / LOCK_FILE
    while True:
        with named_errors(folder):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with named_errors(path):
                taken = lock(descriptor)
                if taken is False:
                    _refuse_running(folder, os.pread(descriptor, 200, 0))
                # The run that held it may have removed it meanwhile: then this is no longer the folder's lock.
                if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
                    break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    no_locks = f"{folder}: this disk has no locks: make sure that no other run writes here"
    try:
        yield [no_locks] if taken is None else []
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _refuse_running(folder: Path, holder: bytes) -> None:
    pid, _, host = holder.decode(errors="replace").strip().partition(" ")
    if not pid.isdigit():
        raise MlxLoraError(f"{folder}: another run is training into it", "wait for it, or choose another output_dir")
    elsewhere = f" on {host}" if host != socket.gethostname() else ""
    raise MlxLoraError(
        f"{folder}: process {pid}{elsewhere} is training into it",
        f"wait until it ends, stop it with `kill {pid}` (it saves first), or choose another output_dir",
    )
