"""The last layer where a token is trained: elsewhere nothing asks for more of it than keys and values.

Each row's trained positions lie in a window. The model's own layer is called twice: for all positions, of which MLX,
being lazy, computes the keys and values alone, and for the windows, which find these as a decoded token finds its
cache. Knows nothing of losses, batches or optimizers.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_lora.dataset.batches import padded_length
from mlx_lora.training.prefix import SharedPrefixCache, prefix_caches
from mlx_lora.training.trunk import Trunk

Layer = Callable[[mx.array, Any, Any], mx.array]  # states, mask and cache → states


def windows(weights: np.ndarray) -> np.ndarray:
    """Places (B, W) in each row of `weights` (B, T) from its first trained position on, W enough for every row's last.

    A row without a trained position has a window somewhere.
    """
    trained = weights != 0
    first, last = trained.argmax(axis=1), weights.shape[1] - 1 - trained[:, ::-1].argmax(axis=1)
    longest = int((last - first)[trained.any(axis=1)].max(initial=0)) + 1
    width = min(weights.shape[1], padded_length(longest))
    starts = np.minimum(first, weights.shape[1] - width)
    places: np.ndarray = starts[:, None] + np.arange(width)
    return places.astype(np.int32)


class WindowCache:
    """What the last layer is given: it keeps the keys and values of all positions for the `places` (B, W) of the rows.

    `prefix` is what the other layers are given. Where it makes the masks, so does this; else the model makes its own.
    """

    def __init__(self, places: mx.array, prefix: SharedPrefixCache | None, head_axes: int) -> None:
        self._places, self._prefix, self._head_axes = places, prefix, head_axes
        self._kept: tuple[mx.array, mx.array] | None = None
        self.offset = 0 if prefix is None else prefix.offset

    def __getattr__(self, name: str) -> Any:
        if name == "make_mask":
            return getattr(self._prefix, name)
        raise AttributeError(name)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self._kept = (keys, values) if self._prefix is None else self._prefix.update_and_fetch(keys, values)
        return self._kept

    def run(self, layer: Layer, inputs: mx.array, mask: Any) -> mx.array:
        """States (B, W, D) of `layer` at the windows; inputs: (C + B, T, D) with the C pieces of a prefix first."""
        layer(inputs, mask, self)
        if self._kept is None:
            raise TypeError("the last layer keeps no keys and values")
        rows, starts = slice(-len(self._places), None), self._places[:, 0]
        offset = starts if self._prefix is None else self._prefix.offset[rows] + starts
        at_windows = mx.take_along_axis(inputs[rows], self._places[..., None], axis=1)
        kept = _Kept(offset, *(array[rows] for array in self._kept))
        return layer(at_windows, self._mask(mask, inputs.shape[1]), kept)

    def _mask(self, mask: Any, width: int) -> Any:
        """The windows' lines of the rows' `mask`, each a query's."""
        if mask is None:
            return None
        if not isinstance(mask, mx.array):
            mask = mx.arange(width)[:, None] >= mx.arange(width)  # "causal"
        if mask.ndim == 2:
            return mx.expand_dims(mask[self._places], tuple(range(1, 1 + self._head_axes)))
        places = mx.expand_dims(self._places, (*range(1, mask.ndim - 2), -1))
        return mx.take_along_axis(mask[-len(self._places) :], places, axis=-2)


class _Kept:
    """Keys and values of all positions, whatever those of the windows are; offset: (B,), where each window begins."""

    def __init__(self, offset: mx.array, keys: mx.array, values: mx.array) -> None:
        self.offset, self._kept = offset, (keys, values)

    def update_and_fetch(self, *_: mx.array) -> tuple[mx.array, mx.array]:
        return self._kept


def use_windows(trunk: Trunk) -> None:
    """Let the last layer run on windows where its cache is a WindowCache; weights and names stay as they are.

    Raises: AttributeError, TypeError, ValueError or IndexError where the layer or the model cannot; all is as it was.
    """
    layer = trunk.layers[-1]
    plain = type(layer)
    layer.__class__ = _windowed(plain)  # type: ignore[arg-type]  # classes are hashable
    try:
        rows, places = mx.zeros((3, 4), mx.int32), mx.array([[1, 2]] * 3)
        width = trunk.states(rows).shape[-1]
        found = trunk.states(rows, layer_caches(trunk, {"windows": places})).shape
        if found != (3, 2, width):
            raise ValueError(f"states of {found}")
    except BaseException:
        layer.__class__ = plain
        raise


def layer_caches(trunk: Trunk, arrays: Mapping[str, mx.array]) -> Sequence[Any] | None:
    """What each layer's attention looks at besides its own tokens; `arrays` hold a prefix, windows, both or neither."""
    caches: Sequence[Any] | None = prefix_caches(trunk, arrays)
    if "windows" not in arrays:
        return caches
    caches = caches or [None] * len(trunk.layers)
    return [*caches[:-1], WindowCache(arrays["windows"], caches[-1], trunk.head_axes)]


@lru_cache
def _windowed(plain: type[nn.Module]) -> type[nn.Module]:
    """A subclass of the layer class `plain` that runs on windows where its cache says so."""

    def call(self: nn.Module, inputs: mx.array, mask: Any = None, cache: Any = None) -> Any:
        def layer(inputs: mx.array, mask: Any, cache: Any) -> Any:
            return plain.__call__(self, inputs, mask, cache)

        return cache.run(layer, inputs, mask) if isinstance(cache, WindowCache) else layer(inputs, mask, cache)

    return type(f"Windowed{plain.__name__}", (plain,), {"__call__": call})
