"""The messages and tools of one conversation, out of a row's values. Knows nothing of formats, files or tokenizers."""

import json
from collections.abc import Mapping
from typing import Any

from mlx_lora.dataset.record import OF_THE_PROMPT, UNTRAINED, Message, is_trained
from mlx_lora.dataset.values import (
    EMPTY_HINT,
    MOST_LEVELS,
    Row,
    RowError,
    checked_text,
    json_within,
    kind_of,
    quoted,
    refuse_untypable,
    shown,
    text_of,
)

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
# Of an assistant's turn that is context only: as axolotl and ms-swift mark it, and OpenAI.
_FLAGS = ("train", "training", "loss", "weight")
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
    "function_call": "assistant",
}


def messages_of(value: Any, key: str, *, prompt: int = 0) -> tuple[Message, ...]:
    """The messages of a list, which ends with an answer to somebody; the first `prompt` of them are context only.

    Raises: RowError.
    """
    if not isinstance(value, list | tuple):
        raise RowError(f'"{key}" is {kind_of(value)}, expected a list')
    messages = tuple(_message(item, number, in_prompt=number <= prompt) for number, item in enumerate(value, 1))
    if not messages:
        raise RowError(f'"{key}" is empty')
    if messages[-1]["role"] != "assistant":
        fact = f'last message has role "{messages[-1]["role"]}", expected "assistant"'
        raise RowError(fact, "a row ends with the answer that it teaches: add it, or remove what follows it")
    trained = [number for number, message in enumerate(messages, 1) if is_trained(message)]
    if not trained:
        raise RowError("no turn of the assistant is trained", "leave the row out, or one of its marks")
    messages = messages[: trained[-1]]  # nothing is learned from what follows
    if not any(message["role"] == "user" for message in messages):
        hint = "add the question before the answer"
        raise RowError("no message has the role user: nothing asks for the answer", hint)
    return messages


def _message(value: Any, number: int, *, in_prompt: bool) -> Message:
    if not isinstance(value, Mapping):
        raise RowError(f"message {number} is {kind_of(value)}, expected an object with role and content")
    message = {str(key): item for key, item in value.items() if item is not None}
    role = message.get("role")
    if role not in ROLES:
        known = ", ".join(ROLES[:-2])
        hint = "rename the role: the person asks as user, the model answers as assistant"
        raise RowError(f"message {number} has {quoted('role', role)}, expected one of {known}", hint)
    flags = {key: message.pop(key) for key in (*_FLAGS, UNTRAINED) if key in message}
    flags.pop(UNTRAINED, None)  # ours: what a data set means by it is not known
    odd = next((key for key, flag in flags.items() if flag not in (0, 1)), None) if role == "assistant" else None
    if odd is not None:
        told = shown(json.dumps(flags[odd], default=str))
        fact = f'message {number} has "{odd}" {told}: a turn is trained whole or not at all'
        raise RowError(fact, "write true or 1, or false or 0 for a turn that is context only")
    if role == "assistant" and any(flag in (False, 0) for flag in flags.values()):
        message[UNTRAINED] = True
    elif role == "assistant" and in_prompt:
        message[UNTRAINED] = OF_THE_PROMPT
    if message.get("train_detail"):  # axolotl's, of parts of a turn
        fact = f'message {number} has "train_detail": here whole turns are trained'
        raise RowError(fact, 'remove it, or give a turn that shall not be trained "train": false')
    calls = _tool_calls(message.pop("tool_calls", []), number)
    where = f"message {number} ({role})"
    content = _content(message.get("content"), where)
    if not content.strip() and role == "assistant" and not calls:
        raise RowError(f"{where} is an empty answer", EMPTY_HINT)
    if not content.strip() and role == "user":
        raise RowError(f"{where} is empty", EMPTY_HINT)
    message["content"] = content
    if role == "developer":  # as chat, serve and other programs ask: few templates know the role, some write nothing
        message["role"] = "system"
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
    return checked_text(value, f"{where} content")


def _tool_calls(value: Any, number: int) -> list[dict[str, Any]]:
    if not isinstance(value, list | tuple) or not all(isinstance(call, Mapping) for call in value):
        raise RowError(f'message {number} has "tool_calls" that are not a list of objects')
    return [_tool_call(dict(call), number) for call in value]


