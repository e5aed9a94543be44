"""A run's eval/*.json as a page needs them: read, cleaned, and a few questions answered. Counts nothing anew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_lora.errors import DataError
from mlx_lora.evaluation.result_format import EvaluationResult, Figures, Said, read_result
from mlx_lora.evaluation.statistics import wilson_interval
from mlx_lora.report.privacy import short_path, without_paths, without_secrets

RETENTION_SET = "general-knowledge"  # the built-in questions: what a fine-tune can lose


def read_results(folder: Path) -> tuple[list[EvaluationResult], list[str]]:
    """The results in a run's eval/ by name, and a line for each file that could not be used."""
    results, unusable = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            results.append(_cleaned(read_result(path)))
        except DataError as error:
            fact = error.message.removeprefix(f"{path}: ").splitlines()[0]
            unusable.append(f"eval/{path.name} was left out: {fact}")
    return results, unusable


def changes(result: EvaluationResult) -> Mapping[str, int] | None:
    """How many questions were fixed, broken, kept right and kept wrong by the leading metric; None without a base."""
    if result.base is None:
        return None
    kinds = [question.change for question in result.questions]
    return {name: kinds.count(name) for name in ("fixed", "broken", "kept right", "kept wrong")}


def same_questions(result: EvaluationResult) -> tuple[Any, ...]:
    """Equal for results that can stand side by side."""
    return (result.data.name, result.data.sha256, result.data.asked, result.metric)


@dataclass(frozen=True)
class Retention:
    """What a run asked base and adapter at its end (train.retention): counts of right answers."""

    data: str
    metric: str
    base: Figures
    adapter: Figures
    lost: int  # right before, wrong now
    gained: int
    p: float
    forgot: bool


def read_retention(events: Sequence[Mapping[str, Any]]) -> Retention | None:
    """The newest retention event that is whole; None without one."""
    for event in reversed(events):
        try:
            metric, count = str(event["metric"]), int(event["questions"])
            base, adapter = (_figures(metric, int(event[name]), count) for name in ("base", "adapter"))
            counts = int(event["lost"]), int(event["gained"])
            return Retention(
                str(event["data"]), metric, base, adapter, *counts, float(event["p"]), bool(event["forgot"])
            )
        except (LookupError, TypeError, ValueError, ArithmeticError):
            continue  # of another version, or edited
    return None


def _figures(metric: str, right_answers: int, count: int) -> Figures:
    return Figures(
        count=count, custom={metric: right_answers / count}, interval={metric: wilson_interval(right_answers, count)}
    )


def right(said: Said, metric: str) -> bool:
    """Whether an answer is right: true, or a full score."""
    return float(said.scores[metric]) == 1.0


def _cleaned(result: EvaluationResult) -> EvaluationResult:
    """Without secrets, and without absolute paths but in what was asked and answered."""
    values = result.model_dump(exclude={"questions"})
    values["data"]["source"] = short_path(result.data.source)
    questions = [
        {**without_secrets(question.model_dump()), "place": short_path(question.place)} for question in result.questions
    ]
    return EvaluationResult.model_validate({**without_paths(values), "questions": questions})
