"""What a page says beside curves and answers: numbers, base, data, engine, machine, notes. Knows nothing of HTML."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_lora.report.asking import changed_since, eval_command
from mlx_lora.report.events import number
from mlx_lora.report.runs import Run
from mlx_lora.report.scales import shown
from mlx_lora.screen import format_bytes, format_seconds

Pairs = Sequence[tuple[str, str]]

_ENDS = {
    "steps": "after all its steps",
    "patience": "early: the validation loss no longer fell",
    "signal": "stopped by hand",
    "error": "with an error",
    "": "the files do not say",
}


@dataclass(frozen=True)
class Table:
    """A table with a header row; the first cell of each row is its header."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Part:
    """A part of the engine: whether it was on, and what it did or why not."""

    name: str
    active: bool
    line: str


def tiles(run: Run) -> Pairs:
    """The few numbers that one asks for first."""
    steps, found = run.events.steps, []
    planned = f" of {run.total_steps:,}" if run.total_steps and run.total_steps != run.events.last_step else ""
    found.append(("steps", f"{run.events.last_step:,}{planned}"))
    seconds = sum(number(step, "seconds") for step in steps)
    if steps and math.isfinite(seconds):
        clock = format_seconds(seconds)
        found.append(("time in steps", f"{clock} {'h' if clock.count(':') == 2 else 'min'}"))
        trained = sum(number(one, "targets") for one in steps)
        if seconds > 0 and math.isfinite(trained):
            found.append(("trained tokens a second", shown(_rounded(trained / seconds))))
    if run.best_validation is not None:
        found.append(("best validation loss", f"{number(run.best_validation, 'loss'):.4f}"))
    peaks = [number(step, "peak_bytes") for step in steps]
    if peaks and math.isfinite(max(peaks)):
        found.append(("peak memory of MLX", format_bytes(max(peaks))))
    if run.adapter_bytes:
        found.append(("adapter file", format_bytes(run.adapter_bytes)))
    return found


def run_facts(run: Run) -> Pairs:
    """When, how long and how it ended."""
    facts = run.facts
    return _known(
        ("started", str(facts.get("started", "")).replace("T", " ").replace("+00:00", " UTC")),
        ("ended", _ENDS.get(run.ended_by, run.ended_by)),
        ("resumed", ", ".join(f"after step {step}" for step in run.resumed_after)),
        ("epochs", shown(_rounded(number(run.events.steps[-1], "epoch"))) if run.events.steps else ""),
        ("ranks", str(run.ranks)),
        ("padding", _percent(_mean([number(step, "padding_share") for step in run.events.steps]))),
    )


def base_facts(run: Run) -> Pairs:
    """Which base, exactly."""
    origin = run.origin
    identity = origin.get("identity")
    identity = identity if isinstance(identity, Mapping) else {}
    return _known(
        ("model", origin.get("model") or run.setting("model")),
        ("revision", identity.get("revision") or origin.get("revision")),
        ("computed in", run.facts.get("compute")),
        *((f"{part} SHA-256", identity.get(f"{part}_sha256")) for part in ("weights", "config", "tokenizer")),
        ("chat template SHA-256", origin.get("chat_template_sha256")),
        ("system prompt", origin.get("system_prompt")),
    )


def adapter_facts(run: Run) -> Pairs:
    """How large the adapter is."""
    facts, trained = run.facts, run.facts.get("trainable_parameters")
    share = f"{trained:,} ({trained / facts['total_parameters']:.2%} of the model)" if trained else ""
    kept = run.adapter.get("step")
    return _known(
        ("method", run.setting("lora.method")),
        ("rank", run.setting("lora.rank")),
        ("alpha", run.setting("lora.alpha")),
        ("A at the start", run.setting("lora.init")),
        ("modules", facts.get("modules")),
        ("trained parameters", share),
        ("started from", run.setting("lora.start_from") or ""),
        ("kept", f"of step {kept}" if kept is not None else ""),
    )


