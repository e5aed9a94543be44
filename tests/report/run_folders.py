"""Run folders as `train` and `eval` leave them, written by hand: every figure in them is known to the tests."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_lora.evaluation.result_format import EvaluationResult
from mlx_lora.statistics import wilson_interval

SETTINGS = """\
model: tiny
data:
  train: data/train.jsonl
  valid: data/valid.jsonl
  test: data/test.jsonl
lora:
  method: lora
  rank: 8
  alpha: 16.0
train:
  epochs: 2
optimizer:
  learning_rate: 0.001
output_dir: adapters/one
"""
SPLIT = {"rows": 6, "examples": 6, "tokens": 60, "trained_tokens": 12, "duplicates": 1}
SPLIT |= {"length_quantiles": {"p50": 9, "max": 14}}
FACTS: dict[str, Any] = {
    "started": "2026-11-22T03:00:00+00:00",
    "total_steps": 6,
    "steps_per_epoch": 3,
    "ranks": 1,
    "compute": "float32",
    "modules": 4,
    "trainable_parameters": 2048,
    "total_parameters": 102400,
    "data": {"train": SPLIT, "valid": {**SPLIT, "rows": 2, "examples": 2}, "test": {"rows": 0}},
    "data_warnings": [],
    "engine": [
        {"name": "shared_prefix", "active": True, "line": "the first 24 tokens once a step"},
        {"name": "frozen_layers", "active": False, "line": "adapters sit in all layers"},
    ],
    "machine": {"system": "Linux", "processor": "x86_64", "python": "3.11.7"},
}
START: dict[str, Any] = {
    "event": "start",
    "step": 0,
    "model": "tiny",
    "identity": {"name": "tiny", "revision": None, "weights_sha256": "b" * 64},
    "data_sha256": {"train": "a" * 64, "valid": "c" * 64},
    "versions": {"mlx": "0.32.4", "mlx-lora": "0.1.0"},
    "run": FACTS,
}


def step(number: int, loss: float | None = None, **values: Any) -> dict[str, Any]:
    """A step event: loss 4 / step, two seconds, ten targets, a hundred tokens, 1.5 GB."""
    return {
        "event": "step",
        "step": number,
        "epoch": number / 3,
        "loss": 4 / number if loss is None else loss,
        "gradient_norm": 2.0,
        "learning_rate": 1e-3,
        "targets": 10,
        "tokens": 100,
        "padding_share": 0.1,
        "seconds": 2.0,
        "peak_bytes": 1_500_000_000,
        **values,
    }


def validation(number: int, loss: float, best: bool = False) -> dict[str, Any]:
    return {"event": "validation", "step": number, "loss": loss, "best": best, "seconds": 1.0}


def whole_run() -> list[dict[str, Any]]:
    """Six steps in two epochs, three validations, an end."""
    middle = [step(1), step(2), step(3), validation(3, 1.25, True), step(4), step(5), step(6), validation(6, 0.5, True)]
    return [START, validation(0, 5.0), *middle, {"event": "end", "step": 6, "ended_by": "steps"}]


def write_run(
    folder: Path,
    events: Sequence[Mapping[str, Any]] | None = None,
    *,
    settings: str | None = SETTINGS,
    results: Sequence[EvaluationResult] = (),
) -> Path:
    """A run folder with these events (a whole run where none are given) and results."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(event) for event in (whole_run() if events is None else events)]
    if lines:
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if settings is not None:
        (folder / "run.yaml").write_text(settings, encoding="utf-8")
    adapter = {"fine_tune_type": "lora", "mlx_lora": {"model": "tiny", "step": 6}}
    (folder / "adapter_config.json").write_text(json.dumps(adapter), encoding="utf-8")
    (folder / "adapters.safetensors").write_bytes(bytes(4_900_000))
    for result in results:
        (folder / "eval").mkdir(exist_ok=True)
        (folder / "eval" / f"{result.data.name}.json").write_text(result.model_dump_json(), encoding="utf-8")
    return folder


