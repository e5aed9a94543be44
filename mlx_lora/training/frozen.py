"""Frozen layers run once: the outputs of the layers below the lowest adapter, kept for every epoch.

Those layers give the same output for a row each time. They run before the first step; afterwards a stand-in returns
what was stored, at the boundary, so that anything a family does before its layers (scaled embeddings) stays as it is.
Knows nothing of losses or optimizers.
"""

import hashlib
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_lora.dataset.batches import Batch, collate
from mlx_lora.dataset.examples import Example
from mlx_lora.dataset.groups import UNGROUPED, prefix_groups
from mlx_lora.errors import TrainingError
from mlx_lora.training.prefix import prefix_caches, prefix_cut, with_pieces
from mlx_lora.training.storefolder import OpenStore, StoreWriter, new_store, open_store
from mlx_lora.training.trunk import Trunk

ROWS_AT_ONCE = 16
POSITIONS_AT_ONCE = 2048  # more rows where they are short


class PassThrough(nn.Module):
    """Stands for a layer: returns its input, or `states` when it has been given any; lends the layer's attributes.

    Models choose masks by attributes of their layers (`use_sliding`), so those must still be there.
    """

    def __init__(self, attributes: dict[str, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        object.__setattr__(self, "_attributes", attributes)
        object.__setattr__(self, "_states", None)

    def give(self, states: mx.array | None) -> None:
        """Return `states` (B, T, D) from now on, or the input again with None."""
        object.__setattr__(self, "_states", states)

    def __call__(self, inputs: mx.array, *_: Any, **__: Any) -> mx.array:
        states: mx.array | None = object.__getattribute__(self, "_states")
        return inputs if states is None else states

    def __getattr__(self, name: str) -> Any:
        attributes = object.__getattribute__(self, "_attributes")
        if name in attributes:
            return attributes[name]
        return super().__getattr__(name)


class _Capture(PassThrough):
    """Keeps what would have entered the layer."""

    def __call__(self, inputs: mx.array, *_: Any, **__: Any) -> mx.array:
        self.give(inputs)
        return inputs

    def take(self) -> mx.array:
        states: mx.array = object.__getattribute__(self, "_states")
        self.give(None)
        return states


def plain_attributes(layer: nn.Module) -> dict[str, Any]:
    """The attributes of `layer` that are neither weights nor modules."""
    if isinstance(layer, PassThrough):
        return dict(object.__getattribute__(layer, "_attributes"))
    own = {name: value for name, value in vars(layer).items() if not name.startswith("_")}
    return own | {
        name: value for name, value in layer.items() if not isinstance(value, (mx.array, nn.Module, list, dict))
    }


def remove_frozen_layers(trunk: Trunk, boundary: int) -> PassThrough:
    """Put stand-ins in the place of the layers below `boundary`, so that their weights can leave memory.

    Returns the last stand-in: what it is given enters the layer at `boundary`.
    """
    stand_ins = [PassThrough(plain_attributes(layer)) for layer in trunk.layers[:boundary]]
    trunk.layers[:boundary] = stand_ins
    return stand_ins[-1]


def count_stand_ins(trunk: Trunk) -> int:
    """How many of the lower layers are stand-ins: `boundary`, or 0 where all layers are there."""
    return sum(isinstance(layer, PassThrough) for layer in trunk.layers)


class FrozenStore:
    """What enters the layer at `boundary` for every row of a data set: a memory-mapped (tokens, D) array on disk.

    The first `prefix_length` entries belong to the prompt prefix that all rows share; then row after row.
    """

    def __init__(
        self, examples: Sequence[Example], prefix_length: int, stored: OpenStore | StoreWriter, dtype: mx.Dtype
    ) -> None:
        lengths = [len(example.tokens) - 1 - prefix_length for example in examples]
        self.prefix_length = prefix_length
        self.was_damaged = False  # the file that was there had to be made again
        self._starts = np.concatenate([[0], np.cumsum(lengths)]) + prefix_length
        self._stored, self._dtype = stored, dtype

    def array(self, batch: Batch, prefix: int, width: int) -> mx.array:
        """What is stored for the pieces of a prefix of P tokens and for `batch` after it: (C + B, width, D).

        P must be the store's own prefix length or more.
        """
        assert isinstance(self._stored, OpenStore)
        kept = self._stored.states
        first, own = self._starts[batch.rows[0]], prefix - self.prefix_length
        # What the batch shares beyond the data set's prefix is in each row: take it from the first.
        shared = [kept[: self.prefix_length], kept[first : first + own]]
        pieces = -(-prefix // width)
        states = np.zeros((pieces + len(batch.rows), width, kept.shape[1]), kept.dtype)
        states[:pieces].reshape(-1, states.shape[2])[:prefix] = np.concatenate(shared)
        for index, row in enumerate(batch.rows, start=pieces):
            stored = kept[self._starts[row] + own : self._starts[row + 1]]
            states[index, : len(stored)] = stored
        array = mx.array(states)
        return array.view(mx.bfloat16) if self._dtype == mx.bfloat16 else array

    def write(self, batch: Batch, states: np.ndarray, prefix: int) -> None:
        """Keep the states (C + B, T, D) of a batch's rows after their prefix, without padding, and those of the prefix.

        prefix: P, what these rows share: the store's own prefix length or more.
        """
        assert isinstance(self._stored, StoreWriter)
        pieces = len(states) - len(batch.rows)
        first, more = np.split(states[:pieces].reshape(-1, states.shape[2])[:prefix], [self.prefix_length])
        if len(first):
            self._stored.write(0, first)
        for row, length, own in zip(batch.rows, batch.lengths, states[pieces:], strict=True):
            self._stored.write(int(self._starts[row]), np.concatenate([more, own[: length - prefix]]))


def data_set_prefix(examples: Sequence[Example]) -> int:
    """Number of leading tokens that all rows share, none of which predicts a trained token; 0 for a single row."""
    if len(examples) < 2:
        return 0
    shortest = min(len(example.tokens) for example in examples) - 2  # every row keeps a position of its own
    first = examples[0].tokens
    for example in examples:
        limit = min(shortest, max(0, int(example.loss_mask.argmax()) - 1))
        different = np.flatnonzero(example.tokens[:limit] != first[:limit])
        shortest = int(different[0]) if len(different) else limit
    return shortest


def state_kind(trunk: Trunk, boundary: int) -> tuple[int, mx.Dtype]:
    """D and dtype of what enters the layer at `boundary`; asked of shapes, without computing anything."""
    capture = _Capture(plain_attributes(trunk.layers[boundary]))
    with trunk.replaced(lambda index, layer: _role(index, boundary, layer, capture)):
        trunk.states(mx.zeros((1, 2), mx.int32))
    states = capture.take()
    return states.shape[-1], states.dtype


def store_key(examples: Sequence[Example], boundary: int, prefix_length: int, dtype: mx.Dtype, base: str) -> str:
    """Name of a data set's stored outputs: the same base, rows, boundary and dtype give the same name."""
    # Another version or device gives other roundings, and a run ends in the same bits with a store and without.
    made_by = f"{metadata.version('mlx')} {mx.default_device()}"
    digest = hashlib.sha256(f"{base} {boundary} {prefix_length} {dtype} {made_by} 3".encode())
    for example in examples:
        digest.update(np.int64(len(example.tokens)).tobytes() + np.ascontiguousarray(example.tokens).tobytes())
    return digest.hexdigest()


def store_bytes(examples: Sequence[Example], prefix_length: int, width: int, dtype: mx.Dtype) -> int:
    """Size of the stored outputs on disk."""
    tokens = prefix_length + sum(len(example.tokens) - 1 - prefix_length for example in examples)
    return tokens * width * dtype.size


def build_store(
    trunk: Trunk, boundary: int, examples: Sequence[Example], prefix_length: int, path: Path
) -> Iterator[int | FrozenStore]:
    """Yield the number of rows done, and last the store at `path`, which is made unless it is there already.

    Rows run through the layers below `boundary` in large batches, what these share once for each.
    """
    width, dtype = state_kind(trunk, boundary)
    shape = (store_bytes(examples, prefix_length, 1, mx.uint8), width)
    kind = np.dtype(np.uint16) if dtype == mx.bfloat16 else np.dtype(str(dtype).removeprefix("mlx.core."))
    there, stored = path.exists(), open_store(path, kind, shape)
    made = stored is None
    if stored is None:
        capture = _Capture(plain_attributes(trunk.layers[boundary]))
        with new_store(path, kind, shape) as writer:
            yield from _fill(trunk, boundary, capture, examples, FrozenStore(examples, prefix_length, writer, dtype))
        stored = open_store(path, kind, shape)
        if stored is None:
            raise TrainingError(f"{path}: reads otherwise than it was written", "the disk may be failing: check it")
    store = FrozenStore(examples, prefix_length, stored, dtype)
    store.was_damaged = made and there
    yield store


def _fill(
    trunk: Trunk, boundary: int, capture: _Capture, examples: Sequence[Example], store: FrozenStore
) -> Iterator[int]:
    with trunk.replaced(lambda index, layer: _role(index, boundary, layer, capture)):
        done = 0
        for rows in store_batches(examples, store.prefix_length):
            batch = collate(examples, rows)
            shares = store.prefix_length > 0
            prefix, width = prefix_cut(batch, store.prefix_length) if shares else (0, batch.inputs.shape[1])
            arrays = {name: mx.array(array) for name, array in with_pieces(batch.inputs, prefix, width).items()}
            trunk.states(arrays["inputs"], prefix_caches(trunk, arrays))
            store.write(batch, _to_numpy(capture.take()), prefix)
            done += len(rows)
            yield done


def store_batches(examples: Sequence[Example], prefix: int) -> list[list[int]]:
    """Rows that go through the lower layers together: of like length, and beginning alike if all share a `prefix`."""
    groups = prefix_groups(examples, ROWS_AT_ONCE) if prefix else [UNGROUPED] * len(examples)
    batches: list[list[int]] = []
    for row in sorted(range(len(examples)), key=lambda row: (groups[row], len(examples[row].tokens))):
        batch = batches[-1] if batches and groups[batches[-1][0]] == groups[row] else []
        positions = (len(batch) + 1) * (len(examples[row].tokens) - 1 - prefix)
        if batch and (len(batch) < ROWS_AT_ONCE or positions <= POSITIONS_AT_ONCE):
            batch.append(row)
        else:
            batches.append([row])
    return batches


def _role(index: int, boundary: int, layer: Any, capture: _Capture) -> Any:
    if index < boundary:
        return layer
    return capture if index == boundary else PassThrough(plain_attributes(layer))


def _to_numpy(states: mx.array) -> np.ndarray:
    if states.dtype == mx.bfloat16:
        states = states.view(mx.uint16)
    return np.array(states)
