"""A stopped run taken up again: its newest whole checkpoint, and whether this run is still the same."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_lora.config import OptimizerSettings
from mlx_lora.console import talk
from mlx_lora.errors import TrainingError
from mlx_lora.files import remove_folder

if TYPE_CHECKING:
    from mlx_lora.training.checkpoint import Checkpoint
    from mlx_lora.training.fingerprint import Difference
    from mlx_lora.training.session import Session


def resume_session(session: "Session", checkpoint: "Checkpoint", folder: Path, *, force: bool) -> None:
    """Put `checkpoint` into `session`, whose fingerprint is there, and the best adapter of then into `folder`.

    Raises: TrainingError as require_same_run.
    """
    fingerprint = session.progress.fingerprint
    for difference in require_same_run(checkpoint, fingerprint, session.config.optimizer, force=force):
        talk.print(f"--force: {difference.change}", markup=False, soft_wrap=True)
    session.restore(checkpoint.progress, *checkpoint.read_arrays())
    session.progress.fingerprint = fingerprint
    for path, why in checkpoint.damaged:
        talk.print(f"warning: {path} is damaged ({why}); using the one before", markup=False, soft_wrap=True)
    if session.group.leads:
        for path, _ in checkpoint.damaged:
            remove_folder(path)  # it would count among those that are kept
        restored = " and ".join(checkpoint.restore_best(folder))
        if restored:
            talk.print(f"note: {restored} put back as of the checkpoint", markup=False, soft_wrap=True)
    talk.print(f"resumed after step {session.progress.step} of {session.schedule.total_steps}", markup=False)


def require_same_run(
    checkpoint: "Checkpoint", fingerprint: dict[str, Any], optimizer: OptimizerSettings, *, force: bool
) -> list["Difference"]:
    """What differs from the run that was stopped, all of it safe and forced.

    Raises: TrainingError with the list of what differs, where some of it is not safe, or without `force`.
    """
    from mlx_lora.training.fingerprint import find_differences

    progress = checkpoint.progress
    different = find_differences(progress.fingerprint, fingerprint, progress.step, optimizer)
    unsafe = [difference for difference in different if difference.safe is None]
    if unsafe or (different and not force):
        raise TrainingError(
            "this run is not the one that was stopped:\n" + "\n".join(f"  {line}" for line in different),
            "undo these changes to resume, or begin again with --overwrite"
            if unsafe
            else "undo these changes, or go on all the same with --resume --force",
        )
    return different


def kept_line(folder: Path) -> str:
    """Whether a run that cannot go on leaves an adapter."""
    from mlx_lora.training.runfolder import ADAPTER_FILE

    kept = (folder / ADAPTER_FILE).exists()
    return "the adapter that was kept so far is there" if kept else "no adapter was kept yet"


def saved_line(folder: Path, again: str) -> str:
    """What is saved of a run that ended before its end, and the command that goes on from there."""
    from mlx_lora.training.checkpoint import list_checkpoints

    saved = list_checkpoints(folder / "checkpoints")
    return f"step {int(saved[-1].name)} is saved; go on with: {again}" if saved else "no checkpoint was written yet"
