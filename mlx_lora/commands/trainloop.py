"""The steps of `mlx-lora train` and what comes between them: validations, warnings, checkpoints, the adapter."""

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_lora.commands.trainstop import Stop
from mlx_lora.console import talk
from mlx_lora.screen import TrainScreen

if TYPE_CHECKING:
    from mlx_lora.training.checkpoint import Checkpoint
    from mlx_lora.training.runfolder import Metrics
    from mlx_lora.training.session import Session
    from mlx_lora.training.warnings import Watch


def train_and_validate(
    session: "Session",
    folder: Path,
    facts: dict[str, Any],
    metrics: "Metrics | None",
    stop: Stop,
    resumed: "Checkpoint | None" = None,
) -> str:
    """Train to the end, or until `stop` is asked; return what ended it: "steps", "patience" or "signal".

    `metrics` is None on a rank that writes nothing; `resumed`: the checkpoint that `session` goes on from.
    """
    from mlx_lora.training.distributed import RankLostError
    from mlx_lora.training.warnings import Watch

    train, schedule, group = session.config.train, session.schedule, session.group
    watch = Watch(session.config, schedule, metrics.kept if metrics else ())
    eval_every = schedule.steps_per_epoch if train.eval_every == "epoch" else train.eval_every
    save_every = schedule.steps_per_epoch if train.save_every == "epoch" else train.save_every
    first_step, whole = session.progress.step + 1, session.progress.step
    with TrainScreen(first_step, schedule.total_steps, eval_every if session.valid_set else None) as screen:
        try:
            if resumed:
                _settle_adapter(session, folder, facts, metrics, screen, watch, resumed)
            if session.out_of_patience():  # resumed where it had ended
                return "patience"
            if first_step == 1:
                _warn(watch.start(), 0, metrics, screen)
            if first_step == 1 and session.valid_set:
                _validate(session, folder, facts, metrics, screen, watch)
            for report in session.steps():
                if metrics:
                    metrics.write("step", dataclasses.asdict(report))
                screen.step(report)
                _warn(watch.step(report), report.step, metrics, screen)
                last = report.step == schedule.total_steps
                if session.valid_set and (last or report.step % eval_every == 0):
                    _validate(session, folder, facts, metrics, screen, watch)
                whole = report.step  # validated: a checkpoint of it can be resumed from
                asked = group.any(stop.asked)
                ended_by = "steps" if last else "patience" if session.out_of_patience() else "signal" if asked else ""
                if ended_by or report.step % save_every == 0:
                    session.require_equal_weights()
                    _save(session, folder, facts, metrics)
                if ended_by:
                    return ended_by
        except RankLostError as lost:
            stop.over = True
            if metrics and 0 < whole == session.progress.step:
                _save(session, folder, facts, metrics)
                lost.message += f"; step {whole} is saved"
            raise
    return "steps"  # resumed after the last step


def _validate(
    session: "Session",
    folder: Path,
    facts: dict[str, Any],
    metrics: "Metrics | None",
    screen: TrainScreen,
    watch: "Watch",
) -> None:
    from mlx_lora.training.validation import better_than_start, packed

    started = time.perf_counter()
    found = session.validate()
    loss, right = found.nats, sum(found.right)
    seconds = time.perf_counter() - started
    step = session.progress.step
    if step == 0:
        session.require_finite(loss)
        session.progress.base_loss, session.progress.base_right, best = loss, packed(found.right), False
    else:
        best = session.note_validation(found)
    better = step > 0 and better_than_start(found, session.progress)
    if metrics:
        told = {"loss": loss, "right": right, "rows": len(found.right), "best": best, "better": better}
        metrics.write("validation", {"step": step, **told, "seconds": seconds})
    mark = validation_mark(best, keeps_best(session), better)
    screen.validation(step, loss, (right, len(found.right)), seconds, mark)
    _warn(watch.validation(step, loss, kept=best), step, metrics, screen)
    if best and metrics and keeps_best(session):
        _save_adapter(session, folder, facts)


