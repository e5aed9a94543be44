"""The interactive chat from end to end, with written entries and a scripted voice."""

from pathlib import Path

import pytest

from mlx_lora.chat.lines import COMMANDS
from mlx_lora.chat.repl import Repl
from mlx_lora.chat.screen import TerminalScreen
from mlx_lora.chat.session import Session
from mlx_lora.dataset.records import read_records
from mlx_lora.lora.rendering import Rendering
from tests.chat.stand_ins import ScriptedVoice, WrittenEntries


@pytest.fixture(autouse=True)
def _in_a_folder_with_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("cup", "foreign"):
        folder = tmp_path / "adapters" / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")


def chat(voice: ScriptedVoice, *entries: str | BaseException) -> tuple[Session, WrittenEntries]:
    screen = TerminalScreen()
    session = Session(voice, screen)  # type: ignore[arg-type]
    reader = WrittenEntries(*entries)
    Repl(session, screen, reader).run()
    return session, reader


def errors(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_answers_are_on_stdout_and_the_talk_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    chat(ScriptedVoice("Paris.", "Rome."), "France?", "", "  ", "Italy?")
    out, err = capsys.readouterr()
    assert out == "Paris.\nRome.\n"
    assert err.startswith("base     tiny\ncompute  float32\nadapter  none: the base answers (/adapter NAME)\n")
    assert "answers  greedy, at most 512 tokens\n" in err


def test_the_header_names_the_adapter_and_the_system_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    voice = ScriptedVoice(adapters=["cup"])
    voice.use(Path("cup"))
    voice.rendering = Rendering("Be [brief].")
    chat(voice)
    err = errors(capsys)
    assert "adapter  cup · adapter active: 7/7 modules, ‖ΔW‖/‖W‖ = 0.01\n" in err
    assert "system   Be [brief].\n" in err
    assert "note: a note\n" in err


def test_every_command_has_its_action_and_its_line_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    voice = ScriptedVoice()
    screen = TerminalScreen()
    repl = Repl(Session(voice, screen), screen, WrittenEntries())  # type: ignore[arg-type]
    assert set(repl._actions) == set(COMMANDS)
    repl.obey("/help")
    err = errors(capsys)
    for usage in COMMANDS.values():
        assert f"/{usage.name}" in err
        assert usage.help in err


def test_ctrl_c_at_an_empty_prompt_says_how_to_leave_and_ctrl_d_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    _, reader = chat(ScriptedVoice(), KeyboardInterrupt(), EOFError(), "never read")
    assert "Ctrl-D or /quit leaves" in errors(capsys)
    assert reader.entries == ["never read"]


def test_quit_leaves() -> None:
    _, reader = chat(ScriptedVoice(), "/quit", "never read")
    assert reader.entries == ["never read"]


def test_an_unknown_command_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    session, _ = chat(ScriptedVoice(), "/rety")
    assert "error: /rety is not a command\nhint: did you mean /retry or" in errors(capsys)
    assert session.conversation.turns == []


def test_a_command_that_takes_nothing_refuses_what_stands_behind_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Found by reading: `/undo 2` took back one turn, `/reset the tale` the conversation, without a word."""
    session, reader = chat(ScriptedVoice("a", "b"), "one", "two", "/undo 2", "/reset the tale", "/retry more", "/q now")
    err = errors(capsys)
    assert "error: /undo takes nothing after it, and got 2\nhint: /undo alone does it" in err
    assert "error: /reset takes nothing after it, and got the tale\n" in err
    assert "error: /quit takes nothing after it, and got now\n" in err
    assert [turn.question for turn in session.conversation.turns] == ["one", "two"]
    assert reader.labels == ["base"] * 7


def test_bytes_that_are_no_text_are_refused_and_the_chat_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    """Found by reading: a terminal in Latin-1 sends them, and in the tokenizer they ended the chat with a traceback."""
    session, _ = chat(ScriptedVoice("a"), "Z\udcfcrich?", "/system \udcff", "Bern?")
    assert errors(capsys).count("error: what was typed is not UTF-8\nhint: is your terminal set to UTF-8?\n") == 2
    assert [turn.question for turn in session.conversation.turns] == ["Bern?"]


def test_after_adapter_off_the_base_is_said_to_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """Found by reading: /adapter alone still said that the adapter was active."""
    chat(ScriptedVoice(adapters=["cup"]), "/adapter cup", "/adapter off", "/adapter")
    said = errors(capsys).splitlines()
    assert said[-1] == "off: the base answers, its prompts written as cup wants them"


def test_the_prompt_shows_who_answers_and_the_conversation_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    voice = ScriptedVoice("a", "b", "c", adapters=["cup"])
    _, reader = chat(voice, "one", "/adapter cup", "two", "/adapter off", "three", "/adapter")
    assert reader.labels == ["base", "base", "cup", "cup", "base", "base", "base"]
    assert [message["content"] for message in voice.seen[-1]] == ["one", "a", "two", "b", "three"]
    assert "cup · adapter active: 7/7 modules" in errors(capsys)


def test_a_wrong_adapter_leaves_the_one_before(capsys: pytest.CaptureFixture[str]) -> None:
    _, reader = chat(
        ScriptedVoice(adapters=["cup"]), "/adapter cup", "/adapter cpu", "/adapter foreign", "/adapter ./nowhere"
    )
    err = errors(capsys)
    assert "did you mean cup?" in err
    assert "belongs to another base" in err
    assert "adapter ./nowhere: no such folder" in err
    assert reader.labels[-1] == "cup"


def test_adapters_are_listed_and_the_active_one_marked(capsys: pytest.CaptureFixture[str]) -> None:
    chat(ScriptedVoice(adapters=["cup"]), "/adapter cup", "/adapters")
    listed = [line.rstrip() for line in errors(capsys).splitlines()]
    place = listed.index("* cup      7/7 modules")
    assert listed[place + 1] == "  foreign"


def test_compare_labels_both_answers(capsys: pytest.CaptureFixture[str]) -> None:
    session, _ = chat(ScriptedVoice("x", "y", adapters=["cup"]), "/adapter cup", "/compare Who?")
    out, err = capsys.readouterr()
    assert out == "X\ny\n"
    assert err.index("base\n1 token") < err.index("cup\n1 token")
    assert session.conversation.turns == []


def test_a_greedy_retry_that_repeats_itself_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    chat(ScriptedVoice("x", "x"), "q", "/retry")
    assert "greedy answers repeat: /set temperature 0.7 gives others" in errors(capsys)
    chat(ScriptedVoice("x", "y"), "q", "/retry")
    assert "greedy answers repeat" not in errors(capsys)


def test_undo_says_what_was_taken_back(capsys: pytest.CaptureFixture[str]) -> None:
    session, _ = chat(ScriptedVoice("x"), "q [1]", "/undo", "/undo")
    err = errors(capsys)
    assert "took back: q [1]\n" in err
    assert "error: nothing was asked yet" in err
    assert session.conversation.turns == []


def test_system_is_shown_set_dropped_and_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    voice = ScriptedVoice()
    voice.rendering = Rendering("Trained.")
    chat(voice, "/system", "/system Mine.", "/system none", "/system default")
    shown = [line for line in errors(capsys).splitlines() if line.startswith("system prompt: ")]
    assert [line.partition(": ")[2] for line in shown] == ["Trained.", "Mine.", "none", "Trained."]


def test_set_changes_the_answers_and_shows_how_they_are_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    session, _ = chat(ScriptedVoice(), "/set", "/set temperature 0.5", "/set seed", "/set top_k 3")
    err = errors(capsys)
    assert session.sampling.temperature == 0.5
    assert "temperature 0.5, top_p 1, seed random, at most 512 tokens" in err
    assert "error: /set seed: no value given" in err
    assert "error: top_k is not a setting\nhint: did you mean top_p?" in err


def test_a_setting_that_greedy_answers_do_not_know_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    chat(ScriptedVoice(), "/set seed 7", "/set top_p 0.5", "/set max_tokens 9", "/set temperature 1", "/set seed 8")
    said = [line for line in errors(capsys).splitlines() if "changes nothing while" in line]
    assert [line.split()[0] for line in said] == ["seed", "top_p"]
    chat(ScriptedVoice(), "/set seed random", "/set top_p 1")
    assert "changes nothing while" not in errors(capsys)


def test_reset_begins_a_new_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    voice = ScriptedVoice("a", "b")
    chat(voice, "one", "/reset", "two")
    assert [message["content"] for message in voice.seen[-1]] == ["two"]
    assert "a new conversation\n" in errors(capsys)


def test_thinking_is_shown_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    chat(ScriptedVoice("<think>hm</think>x", "<think>[so]</think>y"), "q", "/thinking", "/thinking on", "r")
    out, err = capsys.readouterr()
    assert out == "x\ny\n"
    assert "/thinking shows them)" in err
    assert "\nhm\n" in err
    assert "[so]\n\n" in err
    chat(ScriptedVoice(), "/thinking", "/thinking maybe")
    err = errors(capsys)
    assert "the last answer had no thinking" in err
    assert "error: /thinking maybe: expected on, off or nothing" in err


def test_saved_conversations_are_rows_that_training_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voice = ScriptedVoice(" a", "b")
    voice.rendering = Rendering("Trained.")
    chat(voice, "one", "/save", "/save rows.jsonl", "two", "/save")
    err = errors(capsys)
    assert "error: /save: no file given" in err
    assert f"saved as {tmp_path / 'rows.jsonl'}:1\n" in err
    assert f"saved as {tmp_path / 'rows.jsonl'}:2\n" in err
    records = read_records(str(tmp_path / "rows.jsonl"))
    assert [[m["content"] for m in record.messages] for record in records] == [
        ["Trained.", "one", "a"],
        ["Trained.", "one", "a", "two", "b"],
    ]


def test_a_place_that_leads_nowhere_is_refused_and_the_chat_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    voice = ScriptedVoice("Paris.", "Rome.")
    chat(voice, "France?", "/save ~nobody-of-this-name/chats.jsonl", "/adapter ~nobody-of-this-name/x", "Italy?")
    out, err = capsys.readouterr()
    assert err.count("there is no such home folder") == 2
    assert out == "Paris.\nRome.\n"


def test_an_answer_cut_short_in_the_middle_of_a_saved_conversation_is_noted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    voice = ScriptedVoice("abcdef", "g")
    voice.interrupt_after = 1
    chat(voice, "one", "/save rows.jsonl", "two", "/save rows.jsonl")
    err = errors(capsys)
    assert "error: the last answer was stopped by Ctrl-C" in err
    assert "note: cut short: answer 1; a row teaches the model to stop there" in err
    assert len(Path("rows.jsonl").read_text().splitlines()) == 1


def test_a_conversation_is_exported_as_markdown_and_nothing_is_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat(ScriptedVoice("Ann."), "/export", "Who?", "/export", "/export talk.md", "/export talk.md")
    out, err = capsys.readouterr()
    assert "error: nothing was asked yet, so there is nothing to export\n" in err
    assert f"written to {tmp_path / 'talk.md'}\n" in err
    assert "error: talk.md: exists already\n" in err
    text = (tmp_path / "talk.md").read_text()
    assert out == f"Ann.\n{text}"
    assert text.endswith("> Who?\n\n**base:**\n\nAnn.\n")
