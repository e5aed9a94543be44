"""What the README and the troubleshooting page say: commands parse, files exist, run files load, messages are ours."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.core
import typer.main
from typer.testing import CliRunner

from mlx_lora.cli import app
from mlx_lora.runfile import load_config

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/EVALUATION.md", "docs/TROUBLESHOOTING.md", "docs/EXPORT.md", "docs/SERVE.md")
FILE = re.compile(r"(?:configs|data|docs|adapters|benchmarks|tests)/[\w./-]*\w")
MADE_LATER = (
    "adapters/demo",
    "adapters/sample",
    "adapters/my-run",
    "adapters/theirs",
    "adapters/taken-over",
    "adapters/stanley-cup-modern/report.html",
    "data/train.jsonl",
    "data/test.jsonl",
)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def command_lines(text: str) -> Iterator[str]:
    """Every `mlx-lora …` in backquotes or on a line of its own, without what a shell would drop."""
    for line in text.splitlines():
        code = [line] if line.startswith("    ") else re.findall(r"`([^`]+)`", line)
        for piece in code:
            found = re.match(r"\s*(?:\$ )?(?:\.venv/bin/)?mlx-lora (.+)$", piece)
            if found is not None:
                yield found[1]


def parse(line: str) -> str:
    """Parse arguments as the app would, without running anything; the command's words."""
    words = shlex.split(line, comments=True)
    command: Any = typer.main.get_command(app)
    path = []
    while isinstance(command, typer.core.TyperGroup) and words and words[0] in command.commands:
        path.append(words[0])
        command = command.commands[words.pop(0)]
    assert path, f"mlx-lora {line}: no such command"
    if not isinstance(command, typer.core.TyperGroup):
        arguments = ["adapter" if word in ("ADAPTER", "[ADAPTER]") else word for word in words]
        command.make_context("mlx-lora", arguments)
    return " ".join(path)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_line_parses(page: str) -> None:
    lines = list(command_lines(read(page)))
    assert lines
    for line in lines:
        try:
            parse(line)
        except Exception as error:
            pytest.fail(f"{page}: mlx-lora {line}: {error}")


def test_a_line_with_an_option_that_does_not_exist_is_found() -> None:
    with pytest.raises(Exception, match="--steps"):
        parse("train run.yaml --steps 5")
    with pytest.raises(AssertionError, match="no such command"):
        parse("trian run.yaml")


def test_the_readme_shows_every_command() -> None:
    leaves = {"init", "check", "plan", "train", "eval", "report", "fuse", "export", "import", "chat", "serve"}
    leaves |= {"config show", "config schema"}
    leaves |= {"push", "pull"}
    leaves |= {"adapters", *(f"adapters {name}" for name in ("show", "diff", "merge", "rm"))}
    assert {parse(line) for line in command_lines(read("README.md"))} >= leaves


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    names = {name for name in FILE.findall(read(page)) if not name.startswith(MADE_LATER)}
    names |= set(re.findall(r"\]\(([^)#:]+)\)", read(page)))
    assert names
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []


def test_every_run_file_in_the_readme_loads_and_its_data_is_there(tmp_path: Path) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", read("README.md"), flags=re.DOTALL | re.MULTILINE)
    assert blocks
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block, encoding="utf-8")
        config = load_config(path)
        for source in (config.data.train, config.data.valid, config.data.test):
            assert source is None or (ROOT / source).is_file()


def test_what_push_would_send_is_what_the_readme_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    run = CliRunner().invoke(app, ["push", "stanley-cup-modern", "anna/stanley-cup", "--dry-run"])
    assert run.exit_code == 0
    assert run.stderr.splitlines()[0] == "anna/stanley-cup (private) would get:"
    assert "".join(f"    {line}\n" for line in run.stderr.splitlines()) in read("README.md")


def test_the_messages_that_the_pages_explain_are_those_of_the_program() -> None:
    """Every symptom in backquotes: its longest piece between the parts that vary stands in the source."""
    program = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "mlx_lora").rglob("*.py")))
    program = re.sub(r"\{[^{}]*\}", "…", re.sub(r'"\s*\n\s*f?"', "", program)).replace("\\n", " ")
    missing = []
    for page in PAGES:
        for row in re.findall(r"^\| `([^`]+)`", read(page).partition("Troubleshooting")[2], flags=re.MULTILINE):
            longest = max((piece.strip() for piece in row.split("…")), key=len)
            if longest not in program:
                missing.append(f"{page}: {longest}")
    assert missing == []


def test_the_pages_name_no_figure_for_a_gpu_that_was_never_measured() -> None:
    assert "has been measured on Metal yet" in re.sub(r"\s+", " ", read("README.md"))
