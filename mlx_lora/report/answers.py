"""Accuracy bars, figures and questions of evaluations, as a page shows them. Knows nothing of HTML."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_lora.evaluation.metrics import is_share
from mlx_lora.evaluation.result_format import EvaluationResult, Figures, QuestionRow
from mlx_lora.evaluation.verdict import percent, show_perplexity
from mlx_lora.report.results import change, right, shown_metric

METRIC_NAMES = {
    "exact_match": "exact match",
    "contains": "contains",
    "token_f1": "token F1",
    "accuracy": "accuracy",
    "accuracy_norm": "accuracy, by length",
}


@dataclass(frozen=True)
class Bar:
    """A share with its 95 % interval, in percent of the track; `text` says the same in words."""

    label: str
    colour: str
    share: float
    low: float | None
    high: float | None
    text: str


@dataclass(frozen=True)
class Answer:
    """What one model said to a question."""

    label: str
    text: str
    right: bool


@dataclass(frozen=True)
class Row:
    """A question with everybody's answers; `tags` are the filters that show it."""

    question: str
    expected: str
    accepted: Sequence[str]  # beside the expected one
    category: str
    place: str
    state: str
    tags: Sequence[str]
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Questions:
    """A table of questions with its filters: (tag, name, count)."""

    key: str
    columns: Sequence[str]
    rows: Sequence[Row]
    filters: Sequence[tuple[str, str, int]]


def bar(label: str, colour: str, figures: Figures, metric: str) -> Bar:
    """The bar of a metric, with a whisker where it is a share."""
    low, high = (100 * end for end in figures.interval[metric]) if metric in figures.interval else (None, None)
    return Bar(label, colour, 100 * figures.value(metric), low, high, share_text(figures, metric))


def share_text(figures: Figures, metric: str) -> str:
    """Such as "68 of 70, 97 % (90–99)"; "0.971" for a mean."""
    value, ends = figures.value(metric), figures.interval.get(metric)
    if ends is None:
        return f"{value:.3f}"
    share = percent(value).replace(" ", "\N{NO-BREAK SPACE}")
    return f"{round(value * figures.count)} of {figures.count}, {share} ({100 * ends[0]:.0f}–{100 * ends[1]:.0f})"


def figure_rows(columns: Sequence[Figures], metrics: Sequence[str]) -> list[list[str]]:
    """[name, one text a column] of every figure that any column has."""
    rows = [[metric_name(metric), *(share_text(one, metric) for one in columns)] for metric in metrics]
    if any(one.stop_rate is not None for one in columns):
        shares = ("–" if one.stop_rate is None else percent(one.stop_rate) for one in columns)
        rows.append(["ended by itself", *shares])
    rows.append(["perplexity of the right answers", *map(_perplexity, columns)])
    if any(one.empty for one in columns):
        rows.append(["empty answers", *(f"{one.empty:,}" for one in columns)])
    if any(one.looping for one in columns):
        rows.append(["answers that repeat themselves", *(f"{one.looping:,}" for one in columns)])
    return rows


def drift_rows(result: EvaluationResult) -> list[list[str]]:
    """[name, nothing of the base, how far the adapter moved what the base says], where that was measured."""
    return [] if result.drift is None else [["drift from the base, nats a token", "–", f"{result.drift:.3f}"]]


def category_rows(result: EvaluationResult) -> list[list[str]]:
    """[category, share of the base and of the adapter] where there are several categories."""
    groups = result.per_category
    if len(groups) < 2:
        return []
    return [
        [name, *(share_text(one, result.metric) for one in (figures.base, figures) if one is not None)]
        for name, figures in groups.items()
    ]


def metric_name(metric: str) -> str:
    """A metric as people say it; custom ones keep their own name."""
    return METRIC_NAMES.get(metric, metric)


def fact_row(result: EvaluationResult) -> list[str] | None:
    """How many facts are right in every form, of the base and of the adapter; None where no fact is asked twice."""
    facts = result.per_fact.values()
    if not any(figures.count > 1 for figures in facts):
        return None
    sides: list[list[Figures | None]] = [[*facts]] if result.base is None else [[one.base for one in facts], [*facts]]
    known = [[one.value(result.metric) == 1 for one in side if one is not None] for side in sides]
    return ["facts, every form right", *(f"{sum(one)} of {len(one)}" if one else "–" for one in known)]


