"""The forward of a run: batches to summed nats, by the plain way or with less work. The same loss, the same gradients.

Each part lives in its own file and is switched on by itself; `Engine.nats` is the one place where they meet.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_lora.dataset.batches import Batch, padded_length
from mlx_lora.training.frozen import FrozenStore, PassThrough
from mlx_lora.training.head import select, supervised_nats
from mlx_lora.training.loss import summed_nats
from mlx_lora.training.prefix import columns, prefix_caches, with_pieces
from mlx_lora.training.trunk import Trunk

Arrays = dict[str, mx.array]
POSITION_MULTIPLE = 8


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
        prefix, width = self._cut(batch, store)
        arrays = with_pieces(batch.inputs, prefix, width)
        untrained = ((len(arrays.get("pieces", ())), 0), (0, 0))
        targets, weights = (np.pad(columns(part, prefix, width), untrained) for part in (batch.targets, batch.weights))
        if self.supervised_positions:
            positions = np.flatnonzero(weights)
            spare = -len(positions) % POSITION_MULTIPLE  # weight 0: no effect, fewer shapes
            padded = np.pad(positions, (0, spare))
            arrays |= {"positions": padded.astype(np.int32), "targets": targets.reshape(-1)[padded]}
            arrays["weights"] = np.pad(weights.reshape(-1)[positions], (0, spare))
            arrays["slots"] = np.full(weights.size, len(padded), np.int32)
            arrays["slots"][positions] = np.arange(len(positions))
        else:
            arrays |= {"targets": targets, "weights": weights}
        ready = {name: mx.array(array) for name, array in arrays.items()}
        return ready if store is None else ready | {"boundary": store.array(batch, prefix, width)}

    def nats(self, arrays: Mapping[str, mx.array]) -> mx.array:
        """Summed, weighted token losses of a batch in nats (scalar, float32)."""
        if self.trunk is None:
            return summed_nats(self.model(arrays["inputs"]), arrays["targets"], arrays["weights"])
        if self.boundary is not None:
            self.boundary.give(arrays["boundary"])
        states = self.trunk.states(arrays["inputs"], prefix_caches(self.trunk, arrays))
        if not self.supervised_positions:
            return summed_nats(self.trunk.logits(states), arrays["targets"], arrays["weights"])
        chosen = select(states, arrays["positions"], arrays["slots"])
        return supervised_nats(self.trunk.logits, chosen, arrays["targets"], arrays["weights"], self.vocabulary)

    def _cut(self, batch: Batch, store: FrozenStore | None) -> tuple[int, int]:
        stored = 0 if store is None else store.prefix_length  # these are not in the rows' own states
        if self.shared_prefix or stored:
            return prefix_cut(batch, stored)
        return 0, batch.inputs.shape[1]


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
