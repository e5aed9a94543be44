"""One evaluation: answers, comparison, and the object that is written of them. Knows nothing of screens or folders."""

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from typing import Any

from mlx_lora.evaluation.damage import find_damage
from mlx_lora.evaluation.metrics import (
    METRICS,
    Metric,
    Metrics,
    ScoredAnswer,
    by_category,
    by_fact,
    is_share,
    summarize,
)
from mlx_lora.evaluation.result_format import (
    Change,
    EvaluationResult,
    QuestionRow,
    RightOrWrong,
    UpsAndDowns,
    Verdict,
)
from mlx_lora.evaluation.verdict import Comparison, MetricTest, compare


@dataclass(frozen=True)
class Evaluation:
    """The answers of one model, base or adapter, to one data set, with the base's beside them where it was asked."""

    label: str  # "adapters/stanley-cup", or "base"
    data: Mapping[str, Any]  # as Source.facts
    rows: Sequence[ScoredAnswer]
    base_rows: Sequence[ScoredAnswer] | None
    metric: Metric  # the leading one
    seconds: float  # to answer and score `rows`
    drift: float | None = None  # from the base, in nats a token of its answers

    @property
    def metrics(self) -> Metrics:
        """The figures over all rows."""
        return summarize(self.rows)

    @property
    def signs(self) -> tuple[str, ...]:
        """Plain remarks of damage in the answers."""
        return find_damage(self.rows).signs

    @cached_property
    def comparison(self) -> Comparison | None:
        """Against the base, where it was asked."""
        return None if self.base_rows is None else compare(self.base_rows, self.rows, self.metric)


def build_result(evaluation: Evaluation, settings: Mapping[str, Any]) -> EvaluationResult:
    """The object of one evaluation; `settings` are how it was asked and of what."""
    rows, base_rows, comparison = evaluation.rows, evaluation.base_rows, evaluation.comparison
    tokens = sum(row.tokens for row in rows)
    per_second = 1 / max(evaluation.seconds, 1e-9)
    return EvaluationResult.model_validate(
        {
            "label": evaluation.label,
            "data": dict(evaluation.data),
            "metric": evaluation.metric,
            "metrics": list(rows[0].scores),
            **_figures(evaluation.metrics),
            "base": _figures(summarize(base_rows)) if base_rows is not None else None,
            "verdict": _verdict(comparison) if comparison else None,
            "signs": list(evaluation.signs),
            "drift": evaluation.drift,
            "comparison": {name: _counts(test) for name, test in comparison.tests.items()} if comparison else None,
            "per_category": _groups(by_category(rows), by_category(base_rows) if base_rows is not None else None),
            "per_fact": _groups(by_fact(rows), by_fact(base_rows) if base_rows is not None else None),
            "questions": _question_rows(evaluation),
            "settings": dict(settings),
            "seconds": round(evaluation.seconds, 3),
            "answer_tokens": tokens,
            "tokens_per_second": round(tokens * per_second, 2) if tokens else None,
            "questions_per_second": round(len(rows) * per_second, 2),
            "versions": {name: metadata.version(name) for name in ("mlx-lora", "mlx", "mlx-lm", "transformers")},
            "machine": {
                "system": platform.platform(),
                "processor": platform.machine(),
                "python": platform.python_version(),
            },
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )


def _figures(metrics: Metrics) -> dict[str, Any]:
    values = metrics.values
    return {
        "count": metrics.count,
        **{name: values.get(name) for name in METRICS},
        "custom": {name: value for name, value in values.items() if name not in METRICS},
        "stop_rate": metrics.stop_rate,
        "perplexity": _finite(metrics.perplexity),
        "nats_per_token": _finite(metrics.nats_per_token),
        "non_finite": metrics.non_finite,
        "empty": metrics.empty,
        "looping": metrics.looping,
        "interval": {name: metrics.interval(name) for name in values if is_share(name)},
    }


def _groups(own: Mapping[str, Metrics], base: Mapping[str, Metrics] | None) -> dict[str, Any]:
    return {
        name: {**_figures(metrics), "base": None if base is None else _figures(base[name])}
        for name, metrics in own.items()
    }


def _verdict(comparison: Comparison) -> Verdict:
    return Verdict(
        kind=comparison.kind,
        sentence=comparison.sentence,
        gained=list(comparison.gained),
        lost=list(comparison.lost),
        signs=list(comparison.signs),
    )


def _counts(test: MetricTest) -> RightOrWrong | UpsAndDowns:
    changes = test.changes
    fixed, broken, right, wrong = map(len, (changes.fixed, changes.broken, changes.kept_right, changes.kept_wrong))
    better, worse = test.facts or (None, None)
    tests: dict[str, Any] = {
        "p": test.p,
        "p_by_fact": test.p_by_fact,
        "facts_higher": better,
        "facts_lower": worse,
    }
    if is_share(test.metric):
        return RightOrWrong(**tests, fixed=fixed, broken=broken, kept_right=right, kept_wrong=wrong)
    equal = fixed + broken + right + wrong - test.higher - test.lower
    return UpsAndDowns(**tests, higher=test.higher, lower=test.lower, equal=equal)


def _question_rows(evaluation: Evaluation) -> list[QuestionRow]:
    base_rows: Sequence[ScoredAnswer | None] = evaluation.base_rows or [None] * len(evaluation.rows)
    changes = _changes(evaluation.comparison)
    return [
        QuestionRow.model_validate(
            {
                "question": row.question,
                "answers": list(row.answers),
                "choices": list(row.choices) or None,
                "category": row.category,
                "fact": row.fact,
                "place": row.place,
                **_said(row),
                "change": changes.get(place),
                "base": None if base is None else _said(base),
            }
        )
        for place, (row, base) in enumerate(zip(evaluation.rows, base_rows, strict=True))
    ]


def _changes(comparison: Comparison | None) -> dict[int, Change]:
    if comparison is None:
        return {}
    changes = comparison.changes
    named: tuple[tuple[Change, tuple[int, ...]], ...] = (
        ("fixed", changes.fixed),
        ("broken", changes.broken),
        ("kept right", changes.kept_right),
        ("kept wrong", changes.kept_wrong),
    )
    return {place: name for name, places in named for place in places}


def _said(row: ScoredAnswer) -> dict[str, Any]:
    return {
        "answer": row.prediction,
        "scores": dict(row.scores),
        "stopped": None if row.choices else row.stopped,
        "tokens": row.tokens,
        "looping": row.looping,
        "reference_nats": _finite(row.reference_nats),
        "reference_tokens": row.reference_tokens,
        "choice_nats": [_finite(nats) for nats in row.choice_nats] or None,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
