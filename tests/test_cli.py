"""The command line as a shell meets it: help without weights, exit codes, where text goes, what keeps its traceback."""

import json
import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main
from typer.testing import CliRunner

import mlx_lora.commands.config
from mlx_lora import __main__, __version__
from mlx_lora.cli import app
from mlx_lora.errors import MlxLoraError

HEAVY = ("mlx", "mlx_lm", "transformers", "huggingface_hub", "numpy", "tokenizers", "datasets", "torch")
FAULTY = "model: x\ndata: {train: t.jsonl}\nlora: {rnak: 4}\ntrain: {epochs: 1}\noutput_dir: o\n"


def command_paths() -> list[list[str]]:
    """Every command and group of the app, as the words a person types."""
    paths: list[list[str]] = []

    def walk(command: object, words: list[str]) -> None:
        paths.append(words)
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, [*words, name])

    walk(typer.main.get_command(app), [])
    return paths


def run_program(*arguments: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """`python -m mlx_lora` in a process of its own, without a terminal."""
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "120", **variables}
    command = [sys.executable, "-m", "mlx_lora", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(FAULTY.replace("rnak", "rank"), encoding="utf-8")
    return path


def test_the_app_has_the_commands_that_the_readme_tells_of() -> None:
    assert {" ".join(words) for words in command_paths()} == {
        *("", "init", "check", "plan", "train", "eval", "report", "fuse", "export", "import", "chat", "serve"),
        *("config", "config schema", "config show"),
        *("push", "pull"),
        *("adapters", *(f"adapters {name}" for name in ("list", "show", "diff", "rm", "merge"))),
    }


ALL_HELP = """
import contextlib, io, json, sys
from mlx_lora.cli import app
answers = []
for words in json.loads(sys.argv[1]):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            app([*words, "--help"])
        except SystemExit as end:
            code = end.code
    answers.append([code, printed.getvalue()])
print(json.dumps([answers, sorted(set(sys.modules) & set(json.loads(sys.argv[2])))]))
"""


def test_help_of_every_command_answers_without_mlx_or_transformers() -> None:
    paths = command_paths()
    code = [sys.executable, "-c", ALL_HELP, json.dumps(paths), json.dumps(HEAVY)]
    run = subprocess.run(code, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "120"})
    answers, loaded = json.loads(run.stdout)
    assert loaded == []
    for words, (exit_code, text) in zip(paths, answers, strict=True):
        assert not exit_code, words
        assert "Usage: " in text, words
        assert " ".join(words) in text


def command_at(words: list[str]) -> Any:
    command: Any = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    return command


def test_every_command_argument_and_option_says_what_it_is_for() -> None:
    silent = []
    for words in command_paths():
        command = command_at(words)
        described = [(" ".join(words), command.help)]
        described += [(f"{' '.join(words)} {one.name}", getattr(one, "help", None)) for one in command.params]
        silent += [name for name, text in described if not (text or "").strip()]
    assert silent == []


def test_the_help_says_wherever_an_adapter_may_be_given_by_its_name() -> None:
    silent = []
    for words in command_paths():
        command = command_at(words)
        named = [one for one in command.params if one.name in ("adapter", "adapters", "runs", "first")]
        silent += [words for one in named if not re.search("names? under adapters/", getattr(one, "help", None) or "")]
    assert silent == []


def test_a_folder_of_adapters_is_listed_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shows").mkdir()
    assert CliRunner().invoke(app, ["adapters", "shows"]).exit_code == 0
    missing = CliRunner().invoke(app, ["adapters", "elsewhere/models"]).exception
    assert isinstance(missing, MlxLoraError)
    assert missing.message == "elsewhere/models: no such folder"


def test_the_module_prints_its_version() -> None:
    run = run_program("--version")
    assert (run.returncode, run.stdout, run.stderr) == (0, f"mlx-lora {__version__}\n", "")


