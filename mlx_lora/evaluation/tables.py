"""Evaluations of one data set as they are shown: base beside adapters, what broke, and a verdict. Knows no models."""

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlx_lora.evaluation.metrics import Metric, Metrics, ScoredAnswer, by_category, summarize
from mlx_lora.evaluation.result import Evaluation
from mlx_lora.evaluation.verdict import describe, percent, show_perplexity

_SHOWN = 5  # questions in a list
_STYLES = {"learned": "green", "worse": "red", "broken": "red", "taught nothing": "yellow", "no difference": "yellow"}


def print_evaluations(console: Console, evaluations: Sequence[Evaluation]) -> None:
    """Print the evaluations of one data set: a table, a few questions, a verdict for each adapter."""
    first = evaluations[0]
    asked, rows = first.data["asked"], first.data["rows"]
    title = f"{first.data['source']}: {asked} questions" + (f" of {rows}" if asked != rows else "")
    console.print(Text(f"{title}; 95 % intervals in brackets", style="bold"), soft_wrap=True)
    console.print(_table(_columns(evaluations), first.metric, evaluations))
    for one in evaluations:
        _print_questions(console, one)
    for one in evaluations:
        label = f"{one.label}: " if len(evaluations) > 1 or one.comparison is None else ""
        console.print(_verdict(one, label), soft_wrap=True)


def _columns(evaluations: Sequence[Evaluation]) -> list[tuple[str, Sequence[ScoredAnswer]]]:
    """(label, answers) of each column; the base has one for each way of writing the prompts."""
    bases: dict[int, tuple[str, Sequence[ScoredAnswer]]] = {}
    for one in evaluations:
        if one.base_rows is not None:
            label = "base" if not bases else f"base, prompts of {one.label}"
            bases.setdefault(id(one.base_rows), (label, one.base_rows))
    return [*bases.values(), *((one.label, one.rows) for one in evaluations)]


def _table(
    columns: Sequence[tuple[str, Sequence[ScoredAnswer]]], metric: Metric, evaluations: Sequence[Evaluation]
) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for label, _ in columns:
        table.add_column(Text(label), justify="right", overflow="fold")
    figures = [summarize(rows) for _, rows in columns]
    lines: list[tuple[str, Callable[[Metrics], str]]] = [
        ("exact match", lambda one: _share(one, "exact_match")),
        ("contains", lambda one: _share(one, "contains")),
        ("token F1", lambda one: f"{one.token_f1:.3f}"),
        ("stopped by itself", lambda one: percent(one.stop_rate)),
        ("perplexity", lambda one: show_perplexity(one.perplexity)),
    ]
    for name, show in lines:
        table.add_row(name, *map(show, figures))
    categories = [by_category(rows) for _, rows in columns]
    if len(categories[0]) > 1:
        for name in categories[0]:
            cells = [_share(groups[name], metric) for groups in categories]
            table.add_row(Text(f"  {name}", style="dim"), *cells)
    if any(one.comparison for one in evaluations):
        blank = [""] * (len(columns) - len(evaluations))
        table.add_row("fixed / broken", *blank, *(_changes(one) for one in evaluations))
        table.add_row("p (exact, paired)", *blank, *(_chance(one) for one in evaluations))
    return table


def _share(metrics: Metrics, metric: Metric) -> str:
    interval = metrics.interval(metric)
    if interval is None:
        return f"{metrics.token_f1:.3f}"
    low, high = (round(100 * bound) for bound in interval)
    right = metrics.right(metric)
    return f"{right}/{metrics.count}  {percent(right / metrics.count):>6} ({low}–{high})"


def _changes(evaluation: Evaluation) -> str:
    comparison = evaluation.comparison
    return f"{len(comparison.changes.fixed)} / {len(comparison.changes.broken)}" if comparison else ""


def _chance(evaluation: Evaluation) -> str:
    comparison = evaluation.comparison
    if comparison is None:
        return ""
    return "< 0.0001" if comparison.p < 1e-4 else f"{comparison.p:.4f}"


def _print_questions(console: Console, evaluation: Evaluation) -> None:
    rows, comparison = evaluation.rows, evaluation.comparison
    broken = list(comparison.changes.broken) if comparison else []
    wrong = [place for place, row in enumerate(rows) if not row.right(evaluation.metric) and place not in broken]
    for name, places in (("broken: the base had it right", broken), ("wrong", wrong)):
        if not places:
            continue
        more = f", {_SHOWN} of {len(places)}" if len(places) > _SHOWN else f", {len(places)}"
        console.print(Text(f"{evaluation.label}, {name}{more}", style="dim"))
        for place in places[:_SHOWN]:
            row = rows[place]
            console.print(Text(f"  {_short(row.question)}"), soft_wrap=True)
            console.print(Text(f"    {_short(row.prediction) or '(nothing)'}  ≠  {row.answers[0]}"), soft_wrap=True)


def _short(text: str, length: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def _verdict(evaluation: Evaluation, label: str) -> Text:
    comparison = evaluation.comparison
    if comparison is not None:
        return Text(label + comparison.sentence, style=_STYLES[comparison.kind])
    hint = "" if evaluation.label == "base" else "; --base shows what it learned"
    return Text(f"{label}{describe(evaluation.metrics, evaluation.metric)}{hint}")
