"""metrics.jsonl back to what happened: start, steps, validations and the rest. Knows nothing of pages.

Lenient where a run was: a torn last line, figures that are not finite and events of other versions are read around
and counted, so that a page can say so. Facts of the start event that have other types are refused (startevent.py).
"""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_lora.files import named_errors
from mlx_lora.report.startevent import require_start_event

Event = Mapping[str, Any]
_OF_A_STEP = ("step", "validation")
_STEPS = 2**53  # fewer than these: beyond, JSON's numbers are no longer exact


@dataclass(frozen=True)
class Events:
    """A run's events in their order; of two for one step the later counts."""

    start: Event = field(default_factory=dict)
    steps: tuple[Event, ...] = ()
    validations: tuple[Event, ...] = ()
    others: tuple[Event, ...] = ()  # neither of the above, such as resume, end, retention, warning
    faulty_lines: tuple[int, ...] = ()  # counted from 1
    torn: bool = False  # the last line was cut off

    def of(self, kind: str) -> list[Event]:
        """The other events of one kind."""
        return [event for event in self.others if event["event"] == kind]

    @property
    def last_step(self) -> int:
        """The newest optimizer update; 0 before the first."""
        return int(self.steps[-1]["step"]) if self.steps else 0

    @property
    def facts(self) -> Event:
        """What the run told of schedule, data, engine and machine when it last began or went on, and when it began.

        Empty for runs of versions that did not tell.
        """
        told = [run for one in (self.start, *self.of("resume")) if isinstance(run := one.get("run"), Mapping)]
        return {**told[-1], **{name: told[0][name] for name in ("started",) if name in told[0]}} if told else {}


def read_events(path: Path) -> Events:
    """The events in a metrics.jsonl; none where there is no such file.

    Raises: MlxLoraError when it cannot be read, or its start event is none.
    """
    if not path.exists():
        return Events()
    with named_errors(path):
        text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")
    whole: list[Event] = []
    faulty: list[int] = []
    for number, line in enumerate(lines, start=1):
        event = _event(line)
        if event is not None:
            first = event["event"] == "start" and not any(one["event"] == "start" for one in whole)
            if first or event["event"] == "resume":
                require_start_event(event, f"{path}:{number}")
            whole.append(event)
        elif line.strip():
            faulty.append(number)
    torn = bool(faulty) and faulty[-1] == len(lines)  # what was written whole ends in a newline
    return Events(
        start=next((event for event in whole if event["event"] == "start"), {}),
        steps=_one_a_step(whole, "step"),
        validations=_one_a_step(whole, "validation"),
        others=tuple(event for event in whole if event["event"] not in ("start", "step", "validation")),
        faulty_lines=tuple(faulty[:-1] if torn else faulty),
        torn=torn,
    )


def number(event: Event, name: str) -> float:
    """A figure of an event; NaN where it is missing or no number that a float can hold whole."""
    value = event.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        found = float(value)
    except OverflowError:
        return math.nan
    return math.nan if 0 < abs(found) < sys.float_info.min else found


def _event(line: str) -> Event | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("event"), str):
        return None
    return value if value["event"] not in _OF_A_STEP or _is_step(value.get("step")) else None


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < _STEPS


def _one_a_step(events: list[Event], kind: str) -> tuple[Event, ...]:
    found = {event["step"]: event for event in events if event["event"] == kind}
    return tuple(found[step] for step in sorted(found))
