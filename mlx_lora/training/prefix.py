"""The shared prompt prefix: tokens that all rows begin with go through the model once, with gradients.

The prefix is cut into pieces as wide as the rows, and these go through the model with them, as further rows of one
batch. Every row then finds the pieces' keys and values before its own. Knows nothing of losses, batches or optimizers.
"""

from collections.abc import Mapping, Sequence

import mlx.core as mx
import numpy as np

from mlx_lora.training.trunk import Trunk


class SharedPrefixCache:
    """What a layer's attention looks at: the prefix, then the row itself. Keeps no state: one serves all layers.

    pieces: (C,) int32, the place in the text where each piece begins; rows: (B,) int32, the same for each row: P, the
    length of the prefix. The batch holds the C pieces first. head_axes: 1 where a family's scores are (B, heads, T, S),
    2 where they are (B, groups, heads of a group, T, S).
    """

    def __init__(self, pieces: mx.array, rows: mx.array, head_axes: int = 1) -> None:
        self._head_axes = head_axes
        self.offset = mx.concatenate([pieces, rows])  # (C + B,): models rotate by it
        self._pieces, self._length = pieces.shape[0], rows[0]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return self._after_prefix(keys), self._after_prefix(values)

    def make_mask(self, width: int, window_size: int | None = None, return_array: bool = False) -> mx.array:
        """What each query sees: (C + B, 1, T, C · T + T) bool, with as many axes for the heads as the family has."""
        queries = (self.offset[:, None] + mx.arange(width))[:, :, None]
        prefix = mx.arange(self._pieces * width)
        own = (self.offset[:, None] + mx.arange(width))[:, None]
        is_row = (mx.arange(self.offset.shape[0]) >= self._pieces)[:, None, None]
        # A piece finds its own keys in the prefix; the padding of the last one sees itself, so that it stays finite.
        sees_own = mx.where(is_row, own <= queries, (own == queries) & (queries >= self._length))
        seen = mx.concatenate([(prefix <= queries) & (prefix < self._length), sees_own], axis=-1)
        if window_size is not None:
            keys = mx.concatenate([mx.broadcast_to(prefix, (own.shape[0], 1, prefix.shape[0])), own], axis=-1)
            seen = seen & (queries < keys + window_size)
        return mx.expand_dims(seen, tuple(range(1, 1 + self._head_axes)))

    def _after_prefix(self, own: mx.array) -> mx.array:
        """(C + B, heads, T, head width) → (C + B, heads, C · T + T, head width)."""
        count, heads, width, size = own.shape
        prefix = own[: self._pieces].swapaxes(0, 1).reshape(1, heads, self._pieces * width, size)
        return mx.concatenate([mx.broadcast_to(prefix, (count, *prefix.shape[1:])), own], axis=2)


def with_pieces(inputs: np.ndarray, prefix: int, width: int) -> dict[str, np.ndarray]:
    """A batch (B, L) whose rows share the first `prefix` tokens, as `inputs` (C + B, width), `pieces` and `offsets`.

    Without a prefix the last two are not there.
    """
    rows = columns(inputs, prefix, width)
    if not prefix:
        return {"inputs": rows}
    first = np.pad(inputs[0, :prefix], (0, -prefix % width)).reshape(-1, width)
    return {
        "inputs": np.concatenate([first, rows]),
        "pieces": np.arange(len(first), dtype=np.int32) * width,
        "offsets": np.full(len(rows), prefix, np.int32),
    }


def columns(array: np.ndarray, start: int, width: int) -> np.ndarray:
    """Columns from `start` on, `width` of them, zeros where the array has no more."""
    found = array[:, start : start + width]
    return np.pad(found, ((0, 0), (0, width - found.shape[1])))


def prefix_caches(trunk: Trunk, arrays: Mapping[str, mx.array]) -> Sequence[SharedPrefixCache] | None:
    """A cache for every layer, where `arrays` (of `with_pieces`) hold a prefix."""
    if "pieces" not in arrays:
        return None
    return [SharedPrefixCache(arrays["pieces"], arrays["offsets"], trunk.head_axes)] * len(trunk.layers)


def learn_head_axes(trunk: Trunk) -> None:
    """Find out how many axes the heads have in this family's attention, by trying 13 rows: no family has 13 groups.

    Raises: ValueError, AttributeError, TypeError or IndexError where the layers keep more than keys and values.
    """
    inputs, arrays = mx.zeros((13, 2), mx.int32), {"pieces": mx.array([0]), "offsets": mx.full(12, 2, mx.int32)}
    try:
        trunk.states(inputs, prefix_caches(trunk, arrays))
    except ValueError:
        trunk.head_axes = 2
        trunk.states(inputs, prefix_caches(trunk, arrays))
