"""What Ollama does with a Modelfile, as far as ours go: its instructions read, its Go template rendered.

By docs/modelfile.mdx and docs/template.mdx of ollama, text/template of Go, and what ollama's parser.go and template.go
add to them: characters that Go does not call printable are left out; the system prompt comes as the first message,
but for an empty one; neighbours of one role are joined; .System holds what the system messages say.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

_COMMANDS = ("FROM", "ADAPTER", "TEMPLATE", "SYSTEM", "PARAMETER")
_INSTRUCTION = re.compile(
    r"(?P<name>[A-Za-z]+)[ \t]+(?:(?P<key>(?<=PARAMETER )\w+)[ \t]+)?"
    r'(?:"""(?P<long>.*?)"""(?=\s)|"(?P<quoted>[^"\n]*)"|(?P<bare>[^\s"]+))\n',
    re.DOTALL,
)
_CONDITION = re.compile(r'(?:else )?if eq \.Role "(\w+)"')


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """The instructions, (name, argument), a parameter's name with it. Raises: ValueError for what is none."""
    found, place = [], 0
    while place < len(text):
        match = _INSTRUCTION.match(text, place)
        if match is None or match["name"] not in _COMMANDS:
            raise ValueError(f"no instruction: {text[place : place + 40]!r}")
        value = next(match[kind] for kind in ("long", "quoted", "bare") if match[kind] is not None)
        value = "".join(sign for sign in value if sign.isprintable() or sign in "\t\n\r")
        found.append((f"{match['name']} {match['key']}" if match["key"] else match["name"], value))
        place = match.end()
    return found


def render_go(template: str, messages: Sequence[dict[str, str]], system: str | None = None) -> str:
    """The prompt that Ollama makes of a conversation by `template`. Raises: ValueError for what it does not know."""
    if system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    joined: list[dict[str, str]] = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"]:
            joined[-1] = {**message, "content": f"{joined[-1]['content']}\n\n{message['content']}"}
        else:
            joined.append(message)
    said = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    text, rest = _render(_tokens(template), {"Messages": joined, "System": said})
    if rest is not None:
        raise ValueError(f"{rest!r} belongs to nothing")
    return text


def _tokens(template: str) -> Iterator[tuple[str, str]]:
    """("text", …) and ("action", …) in turn; `{{-` takes white space before it away."""
    place = 0
    for match in re.finditer(r"\{\{(-)?\s*(.*?)\s*\}\}", template, re.DOTALL):
        before = template[place : match.start()]
        yield "text", before.rstrip() if match[1] else before
        yield "action", match[2]
        place = match.end()
    yield "text", template[place:]


def _render(tokens: Iterator[tuple[str, str]], scope: dict[str, Any]) -> tuple[str, str | None]:
    """Render up to the action that ends this block, which is returned with the text."""
    parts = []
    for kind, content in tokens:
        if kind == "text":
            parts.append(content)
        elif content == "range .Messages":
            parts.append(_range(tokens, scope))
        elif content.startswith("if "):
            parts.append(_branches(content, tokens, scope))
        elif content == ".Content":
            parts.append(scope["content"])
        elif content == "end" or content.startswith("else"):
            return "".join(parts), content
        else:
            raise ValueError(f"{content!r} is not known")
    return "".join(parts), None


def _range(tokens: Iterator[tuple[str, str]], scope: dict[str, Any]) -> str:
    body, depth = [], 1
    for token in tokens:
        depth += token[0] == "action" and token[1].startswith(("range ", "if "))
        depth -= token == ("action", "end")
        if not depth:
            return "".join(_render(iter(body), message)[0] for message in scope["Messages"])
        body.append(token)
    raise ValueError("range has no end")


def _branches(condition: str, tokens: Iterator[tuple[str, str]], scope: dict[str, Any]) -> str:
    taken: str | None = None
    while condition != "end":
        holds = _holds(condition, scope)
        text, ended = _render(tokens, scope)
        if taken is None and holds:
            taken = text
        if ended is None:
            raise ValueError(f"{condition!r} has no end")
        condition = ended
    return taken or ""


def _holds(condition: str, scope: dict[str, Any]) -> bool:
    match = _CONDITION.fullmatch(condition)
    if match is not None:
        return bool(match[1] == scope["role"])
    if condition not in ("else", "if not .System"):
        raise ValueError(f"{condition!r} is not known")
    return condition == "else" or not scope["System"]
