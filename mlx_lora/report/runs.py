"""A run folder's files to one value, and what is missing in it, with the command that gives it. Knows no pages."""

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from os.path import normpath
from pathlib import Path
from typing import Any

from mlx_lora.dataset.builtin import BUILTIN_DATA_SETS
from mlx_lora.errors import MlxLoraError
from mlx_lora.evaluation.result_format import EvaluationResult
from mlx_lora.files import named_errors
from mlx_lora.report.events import Event, Events, number, read_events
from mlx_lora.report.privacy import short_path, without_paths, yaml_without_paths
from mlx_lora.report.results import Retention, read_results, read_retention
from mlx_lora.runfile.loader import YamlError, parse_yaml

_TRAINED_ROWS = "These are the rows that it was trained on"
RUN_FILE, METRICS_FILE, ADAPTER_CONFIG = "run.yaml", "metrics.jsonl", "adapter_config.json"


@dataclass(frozen=True)
class Run:
    """What a run folder tells, cleaned of absolute paths and secrets."""

    name: str  # the folder's
    place: str  # the folder as commands take it, cut where it is absolute
    run_file: str | None
    settings: Mapping[str, Any]  # of run.yaml, nested; empty without one
    events: Events
    adapter: Mapping[str, Any]  # adapter_config.json's own part; empty without one
    adapter_bytes: int
    results: tuple[EvaluationResult, ...]
    faults: tuple[str, ...]  # files or lines that could not be used

    @property
    def typed(self) -> str:
        """`place` as it is typed in a shell: quoted where it holds blanks or signs of the shell's."""
        plain = self.place.replace("…", "")  # the mark of a cut path is no sign of the shell's
        return self.place if shlex.quote(plain) == plain else shlex.quote(self.place)

    @property
    def origin(self) -> Mapping[str, Any]:
        """Base, data hashes, template and versions: of metrics.jsonl's first line, else of the adapter."""
        return self.events.start or self.adapter

    @property
    def facts(self) -> Event:
        return self.events.facts

    @property
    def base_loss(self) -> float | None:
        """The validation loss before the first step, in nats a token."""
        found = [number(one, "loss") for one in self.events.validations if one["step"] == 0]
        return found[0] if found and math.isfinite(found[0]) else None

    @property
    def best_validation(self) -> Event | None:
        """The validation that the run called its best; where the files do not say, that with the lowest loss."""
        later = [one for one in self.events.validations if one["step"] > 0 and math.isfinite(number(one, "loss"))]
        if best := [one for one in later if one.get("best") is True]:
            return best[-1]
        return min(later, key=lambda one: (number(one, "loss"), one["step"]), default=None)

    @property
    def total_steps(self) -> int | None:
        """How many steps were planned; None where the files do not say."""
        for planned in (self.facts.get("total_steps"), self.setting("train.steps")):
            if isinstance(planned, int):
                return planned
        epochs, last = self.setting("train.epochs"), self.events.steps[-1] if self.events.steps else None
        if not isinstance(epochs, int) or last is None or not number(last, "epoch") > 0:
            return None
        return round(epochs * number(last, "step") / number(last, "epoch"))

    @property
    def ranks(self) -> int:
        """How many processes trained together."""
        found = self.facts.get("ranks") or self.events.start.get("fingerprint", {}).get("ranks", 1)
        return int(found)

    @property
    def ended_by(self) -> str:
        """steps, patience, signal or error; "" where the files end without saying."""
        ends = self.events.of("end")
        if ends and ends[-1].get("step") == self.events.last_step:
            return str(ends[-1].get("ended_by"))
        return "steps" if self.events.steps and self.events.last_step == self.total_steps else ""

    @property
    def resumed_after(self) -> list[int]:
        """The steps after which it was stopped and went on, each once."""
        steps = dict.fromkeys(event.get("step") for event in self.events.of("resume"))
        return [step for step in steps if isinstance(step, int) and step < self.events.last_step]

    @property
    def learning_results(self) -> list[EvaluationResult]:
        """Those that can tell whether it learned: of the run's own test rows, else of its validation rows, else of
        what it held out, else all that are not for retention."""
        others = [one for one in self.results if not self.is_retention(one)]
        named = ([one for one in others if self._is_of(one, f"data.{split}")] for split in ("test", "valid"))
        of_train = [one for one in others if self._is_of(one, "data.train") and self.trained_share(one) < 1]
        held_out = [one for one in of_train if one.data.held_out]
        return next((own for own in (*named, held_out, of_train) if own), others)

    @property
    def retention_results(self) -> list[EvaluationResult]:
        """Those that can tell whether it forgot."""
        return [one for one in self.results if self.is_retention(one)]

    @property
    def retention(self) -> Retention | None:
        """What the run itself asked at its end."""
        return read_retention(self.events.of("retention"))

    def is_retention(self, result: EvaluationResult) -> bool:
        """Whether a result is of questions that the run was not to teach, but to leave as they were."""
        builtin = not BUILTIN_DATA_SETS.keys().isdisjoint((result.data.name, result.data.source))
        return builtin or self._is_of(result, "train.retention")

    def _is_of(self, result: EvaluationResult, setting: str) -> bool:
        """Whether a result is of the data that a setting names, however its path was spelled."""
        named = self.setting(setting)
        return named is not None and normpath(result.data.source) == normpath(short_path(str(named)))

    def other_step(self, result: EvaluationResult) -> int | None:
        """The step of the adapter that was asked, where the file has one of another step; None where nobody knows."""
        asked, now = result.settings.get("adapter_step"), self.adapter.get("step")
        return asked if isinstance(asked, int) and isinstance(now, int) and asked != now else None

    def trained_share(self, result: EvaluationResult) -> float:
        """Which share of a result's questions the training asked too, as far as anybody knows; 0 to 1."""
        hashes, data = self.origin.get("data_sha256"), result.data
        if data.trained_on or (isinstance(hashes, Mapping) and hashes.get("train") == data.sha256):
            return 1.0
        return min((data.trained_questions or 0) / max(data.asked, 1), 1.0)

    def memory_remark(self, result: EvaluationResult) -> str:
        """What to say of questions that the training asked too; nothing where none is known to be."""
        share, data = self.trained_share(result), result.data
        if share == 1:
            other_rows = data.trained_questions and not data.trained_on
            told = f"All {data.asked} were asked in training too" if other_rows else _TRAINED_ROWS
            return f"{told}: this shows memory, not learning."
        of = f"{data.trained_questions} of the {data.asked}"
        return f"{of} were asked in training too: there it may be memory." if share else ""

    def setting(self, name: str) -> Any:
        """A setting by its dotted name; None where run.yaml does not have it."""
        value: Any = self.settings
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


