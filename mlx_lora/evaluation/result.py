"""One evaluation as JSON: the figures, the comparison, and what is needed to repeat it. Knows nothing of screens."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from mlx_lora.evaluation.metrics import Metric, Metrics, ScoredAnswer, by_category, by_fact, summarize
from mlx_lora.evaluation.verdict import Comparison, compare

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Evaluation:
    """The answers of one model, base or adapter, to one data set, with the base's beside them where it was asked."""

    label: str  # "adapters/stanley-cup", or "base"
    data: Mapping[str, Any]  # name, source, sha256, rows, asked
    rows: Sequence[ScoredAnswer]
    base_rows: Sequence[ScoredAnswer] | None
    metric: Metric
    seconds: float  # to answer and score `rows`

    @property
    def metrics(self) -> Metrics:
        """The figures over all rows."""
        return summarize(self.rows)

    @property
    def comparison(self) -> Comparison | None:
        """Against the base, where it was asked."""
        return None if self.base_rows is None else compare(self.base_rows, self.rows, self.metric)


def as_json(evaluation: Evaluation, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object of one evaluation; `settings` are how it was asked and of what."""
    rows, base_rows = evaluation.rows, evaluation.base_rows
    comparison = evaluation.comparison
    return {
        "format_version": FORMAT_VERSION,
        "label": evaluation.label,
        "data": dict(evaluation.data),
        "metric": evaluation.metric,
        **_figures(evaluation.metrics),
        "base": _figures(summarize(base_rows)) if base_rows is not None else None,
        "verdict": {"kind": comparison.kind, "sentence": comparison.sentence} if comparison else None,
        "mcnemar": _mcnemar(comparison, rows) if comparison else None,
        "per_category": _groups(by_category(rows), by_category(base_rows) if base_rows is not None else None),
        "per_fact": _facts(by_fact(rows), by_fact(base_rows) if base_rows is not None else None),
        "settings": dict(settings),
        "seconds": round(evaluation.seconds, 3),
        "versions": {name: metadata.version(name) for name in ("mlx-lora", "mlx", "mlx-lm", "transformers")},
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "python": platform.python_version(),
        },
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def prediction_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One JSON object a question, for the predictions file."""
    base_rows: Sequence[ScoredAnswer | None] = evaluation.base_rows or [None] * len(evaluation.rows)
    return [
        {
            "question": row.question,
            "answers": list(row.answers),
            "category": row.category,
            "fact": row.fact,
            "place": row.place,
            **_prediction(row),
            "base": None if base is None else _prediction(base),
        }
        for row, base in zip(evaluation.rows, base_rows, strict=True)
    ]


def _prediction(row: ScoredAnswer) -> dict[str, Any]:
    nats = row.reference_nats
    return {
        "prediction": row.prediction,
        "exact_match": row.score.exact_match,
        "contains": row.score.contains,
        "token_f1": row.score.token_f1,
        "stopped": row.stopped,
        "tokens": row.tokens,
        "reference_nats": nats if nats == nats and abs(nats) != float("inf") else None,
        "reference_tokens": row.reference_tokens,
    }


def _figures(metrics: Metrics) -> dict[str, Any]:
    return {
        **metrics.as_json(),
        "interval": {"exact_match": metrics.interval("exact_match"), "contains": metrics.interval("contains")},
    }


def _mcnemar(comparison: Comparison, rows: Sequence[ScoredAnswer]) -> dict[str, Any]:
    changes = comparison.changes
    return {
        "p": changes.p,
        "fixed": len(changes.fixed),
        "broken": len(changes.broken),
        "kept_right": len(changes.kept_right),
        "kept_wrong": len(changes.kept_wrong),
        "broken_questions": [rows[place].question for place in changes.broken],
    }


def _groups(own: Mapping[str, Metrics], base: Mapping[str, Metrics] | None) -> dict[str, Any]:
    return {
        name: {**_figures(metrics), "base": None if base is None else _figures(base[name])}
        for name, metrics in own.items()
    }


def _facts(own: Mapping[str, Metrics], base: Mapping[str, Metrics] | None) -> dict[str, Any]:
    return {
        name: {
            "count": metrics.count,
            "exact_match": metrics.exact_match,
            "base": None if base is None else base[name].exact_match,
        }
        for name, metrics in own.items()
    }