def _tool_call(call: dict[str, Any], number: int) -> dict[str, Any]:
    """The call with its arguments as an object: OpenAI writes them as JSON text, which templates would quote twice."""
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError(f'message {number} has a tool call without a "name"')
    arguments = function.get("arguments")
    if arguments is None or arguments == "":  # of a function without parameters
        arguments = {}
    if isinstance(arguments, str):
        hint = 'arguments are an object, such as {"city": "Rome"}, or one as text'
        fault = RowError(f"message {number} has a tool call whose arguments are not JSON", hint)
        arguments = json_within(arguments, fault)
        refuse_untypable(arguments, MOST_LEVELS)
    elif isinstance(arguments, Mapping):  # a data set's columns fill absent arguments with null; a text has its own
        arguments = {key: item for key, item in arguments.items() if item is not None}
    if not isinstance(arguments, Mapping):
        raise RowError(f"message {number} has a tool call whose arguments are {kind_of(arguments)}, expected an object")
    completed = {**function, "arguments": dict(arguments)}
    return {**call, "function": completed} if "function" in call else completed


def tools_of(value: Any) -> tuple[dict[str, Any], ...]:
    """The tools of a list, or of its JSON text. Raises: RowError."""
    if isinstance(value, str):
        value = json_within(
            value, RowError('"tools" is a text that is not JSON', "tools is a list of objects, or one as text")
        )
        refuse_untypable(value, MOST_LEVELS)
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not all(isinstance(tool, Mapping) for tool in value):
        raise RowError(f'"tools" is {kind_of(value)}, expected a list of objects')
    return tuple(dict(tool) for tool in value)


def spoken(turn: Any, number: int) -> Any:
    """A ShareGPT turn (from, value) as a message; one that is a message already stays. Raises: RowError."""
    if not isinstance(turn, Mapping) or turn.get("from") is None:
        return turn
    speaker = turn["from"]
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        fact = f"message {number} has {quoted('from', speaker)}, expected one of {', '.join(SPEAKERS)}"
        raise RowError(fact, "rename it: the person is human, the model is gpt")
    rest = {key: item for key, item in turn.items() if key not in ("from", "value")}
    if speaker == "function_call":
        return {**rest, "role": "assistant", "tool_calls": _called(turn.get("value"), number)}
    return {**rest, "role": SPEAKERS[speaker], "content": turn.get("value")}


def _called(value: Any, number: int) -> list[dict[str, Any]]:
    """The calls of a turn as LLaMA-Factory writes it: the JSON text of one call or a list of them. Raises: RowError."""
    fact = f"message {number} is a function_call that is not JSON of a call"
    fault = RowError(fact + ', such as {"name": "add", "arguments": {"a": 1}}', "mend the turn, or leave the row out")
    found = json_within(value, fault) if isinstance(value, str) else None
    refuse_untypable(found, MOST_LEVELS)
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, Mapping) for call in calls):
        raise fault
    return [{"type": "function", "function": call} for call in calls]


def system_of(row: Row, messages: tuple[Message, ...] = ()) -> tuple[Message, ...]:
    """The row's own system prompt as a message, where `messages` do not begin with it already. Raises: RowError."""
    if not row.get("system"):
        return ()
    text = text_of(row, "system")
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"].strip() != text.strip():
            raise RowError('the row has two system prompts: "system", and its first message', "keep one of the two")
        return ()
    return ({"role": "system", "content": text},)


def earlier_exchanges(row: Row) -> tuple[Message, ...]:
    """The pairs of question and answer under `history`, as LLaMA-Factory's Alpaca rows have them. Raises: RowError."""
    pairs = row.get("history") or ()
    if not isinstance(pairs, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs
    ):
        hint = 'such as "history": [["Who won?", "Ann"]]; rename a key that means something else'
        raise RowError('"history" is no list of pairs of question and answer', hint)
    turns = [
        exchange(text_of({"history": asked}, "history"), text_of({"history": said}, "history")) for asked, said in pairs
    ]
    return tuple(message for turn in turns for message in turn)


def exchange(prompt: str, answer: str) -> tuple[Message, ...]:
    """A question and its answer."""
    return ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
