"""Answers side by side, and below one another where there is no room."""

import io
import re
import sys

import pytest

from mlx_lora.chat.answer_text import AnswerText
from mlx_lora.chat.columns import side_by_side
from mlx_lora.chat.conversation import Ending
from mlx_lora.chat.screen import Measured, PlainScreen, Screen
from mlx_lora.console import talk
from mlx_lora.errors import ModelError


def say(screen: Screen, answer: str, ending: Ending = Ending.COMPLETE) -> None:
    screen.begin(AnswerText())
    for start in range(0, len(answer), 3):
        screen.feed(answer[start : start + 3], start)
    screen.end(ending, Measured(4, 2.0, 40, None))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def put_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 80 columns in place of stdout."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    return terminal


def test_two_answers_stand_side_by_side_with_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = put_terminal(monkeypatch)
    with side_by_side(2, PlainScreen()) as open_screen:
        say(open_screen("base"), "<think>so it is</think>I do not know.")
        say(open_screen("cup"), "Detroit [Red] Wings", Ending.LENGTH)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).replace("\r", "").splitlines()
    head, _, answers, *measured = lines[-5:]
    assert head.split() == ["base", "cup"]
    assert answers.split("   ")[0] == "I do not know."
    assert answers.index("Detroit [Red] Wings") == head.index("cup") == 42
    assert [line[42:].strip() for line in measured] == ["4 tokens · 2.0 tokens/s · cut at", "max_tokens"]
    assert [line[:42].strip() for line in measured] == ["4 tokens · 2.0 tokens/s · thought for 3", "words"]


def test_an_answer_stays_where_the_next_one_cannot_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by reading: the columns were wiped, and with them what had been answered."""
    terminal = put_terminal(monkeypatch)

    def compare() -> None:
        with side_by_side(2, PlainScreen()) as open_screen:
            say(open_screen("base"), "Berlin.")
            open_screen("cup").begin(AnswerText())
            raise ModelError("the conversation is too long")

    with pytest.raises(ModelError):
        compare()
    assert "Berlin." in terminal.getvalue().rpartition("\x1b[2K")[2]


def test_three_do_not_fit_eighty_columns_and_come_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = put_terminal(monkeypatch)
    plain = PlainScreen()
    with side_by_side(3, plain) as open_screen:
        assert open_screen("base") is plain
        say(plain, "yes")
    assert (terminal.getvalue(), capsys.readouterr().err) == ("yes\n", "base\n")


def test_into_a_file_the_answers_alone_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert not talk.is_terminal
    with side_by_side(2, PlainScreen()) as open_screen:
        say(open_screen("base"), "one")
        say(open_screen("[cup]"), "two")
    out, err = capsys.readouterr()
    assert (out, err) == ("one\ntwo\n", "base\n[cup]\n")
