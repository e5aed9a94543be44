"""The loss curve at the end of a run: its dots, its labels, and where it is left out."""

import io
import math

import pytest
from rich.console import Console

from mlx_lora.commands import losscurve, trainsummary
from mlx_lora.commands.losscurve import draw_bars, draw_losses, print_loss_curve
from tests.report.run_folders import START, step, validation, write_run


def drawn(losses, validations=(), columns=20):
    return [line.plain for line in draw_losses(losses, validations, columns)]


def test_a_falling_line_goes_from_the_top_left_to_the_bottom_right():
    lines = drawn([(float(number), 20.0 - number / 10) for number in range(1, 101)])
    assert lines[0].startswith("loss, nats a token (linear)   ⣀⡠⠊ training, mean of about 5 steps")
    rows = [line.partition("┤")[2] for line in lines[1:9]]
    assert [row[0] for row in rows if row and row[0] != " "] == ["⠑"]
    assert all(len(row) <= 20 for row in rows)
    first = [len(row) - len(row.lstrip()) for row in rows if row]
    assert first == sorted(first)
    assert lines[9] == "        └" + "─" * 20
    assert lines[10] == "         0" + "step 100".rjust(19)


def test_validations_are_marked_where_they_lie():
    lines = drawn([(1.0, 4.0), (2.0, 3.0), (3.0, 2.0), (4.0, 1.0)], [(0.0, 4.0), (4.0, 1.0), (2.0, math.nan)])
    marks = [(row, line.index("●") - 9) for row, line in enumerate(lines[1:9]) if "●" in line]
    assert marks == [(0, 0), (6, 19)]
    assert "● validation" in lines[0]
    assert "● validation" not in drawn([(1.0, 4.0), (2.0, 3.0)])[0]


def test_bars_lie_under_their_steps_and_are_labelled_with_the_highest():
    rates = [(1.0, 0.001), (2.0, 0.002), (3.0, 0.004), (4.0, 0.004), (5.0, math.nan), (6.0, 0.0)]
    assert draw_bars("learning rate", rates, 12).plain == "  0.004  ▃▃▅▅██████▁▁  learning rate"
    assert draw_bars("gradient norm", [(1.0, 0.0), (2.0, 0.0)], 4).plain == "      0  ▁▁▁▁  gradient norm"


def test_a_wide_span_has_a_logarithmic_axis():
    lines = drawn([(float(number), 10.0 / number**2) for number in range(1, 30)])
    assert "(log)" in lines[0]
    assert [line.split("┤")[0].strip() for line in lines[1:9] if line.split("┤")[0].strip()] == [
        "10",
        "1",
        "0.1",
        "0.01",
    ]


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "one", [START, validation(0, 5.0), *[step(number) for number in range(1, 7)]])


def printed(monkeypatch, folder, **settings):
    console = Console(file=io.StringIO(), width=settings.pop("width", 80), highlight=False, **settings)
    monkeypatch.setattr(losscurve, "talk", console)
    print_loss_curve(folder)
    return console.file.getvalue()


def test_it_is_drawn_on_a_terminal_and_nowhere_else(monkeypatch, folder):
    lines = printed(monkeypatch, folder, force_terminal=True, color_system=None).splitlines()
    assert len(lines) == 13
    assert max(map(len, lines)) <= 80
    assert [line.split("  ")[-1].strip() for line in lines[-2:]] == ["learning rate", "gradient norm"]
    assert printed(monkeypatch, folder, force_terminal=False) == ""
    assert printed(monkeypatch, folder, force_terminal=True, width=20) == ""


def test_without_colour_nothing_is_coloured(monkeypatch, folder):
    assert "\x1b[36m" in printed(monkeypatch, folder, force_terminal=True, color_system="standard")
    plain = printed(monkeypatch, folder, force_terminal=True, color_system="standard", no_color=True)
    assert "\x1b[36m" not in plain
    assert "●" in plain


def test_a_terminal_that_knows_no_braille_gets_none(monkeypatch, folder):
    class Latin(io.StringIO):
        encoding = "latin-1"

    console = Console(file=Latin(), width=80, force_terminal=True)
    monkeypatch.setattr(losscurve, "talk", console)
    print_loss_curve(folder)
    assert console.file.getvalue() == ""


def test_the_summary_of_a_run_draws_it_before_what_is_next(monkeypatch, folder):
    console = Console(file=io.StringIO(), width=80, force_terminal=True, no_color=True, highlight=False)
    for module in (losscurve, trainsummary):
        monkeypatch.setattr(module, "talk", console)
    summary = {
        "ended_by": "steps",
        "steps": 6,
        "seconds": 12.0,
        "adapter_bytes": 1,
        "peak_bytes": 1,
        "best_step": 6,
        "kept_step": 6,
    }
    summary |= {"base_validation_loss": 5.0, "best_validation_loss": 0.5, "better_than_start": True}
    trainsummary.print_summary(summary, folder, "mlx-lora train run.yaml --resume")
    printed = console.file.getvalue()
    assert 0 <= printed.index("6 steps in 0:12") < printed.index("loss, nats a token") < printed.index("next:")


@pytest.mark.parametrize("best", [3, 6])
def test_the_summary_names_the_last_steps_adapter_where_an_earlier_one_was_kept(best, capsys, tmp_path):
    last = tmp_path / "checkpoints/00000006"
    last.mkdir(parents=True)
    summary = {"ended_by": "steps", "steps": 6, "seconds": 12.0, "adapter_bytes": 1, "peak_bytes": 1}
    summary |= {"base_validation_loss": 5.0, "best_validation_loss": 0.5, "better_than_start": True}
    summary |= {"best_step": best, "kept_step": best}
    trainsummary.print_summary(summary, tmp_path, "mlx-lora train run.yaml --resume")
    shown = capsys.readouterr().err
    assert f"kept step {best}" in shown
    assert (f"to ask it too: mlx-lora eval {last}\n" in shown) is (best == 3)


def test_the_commands_that_the_summary_names_can_be_pasted(capsys, tmp_path):
    folder = tmp_path / "my run"
    (folder / "checkpoints/00000006").mkdir(parents=True)
    summary = {"ended_by": "steps", "steps": 6, "seconds": 12.0, "adapter_bytes": 1, "peak_bytes": 1, "best_step": 3}
    summary |= {"base_validation_loss": 5.0, "best_validation_loss": 0.5, "better_than_start": True, "kept_step": 3}
    trainsummary.print_summary(summary, folder, "mlx-lora train run.yaml --resume")
    shown = capsys.readouterr().err
    assert f"to ask it too: mlx-lora eval '{folder}/checkpoints/00000006'\n" in shown
    assert f"next:\n  mlx-lora eval '{folder}' --base\n  mlx-lora chat '{folder}'\n" in shown


def test_too_few_steps_make_no_curve(monkeypatch, tmp_path):
    few = write_run(tmp_path / "few", [START, step(1), step(2), step(3)])
    assert printed(monkeypatch, few, force_terminal=True) == ""
