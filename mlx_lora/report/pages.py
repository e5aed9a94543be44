"""A run, or several, as one HTML page: what goes where. The looks are in page/, the figures in the other modules.

Everything in a page is escaped; its policy lets only our own script run, named by its hash, and loads nothing.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mlx_lora import __version__
from mlx_lora.evaluation.result_format import EvaluationResult
from mlx_lora.report import answers, facts
from mlx_lora.report.asking import changed_since, manner
from mlx_lora.report.charts import Chart
from mlx_lora.report.curves import run_charts
from mlx_lora.report.events import number
from mlx_lora.report.headline import forgetting_headline, learning_headline
from mlx_lora.report.results import changes, shown_metric
from mlx_lora.report.runs import Run

GENERATOR = b'<meta name="generator" content="mlx-lora report">'

_PAGE = Path(__file__).parent / "page"
# How a question's state is shown: colour and words.
STATES = {
    "fixed": ("good", "fixed"),
    "broken": ("bad", "broken"),
    "kept right": ("unknown", "kept right"),
    "kept wrong": ("unknown", "kept wrong"),
    "higher": ("good", "higher"),
    "lower": ("bad", "lower"),
    "equal": ("unknown", "equal"),
    "right": ("good", "right"),
    "wrong": ("bad", "wrong"),
    "differ": ("unsure", "differ"),
}

_FACTS = 20  # names in a list before the rest is folded away


def run_page(run: Run, made: datetime | None = None) -> str:
    """The page of one run."""
    results = [_result(run, result, f"answers-{place}") for place, result in enumerate(_ordered(run), start=1)]
    charts = run_charts(run)
    sections = [(one["key"], f"Answers: {one['name']}") for one in results]
    sections += [("retention", "What it forgot")] if run.retention else []
    sections += [("training", "Training")] if charts else []
    base, adapter = facts.base_facts(run), facts.adapter_facts(run)
    groups = [
        [("Run", facts.run_facts(run)), ("Adapter", adapter), ("Trained with", facts.environment(run))],
        [("Base", base)],
    ]
    return render(
        "run.html.jinja",
        charts,
        made,
        title=f"{run.name}: mlx-lora report",
        sections=[*sections, ("run", "The run")],
        run=run,
        subtitle=_subtitle(run),
        learning=learning_headline(run),
        forgetting=forgetting_headline(run),
        tiles=facts.tiles(run),
        notes=facts.notes(run),
        results=results,
        retention=_retention(run),
        validations=_validations(run),
        data=facts.data_table(run),
        groups=groups,
        engine=facts.engine_parts(run),
    )


def render(template: str, charts: Sequence[Chart], made: datetime | None, **values: Any) -> str:
    """The template filled in, with our style and script inside."""
    loader = FileSystemLoader(_PAGE)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = (_PAGE / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page: str = environment.get_template(template).render(
        charts=charts,
        chart_data={chart.key: chart.data() for chart in charts},
        style=Markup((_PAGE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        states=STATES,
        version=__version__,
        made=f"{made or datetime.now(UTC):%d %B %Y, %H:%M} UTC",
        **values,
    )
    return page


def _ordered(run: Run) -> list[EvaluationResult]:
    """The results that tell of learning first, those of forgetting next."""
    first = [*run.learning_results, *run.retention_results]
    return [*first, *(result for result in run.results if result not in first)]


def _result(run: Run, result: EvaluationResult, key: str) -> Mapping[str, Any]:
    """What the page shows of one evaluation."""
    base, name = result.base, answers.metric_name(result.metric)
    figures, columns = [*([base] if base is not None else []), result], ["adapter"]
    bars = [answers.bar("adapter", "one", result, result.metric)]
    if base is not None:
        columns.insert(0, "base")
        bars.insert(0, answers.bar("base", "base", base, result.metric))
    rows = answers.drift_rows(result)
    rows += [[f"{name}: {group}", *cells] for group, *cells in answers.category_rows(result)]
    facts_known, missed = answers.fact_row(result), answers.missed_facts(result)
    rows += [facts_known] if facts_known is not None else []
    return {
        "key": key,
        "name": result.data.name,
        "introduction": " ".join(
            filter(None, [introduction(result), run.memory_remark(result), changed_since(run, result)])
        ),
        "caption": f"{name}, in percent{spread(result)}",
        "bars": bars,
        "figures": facts.Table(["", *columns], [*answers.figure_rows(figures, result.metrics), *rows]),
        "missed": {"of": f"{len(missed)} of {len(result.per_fact)}, by {name}", "facts": missed, "shown": _FACTS},
        "signs": result.signs,
        "changes": _changes(result),
        "judged": _judged(result),
        "questions": answers.single_questions(result, key) if result.questions else None,
    }


def _retention(run: Run) -> Mapping[str, Any] | None:
    """What the run asked at its end, for bars."""
    asked = run.retention
    if asked is None:
        return None
    colours = (("base", "base", asked.base), ("adapter", "one", asked.adapter))
    return {
        "introduction": f"{asked.base.count} questions of {asked.data}, asked at the end of the training. "
        f"Bars show {answers.metric_name(asked.metric)} with 95 % intervals.",
        "caption": f"{answers.metric_name(asked.metric)}, in percent, with 95 % intervals",
        "bars": [answers.bar(label, colour, figures, asked.metric) for label, colour, figures in colours],
        "sentence": f"{asked.lost} answers that were right are wrong now, {asked.gained} the other way round.",
    }


def introduction(result: EvaluationResult) -> str:
    """What was asked and how, in a sentence or two."""
    data = result.data
    of = f" of {data.rows:,}, evenly spread" if data.asked != data.rows else ""
    how = ", ".join(manner(result).values())
    bars = f"Bars show {answers.metric_name(result.metric)}{spread(result)}."
    source = f"held out of {data.source}" if data.held_out else f"from {data.source}"
    return f"{data.asked:,} questions{of}, {source}; {how}; {result.timestamp[:10]}. {bars}"


def spread(result: EvaluationResult) -> str:
    """What a bar shows beside the figure; a mean of fractions has no interval."""
    return " with 95 % intervals" if result.metric in result.interval else ""


def _changes(result: EvaluationResult) -> list[Mapping[str, Any]]:
    """The changes by the leading metric, and by the one that shows what it does not: name, counts, and how likely."""
    return [
        {"name": answers.metric_name(metric), "counts": counts, "chance": _chance(result, metric)}
        for metric in dict.fromkeys((result.metric, shown_metric(result)))
        if (counts := changes(result, metric)) is not None
    ]


def _chance(result: EvaluationResult, metric: str) -> str:
    if result.comparison is None:
        return ""
    counts = result.comparison[metric]
    by_fact = ""
    if counts.p_by_fact is not None:
        better, worse = counts.facts_higher, counts.facts_lower
        by_fact = f" Counted by fact, {better} better and {worse} worse, it is {_show_p(counts.p_by_fact)}."
    return (
        f"Chance alone would make so uneven a change with probability {_show_p(counts.p)} (exact, two-sided).{by_fact}"
    )


def _show_p(p: float) -> str:
    return "below 0.0001" if p < 1e-4 else f"{p:.4f}"


def _judged(result: EvaluationResult) -> str:
    """By which metric the questions are sorted, where it is not the leading one."""
    metric = shown_metric(result)
    if metric == result.metric or result.verdict is None:
        return ""
    what = "loss" if metric in result.verdict.lost else "gain"
    by, leading = answers.metric_name(metric), answers.metric_name(result.metric)
    return f"Right, wrong, fixed and broken are by {by} here, which shows the {what} that {leading} does not."


def _subtitle(run: Run) -> str:
    model = run.origin.get("model") or run.setting("model")
    started = str(run.facts.get("started", ""))[:10]
    words = [f"{run.setting('lora.method') or 'adapter'} on {model}" if model else "", started]
    return ", ".join(word for word in words if word)


def _validations(run: Run) -> facts.Table | None:
    events = run.events.validations
    rows = [
        [str(event["step"]), f"{number(event, 'loss'):.4f}", "best so far" if event.get("best") else ""]
        for event in events
    ]
    return facts.Table(["step", "loss, nats a token", ""], rows) if rows else None
