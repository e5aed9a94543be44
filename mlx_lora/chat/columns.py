"""Answers side by side, one column for each who answers, as they come. Knows nothing of models or conversations."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mlx_lora.chat.answer_text import AnswerText
from mlx_lora.chat.conversation import Ending
from mlx_lora.chat.screen import Measured, Screen
from mlx_lora.console import talk, visible

NARROWEST = 30  # characters of a column; with less the answers come one below the other


@contextmanager
def side_by_side(count: int, plain: Screen) -> Iterator[Callable[[str], Screen]]:
    """A function that opens the screen for the answer of who is named, for `count` of them.

    Columns where stdout is a terminal wide enough; otherwise `plain`, after a line with the name.
    """
    if not sys.stdout.isatty() or talk.is_dumb_terminal or talk.width < count * NARROWEST:

        def open_block(label: str) -> Screen:
            talk.print(f"[bold]{escape(visible(label))}[/]")
            return plain

        yield open_block
        return
    columns: list[Column] = []
    console = Console(file=sys.stdout, highlight=False, emoji=False)
    try:
        with Live(console=console, transient=True, auto_refresh=False) as live:

            def open_column(label: str) -> Screen:
                columns.append(Column(label, lambda: live.update(_table(columns, count), refresh=True)))
                return columns[-1]

            yield open_column
    finally:  # what was answered stays, where another cannot answer too
        shown = [column for column in columns if column.ended]
        if shown:
            console.print(_table(shown, count))
            talk.print()


@dataclass
class Column:
    """A screen for one answer: the answer itself, and below it what was measured."""

    label: str
    refresh: Callable[[], None]
    _text: AnswerText = field(default_factory=AnswerText)
    _answer: str = ""
    _thinking: str = ""
    _below: str = "…"
    ended: bool = False

    def begin(self, text: AnswerText) -> None:
        """A prompt goes to the model."""
        self._text = text
        self.refresh()

    def feed(self, piece: str, tokens: int) -> None:
        """The next piece has come."""
        shown = self._text.feed(piece)
        self._take(shown.thinking, shown.answer)
        self._below = f"thinking… {tokens} tokens" if self._text.is_thinking else "…"
        self.refresh()

    def end(self, ending: Ending, measured: Measured) -> None:
        """The answer is over."""
        shown = self._text.finish()
        self._take(shown.thinking, shown.answer)
        if not self._answer:
            self._answer = "(it ended while thinking)" if self._thinking else "(no answer)"
        facts = [f"{measured.tokens} {'token' if measured.tokens == 1 else 'tokens'}"]
        facts.append(f"{measured.tokens_per_second:.1f} tokens/s")
        if self._thinking:
            facts.append(f"thought for {len(self._thinking.split())} words")
        if ending is not Ending.COMPLETE:
            facts.append(ending.value)
        self._below = " · ".join(facts)
        self.ended = True
        self.refresh()

    def cell(self) -> RenderableType:
        """What stands in the table."""
        return Group(Text(visible(self._answer)), Text(self._below, style="dim"))

    def _take(self, thinking: str, answer: str) -> None:
        self._thinking += thinking
        self._answer += answer


def _table(columns: list[Column], count: int) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, expand=True, pad_edge=False)
    for place in range(count):
        label = columns[place].label if place < len(columns) else ""
        table.add_column(Text(visible(label)), ratio=1, overflow="fold")
    table.add_row(*(column.cell() for column in columns), *[""] * (count - len(columns)))
    return table
