"""Signs that a model is broken: answers that are empty, endless or all the same, likelihoods that are no numbers.

Knows nothing of models, files or what a right answer is.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mlx_lora.evaluation.answers import normalize_answer
from mlx_lora.evaluation.metrics import ScoredAnswer, kind_of

_REPEATS = 3  # of one piece
_FEW = 6  # answers that may well be equal by chance
_WORTH_SAYING = 0.1  # share of the answers


@dataclass(frozen=True)
class Damage:
    """Which answers of a data set are no answers, and what there is to say of them."""

    damaged: tuple[bool, ...]
    signs: tuple[str, ...]


def is_looping(tokens: Sequence[int]) -> bool:
    """Whether pieces that stand three times over or more, six tokens or more of them, fill at least half of these."""
    count = len(tokens)
    repeated = [False] * count
    for period in range(1, count // _REPEATS + 1):
        equal = 0  # tokens in a row that are as the one a period before
        for place in range(period, count + 1):
            if place < count and tokens[place] == tokens[place - period]:
                equal += 1
                continue
            length = equal + period
            if length >= max(_REPEATS * period, 2 * _REPEATS):
                repeated[place - length : place] = [True] * length
            equal = 0
    return 0 < count <= 2 * sum(repeated)


def find_damage(rows: Sequence[ScoredAnswer]) -> Damage:
    """The damaged answers, and one sentence for each kind of damage that is more than a single slip."""
    count = len(rows)
    no_number = [not math.isfinite(row.reference_nats) for row in rows]
    empty = [not row.prediction for row in rows]
    looping = [row.looping for row in rows]
    same, text = _all_alike(rows)
    signs = []
    if any(no_number):
        signs.append(f"the likelihood of {sum(no_number)} of {count} right answers is no finite number")
    for flags, words in (
        (empty, "are empty"),
        (looping, "never end and repeat themselves"),
        (same, f'are one and the same: "{_short(text)}"'),
    ):
        if sum(flags) > 1 and sum(flags) >= _WORTH_SAYING * count:
            signs.append(f"{sum(flags)} of {count} answers {words}")
    return Damage(tuple(map(any, zip(no_number, empty, looping, same, strict=True))), tuple(signs))


def _all_alike(rows: Sequence[ScoredAnswer]) -> tuple[list[bool], str]:
    """Which answers are the one that more than half of all are, where less than a quarter ought to be alike."""
    said = [normalize_answer(row.prediction) for row in rows]
    wanted = Counter(normalize_answer(row.answers[0]) for row in rows)
    (common, often), *_ = Counter(said).most_common(1)
    alike = kind_of(rows) == "open" and bool(common) and len(rows) >= _FEW and 2 * often > len(rows)
    if not alike or 4 * max(wanted.values()) >= len(rows):
        return [False] * len(rows), ""
    first = next(row.prediction for row, text in zip(rows, said, strict=True) if text == common)
    return [text == common for text in said], first


def _short(text: str, length: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
