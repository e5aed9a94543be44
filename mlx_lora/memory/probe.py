"""A run on a thin slice of its model: what each phase takes beyond what lies there already, in bytes.

It is the run's own code that runs: session, engine, steps. Knows nothing of limits or of the whole model's size.
"""

import gc
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_lora.config import RunConfig
from mlx_lora.dataset.examples import Example
from mlx_lora.lora.inject import iter_layers
from mlx_lora.memory.rows import RunRows
from mlx_lora.memory.thin import cut_slice, is_trained
from mlx_lora.training.frozen import (
    FrozenStore,
    build_store,
    data_set_prefix,
    remove_frozen_layers,
    state_kind,
    store_batches,
    store_bytes,
)
from mlx_lora.training.loop import Schedule, train_steps
from mlx_lora.training.parts import disk_refusal, frozen_refusal
from mlx_lora.training.session import build_session, plain_gradients
from mlx_lora.training.storefolder import OpenStore
from mlx_lora.training.validation import validate


@dataclass
class Spent:
    """Bytes at the worst moment of what was measured, beyond those that were there before."""

    nbytes: int = 0


@dataclass(frozen=True)
class Sizes:
    """Bytes that lie in memory between steps, computed from shapes."""

    weights: int = 0
    adapter: int = 0
    optimizer: int = 0


