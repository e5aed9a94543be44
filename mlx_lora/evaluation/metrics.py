"""Scored answers to figures: over a data set, by category, by fact. Knows nothing of models, files or screens."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlx_lora.evaluation.result_format import DataKind
from mlx_lora.statistics import wilson_interval

if TYPE_CHECKING:
    from mlx_lora.model.generate import Answer

Metric = str  # one of METRICS, or the name of a plug-in's
OPEN_METRICS: tuple[Metric, ...] = ("exact_match", "contains", "token_f1")
CHOICE_METRICS: tuple[Metric, ...] = ("accuracy", "accuracy_norm")
METRICS = OPEN_METRICS + CHOICE_METRICS
_SHARES = frozenset(METRICS) - {"token_f1"}  # right or wrong; all others are fractions


@dataclass(frozen=True)
class ScoredAnswer:
    """One question with its answer and scores."""

    question: str
    answers: tuple[str, ...]  # accepted, the canonical one first
    category: str | None
    fact: str | None
    place: str  # "data/test.jsonl:17"
    prediction: str  # of a multiple-choice row: the likeliest choice
    scores: Mapping[Metric, float]  # metric -> bool where it is right or wrong, else 0 to 1
    stopped: bool  # ended by itself, not by max_tokens
    tokens: int  # of the prediction; 0 where a choice was picked
    reference_nats: float  # -ln p of the canonical answer: with its end token, as a choice without
    reference_tokens: int
    looping: bool = False  # repeats itself until max_tokens
    choices: tuple[str, ...] = ()
    choice_nats: tuple[float, ...] = ()  # -ln p of each choice
    # As it was written, with the likeliest tokens at each place, where these were asked for.
    written: "Answer | None" = field(default=None, compare=False, repr=False)

    def right(self, metric: Metric) -> bool:
        """Whether it counts as right; by a metric of fractions, whether it is entirely right."""
        return self.scores[metric] == 1


@dataclass(frozen=True)
class Metrics:
    """Figures of a set of answers; shares and means are 0 to 1."""

    count: int
    values: Mapping[Metric, float]  # of each metric that the answers were scored by
    stop_rate: float | None  # None where choices were picked
    nats_per_token: float  # of the canonical answers; may be NaN or infinite
    non_finite: int  # answers whose canonical one has no finite likelihood
    empty: int
    looping: int

    @property
    def exact_match(self) -> float:
        """Share of exact matches. Raises: KeyError where choices were picked."""
        return self.values["exact_match"]

    @property
    def contains(self) -> float:
        """Share of answers that hold an accepted one. Raises: KeyError where choices were picked."""
        return self.values["contains"]

    @property
    def token_f1(self) -> float:
        """Mean token F1. Raises: KeyError where choices were picked."""
        return self.values["token_f1"]

    @property
    def perplexity(self) -> float:
        """Of the canonical answers, a token; inf where the model gives one no chance or NaN."""
        return perplexity(self.nats_per_token)

    def interval(self, metric: Metric) -> tuple[float, float] | None:
        """The 95 % Wilson interval of a share; None for a mean of fractions."""
        return wilson_interval(self.right(metric), self.count) if is_share(metric) else None

    def right(self, metric: Metric) -> int:
        """How many are right by a share."""
        return round(self.count * self.values[metric])


def is_share(metric: Metric) -> bool:
    """Whether `metric` is right or wrong for each question, not a fraction."""
    return metric in _SHARES


def kind_of(rows: Sequence[ScoredAnswer]) -> DataKind:
    """Whether these answers were written or picked."""
    return "choice" if rows[0].choices else "open"


def summarize(rows: Sequence[ScoredAnswer]) -> Metrics:
    """The figures over all of `rows`. Raises: ValueError when there are none."""
    if not rows:
        raise ValueError("nothing to summarize")
    written = kind_of(rows) == "open"
    return Metrics(
        count=len(rows),
        values={metric: sum(row.scores[metric] for row in rows) / len(rows) for metric in rows[0].scores},
        stop_rate=sum(row.stopped for row in rows) / len(rows) if written else None,
        # Over tokens, not a mean over answers.
        nats_per_token=sum(row.reference_nats for row in rows) / sum(row.reference_tokens for row in rows),
        non_finite=sum(not math.isfinite(row.reference_nats) for row in rows),
        empty=sum(not row.prediction for row in rows),
        looping=sum(row.looping for row in rows),
    )


def by_category(rows: Sequence[ScoredAnswer]) -> dict[str, Metrics]:
    """The figures of each category, in the order of the data; rows without one are left out."""
    return _grouped(rows, lambda row: row.category)


def by_fact(rows: Sequence[ScoredAnswer]) -> dict[str, Metrics]:
    """The figures of each fact over its question forms, in the order of the data; rows without one are left out."""
    return _grouped(rows, lambda row: row.fact)


def perplexity(nats_per_token: float) -> float:
    """exp of the mean negative log-likelihood of a token; inf where it is NaN or beyond floating point."""
    return math.exp(nats_per_token) if nats_per_token < 700 else math.inf


def _grouped(rows: Sequence[ScoredAnswer], key: Callable[[ScoredAnswer], str | None]) -> dict[str, Metrics]:
    groups: dict[str, list[ScoredAnswer]] = {}
    for row in rows:
        name = key(row)
        if name is not None:
            groups.setdefault(name, []).append(row)
    return {name: summarize(members) for name, members in groups.items()}
