"""Figures over a data set, by category and by fact."""

import math

import pytest

from mlx_lora.evaluation.metrics import by_category, by_fact, perplexity, summarize
from tests.evaluation.rows import row


def test_the_figures_of_four_answers() -> None:
    answers = [
        row("right", nats=1.0, tokens=2),
        row("the right one", nats=2.0, tokens=1),
        row("wrong", stopped=False, nats=3.0, tokens=3),
        row("", nats=0.0, tokens=2),
    ]
    metrics = summarize(answers)
    assert (metrics.count, metrics.exact_match, metrics.contains, metrics.stop_rate) == (4, 0.25, 0.5, 0.75)
    assert metrics.token_f1 == pytest.approx((1 + 2 / 3 + 0 + 0) / 4)
    # Over tokens, not a mean over answers: 6 nats in 8 tokens.
    assert metrics.perplexity == pytest.approx(math.exp(6 / 8))
    assert (metrics.right("exact_match"), metrics.right("contains")) == (1, 2)
    low, high = metrics.interval("contains") or (0, 0)
    assert low < 0.5 < high
    assert metrics.interval("token_f1") is None


def test_groups_keep_the_order_of_the_data_and_leave_the_unnamed_out() -> None:
    answers = [row(category="b", fact="1"), row("wrong", category="a", fact="2"), row(category="b", fact="2"), row()]
    groups = by_category(answers)
    assert list(groups) == ["b", "a"]
    assert (groups["b"].count, groups["b"].exact_match, groups["a"].exact_match) == (2, 1.0, 0.0)
    assert {name: metrics.exact_match for name, metrics in by_fact(answers).items()} == {"1": 1.0, "2": 0.5}


def test_a_hopeless_model_has_infinite_perplexity() -> None:
    assert perplexity(1e5) == math.inf
    assert perplexity(math.nan) == math.inf
    assert perplexity(0.0) == 1.0
    metrics = summarize([row(nats=math.nan), row()])
    assert (metrics.perplexity, metrics.non_finite) == (math.inf, 1)


def test_no_answers_have_no_figures() -> None:
    with pytest.raises(ValueError):
        summarize([])
