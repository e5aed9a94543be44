"""Number words, digits and dates in one written form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_lora.evaluation.numbers import normalize_numbers

UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def in_words(number: int, joined_by: str = " ") -> str:
    """English words of 0 … 999,999,999, written apart from the program's own tables."""
    for scale, name in ((1_000_000, "million"), (1_000, "thousand"), (100, "hundred")):
        if number >= scale:
            rest = number % scale
            return f"{in_words(number // scale)} {name}" + (f"{joined_by}{in_words(rest)}" if rest else "")
    if number < 20:
        return UNITS[number]
    return TENS[number // 10] + (f"-{UNITS[number % 10]}" if number % 10 else "")


@given(st.integers(0, 999_999_999), st.sampled_from([" ", " and "]))
def test_a_number_in_words_is_that_number(number: int, joined_by: str) -> None:
    assert normalize_numbers(in_words(number, joined_by)) == str(number)
    assert normalize_numbers(f"exactly {in_words(number, joined_by).upper()} times") == f"exactly {number} times"


@given(st.integers(0, 10**12))
def test_thousands_separators_do_not_matter(number: int) -> None:
    assert normalize_numbers(f"{number:,}") == str(number)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("nineteen ninety-eight", "1998"),
        ("twenty twenty-three", "2023"),
        ("two and three", "2 and 3"),
        ("four to two", "4 to 2"),
        ("4–2", "4 to 2"),
        ("4 - 2", "4 to 2"),
        ("one two", "1 2"),
        ("a hundred", "a 100"),
        ("Twenty-first", "21"),
        ("the 3rd and the fourth", "the 3 and the 4"),
        ("2.50", "2dot5"),
        ("3.0", "3"),
        ("in 1994.", "in 1994."),
        ("version 1.2.3", "version 1.2.3"),
        ("someone often", "someone often"),  # number words are whole words
    ],
)
def test_what_has_one_reading_gets_one_form(text: str, normal: str) -> None:
    assert normalize_numbers(text) == normal


@pytest.mark.parametrize(
    "text",
    [
        "June 15, 2023",
        "june 15 2023",
        "Jun. 15th, 2023",
        "15 June 2023",
        "the 15th of June, 2023",
        "2023-06-15",
        "2023/6/15",
    ],
)
def test_a_date_has_one_form_however_written(text: str) -> None:
    assert normalize_numbers(text).removeprefix("the ") == "20230615"


@pytest.mark.parametrize("text", ["06/07/2023", "february 30, 2020", "may 2020", "15 smarch 2020"])
def test_what_is_no_date_or_two_dates_is_left(text: str) -> None:
    assert normalize_numbers(text) == text


@given(st.text())
def test_no_text_is_too_odd(text: str) -> None:
    assert isinstance(normalize_numbers(text), str)
