"""How questions were asked: in words, beside another result, and as the command that does. Knows nothing of HTML."""

import shlex
from collections.abc import Mapping

from mlx_lora.dataset.builtin import BUILTIN_DATA_SETS
from mlx_lora.evaluation.result_format import EvaluationResult
from mlx_lora.report.answers import metric_name
from mlx_lora.report.events import number
from mlx_lora.report.privacy import short_path
from mlx_lora.report.results import accepted_answers, metric_function
from mlx_lora.report.runs import Run

_MAX_TOKENS = 64  # of eval, where nothing else is asked for


def manner(result: EvaluationResult) -> Mapping[str, str]:
    """How answers were found, cut and compared, each part in words; what the file does not tell is left out."""
    if result.data.kind == "choice":
        return {"answers": "the likeliest choice counts"}
    settings = result.settings
    drawn = f"drawn at temperature {number(settings, 'temperature'):g}, seed {settings.get('seed')}"
    found = {"answers": f"answers {drawn if _is_drawn(result) else 'greedy (temperature 0)'}"}
    if settings.get("max_tokens"):
        found["length"] = f"at most {settings['max_tokens']} tokens each"
    if "normalize_numbers" in settings:
        alike = "with --numbers (number words, digits and dates count as equal)"
        found["numbers"] = alike if settings["normalize_numbers"] else "without --numbers"
    return found


def differences(one: EvaluationResult, other: EvaluationResult) -> str:
    """What was asked otherwise, such as "5 questions instead of 70, contains instead of exact match"."""
    found = ["other rows of that name"] if one.data.sha256 != other.data.sha256 else []
    if not found and one.data.asked == other.data.asked and accepted_answers(one) != accepted_answers(other):
        found = ["other accepted answers"]
    found += [f"under the name {one.data.name}"] if one.data.name != other.data.name else []
    first, second = manner(one), manner(other)
    pairs = [(_questions(one), _questions(other)), (metric_name(one.metric), metric_name(other.metric))]
    pairs += [(first.get(name, "not told"), second.get(name, "not told")) for name in {**first, **second}]
    if one.metric == other.metric and metric_function(one) != metric_function(other):
        found.append(f"another function for {metric_name(one.metric)}")
    return ", ".join([*found, *(f"{own} instead of {their}" for own, their in pairs if own != their)])


def eval_command(run: Run, asked: EvaluationResult | None = None) -> str:
    """The command that asks a run and its base the questions of a result in the same way; without one, its own."""
    parts = ["mlx-lora", "eval", run.typed, "--base"]
    if asked is None:
        return " ".join(parts)
    source, settings, written = asked.data.source, asked.settings, asked.data.kind == "open"
    if not asked.data.held_out and source != short_path(str(run.setting("data.test") or run.setting("data.valid"))):
        parts += ["--data", shlex.quote(source)]
    if asked.data.asked != asked.data.rows:
        parts += ["--limit", str(asked.data.asked)]
    if asked.metric != ("accuracy" if not written else "contains" if source in BUILTIN_DATA_SETS else "exact_match"):
        parts += ["--metric", shlex.quote(asked.metric)]
    if written and settings.get("max_tokens") not in (None, _MAX_TOKENS):
        parts += ["--max-tokens", shlex.quote(str(settings["max_tokens"]))]
    if written and _is_drawn(asked):
        parts += ["--temperature", f"{number(settings, 'temperature'):g}"]
        parts += ["--seed", shlex.quote(str(settings.get("seed")))]
    if written and settings.get("normalize_numbers"):
        parts.append("--numbers")
    return " ".join(parts)


def changed_since(run: Run, asked: EvaluationResult) -> str | None:
    """That the adapter of another step was asked than is in the file by now; None where none is known to be."""
    step = run.other_step(asked)
    if step is None:
        return None
    return f"{asked.data.name} was asked at step {step}; the adapter here is of step {run.adapter['step']}."


def _is_drawn(result: EvaluationResult) -> bool:
    return bool(result.settings.get("sampling") == "drawn")


def _questions(result: EvaluationResult) -> str:
    asked, rows = result.data.asked, result.data.rows
    return f"{asked:,} questions{f' of {rows:,}' if asked != rows else ''}"
