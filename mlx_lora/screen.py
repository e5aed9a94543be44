"""The training screen: a progress bar with the figures that matter, plain lines where there is no terminal."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from statistics import mean, median
from types import TracebackType
from typing import Protocol, TypeVar

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from mlx_lora.console import talk

PLAIN_LINE_SECONDS = 10.0
_RECENT = 50  # steps
_TIMES = 3  # what is usual: more is a halt or a compilation
Item = TypeVar("Item")


class Step(Protocol):
    """What the screen shows of an optimizer update (training/loop.py's StepReport)."""

    @property
    def step(self) -> int: ...
    @property
    def loss(self) -> float: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def targets(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def padding_share(self) -> float: ...
    @property
    def seconds(self) -> float: ...
    @property
    def peak_bytes(self) -> int: ...


class TimeLeft:
    """How long a run still takes: from its last steps, but those that stand out, and from its validations.

    A machine that slept, a process that was halted and a step that compiled say nothing of the steps to come.
    """

    def __init__(self, total_steps: int, eval_every: int | None) -> None:
        self._total_steps = total_steps
        self._eval_every = eval_every
        self._first = True
        self._steps: deque[tuple[float, int]] = deque(maxlen=_RECENT)  # seconds and tokens of each
        self._validations: list[float] = []  # seconds of each

    def note_step(self, seconds: float, tokens: int) -> None:
        """Count a step, but for the first one, which compiles."""
        if not self._first:
            self._steps.append((seconds, tokens))
        self._first = False

    def stands_out(self, seconds: float, tokens: int) -> bool:
        """Whether a step took three times what is usual of late, for a step and for its tokens: long rows may."""
        if not self._steps:
            return False
        usual = median(each for each, _ in self._steps)
        of_token = median(each / count for each, count in self._steps)
        return seconds > _TIMES * max(usual, of_token * tokens)

    def note_validation(self, seconds: float) -> None:
        """Count a validation."""
        self._validations.append(seconds)

    def seconds(self, step: int) -> float | None:
        """Seconds from the end of `step`, before its validation, to the end of the run; None where no step tells."""
        if not self._steps:
            return None
        left = mean(seconds for seconds, tokens in self._steps if not self.stands_out(seconds, tokens)) * (
            self._total_steps - step
        )
        if self._eval_every and self._validations:
            count = -(-self._total_steps // self._eval_every) - (step - 1) // self._eval_every
            left += median(self._validations) * count
        return left


class TrainScreen:
    """Progress of a run on stderr. Figures are means over the last steps, not single readings."""

    def __init__(self, first_step: int, total_steps: int, eval_every: int | None = None) -> None:
        """eval_every: steps from one validation to the next; None where there is none."""
        self._total_steps = total_steps
        self._first_step = first_step
        self._mean_loss: float | None = None
        self._seconds = self._tokens = self._targets = self._padding = 0.0
        self._last_line = time.monotonic()
        self._left = TimeLeft(total_steps, eval_every)
        self.valid_text = ""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=talk,
            transient=True,
            disable=not talk.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total_steps, completed=first_step - 1, figures="", left="")

    def __enter__(self) -> "TrainScreen":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def mean_loss(self) -> float:
        """Exponential mean of the step losses (about the last ten steps)."""
        return float("nan") if self._mean_loss is None else self._mean_loss

    def step(self, report: Step) -> None:
        """Show one optimizer update."""
        self._mean_loss = report.loss if self._mean_loss is None else 0.9 * self._mean_loss + 0.1 * report.loss
        if not self._left.stands_out(report.seconds, report.tokens):
            self._seconds = 0.9 * self._seconds + report.seconds
            self._tokens = 0.9 * self._tokens + report.tokens
            self._targets = 0.9 * self._targets + report.targets
        self._padding = report.padding_share if not self._padding else 0.9 * self._padding + 0.1 * report.padding_share
        self._left.note_step(report.seconds, report.tokens)
        seconds = self._left.seconds(report.step)
        left = "" if seconds is None else f"left {format_seconds(seconds)}"
        self._bar.update(self._task, completed=report.step, figures=self._figures(report, short=True), left=left)
        if not talk.is_terminal and (
            report.step in (self._first_step, self._total_steps)
            or time.monotonic() - self._last_line >= PLAIN_LINE_SECONDS
        ):
            self._last_line = time.monotonic()
            line = f"step {report.step}/{self._total_steps}  {self._figures(report, short=False)}  {left}"
            self.line(line.rstrip())

    def validation(
        self,
        step: int,
        loss: float,
        right: tuple[int, int],
        seconds: float,
        mark: str = "",
    ) -> None:
        """Show a validation.

        right: rows that come out as they are, of how many; none is no news of long answers. mark: what becomes of it.
        """
        self._left.note_validation(seconds)
        self.valid_text = f"valid {loss:.3f}"
        rows = f", {right[0]} of {right[1]} rows right" if right[0] else ""
        self.line(
            f"step {step}/{self._total_steps}  validation loss {loss:.4f} nats a token{rows} ({seconds:.1f} s)"
            + (f"  {mark}" if mark else "")
        )

    def warn(self, lines: Iterable[str]) -> None:
        """Print warnings above the bar."""
        for line in lines:
            self.line(f"warning: {line}")

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        talk.print(text, markup=False, soft_wrap=True)

    def _figures(self, report: Step, *, short: bool) -> str:
        figures = [f"loss {self.mean_loss:.3f}"]
        if self.valid_text:
            figures.append(self.valid_text)
        figures.append(f"{self._targets / self._seconds:.0f} trained tok/s")
        if not short or talk.width >= 140:
            figures.append(f"{self._tokens / self._seconds:.0f} tok/s")
            figures.append(f"padding {self._padding:.0%}")
            figures.append(f"lr {report.learning_rate:.1e}")
        figures.append(format_bytes(report.peak_bytes))
        return "  ".join(figures)


class RowsBar:
    """A bar over rows, for work beside the steps; where there is no terminal, a line now and then."""

    def __init__(self, name: str, unit: str = "row") -> None:
        self._bar = Progress(console=talk, transient=True, disable=not talk.is_terminal)
        self._name, self._unit = name, unit
        self._task: TaskID | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> "RowsBar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, done: int, total: int) -> None:
        """Show `done` of `total` rows."""
        if self._task is None:
            self._task = self._bar.add_task(escape(self._name), total=total)
        self._bar.update(self._task, completed=done)
        if not talk.is_terminal and done < total and time.monotonic() - self._last_line >= PLAIN_LINE_SECONDS:
            self._last_line = time.monotonic()
            talk.print(f"{self._name}: {self._unit} {done} of {total}", markup=False, soft_wrap=True)

    def follow(self, events: Iterable[tuple[int, int] | list[Item]]) -> list[Item]:
        """Show (done, total) as they come; return the list that comes last."""
        found: list[Item] = []
        for event in events:
            if isinstance(event, list):
                found = event
            else:
                self.show(*event)
        return found


@contextmanager
def counted_rows(name: str, total: int) -> Iterator[Callable[[], None]]:
    """A RowsBar, and what moves it on by one row."""
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        bar.show(done, total)

    with RowsBar(name) as bar:
        yield advance


def format_bytes(count: float) -> str:
    """Bytes for people: 1.2 GB (powers of ten, as on a box)."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.99995 * size:  # what would be rounded to 1000.0 of the smaller unit
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """Seconds for people: 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