def result(
    changes: Sequence[str] = ("fixed", "fixed", "kept right", "broken", "kept wrong"),
    *,
    name: str = "data-test",
    source: str = "data/test.jsonl",
    kind: str | None = "learned",
    sha256: str = "d" * 64,
    questions: Sequence[Mapping[str, Any]] = (),
    base: bool = True,
    rows: int | None = None,
    **settings: Any,
) -> EvaluationResult:
    """A result by exact match with one question for each change; `questions` replace what those at their place say.

    rows: of the data, where fewer were asked; settings: how it was asked, beside what every result says here.
    """
    asked = []
    for place, change in enumerate(changes):
        after, before = change in ("fixed", "kept right"), change in ("broken", "kept right")
        row: dict[str, Any] = {
            "question": f"Question {place}?",
            "answers": [f"answer {place}", f"variant {place}"],
            "place": f"{source}:{place + 1}",
            "answer": f"answer {place}" if after else f"no idea {place}",
            "scores": {"exact_match": after},
            "reference_tokens": 3,
            "change": change if base else None,
            "base": {"answer": f"base {place}", "scores": {"exact_match": before}, "reference_tokens": 3},
        }
        replaced = questions[place] if place < len(questions) else {}
        asked.append({**row, **replaced, **({} if base else {"base": None})})
    count = len(asked)
    right = sum(row["scores"]["exact_match"] for row in asked)
    right_before = sum(change in ("broken", "kept right") for change in changes)
    counts = {
        each.replace(" ", "_"): list(changes).count(each) for each in ("fixed", "broken", "kept right", "kept wrong")
    }
    sentence = f"the adapter answers {right} of {count}, the base {right_before} of {count}: {kind}"
    return EvaluationResult.model_validate(
        {
            **{"format_version": 2, "label": "adapters/one", "metric": "exact_match", "metrics": ["exact_match"]},
            "data": {"name": name, "source": source, "sha256": sha256, "rows": rows or count, "asked": count},
            **_figures(right, count),
            "base": _figures(right_before, count) if base else None,
            "verdict": {"kind": kind, "sentence": sentence} if base else None,
            "comparison": {"exact_match": {"p": 0.03, **counts}} if base else None,
            "questions": asked,
            "settings": {"sampling": "greedy", "max_tokens": 64, **settings},
            **{"seconds": 1.5, "answer_tokens": 9, "tokens_per_second": 6.0, "questions_per_second": 3.3},
            **{"versions": {}, "machine": {}, "timestamp": "2026-11-22T03:30:00+00:00"},
        }
    )  # fmt: skip


def scored(
    one: EvaluationResult, metric: str, pairs: Sequence[tuple[float, float]], *, leads: bool = False, **verdict: Any
) -> EvaluationResult:
    """The same result with another metric's scores of each question, (base, adapter); `verdict` changes the verdict."""
    content = one.model_dump()
    for question, (before, after) in zip(content["questions"], pairs, strict=True):
        question["base"]["scores"][metric], question["scores"][metric] = before, after
    for figures, scores in ((content["base"], [pair[0] for pair in pairs]), (content, [pair[1] for pair in pairs])):
        figures[metric] = sum(scores) / len(scores)
        if metric != "token_f1":
            figures["interval"][metric] = wilson_interval(int(sum(scores)), len(scores))
    if metric == "token_f1":
        higher, lower = (sum(sign * (two - one) > 0 for one, two in pairs) for sign in (1, -1))
        counts = {"higher": higher, "lower": lower, "equal": len(pairs) - higher - lower}
    else:
        cells = {"fixed": (0, 1), "broken": (1, 0), "kept_right": (1, 1), "kept_wrong": (0, 0)}
        counts = {name: list(pairs).count(cell) for name, cell in cells.items()}
    content["comparison"][metric] = {"p": 0.01, **counts}
    content["metrics"].append(metric)
    content["metric"] = metric if leads else content["metric"]
    content["verdict"] |= verdict
    return EvaluationResult.model_validate(content)


def of_facts(one: EvaluationResult, facts: Mapping[str, tuple[int, int, int]]) -> EvaluationResult:
    """The same result with these facts: questions, and how many of them base and adapter have right."""
    groups = {
        name: {**_figures(after, count), "base": _figures(before, count)}
        for name, (count, before, after) in facts.items()
    }
    return EvaluationResult.model_validate({**one.model_dump(), "per_fact": groups})


def _figures(right: int, count: int) -> dict[str, Any]:
    interval = {"exact_match": wilson_interval(right, count)}
    return {"count": count, "exact_match": right / count, "stop_rate": 1.0, "perplexity": 1.5, "interval": interval}
