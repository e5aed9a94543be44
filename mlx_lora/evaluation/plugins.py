"""Metrics from outside: Python functions found by an entry point or by name. Knows nothing of models or data files.

A metric is `function(answer: str, accepted: Sequence[str]) -> float` in [0, 1]; True and False count as 1 and 0.
A package offers one in its pyproject.toml:

    [project.entry-points."mlx_lora.metrics"]
    valid_json = "my_package.metrics:valid_json"
"""

import difflib
import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mlx_lora.errors import ConfigError, DataError
from mlx_lora.evaluation.metrics import METRICS

GROUP = "mlx_lora.metrics"


@dataclass(frozen=True)
class CustomMetric:
    """A metric that a plug-in computes."""

    name: str
    target: str  # "my_package.metrics:valid_json"
    function: Callable[[str, Sequence[str]], Any]

    def score(self, answer: str, accepted: Sequence[str], place: str) -> float:
        """0 to 1. Raises: DataError where the plug-in fails or returns anything else; it names plug-in and row."""
        who = f"metric {self.name} ({self.target})"
        try:
            with redirect_stdout(sys.stderr):  # stdout is data: a line among it would spoil the JSON
                found = self.function(answer, tuple(accepted))
        except (Exception, SystemExit) as error:
            words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            fact = f"{who} failed on the answer {_short(answer)!r} to {place}: {words}"
            raise DataError(fact, "mend the plug-in, or leave the metric out") from error
        try:
            value = float(found)
        except (TypeError, ValueError, OverflowError):
            value = float("nan")
        if isinstance(found, str) or not 0 <= value <= 1:
            raise DataError(
                f"{who} returned {_short(repr(found))} for the answer {_short(answer)!r} to {place}",
                "a metric returns a number from 0 to 1",
            )
        return value


def load_metrics(names: Sequence[str]) -> list[CustomMetric]:
    """Those of `names` that are not built in: names of entry points, or `package.module:function`.

    A module is looked for where Python looks, then in the current folder. Raises: ConfigError.
    """
    return [_load(name) for name in dict.fromkeys(names) if name not in METRICS]


def _load(name: str) -> CustomMetric:
    if ":" in name:
        return CustomMetric(name, name, _function(name, name))
    found = [point for point in metadata.entry_points(group=GROUP) if point.name == name]
    targets = {point.value for point in found}
    if len(targets) > 1:
        raise ConfigError(f"--metric {name}: several packages offer it: {', '.join(sorted(targets))}", "uninstall one")
    if not found:
        known = [*METRICS, *sorted(point.name for point in metadata.entry_points(group=GROUP))]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}; or write package.module:function"
        raise ConfigError(f"--metric {name}: no such metric", hint)
    return CustomMetric(name, found[0].value, _function(name, found[0].value))


def _function(name: str, target: str) -> Callable[[str, Sequence[str]], Any]:
    module_name, _, attribute = target.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last: a file beside the data must not take the place of a package
    try:
        with redirect_stdout(sys.stderr):
            found = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        words = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"--metric {name}: {target} cannot be loaded: {words}", "mend or install the plug-in"
        ) from error
    if not callable(found):
        raise ConfigError(
            f"--metric {name}: {target} is {type(found).__name__}, no function",
            "a metric is a function of an answer and the accepted answers",
        )
    return found


def _short(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