def _settle_adapter(
    session: "Session",
    folder: Path,
    facts: dict[str, Any],
    metrics: "Metrics | None",
    screen: TrainScreen,
    watch: "Watch",
    resumed: "Checkpoint",
) -> None:
    """Leave the adapter that train.final_adapter asks for now, where the checkpoint's run asked for the other one."""
    from mlx_lora.training.checkpoint import read_checkpoint

    progress, there = session.progress, resumed.adapter_step()
    wanted = progress.best_step if keeps_best(session) else progress.step
    if there == wanted or (keeps_best(session) and progress.best_loss is None):
        return
    source = None if wanted == progress.step else read_checkpoint(folder / "checkpoints", wanted)
    # Asked together, so that no rank still reads when the one that leads writes.
    if session.group.any(source is None and wanted != progress.step):
        said = f"the adapter of step {wanted}, the best so far, is in no checkpoint any more"
        _warn([f"{said}: the best is chosen from step {progress.step} on"], progress.step, metrics, screen)
        progress.best_loss, progress.best_right, progress.most_right = None, "", ""
        patience = progress.validations_without_gain
        _validate(session, folder, facts, metrics, screen, watch)
        progress.validations_without_gain = patience
    elif metrics:
        if source is None:
            _save_adapter(session, folder, facts)
        else:
            _copy_adapter(session, source.path, folder)
        place = "" if there is None else f" in place of step {there}'s"
        final = session.config.train.final_adapter
        line = f"note: train.final_adapter is {final}: the adapter of step {wanted} is put{place or ' there'}"
        talk.print(line, markup=False, soft_wrap=True)
    _save(session, folder, facts, metrics)  # the checkpoint is of the changed run now


def _copy_adapter(session: "Session", source: Path, folder: Path) -> None:
    """Put a checkpoint's adapter into `folder`, in the numbers of lora.save_dtype."""
    import mlx.core as mx

    from mlx_lora.lora.adapter import read_adapter, write_adapter

    adapter, dtype = read_adapter(source), getattr(mx, session.config.lora.save_dtype)
    write_adapter(folder, {name: value.astype(dtype) for name, value in adapter.tensors.items()}, adapter.config)


def keeps_best(session: "Session") -> bool:
    """Whether the run leaves the adapter of its best validation, and not that of its last checkpoint."""
    return bool(session.valid_set) and session.config.train.final_adapter == "best"


def validation_mark(best: bool, keeps: bool, better: bool) -> str:
    """What is said of a validation that is the best of its run. better: than that at step 0.

    A run that goes on from an adapter may have a best that is worse than that was.
    """
    if not best:
        return ""
    if not better:
        return "kept, though no better than at step 0" if keeps else ""
    return "best so far, kept" if keeps else "best so far"


def _warn(lines: list[str], step: int, metrics: "Metrics | None", screen: TrainScreen) -> None:
    """Say each line on the screen, and keep it for the report."""
    screen.warn(lines)
    if metrics:
        for line in lines:
            metrics.write("warning", {"step": step, "message": line})


def _save(session: "Session", folder: Path, facts: dict[str, Any], metrics: "Metrics | None") -> None:
    from mlx_lora.lora.adapter import describe_adapter
    from mlx_lora.training.checkpoint import save_checkpoint
    from mlx_lora.training.runfolder import adapter_files

    if not metrics:
        return
    if not keeps_best(session):
        _save_adapter(session, folder, facts)
    metrics.sync()
    save_checkpoint(
        folder / "checkpoints",
        session.progress,
        session.stepper.trainable.whole(),
        session.stepper.optimizer.state,
        keep=session.config.train.keep_last,
        adapter=describe_adapter(session.model, session.config.lora, _metadata(session, facts)),
        best=adapter_files(folder),
    )


def _save_adapter(session: "Session", folder: Path, facts: dict[str, Any]) -> None:
    import mlx.core as mx

    from mlx_lora.lora.adapter import save_adapter

    save_adapter(
        folder,
        session.model,
        settings=session.config.lora,
        metadata=_metadata(session, facts),
        dtype=getattr(mx, session.config.lora.save_dtype),
    )


def _metadata(session: "Session", facts: dict[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in facts.items() if name not in ("fingerprint", "run")}
    return {**known, "step": session.progress.step}
