"""`mlx-lora eval`: did it learn? Base beside adapters on questions, from one load of the base."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_lora.commands.evaluateplaces import check_places, result_place
from mlx_lora.console import talk
from mlx_lora.errors import AdapterError, ConfigError
from mlx_lora.files import typed_path, write_json
from mlx_lora.screen import counted_rows

if TYPE_CHECKING:
    from mlx_lora.evaluation.asking import Asker
    from mlx_lora.evaluation.result import Evaluation
    from mlx_lora.evaluation.subjects import Source, Subject
    from mlx_lora.model.load import LoadedModel


def run_evaluate(
    adapters: Sequence[Path],
    *,
    data: Sequence[str] = (),
    base: bool = False,
    model: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
    max_tokens: int = 64,
    batch_size: int = 32,
    fail_under: float | None = None,
    metrics: Sequence[str] = (),
    json_output: bool = False,
    output: Path | None = None,
    numbers: bool = False,
    temperature: float = 0.0,
    seed: int = 0,
) -> int:
    """Ask every adapter, and the base where wanted, the questions of every data set; return the exit code.

    Each adapter gets eval/<data name>.json, or else `output` does: a folder, or a .json file for a single result. Of
    `metrics` the first that a kind of data has leads. Exit code 1: an adapter (or the base alone) is under
    `fail_under`. Raises: MlxLoraError.
    """
    output = None if output is None else typed_path(output)
    _check_request(adapters, base, model, limit, max_tokens, batch_size, fail_under, temperature)
    from mlx_lora.evaluation.asking import Asker
    from mlx_lora.evaluation.plugins import load_metrics
    from mlx_lora.evaluation.subjects import choose_sources, distinct, read_sources

    custom = load_metrics(metrics)
    subjects = distinct([_read_subject(path, needs_run=not data) for path in adapters])
    if len(subjects) < len(adapters):
        _note("an adapter that is named twice is asked once")
    sources = read_sources(choose_sources(subjects, data), limit)
    for source in sources:
        if source.held_out:
            _note(f"no test rows are named: what the run held out of {source.path} is asked, {source.rows} rows")
    if output is not None and output.suffix == ".json" and max(1, len(subjects)) * len(sources) > 1:
        raise ConfigError(f"--output {output}: several results do not fit one file", "give a folder")
    asked: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "normalize_numbers": numbers,
        "limit": limit,
    }
    asked["seed"] = seed if temperature > 0 else None
    targets = {one.name: one.target for one in custom}
    for note in check_places(subjects, sources, output, asked, custom=targets, with_base=base):
        _note(note)
    _check_metrics(metrics, sources)
    loaded = _load(subjects, model, revision)
    asker = Asker(
        loaded,
        max_tokens=max_tokens,
        batch_size=batch_size,
        numbers=numbers,
        progress=counted_rows,
        temperature=temperature,
        seed=seed,
        custom=custom,
    )
    asker.prepare(subjects, sources)
    evaluations, objects, places = list["Evaluation"](), list[dict[str, Any]](), list[Path]()
    for one in _evaluate(asker, subjects, sources, metrics, with_base=base):
        evaluations.append(one)
        # At once: what was answered is kept if something later fails.
        result, place = _save(one, subjects, {**asker.settings(), "limit": limit}, output)
        objects.append(result)
        places += [] if place is None else [place]
    if json_output:
        published = objects[0] if len(objects) == 1 else {"results": objects}
        sys.stdout.write(json.dumps(published, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        _print(evaluations, sources)
        for place in places:
            talk.print(f"all answers: {place}", markup=False, soft_wrap=True)
    return _exit_code(evaluations, fail_under)


def _check_request(
    adapters: Sequence[Path],
    base: bool,
    model: str | None,
    limit: int | None,
    max_tokens: int,
    batch_size: int,
    fail_under: float | None,
    temperature: float,
) -> None:
    if not adapters and not base:
        fact = "no adapter and no --base: nothing to evaluate"
        raise ConfigError(fact, "give an adapter folder, or --base --model NAME for a base alone")
    if not adapters and model is None:
        raise ConfigError("--base without an adapter: which base?", "add --model NAME")
    for name, value in (("--limit", limit), ("--max-tokens", max_tokens), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} {value}: must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise ConfigError(f"--temperature {temperature:g}: must be 0 (greedy) or more", "such as 0.7")
    if fail_under is not None and not 0 <= fail_under <= 1:
        hint = f"for {fail_under:g} % write {fail_under / 100:g}" if 1 < fail_under <= 100 else "such as 0.9"
        raise ConfigError(f"--fail-under {fail_under:g}: must be a share between 0 and 1", hint)


def _check_metrics(metrics: Sequence[str], sources: "Sequence[Source]") -> None:
    """Refuse a metric that no data set has, and name those that are scored by another."""
    for name in metrics:
        if all(source.leading_metric([name]) != name for source in sources):
            raise ConfigError(
                f"--metric {name}: none of the data sets has it",
                'accuracy and accuracy_norm are for rows with "choices", all others for rows without',
            )
    for source in sources if metrics else ():
        if (leading := source.leading_metric(metrics)) not in metrics:
            _note(f"{source.name} is scored by {leading}")


def _read_subject(path: Path, *, needs_run: bool) -> "Subject":
    """The adapter with its run file, which may be of another version where the questions are named."""
    from mlx_lora.chat.places import find_adapter
    from mlx_lora.evaluation.subjects import Subject
    from mlx_lora.lora.adapter import read_adapter
    from mlx_lora.lora.rendering import rendering_of
    from mlx_lora.runfile import load_config

    folder = find_adapter(str(path))
    adapter = read_adapter(folder)
    of_run = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    run_file = of_run / "run.yaml"
    try:
        run = load_config(run_file) if run_file.is_file() else None
    except ConfigError as error:
        if needs_run:
            raise
        run = None
        _note(f"{error.message.splitlines()[0]}: what {folder} was trained on is not known")
    return Subject(str(folder), folder, adapter, rendering_of(adapter.config, folder), run)


def _load(subjects: "Sequence[Subject]", model: str | None, revision: str | None) -> "LoadedModel":
    """The one base of all adapters, or `model`; at `revision` where that is given."""
    from mlx_lora.lora.rendering import choose_base, model_of
    from mlx_lora.model.batching import batching_note
    from mlx_lora.model.load import load_base

    if model is None:
        bases = {model_of(subject.adapter.config, subject.folder) for subject in subjects}
        if len(bases) > 1:
            names = " and ".join(sorted(name for name, _ in bases))
            raise AdapterError(f"these adapters have different bases: {names}", "evaluate them one at a time")
        name, revision = choose_base(None, revision, bases.pop)
    else:
        name = model
    computes = {subject.run.compute for subject in subjects if subject.run is not None}
    loaded = load_base(name, revision=revision, compute=computes.pop() if len(computes) == 1 else "auto")
    talk.print(f"{loaded.identity.name}  {loaded.compute}", markup=False)
    if note := batching_note(loaded.model):
        _note(note)
    return loaded


def _note(line: str) -> None:
    talk.print(f"note: {line}", markup=False, soft_wrap=True)


def _evaluate(
    asker: "Asker",
    subjects: "Sequence[Subject]",
    sources: "Sequence[Source]",
    metrics: Sequence[str],
    *,
    with_base: bool,
) -> "Iterator[Evaluation]":
    for subject in subjects:
        yield from _evaluate_adapter(asker, subject, sources, metrics, with_base=with_base)
    if not subjects:
        for source in sources:
            yield _evaluate_base(asker, source, metrics)


def _evaluate_adapter(
    asker: "Asker", subject: "Subject", sources: "Sequence[Source]", metrics: Sequence[str], *, with_base: bool
) -> "Iterator[Evaluation]":
    from mlx_lora.evaluation.result import Evaluation
    from mlx_lora.evaluation.subjects import taught_questions

    rendering = subject.rendering
    taught = taught_questions(subject)
    base_rows = [asker.ask_base(rendering, source)[0] if with_base else None for source in sources]
    with asker.adapted(subject) as applied:
        talk.print(f"{subject.label}: {applied.line}", markup=False, soft_wrap=True)
        for note in applied.notes:
            _note(note)
        for source, base in zip(sources, base_rows, strict=True):
            if trained_on := source.is_training_data_of(subject):
                _note(f"{subject.label} was trained on {source.path}: this shows memory, not learning")
            elif in_training := source.asked_in(taught):
                of = f"{in_training} of the {len(source.records)} questions of {source.path}"
                _note(f"{of} were asked in the training of {subject.label} too: there it may be memory, not learning")
            rows, seconds = asker.ask(subject.label, rendering, source)
            long = sum(row.reference_tokens > asker.asking.max_tokens + 1 for row in rows)
            if long and source.kind == "open":
                _note(
                    f"{source.name}: {long} of {len(rows)} right answers are longer than --max-tokens "
                    f"{asker.asking.max_tokens}, so none can be written whole"
                )
            facts = source.facts() | {"trained_on": trained_on, "trained_questions": source.asked_in(taught)}
            drift = asker.drift(rendering, source, base) if base else None
            yield Evaluation(subject.label, facts, rows, base, source.leading_metric(metrics), seconds, drift)


def _evaluate_base(asker: "Asker", source: "Source", metrics: Sequence[str]) -> "Evaluation":
    from mlx_lora.evaluation.result import Evaluation
    from mlx_lora.lora.rendering import Rendering

    rows, seconds = asker.ask_base(Rendering(), source)
    return Evaluation("base", source.facts(), rows, None, source.leading_metric(metrics), seconds)


def _save(
    one: "Evaluation", subjects: "Sequence[Subject]", settings: dict[str, Any], output: Path | None
) -> tuple[dict[str, Any], Path | None]:
    """Write the result whole or not at all; return it and its file."""
    from mlx_lora.evaluation.result import build_result

    subject = next((subject for subject in subjects if subject.label == one.label), None)
    if subject is not None:
        facts, asked = subject.adapter.facts, subject.rendering
        settings |= {
            "system_prompt": asked.system_prompt,
            "chat_template_sha256": facts.get("chat_template_sha256"),
            "chat_template_args": dict(asked.chat_template_args),
            "adapter_step": facts.get("step"),
        }
    result = build_result(one, settings).model_dump(mode="json")
    place = result_place(one.label, str(one.data["name"]), subject, output, several=len(subjects) > 1)
    if place is not None:
        write_json(place, result)
    return result, place


def _print(evaluations: "Sequence[Evaluation]", sources: "Sequence[Source]") -> None:
    from rich.console import Console

    from mlx_lora.evaluation.tables import print_evaluations, print_summary

    console = Console(highlight=False)
    for source in sources:
        print_evaluations(console, [one for one in evaluations if one.data["name"] == source.name])
    if len(sources) > 1:
        print_summary(console, evaluations)


def _exit_code(evaluations: "Sequence[Evaluation]", fail_under: float | None) -> int:
    from mlx_lora.evaluation.verdict import metric_name

    code = 0
    for one in evaluations:
        value = one.metrics.values[one.metric]
        if fail_under is not None and value < fail_under:
            fact = f"{one.label}, {one.data['name']}: {metric_name(one.metric)} {value:.4f} is under {fail_under:g}"
            talk.print(f"failed: {fact}", markup=False, soft_wrap=True)
            code = 1
    return code
