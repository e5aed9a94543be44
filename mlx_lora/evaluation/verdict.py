"""Base against adapter in one plain sentence. Knows nothing of models, files or screens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mlx_lora.evaluation.metrics import Metric, Metrics, ScoredAnswer, summarize
from mlx_lora.evaluation.statistics import Changes, compare_right, sign_test

Kind = Literal["learned", "no difference", "worse", "broken", "taught nothing"]

ALPHA = 0.05
_BROKEN_FACTOR = 10.0  # times the base's perplexity of the right answers
_SAME_NATS = 1e-4  # a token; below rounding of any change that a trained adapter makes


@dataclass(frozen=True)
class Comparison:
    """An adapter's answers beside the base's to the same questions."""

    base: Metrics
    adapter: Metrics
    changes: Changes
    p: float  # two-sided, exact: McNemar's for right or wrong, the sign test for token F1
    kind: Kind
    sentence: str


def compare(base_rows: Sequence[ScoredAnswer], adapter_rows: Sequence[ScoredAnswer], metric: Metric) -> Comparison:
    """What the adapter changed. Raises: ValueError when the rows are not those of the same questions."""
    if [row.question for row in base_rows] != [row.question for row in adapter_rows]:
        raise ValueError("the answers are to other questions")
    base, adapter = summarize(base_rows), summarize(adapter_rows)
    changes = compare_right([row.right(metric) for row in base_rows], [row.right(metric) for row in adapter_rows])
    wins, losses = len(changes.fixed), len(changes.broken)
    if metric == "token_f1":
        pairs = [(one.score.token_f1, two.score.token_f1) for one, two in zip(base_rows, adapter_rows, strict=True)]
        wins, losses = sum(after > before for before, after in pairs), sum(after < before for before, after in pairs)
    p = sign_test(wins, losses)
    kind = _kind(base_rows, adapter_rows, wins, losses)
    return Comparison(base, adapter, changes, p, kind, _sentence(kind, base, adapter, metric, wins + losses))


def describe(metrics: Metrics, metric: Metric) -> str:
    """Such as "68 of 70 (97 %)", or "0.93 token F1"."""
    if metric == "token_f1":
        return f"{metrics.token_f1:.2f} token F1 on {metrics.count} questions"
    right = metrics.right(metric)
    return f"{right} of {metrics.count} ({percent(right / metrics.count)})"


def percent(share: float) -> str:
    """A share as "97 %"; one decimal where rounding would claim all or none."""
    whole = round(100 * share)
    if whole == 100 and share < 1:
        return f"{math.floor(1000 * share) / 10:.1f} %"
    if whole == 0 and share > 0:
        return f"{math.ceil(1000 * share) / 10:.1f} %"
    return f"{whole} %"


def show_perplexity(value: float) -> str:
    """Such as "1.2", "41" or "3.2e+05"; "infinite" where the model gives the right answers no chance."""
    if not math.isfinite(value):
        return "infinite"
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}" if value < 1e5 else f"{value:.1e}"


def _kind(base_rows: Sequence[ScoredAnswer], adapter_rows: Sequence[ScoredAnswer], wins: int, losses: int) -> Kind:
    base, adapter = summarize(base_rows), summarize(adapter_rows)
    if all(map(_same, base_rows, adapter_rows)):
        return "taught nothing"
    better = wins > losses and sign_test(wins, losses) < ALPHA
    if not better and _less_likely(base_rows, adapter_rows):
        infinite = math.isinf(adapter.perplexity) and math.isfinite(base.perplexity)
        if infinite or adapter.perplexity > _BROKEN_FACTOR * base.perplexity:
            return "broken"
    if sign_test(wins, losses) >= ALPHA:
        return "no difference"
    return "learned" if better else "worse"


def _same(one: ScoredAnswer, two: ScoredAnswer) -> bool:
    nats = abs(one.reference_nats - two.reference_nats) <= _SAME_NATS * one.reference_tokens
    return one.prediction == two.prediction and nats


def _less_likely(base_rows: Sequence[ScoredAnswer], adapter_rows: Sequence[ScoredAnswer]) -> bool:
    """Whether the adapter finds the right answers less likely than the base, more often than by chance."""
    pairs = [(one.reference_nats, two.reference_nats) for one, two in zip(base_rows, adapter_rows, strict=True)]
    worse = sum(after > before or math.isnan(after) for before, after in pairs)
    better = sum(after < before for before, after in pairs)
    return worse > better and (sign_test(better, worse) < ALPHA or len(pairs) < 6)


def _sentence(kind: Kind, base: Metrics, adapter: Metrics, metric: Metric, changed: int) -> str:
    scores = f"the adapter answers {describe(adapter, metric)}, the base {describe(base, metric)}"
    if kind == "taught nothing":
        return f"{scores}: every answer is the base's own, the adapter taught nothing"
    if kind == "broken":
        found = f"{show_perplexity(adapter.perplexity)} against {show_perplexity(base.perplexity)}"
        return f"{scores}: the adapter broke the model (perplexity of the right answers {found})"
    if kind == "learned":
        return f"{scores}: it learned"
    if kind == "worse":
        return f"{scores}: worse than the base"
    few = f"; {adapter.count} questions are too few to show one" if adapter.count < 6 else ""
    return f"{scores}: no difference that chance would not explain{few}"
