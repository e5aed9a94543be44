"""Checkpoints: all that a resumed run needs to end in bitwise the weights of a run never interrupted.

Rows and dropout of a step follow from the step number and the seed (Schedule, train_steps), so a checkpoint holds the
trained arrays, the optimizer's state, the step, the validation history and the best adapter so far. A checksum finds
torn or flipped files. The trained arrays lie there as an adapter, so that the folder can be asked like any other.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_lora.errors import MlxLoraError, TrainingError
from mlx_lora.files import named_errors, remove_folder, sha256_file, whole_folder, write_whole
from mlx_lora.lora.adapter_config import CONFIG_FILE, WEIGHTS_FILE
from mlx_lora.lora.tensor_file import iter_encoded

_FORMAT = 3
_BEST = "best"  # the folder of the best adapter's files inside a checkpoint


@dataclass
class Progress:
    """What a run remembers besides its arrays.

    fingerprint: what must not change between stop and resume (training/fingerprint.py). There is no clock in here: the
    checkpoints of equal runs are equal to the byte.
    """

    step: int = 0
    base_loss: float | None = None  # validation loss before the first step
    best_loss: float | None = None
    best_step: int = 0
    best_right: str = ""  # which validation rows came out right then: bits, as hexadecimal digits
    validations_without_gain: int = 0
    fingerprint: dict[str, Any] = field(default_factory=dict)
    most_right: str = ""  # the same of the best so far that had the most of them; "" in what an earlier version wrote
    base_right: str = ""  # as best_right, before the first step; "" in what an earlier version wrote


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose checksums agree; `damaged` are newer ones, with what is wrong with each."""

    path: Path
    progress: Progress
    damaged: tuple[tuple[Path, str], ...] = ()

    def read_arrays(self) -> tuple[dict[str, mx.array], dict[str, Any]]:
        """The trained arrays and the optimizer's state."""
        parameters = _read(self.path / WEIGHTS_FILE)
        optimizer_state = _nested(_read(self.path / "optimizer.safetensors"))
        mx.eval(parameters, optimizer_state)  # read now: the file may be removed by the next save
        return parameters, optimizer_state

    def adapter_step(self) -> int | None:
        """The step of the adapter that `restore_best` puts back; None where there is none."""
        path = self.path / _BEST / CONFIG_FILE
        if not path.is_file():
            return None
        step = json.loads(path.read_text(encoding="utf-8")).get("mlx_lora", {}).get("step")
        return step if isinstance(step, int) else None

    def restore_best(self, folder: Path) -> list[str]:
        """Put the best adapter of this point into `folder` where it is missing or another; return the files' names."""
        restored = []
        for file in sorted((self.path / _BEST).glob("*")):
            target = folder / file.name
            if not target.is_file() or sha256_file(target) != sha256_file(file):
                write_whole(target, file.read_bytes())
                restored.append(file.name)
        return restored


def save_checkpoint(
    folder: Path, progress: Progress, parameters: dict[str, mx.array], optimizer_state: dict[str, Any], *,
    keep: int, adapter: Mapping[str, Any], best: Sequence[Path] = (),
) -> Path:  # fmt: skip
    """Write `folder/<step>/` whole, remove all but the newest `keep`; return its path.

    adapter: what its adapter_config.json says. best: the files of the best adapter so far, kept with it.
    Raises: MlxLoraError, with the older ones as they were.
    """
    final = folder / f"{progress.step:08d}"
    with whole_folder(final, overwrite=True) as temporary, named_errors(final):
        _write(temporary / WEIGHTS_FILE, parameters)
        (temporary / CONFIG_FILE).write_text(json.dumps(adapter, indent=2), encoding="utf-8")
        _write(temporary / "optimizer.safetensors", _flat(optimizer_state))
        for file in best:
            (temporary / _BEST).mkdir(exist_ok=True)
            shutil.copyfile(file, temporary / _BEST / file.name)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        checksums = {str(path.relative_to(temporary)): sha256_file(path) for path in files}
        state = {"format": _FORMAT, "files": checksums, "progress": asdict(progress)}
        text = json.dumps({"sha256": _digest(state), **state}, indent=2, allow_nan=False)
        (temporary / "state.json").write_text(text, encoding="utf-8")
    for old in list_checkpoints(folder)[:-keep]:
        remove_folder(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if path.name.isdigit() and path.is_dir())


def read_checkpoint(folder: Path, step: int) -> Checkpoint | None:
    """The checkpoint of `step`; None where there is none, or it is damaged."""
    path = folder / f"{step:08d}"
    try:
        return Checkpoint(path, _check(path))
    except (MlxLoraError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def find_checkpoint(folder: Path) -> Checkpoint:
    """The newest whole checkpoint; its arrays are not read yet. Raises: TrainingError when there is none."""
    damaged: list[tuple[Path, str]] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return Checkpoint(path, _check(path), tuple(damaged))
        except (MlxLoraError, OSError, ValueError) as error:
            damaged.append((path, str(error)))
        except (KeyError, TypeError, AttributeError, RecursionError):
            damaged.append((path, "state.json: not what a checkpoint has there"))
    raise TrainingError(
        "\n".join([*(f"{path}: {why}" for path, why in damaged), f"{folder}: no whole checkpoint to resume from"]),
        "begin again: train without --resume, with --overwrite where the folder holds a run",
    )


def _check(path: Path) -> Progress:
    """The progress of a checkpoint whose files are what was written."""
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if state.pop("sha256") != _digest(state):
        raise ValueError("state.json: checksum differs")
    if state["format"] != _FORMAT:
        raise ValueError(f"format {state['format']}; this version of mlx-lora reads {_FORMAT}")
    for name, checksum in state["files"].items():
        if sha256_file(path / name) != checksum:
            raise ValueError(f"{name}: checksum differs")
    return Progress(**state["progress"])


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _write(path: Path, arrays: Mapping[str, mx.array]) -> None:
    # Not mx.save_safetensors: of a full disk it says nothing that names the disk. Piece by piece: no second copy.
    with path.open("wb") as file:
        for piece in iter_encoded(arrays):
            file.write(piece)


def _read(path: Path) -> dict[str, mx.array]:
    arrays = mx.load(str(path))
    assert isinstance(arrays, dict)
    return arrays


def _flat(state: dict[str, Any]) -> dict[str, mx.array]:
    """Names with a bar between array and moment: array names have dots of their own."""
    flat: dict[str, mx.array] = {}
    for name, value in state.items():
        flat |= {f"{name}|{part}": array for part, array in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _nested(flat: dict[str, mx.array]) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for name, array in flat.items():
        outer, bar, part = name.partition("|")
        if bar:
            state.setdefault(outer, {})[part] = array
        else:
            state[outer] = array
    return state
