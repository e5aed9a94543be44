"""Intervals and paired tests on counts, exact and in the standard library. Knows nothing of answers or models."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_Z95 = 1.959963984540054  # standard normal quantile of 0.975


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share: (low, high) in 0…1; (0, 1) when nothing was counted.

    Source: Wilson 1927; Brown, Cai and DasGupta 2001, doi 10.1214/ss/1009213286, equation 4.
    """
    if not 0 <= successes <= count:
        raise ValueError(f"{successes} of {count}")
    if count == 0:
        return 0.0, 1.0
    share, spread = successes / count, _Z95**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    # At the ends the formula gives 0 and 1 only to rounding.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == count else centre + half
    return low, high


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p of so unequal counts if both were equally likely, by the exact binomial; 1 without any.

    McNemar's exact test is this of the fixed and the broken. Source: McNemar 1947, doi 10.1007/BF02295996.
    """
    if wins < 0 or losses < 0:
        raise ValueError(f"{wins} wins, {losses} losses")
    count = wins + losses
    tail = outcomes = 1  # outcomes: count over k, in whole numbers
    for k in range(min(wins, losses)):
        outcomes = outcomes * (count - k) // (k + 1)
        tail += outcomes
    return min(1.0, 2 * tail / (1 << count))


@dataclass(frozen=True)
class Changes:
    """What became of each question between base and adapter; each a tuple of places in the data set, in order."""

    fixed: tuple[int, ...]  # wrong before, right now
    broken: tuple[int, ...]  # right before, wrong now
    kept_right: tuple[int, ...]
    kept_wrong: tuple[int, ...]

    @property
    def p(self) -> float:
        """Two-sided p of McNemar's exact test: the chance of such a difference if the adapter made none."""
        return sign_test(len(self.fixed), len(self.broken))


def compare_right(before: Sequence[bool], after: Sequence[bool]) -> Changes:
    """Sort the questions by whether they were answered right before and after. Raises: ValueError for other lengths."""
    pairs = list(zip(before, after, strict=True))

    def places(was: bool, now: bool) -> tuple[int, ...]:
        return tuple(place for place, pair in enumerate(pairs) if pair == (was, now))

    return Changes(places(False, True), places(True, False), places(True, True), places(False, False))
