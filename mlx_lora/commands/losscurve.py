"""The loss, learning rate and gradient norm of a run as small pictures, for a terminal. Knows nothing of training."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from mlx_lora.console import talk
from mlx_lora.report.events import number, read_events
from mlx_lora.report.scales import Scale, prefers_log, scale_of_values, shown
from mlx_lora.report.series import Points, smoothed, span_for

_ROWS, _MOST_COLUMNS, _LABEL_WIDTH, _NAME_WIDTH = 8, 52, 7, 16
# Bits of the dots of a braille character, from the top down, left and right (Unicode 16, section 21.1).
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_FEWEST_STEPS = 4
_BARS = "▁▂▃▄▅▆▇█"


def print_loss_curve(folder: Path) -> None:
    """Draw the curves of the run in `folder` on stderr, where that is a terminal."""
    columns = min(_MOST_COLUMNS, talk.width - _LABEL_WIDTH - 3 - _NAME_WIDTH)
    if not talk.is_terminal or columns < 16 or not talk.encoding.lower().startswith("utf"):
        return
    events = read_events(folder / "metrics.jsonl")
    losses = [(float(event["step"]), number(event, "loss")) for event in events.steps]
    validations = [(float(event["step"]), number(event, "loss")) for event in events.validations]
    if len(losses) >= _FEWEST_STEPS:
        for line in draw_losses(losses, validations, columns):
            talk.print(line, soft_wrap=True)
        for name in ("learning_rate", "gradient_norm"):
            values = [(float(event["step"]), number(event, name)) for event in events.steps]
            if any(math.isfinite(value) for _, value in values):
                talk.print(draw_bars(name.replace("_", " "), values, columns), soft_wrap=True)


def draw_losses(losses: Points, validations: Points, columns: int) -> list[Text]:
    """A title, eight rows of `columns` characters with labels of the loss, and an axis of the steps."""
    span = span_for(len(losses))
    curve = smoothed(losses, span)
    marks = [(x, y) for x, y in validations if math.isfinite(y)]
    values = [y for _, y in [*curve, *marks]]
    scale = scale_of_values(values, "log" if prefers_log(values) else "linear")
    last = max(x for x, _ in [*curve, *marks])
    title = Text().append("loss, nats a token", style="bold").append(f" ({scale.kind})   ", style="dim")
    title.append("⣀⡠⠊", style="cyan").append(f" training, mean of about {span} steps", style="dim")
    if marks:
        title.append("   ●", style="yellow").append(" validation", style="dim")
    cells = _cells(curve, scale, last, columns)
    at = {(_row(scale, y), min(columns - 1, int(x / last * columns))) for x, y in marks}
    lines = [title]
    for row in range(_ROWS):
        drawn = "".join(
            "●" if (row, column) in at else chr(0x2800 + cells[row][column]) if cells[row][column] else " "
            for column in range(columns)
        )
        line = Text().append(_label(scale, row).rjust(_LABEL_WIDTH) + " ┤", style="dim").append(drawn.rstrip(), "cyan")
        line.highlight_regex("●", style="yellow")
        lines.append(line)
    end = f"step {last:.0f}"
    lines.append(Text(" " * _LABEL_WIDTH + " └" + "─" * columns, style="dim"))
    lines.append(Text(" " * (_LABEL_WIDTH + 2) + "0" + end.rjust(columns - 1), style="dim"))
    return lines


def draw_bars(name: str, values: Points, columns: int) -> Text:
    """One row of bars over the axis of draw_losses, each the mean of its steps, labelled with the highest."""
    finite = [(x, y) for x, y in values if math.isfinite(y)]
    last = max(x for x, _ in values)
    groups: list[list[float]] = [[] for _ in range(columns)]
    for x, y in finite:
        groups[min(columns - 1, int((x - 1) / last * columns))].append(y)
    means, before = list[float](), finite[0][1]
    for group in groups:  # few steps leave columns without one: these go on as the one before
        before = sum(group) / len(group) if group else before
        means.append(before)
    most = max(means)
    drawn = "".join(_BARS[max(0, min(7, int(8 * mean / most)))] if most > 0 else _BARS[0] for mean in means)
    return Text().append(f"{shown(most):>{_LABEL_WIDTH}}  ", "dim").append(drawn, "cyan").append(f"  {name}", "dim")


def _cells(curve: Points, scale: Scale, last: float, columns: int) -> Sequence[Sequence[int]]:
    """The braille bits of each character cell; neighbouring points are joined by upright strokes."""
    cells, before = [[0] * columns for _ in range(_ROWS)], None
    for across in range(2 * columns):
        value = _value_at(curve, last * (across + 0.5) / (2 * columns))
        if value is None:
            continue
        down = _dot_row(scale, value)
        first = down if before is None else before + (down > before) - (down < before)
        for dot in range(min(first, down), max(first, down) + 1):
            cells[dot // 4][across // 2] |= _DOTS[across % 2][dot % 4]
        before = down
    return cells


def _value_at(curve: Points, x: float) -> float | None:
    """The curve's value at a step between its points; None outside of them."""
    if not curve[0][0] - 1 <= x <= curve[-1][0]:
        return None
    place = bisect_left(curve, x, key=lambda point: point[0])
    (right, above), (left, below) = curve[place], curve[max(0, place - 1)]
    return above if right == left else below + (above - below) * (x - left) / (right - left)


def _dot_row(scale: Scale, value: float) -> int:
    return min(4 * _ROWS - 1, max(0, int((1 - scale.share(value)) * 4 * _ROWS)))


def _row(scale: Scale, value: float) -> int:
    return _dot_row(scale, value) // 4


def _label(scale: Scale, row: int) -> str:
    """The round value that lies in a row of characters, where there is one."""
    found = [tick for tick in scale.ticks(4) if _row(scale, tick) == row]
    return shown(found[0]) if found else ""
