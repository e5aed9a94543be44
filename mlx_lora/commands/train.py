"""`mlx-lora train`: a run file becomes an adapter folder. Owns validation and saving."""

import dataclasses
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from mlx_lora.commands.trainsummary import build_summary, print_header, print_summary
from mlx_lora.config import RunConfig
from mlx_lora.console import talk
from mlx_lora.errors import MlxLoraError, TrainingError
from mlx_lora.files import cache_folder, sha256_file, typed_path, write_whole
from mlx_lora.runfile import dump_config, load_config
from mlx_lora.screen import RowsBar, TrainScreen

if TYPE_CHECKING:
    from mlx_lora.model.load import LoadedModel
    from mlx_lora.training.distributed import Group
    from mlx_lora.training.session import Session

INTERRUPTED = 130


def run_train(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    json_output: bool = False,
) -> int:
    """Train as the run file says; return the exit code (0, or 130 when a signal ended the run after a checkpoint).

    Started by `mlx.launch`, this process is one of several ranks, and only the first of them prints and writes.
    """
    config = load_config(path, overrides)
    from mlx_lora.training.distributed import join_group

    group = join_group()
    talk.quiet = not group.leads
    try:
        session, stopped_by, seconds = _run(config, group, resume=resume, overwrite=overwrite)
    except MlxLoraError as error:
        if not group.leads:
            talk.quiet = False
            error.message = f"rank {group.rank}: {error.message}"
        raise
    if not group.leads:
        return 0  # mlx.launch ends the other ranks when one ends with anything else
    folder = typed_path(config.output_dir)
    summary = build_summary(session, folder, stopped_by, seconds)
    print_summary(summary, folder, f"{'mlx.launch … -- ' if group.size > 1 else ''}mlx-lora train {path} --resume")
    if json_output:
        sys.stdout.write(json.dumps(summary) + "\n")
    return INTERRUPTED if stopped_by == "signal" else 0


def _run(config: RunConfig, group: "Group", *, resume: bool, overwrite: bool) -> tuple["Session", str, float]:
    from mlx_lora.training.runfolder import Metrics, claim_folder

    folder = typed_path(config.output_dir)
    if group.leads:
        claim_folder(folder, resume=resume, overwrite=overwrite)
    session, facts = _build(config, group)
    if resume:
        _resume(session, folder / "checkpoints", facts["fingerprint"])
    else:
        session.progress.fingerprint = facts["fingerprint"]
    session.require_one_start()
    if group.leads and not resume:
        _clear(folder)
    if group.leads:
        write_whole(folder / "run.yaml", dump_config(config))
    started = time.perf_counter()
    resume_step = session.progress.step if resume else None
    with (
        Metrics(folder / "metrics.jsonl", resume_step) if group.leads else nullcontext() as metrics,
        _stop_signals(group) as stop,
    ):
        if metrics and not resume:
            metrics.write("start", {"step": 0, **facts})
        stopped_by = _train(session, folder, facts, metrics, stop)
    return session, stopped_by, time.perf_counter() - started


def _build(config: RunConfig, group: "Group") -> tuple["Session", dict[str, Any]]:
    from mlx_lora.commands.rundata import load_run_tokenizer
    from mlx_lora.dataset.inspection import build_split_examples, inspect_splits
    from mlx_lora.dataset.splits import load_splits, records_sha256, row_formats
    from mlx_lora.lora.inject import inject_lora
    from mlx_lora.model.load import load_base
    from mlx_lora.training.session import build_session, prepare_engine

    splits = load_splits(config.data, config.train.seed)
    tokenizer = load_run_tokenizer(config)
    built = build_split_examples(splits, tokenizer, config.data)
    inspection = inspect_splits(splits, built, tokenizer.eos_ids, config)
    inspection.raise_faults()
    for warning in inspection.warnings:
        talk.print(f"warning: {warning}", markup=False, soft_wrap=True)
    train_set, valid_set = built["train"].examples, built["valid"].examples
    base = load_base(config.model, revision=config.revision, compute=config.compute)
    injection = inject_lora(base.model, config.lora, seed=config.train.seed)
    print_header(config, base, injection, len(train_set), len(valid_set))
    for note in built["train"].notes:
        talk.print(f"note: {note}", markup=False, soft_wrap=True)
    if group.size > 1:
        talk.print(f"{group.size} ranks of {config.train.batch_size} rows each", markup=False)
    session = build_session(config, base.model, train_set, valid_set, group)
    with RowsBar("frozen layers") as bar:
        store = cache_folder() / "frozen"
        for done, total in prepare_engine(session, injection.first_layer, base.identity.weights_sha256, store):
            bar.show(done, total)
    for report in session.reports:
        mark = "on " if report.active else "off"
        talk.print(f"  {mark} {report.name:<21} {report.line}", markup=False, soft_wrap=True)
    data = {"train": records_sha256(splits.train), "valid": records_sha256(splits.valid)}
    facts = _facts(config, base, data) | {"row_formats": row_formats(splits.train)}
    if group.size > 1:
        facts["fingerprint"]["ranks"] = group.size  # the rows of a step follow from it
    return session, facts


