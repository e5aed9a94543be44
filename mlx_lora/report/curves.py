"""The charts of one run, and of several laid over one another. Knows nothing of HTML."""

import math
from collections.abc import Callable, Sequence

from mlx_lora.report.charts import Chart, Line, Mark
from mlx_lora.report.events import Event, number
from mlx_lora.report.runs import Run
from mlx_lora.report.scales import shown
from mlx_lora.report.series import Points, smoothed, span_for

COLOURS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
TRAINING, VALIDATION = "one", "two"


def run_charts(run: Run) -> list[Chart]:
    """Loss, learning rate, gradient norm, pace and memory over the steps; those without figures are left out."""
    steps, epoch = run.events.steps, _steps_per_epoch(run)
    span = span_for(len(steps))
    charts = [_loss_chart(run, span)]
    rate, norm = _points(steps, "learning_rate"), _points(steps, "gradient_norm")
    pace, tokens = _points(steps, "seconds"), _ratio(steps, "tokens", "seconds")
    memory = [(x, y / 1e9) for x, y in _points(steps, "peak_bytes")]
    charts += [
        Chart(
            "rate", "Learning rate", "", [Line("learning rate", rate, TRAINING)], _said("Learning rate", rate),
            steps_per_epoch=epoch, axis="linear",
        ),
        Chart(
            "norm", "Gradient norm, before clipping", "", _raw_and_smooth("", norm, span), _said("Gradient norm", norm),
            steps_per_epoch=epoch,
        ),
        Chart(
            "pace", "Time a step", "s", _raw_and_smooth("", pace, span), _said("Time a step", pace, "s"),
            steps_per_epoch=epoch, axis="linear",
        ),
        Chart(
            "tokens", "Pace", "tokens/s", _raw_and_smooth("", tokens, span), _said("Pace", tokens, "tokens/s"),
            steps_per_epoch=epoch, axis="linear",
        ),
        Chart(
            "memory", "Peak memory of MLX", "GB", [Line("peak memory", memory, TRAINING)],
            _said("Peak memory", memory, "GB"), steps_per_epoch=epoch, axis="from zero",
        ),
    ]  # fmt: skip
    return [chart for chart in charts if chart.views]


def compared_charts(runs: Sequence[Run]) -> list[Chart]:
    """The runs' losses, learning rates, gradient norms and pace over one another."""

    def overlaid(
        key: str, title: str, unit: str, points: Callable[[Run], Points], *, dots: bool = False, linear: bool = False
    ) -> Chart:
        lines = [
            Line(run.name, points(run), COLOURS[place % len(COLOURS)], "dots" if dots else "line")
            for place, run in enumerate(runs)
        ]
        ends = [f"{line.name} ends at {shown(line.values[-1])}" for line in lines if line.values]
        sentence = f"{title}: {'; '.join(ends)}."
        return Chart(key, title, unit, lines, sentence, wide=True, axis="linear" if linear else "best")

    def smooth(run: Run, points: Points) -> Points:
        return smoothed(points, span_for(len(run.events.steps)))

    def validations(run: Run) -> Points:
        return _points(run.events.validations, "loss")

    def of_steps(run: Run, name: str) -> Points:
        return _points(run.events.steps, name)

    charts = [
        overlaid("loss", "Training loss, smoothed", "nats a token", lambda run: smooth(run, _losses(run))),
        overlaid("valid", "Validation loss", "nats a token", validations, dots=True),
        overlaid("rate", "Learning rate", "", lambda run: of_steps(run, "learning_rate"), linear=True),
        overlaid(
            "norm", "Gradient norm before clipping, smoothed", "",
            lambda run: smooth(run, of_steps(run, "gradient_norm")),
        ),
        overlaid("pace", "Time a step, smoothed", "s", lambda run: smooth(run, of_steps(run, "seconds"))),
    ]  # fmt: skip
    return [chart for chart in charts if chart.views]


def _loss_chart(run: Run, span: int) -> Chart:
    losses, validations = _losses(run), _points(run.events.validations, "loss")
    lines = _raw_and_smooth("training, ", losses, span)
    sentences = [_said("Training loss", smoothed(losses, span), "nats a token")]
    marks = []
    if validations:
        lines.append(Line("validation", validations, VALIDATION, "dots"))
        sentences.append(_said("Validation loss", validations, "nats a token"))
    best = run.best_validation
    if best is not None:
        loss = number(best, "loss")
        marks.append(Mark(float(best["step"]), f"best: step {best['step']}, {shown(loss)}"))
        sentences.append(f"Best at step {best['step']}.")
    return Chart(
        "loss", "Loss", "nats a token", lines, " ".join(sentences), marks,
        steps_per_epoch=_steps_per_epoch(run), wide=True,
    )  # fmt: skip


def _raw_and_smooth(name: str, points: Points, span: int) -> list[Line]:
    return [
        Line(f"{name}each step", points, TRAINING, "faint"),
        Line(f"{name}mean of about {span} steps", smoothed(points, span), TRAINING),
    ]


def _losses(run: Run) -> Points:
    return _points(run.events.steps, "loss")


def _points(events: Sequence[Event], name: str) -> Points:
    return [(float(event["step"]), number(event, name)) for event in events]


def _ratio(events: Sequence[Event], above: str, below: str) -> Points:
    pairs = [(float(event["step"]), number(event, above), number(event, below)) for event in events]
    return [(step, up / down if down > 0 else math.nan) for step, up, down in pairs]


def _steps_per_epoch(run: Run) -> int | None:
    known = run.facts.get("steps_per_epoch")
    if isinstance(known, int):
        return known
    last = run.events.steps[-1] if run.events.steps else {}
    epochs = number(last, "epoch")
    return round(int(last["step"]) / epochs) if epochs > 0 else None


def _said(name: str, points: Points, unit: str = "") -> str:
    """A sentence for those who do not see the chart."""
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if not finite:
        return f"{name}: no figures."
    (first, begin), (last, end) = finite[0], finite[-1]
    low, high = min(y for _, y in finite), max(y for _, y in finite)
    unit = f" {unit}" if unit else ""
    return (
        f"{name}: {shown(begin)}{unit} at step {first:.0f}, {shown(end)}{unit} at step {last:.0f}; "
        f"between {shown(low)} and {shown(high)}."
    )
