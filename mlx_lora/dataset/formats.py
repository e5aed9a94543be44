"""A row's keys tell its format; here it becomes a Record or a fault in words. Knows nothing of files or tokenizers."""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mlx_lora.dataset.choices import CHOICES_HINT, ChoiceError, right_choice
from mlx_lora.dataset.record import Message, Record

FORMATS_HINT = (
    "a row has one of: messages (chat), prompt + completion, question + answer, "
    "instruction + output (Alpaca), conversations (ShareGPT), text"
)
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}

MOST_LEVELS = 100  # of lists and objects in one row; deep tool schemas have a dozen

Row = Mapping[str, Any]
_EMPTY_HINT = "write what is missing, or remove the row"


class RowError(ValueError):
    """What is wrong with one row, in words that follow `file:line: `, and what to do."""

    def __init__(self, fact: str, hint: str = FORMATS_HINT) -> None:
        super().__init__(fact)
        self.hint = hint


class _Format(NamedTuple):
    name: str
    keys: tuple[str, ...]
    read: Callable[[Row], dict[str, Any]]


def record_from_row(row: object, place: str) -> Record:
    """The Record of a JSON value, of the first format whose keys are all there; a key with null counts as absent.

    Raises: RowError.
    """
    if not isinstance(row, Mapping):
        raise RowError(f"the row is {_kind(row)}, expected an object")
    _refuse_untypable(row, MOST_LEVELS)
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
    messages = _messages(row["messages"], "messages")
    return {"messages": messages, "answers": _said(messages), "tools": _tools(row.get("tools"))}


def _read_sharegpt(row: Row) -> dict[str, Any]:
    turns = row["conversations"]
    if not isinstance(turns, list | tuple):
        raise RowError(f'"conversations" is {_kind(turns)}, expected a list')
    messages = _system(row) + _messages([_spoken(turn, n) for n, turn in enumerate(turns, 1)], "conversations")
    return {"messages": messages, "answers": _said(messages), "tools": _tools(row.get("tools"))}


def _read_completion(row: Row) -> dict[str, Any]:
    prompt, completion = _text(row, "prompt"), _text(row, "completion")
    return {"messages": _system(row) + _exchange(prompt, completion), "answers": (completion,)}


def _read_question(row: Row) -> dict[str, Any]:
    choices, accepted = _read_choices(row) if "choices" in row else ((), _read_answers(row))
    return {
        "messages": _system(row) + _exchange(_text(row, "question"), accepted[0]),
        "answers": accepted,
        "choices": choices,
        "category": _text(row, "category", may_be_empty=True) or None if "category" in row else None,
        "fact": _text(row, "fact", may_be_empty=True) or None if "fact" in row else None,
    }


def _read_answers(row: Row) -> tuple[str, ...]:
    answer, variants = _text(row, "answer"), row.get("answers", ())
    if not isinstance(variants, list | tuple):
        raise RowError(f'"answers" is {_kind(variants)}, expected a list of texts')
    return tuple(dict.fromkeys([answer, *(_text({"answers": variant}, "answers") for variant in variants)]))


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
    instruction, output = _text(row, "instruction"), _text(row, "output")
    given = _text(row, "input", may_be_empty=True) if "input" in row else ""
    prompt = f"{instruction}\n\n{given}" if given.strip() else instruction
    return {"messages": _system(row) + _exchange(prompt, output), "answers": (output,)}


def _read_text(row: Row) -> dict[str, Any]:
    return {"messages": (), "text": _text(row, "text")}


_FORMATS = (
    _Format("chat", ("messages",), _read_chat),
    _Format("sharegpt", ("conversations",), _read_sharegpt),
    _Format("prompt/completion", ("prompt", "completion"), _read_completion),
    _Format("question/answer", ("question", "answer"), _read_question),
    _Format("alpaca", ("instruction", "output"), _read_alpaca),
    _Format("text", ("text",), _read_text),
)
KNOWN_KEYS = frozenset(key for format in _FORMATS for key in format.keys)


def _messages(value: Any, key: str) -> tuple[Message, ...]:
    if not isinstance(value, list | tuple):
        raise RowError(f'"{key}" is {_kind(value)}, expected a list')
    messages = tuple(_message(item, number) for number, item in enumerate(value, 1))
    if not messages:
        raise RowError(f'"{key}" is empty')
    if messages[-1]["role"] != "assistant":
        fact = f'last message has role "{messages[-1]["role"]}", expected "assistant"'
        raise RowError(fact, "a row ends with the answer that it teaches: add it, or remove what follows it")
    if not any(message["role"] == "user" for message in messages):
        hint = "add the question before the answer"
        raise RowError("no message has the role user: nothing asks for the answer", hint)
    return messages


