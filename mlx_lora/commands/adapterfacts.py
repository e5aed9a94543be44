"""What an adapter folder's files say of it, in a line or in full. Reads no tensors; imports no MLX."""

import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mlx_lora.chat.places import adapter_label
from mlx_lora.errors import AdapterError, MlxLoraError
from mlx_lora.evaluation.result_format import EvaluationResult
from mlx_lora.lora.adapter_config import AdapterParameters, read_adapter_config
from mlx_lora.report.answers import metric_name, share_text
from mlx_lora.report.runs import Run, read_run


@dataclass(frozen=True)
class Shelved:
    """An adapter folder as its files tell it; `fault` says why it cannot be used, where it cannot."""

    folder: Path
    label: str
    weight_bytes: int
    made: float  # seconds since 1970
    run: Run | None
    parameters: AdapterParameters | None
    fault: str | None

    @property
    def base(self) -> str:
        """The base's name; "?" where the files do not say."""
        return "?" if self.run is None else str(self.run.origin.get("model") or self.run.setting("model") or "?")

    @property
    def method(self) -> str:
        """Such as "lora 8"; a merged adapter says so."""
        if self.parameters is None:
            return "–"
        merged = self.run is not None and "merged_from" in self.run.adapter
        return f"{self.parameters.method} {self.parameters.rank}{', merged' if merged else ''}"

    @property
    def result(self) -> EvaluationResult | None:
        """The evaluation that tells best what it learned; None where there is none that can be read."""
        run = self.run
        if run is None:
            return None

        def rank(one: EvaluationResult) -> tuple[bool, bool, bool]:
            return run.other_step(one) is not None, run.is_retention(one), run.trained_share(one) == 1

        return min([*run.learning_results, *run.results], key=rank, default=None)  # the first of equals

    @property
    def scores(self) -> list[dict[str, Any]]:
        """The leading figure of every evaluation."""
        return [self._score(result) for result in (self.run.results if self.run else ())]

    def score_text(self, result: EvaluationResult) -> str:
        """Such as "68 of 70, 97 % (90–99)"; with its metric where that is not the exact match, and an older step."""
        named = "" if result.metric == "exact_match" else f"{metric_name(result.metric)} "
        step = self.run.other_step(result) if self.run else None
        older = "" if step is None else f", at step {step}"
        share = self.run.trained_share(result) if self.run else 0.0
        trained = "" if not share else f", {'all' if share == 1 else result.data.trained_questions} asked in training"
        return f"{named}{share_text(result, result.metric)}{older}{trained}".replace("\N{NO-BREAK SPACE}", " ")

    def _score(self, result: EvaluationResult) -> dict[str, Any]:
        step, share = (self.run.other_step(result), self.run.trained_share(result)) if self.run else (None, 0.0)
        return {**_score_json(result), "other_step": step, "trained_share": share}

    def as_json(self) -> dict[str, Any]:
        """The facts of the list."""
        score = self.result
        return {
            "name": self.label,
            "folder": str(self.folder),
            "weight_bytes": self.weight_bytes,
            "base": None if self.base == "?" else self.base,
            "method": self.parameters.method if self.parameters else None,
            "rank": self.parameters.rank if self.parameters else None,
            "score": None if score is None else self._score(score),
            "age_seconds": round(max(time.time() - self.made, 0)),
            "fault": self.fault,
        }


def read_shelved(folder: Path, label: str | None = None) -> Shelved:
    """The facts of an adapter folder; what is wrong with it becomes its fault. label: what to call it."""
    run = parameters = fault = None
    try:
        _, parameters = read_adapter_config(folder)
    except AdapterError as error:
        fault = error.message.removeprefix(f"{folder}: ").removeprefix(f"{folder}/")
    try:
        run = read_run(folder)
    except MlxLoraError as error:
        fault = fault or error.message
    return Shelved(
        folder,
        label or adapter_label(folder),
        run.adapter_bytes if run else 0,
        _made(folder, run),
        run,
        parameters,
        fault,
    )


def _score_json(result: EvaluationResult) -> dict[str, Any]:
    return {
        "data": result.data.name,
        "metric": result.metric,
        "questions": result.count,
        "value": result.value(result.metric),
        "interval": result.interval.get(result.metric),
        "base": None if result.base is None else result.base.value(result.metric),
        "verdict": None if result.verdict is None else result.verdict.kind,
    }


def age_text(seconds: float) -> str:
    """Such as "5 min", "3 h", "12 days"."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size or (size == 60 and seconds >= 60):
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _made(folder: Path, run: Run | None) -> float:
    """When the run began, by its own words; else when its weights were written here."""
    started = run.facts.get("started") if run is not None else None
    try:
        return datetime.fromisoformat(str(started)).timestamp()
    except ValueError:
        weights = folder / "adapters.safetensors"
        return (weights if weights.is_file() else folder).stat().st_mtime
