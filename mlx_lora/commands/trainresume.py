"""A stopped run taken up again: its newest whole checkpoint, and whether this run is still the same."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_lora.console import talk
from mlx_lora.errors import TrainingError

if TYPE_CHECKING:
    from mlx_lora.training.session import Session


def resume_session(session: "Session", checkpoints: Path, fingerprint: dict[str, Any]) -> None:
    """Put the newest whole checkpoint into `session`. Raises: TrainingError when there is none, or of another run."""
    from mlx_lora.training.checkpoint import load_newest_checkpoint
    from mlx_lora.training.session import differences

    progress, parameters, state, passed_over = load_newest_checkpoint(checkpoints)
    for line in passed_over:
        talk.print(f"warning: {line}", markup=False, soft_wrap=True)
    different = differences(progress.fingerprint, fingerprint)
    if different:
        raise TrainingError(
            "this run is not the one that was stopped:\n" + "\n".join(f"  {line}" for line in different),
            "undo these changes to resume, or begin again with --overwrite",
        )
    session.restore(progress, parameters, state)
    talk.print(f"resumed after step {progress.step} of {session.schedule.total_steps}", markup=False)
