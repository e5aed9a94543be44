"""SQuAD's normalization and scores, with the values of the official script."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_lora.evaluation.answers import contains_answer, exact_match, normalize_answer, score_answer, token_f1


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The New York Rangers.", "new york rangers"),
        ("  an   apple,  a pear ", "apple pear"),
        ("4-2", "42"),
        ("4–2", "42"),  # Unicode punctuation goes the way of ASCII's
        ("4‒2", "42"),
        ("4−2", "42"),  # the sign that Unicode calls a symbol, and people type for a dash
        ("“St. Louis Blues”", "st louis blues"),
        ("Theatre", "theatre"),  # an article is a whole word
        ("Montréal Canadiens", "montréal canadiens"),
        ("the", ""),
        ("", ""),
    ],
)
def test_normalization_is_squads(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


@given(st.text())
def test_normalizing_twice_changes_nothing_more(text: str) -> None:
    once = normalize_answer(text)
    assert normalize_answer(once) == once


@given(st.text(min_size=1))
def test_an_answer_always_matches_itself(text: str) -> None:
    if text.strip():
        assert score_answer(text, [text]) == {"exact_match": True, "contains": True, "token_f1": 1.0}


def test_any_accepted_answer_will_do() -> None:
    accepted = ["New York Rangers", "Rangers", "NY Rangers"]
    assert exact_match("the rangers!", accepted)
    assert not exact_match("New Jersey", accepted)
    assert not exact_match("The New York Rangers won.", accepted)
    assert contains_answer("The New York Rangers won.", accepted)


def test_contains_wants_whole_words() -> None:
    assert contains_answer("It was in 1930.", ["1930"])
    assert not contains_answer("It was in 1930.", ["193"])
    assert not contains_answer("Strangers", ["Rangers"])
    assert not contains_answer("", ["Rangers"])


def test_an_answer_that_normalization_would_erase_is_compared_with_less_of_it() -> None:
    # By SQuAD's rules "A" becomes nothing, and every empty answer to a multiple choice would be right.
    assert exact_match("A", ["A"])
    assert exact_match("a.", ["A"])
    assert not exact_match("", ["A"])
    assert not exact_match("B", ["A"])
    assert not exact_match("the", ["A"])
    assert exact_match("+", ["+"])
    assert not exact_match("-", ["+"])


def test_token_f1_is_the_best_over_the_accepted_answers() -> None:
    assert token_f1("the Rangers of New York", ["New York Rangers"]) == pytest.approx(2 * 3 / (4 + 3))
    assert token_f1("the Rangers of New York", ["Bruins", "Rangers"]) == pytest.approx(2 * 1 / (4 + 1))
    assert token_f1("red red", ["red blue"]) == pytest.approx(0.5)
    assert token_f1("green", ["red blue"]) == 0.0
    assert token_f1("", ["red"]) == 0.0
    assert token_f1("anything", []) == 0.0


@given(st.text(), st.lists(st.text(min_size=1), min_size=1, max_size=3))
def test_scores_agree_with_one_another(prediction: str, answers: list[str]) -> None:
    scores = score_answer(prediction, answers)
    assert 0.0 <= scores["token_f1"] <= 1.0
    if scores["exact_match"]:
        assert scores["token_f1"] == 1.0


def test_numbers_are_alike_only_when_asked() -> None:
    assert not exact_match("Four games to two", ["4 games to 2"])
    assert exact_match("Four games to two", ["4 games to 2"], numbers=True)
    assert exact_match("It was 42", ["It was 4-2"])
    assert not exact_match("It was 42", ["It was 4-2"], numbers=True)
    assert exact_match("June 15th, 2023", ["2023-06-15"], numbers=True)
    assert contains_answer("They won it on 15 June 2023 at home", ["June 15, 2023"], numbers=True)
