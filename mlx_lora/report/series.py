"""Curves: smoothed, and thinned without losing their peaks. Knows nothing of pages."""

import math
from collections.abc import Sequence
from itertools import pairwise

Points = Sequence[tuple[float, float]]  # (x, y), x rising; y may be NaN or infinite


def smoothed(points: Points, span: int) -> list[tuple[float, float]]:
    """The exponential mean of about the last `span` points, fair from the first on; values not finite are passed over.

    Source: the bias correction is that of Adam (arXiv 1412.6980, section 3).
    """
    keep, mean, weight = 1 - 2 / (span + 1), 0.0, 0.0
    result = []
    for x, y in points:
        if math.isfinite(y):
            mean, weight = keep * mean + (1 - keep) * y, keep * weight + (1 - keep)
            result.append((x, mean / weight))
    return result


def span_for(count: int) -> int:
    """How many of `count` points to smooth over: a twentieth, at least 5 and at most 100."""
    return max(5, min(100, count // 20))


def thinned(points: Points, most: int) -> list[tuple[float, float]]:
    """At most `most` (4 or more) of the points: first and last, and the lowest and highest of each stretch between."""
    if len(points) <= most:
        return list(points)
    inner, stretches = points[1:-1], (most - 2) // 2
    edges = [len(inner) * place // stretches for place in range(stretches + 1)]
    kept = [points[0]]
    for start, stop in pairwise(edges):
        stretch = [point for point in inner[start:stop] if math.isfinite(point[1])] or [inner[start]]
        ends = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        kept += sorted(ends)
    return [*kept, points[-1]]
