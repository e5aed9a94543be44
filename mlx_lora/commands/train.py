"""`mlx-lora train`: a run file becomes an adapter folder. The steps themselves are in trainloop.py."""

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_lora.commands.preflight import fit_run, sized_run
from mlx_lora.commands.runfacts import run_facts
from mlx_lora.commands.trainloop import train_and_validate
from mlx_lora.commands.trainresume import kept_line, require_same_run, resume_session, saved_line
from mlx_lora.commands.trainstart import choose_a, read_start, start_facts, start_from
from mlx_lora.commands.trainstop import Stop, stop_signals
from mlx_lora.commands.trainsummary import build_summary, print_header, print_summary
from mlx_lora.config import RunConfig
from mlx_lora.console import talk, visible
from mlx_lora.errors import MlxLoraError
from mlx_lora.files import cache_folder, named_errors, remove_folder, sha256_file, typed_path, write_whole
from mlx_lora.runfile import dump_config, load_config
from mlx_lora.screen import RowsBar

if TYPE_CHECKING:
    from mlx_lora.model.load import LoadedModel
    from mlx_lora.model.tokenizer import Tokenizer
    from mlx_lora.training.checkpoint import Checkpoint
    from mlx_lora.training.distributed import Group
    from mlx_lora.training.session import Session

INTERRUPTED = 130


def run_train(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
    json_output: bool = False,
) -> int:
    """Train as the run file says; return the exit code (0, or 130 when a signal ended the run)."""
    config = load_config(path, overrides)
    settings = [word for override in overrides for word in ("--set", override)]  # a run with others is another run
    again = shlex.join(["mlx-lora", "train", str(path), *settings, "--resume"])
    try:
        summary = train_run(config, again, resume=resume, overwrite=overwrite, force=force)
    except KeyboardInterrupt:
        return INTERRUPTED
    if summary is None:
        return 0  # mlx.launch ends the other ranks when one ends with anything else
    if json_output:
        sys.stdout.write(json.dumps(summary) + "\n")
    return INTERRUPTED if summary["ended_by"] == "signal" else 0


def train_run(
    config: RunConfig, again: str, *, resume: bool = False, overwrite: bool = False, force: bool = False
) -> dict[str, Any] | None:
    """Train, say what happens, and return the summary (see build_summary); None on a rank that does not lead.

    again: how a person goes on with the run. `force`: resume in spite of differences that are safe. Started by
    `mlx.launch`, this process is one of several ranks, and only the first of them prints and writes.
    Raises: MlxLoraError; KeyboardInterrupt, which has been said aloud then, for an end at once.
    """
    from mlx_lora.training.distributed import join_group

    group = join_group()
    talk.quiet = talk.quiet or not group.leads
    folder = typed_path(config.output_dir)
    again = f"mlx.launch … -- {again}" if group.size > 1 else again
    stop = Stop()
    try:
        with stop_signals(stop, group):
            summary = _run(config, group, stop, resume=resume, overwrite=overwrite, force=force)
    except MlxLoraError as error:
        if stop.training:  # a disk is not the run: it can go on from what is saved
            on_disk = isinstance(error.__cause__, OSError)
            left = saved_line(folder, again) if on_disk else kept_line(folder)
            error.hint = "; ".join(filter(None, [error.hint or ("mend that" if on_disk else None), left]))
        if not group.leads:
            talk.quiet = False
            error.message = f"rank {group.rank}: {error.message}"
        raise
    except KeyboardInterrupt:
        what = f"at once; {saved_line(folder, again)}" if stop.training else "before the first step"
        talk.print(f"stopped {what}", markup=False, soft_wrap=True)
        raise
    if not group.leads:
        return None
    print_summary(summary, folder, again)
    return summary


