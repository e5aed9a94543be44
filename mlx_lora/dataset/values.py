"""A value of a row: the text that it must be, or a fault in words. Knows nothing of formats, files or tokenizers."""

import json
from collections.abc import Mapping
from typing import Any

FORMATS_HINT = (
    "a row has one of: messages (chat), prompt + completion, question + answer, "
    "instruction + output (Alpaca), conversations (ShareGPT), text"
)
EMPTY_HINT = "write what is missing, or remove the row"
TWICE_HINT = "keep one of the two"
MOST_LEVELS = 100  # of lists and objects in one row; deep tool schemas have a dozen

Row = Mapping[str, Any]


class RowError(ValueError):
    """What is wrong with one row, in words that follow `file:line: `, and what to do."""

    def __init__(self, fact: str, hint: str = FORMATS_HINT) -> None:
        super().__init__(fact)
        self.hint = hint


class RepeatedKeyError(ValueError):
    """An object that gives one key two values, of which json would keep the last."""


def read_json(text: str) -> Any:
    """The value of a JSON text. Raises: RepeatedKeyError, or what json raises: ValueError, RecursionError."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise RepeatedKeyError(f'"{repeated[:60]}" is given twice')
    return found


def json_within(text: str, fault: RowError) -> Any:
    """The value of a JSON text within a row. Raises: `fault` where it is none; RowError for repeated keys."""
    try:
        return read_json(text)
    except RepeatedKeyError as error:
        raise RowError(f"JSON in a text of the row: {error}", TWICE_HINT) from None
    except (ValueError, RecursionError):
        raise fault from None


def text_of(row: Row, key: str, *, may_be_empty: bool = False) -> str:
    """The text under a key that the row has. Raises: RowError."""
    text = checked_text(row[key], f'"{key}"')
    if not may_be_empty and not text.strip():
        raise RowError(f'"{key}" is empty', EMPTY_HINT)
    return text


def checked_text(value: Any, what: str) -> str:
    """`value`, which must be a text; `what` it is, in the fault. Raises: RowError."""
    if not isinstance(value, str):
        hint = f'texts stand in quotes: "{shown(value)}"' if isinstance(value, int | float) else FORMATS_HINT
        raise RowError(f"{what} is {kind_of(value)}, expected text", hint)
    return value


def refuse_untypable(value: Any, levels: int) -> None:
    """JSON can spell half of a surrogate pair (half an emoji), which no tokenizer takes, and endless nesting.

    Raises: RowError.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            fact = f"a text has half of a surrogate pair, \\u{ord(value[error.start]):04x}"
            raise RowError(fact, "write the whole character; a text cut between its halves was cut too short") from None
    elif isinstance(value, Mapping | list | tuple):
        if levels == 0:
            raise RowError(f"nested more than {MOST_LEVELS} levels deep")
        for item in [*value.keys(), *value.values()] if isinstance(value, Mapping) else value:
            refuse_untypable(item, levels - 1)


def kind_of(value: object) -> str:
    """What sort of JSON value it is, in words."""
    if isinstance(value, bool):
        return "true" if value else "false"
    names = {int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")


def quoted(key: str, value: Any) -> str:
    """The key with its value, as a fault names it."""
    return f"no {key}" if value is None else f'{key} "{shown(value)}"'


def shown(value: object) -> str:
    """The value's text, cut where it is long."""
    text = str(value)
    return text[:60] + "…" * (len(text) > 60)
