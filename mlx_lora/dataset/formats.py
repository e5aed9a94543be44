"""A row's keys tell its format; here it becomes a Record or a fault in words. Knows nothing of files or tokenizers."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mlx_lora.dataset.choices import CHOICES_HINT, ChoiceError, right_choice
from mlx_lora.dataset.conversations import earlier_exchanges, exchange, messages_of, spoken, system_of, tools_of
from mlx_lora.dataset.record import Message, Record
from mlx_lora.dataset.values import FORMATS_HINT, MOST_LEVELS, Row, RowError, kind_of, refuse_untypable, shown, text_of

__all__ = ["FORMATS_HINT", "KNOWN_KEYS", "RowError", "record_from_row"]

_ANSWERS_HINT = (
    'it lists what else counts as right, such as "answers": ["Ann", "Anna"]; rename a key that means something else'
)
_NO_CHOICES_HINT = (
    'write the row as "question", "choices" and "answer" alone, or remove or rename "choices" if it is no quiz'
)
_QUESTION = "question/answer"
_ASKING_KEYS = frozenset({"answers", "choices", "category", "fact"})  # of eval; a row of text has no use for them
_CONVERSATION_KEYS = frozenset({"system", "tools"})
_OFTEN_EMPTY = _CONVERSATION_KEYS | {"input", "history"}


class _Format(NamedTuple):
    name: str
    keys: tuple[str, ...]
    read: Callable[[Row], dict[str, Any]]
    more_keys: frozenset[str] = _ASKING_KEYS | _CONVERSATION_KEYS  # that are read beside `keys`


def record_from_row(row: object, place: str) -> Record:
    """The Record of a JSON value, of the first format whose keys are all there; a key with null counts as absent.

    Raises: RowError.
    """
    if not isinstance(row, Mapping):
        raise RowError(f"the row is {kind_of(row)}, expected an object")
    refuse_untypable(row, MOST_LEVELS)
    present = {
        str(key): value
        for key, value in row.items()
        if value is not None and not (key in _OFTEN_EMPTY and _is_empty(value))
    }
    if "question" in present and "answer" not in present and isinstance(present.get("answers"), list | tuple):
        present["answer"] = next(iter(present["answers"]), None)
    for format in _FORMATS:
        if all(present.get(key) is not None for key in format.keys):
            read = format.read(present)
            # Nothing asks a row of text: eval refuses it, whatever stands beside the text.
            if read["messages"]:
                read |= _read_asking(present, read["messages"], format.name) | {"tools": tools_of(present.get("tools"))}
            unread = (*_unread(present, format), *read.get("unaskable", ()))
            return Record(**read, place=place, format=format.name, unread=unread)
    for format in _FORMATS:
        missing = [key for key in format.keys if present.get(key) is None]
        if len(missing) < len(format.keys):
            raise RowError(f'the {format.name} row has no "{missing[0]}" (its keys: {_names(present)})')
    raise RowError(f"no known format (its keys: {_names(present)})" if present else "the row is empty")


def _read_chat(row: Row) -> dict[str, Any]:
    messages = messages_of(row["messages"], "messages")
    return {"messages": system_of(row, messages) + messages}


def _read_sharegpt(row: Row) -> dict[str, Any]:
    turns = row["conversations"]
    if not isinstance(turns, list | tuple):
        raise RowError(f'"conversations" is {kind_of(turns)}, expected a list')
    messages = messages_of([spoken(turn, n) for n, turn in enumerate(turns, 1)], "conversations")
    return {"messages": system_of(row, messages) + messages}


def _read_completion(row: Row) -> dict[str, Any]:
    if isinstance(row["prompt"], list | tuple) and isinstance(row["completion"], list | tuple):
        return {"messages": _read_turns(row)}
    return {"messages": system_of(row) + exchange(text_of(row, "prompt"), text_of(row, "completion"))}


def _read_turns(row: Row) -> tuple[Message, ...]:
    """TRL's conversational prompt/completion: two lists of messages, of which the second is trained."""
    count = len(row["prompt"])
    messages = messages_of([*row["prompt"], *row["completion"]], "prompt and completion", prompt=count)
    if not any(message["role"] == "user" for message in messages[:count]):
        raise RowError('no message of the "prompt" has the role user', "the prompt ends with what is asked")
    return system_of(row, messages) + messages