def _facts(config: RunConfig, base: "LoadedModel", data: dict[str, str]) -> dict[str, Any]:
    """What the adapter tells of its origin, and what must not change between stop and resume."""
    template = typed_path(config.data.chat_template) if config.data.chat_template else None
    identity = dataclasses.asdict(base.identity)
    settings = config.model_dump(mode="json", exclude={"output_dir": True, "data": {"test"}, "train": {"save_every"}})
    return {
        "model": config.model,
        "revision": config.revision,
        "identity": identity,
        "system_prompt": config.data.system_prompt,
        "chat_template": template.read_text(encoding="utf-8") if template else None,
        "chat_template_sha256": sha256_file(template) if template else identity["chat_template_sha256"],
        "chat_template_args": config.data.chat_template_args,
        "data_sha256": data,
        "versions": {name: metadata.version(name) for name in ("mlx", "mlx-lm", "mlx-lora")},
        "fingerprint": {"identity": identity, "data": data, "settings": settings},
    }


def _resume(session: "Session", checkpoints: Path, fingerprint: dict[str, Any]) -> None:
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


def _clear(folder: Path) -> None:
    """Remove what an earlier run left, so that nothing of it passes for this one's."""
    import shutil

    from mlx_lora.training.runfolder import ADAPTER_FILE

    for name in (ADAPTER_FILE, "adapter_config.json", "metrics.jsonl"):
        (folder / name).unlink(missing_ok=True)
    for name in ("checkpoints", "eval"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _train(session: "Session", folder: Path, facts: dict[str, Any], metrics: Any, stop: "_Stop") -> str:
    """The loop: steps, validations, checkpoints. Returns what ended it: "steps", "patience" or "signal"."""
    from mlx_lora.training.distributed import RankLostError

    train, schedule, group = session.config.train, session.schedule, session.group
    eval_every = schedule.steps_per_epoch if train.eval_every == "epoch" else train.eval_every
    save_every = schedule.steps_per_epoch if train.save_every == "epoch" else train.save_every
    first_step, whole = session.progress.step + 1, session.progress.step
    with TrainScreen(first_step, schedule.total_steps) as screen:
        try:
            if first_step == 1 and session.valid_set:
                _validate(session, folder, facts, metrics, screen)
            for report in session.steps():
                if metrics:
                    metrics.write("step", dataclasses.asdict(report))
                screen.step(report)
                last = report.step == schedule.total_steps
                if session.valid_set and (last or report.step % eval_every == 0):
                    _validate(session, folder, facts, metrics, screen)
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


def _validate(session: "Session", folder: Path, facts: dict[str, Any], metrics: Any, screen: TrainScreen) -> None:
    started = time.perf_counter()
    loss = session.validation_loss()
    seconds = time.perf_counter() - started
    step = session.progress.step
    if step == 0:
        session.progress.base_loss, best = loss, False
    else:
        best = session.note_validation(loss)
    if metrics:
        metrics.write("validation", {"step": step, "loss": loss, "best": best, "seconds": seconds})
    screen.validation(step, loss, best, seconds)
    if best and metrics:
        _save_adapter(session, folder, facts)


def _save(session: "Session", folder: Path, facts: dict[str, Any], metrics: Any) -> None:
    from mlx_lora.training.checkpoint import save_checkpoint

    if not metrics:
        return
    if not session.valid_set:
        _save_adapter(session, folder, facts)
    metrics.sync()
    stepper = session.stepper
    save_checkpoint(folder / "checkpoints", session.progress, stepper.trainable.arrays(), stepper.optimizer.state)


def _save_adapter(session: "Session", folder: Path, facts: dict[str, Any]) -> None:
    import mlx.core as mx

    from mlx_lora.lora.adapter import save_adapter

    known = {name: value for name, value in facts.items() if name != "fingerprint"}
    save_adapter(
        folder,
        session.model,
        settings=session.config.lora,
        metadata={**known, "step": session.progress.step},
        dtype=getattr(mx, session.config.lora.save_dtype),
    )


class _Stop:
    asked = False
    over = False  # what comes now is mlx.launch, which ends the ranks that are left


@contextmanager
def _stop_signals(group: "Group") -> Iterator[_Stop]:
    """The first Ctrl-C or SIGTERM asks the loop to stop after this step; a second one stops at once."""
    stop = _Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.over:
            return
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        if number != signal.SIGHUP:  # the terminal is gone
            talk.print("stopping after this step; once more to stop at once", markup=False)

    # A rank that ssh started gets SIGHUP where the launcher got Ctrl-C.
    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if group.size > 1 else [])]
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield stop
    finally:
        stop.over = True
        if group.size == 1:  # a rank keeps them, so that it can still say why it ends
            for number, handler in before.items():
                signal.signal(number, handler)
