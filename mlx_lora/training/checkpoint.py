"""Checkpoints: all that a resumed run needs to end in bitwise the weights of a run never interrupted.

Rows and dropout of a step follow from the step number and the seed (Schedule, train_steps), so a checkpoint holds the
trained arrays, the optimizer's state, the step and the validation history. A checksum finds torn or flipped files.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_lora.errors import MlxLoraError, TrainingError
from mlx_lora.files import named_errors, sha256_file, whole_folder, write_json

_FORMAT = 1


@dataclass
class Progress:
    """What a run remembers besides its arrays.

    fingerprint: name → value of what must not change between stop and resume (base, data, settings).
    """

    step: int = 0
    base_loss: float | None = None  # validation loss before the first step
    best_loss: float | None = None
    best_step: int = 0
    validations_without_gain: int = 0
    fingerprint: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    folder: Path, progress: Progress, parameters: dict[str, mx.array], optimizer_state: dict[str, Any], keep: int = 2
) -> Path:
    """Write `folder/<step>/` whole and remove all but the newest `keep`; return its path."""
    final = folder / f"{progress.step:08d}"
    with whole_folder(final, overwrite=True) as temporary, named_errors(final):
        mx.save_safetensors(str(temporary / "parameters.safetensors"), parameters)
        mx.save_safetensors(str(temporary / "optimizer.safetensors"), _flat(optimizer_state))
        checksums = {path.name: sha256_file(path) for path in sorted(temporary.iterdir())}
        write_json(temporary / "state.json", {"format": _FORMAT, "sha256": checksums, **asdict(progress)})
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())


def load_newest_checkpoint(folder: Path) -> tuple[Progress, dict[str, mx.array], dict[str, Any], list[str]]:
    """The newest whole checkpoint: progress, trained arrays, optimizer state, a line for each broken one.

    Raises: TrainingError when there is none.
    """
    passed_over = []
    for path in reversed(list_checkpoints(folder)):
        try:
            progress, parameters, state = _load(path)
        except (MlxLoraError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            passed_over.append(f"{path} is damaged ({error}); using the one before")
            continue
        return progress, parameters, state, passed_over
    raise TrainingError(
        "\n".join([*passed_over, f"{folder}: no whole checkpoint to resume from"]),
        "train without --resume to begin again",
    )


def _load(path: Path) -> tuple[Progress, dict[str, mx.array], dict[str, Any]]:
    state = json.loads((path / "state.json").read_text())
    checksums = state.pop("sha256")
    if state.pop("format") != _FORMAT:
        raise ValueError("written by another version of mlx-lora")
    for name, checksum in checksums.items():
        if sha256_file(path / name) != checksum:
            raise ValueError(f"{name}: checksum differs")
    parameters = _read(path / "parameters.safetensors")
    optimizer_state = _nested(_read(path / "optimizer.safetensors"))
    mx.eval(parameters, optimizer_state)  # read now: the file may be removed by the next save
    return Progress(**state), parameters, optimizer_state


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
