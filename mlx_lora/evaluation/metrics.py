"""Scored answers to figures: over a data set, by category, by fact. Knows nothing of models, files or screens."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlx_lora.evaluation.answers import Score
from mlx_lora.evaluation.statistics import wilson_interval

Metric = Literal["exact_match", "contains", "token_f1"]
METRICS: tuple[Metric, ...] = ("exact_match", "contains", "token_f1")


@dataclass(frozen=True)
class ScoredAnswer:
    """One question with its answer and scores."""

    question: str
    answers: tuple[str, ...]  # accepted, the canonical one first
    category: str | None
    fact: str | None
    place: str  # "data/test.jsonl:17"
    prediction: str
    score: Score
    stopped: bool  # ended by itself, not by max_tokens
    tokens: int  # of the prediction
    reference_nats: float  # negative log-likelihood of the canonical answer with its end token
    reference_tokens: int

    def right(self, metric: Metric) -> bool:
        """Whether it counts as right; token F1 has no such notion of its own and takes exact match."""
        return self.score.contains if metric == "contains" else self.score.exact_match


@dataclass(frozen=True)
class Metrics:
    """Figures of a set of answers; shares are 0 to 1."""

    count: int
    exact_match: float
    contains: float
    token_f1: float
    stop_rate: float
    perplexity: float  # of the canonical answers, a token; inf where the model gives one no chance or NaN

    def interval(self, metric: Metric) -> tuple[float, float] | None:
        """The 95 % Wilson interval of a share; None for token F1, which is a mean of fractions."""
        if metric == "token_f1":
            return None
        return wilson_interval(self.right(metric), self.count)

    def right(self, metric: Metric) -> int:
        """How many are right; see ScoredAnswer.right."""
        return round(self.count * (self.contains if metric == "contains" else self.exact_match))

    def as_json(self) -> dict[str, Any]:
        """The figures for a JSON file; an infinite perplexity is null."""
        return {
            "count": self.count,
            "exact_match": self.exact_match,
            "contains": self.contains,
            "token_f1": self.token_f1,
            "stop_rate": self.stop_rate,
            "perplexity": self.perplexity if math.isfinite(self.perplexity) else None,
        }


def summarize(rows: Sequence[ScoredAnswer]) -> Metrics:
    """The figures over all of `rows`. Raises: ValueError when there are none."""
    if not rows:
        raise ValueError("nothing to summarize")

    def mean(value: Callable[[ScoredAnswer], float]) -> float:
        return sum(map(value, rows)) / len(rows)

    return Metrics(
        count=len(rows),
        exact_match=mean(lambda row: row.score.exact_match),
        contains=mean(lambda row: row.score.contains),
        token_f1=mean(lambda row: row.score.token_f1),
        stop_rate=mean(lambda row: row.stopped),
        perplexity=perplexity(sum(row.reference_nats for row in rows), sum(row.reference_tokens for row in rows)),
    )


def by_category(rows: Sequence[ScoredAnswer]) -> dict[str, Metrics]:
    """The figures of each category, in the order of the data; rows without one are left out."""
    return _grouped(rows, lambda row: row.category)


def by_fact(rows: Sequence[ScoredAnswer]) -> dict[str, Metrics]:
    """The figures of each fact over its question forms, in the order of the data; rows without one are left out."""
    return _grouped(rows, lambda row: row.fact)


def perplexity(nats: float, tokens: int) -> float:
    """exp of the mean negative log-likelihood of a token; inf where it is NaN or beyond floating point."""
    mean = nats / tokens
    return math.exp(mean) if mean < 700 else math.inf


def _grouped(rows: Sequence[ScoredAnswer], key: Callable[[ScoredAnswer], str | None]) -> dict[str, Metrics]:
    groups: dict[str, list[ScoredAnswer]] = {}
    for row in rows:
        name = key(row)
        if name is not None:
            groups.setdefault(name, []).append(row)
    return {name: summarize(members) for name, members in groups.items()}
