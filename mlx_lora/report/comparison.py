"""Several runs as one HTML page: how they ended, what was set differently, curves and answers side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from mlx_lora.evaluation.result_format import EvaluationResult
from mlx_lora.report import answers, facts
from mlx_lora.report.asking import differences, eval_command
from mlx_lora.report.curves import COLOURS, compared_charts
from mlx_lora.report.headline import Headline, forgetting_headline, learning_headline
from mlx_lora.report.pages import introduction, render, spread
from mlx_lora.report.results import same_questions
from mlx_lora.report.runs import Run

_NOT_A_CHOICE = {"output_dir"}  # differs between all runs and changes nothing


@dataclass(frozen=True)
class Line:
    """A run in the overview: its colour, its two answers and its numbers."""

    name: str
    colour: str
    learning: Headline
    forgetting: Headline
    cells: Sequence[str]


def comparison_page(runs: Sequence[Run], made: datetime | None = None) -> str:
    """The page of two or more runs."""
    runs = _told_apart(runs)
    charts = compared_charts(runs)
    shared = [_shared(group, f"answers-{place}") for place, group in enumerate(_same_results(runs), start=1)]
    sections = [("runs", "Side by side"), ("settings", "Settings")]
    sections += [(one["key"], f"Answers: {one['name']}") for one in shared]
    models = sorted({str(run.origin.get("model") or run.setting("model")) for run in runs})
    return render(
        "comparison.html.jinja",
        charts,
        made,
        title=f"{len(runs)} runs compared",
        sections=[*sections, *([("training", "Training")] if charts else [])],
        subtitle=f"{', '.join(run.name for run in runs)}, on {' and '.join(models)}",
        overview=_overview(runs),
        notes=_notes(runs),
        settings=different_settings(runs),
        shared=shared,
    )


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """The runs, those of one name numbered."""
    names = [run.name for run in runs]
    return [
        replace(run, name=f"{run.name} ({names[:place].count(run.name) + 1})") if names.count(run.name) > 1 else run
        for place, run in enumerate(runs)
    ]


def _overview(runs: Sequence[Run]) -> Mapping[str, Any]:
    tiles = [dict(facts.tiles(run)) for run in runs]
    names = list(dict.fromkeys(name for one in tiles for name in one))
    lines = [
        Line(
            run.name,
            COLOURS[place % len(COLOURS)],
            learning_headline(run),
            forgetting_headline(run),
            [one.get(name, "–") for name in names],
        )
        for place, (run, one) in enumerate(zip(runs, tiles, strict=True))
    ]
    return {"columns": ["run", "did it learn?", "did it forget?", *names], "rows": lines}


def different_settings(runs: Sequence[Run]) -> facts.Table:
    """The settings, and the data and bases beneath them, that are not the same in all runs."""
    flat = [{**_flat(run.settings), **_flat(_hashes(run))} for run in runs]
    names = [name for name in dict.fromkeys(name for one in flat for name in one) if name not in _NOT_A_CHOICE]
    rows = [[name, *(one.get(name, "–") for one in flat)] for name in names]
    return facts.Table(["setting", *(run.name for run in runs)], [row for row in rows if len(set(row[1:])) > 1])


def _hashes(run: Run) -> Mapping[str, Any]:
    """What a setting's name may hide: another content of the same file, another base of the same name."""
    hashes, identity = run.origin.get("data_sha256"), run.origin.get("identity")
    found = dict(hashes) if isinstance(hashes, Mapping) else {}
    if isinstance(identity, Mapping):
        found["base weights"] = identity.get("weights_sha256")
    return {f"SHA-256 of {name}": str(digest)[:12] for name, digest in found.items()}


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Dotted names to values as text."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = "null" if value is None else str(value)
    return found


def _same_results(runs: Sequence[Run]) -> list[list[tuple[Run, str, EvaluationResult]]]:
    """(run, colour, result) of each set of questions, those that most runs were asked first."""
    groups: dict[Any, list[tuple[Run, str, EvaluationResult]]] = {}
    for place, run in enumerate(runs):
        for result in run.results:
            entry = (run, COLOURS[place % len(COLOURS)], result)
            groups.setdefault(same_questions(result), []).append(entry)
    return sorted(groups.values(), key=lambda group: -len(group))


def _shared(group: Sequence[tuple[Run, str, EvaluationResult]], key: str) -> Mapping[str, Any]:
    first = group[0][2]
    metric = first.metric
    named = [(_asked(run, result), result) for run, _, result in group]
    bases = answers.distinct_bases(named, lambda one: one.base and answers.share_text(one.base, metric))
    bars = [answers.bar(label, "base", one.base, metric) for label, one in bases if one.base is not None]
    bars += [answers.bar(_asked(run, result), colour, result, metric) for run, colour, result in group]
    whole = [(name, result) for name, result in named if result.questions]  # `push` sends none
    return {
        "key": key,
        "name": first.data.name,
        "introduction": introduction(first),
        "caption": f"{answers.metric_name(metric)}, in percent{spread(first)}",
        "bars": bars,
        "questions": answers.shared_questions(whole, key) if len(whole) > 1 else None,
    }


def _asked(run: Run, result: EvaluationResult) -> str:
    """A run's name, with the step of the adapter that was asked where the file has another one by now."""
    step = run.other_step(result)
    return run.name if step is None else f"{run.name}, step {step}"


def _notes(runs: Sequence[Run]) -> list[tuple[str, str | None]]:
    """Each run's notes, and which runs were not asked what others were, or not alike; with what would mend it."""
    found = [(f"{run.name}: {text}", command) for run in runs for text, command in facts.notes(run)]
    told: list[EvaluationResult] = []
    for group in _same_results(runs):
        first, _, asked = group[0]
        if any(_same_data(asked, one) for one in told):
            continue  # said of the larger group
        told.append(asked)
        names = {run.name for run, _, _ in group}
        for run in runs:
            if run.name not in names:
                own = next((one for one in run.results if _same_data(one, asked)), None)
                otherwise = f" otherwise than {first.name}: {differences(own, asked)}" if own is not None else ""
                text = f"{run.name} was {'not ' if own is None else ''}asked {asked.data.name}{otherwise}."
                found.append((text, eval_command(run, asked)))
    return found


def _same_data(one: EvaluationResult, other: EvaluationResult) -> bool:
    return one.data.name == other.data.name or one.data.sha256 == other.data.sha256
