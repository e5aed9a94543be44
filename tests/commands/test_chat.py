"""`mlx-lora chat`: one answer with -p, answers to a pipe, and the prompt of a person."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

import mlx_lora.chat.voice
from mlx_lora.commands.chat import run_chat
from mlx_lora.errors import AdapterError, MlxLoraError, ModelError
from mlx_lora.model.generate import generate_answers
from mlx_lora.model.load import load_base
from tests.chat.stand_ins import ScriptedVoice
from tests.tiny import save_tiny_folder


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_LORA_CACHE", str(tmp_path / "cache"))


def chat(prompt: str | None = None, *, adapter: str | None = None, **settings: Any) -> int:
    given: dict[str, Any] = {
        "model": None,
        "revision": None,
        "system": None,
        "temperature": 0.0,
        "top_p": 1.0,
        "max_tokens": 512,
        "seed": None,
    }
    return run_chat([] if adapter is None else [str(adapter)], prompt=prompt, **{**given, **settings})


def give_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> ScriptedVoice:
    """A voice in place of the one that chat would load."""
    voice = ScriptedVoice("Paris.", "Rome\n\nis it.", "Bern.")
    monkeypatch.setattr(mlx_lora.chat.voice, "load_voice", lambda folder, *, model, revision: voice)
    return voice


def test_one_question_gives_the_greedy_answer_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_tiny_folder(tmp_path / "base")
    base = load_base(str(folder))
    prompt = base.tokenizer.encode("<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n")
    expected = generate_answers(base.model, base.tokenizer, [prompt], max_tokens=8)[0].text
    assert chat("Who?", model=str(folder), max_tokens=8) == 0
    assert capsys.readouterr().out == f"{expected.strip()}\n"


def test_sampled_answers_repeat_with_their_seed_and_differ_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(save_tiny_folder(tmp_path / "base"))
    answers = []
    for seed in (1, 1, 2):
        chat("Who?", model=folder, max_tokens=8, temperature=1.0, seed=seed)
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != answers[2]


def test_one_question_ignores_stdin_and_takes_the_system_prompt(
    scripted: ScriptedVoice, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give_stdin(monkeypatch, b"not read")
    assert chat("France?", system="Be brief.") == 0
    assert capsys.readouterr() == ("Paris.\n", "")
    assert scripted.seen == [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "France?"}]]


def test_a_dash_takes_all_of_stdin_as_one_question_with_its_lines(
    scripted: ScriptedVoice, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give_stdin(monkeypatch, "\ufeffFrance,\r\n\n  its capital?\n".encode())
    assert chat("-") == 0
    assert capsys.readouterr().err == ""
    assert scripted.seen == [[{"role": "user", "content": "France,\n\n  its capital?"}]]


@pytest.mark.parametrize(("content", "fact"), [(b" \n", "stdin: no question in it"), (b"\xff?", "stdin: not UTF-8")])
def test_a_dash_without_a_text_in_stdin_is_refused(content: bytes, fact: str, monkeypatch: pytest.MonkeyPatch) -> None:
    give_stdin(monkeypatch, content)
    with pytest.raises(MlxLoraError, match=fact):
        chat("-")


def test_options_that_greedy_answers_do_not_know_are_said_to_change_nothing(
    scripted: ScriptedVoice, capsys: pytest.CaptureFixture[str]
) -> None:
    chat("France?", seed=7, top_p=0.5)
    notes = [f"note: --{name} changes nothing: answers are greedy (--temperature 0)\n" for name in ("top-p", "seed")]
    assert capsys.readouterr() == ("Paris.\n", "".join(notes))
    chat("Italy?", seed=7, top_p=0.5, temperature=1.0)
    assert capsys.readouterr().err == ""


def test_an_empty_system_prompt_is_none(scripted: ScriptedVoice) -> None:
    chat("France?", system="")
    assert scripted.seen == [[{"role": "user", "content": "France?"}]]


def test_lines_of_a_pipe_are_turns_of_one_conversation_and_answers_one_line_each(
    scripted: ScriptedVoice, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give_stdin(monkeypatch, "\ufeffFrance?\r\n\n  Italy?\n/help".encode())
    assert chat() == 0
    assert capsys.readouterr() == ("Paris.\nRome is it.\nBern.\n", "")
    asked = [message["content"] for message in scripted.seen[-1]]
    assert asked == ["France?", "Paris.", "Italy?", "Rome\n\nis it.", "/help"]


@pytest.mark.parametrize("content", [b"", b"\n  \n"])
def test_an_empty_stdin_is_refused_before_anything_is_loaded(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    give_stdin(monkeypatch, content)
    with pytest.raises(MlxLoraError, match="stdin: no question in it"):
        chat(model="nowhere/nothing/at-all")


def test_a_line_that_is_not_utf_8_is_named(scripted: ScriptedVoice, monkeypatch: pytest.MonkeyPatch) -> None:
    give_stdin(monkeypatch, b"France?\n\xff\xfe\n")
    with pytest.raises(MlxLoraError, match="stdin:2: not UTF-8"):
        chat()


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"prompt": " "}, "-p: the question is empty"),
        ({"prompt": "\udcff"}, "-p: not UTF-8"),
        ({"prompt": "x", "system": "\udcff"}, "--system: not UTF-8"),
        ({"prompt": "x", "temperature": float("nan")}, "temperature is nan"),
        ({"prompt": "x", "top_p": 0.0}, "top_p is 0.0"),
        ({"prompt": "x", "seed": 2**32}, "seed is 4294967296"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_loaded(settings: dict[str, Any], fact: str) -> None:
    with pytest.raises(MlxLoraError, match=fact):
        chat(**settings, model="nowhere/nothing/at-all")


def test_a_wrong_adapter_and_a_wrong_model_are_refused() -> None:
    with pytest.raises(AdapterError, match="adapter zzz: no such folder"):
        chat("x", adapter="zzz")
    with pytest.raises(ModelError, match="no such folder"):
        chat("x", model="./nowhere")


def test_a_full_context_ends_a_pipe_with_an_error_after_the_answers_so_far(
    scripted: ScriptedVoice, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted.context = 20
    give_stdin(monkeypatch, b"France?\nAnd what of Italy, the boot?\n")
    with pytest.raises(ModelError, match="too long"):
        chat()
    assert capsys.readouterr().out == "Paris.\n"


@pytest.mark.parametrize("prompt", ["France?", None])
def test_ctrl_c_ends_an_answer_and_the_command_with_130(
    prompt: str | None,
    scripted: ScriptedVoice,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    give_stdin(monkeypatch, b"France?\nItaly?\n")
    scripted.interrupt_after = 2
    assert chat(prompt) == 130
    assert capsys.readouterr().out == "Pari\n"
    assert len(scripted.replies) == 2


def test_ctrl_c_while_loading_ends_the_command_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_voice(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(mlx_lora.chat.voice, "load_voice", load_voice)
    assert chat("France?") == 130


def test_a_reader_of_stdout_that_has_left_ends_the_command_quietly(
    scripted: ScriptedVoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert chat("France?") == 141


def test_a_terminal_opens_the_prompt_and_keeps_its_history(
    scripted: ScriptedVoice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("France?\rand\\\rItaly?\r/quit\r")
        assert chat() == 0
    out, err = capsys.readouterr()
    assert out == "Paris.\nRome\n\nis it.\n"
    assert "base     tiny\n" in err
    assert scripted.seen[-1][-1]["content"] == "and\nItaly?"
    assert "+France?\n" in (tmp_path / "cache" / "chat_history").read_text()


def test_the_command_is_imported_without_mlx_transformers_or_prompt_toolkit() -> None:
    heavy = "{'mlx', 'mlx_lm', 'transformers', 'prompt_toolkit', 'numpy'}"
    code = f"import sys, mlx_lora.commands.chat; print(sorted(set(sys.modules) & {heavy}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
