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
from mlx_lora.training.loss import summed_divergence, summed_nats
from mlx_lora.training.prefix import PrefixedCache, RecordingCache
from mlx_lora.training.trunk import Trunk

Arrays = dict[str, mx.array]
PREFIX_MULTIPLE = 4  # few distinct lengths mean few distinct shapes
POSITION_MULTIPLE = 16
_EXPECTED = ("expected_tokens", "expected_shares", "expected_weights")


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
        if batch.expected is not None and batch.expected_places is not None:
            rows, columns = np.divmod(batch.expected_places, batch.inputs.shape[1])
            weights = weights.copy()
            weights[rows, columns - prefix] = 0.0  # trained towards probabilities, not towards a token
            arrays |= _padded(
                {"expected_positions": (rows * inputs.shape[1] + columns - prefix).astype(np.int32)}
                | {"expected_tokens": batch.expected.tokens, "expected_shares": batch.expected.shares}
                | {"expected_weights": np.ones(len(rows), np.float32)}
            )
        if not self.supervised_positions:
            arrays |= {"targets": targets, "weights": weights}
        elif weights.any():
            positions = np.flatnonzero(weights).astype(np.int32)
            chosen = {"targets": targets.reshape(-1)[positions], "weights": weights.reshape(-1)[positions]}
            arrays |= _padded({"positions": positions, **chosen})
        ready = {name: mx.array(array) for name, array in arrays.items()}
        return ready if store is None else ready | store.arrays(batch, prefix)

    def nats(self, arrays: Mapping[str, mx.array]) -> mx.array:
        """Summed, weighted token losses of a batch in nats (scalar, float32)."""
        expected = [arrays[name] for name in _EXPECTED if name in arrays]
        if self.trunk is None or not self.supervised_positions:
            logits = self.model(arrays["inputs"]) if self.trunk is None else self.trunk.logits(self._states(arrays))
            nats = summed_nats(logits, arrays["targets"], arrays["weights"])
            if expected:
                nats = nats + summed_divergence(select(logits, arrays["expected_positions"])[0], *expected)
            return nats
        states, nats = self._states(arrays), mx.array(0.0)
        if "positions" in arrays:
            chosen, of = select(states, arrays["positions"]), [arrays["targets"], arrays["weights"]]
            nats = supervised_nats(self.trunk.logits, chosen, summed_nats, of, self.vocabulary)
        if expected:
            chosen = select(states, arrays["expected_positions"])
            nats = nats + supervised_nats(self.trunk.logits, chosen, summed_divergence, expected, self.vocabulary)
        return nats

    def _states(self, arrays: Mapping[str, mx.array]) -> mx.array:
        """The trunk's states (B, T, D) of the rows after their shared prefix."""
        assert self.trunk is not None
        cache = self._prefix_cache(arrays) if "prefix" in arrays else None
        if self.boundary is not None:
            self.boundary.give(arrays["boundary"])
        return self.trunk.states(arrays["inputs"], cache)

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


def _padded(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`arrays` with zeros after their lines up to the next POSITION_MULTIPLE: weight 0, no effect, fewer shapes."""
    spare = -len(next(iter(arrays.values()))) % POSITION_MULTIPLE
    return {name: np.pad(array, [(0, spare)] + [(0, 0)] * (array.ndim - 1)) for name, array in arrays.items()}


def shared_prefix_length(batch: Batch) -> int:
    """Number of leading inputs that all rows share and none of which is a trained position.

    At least one position of every row is left, so that a prefix that is a whole prompt still predicts its answer.
    """
    same = (batch.inputs == batch.inputs[:1]).all(axis=0) & (batch.weights == 0).all(axis=0)
    different = np.flatnonzero(~same)
    common = int(different[0]) if len(different) else batch.inputs.shape[1]
    return min(common, int(batch.lengths.min()) - 1)
