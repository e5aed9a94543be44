"""Evaluations as they are shown: base beside adapters, what broke, a verdict, a summary. Knows no models."""

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlx_lora.console import visible
from mlx_lora.evaluation.metrics import (
    Metric,
    Metrics,
    ScoredAnswer,
    by_category,
    by_fact,
    is_share,
    kind_of,
    summarize,
)
from mlx_lora.evaluation.result import Evaluation
from mlx_lora.evaluation.verdict import MetricTest, describe, metric_name, percent, show_perplexity

_SHOWN, _SHOWN_OF_MANY = 5, 2  # questions in a list: of a single adapter, of one among several
_FACTS = 8  # in a list
_STYLES = {
    "learned": "green",
    "worse": "red",
    "mixed": "yellow",
    "broken": "red",
    "taught nothing": "yellow",
    "no difference": "yellow",
}


def print_evaluations(console: Console, evaluations: Sequence[Evaluation]) -> None:
    """Print the evaluations of one data set: a table, a few questions, a verdict for each adapter."""
    first = evaluations[0]
    asked, rows = first.data["asked"], first.data["rows"]
    title = f"{first.data['source']}: {asked} questions" + (f" of {rows}" if asked != rows else "")
    table = _table(_columns(evaluations), evaluations, _share)
    if console.measure(table, options=console.options.update(max_width=10_000)).maximum <= console.width:
        title += "; 95 % intervals in brackets"
    else:
        table = _table(_columns(evaluations), evaluations, _short_share)
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(table)
    for one in evaluations:
        _print_questions(console, one, _SHOWN if len(evaluations) == 1 else _SHOWN_OF_MANY)
        _print_facts(console, one)
    for one in evaluations:
        label = f"{one.label}: " if len(evaluations) > 1 or one.comparison is None else ""
        console.print(_verdict(one, label), soft_wrap=True)


def print_summary(console: Console, evaluations: Sequence[Evaluation]) -> None:
    """Print one line for each data set, with base, adapters and verdicts."""
    names = list(dict.fromkeys(one.data["name"] for one in evaluations))
    labels = list(dict.fromkeys(one.label for one in evaluations))
    with_base = any(one.base_rows is not None for one in evaluations)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("all data sets")
    table.add_column("by")
    for label in ["base", *labels] if with_base else labels:
        table.add_column(Text(label), justify="right", overflow="fold")
    for name in names:
        own = {one.label: one for one in evaluations if one.data["name"] == name}
        metric = next(iter(own.values())).metric
        first_base = next((one.base_rows for one in own.values() if one.base_rows is not None), None)
        cells = [Text(_short_share(summarize(first_base), metric))] if first_base is not None else []
        cells += [Text("")] if with_base and first_base is None else []
        cells += [_summary_cell(own[label]) if label in own else Text("") for label in labels]
        table.add_row(Text(name), metric_name(metric), *cells)
    console.print(table)


def _summary_cell(evaluation: Evaluation) -> Text:
    score = _short_share(evaluation.metrics, evaluation.metric)
    if evaluation.comparison is None:
        return Text(score)
    kind = evaluation.comparison.kind
    return Text.assemble(f"{score}  ", (kind, _STYLES[kind]))


def _columns(evaluations: Sequence[Evaluation]) -> list[tuple[str, Sequence[ScoredAnswer]]]:
    """(label, answers) of each column; the base has one for each way of writing the prompts."""
    bases: dict[int, tuple[str, Sequence[ScoredAnswer]]] = {}
    for one in evaluations:
        if one.base_rows is not None:
            label = "base" if not bases else f"base, prompts of {one.label}"
            bases.setdefault(id(one.base_rows), (label, one.base_rows))
    return [*bases.values(), *((one.label, one.rows) for one in evaluations)]


def _table(
    columns: Sequence[tuple[str, Sequence[ScoredAnswer]]],
    evaluations: Sequence[Evaluation],
    share: Callable[[Metrics, Metric], str],
) -> Table:
    metric = evaluations[0].metric
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for label, _ in columns:
        table.add_column(Text(label), justify="right", overflow="fold")
    figures = [summarize(rows) for _, rows in columns]
    for name in figures[0].values:
        table.add_row(metric_name(name), *(share(one, name) for one in figures))
    if kind_of(evaluations[0].rows) == "open":
        table.add_row("stopped by itself", *(percent(one.stop_rate or 0) for one in figures))
    table.add_row("perplexity", *(show_perplexity(one.perplexity) for one in figures))
    categories = [by_category(rows) for _, rows in columns]
    if len(categories[0]) > 1:
        for name in categories[0]:
            cells = [share(groups[name], metric) for groups in categories]
            table.add_row(Text(f"  {name}", style="dim"), *cells)
    facts = [by_fact(rows) for _, rows in columns]
    if any(one.count > 1 for one in facts[0].values()):
        known = [sum(one.values[metric] == 1 for one in groups.values()) for groups in facts]
        table.add_row("facts, every form right", *(f"{right}/{len(facts[0])}" for right in known))
    if any(one.drift is not None for one in evaluations):
        drifts = ("" if one.drift is None else f"{one.drift:.3f}" for one in evaluations)
        table.add_row("drift from the base, nats", *[""] * (len(columns) - len(evaluations)), *drifts)
    if any(one.comparison for one in evaluations):
        blank = [""] * (len(columns) - len(evaluations))
        for name in _tested(evaluations):
            by = "" if name == metric else f" by {metric_name(name)}"
            table.add_row(f"fixed / broken{by}", *blank, *(_of_test(one, name, _changes) for one in evaluations))
            if name == metric and is_share(name):
                table.add_row("kept right / kept wrong", *blank, *(_of_test(one, name, _kept) for one in evaluations))
            table.add_row(f"p (exact, paired){by}", *blank, *(_of_test(one, name, _chance) for one in evaluations))
            if any(one.comparison and one.comparison.tests[name].facts for one in evaluations):
                by_fact_cells = [_of_test(one, name, _by_fact) for one in evaluations]
                table.add_row(f"facts better / worse, p{by}", *blank, *by_fact_cells)
    return table


