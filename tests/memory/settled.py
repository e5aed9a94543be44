"""A ratio of measured memory that one glance cannot tell."""

from collections.abc import Callable


def settled(measure: Callable[[], float], low: float, high: float) -> float:
    """What `measure` finds; outside of the limits it is asked twice more, and the median is what it finds.

    MLX lays out up to ten tasks ahead, each with its memory: how many depends on what else runs on the machine.
    """
    found = measure()
    return found if low < found < high else sorted([found, measure(), measure()])[1]
