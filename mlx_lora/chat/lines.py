"""What a person types: a question, or a /command with its argument. Knows nothing of what the commands do."""

import difflib
import re
from dataclasses import dataclass

from mlx_lora.errors import MlxLoraError

_COMMAND = re.compile(r"/([A-Za-z?]+)(?:\s+(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Usage:
    """A command's name, its arguments and its help: one line."""

    name: str
    arguments: str
    help: str


COMMANDS: dict[str, Usage] = {
    usage.name: usage
    for usage in (
        Usage("help", "", "show this"),
        Usage(
            "adapter", "NAME|PATH|off", "answer with another adapter, a mix (a:0.7+b:0.3) or the base; the chat goes on"
        ),
        Usage("adapters", "", "list the adapters of this chat and those under adapters/"),
        Usage("compare", "[QUESTION]", "base and adapters side by side, outside the conversation"),
        Usage("retry", "", "answer the last question again"),
        Usage("undo", "", "take the last question and its answer back"),
        Usage("reset", "", "begin a new conversation"),
        Usage("system", "[TEXT|none|default]", "show or set the system prompt; default is the adapter's own"),
        Usage("set", "[NAME VALUE]", "show or set temperature, top_p, max_tokens or seed"),
        Usage("thinking", "[on|off]", "show the last thinking block; show all of them, or fold them"),
        Usage("save", "[FILE]", "append the conversation to a .jsonl file, as one training row"),
        Usage("export", "[FILE]", "write the conversation as Markdown to a file, or show it"),
        Usage("quit", "", "leave (so does Ctrl-D)"),
    )
}
_ALIASES = {"?": "help", "h": "help", "exit": "quit", "q": "quit"}


@dataclass(frozen=True)
class Question:
    """Text for the model."""

    text: str


@dataclass(frozen=True)
class Command:
    """A command of COMMANDS; `argument` is the rest of the line, stripped."""

    name: str
    argument: str


def parse_line(line: str) -> Question | Command | None:
    """Read what was typed; None for nothing but space. `//x` asks `/x`; a path such as `/etc/hosts` is a question.

    Raises: MlxLoraError for an unknown command, with the near names, and for bytes that are no text.
    """
    text = line.strip()
    if not text:
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # the prompt passes such bytes on as halves of characters
        raise MlxLoraError("what was typed is not UTF-8", "is your terminal set to UTF-8?") from error
    if text.startswith("//"):
        return Question(text[1:])
    match = _COMMAND.fullmatch(text)
    if match is None:
        return Question(text)
    typed = match[1].lower()
    name = _ALIASES.get(typed, typed)
    if name not in COMMANDS:
        raise _unknown(match[1])
    return Command(name, (match[2] or "").strip())


def _unknown(typed: str) -> MlxLoraError:
    near = difflib.get_close_matches(typed.lower(), COMMANDS, n=2, cutoff=0.5)
    near = near or [name for name in COMMANDS if name.startswith(typed.lower())]
    names = " or ".join(f"/{name}" for name in near)
    remedy = f"did you mean {names}?" if near else "/help lists them"
    return MlxLoraError(f"/{typed} is not a command", f"{remedy} (begin with // to ask it as a question)")
