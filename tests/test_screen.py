"""What a log file gets to see of long work: lines, at most one in ten seconds."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from mlx_lora import screen
from mlx_lora.commands import trainsummary
from mlx_lora.config import RunConfig
from mlx_lora.screen import format_bytes


def test_rows_without_a_terminal_are_counted_in_a_line_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(screen.time, "monotonic", lambda: now)
    with screen.counted_rows("asking [base]", total=8) as advance:
        for _ in range(8):
            now += 4.0
            advance()
    assert capsys.readouterr() == ("", "asking [base]: row 3 of 8\nasking [base]: row 6 of 8\n")


def test_brackets_in_a_name_are_shown_and_change_no_style(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=True, no_color=True, highlight=False)
    monkeypatch.setattr(screen, "talk", console)
    with screen.counted_rows("adapters/a[cyan], test[/]", total=2) as advance:
        advance()
    assert "adapters/a[cyan], test[/]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_first_lines_of_a_run_name_its_base_and_folder_whole_in_a_log_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    console = Console(file=io.StringIO(), width=40, highlight=False)
    monkeypatch.setattr(trainsummary, "talk", console)
    config = RunConfig.model_validate(
        {"model": "m", "data": {"train": "t.jsonl"}, "train": {"epochs": 1}, "output_dir": f"adapters/{'long-' * 9}"}
    )
    base = SimpleNamespace(identity=SimpleNamespace(name="tiny[4bit]"), compute="float32 (CPU device)")
    injection = SimpleNamespace(trainable_parameters=1, total_parameters=10, modules=[1])
    trainsummary.print_header(config, base, injection, 2, 1)  # type: ignore[arg-type]
    first, _, last = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert first == "tiny[4bit]  float32 (CPU device)"
    assert last == f"2 training rows, 1 validation rows → {config.output_dir}"


@pytest.mark.parametrize(
    ("count", "shown"),
    [(999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_999, "1.0 MB"), (999_960_000, "1.0 GB")],
)
def test_bytes_are_never_a_thousand_of_a_unit(count: int, shown: str) -> None:
    assert format_bytes(count) == shown
