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


class Run:
    """A run on the screen of a log file, with a line for every step."""

    def __init__(self, capsys: pytest.CaptureFixture[str], total: int, eval_every: int | None = None) -> None:
        self.screen = screen.TrainScreen(1, total, eval_every)
        self._capsys, self._step = capsys, 0

    def left(self, *seconds: float, tokens: int = 100) -> str:
        """What the last line says of the time left, after steps of so many seconds."""
        for each in seconds:
            self._step += 1
            report = SimpleNamespace(
                step=self._step, loss=1.0, learning_rate=1e-3, targets=10, tokens=tokens, padding_share=0.0,
                seconds=each, peak_bytes=1,
            )  # fmt: skip
            self.screen.step(report)
        return self._capsys.readouterr().err.splitlines()[-1].partition("  left ")[2]


@pytest.fixture
def every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "PLAIN_LINE_SECONDS", 0.0)


@pytest.mark.usefixtures("every_line")
def test_neither_a_halt_nor_the_step_that_compiles_changes_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    """Reported in session 11: 9:44:37 for a run of 74 minutes, after a first step that compiled for 20 seconds."""
    run = Run(capsys, total=100)
    assert run.left(20.0) == ""  # nothing is known yet
    assert run.left(2.0) == "3:16"  # 98 steps of 2 seconds
    assert run.left(2.0, 2.0) == "3:12"
    assert run.left(602.0) == "3:10"  # halted for ten minutes
    assert run.left(2.0) == "3:08"
    assert run.left(20.0, 2.0) == "3:04"  # a row of another length was compiled
    assert run.left(*[2.0] * 92) == "0:00"


@pytest.mark.usefixtures("every_line")
def test_the_time_left_counts_long_rows_and_follows_a_machine_that_got_slower(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Run(capsys, total=1000)
    run.left(2.0)
    for _ in range(5):
        run.left(*[1.0] * 9, tokens=100)
        told = run.left(10.0, tokens=1000)
    assert told == f"{949 * 1.9 // 60:.0f}:{949 * 1.9 % 60:02.0f}"  # nine steps of 1 second, one of 10
    assert run.left(*[4.0] * 50) == "59:56"  # 899 steps of 4 seconds


@pytest.mark.usefixtures("every_line")
def test_the_time_left_has_the_validations_to_come_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(capsys, total=100, eval_every=30)
    run.screen.validation(0, 1.0, (0, 1), 30.0)
    assert run.left(9.0, 1.0) == "3:38"  # 98 steps, validations after 30, 60, 90 and 100
    assert run.left(*[1.0] * 28) == "3:10"  # step 30: its own is still to come
    run.screen.validation(30, 1.0, (0, 1), 30.0)
    assert run.left(1.0) == "2:39"
    assert run.left(*[1.0] * 69) == "0:30"


@pytest.mark.usefixtures("every_line")
def test_a_halt_does_not_pull_down_the_pace(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(capsys, total=100)
    for seconds in [1.0] * 9 + [3600.0, 1.0]:
        report = SimpleNamespace(
            step=1, loss=1.0, learning_rate=1e-3, targets=10, tokens=100, padding_share=0.0, seconds=seconds,
            peak_bytes=1,
        )  # fmt: skip
        run.screen.step(report)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[2:4] for line in lines] == [["10 trained tok/s", "100 tok/s"]] * 11
