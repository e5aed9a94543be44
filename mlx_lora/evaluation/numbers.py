"""Numbers, signs and dates in answers to one written form. Knows nothing of scores or models.

English only, and only what has one reading.
"""

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal

from mlx_lora.evaluation.dates import DASHES, END_OF_MONTH, START_OF_DATE, normalize_dates

_UNITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = (
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
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_VALUES = {
    **{word: value for value, word in enumerate([*_UNITS, *_TEENS])},
    **{word: 10 * value for value, word in enumerate(_TENS, start=2)},
}
_IRREGULAR = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
_CARDINALS = {
    _IRREGULAR.get(word) or (word[:-1] + "ieth" if word.endswith("y") else word + "th"): word
    for word in [*_VALUES, *_SCALES]
}
_ORDINAL = re.compile(rf"\b(?:{'|'.join(_CARDINALS)})\b")
_SMALL = f"(?:{'|'.join(sorted(_VALUES, key=len, reverse=True))})"
_SCALE = f"(?:{'|'.join(_SCALES)})"
_AFTER_SCALE = f"(?:{'|'.join(f'(?<={scale})' for scale in _SCALES)})"
_JOIN = r"[\s‐‑-]+"
# Digits are part of a number in words only where a scale word follows; so few of them that Decimal is exact.
_DIGITS = rf"(?<!\w)(?<!\d[.,])(?:\d{{1,3}}(?:,\d{{3}}){{1,3}}|\d{{1,12}})(?:\.\d{{1,12}})?(?={_JOIN}{_SCALE}\b)"
_NEXT = rf"(?:{_JOIN}|{_AFTER_SCALE}\s+and\s+)"
_NUMBER = re.compile(
    # The million of "4,5 million" is no number of its own.
    rf"(?:\b{_SMALL}|\b(?<!\d[\s‐‑-]){_SCALE}|{_DIGITS})"
    rf"(?:{_NEXT}(?:{_SMALL}|{_SCALE})|{_AFTER_SCALE}{_NEXT}{_DIGITS})*\b"
)
# A dash that touches the digit after it, and nothing that could be a first number, a word or a rule before it.
_SIGN = re.compile(rf"(?<![\w)\]}}%°{DASHES}])[‐‑‒–−-](?!{START_OF_DATE})(?=[$£€]?\d)")
_RANGE = re.compile(rf"(?:(?<=\d)|{END_OF_MONTH})\s*[{DASHES}]\s*(?=\d|{START_OF_DATE})")

_BETWEEN_DIGITS = re.compile(r"(?<=\d)[^\w\s](?=\d)")
_NO_NUMBER = re.compile(r"\b(no(?=[\s-]one\b)|one(?= another\b))[\s-]")  # no one, one another


def normalize_numbers(text: str) -> str:
    """`text` in lower case with dates as "2023 june 15", and number words, ordinals, 1,234, 2.50 and 1.2 million as
    plain digits.

    Between digits a dash becomes "to" (4–2 is "4 to 2", not 42) and a decimal point "dot" (3.14 is not 314). What is
    no part of another number stays in one word with it: "minus5", "3dot14" and "1solidus2" (1/2) do not contain 5, 3
    or 2. Any other sign between digits becomes its Unicode name, so that it is not lost with the punctuation.
    """
    text = _NO_NUMBER.sub(r"\1", " ".join(text.lower().split()))
    text = _ORDINAL.sub(lambda found: _CARDINALS[found[0]], text)
    text = _NUMBER.sub(lambda found: _read(found[0]), text)
    text = normalize_dates(text)
    text = re.sub(r"\b\d{1,3}(?:,\d{3})+\b", lambda found: found[0].replace(",", ""), text)
    text = re.sub(r"\b(\d+)(?:st|nd|rd|th)\b", r"\1", text)
    text = re.sub(r"(?<![\d.])(\d+)\.(\d+)(?!\.?\d)", _decimal, text)
    text = _RANGE.sub(" to ", text)
    text = _SIGN.sub("minus", text)
    text = _BETWEEN_DIGITS.sub(lambda found: unicodedata.name(found[0], "sign").lower().replace(" ", ""), text)
    return re.sub(r"(?<!\d )\bminus (?=[$£€]?\d)", "minus", text)  # ten minus five is a sum


def _decimal(found: re.Match[str]) -> str:
    fraction = found[2].rstrip("0")
    return f"{found[1]}dot{fraction}" if fraction else found[1]


@dataclass
class _Group:
    """What is said up to a thousand, a million, …; `room` is what may still be added below that word."""

    value: Decimal
    before: str  # what joins it to the words before
    room: int | None = None  # None while it has no such word


def _read(phrase: str) -> str:
    """The numbers that a phrase says: "one hundred and five" is one, "four two" are two."""
    numbers: list[_Group] = []
    for group in _groups(phrase):
        if numbers and group.value < (numbers[-1].room or 0):
            numbers[-1].value += group.value
            numbers[-1].room = group.room
        else:
            numbers.append(group)
    values = [number.value for number in numbers]
    # Years are said in two halves: nineteen ninety-eight.
    if len(values) == 2 and 17 <= values[0] <= 20 and 10 <= values[1] <= 99:
        return str(100 * values[0] + values[1])
    return "".join(f"{number.before}{number.value.normalize():f}" for number in numbers).removeprefix(" ")


def _groups(phrase: str) -> list[_Group]:
    words = re.split(_JOIN, phrase)
    groups: list[_Group] = []
    before = " "
    for previous, word, following in zip(["", *words], words, [*words[1:], ""], strict=False):
        if word == "and":
            before = " and "
            continue
        last = groups[-1] if groups and groups[-1].room is None else None
        if word == "hundred":
            if last is None or (last.value > 99 and not previous[:1].isdigit()):
                groups.append(_Group(Decimal(1), before))
            groups[-1].value *= 100
        elif word in _SCALES:
            if last is None:
                groups.append(_Group(Decimal(1), before))
            # Nothing is added to one and a half million.
            groups[-1].room = _SCALES[word] if groups[-1].value % 1 == 0 else 0
            groups[-1].value *= _SCALES[word]
        elif last is not None and word in _VALUES and _goes_on(last.value, _VALUES[word], following):
            last.value += _VALUES[word]
        else:
            value = Decimal(_VALUES[word]) if word in _VALUES else Decimal(word.replace(",", ""))
            groups.append(_Group(value, before))
        before = " "
    return groups


def _goes_on(part: Decimal, value: int, following: str) -> bool:
    """Whether `value` is said as more of `part`: five after a hundred or twenty, unless it counts the next hundred."""
    after_hundred = part >= 100 and part % 100 == 0 and value > 0 and following != "hundred"
    after_ten = 20 <= part % 100 <= 90 and part % 10 == 0 and 1 <= value <= 9
    return after_hundred or after_ten
