"""Showing answers: the answer alone on stdout, as it comes; all else on stderr. Knows nothing of models or of input."""

import sys
from dataclasses import dataclass
from typing import Protocol

from rich.control import Control
from rich.segment import ControlType

from mlx_lora.chat.answer_text import AnswerText, Shown
from mlx_lora.chat.conversation import Ending
from mlx_lora.chat.wrapping import WordWrap
from mlx_lora.console import talk, visible

_ERASE_LINE = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))


@dataclass(frozen=True)
class Measured:
    """An answer in numbers: generated tokens and their rate, and the tokens of prompt and answer together."""

    tokens: int
    tokens_per_second: float
    conversation_tokens: int
    context: int | None  # None: the model does not say how many it reads
    kept: bool = True  # whether the answer joins the conversation


class Screen(Protocol):
    """Where one answer after another is shown."""

    def begin(self, text: AnswerText) -> None:
        """A prompt goes to the model; `text` will take its answer apart."""

    def feed(self, piece: str, tokens: int) -> None:
        """The next piece has come; `tokens` so far."""

    def end(self, ending: Ending, measured: Measured) -> None:
        """The answer is over."""


class TerminalScreen:
    """For people: thinking folded or dimmed, a rate after each answer."""

    def __init__(self, *, show_thinking: bool = False) -> None:
        self.show_thinking = show_thinking
        self.last_thinking = ""
        self._status = _Status()
        self._text = AnswerText()
        self._wrap: WordWrap | None = None  # of the answer, where stdout is a terminal
        self._wrap_thinking: WordWrap | None = None
        self._answered = False

    def begin(self, text: AnswerText) -> None:
        """Show that the model reads."""
        self._text, self.last_thinking, self._answered = text, "", False
        self._wrap = WordWrap(lambda: talk.width) if sys.stdout.isatty() else None
        self._wrap_thinking = WordWrap(lambda: talk.width) if talk.is_terminal else None
        self._status.show("…")

    def feed(self, piece: str, tokens: int) -> None:
        """Show the next piece."""
        self._show(self._text.feed(piece))
        if self._text.is_thinking and not self.show_thinking:
            self._status.show(f"thinking… {tokens} tokens")

    def end(self, ending: Ending, measured: Measured) -> None:
        """Finish the line; then the rate, and why the answer ended where that was not by itself."""
        self._show(self._text.finish())
        self._status.erase()
        if self._answered:
            write_answer(("" if self._wrap is None else self._wrap.finish()) + "\n")
        elif self.last_thinking:
            self._close_thinking()
        if not self._answered:
            talk.print("(it ended while thinking)" if self.last_thinking else "(no answer)", style="dim")
        size = f"{measured.conversation_tokens:,}"
        of_context = size if measured.context is None else f"{size} of {measured.context:,}"
        unit = "token" if measured.tokens == 1 else "tokens"
        facts = [f"{measured.tokens} {unit}", f"{measured.tokens_per_second:.1f} tokens/s", f"context {of_context}"]
        talk.print(" · ".join(facts), style="dim", highlight=False)
        if ending is not Ending.COMPLETE:
            remedy = f"; {_REMEDIES[ending]}" if measured.kept and measured.tokens else ""
            talk.print(f"({ending.value}{remedy})", style="dim")
        talk.print()

    def _show(self, shown: Shown) -> None:
        if shown.thinking or shown.answer:
            self._status.erase()
        if shown.thinking:
            self.last_thinking += shown.thinking
            if self.show_thinking:
                thinking = visible(shown.thinking)
                wrap = self._wrap_thinking
                talk.out(thinking if wrap is None else wrap.feed(thinking), style="dim", end="", highlight=False)
        if shown.answer:
            if not self._answered and self.last_thinking:
                self._close_thinking()
            self._answered = True
            answer = visible(shown.answer) if self._wrap is not None else shown.answer
            write_answer(answer if self._wrap is None else self._wrap.feed(answer))

    def _close_thinking(self) -> None:
        if self.show_thinking:
            rest = "" if self._wrap_thinking is None else self._wrap_thinking.finish()
            talk.out(f"{rest}\n", style="dim", highlight=False)
        else:
            words = len(self.last_thinking.split())
            talk.print(f"thought for {words} words (/thinking shows them)", style="dim", highlight=False)


_REMEDIES = {
    Ending.INTERRUPTED: "it stays as it is: /retry or /undo",
    Ending.LENGTH: "/set max_tokens N, then /retry",
    Ending.CONTEXT: "/undo and /reset make room",
}


class PlainScreen:
    """For `-p`: the answer alone, as it comes."""

    def __init__(self) -> None:
        self._text = AnswerText()

    def begin(self, text: AnswerText) -> None:
        """Nothing to show yet."""
        self._text = text

    def feed(self, piece: str, tokens: int) -> None:
        """Write what belongs to the answer."""
        write_answer(self._text.feed(piece).answer)

    def end(self, ending: Ending, measured: Measured) -> None:
        """Finish the line; say on stderr when the answer did not end by itself."""
        write_answer(self._text.finish().answer + "\n")
        _say_cut(ending, self._text)


class LineScreen:
    """For pipes: each answer on one line of its own, its line breaks turned into spaces."""

    def __init__(self) -> None:
        self._text = AnswerText()
        self._answer = ""

    def begin(self, text: AnswerText) -> None:
        """Nothing to show yet."""
        self._text, self._answer = text, ""

    def feed(self, piece: str, tokens: int) -> None:
        """Keep what belongs to the answer."""
        self._answer += self._text.feed(piece).answer

    def end(self, ending: Ending, measured: Measured) -> None:
        """Write the line."""
        self._answer += self._text.finish().answer
        lines = (line.strip() for line in self._answer.splitlines())
        write_answer(" ".join(line for line in lines if line) + "\n")
        _say_cut(ending, self._text)


class _Status:
    """A line on a terminal that the next output replaces."""

    def __init__(self) -> None:
        self._shown = ""

    def show(self, text: str) -> None:
        if talk.is_terminal and not talk.is_dumb_terminal and text != self._shown:
            self.erase()
            talk.print(text, style="dim", end="", highlight=False)
            self._shown = text

    def erase(self) -> None:
        if self._shown:
            talk.control(_ERASE_LINE)
            self._shown = ""


def write_answer(text: str) -> None:
    """Write `text` to stdout at once; on a terminal control characters come as pictures."""
    if text:
        sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()


def _say_cut(ending: Ending, text: AnswerText) -> None:
    if ending is not Ending.COMPLETE:
        thinking = " while thinking, before any answer" if text.is_thinking else ""
        talk.print(f"the answer was {ending.value}{thinking}", style="dim", highlight=False)
