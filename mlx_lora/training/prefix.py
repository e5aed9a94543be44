"""The shared prompt prefix: tokens that all rows begin with go through the model once, with gradients.

The prefix is cut into pieces as wide as the rows, and these go through the model with them, as further rows of one
batch. Every row then finds the pieces' keys and values before its own. Knows nothing of losses, batches or optimizers.
"""

from collections.abc import Mapping, Sequence

import mlx.core as mx
import numpy as np

from mlx_lora.dataset.batches import Batch, padded_length
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


def prefix_cut(batch: Batch, least: int = 0) -> tuple[int, int]:
    """The length P of the prefix to share, at least `least`, and the width T of the rows after it.

    Of all lengths up to the shared one it takes that with the fewest positions (C + B) · T, where C pieces of width T
    hold the prefix.
    """
    longest, rows = int(batch.lengths.max()), len(batch.rows)
    most = shared_prefix_length(batch) if rows > 1 else 0
    lengths = range(least, max(least, most) + 1)
    widths = [padded_length(longest - length) for length in lengths]
    positions = [(rows - (-length // width)) * width for length, width in zip(lengths, widths, strict=True)]
    best = len(positions) - 1 - int(np.argmin(positions[::-1]))  # the longest of equals
    return lengths[best], widths[best]


def shared_prefix_length(batch: Batch) -> int:
    """Number of leading inputs that all rows share and none of which is a trained position.

    At least one position of every row is left, so that a prefix that is a whole prompt still predicts its answer.
    """
    same = (batch.inputs == batch.inputs[:1]).all(axis=0) & (batch.weights == 0).all(axis=0)
    different = np.flatnonzero(~same)
    common = int(different[0]) if len(different) else batch.inputs.shape[1]
    return min(common, int(batch.lengths.min()) - 1)


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
