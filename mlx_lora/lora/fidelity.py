"""Whether a fused model still answers as base plus adapter did. Knows nothing of weights, files or prompts' origin.

The yardstick is the fine-tune itself: a fused model passes when its distance from the adapter is small beside the
distance that the adapter went from the base. A fixed limit would pass a lost fine-tune whose effect is small, and
refuse a good fusion of a large one.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

LARGEST_KL_SHARE = 0.05  # of KL(adapter‖base): nineteen twentieths of the fine-tune's effect stay
SMALLEST_AGREEMENT = 0.99  # share of the adapter's decided tokens that stay
DECIDED_GAP = 0.1  # nats between its two likeliest tokens: below, any rounding may swap them, and only the KL judges
UNSEEN_KL = 1e-6  # nats a position: below it the computation's own rounding is measured
LARGEST_UPDATE_ERROR = 0.05  # where the answers show no effect, the weights decide: 0.95 to 1.05 of ΔW kept


@dataclass(frozen=True)
class Row:
    """A prompt with the adapter's own greedy answer after it; only the answer's positions are compared."""

    tokens: tuple[int, ...]
    prompt_length: int


@dataclass(frozen=True)
class Distance:
    """How far one model's answers are from the adapter's, over all compared positions.

    agreement: share of positions with the same likeliest token; decided_agreement: of those where the adapter was
    decided. kl: mean KL(adapter‖other), in nats a position. largest_logit_difference: over all positions and tokens.
    same_answers: rows, of `answers`, with the same likeliest token at every position.
    """

    positions: int
    agreement: float
    decided_agreement: float
    kl: float
    largest_logit_difference: float
    answers: int = 0
    same_answers: int = 0

    def as_json(self) -> dict[str, Any]:
        """The fields by name, null for what is not finite: JSON has no infinity."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


def answer_logits(model: nn.Module, rows: Sequence[Row]) -> Iterator[mx.array]:
    """Yield the logits at each row's answer positions, (T_answer, V) float32: one row in memory at a time."""
    for row in rows:
        logits = model(mx.array([row.tokens[:-1]]))[0, row.prompt_length - 1 :].astype(mx.float32)
        mx.eval(logits)
        yield logits


def measure_distance(adapter: Iterable[mx.array], other: Iterable[mx.array]) -> Distance:
    """The distance of `other`'s logits from the adapter's, both as answer_logits gives them."""
    positions = same = decided = decided_same = answers = same_answers = 0
    kl = largest = 0.0
    for expected, found in zip(adapter, other, strict=True):
        wanted, given = (logits - mx.logsumexp(logits, axis=-1, keepdims=True) for logits in (expected, found))
        equal = mx.argmax(expected, axis=-1) == mx.argmax(found, axis=-1)
        two_best = mx.topk(expected, 2, axis=-1)
        sure = mx.abs(two_best[:, 1] - two_best[:, 0]) >= DECIDED_GAP
        positions += expected.shape[0]
        same += int(mx.sum(equal))
        answers += 1
        same_answers += bool(mx.all(equal).item())
        decided += int(mx.sum(sure))
        decided_same += int(mx.sum(sure & equal))
        kl += float(mx.sum(mx.exp(wanted) * (wanted - given)))
        largest = max(largest, float(mx.abs(expected - found).max()))
    kl = max(kl, 0.0) if math.isfinite(kl) else math.inf  # a sum of roundings may fall below zero
    sure_share = decided_same / decided if decided else 1.0
    return Distance(positions, same / positions, sure_share, kl / positions, largest, answers, same_answers)


def explain_loss(fused: Distance, base: Distance, update_kept: float) -> str | None:
    """Why the fine-tune counts as lost; None when the fused model passes.

    base: the base's distance from the adapter: the fine-tune's effect. update_kept: share of ΔW left in the weights.
    """
    if not math.isfinite(fused.kl):
        return "its logits are not finite"
    if fused.decided_agreement < SMALLEST_AGREEMENT:
        kept = f"{fused.decided_agreement:.2%} of the tokens that the adapter was sure of"
        return f"keeps {kept}, {SMALLEST_AGREEMENT:.0%} needed"
    if base.kl <= UNSEEN_KL:  # the adapter does not show on these prompts
        if abs(update_kept - 1) > LARGEST_UPDATE_ERROR:
            return f"{update_kept:.0%} of the update is left in the weights, and the prompts do not show it"
        return None
    if fused.kl > LARGEST_KL_SHARE * base.kl and fused.kl > UNSEEN_KL:
        return f"its KL is {fused.kl / base.kl:.1%} of the base's, {LARGEST_KL_SHARE:.0%} allowed"
    return None
