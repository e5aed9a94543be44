"""What `mlx-lora train` says before the first step and after the last one. Changes nothing."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from mlx_lora.commands.losscurve import print_loss_curve
from mlx_lora.commands.trainloop import keeps_best
from mlx_lora.config import RunConfig
from mlx_lora.console import talk
from mlx_lora.screen import format_bytes, format_seconds

if TYPE_CHECKING:
    from mlx_lora.model.load import LoadedModel
    from mlx_lora.training.runfolder import Metrics
    from mlx_lora.training.session import Session


def print_header(config: RunConfig, base: "LoadedModel", injection: Any, train_rows: int, valid_rows: int) -> None:
    """What is trained, before the first step."""
    lora = config.lora
    share = injection.trainable_parameters / injection.total_parameters
    talk.print(Text.assemble((base.identity.name, "bold"), f"  {base.compute}"), soft_wrap=True)
    talk.print(
        f"{lora.method} rank {lora.rank}, effective scale {lora.scale:g}, {len(injection.modules)} modules, "
        f"{injection.trainable_parameters / 1e6:.2f} M trainable parameters ({share:.2%})",
        soft_wrap=True,
    )
    rows = f"{train_rows} training rows, {valid_rows} validation rows"
    talk.print(f"{rows} → {config.output_dir}", markup=False, soft_wrap=True)


def build_summary(
    session: "Session", folder: Path, stopped_by: str, seconds: float, peak_before: int, metrics: "Metrics | None"
) -> dict[str, Any]:
    """How the run went: the object that --json prints. `seconds`: of this process; those before a resume are added.

    peak_before: bytes of MLX's memory before the first step (loading, replay answers, the engine's check).
    """
    import mlx.core as mx

    from mlx_lora.training.runfolder import ADAPTER_FILE
    from mlx_lora.training.validation import Validation, better_than_start, unpacked

    progress, rows = session.progress, len(session.valid_set)
    right = unpacked(progress.best_right, rows) if progress.best_right else ()
    base_right = unpacked(progress.base_right, rows) if progress.base_right else ()
    better = None
    if progress.best_loss is not None and progress.base_loss is not None:
        better = better_than_start(Validation(progress.best_loss, right), progress)
    adapter = folder / ADAPTER_FILE
    return {
        "output_dir": str(folder),
        "ended_by": stopped_by,
        "steps": session.progress.step,
        "total_steps": session.schedule.total_steps,
        "base_validation_loss": session.progress.base_loss,
        "best_validation_loss": session.progress.best_loss,
        "validation_rows": rows,
        "base_validation_right": sum(base_right) if base_right else None,
        "best_validation_right": sum(right) if right else None,
        "better_than_start": better,
        "best_step": session.progress.best_step,
        "kept_step": session.progress.best_step if keeps_best(session) else session.progress.step,
        "seconds": round(seconds + (metrics.seconds_before if metrics else 0.0), 1),
        "peak_bytes": max(mx.get_peak_memory(), peak_before, metrics.peak_before if metrics else 0),
        "adapter_bytes": adapter.stat().st_size if adapter.exists() else 0,
    }


def print_summary(summary: dict[str, Any], folder: Path, resume_command: str) -> None:
    """How the run went, and what to do next."""
    if summary["ended_by"] == "signal":
        talk.print(f"stopped after step {summary['steps']}; go on with:", markup=False)
        talk.print(f"  {resume_command}", markup=False, soft_wrap=True)
        return
    if summary["ended_by"] == "patience":
        talk.print(f"stopped early: no validation was better than that of step {summary['best_step']}", markup=False)
    validated = summary["best_validation_loss"] is not None
    kept = f", kept step {summary['kept_step']}" if validated else ""
    talk.print(
        f"{summary['steps']} steps in {format_seconds(summary['seconds'])}{kept}; adapter "
        f"{format_bytes(summary['adapter_bytes'])}, peak memory {format_bytes(summary['peak_bytes'])}",
        markup=False,
    )
    if validated and summary["better_than_start"] is False:
        talk.print(f"warning: {_no_better(summary)}", markup=False, soft_wrap=True)
    if validated and summary["best_step"] != summary["steps"]:
        step, name = summary["steps"], "it"
        if summary["kept_step"] == step:
            step, name = summary["best_step"], "the best"
        other = folder / "checkpoints" / f"{step:08d}"
        also = f"; to ask {name} too: mlx-lora eval {shlex.quote(str(other))}" if other.is_dir() else ""
        fact = "note: the last step's adapter was not the best in validation"
        talk.print(f"{fact}{also}", markup=False, soft_wrap=True)
    print_loss_curve(folder)
    name = shlex.quote(str(folder))
    talk.print(f"next:\n  mlx-lora eval {name} --base\n  mlx-lora chat {name}", markup=False, soft_wrap=True)


def _no_better(summary: dict[str, Any]) -> str:
    """In what the best validation is not better than the one before the first step."""
    base_loss = summary["base_validation_loss"]
    if summary["best_validation_loss"] >= base_loss:
        return f"the validation loss never fell below {base_loss:.4f}, where it began"
    before, after = summary["base_validation_right"], summary["best_validation_right"]
    rows = f"{before} of {summary['validation_rows']} validation rows"
    return f"{rows} were right at step 0, and {after} at step {summary['best_step']}"
