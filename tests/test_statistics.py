"""Intervals and paired tests against published and independently computed values."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_lora.statistics import compare_right, sign_test, wilson_interval


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [
        # scipy.stats.binomtest(k, n).proportion_ci(method="wilson") of scipy 1.17.1
        (0, 10, 0.0, 0.27753279986288926),
        (1, 10, 0.017876213095072896, 0.4041500267952385),
        (5, 10, 0.236593090512564, 0.7634069094874361),
        (68, 70, 0.9016774388157609, 0.9921293880545587),
        (139, 150, 0.8734642066329596, 0.9585611848396149),
        (10, 10, 0.7224672001371109, 1.0),
    ],
)
def test_wilson_intervals_are_those_of_scipy(successes: int, count: int, low: float, high: float) -> None:
    assert wilson_interval(successes, count) == pytest.approx((low, high), abs=1e-12)


@given(st.integers(1, 5000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_an_interval_holds_its_share_and_mirrors(case: tuple[int, int]) -> None:
    successes, count = case
    low, high = wilson_interval(successes, count)
    assert 0 <= low <= successes / count <= high <= 1
    mirrored = wilson_interval(count - successes, count)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@given(st.integers(0, 50), st.integers(1, 50))
def test_the_bounds_solve_wilsons_equation(successes: int, extra: int) -> None:
    # At a bound b the observed share lies 1.96 standard errors of b away.
    count = successes + extra
    for bound in wilson_interval(successes, count):
        if 0 < bound < 1:
            distance = abs(successes / count - bound) / math.sqrt(bound * (1 - bound) / count)
            assert distance == pytest.approx(1.959963984540054, rel=1e-6)


def test_nothing_counted_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError):
        wilson_interval(3, 2)


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [
        # scipy.stats.binomtest(wins, wins + losses).pvalue of scipy 1.17.1
        (5, 0, 0.0625),
        (6, 0, 0.03125),
        (3, 3, 1.0),
        (10, 2, 0.03857421875),
        (1, 8, 0.0390625),
        (67, 0, 1.3552527156068805e-20),
        (30, 13, 0.0137181850586785),
    ],
)
def test_the_exact_test_has_the_values_of_scipy(wins: int, losses: int, p: float) -> None:
    assert sign_test(wins, losses) == pytest.approx(p, rel=1e-12)
    assert sign_test(losses, wins) == pytest.approx(p, rel=1e-12)


def test_without_any_change_the_exact_test_says_one() -> None:
    assert sign_test(0, 0) == 1.0


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_exact_test_sums_the_outcomes_that_are_no_likelier(wins: int, losses: int) -> None:
    count = wins + losses
    chances = [Fraction(math.comb(count, k), 2**count) for k in range(count + 1)]
    expected = sum(chance for chance in chances if chance <= chances[wins])
    assert sign_test(wins, losses) == pytest.approx(float(expected), rel=1e-12)


def test_thousands_of_changes_do_not_overflow() -> None:
    assert sign_test(3000, 0) == pytest.approx(0.0, abs=1e-300)
    assert 0.9 < sign_test(5000, 5001) <= 1.0
    with pytest.raises(ValueError):
        sign_test(-1, 3)


def test_every_question_falls_into_one_of_four_places() -> None:
    before = [True, True, False, False, True]
    after = [True, False, True, False, True]
    changes = compare_right(before, after)
    assert (changes.kept_right, changes.broken, changes.fixed, changes.kept_wrong) == ((0, 4), (1,), (2,), (3,))
    assert changes.p == 1.0
    with pytest.raises(ValueError):
        compare_right([True], [])


@given(st.lists(st.tuples(st.booleans(), st.booleans())))
def test_the_matrix_accounts_for_every_question(pairs: list[tuple[bool, bool]]) -> None:
    changes = compare_right([one for one, _ in pairs], [two for _, two in pairs])
    places = changes.fixed + changes.broken + changes.kept_right + changes.kept_wrong
    assert sorted(places) == list(range(len(pairs)))
