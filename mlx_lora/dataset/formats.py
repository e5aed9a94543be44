"""A row's keys tell its format; here it becomes a Record or a fault in words. Knows nothing of files or tokenizers."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mlx_lora.dataset.choices import CHOICES_HINT, ChoiceError, right_choice
from mlx_lora.dataset.conversations import exchange, messages_of, spoken, system_of, tools_of
from mlx_lora.dataset.record import Message, Record
from mlx_lora.dataset.values import FORMATS_HINT, MOST_LEVELS, Row, RowError, kind_of, refuse_untypable, shown, text_of

__all__ = ["FORMATS_HINT", "KNOWN_KEYS", "RowError", "record_from_row"]


class _Format(NamedTuple):
    name: str
    keys: tuple[str, ...]
    read: Callable[[Row], dict[str, Any]]


def record_from_row(row: object, place: str) -> Record:
    """The Record of a JSON value, of the first format whose keys are all there; a key with null counts as absent.

    Raises: RowError.
    """
    if not isinstance(row, Mapping):
        raise RowError(f"the row is {kind_of(row)}, expected an object")
    refuse_untypable(row, MOST_LEVELS)
    present = {str(key): value for key, value in row.items() if value is not None}
    if "question" in present and "answer" not in present and isinstance(present.get("answers"), list | tuple):
        present["answer"] = next(iter(present["answers"]), None)
    for format in _FORMATS:
        if all(present.get(key) is not None for key in format.keys):
            return Record(**format.read(present), place=place, format=format.name)
    for format in _FORMATS:
        missing = [key for key in format.keys if present.get(key) is None]
        if len(missing) < len(format.keys):
            raise RowError(f'the {format.name} row has no "{missing[0]}" (its keys: {_names(present)})')
    raise RowError(f"no known format (its keys: {_names(present)})" if present else "the row is empty")


def _read_chat(row: Row) -> dict[str, Any]:
    messages = messages_of(row["messages"], "messages")
    return {"messages": messages, "answers": _said(messages), "tools": tools_of(row.get("tools"))}


def _read_sharegpt(row: Row) -> dict[str, Any]:
    turns = row["conversations"]
    if not isinstance(turns, list | tuple):
        raise RowError(f'"conversations" is {kind_of(turns)}, expected a list')
    messages = system_of(row) + messages_of([spoken(turn, n) for n, turn in enumerate(turns, 1)], "conversations")
    return {"messages": messages, "answers": _said(messages), "tools": tools_of(row.get("tools"))}


def _read_completion(row: Row) -> dict[str, Any]:
    prompt, completion = text_of(row, "prompt"), text_of(row, "completion")
    return {"messages": system_of(row) + exchange(prompt, completion), "answers": (completion,)}


def _read_question(row: Row) -> dict[str, Any]:
    choices, accepted = _read_choices(row) if "choices" in row else ((), _read_answers(row))
    return {
        "messages": system_of(row) + exchange(text_of(row, "question"), accepted[0]),
        "answers": accepted,
        "choices": choices,
        "category": text_of(row, "category", may_be_empty=True) or None if "category" in row else None,
        "fact": text_of(row, "fact", may_be_empty=True) or None if "fact" in row else None,
    }


def _read_answers(row: Row) -> tuple[str, ...]:
    answer, variants = text_of(row, "answer"), row.get("answers", ())
    if not isinstance(variants, list | tuple):
        raise RowError(f'"answers" is {kind_of(variants)}, expected a list of texts')
    return tuple(dict.fromkeys([answer, *(text_of({"answers": variant}, "answers") for variant in variants)]))


def _read_choices(row: Row) -> tuple[tuple[str, ...], tuple[str]]:
    """All choices, and the text of the right one, which is the answer that is trained."""
    if "answers" in row:
        raise RowError('a row with "choices" has one right answer: give "answer" without "answers"')
    try:
        choices, right = right_choice(row["choices"], row["answer"])
    except ChoiceError as error:
        raise RowError(str(error), CHOICES_HINT) from None
    return choices, (choices[right],)


def _read_alpaca(row: Row) -> dict[str, Any]:
    instruction, output = text_of(row, "instruction"), text_of(row, "output")
    given = text_of(row, "input", may_be_empty=True) if "input" in row else ""
    prompt = f"{instruction}\n\n{given}" if given.strip() else instruction
    return {"messages": system_of(row) + exchange(prompt, output), "answers": (output,)}


def _read_text(row: Row) -> dict[str, Any]:
    return {"messages": (), "text": text_of(row, "text")}


_FORMATS = (
    _Format("chat", ("messages",), _read_chat),
    _Format("sharegpt", ("conversations",), _read_sharegpt),
    _Format("prompt/completion", ("prompt", "completion"), _read_completion),
    _Format("question/answer", ("question", "answer"), _read_question),
    _Format("alpaca", ("instruction", "output"), _read_alpaca),
    _Format("text", ("text",), _read_text),
)
KNOWN_KEYS = frozenset(key for format in _FORMATS for key in format.keys)


def _said(messages: tuple[Message, ...]) -> tuple[str, ...]:
    return (messages[-1]["content"],) if messages[-1]["content"] else ()


def _names(row: Row) -> str:
    return ", ".join(shown(name) for name in list(row)[:8]) + (", …" if len(row) > 8 else "")
