"""Where `mlx-lora eval` writes its results, and what must not be written over."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_lora.errors import ConfigError, DataError
from mlx_lora.files import refuse_unwritable, typed_path

if TYPE_CHECKING:
    from mlx_lora.evaluation.result_format import EvaluationResult
    from mlx_lora.evaluation.subjects import Source, Subject


def check_places(
    subjects: "Sequence[Subject]",
    sources: "Sequence[Source]",
    output: Path | None,
    asked: Mapping[str, Any],
    *,
    custom: Mapping[str, str],
    with_base: bool,
) -> list[str]:
    """Raises: MlxLoraError where a result cannot be written, or would be written over what is no result.

    asked: the settings that options give, by their names in a result; custom: metrics from entry points, with what they
    call. Returns a line for each earlier result of other questions, of another adapter, asked in another way or with
    a metric that is not asked for now, that is about to be written over.
    """
    own_data, taken, lines = {typed_path(source.path).resolve() for source in sources}, dict[Path, str](), list[str]()
    everyone: Sequence[Subject | None] = subjects or [None]
    for subject in everyone:
        for source in sources:
            label = "base" if subject is None else subject.label
            place = result_place(label, source.name, subject, output, several=len(subjects) > 1)
            if place is None:
                continue
            refuse_unwritable(place)
            if (other := taken.setdefault(place.resolve(), label)) != label:
                fact = f"--output {output}: the results of {other} and {label} would both be {place.name}"
                raise ConfigError(fact, "leave --output out, or evaluate them one at a time")
            if place.resolve() in own_data:
                raise ConfigError(f"--output {place}: holds what is asked", "give another file or folder")
            if line := _written_over(place, label, subject, source, asked, custom, with_base):
                lines.append(line)
    return lines


def result_place(
    label: str, name: str, subject: "Subject | None", output: Path | None, *, several: bool
) -> Path | None:
    """The file of the result; None for a base alone that was given no output."""
    if output is None:
        return subject.folder / "eval" / f"{name}.json" if subject is not None else None
    if output.suffix == ".json":
        return output
    return output / f"{f'{Path(label).name}-' if several else ''}{name}.json"


def _written_over(
    place: Path,
    label: str,
    subject: "Subject | None",
    source: "Source",
    asked: Mapping[str, Any],
    custom: Mapping[str, str],
    with_base: bool,
) -> str | None:
    """What to say of the earlier result there; None where these answers replace those to the same questions.

    Raises: ConfigError where a file outside an adapter's own results is no result.
    """
    from mlx_lora.evaluation.result_format import is_result, read_result

    if not place.exists():
        return None
    if (subject is None or place.parent != subject.folder / "eval") and not is_result(place):
        fact = f"--output {place}: exists and is no result of mlx-lora eval"
        raise ConfigError(fact, "choose another name; nothing was overwritten")
    try:
        result = read_result(place)
    except DataError:
        return None  # of another version: nothing that another command would read
    other = _otherwise(result, label, subject, source, asked, custom, with_base)
    if not other:
        return None
    return f"{place} will be written over: {', '.join(other)} (--output FOLDER writes elsewhere)"


def _otherwise(
    result: "EvaluationResult",
    label: str,
    subject: "Subject | None",
    source: "Source",
    asked: Mapping[str, Any],
    custom: Mapping[str, str],
    with_base: bool,
) -> list[str]:
    """What sets an earlier result apart, in words: whose answers, which questions, how they were asked."""
    found, earlier, data = list[str](), result.settings, result.data
    if (whose := Path(result.label).name) != Path(label).name:
        found.append(f"it holds the answers of {whose}")
    elif subject is not None and earlier.get("adapter_step") != subject.adapter.facts.get("step"):
        return []  # of the same run at another step: what was asked then says nothing of this adapter
    if data.sha256 != source.sha256:
        same = typed_path(data.source).resolve() == typed_path(source.path).resolve()
        found.append(f"it holds answers to {'other rows of ' if same else ''}{data.source}")
    elif data.answers_sha256 not in (None, source.answers_sha256) and data.asked == len(source.records):
        found.append("it was scored by other accepted answers")
    names = ["limit"] if source.kind == "choice" else list(asked)
    ways = [f"{name} {_told(earlier[name])}" for name in names if name in earlier and earlier[name] != asked[name]]
    ways += [
        f"--metric {name}" for name, target in earlier.get("custom_metrics", {}).items() if custom.get(name) != target
    ]
    ways += ["the base beside it"] if result.base is not None and not with_base else []
    return found + ([f"it was asked with {', '.join(ways)}"] if ways else [])


def _told(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value).lower()