def _run(
    config: RunConfig, group: "Group", stop: Stop, *, resume: bool, overwrite: bool, force: bool
) -> dict[str, Any]:
    """All of the run, from the claimed folder to the summary."""
    import mlx.core as mx

    from mlx_lora.training.checkpoint import find_checkpoint
    from mlx_lora.training.runfolder import Metrics, claimed_folder

    folder = typed_path(config.output_dir)
    claim = claimed_folder(folder, resume=resume, overwrite=overwrite) if group.leads else nullcontext(list[str]())
    with claim as notes:
        checkpoint = find_checkpoint(folder / "checkpoints") if resume else None  # before anything is loaded
        session, facts, watch = _build(config, group, checkpoint, force=force)
        session.progress.fingerprint = facts["fingerprint"]
        if checkpoint:
            resume_session(session, checkpoint, folder, force=force)
        session.require_one_start()
        if group.leads and not resume:
            _clear(folder)
        if group.leads:
            write_whole(folder / "run.yaml", dump_config(session.config))
        started, peak_before = time.perf_counter(), mx.get_peak_memory()
        mx.reset_peak_memory()  # what a step takes says how much freed memory is worth keeping
        resume_step = session.progress.step if resume else None
        with Metrics(folder / "metrics.jsonl", resume_step) if group.leads else nullcontext() as metrics:
            for note in [*notes, *(metrics.notes if metrics else [])]:
                talk.print(f"warning: {note}", markup=False, soft_wrap=True)
            if metrics:
                metrics.write("resume" if resume else "start", {"step": session.progress.step, **facts})
            stop.training = True
            stopped_by = train_and_validate(session, folder, facts, metrics, stop, checkpoint)
            seconds = time.perf_counter() - started
            if metrics:
                metrics.write("end", {"step": session.progress.step, "ended_by": stopped_by})
            retention = None
            if metrics and stopped_by != "signal":
                stop.trained = True
                try:
                    retention = watch()
                except KeyboardInterrupt:
                    talk.print("train.retention: its questions were left out; the run is whole", markup=False)
            if metrics and retention:
                metrics.write("retention", {"step": session.progress.step, **retention})
            return build_summary(session, folder, stopped_by, seconds, peak_before, metrics) | {"retention": retention}