def missed_facts(result: EvaluationResult) -> list[str]:
    """Such as "champion/1998 1 of 2": the facts that are not right in every form; none where no fact is asked twice."""
    if fact_row(result) is None:
        return []
    metric = result.metric
    missed = [(name, figures) for name, figures in result.per_fact.items() if figures.value(metric) < 1]
    if not is_share(metric):
        return [f"{name} {figures.value(metric):.2f}" for name, figures in missed]
    return [f"{name} {round(figures.value(metric) * figures.count)} of {figures.count}" for name, figures in missed]


def single_questions(result: EvaluationResult, key: str) -> Questions:
    """The questions of one result by `shown_metric`: fixed, broken, wrong and right ones, adapter beside base."""
    rows, metric = [], shown_metric(result)
    several = len(result.per_category) > 1
    for asked in result.questions:
        outcome = "right" if right(asked, metric) else "wrong"
        said = [Answer("adapter", asked.answer, outcome == "right")]
        if asked.base is not None:
            said.append(Answer("base", asked.base.answer, right(asked.base, metric)))
        became = change(asked, metric)
        tags = [outcome, *([became] if became in ("fixed", "broken", "higher", "lower") else [])]
        rows.append(_row(asked, became or outcome, tags, said, several))
    filters = [("fixed", "Fixed"), ("broken", "Broken"), ("wrong", "Wrong"), ("right", "Right")]
    if not is_share(metric):
        filters = [("higher", "Higher"), ("lower", "Lower"), ("wrong", "Below full score"), ("right", "Full score")]
    return _table(key, rows, filters if result.base is not None else filters[2:])


def shared_questions(results: Sequence[tuple[str, EvaluationResult]], key: str) -> Questions:
    """The questions that several runs were asked, with each run's answer and each base's: where do they differ?"""
    rows, bases = [], distinct_bases(results, _said_by_base)
    several = len(results[0][1].per_category) > 1
    for place, asked in enumerate(zip(*(result.questions for _, result in results), strict=True)):
        said = [
            Answer(name, question.answer, right(question, result.metric))
            for (name, result), question in zip(results, asked, strict=True)
        ]
        rights = {answer.right for answer in said}
        state = "differ" if len(rights) == 2 else "right" if rights == {True} else "wrong"
        said += [
            Answer(label, base.answer, right(base, result.metric))
            for label, result in bases
            if (base := result.questions[place].base) is not None
        ]
        rows.append(_row(asked[0], state, [state], said, several))
    return _table(key, rows, [("differ", "Runs differ"), ("wrong", "All wrong"), ("right", "All right")])


def distinct_bases(
    results: Sequence[tuple[str, EvaluationResult]], said: Callable[[EvaluationResult], Any]
) -> list[tuple[str, EvaluationResult]]:
    """A result for each base that differs in what it `said`, called "base", or by its runs where there are several."""
    found: dict[Any, tuple[EvaluationResult, list[str]]] = {}
    for name, result in results:
        if result.base is not None:
            found.setdefault(said(result), (result, []))[1].append(name)
    named = [(f"base of {' and '.join(names)}", result) for result, names in found.values()]
    return named if len(named) > 1 else [("base", result) for _, result in named]


def _said_by_base(result: EvaluationResult) -> tuple[str, ...]:
    return tuple("" if question.base is None else question.base.answer for question in result.questions)


def _row(asked: QuestionRow, state: str, tags: Sequence[str], said: Sequence[Answer], categories: bool) -> Row:
    expected, *accepted = asked.answers
    category = (asked.category or "") if categories else ""
    return Row(asked.question, expected, accepted, category, asked.place, state, tags, said)


def _table(key: str, rows: Sequence[Row], tags: Sequence[tuple[str, str]]) -> Questions:
    counted = [(tag, name, sum(tag in row.tags for row in rows)) for tag, name in tags]
    columns = [answer.label for answer in rows[0].answers] if rows else []
    return Questions(key, columns, rows, [("all", "All", len(rows)), *counted])


def _perplexity(figures: Figures) -> str:
    return "infinite" if figures.perplexity is None else show_perplexity(figures.perplexity)
