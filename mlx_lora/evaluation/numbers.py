"""Numbers and dates in answers to one written form. Knows nothing of scores or models.

English only, and only what has one reading: 06/07/2023 stays, for it is two dates.
"""

import re
from collections.abc import Callable
from datetime import date

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
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
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
_WORD = f"(?:{'|'.join(sorted([*_VALUES, *_SCALES], key=len, reverse=True))})"
_AND = "|".join(rf"(?<={scale})\s+and\s+" for scale in _SCALES)
_NUMBER = re.compile(rf"\b{_WORD}(?:(?:[\s-]+|{_AND}){_WORD})*\b")

_MONTHS = (
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
)
_MONTH = "(" + "|".join(f"{name}|{name[:3]}" for name in _MONTHS) + r"|sept)\.?"
_DAY = r"(\d{1,2})(?:st|nd|rd|th)?"
_DATES: tuple[tuple[re.Pattern[str], tuple[int, int, int]], ...] = (  # with the groups of year, month and day
    (re.compile(rf"\b{_MONTH}\s+{_DAY},?\s+(\d{{4}})\b"), (3, 1, 2)),
    (re.compile(rf"\b{_DAY}\s+(?:of\s+)?{_MONTH},?\s+(\d{{4}})\b"), (3, 2, 1)),
    (re.compile(r"\b(\d{4})[-/](\d{1,2})[-/](\d{1,2})\b"), (1, 2, 3)),
)


def normalize_numbers(text: str) -> str:
    """`text` in lower case with dates as 20230615, and number words, ordinals, 1,234 and 2.50 as plain digits.

    Between digits a dash becomes "to" (4–2 is "4 to 2", not 42) and a decimal point "dot" (3.14 is not 314).
    """
    text = text.lower()
    for pattern, groups in _DATES:
        text = pattern.sub(_compact_date(groups), text)
    text = _ORDINAL.sub(lambda found: _CARDINALS[found[0]], text)
    text = _NUMBER.sub(lambda found: " ".join(map(str, _read(found[0]))), text)
    text = re.sub(r"\b\d{1,3}(?:,\d{3})+\b", lambda found: found[0].replace(",", ""), text)
    text = re.sub(r"\b(\d+)(?:st|nd|rd|th)\b", r"\1", text)
    text = re.sub(r"(?<![\d.])(\d+)\.(\d+)(?!\.?\d)", _decimal, text)
    return re.sub(r"(?<=\d)\s*[-‐‑–—]\s*(?=\d)", " to ", text)


def _compact_date(groups: tuple[int, int, int]) -> Callable[[re.Match[str]], str]:
    def replace(found: re.Match[str]) -> str:
        year, month, day = (found[group] for group in groups)
        number = int(month) if month.isdigit() else [name[:3] for name in _MONTHS].index(month[:3]) + 1
        try:
            return date(int(year), number, int(day)).strftime("%Y%m%d")
        except ValueError:  # no such day, so no date
            return found[0]

    return replace


def _decimal(found: re.Match[str]) -> str:
    fraction = found[2].rstrip("0")
    return f"{found[1]}dot{fraction}" if fraction else found[1]


def _read(phrase: str) -> list[int]:
    """The numbers that a run of number words says: "one hundred and five" is one, "four two" are two."""
    numbers = [0]
    said = _Number()
    for word in re.split(r"[\s-]+", phrase):
        if word == "and":
            continue
        if not said.accepts(word):
            numbers.append(0)
            said = _Number()
        numbers[-1] = said.add(word)
    # Years are said in two halves: nineteen ninety-eight.
    if len(numbers) == 2 and 17 <= numbers[0] <= 20 and 10 <= numbers[1] <= 99:
        return [100 * numbers[0] + numbers[1]]
    return numbers


class _Number:
    """One number in words: whole thousands first, then what stands before the next scale."""

    def __init__(self) -> None:
        self.total = 0
        self.scale = 10**12  # the last one said; the next must be smaller
        self.part: int | None = None

    def accepts(self, word: str) -> bool:
        """Whether `word` can go on with this number."""
        part = self.part
        if word in _VALUES:
            value = _VALUES[word]
            after_hundred = part is not None and part >= 100 and part % 100 == 0 and value > 0
            after_ten = part is not None and 20 <= part % 100 <= 90 and part % 10 == 0 and 1 <= value <= 9
            return part is None or after_hundred or after_ten
        if word == "hundred":
            return part is None or 1 <= part <= 99
        return _SCALES[word] < self.scale and part != 0

    def add(self, word: str) -> int:
        """Go on with `word`; return the number so far."""
        if word in _VALUES:
            self.part = (self.part or 0) + _VALUES[word]
        elif word == "hundred":
            self.part = 100 * (1 if self.part is None else self.part)
        else:
            self.scale = _SCALES[word]
            self.total += self.scale * (1 if self.part is None else self.part)
            self.part = None
        return self.total + (self.part or 0)
