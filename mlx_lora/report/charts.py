"""Line charts as SVG paths in a stretched square, their labels as text beside it. Knows nothing of runs or HTML.

A path's numbers go from 0 to 1000 both ways, so the picture may be stretched to any width while lines keep their
thickness (vector-effect) and labels, which are HTML, keep their size.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mlx_lora.report.scales import Kind, Scale, prefers_log, scale_of_steps, scale_of_values, shown
from mlx_lora.report.series import Points, thinned

_SIZE = 1000.0
_MOST_POINTS = 900


@dataclass(frozen=True)
class Line:
    """A named curve: a line, a faint line behind others, or a line with a dot at each point."""

    name: str
    points: Points
    colour: str  # a class of report.css: one, two … eight, base
    style: Literal["line", "faint", "dots"] = "line"

    @property
    def values(self) -> list[float]:
        return [y for _, y in self.points if math.isfinite(y)]


@dataclass(frozen=True)
class Mark:
    """A step worth pointing at."""

    x: float
    text: str


@dataclass(frozen=True)
class View:
    """A chart on one kind of axis: paths and labels, places in percent from the left and the top."""

    kind: Kind
    y: Scale
    x_labels: list[tuple[float, str]]
    y_labels: list[tuple[float, str]]
    paths: list[tuple[str, str, str]]  # (style, colour, d)
    grid: str
    marks: list[tuple[float, str]]


@dataclass(frozen=True)
class Chart:
    """A figure: lines over steps, with a sentence that says what they show."""

    key: str  # an HTML id
    title: str
    unit: str
    lines: Sequence[Line]
    sentence: str
    marks: Sequence[Mark] = ()
    steps_per_epoch: int | None = None
    wide: bool = False
    axis: Literal["best", "linear", "from zero"] = "best"  # the first: linear or log by the span; the last: linear only
    views: list[View] = field(init=False)

    def __post_init__(self) -> None:
        values = [value for line in self.lines for value in line.values]
        can_be_log = values and min(values) > 0 and self.axis != "from zero"
        kinds: list[Kind] = ["linear", "log"] if can_be_log else ["linear"]
        if can_be_log and self.axis == "best" and prefers_log(values):
            kinds.reverse()
        object.__setattr__(self, "views", [self._view(kind, values) for kind in kinds] if values else [])

    @property
    def last_x(self) -> float:
        return max((x for line in self.lines for x, _ in line.points), default=1.0)

    def data(self) -> Mapping[str, Any]:
        """What a pointer over the chart shows, as JSON values; figures that are not finite are null."""
        return {
            "unit": self.unit,
            "epoch": self.steps_per_epoch,
            "x": [0, self.last_x],
            "y": {view.kind: [view.y.low, view.y.high] for view in self.views},
            "lines": [
                {
                    "name": line.name,
                    "colour": line.colour,
                    "points": [[x, _rounded(y)] for x, y in thinned(line.points, _MOST_POINTS)],
                }
                for line in self.lines
            ],
        }

    def _view(self, kind: Kind, values: Sequence[float]) -> View:
        x, y = scale_of_steps(self.last_x), scale_of_values(values, kind, from_zero=self.axis == "from zero")
        y_ticks = y.ticks()
        grid = "".join(f"M0 {_place(1 - y.share(tick))}H1000" for tick in y_ticks)
        return View(
            kind=kind,
            y=y,
            x_labels=[(round(100 * x.share(tick), 2), shown(tick)) for tick in x.ticks(6) if tick == int(tick)],
            y_labels=[(round(100 * (1 - y.share(tick)), 2), shown(tick)) for tick in y_ticks],
            paths=[path for line in self.lines for path in _paths(line, x, y)],
            grid=grid,
            marks=[(round(100 * x.share(mark.x), 2), mark.text) for mark in self.marks],
        )


def _paths(line: Line, x: Scale, y: Scale) -> list[tuple[str, str, str]]:
    points = thinned(line.points, _MOST_POINTS)
    pieces, pen = [], "M"
    for across, up in points:
        if math.isfinite(up):
            pieces.append(f"{pen}{_place(x.share(across))} {_place(1 - y.share(up))}")
            pen = "L"
        else:
            pen = "M"  # a gap
    style = "line" if line.style == "dots" else line.style
    found: list[tuple[str, str, str]] = [(style, line.colour, "".join(pieces))]
    alone = len(line.values) == 1
    if line.style == "dots" or alone:
        # A line of no length has round ends: a dot that keeps its shape when the picture is stretched.
        places = [(x.share(across), 1 - y.share(up)) for across, up in points if math.isfinite(up)]
        found.append(("dots", line.colour, "".join(f"M{_place(across)} {_place(up)}h.01" for across, up in places)))
    return found


def _place(share: float) -> str:
    return f"{_SIZE * share:.1f}".removesuffix(".0")


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
