"""A conversation as Markdown for people. Knows nothing of models or files."""

import re

from mlx_lora.chat.conversation import Conversation, Ending, Turn
from mlx_lora.errors import MlxLoraError

_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})(.*)")  # of a code block; ```x``` in one line is none


def markdown_transcript(conversation: Conversation, *, base: str, system: str | None, sampling: str) -> str:
    """The conversation as Markdown: what was asked as quotations, who answered, thinking folded.

    Raises: MlxLoraError when there is nothing in it.
    """
    if not conversation.turns:
        raise MlxLoraError("nothing was asked yet, so there is nothing to export")
    facts = [f"- base: {base}", f"- settings at the end: {sampling}"]
    if system is not None:
        facts.append(f"- system prompt: {' '.join(system.split())}")
    parts = ["# Conversation", "\n".join(facts), *map(_turn, conversation.turns)]
    return "\n\n".join(parts) + "\n"


def _turn(turn: Turn) -> str:
    parts = [_quotation(turn.question), f"**{turn.speaker}:**"]
    if turn.shown.thinking:
        parts.append(f"<details><summary>thinking</summary>\n\n{_closed(turn.shown.thinking)}\n\n</details>")
    parts.append(_closed(turn.shown.answer) or "(no answer)")
    if turn.ending is not Ending.COMPLETE:
        parts.append(f"*({turn.ending.value})*")
    return "\n\n".join(parts)


def _closed(text: str) -> str:
    """`text` with the code block closed that it was cut in, if any: it must not swallow what follows."""
    fence = ""
    for line in text.splitlines():
        found = _FENCE.fullmatch(line)
        if found is None:
            continue
        if not fence:
            fence = found[1]
        elif found[1].startswith(fence) and not found[2].strip():
            fence = ""
    return f"{text}\n{fence}" if fence else text


def _quotation(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())