def data_table(run: Run) -> Table | None:
    """Rows and tokens of each split, or only their hashes where the run's version did not count."""
    hashes, splits = run.origin.get("data_sha256"), run.facts.get("data")
    hashes = hashes if isinstance(hashes, Mapping) else {}
    names = list(dict.fromkeys([*splits, *hashes] if isinstance(splits, Mapping) else hashes))
    if not names:
        return None
    if not isinstance(splits, Mapping):
        columns = ["", "file", "SHA-256"]
        return Table(columns, [[name, _source(run, name), str(hashes[name])] for name in names])
    columns = ["", "file", "rows", "used", "tokens", "trained tokens", "longest", "median", "repeats", "SHA-256"]
    rows = []
    for name in names:
        one = splits.get(name, {})  # replayed rows have a hash alone
        if not one.get("rows") and name not in hashes:
            continue
        lengths = one.get("length_quantiles", {})
        counts = [one.get("rows"), one.get("examples"), one.get("tokens"), one.get("trained_tokens")]
        counts += [lengths.get("max"), lengths.get("p50"), one.get("duplicates")]
        digest = str(hashes.get(name, ""))[:12]
        rows.append([name, _source(run, name), *map(_count, counts), digest])
    return Table(columns, rows)


def engine_parts(run: Run) -> list[Part]:
    """A line for each part of the engine; empty where the run's version did not keep them."""
    found = run.facts.get("engine") or []
    return [Part(one["name"].replace("_", " "), bool(one["active"]), str(one["line"])) for one in found]


def environment(run: Run) -> Pairs:
    """Versions and machine of the training."""
    parts = (run.origin.get("versions"), run.facts.get("machine"))
    return _known(*(pair for part in parts if isinstance(part, Mapping) for pair in part.items()))


def notes(run: Run) -> list[tuple[str, str | None]]:
    """What is missing, cut off or out of the ordinary, each with the command that mends it, where there is one."""
    events, found = run.events, list[tuple[str, str | None]]()
    again = f"mlx-lora train {run.typed}/run.yaml --resume"
    if not events.steps:
        found.append(("There are no curves: metrics.jsonl holds no step. Training writes it.", None))
    if events.torn:
        found.append(
            ("The last line of metrics.jsonl was cut off, as by a crash or a full disk; it is left out.", None)
        )
    place = f"step {events.last_step}{f' of {run.total_steps}' if run.total_steps else ''}"
    if run.ended_by in ("signal", "error"):
        found.append((f"It ended after {place}, {_ENDS[run.ended_by]}.", again))
    elif not run.ended_by and events.steps:
        found.append((f"Its files end at {place}: it was killed, still runs, or an older version trained it.", again))
    found += [(f"It was stopped and resumed after step {step}.", None) for step in run.resumed_after]
    if events.steps and not events.validations:
        found.append(("There was no validation: set data.valid, or data.valid_share, to see when to stop.", None))
    if run.ranks > 1:
        text = f"{run.ranks} ranks trained together: loss and tokens are of all, time and memory of the first."
        found.append((text, None))
    if run.run_file is None:
        found.append(("There is no run.yaml, so the settings are not known.", None))
    found += [(f"{warning}", None) for warning in run.facts.get("data_warnings") or []]
    found += [(_warning(event), None) for event in events.of("warning")]
    found += [(now, eval_command(run, one)) for one in run.results if (now := changed_since(run, one)) is not None]
    found += [(f"{fault}.", eval_command(run) if fault.startswith("eval/") else None) for fault in run.faults]
    return found


def _warning(event: Mapping[str, Any]) -> str:
    text = str(event.get("message") or event.get("line") or event.get("text") or "a warning without words")
    return f"step {event['step']}: {text}" if event.get("step") else text


def _known(*pairs: tuple[str, Any]) -> Pairs:
    return [(name, str(value)) for name, value in pairs if value not in (None, "")]


def _source(run: Run, split: str) -> str:
    return str(run.setting(f"data.{split}") or "")


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "–"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _percent(share: float | None) -> str:
    return "" if share is None or share != share else f"{share:.1%}"


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