@dataclass
class Probe:
    """A run on a slice. `layers`: sizes of one layer of each kind; `rest`: of what is no layer."""

    config: RunConfig
    rows: RunRows
    most: int
    folder: Path  # where the run keeps what frozen layers gave
    kind: int | None = None
    more: int = 0
    loading: Spent = field(default_factory=Spent)

    def __post_init__(self) -> None:
        with measured(self.loading):
            self.slice = cut_slice(self.config, self.most, kind=self.kind, more=self.more)
        self.loading.nbytes -= sum(array.nbytes for _, array in _flat(self.slice.model.parameters()))
        self.session = build_session(self.config, self.slice.model, self.rows.train, self.rows.valid)
        self.frozen = self._frozen()
        self._layers = {layer.index: layer for layer in iter_layers(self.slice.model)}
        self._trained = [index for index, layer in self._layers.items() if is_trained(layer.module)]

    def step(self, batch: Sequence[Example], copies: int) -> int:
        """An optimizer update on so many micro-batches of the rows `batch`."""
        stepper, train = self.session.stepper, self.config.train
        rows = [*batch] * copies
        schedule = Schedule(
            tuple(len(row.tokens) - 1 for row in rows), len(batch), copies, train.seed, 1, 2,
            groups=tuple(copy for copy in range(copies) for _ in batch),  # each copy is a micro-batch
        )  # fmt: skip
        store = self._ready(rows)
        mx.eval(stepper.trainable.arrays(), stepper.optimizer.state)
        with measured() as spent:
            next(train_steps(stepper, rows, schedule, store=store))
        return spent.nbytes

    def update(self) -> int:
        """The gradients and the update made of them: of all layers at once, when activations are gone."""
        stepper = self.session.stepper
        mx.eval(stepper.trainable.arrays(), stepper.optimizer.state)
        with measured() as spent:
            before = stepper.trainable.arrays()  # held by train_steps until a step's loss is known to be finite
            _, gradients = stepper.no_gradients()
            mx.eval(gradients)
            norm = stepper.update(gradients, 1, 0.0)
            mx.eval(norm, stepper.trainable.arrays(), stepper.optimizer.state)
        stepper.trainable.assign(before)
        return spent.nbytes

    def validation(self, batch: Sequence[Example]) -> int:
        """A validation batch, without gradients."""
        store = self._ready(batch)
        self.session.model.eval()
        with measured() as spent:
            validate(self.session.stepper.engine, batch, len(batch), store)
        self.session.model.train()
        return spent.nbytes

    def check(self) -> int:
        """The plain forward's gradients on the first rows, which the engine is compared with; before layers leave."""
        with measured() as spent:
            found = plain_gradients(self.session)
        del found
        return spent.nbytes

    def freezing(self, examples: Sequence[Example]) -> int:
        """The lower layers on the rows with the most positions of those that go through together."""
        trunk = self.session.stepper.engine.trunk
        assert trunk is not None
        assert self.frozen is not None
        batches = store_batches(examples, self.frozen)
        most = max(batches, key=lambda rows: len(rows) * max(len(examples[row].tokens) for row in rows))
        heaviest = [examples[row] for row in most]
        with tempfile.TemporaryDirectory() as folder, measured() as spent:
            for _ in build_store(trunk, self.slice.first_layer, heaviest, self.frozen, Path(folder) / "states"):
                pass
        return spent.nbytes

    def is_trained(self, kind: int) -> bool:
        """Whether the layers of a kind have adapters."""
        return any(self.slice.kinds.of[index] == kind for index in self._trained)

    def sizes(self) -> tuple[Sizes, list[Sizes]]:
        """Of what is no layer, and of one layer of each kind."""
        state = _flat(self.session.stepper.optimizer.state)
        trained = self.session.stepper.trainable.arrays()
        kinds = []
        for kind in range(len(self.slice.counts)):
            layer = self._layers[max(i for i, one in enumerate(self.slice.kinds.of) if one == kind)]
            own = f"{layer.path}."
            adapter = sum(array.nbytes for name, array in trained.items() if name.startswith(own))
            whole = sum(array.nbytes for _, array in _flat(layer.module.parameters()))
            optimizer = sum(array.nbytes for name, array in state if name.startswith(own))
            kinds.append(Sizes(whole - adapter, adapter, optimizer))
        whole = sum(array.nbytes for _, array in _flat(self.slice.model.parameters()))
        there = sum((one.weights + one.adapter) * count for one, count in zip(kinds, self.slice.counts, strict=True))
        return Sizes(weights=whole - there), kinds

    def _frozen(self) -> int | None:
        """The length of the prefix in the store of the frozen layers; None where they are not run once."""
        train, session, first = self.config.train, self.session, self.slice.first_layer
        trunk = session.stepper.engine.trunk
        asked = train.engine == "auto" or (train.engine != "plain" and "frozen_layers" in train.engine)
        epochs = session.schedule.total_steps / session.schedule.steps_per_epoch
        if not asked or trunk is None or frozen_refusal(trunk, train, first, epochs):
            return None
        prefix = data_set_prefix(session.train_set) if session.stepper.engine.shared_prefix else 0
        needed = store_bytes(session.train_set, prefix, *state_kind(trunk, first))
        return None if disk_refusal(needed, self.folder) else prefix

    def _ready(self, rows: Sequence[Example]) -> FrozenStore | None:
        """A store with nothing in it for `rows`, where the run has one; its stand-ins are those of the slice."""
        engine, first = self.session.stepper.engine, self.slice.first_layer
        if self.frozen is None or engine.trunk is None:
            return None
        width, dtype = state_kind(engine.trunk, first)
        engine.boundary = remove_frozen_layers(engine.trunk, first)
        kind = np.dtype(np.uint16) if dtype == mx.bfloat16 else np.dtype(str(dtype).removeprefix("mlx.core."))
        states = np.zeros((store_bytes(rows, self.frozen, 1, mx.uint8), width), kind)
        return FrozenStore(rows, self.frozen, OpenStore(os.open(os.devnull, os.O_RDONLY), states), dtype)


@contextmanager
def measured(spent: Spent | None = None) -> Iterator[Spent]:
    """Bytes at the worst moment of the block beyond those at its beginning; known when it ends."""
    spent = spent or Spent()
    mx.synchronize()  # what is still being computed holds memory: a step's report waits for loss and norm alone
    gc.collect()  # models of earlier probes must not leave memory in between
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    yield spent
    mx.synchronize()
    spent.nbytes = mx.get_peak_memory() - before


def _flat(tree: object) -> list[tuple[str, mx.array]]:
    found: list[tuple[str, mx.array]] = tree_flatten(tree)  # type: ignore[assignment]
    return found
