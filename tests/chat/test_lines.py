"""What is typed: questions and commands."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_lora.chat.lines import COMMANDS, Command, Question, parse_line
from mlx_lora.errors import MlxLoraError


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        ("Who won?", Question("Who won?")),
        ("  Who won?\n", Question("Who won?")),
        ("two\nlines", Question("two\nlines")),
        ("/help", Command("help", "")),
        ("/?", Command("help", "")),
        ("/exit", Command("quit", "")),
        ("/ADAPTER  x ", Command("adapter", "x")),
        ("/system You are\nbrief.", Command("system", "You are\nbrief.")),
        ("/set temperature 0.7", Command("set", "temperature 0.7")),
        ("//help", Question("/help")),
        ("/etc/hosts: what is it?", Question("/etc/hosts: what is it?")),
        ("/* a comment */", Question("/* a comment */")),
        ("/", Question("/")),
        ("1/2", Question("1/2")),
    ],
)
def test_a_line_is_a_question_or_a_command(line: str, entry: object) -> None:
    assert parse_line(line) == entry


@given(st.text(alphabet=" \t\n\r"))
def test_nothing_but_space_is_nothing(line: str) -> None:
    assert parse_line(line) is None


@given(st.text().filter(lambda text: text.strip() and not text.strip().startswith("/")))
def test_text_without_a_slash_in_front_is_asked_as_it_is(line: str) -> None:
    assert parse_line(line) == Question(line.strip())


@given(st.text().filter(lambda text: text == text.strip()))
def test_two_slashes_ask_what_follows_the_first(text: str) -> None:
    assert parse_line(f"//{text}") == Question(f"/{text}")


@given(st.sampled_from(sorted(COMMANDS)), st.text(), st.sampled_from([" ", "  ", "\t", "\n"]))
def test_every_command_is_read_with_its_stripped_argument(name: str, argument: str, space: str) -> None:
    assert parse_line(f"/{name}{space}{argument}") == Command(name, argument.strip())


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("/adpter x", "did you mean /adapter or /adapters?"),
        ("/rset", "did you mean /reset or /set?"),
        ("/th", "did you mean /thinking?"),
        ("/xyzzy", "/help lists them"),
    ],
)
def test_an_unknown_command_is_refused_with_near_names(line: str, hint: str) -> None:
    with pytest.raises(MlxLoraError, match="is not a command") as caught:
        parse_line(line)
    assert caught.value.hint is not None
    assert hint in caught.value.hint


def test_the_document_explains_every_command() -> None:
    document = (Path(__file__).parents[2] / "docs" / "CHAT.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"\n| `/{name}" not in document] == []
