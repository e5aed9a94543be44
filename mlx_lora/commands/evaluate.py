"""`mlx-lora eval`: did it learn? Base beside adapters on questions, from one load of the base."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_lora.console import talk
from mlx_lora.errors import AdapterError, ConfigError
from mlx_lora.files import refuse_unwritable, typed_path, write_json, write_whole

if TYPE_CHECKING:
    from mlx_lora.evaluation.asking import Asker
    from mlx_lora.evaluation.metrics import Metric
    from mlx_lora.evaluation.result import Evaluation
    from mlx_lora.evaluation.subjects import Source, Subject
    from mlx_lora.model.load import LoadedModel


def run_evaluate(
    adapters: Sequence[Path],
    *,
    data: Sequence[str] = (),
    base: bool = False,
    model: str | None = None,
    limit: int | None = None,
    max_tokens: int = 64,
    batch_size: int = 32,
    fail_under: float | None = None,
    metric: str = "exact_match",
    json_output: bool = False,
    output: Path | None = None,
    numbers: bool = False,
) -> int:
    """Ask every adapter, and the base where wanted, the questions of every data set; return the exit code.

    Each adapter gets eval/<data name>.json and .predictions.jsonl, or else `output` does: a folder, or a .json file
    for a single result. Exit code 1: an adapter (or the base alone) is under `fail_under`. Raises: MlxLoraError.
    """
    output = None if output is None else typed_path(output)
    _check_request(adapters, base, model, limit, max_tokens, batch_size, fail_under)
    chosen = _known_metric(metric)
    from mlx_lora.evaluation.asking import Asker
    from mlx_lora.evaluation.subjects import choose_sources, read_sources

    subjects = [_read_subject(path) for path in adapters]
    sources = read_sources(choose_sources(subjects, data), limit)
    if output is not None and output.suffix == ".json" and max(1, len(subjects)) * len(sources) > 1:
        raise ConfigError(f"--output {output}: several results do not fit one file", "give a folder")
    _check_places(subjects, sources, output)
    loaded = _load(subjects, model)
    asker = Asker(loaded, max_tokens=max_tokens, batch_size=batch_size, numbers=numbers, progress=_progress)
    evaluations = [
        one for subject in subjects for one in _evaluate_adapter(asker, subject, sources, with_base=base, metric=chosen)
    ]
    evaluations += [] if subjects else [_evaluate_base(asker, source, chosen) for source in sources]
    objects = [_save(one, subjects, {**asker.settings(), "limit": limit}, output) for one in evaluations]
    if json_output:
        published = objects[0] if len(objects) == 1 else {"results": objects}
        sys.stdout.write(json.dumps(published, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        _print(evaluations, sources)
    return _exit_code(evaluations, fail_under, chosen)


def _check_request(
    adapters: Sequence[Path],
    base: bool,
    model: str | None,
    limit: int | None,
    max_tokens: int,
    batch_size: int,
    fail_under: float | None,
) -> None:
    if not adapters and not base:
        fact = "no adapter and no --base: nothing to evaluate"
        raise ConfigError(fact, "give an adapter folder, or --base --model NAME for a base alone")
    if not adapters and model is None:
        raise ConfigError("--base without an adapter: which base?", "add --model NAME")
    for name, value in (("--limit", limit), ("--max-tokens", max_tokens), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} {value}: must be at least 1")
    if fail_under is not None and not 0 <= fail_under <= 1:
        hint = f"for {fail_under:g} % write {fail_under / 100:g}" if 1 < fail_under <= 100 else "such as 0.9"
        raise ConfigError(f"--fail-under {fail_under:g}: must be a share between 0 and 1", hint)


def _known_metric(name: str) -> "Metric":
    from mlx_lora.evaluation.metrics import METRICS

    for metric in METRICS:
        if metric == name:
            return metric
    raise ConfigError(f"--metric {name}: no such metric", f"there are {', '.join(METRICS)}")


def _read_subject(path: Path) -> "Subject":
    from mlx_lora.chat.places import find_adapter
    from mlx_lora.evaluation.subjects import Subject
    from mlx_lora.lora.adapter import read_adapter
    from mlx_lora.lora.rendering import rendering_of
    from mlx_lora.runfile import load_config

    folder = find_adapter(str(path))
    adapter = read_adapter(folder)
    run_file = folder / "run.yaml"
    run = load_config(run_file) if run_file.is_file() else None
    return Subject(str(folder), folder, adapter, rendering_of(adapter.config, folder), run)


def _load(subjects: "Sequence[Subject]", model: str | None) -> "LoadedModel":
    """The one base of all adapters, or `model`."""
    from mlx_lora.lora.rendering import model_of
    from mlx_lora.model.batching import batching_note
    from mlx_lora.model.load import load_base

    if model is None:
        bases = {model_of(subject.adapter.config, subject.folder) for subject in subjects}
        if len(bases) > 1:
            names = " and ".join(sorted(name for name, _ in bases))
            raise AdapterError(f"these adapters have different bases: {names}", "evaluate them one at a time")
        name, revision = bases.pop()
    else:
        name, revision = model, None
    computes = {subject.run.compute for subject in subjects if subject.run is not None}
    loaded = load_base(name, revision=revision, compute=computes.pop() if len(computes) == 1 else "auto")
    talk.print(f"{loaded.identity.name}  {loaded.compute}", markup=False)
    if note := batching_note(loaded.model):
        talk.print(f"note: {note}", markup=False, soft_wrap=True)
    return loaded


def _evaluate_adapter(
    asker: "Asker", subject: "Subject", sources: "Sequence[Source]", *, with_base: bool, metric: "Metric"
) -> "list[Evaluation]":
    from mlx_lora.evaluation.result import Evaluation

    rendering = subject.rendering
    base_rows = [asker.ask_base(rendering, source)[0] if with_base else None for source in sources]
    evaluations = []
    with asker.adapted(subject) as applied:
        talk.print(f"{subject.label}: {applied.line}", markup=False, soft_wrap=True)
        for note in applied.notes:
            talk.print(f"note: {note}", markup=False, soft_wrap=True)
        for source, base in zip(sources, base_rows, strict=True):
            if source.is_training_data_of(subject):
                note = f"{subject.label} was trained on {source.path}: this shows memory, not learning"
                talk.print(f"note: {note}", markup=False, soft_wrap=True)
            rows, seconds = asker.ask(subject.label, rendering, source)
            evaluations.append(Evaluation(subject.label, source.facts(), rows, base, metric, seconds))
    return evaluations


def _evaluate_base(asker: "Asker", source: "Source", metric: "Metric") -> "Evaluation":
    from mlx_lora.evaluation.result import Evaluation
    from mlx_lora.lora.rendering import Rendering

    rows, seconds = asker.ask_base(Rendering(), source)
    return Evaluation("base", source.facts(), rows, None, metric, seconds)


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    from rich.progress import Progress

    with Progress(console=talk, transient=True, disable=not talk.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)


def _save(
    one: "Evaluation", subjects: "Sequence[Subject]", settings: dict[str, Any], output: Path | None
) -> dict[str, Any]:
    """Write predictions and figures, each whole or not at all; return the figures."""
    from mlx_lora.evaluation.result import as_json, prediction_rows

    subject = next((subject for subject in subjects if subject.label == one.label), None)
    if subject is not None:
        facts, asked = subject.adapter.facts, subject.rendering
        settings |= {
            "system_prompt": asked.system_prompt,
            "chat_template_sha256": facts.get("chat_template_sha256"),
            "chat_template_args": dict(asked.chat_template_args),
            "adapter_step": facts.get("step"),
        }
    result = as_json(one, settings)
    place = _result_place(one.label, str(one.data["name"]), subject, output, several=len(subjects) > 1)
    if place is not None:
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in prediction_rows(one)]
        write_whole(place.with_name(f"{place.name}.predictions.jsonl"), "\n".join(lines) + "\n")
        write_json(place.with_name(f"{place.name}.json"), result)
    return result


def _check_places(subjects: "Sequence[Subject]", sources: "Sequence[Source]", output: Path | None) -> None:
    """Raises: MlxLoraError where a result cannot be written, or would be written over what is asked."""
    asked = {typed_path(source.path).resolve() for source in sources}
    everyone: Sequence[Subject | None] = subjects or [None]
    for subject in everyone:
        for source in sources:
            label = "base" if subject is None else subject.label
            place = _result_place(label, source.name, subject, output, several=len(subjects) > 1)
            if place is None:
                continue
            refuse_unwritable(place)
            for ending in (".json", ".predictions.jsonl"):
                file = place.with_name(f"{place.name}{ending}")
                if file.resolve() in asked:
                    raise ConfigError(f"--output {file}: holds what is asked", "give another file or folder")


def _result_place(
    label: str, name: str, subject: "Subject | None", output: Path | None, *, several: bool
) -> Path | None:
    """Where the result files lie, without their endings; None for a base alone that was given no output."""
    if output is None:
        return subject.folder / "eval" / name if subject is not None else None
    if output.suffix == ".json":
        return output.with_suffix("")
    return output / (f"{Path(label).name}-{name}" if several else name)


def _print(evaluations: "Sequence[Evaluation]", sources: "Sequence[Source]") -> None:
    from rich.console import Console

    from mlx_lora.evaluation.tables import print_evaluations

    console = Console(highlight=False)
    for source in sources:
        print_evaluations(console, [one for one in evaluations if one.data["source"] == source.path])


def _exit_code(evaluations: "Sequence[Evaluation]", fail_under: float | None, metric: "Metric") -> int:
    code = 0
    for one in evaluations:
        value: float = getattr(one.metrics, metric)
        if fail_under is not None and value < fail_under:
            name = metric.replace("_", " ")
            fact = f"{one.label}, {one.data['name']}: {name} {value:.4f} is under {fail_under:g}"
            talk.print(f"failed: {fact}", markup=False, soft_wrap=True)
            code = 1
    return code
