"""A conversation as Markdown for people. Knows nothing of models or files."""

import re

from mlx_lora.chat.conversation import Conversation, Ending, Turn
from mlx_lora.errors import MlxLoraError

_FENCE = re.compile(r"^ {0,3}(```|~~~)", re.MULTILINE)


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
    answer = turn.shown.answer or "(no answer)"
    if len(_FENCE.findall(answer)) % 2:
        answer += "\n```"  # an answer cut inside a code block must not swallow what follows
    parts = [_quotation(turn.question), f"**{turn.speaker}:**"]
    if turn.shown.thinking:
        parts.append(f"<details><summary>thinking</summary>\n\n{turn.shown.thinking}\n\n</details>")
    parts.append(answer)
    if turn.ending is not Ending.COMPLETE:
        parts.append(f"*({turn.ending.value})*")
    return "\n\n".join(parts)


def _quotation(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())
