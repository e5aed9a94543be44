"""Axes: where a value lies between two ends, which round values are labelled, and how. Knows nothing of pages."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["linear", "log"]

_FEW_DECADES = 1.6  # below this a logarithmic axis labels 2 and 5 too
_ROUND_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`, which differ; both above 0 where it is logarithmic."""

    kind: Kind
    low: float
    high: float

    def share(self, value: float) -> float:
        """How far along the axis a value lies: 0 at `low`, 1 at `high`."""
        if self.kind == "linear":
            return (value - self.low) / (self.high - self.low)
        return math.log(value / self.low) / math.log(self.high / self.low)

    def ticks(self, wanted: int = 5) -> list[float]:
        """About `wanted` round values on the axis, rising."""
        return _log_ticks(self.low, self.high, wanted) if self.kind == "log" else _ticks(self.low, self.high, wanted)


def scale_of_steps(last: float) -> Scale:
    """From before the first step to the last."""
    return Scale("linear", 0.0, max(last, 1.0))


def scale_of_values(values: Sequence[float], kind: Kind, *, from_zero: bool = False) -> Scale:
    """An axis that holds all finite `values` with a little room.

    A linear one begins at 0 where that costs little, or `from_zero` asks for it.

    Raises: ValueError without finite values, or where a logarithmic one meets a value that is not above 0.
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    if kind == "log":
        if low <= 0:
            raise ValueError("a logarithm of 0 or less")
        room = max(1.05, (high / low) ** 0.06)
        return Scale("log", low / room, high * room)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value, and the rounding of its means
        return Scale("linear", min(0.0, 2 * low), max(0.0, 2 * high) or 1.0)
    room = 0.06 * (high - low)
    floor = 0.0 if 0 <= low < 0.6 * high or (from_zero and low >= 0) else low - room
    return Scale("linear", floor, high + room)


def prefers_log(values: Sequence[float]) -> bool:
    """Whether positive values span so much that a linear axis would flatten most of them."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) / min(finite) >= 10


def shown(value: float) -> str:
    """A value in up to four digits: 0.0178, 264, 1.5e-3, 12,400."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    size = abs(value)
    if size < 0.001 or size >= 1e6:
        mantissa, power = f"{value:.3e}".split("e")
        return f"{_trimmed(mantissa)}e{int(power)}"
    if size >= 10_000:
        return f"{value:,.0f}"
    return _trimmed(f"{value:.{max(0, 3 - math.floor(math.log10(size)))}f}")


def _trimmed(digits: str) -> str:
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _ticks(low: float, high: float, wanted: int) -> list[float]:
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(each * power for each in _ROUND_STEPS if each * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(place * step, 12) for place in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, wanted: int) -> list[float]:
    decades = math.log10(high / low)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    if decades < _FEW_DECADES:
        found = [float(f"{each}e{power}") for power in powers for each in (1, 2, 5)]
        found = [value for value in found if low <= value <= high]
        return found if len(found) >= 2 else _ticks(low, high, wanted)
    every = max(1, math.ceil(decades / wanted))
    return [value for power in powers if power % every == 0 and low <= (value := float(f"1e{power}")) <= high]
