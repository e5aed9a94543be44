"""The forward of a run: batches to summed nats, by the plain way or with less work. The same loss, the same gradients.

Each part lives in its own file and is switched on by itself; `Engine.nats` is the one place where they meet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_lora.dataset.batches import Batch
from mlx_lora.training.frozen import FrozenStore, PassThrough
from mlx_lora.training.head import select, supervised_nats
from mlx_lora.training.loss import summed_nats
from mlx_lora.training.prefix import PrefixedCache, RecordingCache
from mlx_lora.training.trunk import Trunk

Arrays = dict[str, mx.array]
PREFIX_MULTIPLE = 4  # few distinct lengths mean few distinct shapes
POSITION_MULTIPLE = 16


@dataclass
class Engine:
    """What the run's model goes through for a batch.

    `trunk` is None where the model's parts were not found; then only the plain forward runs.
    """

    model: nn.Module
    trunk: Trunk | None = None
    vocabulary: int = 0
    supervised_positions: bool = False
    shared_prefix: bool = False
    boundary: PassThrough | None = None  # the last stand-in for the frozen layers, where they have been removed

    def arrays(self, batch: Batch, store: FrozenStore | None = None) -> Arrays:
        """What `nats` takes for `batch` (of `store`'s data set); which keys there are says which parts run."""
        prefix = self._prefix_length(batch, store)
        inputs, targets, weights = (part[:, prefix:] for part in (batch.inputs, batch.targets, batch.weights))
        arrays = {"inputs": inputs}
        if prefix:
            arrays["prefix"] = batch.inputs[:1, :prefix]
        if self.supervised_positions:
            positions = np.flatnonzero(weights)
            spare = -len(positions) % POSITION_MULTIPLE  # weight 0: no effect, fewer shapes
            padded = np.pad(positions, (0, spare))
            arrays |= {"positions": padded.astype(np.int32), "targets": targets.reshape(-1)[padded]}
            arrays["weights"] = np.pad(weights.reshape(-1)[positions], (0, spare))
        else:
            arrays |= {"targets": targets, "weights": weights}
        ready = {name: mx.array(array) for name, array in arrays.items()}
        return ready if store is None else ready | store.arrays(batch, prefix)

    def nats(self, arrays: Mapping[str, mx.array]) -> mx.array:
        """Summed, weighted token losses of a batch in nats (scalar, float32)."""
        if self.trunk is None:
            return summed_nats(self.model(arrays["inputs"]), arrays["targets"], arrays["weights"])
        cache = self._prefix_cache(arrays) if "prefix" in arrays else None
        if self.boundary is not None:
            self.boundary.give(arrays["boundary"])
        states = self.trunk.states(arrays["inputs"], cache)
        if not self.supervised_positions:
            return summed_nats(self.trunk.logits(states), arrays["targets"], arrays["weights"])
        chosen = select(states, arrays["positions"])
        return supervised_nats(self.trunk.logits, chosen, arrays["targets"], arrays["weights"], self.vocabulary)

    def _prefix_cache(self, arrays: Mapping[str, mx.array]) -> Sequence[Any]:
        assert self.trunk is not None
        recorded = [RecordingCache() for _ in self.trunk.layers]
        if self.boundary is not None:
            self.boundary.give(arrays["prefix_boundary"])
        self.trunk.states(arrays["prefix"], recorded)  # what nobody asks for is never computed: MLX is lazy
        length = arrays["prefix"].shape[1]
        return [PrefixedCache(layer.keys, layer.values, length) for layer in recorded]

    def _prefix_length(self, batch: Batch, store: FrozenStore | None) -> int:
        stored = 0 if store is None else store.prefix_length  # these are not in the rows' own states
        if not self.shared_prefix or len(batch.rows) < 2:
            return stored
        return max(stored, shared_prefix_length(batch) // PREFIX_MULTIPLE * PREFIX_MULTIPLE)


def shared_prefix_length(batch: Batch) -> int:
    """Number of leading inputs that all rows share and none of which is a trained position.

    At least one position of every row is left, so that a prefix that is a whole prompt still predicts its answer.
    """
    same = (batch.inputs == batch.inputs[:1]).all(axis=0) & (batch.weights == 0).all(axis=0)
    different = np.flatnonzero(~same)
    common = int(different[0]) if len(different) else batch.inputs.shape[1]
    return min(common, int(batch.lengths.min()) - 1)
