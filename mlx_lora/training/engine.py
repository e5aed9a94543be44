"""The forward of a run: batches to summed nats, by the plain way or with less work. The same loss, the same gradients.

Each part lives in its own file and is switched on by itself; `Engine.nats` is the one place where they meet.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_lora.dataset.batches import Batch
from mlx_lora.training.frozen import FrozenStore, PassThrough
from mlx_lora.training.head import select, supervised_answers, supervised_nats
from mlx_lora.training.lastlayer import layer_caches, windows
from mlx_lora.training.loss import summed_divergence, summed_nats
from mlx_lora.training.prefix import columns, prefix_cut, with_pieces
from mlx_lora.training.trunk import Trunk

Arrays = dict[str, mx.array]
POSITION_MULTIPLE = 8
WINDOWS_MOST = 0.75  # of all positions; wider ones would not be worth another shape of compiled steps
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
    last_layer: bool = False  # may run on windows, see lastlayer.py; with supervised_positions only
    shared_prefix: bool = False
    boundary: PassThrough | None = None  # the last stand-in for the frozen layers, where they have been removed

    def arrays(self, batch: Batch, store: FrozenStore | None = None) -> Arrays:
        """What `nats` takes for `batch` (of `store`'s data set); which keys there are says which parts run."""
        prefix, width = self._cut(batch, store)
        arrays = with_pieces(batch.inputs, prefix, width)
        lines = np.zeros_like(batch.inputs)  # of what is expected instead of a token, counted from 1
        if batch.expected_places is not None:
            lines.reshape(-1)[batch.expected_places] = np.arange(1, len(batch.expected_places) + 1)
        parts = [columns(part, prefix, width) for part in (batch.targets, batch.weights, lines)]
        if self.last_layer and (places := windows(parts[1])).size <= WINDOWS_MOST * arrays["inputs"].size:
            arrays["windows"] = places
        targets, weights, lines = (_beside_states(part, arrays) for part in parts)
        if batch.expected is not None:
            positions = np.flatnonzero(lines)
            order = lines.reshape(-1)[positions] - 1
            expected = {"tokens": batch.expected.tokens[order], "shares": batch.expected.shares[order]}
            expected["weights"] = weights.reshape(-1)[positions]
            chosen = _chosen(positions, weights.size, expected)
            arrays |= {f"expected_{name}": array for name, array in chosen.items()}
            weights[lines > 0] = 0.0  # trained towards probabilities, not towards a token
        if not self.supervised_positions:
            arrays |= {"targets": targets, "weights": weights}
        elif weights.any():
            positions, of = np.flatnonzero(weights), {"targets": targets, "weights": weights}
            arrays |= _chosen(positions, weights.size, {name: flat.reshape(-1)[positions] for name, flat in of.items()})
        ready = {name: mx.array(array) for name, array in arrays.items()}
        return ready if store is None else ready | {"boundary": store.array(batch, prefix, width)}

    def nats(self, arrays: Mapping[str, mx.array]) -> mx.array:
        """Summed, weighted token losses of a batch in nats (scalar, float32)."""
        expected = [arrays[name] for name in _EXPECTED if name in arrays]
        if self.trunk is None or not self.supervised_positions:
            logits = self.model(arrays["inputs"]) if self.trunk is None else self.trunk.logits(self._states(arrays))
            nats = summed_nats(logits, arrays["targets"], arrays["weights"])
            if expected:
                nats = nats + summed_divergence(_select(logits, arrays, "expected_")[0], *expected)
            return nats
        states, nats = self._states(arrays), mx.array(0.0)
        if "positions" in arrays:
            chosen, of = _select(states, arrays), [arrays["targets"], arrays["weights"]]
            nats = supervised_nats(self.trunk.logits, chosen, summed_nats, of, self.vocabulary)
        if expected:
            chosen = _select(states, arrays, "expected_")
            nats = nats + supervised_nats(self.trunk.logits, chosen, summed_divergence, expected, self.vocabulary)
        return nats

    def answers(self, arrays: Mapping[str, mx.array], rows: int) -> tuple[mx.array, mx.array]:
        """For a batch of `rows` rows that expect tokens: its nats, as `nats`, and which rows come out as they are.

        (rows,) bool: whether each trained token is the likeliest after those before it, so that greedy decoding would
        say the answer itself, with its end.
        """
        if "targets" not in arrays:  # no token is expected
            return mx.array(0.0), mx.ones(rows, mx.bool_)
        targets, weights = arrays["targets"], arrays["weights"]
        if self.trunk is None or not self.supervised_positions:
            logits = self.model(arrays["inputs"]) if self.trunk is None else self.trunk.logits(self._states(arrays))
            missed = (logits.argmax(axis=-1) != targets) & (weights != 0)
            return summed_nats(logits, targets, weights), ~missed.any(axis=1)[-rows:]
        chosen = _select(self._states(arrays), arrays)
        nats, likeliest = supervised_answers(self.trunk.logits, chosen, targets, weights, self.vocabulary)
        missed = ((likeliest != targets) & (weights != 0)).astype(mx.int32)
        lines = arrays["windows"] if "windows" in arrays else arrays["inputs"]  # as the states lie
        of_rows = mx.zeros(lines.shape[0], mx.int32).at[arrays["positions"] // lines.shape[1]].add(missed)
        return nats, of_rows[-rows:] == 0

    def _states(self, arrays: Mapping[str, mx.array]) -> mx.array:
        """The trunk's states of the prefix's pieces and the rows (C + B, T, D), or of the rows' windows (B, W, D)."""
        assert self.trunk is not None
        if self.boundary is not None:
            self.boundary.give(arrays["boundary"])
        return self.trunk.states(arrays["inputs"], layer_caches(self.trunk, arrays))

    def _cut(self, batch: Batch, store: FrozenStore | None) -> tuple[int, int]:
        stored = 0 if store is None else store.prefix_length  # these are not in the rows' own states
        if self.shared_prefix or stored:
            return prefix_cut(batch, stored)
        return 0, batch.inputs.shape[1]


def _beside_states(part: np.ndarray, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """`part` (B, T) of the rows, as the states of these `arrays` lie: the windows alone, or after a prefix's pieces."""
    if "windows" in arrays:
        return np.take_along_axis(part, arrays["windows"], axis=1)
    return np.pad(part, ((len(arrays.get("pieces", ())), 0), (0, 0)))


def _chosen(positions: np.ndarray, size: int, lines: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Flat `positions` (K,) of `size`, their `lines` (K, …), and `slots` as head.select wants them.

    Zeros fill them up to the next POSITION_MULTIPLE: weight 0, no effect, fewer shapes.
    """
    spare = -len(positions) % POSITION_MULTIPLE
    slots = np.full(size, len(positions) + spare, np.int32)
    slots[positions] = np.arange(len(positions))
    arrays = {"positions": positions.astype(np.int32), **lines}
    padded = {name: np.pad(array, [(0, spare)] + [(0, 0)] * (array.ndim - 1)) for name, array in arrays.items()}
    return padded | {"slots": slots}


def _select(states: mx.array, arrays: Mapping[str, mx.array], kind: str = "") -> mx.array:
    return select(states, arrays[f"{kind}positions"], arrays[f"{kind}slots"])
