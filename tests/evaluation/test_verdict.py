"""The one sentence that says whether it learned."""

import math

import pytest

from mlx_lora.evaluation.verdict import compare, percent, show_perplexity
from tests.evaluation.rows import row, rows


def test_a_clear_gain_is_called_learned() -> None:
    comparison = compare(rows(1, 69), rows(68, 2, nats=0.1), "exact_match")
    assert comparison.kind == "learned"
    assert comparison.sentence == "the adapter answers 68 of 70 (97 %), the base 1 of 70 (1 %): it learned"
    assert (len(comparison.changes.fixed), len(comparison.changes.broken)) == (67, 0)


def test_five_fixed_of_seventy_is_not_more_than_chance_but_six_are() -> None:
    assert compare(rows(0, 70), rows(5, 65, nats=1.9), "exact_match").kind == "no difference"
    comparison = compare(rows(0, 70), rows(6, 64, nats=1.9), "exact_match")
    assert (comparison.kind, comparison.p) == ("learned", 0.03125)


def test_few_questions_are_said_to_be_too_few() -> None:
    comparison = compare(rows(0, 4), rows(4, 0, nats=0.1), "exact_match")
    assert comparison.kind == "no difference"
    assert comparison.sentence.endswith(
        "no difference that chance would not explain; 4 questions are too few to show one"
    )


def test_a_run_that_taught_nothing_is_called_so() -> None:
    # A learning rate of 0: the same words with the same likelihood.
    comparison = compare(rows(1, 69), rows(1, 69), "exact_match")
    assert comparison.kind == "taught nothing"
    assert comparison.sentence == (
        "the adapter answers 1 of 70 (1 %), the base 1 of 70 (1 %): "
        "every answer is the base's own, the adapter taught nothing"
    )


def test_the_same_words_with_another_likelihood_are_not_nothing() -> None:
    assert compare(rows(1, 69), rows(1, 69, nats=1.9), "exact_match").kind == "no difference"


@pytest.mark.parametrize("nats", [40.0, math.inf, math.nan])
def test_a_run_that_broke_the_model_is_called_so_although_the_base_knew_nothing_either(nats: float) -> None:
    # A learning rate of 1: 1 of 70 against 0 of 70 says nothing, the likelihood of the right answers says all.
    broken = [row("gibberish", question=f"question {place}?", nats=nats) for place in range(70)]
    comparison = compare(rows(1, 69), broken, "exact_match")
    assert comparison.kind == "broken"
    assert "the adapter broke the model (perplexity of the right answers " in comparison.sentence


def test_a_loss_of_right_answers_is_called_worse() -> None:
    comparison = compare(rows(50, 20), rows(20, 50, nats=2.5), "exact_match")
    assert comparison.kind == "worse"
    assert comparison.sentence.endswith("worse than the base")
    assert len(comparison.changes.broken) == 30


def test_an_adapter_that_learned_is_not_broken_for_being_surprised_by_references() -> None:
    assert compare(rows(1, 69), rows(68, 2, nats=50.0), "exact_match").kind == "learned"


def test_token_f1_is_compared_by_its_own_ups_and_downs() -> None:
    base = [row("wrong answer", question=f"{place}?") for place in range(10)]
    adapter = [row("right answer", question=f"{place}?", nats=1.0) for place in range(10)]
    comparison = compare(base, adapter, "token_f1")
    assert (comparison.kind, comparison.p) == ("learned", 2 / 2**10)
    assert comparison.sentence == (
        "the adapter answers 0.67 token F1 on 10 questions, the base 0.00 token F1 on 10 questions: it learned"
    )
    assert comparison.changes.fixed == ()


def test_answers_to_other_questions_cannot_be_compared() -> None:
    with pytest.raises(ValueError):
        compare(rows(1, 0), [row(question="another?")], "exact_match")


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (1.0, "100 %"), (0.97, "97 %"), (0.999, "99.9 %"), (0.0004, "0.1 %"), (0.9999, "99.9 %")],
)
def test_rounding_never_claims_all_or_none(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.234, "1.23"), (41.0, "41"), (1226.4, "1,226"), (3.2e5, "3.2e+05"), (math.inf, "infinite")]
)
def test_perplexities_are_readable(value: float, text: str) -> None:
    assert show_perplexity(value) == text
