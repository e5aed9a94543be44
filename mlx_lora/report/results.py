"""A run's eval/*.json as a page needs them: read, cleaned, and a few questions answered. Counts nothing anew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_lora.errors import DataError
from mlx_lora.evaluation.metrics import is_share
from mlx_lora.evaluation.result_format import (
    EvaluationResult,
    Figures,
    QuestionRow,
    RightOrWrong,
    Said,
    hash_answers,
    read_result,
)
from mlx_lora.report.privacy import short_path, without_paths, without_secrets
from mlx_lora.statistics import wilson_interval

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


def shown_metric(result: EvaluationResult) -> str:
    """The metric to show changes by: the leading one, or that of the verdict's loss, else gain, where it shows none."""
    if result.verdict is None:
        return result.metric
    verdict = result.verdict
    lost, gained = ([one for one in names if one in result.metrics] for names in (verdict.lost, verdict.gained))
    told = lost or gained
    return told[0] if told and result.metric not in told else result.metric


def changes(result: EvaluationResult, metric: str) -> Mapping[str, int] | None:
    """How many questions changed by a metric, and how, in the words of `change`; None without a base."""
    counts = (result.comparison or {}).get(metric)
    if counts is None:
        return None
    if isinstance(counts, RightOrWrong):
        kept = {"kept right": counts.kept_right, "kept wrong": counts.kept_wrong}
        return {"fixed": counts.fixed, "broken": counts.broken, **kept}
    return {"higher": counts.higher, "lower": counts.lower, "equal": counts.equal}


def change(question: QuestionRow, metric: str) -> str | None:
    """What became of a question by a metric, as right or wrong, or as a fraction; None where the base was not asked."""
    if question.base is None:
        return None
    if not is_share(metric):
        gain = float(question.scores[metric]) - float(question.base.scores[metric])
        return "higher" if gain > 0 else "lower" if gain < 0 else "equal"
    if right(question, metric):
        return "kept right" if right(question.base, metric) else "fixed"
    return "broken" if right(question.base, metric) else "kept wrong"


def same_questions(result: EvaluationResult) -> tuple[Any, ...]:
    """Equal for results that can stand side by side: the same questions, asked and scored alike."""
    data, settings = result.data, result.settings
    key: tuple[Any, ...] = (data.name, data.sha256, data.asked, result.metric)
    if data.kind == "choice":
        return key  # nothing is written, so nothing is drawn, cut or normalized, and no other answer is accepted
    key = (*key, accepted_answers(result), metric_function(result))
    drawn = settings.get("sampling") == "drawn"
    how = [settings.get("temperature"), settings.get("seed")] if drawn else []
    return (*key, bool(settings.get("normalize_numbers")), *map(str, [settings.get("max_tokens"), *how]))


def accepted_answers(result: EvaluationResult) -> str | None:
    """A hash of what counts as right; None where an earlier version wrote the file, and push left its questions out."""
    if result.data.answers_sha256 is None and result.questions:
        return hash_answers(question.answers for question in result.questions)
    return result.data.answers_sha256


def metric_function(result: EvaluationResult) -> str | None:
    """The entry point of the leading metric; None for one of our own."""
    named = result.settings.get("custom_metrics")
    return str(named[result.metric]) if isinstance(named, Mapping) and result.metric in named else None


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
