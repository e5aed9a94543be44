"""Number words, digits, signs and dates in one written form."""

from datetime import date

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


SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}


@given(st.integers(1, 10**9 - 1), st.integers(0, 6), st.sampled_from(list(SCALES)), st.sampled_from([" ", "-", "  "]))
def test_digits_before_a_scale_word_are_the_number_written_out(
    digits: int, decimals: int, scale: str, between: str
) -> None:
    """Reported by a review: `5 million` became `5 1000000`, which contained an accepted `1,000,000`."""
    written = f"{digits // 10**decimals}.{digits % 10**decimals:0{decimals}d}" if decimals else f"{digits:,}"
    zeros = SCALES[scale]
    whole, rest = divmod(digits * 10**zeros, 10**decimals)
    plain = f"{whole}.{rest:0{decimals}d}" if rest else f"{whole:,}"
    assert normalize_numbers(f"about {written}{between}{scale} people") == normalize_numbers(f"about {plain} people")


@given(st.integers(1, 999), st.sampled_from([name for name in SCALES if name != "hundred"]))
def test_a_count_in_digits_and_in_words_is_the_same_before_a_scale_word(count: int, scale: str) -> None:
    assert normalize_numbers(f"{count} {scale}") == normalize_numbers(f"{in_words(count)} {scale}")


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
        ("version 1.2.3", "version 1fullstop2fullstop3"),
        ("1/2", "1solidus2"),
        ("4:2 at 3:30", "4colon2 at 3colon30"),
        ("10^3", "10circumflexaccent3"),
        ("no one knows", "noone knows"),
        ("No-one of the two", "noone of the 2"),
        ("one another", "oneanother"),
        ("no, one goal", "no, 1 goal"),
        ("someone often", "someone often"),  # number words are whole words
        ("5 million", "5000000"),
        ("five million", "5000000"),
        ("5,000,000", "5000000"),
        ("3 million people", "3000000 people"),
        ("2.5 million", "2500000"),
        ("1.2 billion", "1200000000"),
        ("$1.20 trillion", "$1200000000000"),
        ("a 5-million-dollar deal", "a 5000000-dollar deal"),
        ("1.2345678 million", "1234567dot8"),
        ("4,5 million", "4comma5 million"),  # and so is what is no English number
        ("5 million 200 thousand", "5200000"),
        ("2 hundred and five", "205"),
        ("10 thousandth", "10000"),
        ("0.5 hundred", "50"),
        ("0 million", "0"),
        ("1.2 million five", "1200000 5"),
        ("4 to 5 million", "4 to 5000000"),
        ("4-5 million", "4 to 5000000"),
        ("in 1998 2 million", "in 1998 2000000"),
        ("twenty twenty 3 million", "2020 3000000"),
        ("between 1 million and 2 million", "between 1000000 and 2000000"),
        ("between one million and two million", "between 1000000 and 2000000"),
        ("one hundred and two hundred", "100 and 200"),
        ("millions of them", "millions of them"),
        ("-5", "minus5"),
        ("minus five", "minus5"),
        ("Minus  5", "minus5"),
        ("it is −5.50 °C (-40 °F)", "it is minus5dot5 °c (minus40 °f)"),
        ("-2.5 million", "minus2500000"),
        ("-$1,000", "minus$1000"),
        ("from -5 to -3", "from minus5 to minus3"),
        ("-5-3", "minus5 to 3"),
        ("ten minus five", "10 minus 5"),  # a sum, not a sign
        ("10 - 5", "10 to 5"),
        ("covid-19, well-known, 1990s-2000s", "covid-19, well-known, 1990s-2000s"),
        ("- 5 apples", "- 5 apples"),
        ("(a)-5, --5", "(a)-5, --5"),
    ],
)
def test_what_has_one_reading_gets_one_form(text: str, normal: str) -> None:
    assert normalize_numbers(text) == normal


