"""What the server counts, in the text format that Prometheus reads. Knows nothing of requests or models.

Source of the format: prometheus.io, "Exposition formats", text-based format 0.0.4.
"""

import threading
from collections import defaultdict

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_COUNTERS = {
    "requests_total": "Requests by endpoint and HTTP status.",
    "answers_total": "Finished answers by model and reason.",
    "prompt_tokens_total": "Tokens of prompts by model.",
    "reused_tokens_total": "Tokens of prompts that had been read before, by model.",
    "answer_tokens_total": "Tokens of answers by model.",
    "disconnects_total": "Requests whose client left before the end.",
}
_GAUGES = {
    "rows": "Answers being generated.",
    "waiting": "Answers that wait for a row.",
    "cache_bytes": "Keys and values kept of finished answers.",
    "adapter_bytes": "Stacked adapters.",
    "adapters": "Adapters loaded.",
}
_HISTOGRAMS = {
    "first_token_seconds": "From a request's arrival to its first token.",
    "request_seconds": "From a request's arrival to its end.",
}


class Metrics:
    """Counters, gauges and histograms. Labels come from us, never from a request's text."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, dict[tuple[tuple[str, str], ...], float]] = {name: {} for name in _COUNTERS}
        self._gauges: dict[str, float] = dict.fromkeys(_GAUGES, 0)
        self._buckets: dict[str, list[int]] = {name: [0] * (len(_SECONDS) + 1) for name in _HISTOGRAMS}
        self._sums: dict[str, float] = defaultdict(float)

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            counts = self._counts[name]
            counts[key] = counts.get(key, 0) + amount

    def gauges(self, **values: float) -> None:
        """Set gauges."""
        with self._lock:
            self._gauges.update(values)

    def observe(self, name: str, seconds: float) -> None:
        """Put a duration into a histogram."""
        place = next((index for index, bound in enumerate(_SECONDS) if seconds <= bound), len(_SECONDS))
        with self._lock:
            self._buckets[name][place] += 1
            self._sums[name] += seconds

    def value(self, name: str) -> float:
        """A gauge's value, or a counter's over all labels."""
        with self._lock:
            return self._gauges[name] if name in self._gauges else sum(self._counts[name].values())

    def text(self) -> str:
        """All of it."""
        lines: list[str] = []
        with self._lock:
            for name, about in _COUNTERS.items():
                lines += _head(name, about, "counter")
                lines += [f"mlx_lora_{name}{_labels(key)} {value:.15g}" for key, value in self._counts[name].items()]
            for name, about in _GAUGES.items():
                lines += [*_head(name, about, "gauge"), f"mlx_lora_{name} {self._gauges[name]:.15g}"]
            for name, about in _HISTOGRAMS.items():
                lines += _head(name, about, "histogram")
                total = 0
                for bound, count in zip([*map(str, _SECONDS), "+Inf"], self._buckets[name], strict=True):
                    total += count
                    lines.append(f'mlx_lora_{name}_bucket{{le="{bound}"}} {total}')
                lines += [f"mlx_lora_{name}_sum {self._sums[name]:.6f}", f"mlx_lora_{name}_count {total}"]
        return "\n".join(lines) + "\n"


def _head(name: str, about: str, kind: str) -> list[str]:
    return [f"# HELP mlx_lora_{name} {about}", f"# TYPE mlx_lora_{name} {kind}"]


def _labels(key: tuple[tuple[str, str], ...]) -> str:
    if not key:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in key) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
