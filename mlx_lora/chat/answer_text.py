"""An answer's text while it streams: thinking apart, outer space trimmed. Knows nothing of terminals."""

from dataclasses import dataclass

THINK_TAGS = ("<think>", "</think>")


@dataclass(frozen=True)
class Shown:
    """Text to show next: what belongs to the thinking, and what to the answer."""

    thinking: str = ""
    answer: str = ""


class AnswerText:
    """Takes an answer in pieces of any size; only a block at its very beginning counts as thinking.

    The joined `answer` parts are the answer stripped of outer white space, whatever the pieces; likewise `thinking`.
    """

    def __init__(self, tags: tuple[str, str] = THINK_TAGS, *, opened: bool = False) -> None:
        """`opened`: the prompt ends inside a thinking block, because the template opens it."""
        self._begin, self._end = tags
        self._held = ""  # not decided yet
        self._place = "thinking" if opened else "start"
        self._thinking, self._answer = _Trimmed(), _Trimmed()

    @property
    def is_thinking(self) -> bool:
        """Whether a thinking block is open."""
        return self._place == "thinking"

    def feed(self, text: str) -> Shown:
        """What can be shown after `text` has come."""
        self._held += text
        thinking = ""
        if self._place == "start":
            begun = self._held.lstrip()
            if begun.startswith(self._begin):
                self._place, self._held = "thinking", begun[len(self._begin) :]
            elif not self._begin.startswith(begun):
                self._place = "answer"
        if self._place == "thinking":
            block, found, rest = self._held.partition(self._end)
            if found:
                self._place, self._held = "answer", rest
            else:
                kept = _partial_tag(block, self._end)
                block, self._held = block[: len(block) - kept], block[len(block) - kept :]
            thinking = self._thinking.feed(block)
        if self._place != "answer":
            return Shown(thinking)
        answer, self._held = self._held, ""
        return Shown(thinking, self._answer.feed(answer))

    def finish(self) -> Shown:
        """What was held back and is now known to be text."""
        held, self._held = self._held, ""
        if self._place == "thinking":
            return Shown(thinking=self._thinking.feed(held))
        return Shown(answer=self._answer.feed(held))


def take_apart(text: str, tags: tuple[str, str] = THINK_TAGS, *, opened: bool = False) -> Shown:
    """Thinking and answer of a whole answer."""
    parts = AnswerText(tags, opened=opened)
    begun, rest = parts.feed(text), parts.finish()
    return Shown(begun.thinking + rest.thinking, begun.answer + rest.answer)


class _Trimmed:
    """Passes text on without white space at the beginning and the end."""

    def __init__(self) -> None:
        self._begun = False
        self._space = ""

    def feed(self, text: str) -> str:
        text = self._space + text
        if not self._begun:
            text = text.lstrip()
        kept = text.rstrip()
        self._space = text[len(kept) :]
        self._begun = self._begun or bool(kept)
        return kept


def _partial_tag(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`."""
    return next((size for size in range(len(tag) - 1, 0, -1) if text.endswith(tag[:size])), 0)