def _message(value: Any, number: int) -> Message:
    if not isinstance(value, Mapping):
        raise RowError(f"message {number} is {_kind(value)}, expected an object with role and content")
    message = {str(key): item for key, item in value.items() if item is not None}
    role = message.get("role")
    if role not in ROLES:
        known = ", ".join(ROLES[:-2])
        hint = "rename the role: the person asks as user, the model answers as assistant"
        raise RowError(f"message {number} has {_quoted('role', role)}, expected one of {known}", hint)
    if message.get("weight", 1) != 1:
        fact = f'message {number} has "weight" {_shown(message["weight"])}: here every assistant turn is trained'
        raise RowError(fact, "remove the weight, or the turns that shall not be trained")
    calls = _tool_calls(message.pop("tool_calls", []), number)
    where = f"message {number} ({role})"
    content = _content(message.get("content"), where)
    if not content.strip() and role == "assistant" and not calls:
        raise RowError(f"{where} is an empty answer", _EMPTY_HINT)
    if not content.strip() and role == "user":
        raise RowError(f"{where} is empty", _EMPTY_HINT)
    message["content"] = content
    # Templates test for the key, so it is there only with calls in it.
    return {**message, "tool_calls": calls} if calls else message


def _content(value: Any, where: str) -> str:
    """A message's text; a list of text parts is joined, since text models' templates add strings."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in value):
            hint = "leave rows with pictures or sound out"
            raise RowError(f"{where} has a part that is not text; only text can be trained", hint)
        value = "".join(part["text"] for part in value)
    return _checked(value, f"{where} content")


def _tool_calls(value: Any, number: int) -> list[dict[str, Any]]:
    if not isinstance(value, list | tuple) or not all(isinstance(call, Mapping) for call in value):
        raise RowError(f'message {number} has "tool_calls" that are not a list of objects')
    return [_tool_call(dict(call), number) for call in value]


def _tool_call(call: dict[str, Any], number: int) -> dict[str, Any]:
    """The call with its arguments as an object: OpenAI writes them as JSON text, which templates would quote twice."""
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError(f'message {number} has a tool call without a "name"')
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            hint = 'arguments are an object, such as {"city": "Rome"}, or one as text'
            raise RowError(f"message {number} has a tool call whose arguments are not JSON", hint) from None
        _refuse_untypable(arguments, MOST_LEVELS)
    if not isinstance(arguments, Mapping):
        raise RowError(f"message {number} has a tool call whose arguments are {_kind(arguments)}, expected an object")
    # A data set's columns fill absent arguments with null.
    completed = {**function, "arguments": {key: item for key, item in arguments.items() if item is not None}}
    return {**call, "function": completed} if "function" in call else completed


def _tools(value: Any) -> tuple[dict[str, Any], ...]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowError('"tools" is a text that is not JSON', "tools is a list of objects, or one as text") from None
        _refuse_untypable(value, MOST_LEVELS)
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not all(isinstance(tool, Mapping) for tool in value):
        raise RowError(f'"tools" is {_kind(value)}, expected a list of objects')
    return tuple(dict(tool) for tool in value)


def _spoken(turn: Any, number: int) -> Any:
    """A ShareGPT turn (from, value) as a message; one that is a message already stays."""
    if not isinstance(turn, Mapping) or turn.get("from") is None:
        return turn
    speaker = turn["from"]
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        fact = f"message {number} has {_quoted('from', speaker)}, expected one of {', '.join(SPEAKERS)}"
        raise RowError(fact, "rename it: the person is human, the model is gpt")
    rest = {key: item for key, item in turn.items() if key not in ("from", "value")}
    return {**rest, "role": SPEAKERS[speaker], "content": turn.get("value")}


def _system(row: Row) -> tuple[Message, ...]:
    return ({"role": "system", "content": _text(row, "system")},) if row.get("system") else ()


def _exchange(prompt: str, answer: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})


def _said(messages: tuple[Message, ...]) -> tuple[str, ...]:
    return (messages[-1]["content"],) if messages[-1]["content"] else ()


def _text(row: Row, key: str, *, may_be_empty: bool = False) -> str:
    text = _checked(row[key], f'"{key}"')
    if not may_be_empty and not text.strip():
        raise RowError(f'"{key}" is empty', _EMPTY_HINT)
    return text


def _checked(value: Any, what: str) -> str:
    if not isinstance(value, str):
        hint = f'texts stand in quotes: "{_shown(value)}"' if isinstance(value, int | float) else FORMATS_HINT
        raise RowError(f"{what} is {_kind(value)}, expected text", hint)
    return value


def _refuse_untypable(value: Any, levels: int) -> None:
    """JSON can spell half of a surrogate pair (half an emoji), which no tokenizer takes, and endless nesting."""
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
            _refuse_untypable(item, levels - 1)


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    names = {int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")


def _quoted(key: str, value: Any) -> str:
    return f"no {key}" if value is None else f'{key} "{_shown(value)}"'


def _names(row: Row) -> str:
    return ", ".join(_shown(name) for name in list(row)[:8]) + (", …" if len(row) > 8 else "")


def _shown(value: object) -> str:
    text = str(value)
    return text[:60] + "…" * (len(text) > 60)