def _build(
    config: RunConfig, group: "Group", checkpoint: "Checkpoint | None", *, force: bool
) -> tuple["Session", dict[str, Any], Callable[[], dict[str, Any] | None]]:
    from mlx_lora.commands.replay import build_replay
    from mlx_lora.commands.retention import read_retention, watch_retention
    from mlx_lora.commands.rundata import load_run_tokenizer
    from mlx_lora.dataset.inspection import build_split_examples, inspect_splits
    from mlx_lora.dataset.replay import examples_sha256
    from mlx_lora.dataset.splits import load_splits, records_sha256, row_formats
    from mlx_lora.lora.adapter import check_base
    from mlx_lora.lora.inject import inject_lora
    from mlx_lora.model.load import load_base
    from mlx_lora.training.fingerprint import build_fingerprint, engine_parts
    from mlx_lora.training.session import build_session, prepare_engine

    splits = load_splits(config.data, config.train.seed)
    tokenizer = load_run_tokenizer(config)
    built = build_split_examples(splits, tokenizer, config.data)
    auto = config.train.batch_size == "auto"
    earlier = typed_path(config.output_dir) / "run.yaml" if checkpoint else None
    config, rows = sized_run(config, tokenizer, splits, built, ranks=group.size, earlier=earlier)
    inspection = inspect_splits(splits, built, tokenizer.eos_ids, config)
    inspection.raise_faults()
    for warning in inspection.warnings:
        talk.print(f"warning: {visible(warning)}", markup=False, soft_wrap=True)
    train_set, valid_set = built["train"].examples, built["valid"].examples
    questions = read_retention(config, tokenizer)
    start = read_start(config)
    memory = fit_run(config, rows)
    base = load_base(config.model, revision=config.revision, compute=config.compute)
    if start is not None:
        check_base(start, dataclasses.asdict(base.identity))  # before the base answers thousands of prompts
    replay = build_replay(config, base, tokenizer, splits, train_set, group.size)
    injection = inject_lora(base.model, config.lora, seed=config.train.seed)
    print_header(config, base, injection, len(train_set), len(valid_set))
    if start is not None:
        start_from(start, base, injection, config)
    if auto:
        talk.print(f"train.batch_size: auto is {config.train.batch_rows} here", markup=False)
    talk.print(memory, markup=False, soft_wrap=True)
    for note in built["train"].notes:
        talk.print(f"note: {note}", markup=False, soft_wrap=True)
    if group.size > 1:
        talk.print(f"{group.size} ranks of {config.train.batch_size} rows each", markup=False)
    rows_and_replay = [*train_set, *replay.rows]
    choose_a(base, rows_and_replay, config, group, checkpoint)
    session = build_session(config, base.model, rows_and_replay, valid_set, group)
    data = {"train": records_sha256(splits.train), "valid": records_sha256(splits.valid)}
    if replay.rows:
        data["replay"] = examples_sha256(replay.rows)
    facts = _facts(config, base, data) | {"row_formats": row_formats(splits.train)}
    facts |= start_facts(start, facts)
    compared = data | replay.compared
    fingerprint = build_fingerprint(session, facts["identity"], compared, facts["versions"], facts.get("started_from"))
    if checkpoint:
        require_same_run(checkpoint, fingerprint, config.optimizer, force=force)  # before the layers run
    with RowsBar("frozen layers") as bar:
        store = cache_folder() / "frozen"
        for done, total in prepare_engine(session, injection.first_layer, base.contents, store):
            bar.show(done, total)
    for report in session.reports:
        mark = "on " if report.active else "off"
        talk.print(f"  {mark} {report.name:<21} {report.line}", markup=False, soft_wrap=True)
    _warn_of_mute_ends(session, tokenizer)
    facts["run"] = run_facts(session, base, injection, inspection)
    facts["fingerprint"] = {**fingerprint, "engine": engine_parts(session)}
    return session, facts, partial(watch_retention, config, base, session, questions)


def _warn_of_mute_ends(session: "Session", tokenizer: "Tokenizer") -> None:
    """Say so where the base cannot emit an end token that the rows train."""
    from mlx_lora.training.head import row_lengths
    from mlx_lora.training.warnings import mute_end_tokens

    trunk = session.stepper.engine.trunk
    ends = tokenizer.eos_ids & {int(example.tokens[-1]) for example in session.train_set}
    if trunk is None or not ends:
        return
    lengths = row_lengths(trunk)
    line = mute_end_tokens({tokenizer.decode([end]): float(lengths[end]) for end in sorted(ends)})
    if line:
        talk.print(f"warning: {line}", markup=False, soft_wrap=True)


def _facts(config: RunConfig, base: "LoadedModel", data: dict[str, str]) -> dict[str, Any]:
    """What the adapter tells of its origin."""
    template = typed_path(config.data.chat_template) if config.data.chat_template else None
    identity = dataclasses.asdict(base.identity)
    return {
        "model": config.model,
        "revision": config.revision,
        "identity": identity,
        "system_prompt": config.data.system_prompt,
        "chat_template": template.read_text(encoding="utf-8-sig") if template else None,
        "chat_template_sha256": sha256_file(template) if template else identity["chat_template_sha256"],
        "chat_template_args": config.data.chat_template_args,
        "data_sha256": data,
        "versions": {name: metadata.version(name) for name in ("mlx", "mlx-lm", "mlx-lora")},
    }


def _clear(folder: Path) -> None:
    """Remove what an earlier run left, so that nothing of it passes for this one's."""
    from mlx_lora.training.runfolder import ADAPTER_FILE

    for name in ("checkpoints", "eval"):
        remove_folder(folder / name)
    own = (ADAPTER_FILE, "adapter_config.json", "metrics.jsonl", "report.html")
    for name in (*own, "hub.json", "README.md"):  # the last two of one that was pulled
        with named_errors(folder / name):
            (folder / name).unlink(missing_ok=True)
