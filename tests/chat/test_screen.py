"""What an answer looks like: the answer on stdout, all else on stderr."""

import io
import sys

import pytest

from mlx_lora.chat.answer_text import AnswerText
from mlx_lora.chat.conversation import Ending
from mlx_lora.chat.screen import LineScreen, Measured, PlainScreen, Screen, TerminalScreen, visible

MEASURED = Measured(12, 34.06, 1085, 8192)


def show(screen: Screen, *pieces: str, ending: Ending = Ending.COMPLETE, measured: Measured = MEASURED) -> None:
    screen.begin(AnswerText())
    for number, piece in enumerate(pieces, 1):
        screen.feed(piece, number)
    screen.end(ending, measured)


def test_the_answer_alone_is_on_stdout_and_its_rate_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    show(TerminalScreen(), " Pa", "ris.", "\n")
    out, err = capsys.readouterr()
    assert out == "Paris.\n"
    assert err == "12 tokens · 34.1 tokens/s · context 1,085 of 8,192\n\n"


def test_a_model_that_names_no_limit_has_none_shown(capsys: pytest.CaptureFixture[str]) -> None:
    show(TerminalScreen(), "x", measured=Measured(1, 2.0, 30, None))
    assert capsys.readouterr().err == "1 token · 2.0 tokens/s · context 30\n\n"


@pytest.mark.parametrize(
    ("ending", "line"),
    [
        (Ending.INTERRUPTED, "(stopped by Ctrl-C; it stays as it is: /retry or /undo)"),
        (Ending.LENGTH, "(cut at max_tokens; /set max_tokens N, then /retry)"),
        (Ending.CONTEXT, "(cut where the model's context is full; /undo and /reset make room)"),
    ],
)
def test_an_answer_cut_short_says_why_and_what_to_do(
    ending: Ending, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show(TerminalScreen(), "Par", ending=ending)
    assert capsys.readouterr().err.splitlines()[1] == line


def test_thinking_is_folded_and_kept_for_later(capsys: pytest.CaptureFixture[str]) -> None:
    screen = TerminalScreen()
    show(screen, "<think>", "Which coun", "try? ", "France.</think>", "\n\nParis.")
    out, err = capsys.readouterr()
    assert out == "Paris.\n"
    assert err.splitlines()[0] == "thought for 3 words (/thinking shows them)"
    assert screen.last_thinking == "Which country? France."


def test_thinking_is_shown_when_asked_for_and_never_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    show(TerminalScreen(show_thinking=True), "<think>France.</think>Paris.")
    out, err = capsys.readouterr()
    assert out == "Paris.\n"
    assert err.startswith("France.\n\n12 tokens")


def test_an_answer_that_ends_while_thinking_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    show(TerminalScreen(), "<think>Hm", ending=Ending.LENGTH)
    assert capsys.readouterr().err.splitlines()[1] == "(it ended while thinking)"
    show(PlainScreen(), "<think>Hm", ending=Ending.LENGTH)
    assert capsys.readouterr().err == "the answer was cut at max_tokens while thinking, before any answer\n"


def test_no_answer_at_all_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    show(TerminalScreen(), " ")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "(no answer)"


def test_plain_answers_stand_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    show(PlainScreen(), "<think>Hm</think>\n", "two\n", "  lines \n")
    assert capsys.readouterr() == ("two\n  lines\n", "")


def test_answers_to_a_pipe_take_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    screen = LineScreen()
    show(screen, "1. one\n", "\n  2. two", "\r\n")
    show(screen, "")
    show(screen, "three", ending=Ending.LENGTH)
    assert capsys.readouterr() == ("1. one 2. two\n\nthree\n", "the answer was cut at max_tokens\n")


def test_square_brackets_of_an_answer_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    show(TerminalScreen(show_thinking=True), "<think>[bold]x[/]</think>[red]y[/red]")
    out, err = capsys.readouterr()
    assert out == "[red]y[/red]\n"
    assert err.startswith("[bold]x[/]\n")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("screen", [PlainScreen(), LineScreen(), TerminalScreen()])
def test_a_terminal_gets_no_escape_sequences_from_a_model(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    show(screen, "\x1b]0;title\x07", "\x9b31m")
    assert terminal.getvalue() == "␛]0;title␇�31m\n"


def test_a_file_gets_the_answer_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show(PlainScreen(), "\x1b[1mbold\x1b[0m")
    assert capsys.readouterr().out == "\x1b[1mbold\x1b[0m\n"


def test_only_what_a_terminal_obeys_is_replaced() -> None:
    assert visible("tab\t line\r\n é日🐉\x00\x7f") == "tab\t line\n é日🐉␀␡"


def test_long_lines_break_between_words_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    words = "one two three four five six"
    show(TerminalScreen(), words)
    assert capsys.readouterr().out == f"{words}\n"
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    show(TerminalScreen(), words)
    assert terminal.getvalue() == "one two three four\nfive six\n"
