"""Training for Python programs: what `mlx-lora train` does, with a result in place of an exit code."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_lora.commands.train import train_run
from mlx_lora.config import RunConfig
from mlx_lora.console import talk
from mlx_lora.report.events import read_events
from mlx_lora.runfile import load_config


@dataclass(frozen=True)
class RunResult:
    """How a run went. Losses are in nats a token; they are None without validation rows.

    folder: the adapter's. ended_by: "steps", "patience", or "signal" for Ctrl-C, after which the run can be resumed.
    warnings: what was said of the data and of how it went. summary: all that `mlx-lora train --json` prints.
    """

    folder: Path
    ended_by: str
    steps: int
    best_step: int | None
    best_validation_loss: float | None
    base_validation_loss: float | None
    seconds: float
    warnings: tuple[str, ...]
    summary: dict[str, Any]


def train(
    config: RunConfig | str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
    quiet: bool = False,
) -> RunResult | None:
    """Train an adapter as `config` says, a RunConfig or the path of a run file; the folder is `output_dir`.

    resume, overwrite, force: as the command's. quiet: say nothing on stderr. None on a rank of several (mlx.launch)
    that does not write. Raises: MlxLoraError; KeyboardInterrupt for an end at once.
    """
    settings = config if isinstance(config, RunConfig) else load_config(config)
    was_quiet = talk.quiet
    talk.quiet = was_quiet or quiet
    try:
        summary = train_run(settings, "train(…, resume=True)", resume=resume, overwrite=overwrite, force=force)
    finally:
        talk.quiet = was_quiet
    return None if summary is None else _result(summary)


def _result(summary: dict[str, Any]) -> RunResult:
    folder = Path(summary["output_dir"])
    events = read_events(folder / "metrics.jsonl")
    said = [*(events.facts.get("data_warnings") or []), *(event["message"] for event in events.of("warning"))]
    return RunResult(
        folder,
        summary["ended_by"],
        summary["steps"],
        summary["best_step"],
        summary["best_validation_loss"],
        summary["base_validation_loss"],
        summary["seconds"],
        tuple(said),
        summary,
    )
