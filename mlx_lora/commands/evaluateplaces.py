"""Where `mlx-lora eval` writes its results, and what must not be written over."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_lora.errors import ConfigError, DataError
from mlx_lora.files import refuse_unwritable, typed_path

if TYPE_CHECKING:
    from mlx_lora.evaluation.subjects import Source, Subject


def check_places(
    subjects: "Sequence[Subject]",
    sources: "Sequence[Source]",
    output: Path | None,
    asked: Mapping[str, Any],
    *,
    with_base: bool,
) -> list[str]:
    """Raises: MlxLoraError where a result cannot be written, or would be written over what is asked.

    asked: the settings that options give, by their names in a result. Returns a line for each earlier result that was
    asked in another way and is about to be written over.
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
            if line := _written_over(place, subject, asked, with_base):
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


def _written_over(place: Path, subject: "Subject | None", asked: Mapping[str, Any], with_base: bool) -> str | None:
    """What to say of the earlier result there, of the same adapter; None where it was asked in the same way."""
    from mlx_lora.evaluation.result_format import read_result

    try:
        result = read_result(place) if place.exists() else None
    except DataError:
        return None  # of another version, or no result: nothing that another command would read
    if result is None or subject is None or result.settings.get("adapter_step") != subject.adapter.facts.get("step"):
        return None
    earlier = result.settings
    other = [f"{name} {_told(earlier[name])}" for name in asked if name in earlier and earlier[name] != asked[name]]
    other += ["the base beside it"] if result.base is not None and not with_base else []
    if not other:
        return None
    return f"{place} will be written over: it was asked with {', '.join(other)} (--output FOLDER writes elsewhere)"


def _told(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value).lower()
