"""The one sentence that says whether it learned."""

import math

import pytest

from mlx_lora.evaluation.metrics import ScoredAnswer
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
        "token F1 0.67 against the base's 0.00, exact match 0 of 10 against the base's 0, contains 10 of 10 against "
        "the base's 0: it learned; token F1 and contains show the gain, exact match shows no difference"
    )
    assert comparison.changes.fixed == ()


def said(*answers: str, nats: float = 2.0) -> list[ScoredAnswer]:
    return [row(answer, question=f"question {place}?", nats=nats) for place, answer in enumerate(answers)]


def test_a_loss_that_exact_match_cannot_see_is_called_worse_and_contains_is_named() -> None:
    # The demo's adapter on general knowledge: 36 of 37 right sentences lost, and the verdict was "no difference".
    base = said(*["It is right."] * 37, *["It is left."] * 13)
    adapter = said("It is right.", *[f"team {place}" for place in range(49)], nats=3.0)
    comparison = compare(base, adapter, "exact_match")
    assert (comparison.kind, comparison.gained, comparison.lost) == ("worse", (), ("contains",))
    assert comparison.sentence == (
        "exact match 0 of 50 against the base's 0, contains 1 of 50 against the base's 37: worse than the base; "
        "contains shows the loss, exact match shows no difference"
    )
    assert (comparison.p, comparison.tests["contains"].p) == (1.0, 2 / 2**36)
    assert len(comparison.tests["contains"].changes.broken) == 36


def test_the_form_gained_and_the_knowledge_lost_is_called_both() -> None:
    base = said(*["It is right."] * 40, *["It is left."] * 10)
    comparison = compare(base, said(*["right"] * 20, *[f"team {place}" for place in range(30)], nats=1.0), "contains")
    assert (comparison.kind, comparison.gained, comparison.lost) == ("mixed", ("exact_match",), ("contains",))
    assert comparison.sentence.endswith(
        "better and worse than the base; exact match shows the gain, contains shows the loss"
    )


def test_metrics_that_saw_the_same_changes_are_one_test_and_others_share_the_level() -> None:
    # Six fixed by both metrics: p = 0.03 of one test. Six by one, seven by the other: 0.03 is over 0.05 / 2.
    assert compare(rows(0, 70), rows(6, 64, nats=1.9), "exact_match").gained == ("exact_match", "contains")
    seven = said(*["right"] * 6, "It is right.", *[f"team {place}" for place in range(63)], nats=1.9)
    assert compare(rows(0, 70), seven, "exact_match").gained == ("contains",)


def test_another_likelihood_and_not_one_other_answer_is_no_difference_and_says_so() -> None:
    comparison = compare(rows(1, 69), rows(1, 69, nats=1.9), "exact_match")
    assert "every answer is the base's own; no difference that chance would not explain" in comparison.sentence


@pytest.mark.parametrize("change", [0.0, 1e-6, 0.019])
def test_answers_that_are_the_bases_own_to_one_per_cent_of_likelihood_are_nothing(change: float) -> None:
    # A learning rate of 1e-9: not a bit equal, and nothing learned.
    assert compare(rows(1, 69), rows(1, 69, nats=2.0 - change), "exact_match").kind == "taught nothing"


@pytest.mark.parametrize(
    ("broken", "sign"),
    [
        ([row("", question=f"question {place}?") for place in range(70)], "70 of 70 answers are empty"),
        (
            [row(f"{place} la la la", question=f"question {place}?", looping=True) for place in range(70)],
            "70 of 70 answers never end and repeat themselves",
        ),
    ],
)
def test_answers_that_are_no_answers_are_called_broken_whatever_the_likelihood(
    broken: list[ScoredAnswer], sign: str
) -> None:
    comparison = compare(rows(1, 69), broken, "exact_match")
    assert comparison.kind == "broken"
    assert comparison.signs == (sign,)
    assert comparison.sentence.endswith(f"(perplexity of the right answers 2.72 against 2.72; {sign})")


def test_a_base_that_loops_just_as_much_was_not_broken_by_the_adapter() -> None:
    looping = [row("la la la", question=f"question {place}?", looping=True, nats=1.5) for place in range(70)]
    comparison = compare([*looping], [*looping[:-1], row("la", question="question 69?", nats=1.0)], "exact_match")
    assert comparison.kind == "no difference"
    assert "69 of 70 answers never end and repeat themselves" in comparison.sentence


