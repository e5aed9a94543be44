"""The shared prompt prefix: tokens that all rows begin with go through the model once, with gradients.

Keys and values of the prefix are computed for one row and broadcast to the others; causal masks stay causal, so the
fast attention kernel still applies. Knows nothing of losses, batches or optimizers.
"""

from typing import Any

import mlx.core as mx


class RecordingCache:
    """The cache of one layer while the prefix passes: keeps keys and values (1, heads, P, head width)."""

    offset = 0

    def __init__(self) -> None:
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.keys, self.values = keys, values
        return keys, values

    def make_mask(self, length: int, window_size: int | None = None, return_array: bool = False) -> Any:
        return attention_mask(length, 0, window_size, return_array)


class PrefixedCache:
    """The cache of one layer while the rows pass: puts the prefix's keys and values before each row's own.

    keys, values: (1, heads, P, head width), or None for a layer that never looks (its output is known already).
    """

    def __init__(self, keys: mx.array | None, values: mx.array | None, offset: int) -> None:
        self.keys, self.values, self.offset = keys, values, offset

    def arrays(self) -> list[mx.array]:
        """Keys and values, or nothing."""
        return [array for array in (self.keys, self.values) if array is not None]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return _after_prefix(self.keys, keys), _after_prefix(self.values, values)

    def make_mask(self, length: int, window_size: int | None = None, return_array: bool = False) -> Any:
        return attention_mask(length, self.offset, window_size, return_array)


def _after_prefix(prefix: mx.array | None, rows: mx.array) -> mx.array:
    if prefix is None:
        return rows
    return mx.concatenate([mx.broadcast_to(prefix, (rows.shape[0], *prefix.shape[1:])), rows], axis=2)


def attention_mask(length: int, offset: int, window_size: int | None, return_array: bool) -> Any:
    """The mask for `length` queries after `offset` keys, as mlx-lm's models want it: "causal", None or a bool array."""
    if not return_array and (window_size is None or offset + length <= window_size):
        return "causal" if length > 1 else None
    queries = mx.arange(offset, offset + length)[:, None]
    keys = mx.arange(offset + length)[None]
    mask = queries >= keys
    return mask if window_size is None else mask & (queries < keys + window_size)