@pytest.mark.parametrize("dash", "-‐‑‒–—−")
def test_every_dash_between_digits_is_the_same_word(dash: str) -> None:
    assert normalize_numbers(f"4{dash}2") == "4 to 2"
    assert normalize_numbers(f"2{dash}0 {dash} 2") == "2 to 0 to 2"
    assert normalize_numbers(f"2023{dash}06{dash}15") == "2023 june 15"


@given(st.integers(0, 10**9), st.sampled_from("-‐‑‒–−"))
def test_a_number_below_zero_is_not_the_one_above(number: int, sign: str) -> None:
    below = normalize_numbers(f"It is {sign}{number:,}.")
    assert below == f"it is minus{number}."
    assert below == normalize_numbers(f"It is minus {number}.")
    assert normalize_numbers(f"minus {in_words(number % 10**9)}") == f"minus{number % 10**9}"


@pytest.mark.parametrize(
    "text",
    [
        "June 15, 2023",
        "june 15 2023",
        "June 15,2023",
        "Jun. 15th, 2023",
        "15 June 2023",
        "15 Jun. 2023",
        "the 15th of June, 2023",
        "June fifteenth, 2023",
        "2023 June 15",
        "2023-06-15",
        "2023/6/15",
    ],
)
def test_a_date_has_one_form_however_written(text: str) -> None:
    assert normalize_numbers(text).removeprefix("the ") == "2023 june 15"


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("April 3", "april 3"),
        ("3 April", "april 3"),
        ("the 3rd of Apr.", "the april 3."),
        ("the Fourth of July", "the july 4"),
        ("29 February", "february 29"),
        ("April 1920", "1920 april"),
        ("Apr. 1920", "1920 april"),
        ("April of 1920", "1920 april"),
        ("May, 2020", "2020 may"),
        ("28 July 1914–11 November 1918", "1914 july 28 to 1918 november 11"),
        ("May 2020–June 2021", "2020 may to 2021 june"),
        ("3–5 April", "3 to april 5"),
        ("3 to 5 April", "3 to april 5"),
        ("-3 April 1920", "-1920 april 3"),  # the mark of a list
        ("in April 3 million people", "in april 3000000 people"),
    ],
)
def test_a_date_without_its_year_or_its_day_has_one_form_too(text: str, normal: str) -> None:
    assert normalize_numbers(text) == normal


MONTHS = ["January", "February", "March", "April", "May", "June", "July"]
MONTHS += ["August", "September", "October", "November", "December"]


@given(st.dates(date(1000, 1, 1), date(2999, 12, 31)))
def test_all_forms_of_a_date_agree_and_hold_its_parts_as_words(day: date) -> None:
    """Reported by a review: as one word, `19200403`, a date contained neither its year nor its day."""
    month = MONTHS[day.month - 1]
    forms = [
        f"{month} {day.day}, {day.year}",
        f"{month[:3]}. {day.day} {day.year}",
        f"{day.day} {month} {day.year}",
        f"{day.day:02d} {month[:3]} {day.year}",
        f"{day.year} {month} {day.day}",
        f"{day.year}-{day.month:02d}-{day.day:02d}",
        f"{day.year}/{day.month}/{day.day}",
        f"{month} {in_words(day.day)}, {day.year}",
    ]
    (normal,) = {normalize_numbers(form) for form in forms}
    assert normal == f"{day.year} {month.lower()} {day.day}"
    assert normalize_numbers(normal) == normal
    for part in (f"{month} {day.day}", f"{day.day} {month}", f"{month} {day.year}", f"{day.year}"):
        assert f" {normalize_numbers(part)} " in f" {normal} "


@pytest.mark.parametrize(
    "text",
    [
        "06/07/2023",
        "february 30, 2020",
        "february 30",
        "15 smarch 2020",
        "mid-april 1920",
        "1.5 april",
        "may 45",
        "2004-05-",
    ],
)
def test_what_is_no_date_or_two_dates_is_left(text: str) -> None:
    told = text.replace("1.5", "1dot5").replace("2004-05", "2004 to 05")
    assert normalize_numbers(text) == told.replace("/", "solidus")


@given(st.text())
def test_no_text_is_too_odd(text: str) -> None:
    assert isinstance(normalize_numbers(text), str)