def test_a_narrow_adapter_that_forgot_is_worse_and_not_broken_though_ten_times_as_surprised() -> None:
    adapter = said(*[f"team {place}" for place in range(70)], nats=9.0)
    assert compare(rows(50, 20), adapter, "exact_match").kind == "worse"


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


@pytest.mark.parametrize(
    ("nats", "told"),
    [
        (0.5, ", but the right answers are likelier: perplexity 1.28 against 2.72"),
        (6.0, ", but the right answers are less likely: perplexity 20.1 against 2.72"),
        (2.01, ""),  # less than a hundredth of a nat a token
    ],
)
def test_where_no_answer_is_right_the_likelihood_of_the_right_ones_is_told(nats: float, told: str) -> None:
    said = [row(f"something else {place}", question=f"question {place}?", nats=nats) for place in range(70)]
    comparison = compare(rows(0, 70), said, "exact_match")
    assert comparison.kind == "no difference"
    assert comparison.sentence.endswith(f"no difference that chance would not explain{told}")


def _facts(answers: dict[str, list[str]]) -> list[ScoredAnswer]:
    return [
        row(answer, question=f"{fact} {form}?", fact=fact)
        for fact, forms in answers.items()
        for form, answer in enumerate(forms)
    ]


@pytest.mark.parametrize(
    ("facts", "told"), [(5, ""), (6, "the right answers are likelier: perplexity 1.28 against 2.72")]
)
def test_likelihoods_count_a_fact_in_several_forms_once(facts: int, told: str) -> None:
    """Twenty questions that became likelier were told as more than chance, though they asked for five facts."""
    base = _facts({f"fact {n}": ["wrong"] * 4 for n in range(facts)})
    said = [row("still wrong", question=one.question, fact=one.fact, nats=0.5) for one in base]
    comparison = compare(base, said, "exact_match")
    assert comparison.kind == "no difference"
    assert comparison.sentence.endswith(
        "no difference that chance would not explain" + (f", but {told}" if told else "")
    )


def test_forms_of_a_fact_are_counted_as_one_trial_beside_the_test_of_the_questions() -> None:
    """Three facts in four forms each: twelve questions fixed are no chance, three facts may well be."""
    base = _facts({name: ["wrong"] * 4 for name in "abc"})
    found = compare(base, _facts({name: ["right"] * 4 for name in "abc"}), "exact_match")
    test = found.tests["exact_match"]
    assert (test.p, test.facts, test.p_by_fact) == (2 / 2**12, (3, 0), 0.25)
    assert found.kind == "learned"
    assert found.sentence.endswith("it learned (counted by fact, 3 better and 0 worse, chance might do as much)")


def test_a_fact_is_better_where_more_of_its_forms_are_right_and_rows_without_one_stand_for_themselves() -> None:
    base = [
        *_facts({"a": ["right", "wrong"], "b": ["right", "wrong"], "c": ["wrong"] * 3}),
        row("right", question="d?"),
    ]
    after = [*_facts({"a": ["wrong", "right"], "b": ["wrong"] * 2, "c": ["right"] * 3}), row("wrong", question="d?")]
    found = compare(base, after, "exact_match").tests["exact_match"]
    assert (found.facts, found.p_by_fact) == ((1, 2), 1.0)


def test_enough_facts_leave_a_sceptic_nothing_to_say_and_single_forms_no_second_test() -> None:
    names = "abcdefgh"
    taught = compare(
        _facts({name: ["wrong"] * 2 for name in names}), _facts({name: ["right"] * 2 for name in names}), "exact_match"
    )
    assert taught.sentence.endswith("it learned")
    assert taught.tests["token_f1"].facts == (8, 0)
    single = compare(
        _facts({name: ["wrong"] for name in names}), _facts({name: ["right"] for name in names}), "contains"
    )
    assert (single.tests["contains"].facts, single.tests["contains"].p_by_fact) == (None, None)


def test_a_metric_that_changed_nowhere_is_no_second_chance_of_a_false_alarm() -> None:
    """Answers in sentences: exact match has nothing to lose, so contains alone is the test, at the whole level."""
    before = [row("It is right." if place < 12 else "no", question=f"{place}?") for place in range(15)]
    after = [row("It is right." if place >= 12 else "no", question=f"{place}?") for place in range(15)]
    found = compare(before, after, "contains")
    assert (found.tests["exact_match"].higher, found.tests["exact_match"].lower) == (0, 0)
    assert 0.025 < found.p < 0.05
    assert (found.kind, found.lost) == ("worse", ("contains",))