def _read_question(row: Row) -> dict[str, Any]:
    choices, answer = _read_choices(row) if "choices" in row else ((), text_of(row, "answer"))
    return {"messages": system_of(row) + exchange(text_of(row, "question"), answer), "choices": choices}


def _read_choices(row: Row) -> tuple[tuple[str, ...], str]:
    """All choices, and the text of the right one, which is the answer that is trained."""
    if not _is_empty(row.get("answers")):
        raise RowError('a row with "choices" has one right answer: give "answer" without "answers"')
    try:
        choices, right = right_choice(row["choices"], row["answer"])
    except ChoiceError as error:
        raise RowError(str(error), CHOICES_HINT) from None
    return choices, choices[right]


def _read_alpaca(row: Row) -> dict[str, Any]:
    instruction, output = text_of(row, "instruction"), text_of(row, "output")
    given = text_of(row, "input", may_be_empty=True) if "input" in row else ""
    prompt = f"{instruction}\n\n{given}" if given.strip() else instruction
    return {"messages": system_of(row) + earlier_exchanges(row) + exchange(prompt, output)}


def _read_text(row: Row) -> dict[str, Any]:
    return {"messages": (), "text": text_of(row, "text")}


_FORMATS = (
    _Format("chat", ("messages",), _read_chat),
    _Format("sharegpt", ("conversations",), _read_sharegpt),
    _Format("prompt/completion", ("prompt", "completion"), _read_completion),
    _Format(_QUESTION, ("question", "answer"), _read_question),
    _Format(
        "alpaca",
        ("instruction", "output"),
        _read_alpaca,
        _ASKING_KEYS | _CONVERSATION_KEYS | {"input", "history"},
    ),
    _Format("text", ("text",), _read_text, _ASKING_KEYS),
)
KNOWN_KEYS = frozenset(key for format in _FORMATS for key in format.keys)


def _read_asking(row: Row, messages: tuple[Message, ...], format: str) -> dict[str, Any]:
    """What counts as right beside the row's own last answer, and what its figures are grouped by.

    Keys that question/answer rows must have right may mean anything in rows that were published with other ones: what
    eval cannot take stops no training, which reads neither `answers` nor `choices`.
    """
    said = messages[-1]["content"]
    if format == _QUESTION:
        return {"answers": _accepted(row, said), "category": _label(row, "category"), "fact": _label(row, "fact")}
    found: dict[str, Any] = {key: _any_label(row, key) for key in ("category", "fact")}
    unaskable: dict[str, tuple[str, str]] = {}
    try:
        found["answers"] = _accepted(row, said)
    except RowError as fault:
        found["answers"] = (said,)
        unaskable["answers"] = (str(fault), fault.hint)
    if not _is_empty(row.get("choices")):
        fact = f'"choices" does not belong to the {format} format; only {_QUESTION} rows have choices'
        unaskable["choices"] = (fact, _NO_CHOICES_HINT)
    return found | {"unaskable": unaskable}


def _accepted(row: Row, answer: str) -> tuple[str, ...]:
    """The row's own answer and its variants; none where its last turn says nothing, but calls a tool."""
    if not answer.strip():
        return ()
    variants = () if _is_empty(row.get("answers")) else row["answers"]
    if not isinstance(variants, list | tuple):
        raise RowError(f'"answers" is {kind_of(variants)}, expected a list of texts', _ANSWERS_HINT)
    return tuple(dict.fromkeys([answer, *(text_of({"answers": variant}, "answers") for variant in variants)]))


def _label(row: Row, key: str) -> str | None:
    return text_of(row, key, may_be_empty=True) or None if key in row else None


def _is_empty(value: Any) -> bool:
    """Whether data sets fill a column of nothing with it: null, NaN, or what holds nothing."""
    return value is None or value in ("", [], (), {}) or value != value


def _any_label(row: Row, key: str) -> str | None:
    """The text, or the number as text; None for what is empty, no number (NaN), a list or an object."""
    value = row.get(key)
    if isinstance(value, bool):
        return kind_of(value)
    if isinstance(value, int | float):
        return str(value) if value == value else None
    return value if isinstance(value, str) and value.strip() else None


def _unread(row: Row, format: _Format) -> tuple[str, ...]:
    """The keys of the row that hold something and mean nothing in its format."""
    read = {*format.keys, *format.more_keys}
    return tuple(key for key, value in row.items() if key not in read and value not in ("", [], {}))


def _names(row: Row) -> str:
    return ", ".join(shown(name) for name in list(row)[:8]) + (", …" if len(row) > 8 else "")