def read_run(folder: Path) -> Run:
    """What the files of a run folder tell; whatever is missing or torn is left out and named.

    Raises: MlxLoraError when the folder holds none of a run's files, or one cannot be read.
    """
    if not is_run(folder):
        names = f"{METRICS_FILE}, {ADAPTER_CONFIG} or {RUN_FILE}"
        raise MlxLoraError(f"{folder}: is no run folder: it has no {names}", "give the output_dir of `mlx-lora train`")
    faults: list[str] = []
    run_file, settings = _read_run_file(folder / RUN_FILE, faults)
    events = read_events(folder / METRICS_FILE)
    adapter = _read_adapter_config(folder / ADAPTER_CONFIG, faults)
    results, unusable = read_results(folder / "eval")
    faults += [f"line {line} of {METRICS_FILE} is no event and was left out" for line in events.faulty_lines]
    weights = folder / "adapters.safetensors"
    return Run(
        name=folder.resolve().name,
        place=short_path(str(folder)),
        run_file=run_file,
        settings=settings,
        events=_cleaned(events),
        adapter=without_paths(adapter),
        adapter_bytes=weights.stat().st_size if weights.is_file() else 0,
        results=tuple(results),
        faults=(*faults, *unusable),
    )


def is_run(folder: Path) -> bool:
    """Whether `folder` holds any of the files that a run leaves."""
    return any((folder / name).is_file() for name in (RUN_FILE, METRICS_FILE, ADAPTER_CONFIG))


def _read_run_file(path: Path, faults: list[str]) -> tuple[str | None, Mapping[str, Any]]:
    if not path.is_file():
        return None, {}
    with named_errors(path):
        text = path.read_text(encoding="utf-8", errors="replace")
    try:
        settings = parse_yaml(text).value
    except YamlError as fault:
        faults.append(f"{RUN_FILE}:{fault.line}: {fault.fact}")
        settings = None
    return yaml_without_paths(text), without_paths(settings) if isinstance(settings, Mapping) else {}


def _read_adapter_config(path: Path, faults: list[str]) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    with named_errors(path):
        text = path.read_text(encoding="utf-8", errors="replace")
    try:
        found = json.loads(text).get("mlx_lora")
    except (ValueError, AttributeError, RecursionError):
        faults.append(f"{ADAPTER_CONFIG} is not whole and was left out")
        return {}
    return found if isinstance(found, Mapping) else {}


def _cleaned(events: Events) -> Events:
    cleaned = without_paths(events.others)
    return Events(
        without_paths(events.start), events.steps, events.validations, tuple(cleaned), events.faulty_lines, events.torn
    )