def test_without_a_command_the_help_is_shown() -> None:
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert "train" in result.output


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["trian"], "trian"),
        (["train"], "CONFIG"),
        (["train", "run.yaml", "--steps", "5"], "--steps"),
        (["train", "run.yaml", "--resume", "--overwrite"], "--resume continues a run"),
        (["fuse", "adapter"], "--output"),
        (["eval", "adapter", "--limit", "0"], "--limit"),
        (["eval", "adapter", "--fail-under", "95"], "--fail-under"),
        (["chat", "--temperature", "warm"], "--temperature"),
        (["config", "show"], "CONFIG"),
        (["adapters", "shwo"], "Did you mean 'show'?"),
        (["adapters", "remove", "first"], "No such command 'remove'"),
        (["eval", "adapter", "--seed", str(2**64)], "--seed"),  # MLX has no such key: a traceback, after the load
        (["adapters", "merge", "a", "b", "-o", "both", "--method", "dare", "--seed", str(2**64)], "--seed"),
    ],
)
def test_a_usage_error_gives_exit_code_2_and_names_what_is_wrong(arguments: list[str], fact: str) -> None:
    result = CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1"}).invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert fact in re.sub(r"\x1b\[[0-9;]*m", "", result.stderr)


def test_a_users_error_gives_exit_code_1_with_place_fact_and_remedy_on_stderr_alone(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(FAULTY, encoding="utf-8")
    run = run_program("config", "show", "run.yaml", cwd=tmp_path)
    assert (run.returncode, run.stdout) == (1, "")
    error, hint = run.stderr.splitlines()
    assert error == "error: run.yaml:3: lora.rnak is not a setting"
    assert hint.strip() == "hint: did you mean lora.rank?"


def test_debug_shows_the_traceback_of_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(FAULTY, encoding="utf-8")
    run = run_program("config", "show", "run.yaml", cwd=tmp_path, MLX_LORA_DEBUG="1")
    assert (run.returncode, run.stdout) == (1, "")
    assert "Traceback (most recent call last)" in run.stderr
    assert "lora.rnak is not a setting" in run.stderr


def call_main(monkeypatch: pytest.MonkeyPatch, path: Path, error: BaseException) -> None:
    """`mlx-lora config show PATH` in this process, where the recipe raises `error`."""

    def fail(*arguments: object, **settings: object) -> int:
        raise error

    monkeypatch.setattr(mlx_lora.commands.config, "run_config_show", fail)
    monkeypatch.setattr(sys, "argv", ["mlx-lora", "config", "show", str(path)])
    monkeypatch.delenv("MLX_LORA_DEBUG", raising=False)
    __main__.main()


def test_text_in_brackets_is_printed_as_it_is(
    run_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        call_main(monkeypatch, run_file, MlxLoraError("data[0]: [bold]no[/bold] list", "write [q_proj, v_proj]"))
    assert end.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "error: data[0]: [bold]no[/bold] list\nhint: write [q_proj, v_proj]\n"


def test_a_bug_keeps_its_traceback(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="a bug of ours"):
        call_main(monkeypatch, run_file, ValueError("a bug of ours"))


def test_an_unexpected_end_of_file_is_a_bug_and_keeps_its_traceback(
    run_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError, match="ended too early") as caught:
        call_main(monkeypatch, run_file, EOFError("no data left"))
    assert isinstance(caught.value.__cause__, EOFError)
    assert "Aborted" not in capsys.readouterr().err  # what Typer makes of it


BUG = """
import sys
import mlx_lora.commands.config
from mlx_lora.__main__ import main

def fail(*arguments, **settings):
    raise ValueError("a bug of ours")

mlx_lora.commands.config.run_config_schema = fail
sys.argv = ["mlx-lora", "config", "schema"]
main()
"""


def test_the_traceback_of_a_bug_reaches_stderr_without_the_word_hint() -> None:
    run = subprocess.run([sys.executable, "-c", BUG], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("Traceback (most recent call last)")
    assert run.stderr.endswith("ValueError: a bug of ours\n")
    assert "hint:" not in run.stderr


def test_ctrl_c_ends_with_130_and_without_a_traceback(
    run_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        call_main(monkeypatch, run_file, KeyboardInterrupt())
    assert end.value.code == 130
    printed = capsys.readouterr()
    assert (printed.out, "Traceback" in printed.err) == ("", False)


def run_without_reader(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`python -m mlx_lora` whose stdout is a pipe that nobody reads, as after `| head`; buffered as in a shell."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "mlx_lora", *arguments]
    try:
        return subprocess.run(
            command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, cwd=cwd, env=environment
        )
    finally:
        os.close(writing)


# Text longer than Python's buffer breaks the pipe while it is written, shorter text when the buffer is flushed at the
# end. Typer turns the first into exit code 1.
@pytest.mark.parametrize("arguments", [["config", "schema"], ["config", "show", "run.yaml"], ["--version"]])
def test_a_reader_of_stdout_that_has_left_ends_the_program_quietly(arguments: list[str], run_file: Path) -> None:
    run = run_without_reader(*arguments, cwd=run_file.parent)
    assert run.stderr == ""
    assert run.returncode in (1, 141)


class Interrupted:
    """A module whose import was interrupted."""

    def __getattr__(self, name: str) -> object:
        raise KeyboardInterrupt


def test_ctrl_c_while_the_program_is_still_imported_gives_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx_lora.cli", Interrupted())  # type: ignore[misc]
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert end.value.code == 130


# Longer than Python's buffer, shorter, and printed by Typer.
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("arguments", [["config", "schema"], ["config", "show", "run.yaml"], ["--version"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_stdout_is_an_error_of_one_line(
    arguments: list[str], unbuffered: str, run_file: Path
) -> None:
    command = [sys.executable, "-m", "mlx_lora", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("wb") as full:
        run = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=run_file.parent, env=environment
        )
    assert (run.returncode, run.stderr.splitlines()[0]) == (1, "error: stdout: No space left on device")
    assert [line.partition(":")[0] for line in run.stderr.splitlines()] == ["error", "hint"]


@pytest.mark.parametrize(
    ("arguments", "closed", "code", "said"),
    [
        (["config", "show", "run.yaml"], ">&-", 1, "error: stdout: Bad file descriptor"),
        (["init", "new"], ">&-", 0, "wrote new/run.yaml"),  # has nothing to say there
        (["init", "new"], "2>&-", 0, ""),
        (["config", "show", "none.yaml"], "2>&-", 1, ""),
        (["chat"], "<&-", 1, "error: stdin: no question in it"),
    ],
)
def test_a_stream_that_was_closed_is_missed_only_by_those_who_need_it(
    arguments: list[str], closed: str, code: int, said: str, run_file: Path
) -> None:
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "mlx_lora", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=run_file.parent)
    assert (run.returncode, (run.stderr.splitlines() or [""])[0]) == (code, said)
    assert "Traceback" not in run.stdout + run.stderr
    assert (run_file.parent / "new" / "run.yaml").is_file() == (arguments[0] == "init")


def test_a_pipe_gets_utf_8_and_a_terminal_what_it_can_show(run_file: Path) -> None:
    piped = run_program("config", "show", "run.yaml", cwd=run_file.parent, PYTHONIOENCODING="ascii")
    assert (piped.returncode, piped.stderr) == (0, "")
    assert "update B·A." in piped.stdout
    leading, following = pty.openpty()
    command = [sys.executable, "-m", "mlx_lora", "config", "show", "run.yaml"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    shown = subprocess.Popen(command, stdout=following, cwd=run_file.parent, env=environment)
    os.close(following)
    pieces = []
    with suppress(OSError):  # what Linux says where the other side has gone
        while piece := os.read(leading, 4096):
            pieces.append(piece)
    os.close(leading)
    assert shown.wait() == 0
    assert b"update B\\xb7A." in b"".join(pieces)


def test_without_a_terminal_errors_carry_no_colour(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(FAULTY, encoding="utf-8")
    command = [sys.executable, "-m", "mlx_lora", "config", "show", "run.yaml"]
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.stderr.startswith("error: ")
    assert "\x1b" not in run.stderr