def _share(metrics: Metrics, metric: Metric) -> str:
    interval = metrics.interval(metric)
    if interval is None:
        return f"{metrics.values[metric]:.3f}"
    low, high = (round(100 * bound) for bound in interval)
    right = metrics.right(metric)
    return f"{right}/{metrics.count}  {percent(right / metrics.count):>6} ({low}–{high})"


def _short_share(metrics: Metrics, metric: Metric) -> str:
    if not is_share(metric):
        return f"{metrics.values[metric]:.3f}"
    return f"{_right_of(metrics, metric)} {percent(metrics.values[metric])}"


def _right_of(metrics: Metrics, metric: Metric) -> str:
    return f"{metrics.right(metric)}/{metrics.count}" if is_share(metric) else f"{metrics.values[metric]:.2f}"


def _tested(evaluations: Sequence[Evaluation]) -> list[str]:
    """The leading metric, and the other shares by which other questions changed."""
    comparisons = [one.comparison for one in evaluations if one.comparison is not None]
    leading = comparisons[0].metric
    others = [
        name
        for name in comparisons[0].tests
        if name != leading
        and is_share(name)
        and any(one.tests[name].changes != one.tests[leading].changes for one in comparisons)
    ]
    return [leading, *others]


def _of_test(evaluation: Evaluation, metric: Metric, show: Callable[[MetricTest], str]) -> str:
    return show(evaluation.comparison.tests[metric]) if evaluation.comparison else ""


def _changes(test: MetricTest) -> str:
    return f"{len(test.changes.fixed)} / {len(test.changes.broken)}"


def _kept(test: MetricTest) -> str:
    return f"{len(test.changes.kept_right)} / {len(test.changes.kept_wrong)}"


def _chance(test: MetricTest) -> str:
    return _show_p(test.p)


def _by_fact(test: MetricTest) -> str:
    if test.facts is None or test.p_by_fact is None:
        return ""
    return f"{test.facts[0]} / {test.facts[1]}, {_show_p(test.p_by_fact)}"


def _show_p(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def _print_questions(console: Console, evaluation: Evaluation, shown: int) -> None:
    rows, comparison = evaluation.rows, evaluation.comparison
    metric, broken = evaluation.metric, list[int]()
    if comparison is not None:
        # The metric that shows the loss, where the leading one does not.
        metric = next(iter(comparison.lost), metric) if metric not in comparison.lost else metric
        broken = list(comparison.tests[metric].changes.broken)
    told = set(broken)
    wrong = [place for place, row in enumerate(rows) if not row.right(metric) and place not in told]
    by = "" if metric == evaluation.metric else f" by {metric_name(metric)}"
    for name, places in (("broken: the base had it right", broken), ("wrong", wrong)):
        if not places:
            continue
        more = f", {shown} of {len(places)}" if len(places) > shown else f", {len(places)}"
        console.print(Text(f"{evaluation.label}, {name}{by}{more}", style="dim"))
        for place in places[:shown]:
            row = rows[place]
            console.print(Text(f"  {_short(row.question)}"), soft_wrap=True)
            console.print(
                Text(f"    {_short(row.prediction) or '(nothing)'}  ≠  {_short(row.answers[0])}"), soft_wrap=True
            )


def _print_facts(console: Console, evaluation: Evaluation) -> None:
    """The facts that are known in some words and not in others, or not at all."""
    facts = by_fact(evaluation.rows)
    metric = evaluation.metric
    missed = [f"{name} {_right_of(one, metric)}" for name, one in facts.items() if one.values[metric] < 1]
    if missed and any(one.count > 1 for one in facts.values()):
        more = f", {_FACTS} of {len(missed)}" if len(missed) > _FACTS else f", {len(missed)}"
        text = f"{evaluation.label}, facts not right in every form{more}: {', '.join(missed[:_FACTS])}"
        console.print(Text(visible(text), style="dim"), soft_wrap=True)


def _short(text: str, length: int = 100) -> str:
    line = visible(" ".join(text.split()))
    return line if len(line) <= length else line[: length - 1] + "…"


def _verdict(evaluation: Evaluation, label: str) -> Text:
    comparison = evaluation.comparison
    if comparison is not None:
        return Text(label + comparison.sentence, style=_STYLES[comparison.kind])
    signs = "".join(f"; {sign}" for sign in evaluation.signs)
    hint = "" if evaluation.label == "base" else "; --base shows what it learned"
    return Text(f"{label}{describe(evaluation.metrics, evaluation.metric)}{signs}{hint}")
