"""Typing: the real prompt on a pipe in place of a keyboard."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from mlx_lora.chat.keyboard import Keyboard, LineCompleter

ENTER, ALT_ENTER, CTRL_C, CTRL_D, CTRL_R = "\r", "\x1b\r", "\x03", "\x04", "\x12"


@pytest.fixture
def keys() -> Iterator[PipeInput]:
    with create_pipe_input() as keys:
        yield keys


@pytest.fixture
def keyboard(keys: PipeInput, tmp_path: Path) -> Keyboard:
    return Keyboard(tmp_path / "history", lambda: ["stanley-cup", "support"], keys=keys, output=DummyOutput())


@pytest.mark.parametrize(
    ("typed", "entry"),
    [
        ("Who won?" + ENTER, "Who won?"),
        ("one" + ALT_ENTER + "two" + ENTER, "one\ntwo"),
        ("one\\" + ENTER + "two" + ENTER, "one\ntwo"),
        ("one \\" + ENTER + "\\" + ENTER + "two" + ENTER, "one \n\ntwo"),
        ("\x1b[200~def f():\r\n\treturn 1\r\n\x1b[201~" + ENTER, "def f():\n\treturn 1\n"),
        ("日本 🐉 é" + ENTER, "日本 🐉 é"),
        ("thrown away" + CTRL_C + "kept" + ENTER, "kept"),
        ("a\\b" + ENTER, "a\\b"),
        ("back\\" + "\x1b[D\x1b[D" + ENTER, "back\\"),
        ("end" + "\n", "end"),
        (ENTER, ""),
    ],
)
def test_an_entry_is_one_line_or_several(typed: str, entry: str, keys: PipeInput, keyboard: Keyboard) -> None:
    keys.send_text(typed)
    assert keyboard.read("base") == entry


def test_ctrl_d_leaves_and_ctrl_c_tells_where_nothing_is_typed(keys: PipeInput, keyboard: Keyboard) -> None:
    keys.send_text(CTRL_D)
    with pytest.raises(EOFError):
        keyboard.read("base")
    keys.send_text(CTRL_C)
    with pytest.raises(KeyboardInterrupt):
        keyboard.read("base")


@pytest.mark.parametrize(
    ("typed", "entry"),
    [
        ("abc" + CTRL_R + "zzz" + ENTER + ENTER, "abc"),
        ("abc" + CTRL_R + "zzz" + CTRL_C + "d" + ENTER, "abcd"),
        ("abc" + CTRL_R + CTRL_C + "d" + ENTER, "abcd"),
        (CTRL_R + "won" + ENTER + ENTER, "Who won?"),
        ("abc" + CTRL_R + "won" + CTRL_C + ENTER, "abc"),
    ],
)
def test_a_search_through_past_lines_ends_with_enter_or_ctrl_c(
    typed: str, entry: str, keys: PipeInput, keyboard: Keyboard
) -> None:
    """Found by reading: neither key left the search, and the prompt took no entry any more."""
    keys.send_text("Who won?" + ENTER)
    keyboard.read("base")
    keys.send_text(typed)
    keys.close()  # a prompt that waits for more fails
    assert keyboard.read("base") == entry


def test_entries_go_into_the_history_file(keys: PipeInput, keyboard: Keyboard, tmp_path: Path) -> None:
    keys.send_text("first" + ALT_ENTER + "entry" + ENTER)
    keyboard.read("base")
    assert list(FileHistory(str(tmp_path / "history")).load_history_strings()) == ["first\nentry"]


def test_a_history_that_cannot_be_kept_is_said_and_typing_goes_on(
    keys: PipeInput, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    keyboard = Keyboard(tmp_path / "file" / "history", list, keys=keys, output=DummyOutput())
    assert "past lines are not kept" in capsys.readouterr().err
    keys.send_text("x" + ENTER)
    assert keyboard.read("base") == "x"


def test_a_history_that_cannot_be_written_any_more_is_said_once_and_typing_goes_on(
    keys: PipeInput, keyboard: Keyboard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found by reading: of a disk that filled up while one typed nothing was said."""
    keys.send_text("one" + ENTER)
    assert keyboard.read("base") == "one"
    (tmp_path / "history").unlink()
    (tmp_path / "history").mkdir()
    for entry in ("two", "three"):
        keys.send_text(entry + ENTER)
        assert keyboard.read("base") == entry
    err = capsys.readouterr().err
    assert err.count("past lines are not kept") == 1
    assert f"error: {tmp_path / 'history'}: Is a directory: past lines are not kept\n" in err


def completions(text: str) -> list[str]:
    completer = LineCompleter(lambda: ["stanley-cup", "support"])
    return [
        text[: len(text) + c.start_position] + c.text
        for c in completer.get_completions(Document(text), CompleteEvent())
    ]


@pytest.mark.parametrize(
    ("typed", "ways_on"),
    [
        ("/ad", ["/adapter", "/adapters"]),
        ("/adapter ", ["/adapter stanley-cup", "/adapter support", "/adapter off"]),
        ("/adapter st", ["/adapter stanley-cup"]),
        ("/adapter support:0.7+st", ["/adapter support:0.7+stanley-cup"]),
        ("/set t", ["/set temperature", "/set top_p"]),
        ("/system d", ["/system default"]),
        ("/thinking o", ["/thinking on", "/thinking off"]),
        ("/help ", []),
        ("who /ad", []),
        ("/system one\n/ad", []),
        ("", []),
    ],
)
def test_commands_and_their_arguments_are_completed(typed: str, ways_on: list[str]) -> None:
    assert completions(typed) == ways_on


def test_paths_are_completed_where_a_path_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "rows.jsonl").write_text("")
    assert completions("/adapter ./r") == ["/adapter ./runs"]
    assert sorted(completions("/save ./r")) == ["/save ./rows.jsonl", "/save ./runs"]
    assert completions("/help ./r") == []
