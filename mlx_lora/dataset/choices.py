"""The choices of a multiple-choice row, and which one its answer means. Knows nothing of other keys or of files."""

import re
import string
from collections.abc import Sequence

CHOICES_HINT = 'such as "choices": ["Ann", "Bob"], "answer": "Ann"; the answer may be its letter, or its number from 0'


class ChoiceError(ValueError):
    """What is wrong with the choices of one row, in words that follow `file:line: `."""


def right_choice(choices: object, answer: object) -> tuple[tuple[str, ...], int]:
    """The choices as texts, and the place of the right one, from 0.

    `answer` is the text of a choice, else its letter (A is the first) or its number from 0, as published sets have it.
    Raises: ChoiceError.
    """
    if not isinstance(choices, list | tuple) or not all(isinstance(choice, str) for choice in choices):
        raise ChoiceError('"choices" is no list of texts')
    if len(choices) < 2:
        raise ChoiceError(f'"choices" has {len(choices)} of them, expected two or more')
    if not all(choice.strip() for choice in choices):
        raise ChoiceError('"choices" has an empty one')
    if len(set(choices)) < len(choices):
        raise ChoiceError('"choices" has one of them twice')
    place = _place(choices, answer)
    if place is None:
        raise ChoiceError(f'"answer" is {answer!r}, which is none of the {len(choices)} choices')
    return tuple(choices), place


def _place(choices: Sequence[str], answer: object) -> int | None:
    found: int | None = None
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    if isinstance(answer, str) and re.fullmatch("[A-Za-z]", answer.strip()):
        found = string.ascii_uppercase.index(answer.strip().upper())
    elif isinstance(answer, str) and re.fullmatch(r"[0-9]{1,3}", answer.strip()):  # CSV has no numbers
        found = int(answer)
    elif isinstance(answer, int) and not isinstance(answer, bool):
        found = answer
    return found if found is not None and 0 <= found < len(choices) else None
