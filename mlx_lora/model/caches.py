"""Key/value caches of one layer for a batch of rows that begin alike. Knows nothing of models, tokens or sampling.

Columns of every row: ``[shared prefix | gap | the row itself]``. All rows end at the same column, so that one step
writes one column; the gap fills what a row is shorter than the longest. Nothing is ever rotated out: a sliding window
is a mask over positions, which keeps the arithmetic plain.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx

_GROWTH = 64  # columns; storage grows in these portions


@dataclass(frozen=True)
class RowLayout:
    """Where each row of a batch lies in the columns of its caches."""

    prefix: int  # leading columns that all rows share
    gaps: tuple[int, ...]  # (B,) empty columns between the prefix and each row
    mask_axes: int = 4  # masks are (B, 1, N, K); with 5 (B, 1, 1, N, K), for attention that groups its query heads

    @property
    def padded(self) -> bool:
        """Whether any row has a gap; without one, every mask and position is that of a single row."""
        return any(self.gaps)

    @cached_property
    def gap_array(self) -> mx.array:
        """The gaps as an array, (B,) int32."""
        return mx.array(self.gaps, dtype=mx.int32)

    def visible(self, first: int, count: int, window: int | None) -> mx.array:
        """Which columns the queries of columns first … first + count - 1 may see: (B, count, first + count) bool.

        A query in a gap sees itself, so that no row of scores is empty (an empty one would be NaN and spread).
        """
        queries = mx.arange(first, first + count)[None, :, None]
        columns = mx.arange(first + count)[None, None]
        gaps = self.gap_array[:, None, None]
        shared = columns < self.prefix
        real = shared | (columns >= self.prefix + gaps)
        visible = (columns <= queries) & (real | (columns == queries))
        if window is not None:
            distance = queries - columns - mx.where(shared, gaps, 0)
            visible = visible & (distance < window)
        return visible


class RowCache:
    """Keys and values of one layer; the part of mlx-lm's cache interface that attention layers use.

    ``offset`` is the position of the next token: an int where no row has a gap, else (B,) int32.
    """

    def __init__(self, layout: RowLayout, window: int | None) -> None:
        self.layout = layout
        self.window = window
        self.columns = 0
        self.keys: mx.array | None = None  # (B, heads, capacity, D)
        self.values: mx.array | None = None

    @property
    def offset(self) -> int | mx.array:
        """Position of the next token of each row."""
        return self.columns - self.layout.gap_array if self.layout.padded else self.columns

    @property
    def state(self) -> list[mx.array]:
        """The arrays to evaluate."""
        return [array for array in (self.keys, self.values) if array is not None]

    @property
    def nbytes(self) -> int:
        """Bytes of storage."""
        return sum(array.nbytes for array in self.state)

    def size(self) -> int:
        """Columns in use."""
        return self.columns

    def empty(self) -> bool:
        """Whether nothing was stored yet."""
        return self.keys is None

    def is_trimmable(self) -> bool:
        """Rows are dropped, never shortened."""
        return False

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append (B, heads, N, D) columns and return all columns so far."""
        end = self.columns + keys.shape[2]
        self.keys = _written(self.keys, keys, self.columns)
        self.values = _written(self.values, values, self.columns)
        self.columns = end
        return self.keys[..., :end, :], self.values[..., :end, :]

    def make_mask(
        self, count: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """Mask for the next `count` columns, in the forms that mlx-lm's caches return."""
        window = window_size or self.window
        if window is not None and self.columns + count <= window:
            window = None
        if self.layout.padded:
            axes = (1,) if self.layout.mask_axes == 4 else (1, 2)
            return mx.expand_dims(self.layout.visible(self.columns, count, window), axes)
        if window is None and count == 1:
            return None
        if window is None and not return_array:
            return "causal"
        return RowLayout(0, (0,)).visible(self.columns, count, window)[0]

    def spread(self, layout: RowLayout) -> "RowCache":
        """A cache of len(layout.gaps) rows that all begin with this one's single row."""
        spread = RowCache(layout, self.window)
        spread.columns = self.columns
        if self.keys is not None and self.values is not None:
            rows = len(layout.gaps)
            spread.keys = _repeated(self.keys[..., : self.columns, :], rows)
            spread.values = _repeated(self.values[..., : self.columns, :], rows)
        return spread

    def kept(self, rows: Sequence[int], layout: RowLayout) -> "RowCache":
        """A cache of only these rows; `layout` is theirs."""
        kept = RowCache(layout, self.window)
        kept.columns = self.columns
        if self.keys is not None and self.values is not None:
            index = mx.array(list(rows), dtype=mx.int32)
            kept.keys, kept.values = self.keys[index], self.values[index]
        return kept


def keep_rows(caches: Sequence[RowCache], rows: Sequence[int]) -> list[RowCache]:
    """The caches of all layers with only these rows left."""
    old = caches[0].layout
    layout = RowLayout(old.prefix, tuple(old.gaps[row] for row in rows), old.mask_axes)
    return [cache.kept(rows, layout) for cache in caches]


def copy_rows(caches: Sequence[Any]) -> list[Any]:
    """Caches of all layers that hold the same and grow on their own; a model's own caches too."""
    return [
        cache.kept(range(len(cache.layout.gaps)), cache.layout) if isinstance(cache, RowCache) else copy.deepcopy(cache)
        for cache in caches
    ]


def join_rows(first: Sequence[RowCache], second: Sequence[RowCache]) -> list[RowCache]:
    """The caches of all layers with the rows of both, ends aligned, and no column that is gap in every row."""
    left, right = first[0].layout, second[0].layout
    columns = max(first[0].columns - min(left.gaps), second[0].columns - min(right.gaps))
    extra_left, extra_right = columns - first[0].columns, columns - second[0].columns
    gaps = tuple(gap + extra_left for gap in left.gaps) + tuple(gap + extra_right for gap in right.gaps)
    layout = RowLayout(left.prefix, gaps, left.mask_axes)
    joined = []
    for one, other in zip(first, second, strict=True):
        cache = RowCache(layout, one.window)
        cache.columns = columns
        cache.keys = _joined((one, one.keys, extra_left), (other, other.keys, extra_right))
        cache.values = _joined((one, one.values, extra_left), (other, other.values, extra_right))
        joined.append(cache)
    return joined


def _written(storage: mx.array | None, new: mx.array, start: int) -> mx.array:
    end = start + new.shape[2]
    if storage is None or end > storage.shape[2]:
        capacity = -(-end // _GROWTH) * _GROWTH
        spare = mx.zeros((*new.shape[:2], capacity - start, new.shape[3]), new.dtype)
        storage = spare if storage is None else mx.concatenate([storage[..., :start, :], spare], axis=2)
    storage[..., start:end, :] = new
    return storage


def _repeated(array: mx.array, rows: int) -> mx.array:
    return mx.broadcast_to(array, (rows, *array.shape[1:]))


def _joined(*parts: tuple[RowCache, mx.array | None, int]) -> mx.array | None:
    """The rows of all parts: (cache, its storage, columns to insert). One that holds nothing yet becomes gap."""
    like = next((array for _, array, _ in parts if array is not None), None)
    if like is None:
        return None
    return mx.concatenate(
        [
            mx.zeros((len(cache.layout.gaps), like.shape[1], extra, like.shape[3]), like.dtype)
            if array is None
            else _shifted(cache, array, extra)
            for cache, array, extra in parts
        ]
    )


def _shifted(cache: RowCache, array: mx.array, extra: int) -> mx.array:
    """The used columns with `extra` more empty ones after the prefix, or -extra fewer."""
    prefix = cache.layout.prefix
    shared, rest = array[..., :prefix, :], array[..., prefix + max(0, -extra) : cache.columns, :]
    if extra <= 0:
        return mx.concatenate([shared, rest], axis=2)
    spare = mx.zeros((*array.shape[:2], extra, array.shape[3]), array.dtype)
    return mx.concatenate([shared, spare, rest], axis=2)
