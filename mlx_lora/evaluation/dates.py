"""Dates in answers to one written form: year, month, day, as words of their own. Knows nothing of other numbers.

English only, and only what has one reading: 06/07/2023 stays, for it is two dates.
"""

import re
from datetime import date

DASHES = r"\-‐‑‒–—−"  # between the brackets of a pattern

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
_PARTS = {
    "year": r"\d{4}",
    "month": "|".join(f"{name}|{name[:3]}" for name in _MONTHS) + "|sept",
    "number": r"\d{1,2}",  # of the month
    "day": r"\d{1,2}(?:st|nd|rd|th)?",
}
_FORMS = (  # of those that begin at one place the first counts; a dot after the last word may end the sentence
    r"{month}\.?\s+{day}(?:,\s*|\s+){year}",
    r"{day}\s+(?:of\s+)?{month}\.?(?:,\s*|\s+){year}",
    rf"{{year}}[{DASHES}/]{{number}}[{DASHES}/]{{day}}",
    r"{year},?\s+{month}\.?\s+{day}",
    r"{month}\.?\s+{day}",
    r"{day}\s+(?:of\s+)?{month}",
    r"{month}(?:\.?,?\s+|\s+of\s+)(?=[12]){year}(?![.,]\d)",
    r"(?=[12]){year},?\s+{month}",
)


def _alternative(place: int, form: str) -> str:
    for name, part in _PARTS.items():
        form = form.replace(f"{{{name}}}", f"(?P<{name}_{place}>{part})")
    return rf"{form}\b"


_DATE = re.compile(
    rf"(?<!\w)(?<![^\W\d][{DASHES}])(?<!\d[.,:/])(?:{'|'.join(map(_alternative, range(len(_FORMS)), _FORMS))})"
)
_NAMES = "|".join(_MONTHS)
START_OF_DATE = rf"(?:\d{{1,4}} (?:{_NAMES})|(?:{_NAMES}) \d)"  # in the form that is written here
END_OF_MONTH = "|".join(rf"(?<=\d {name})" for name in _MONTHS)


def normalize_dates(text: str) -> str:
    """`text`, which is in lower case, with its dates as "1920 april 3".

    So a date holds its year, its month and its day as words, "3 april" as "april 3", "april 1920" as "1920 april".
    """
    return _DATE.sub(_one_form, text)


def _one_form(found: re.Match[str]) -> str:
    part = {name.partition("_")[0]: said for name, said in found.groupdict().items() if said is not None}
    names = [name[:3] for name in _MONTHS]
    month = int(part["number"]) if "number" in part else names.index(part["month"][:3]) + 1
    day = int(re.sub(r"\D", "", part.get("day", "1")))
    year = int(part.get("year", "2000"))  # which has a 29 February
    try:
        date(year, month, day)
    except ValueError:  # no such day, so no date
        return found[0]
    words = [str(year)] * ("year" in part) + [_MONTHS[month - 1]] + [str(day)] * ("day" in part)
    return " ".join(words)
