"""The memory that a run will need, phase by phase: sizes from shapes, the rest measured on two thin slices.

Working memory grows by the same bytes with each layer of a kind: two slices of different depth give that number, and
the whole model's follows. Knows nothing of limits or screens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from mlx_lora.config import RunConfig
from mlx_lora.dataset.examples import Example
from mlx_lora.errors import PredictionError
from mlx_lora.memory.asking import asking_bytes
from mlx_lora.memory.bound import find_contrast
from mlx_lora.memory.probe import Probe, Sizes
from mlx_lora.memory.rows import Asked, Counting, RunRows, longer, worst_batch, worst_validation
from mlx_lora.training.head import CHUNK_BYTES

FEW, MORE = 2, 4  # layers of each kind in the thinner slice, and how many more of one kind the other has
MARGIN = 1.03  # on what is measured: from run to run, what MLX has under way differs by about as much
ASKING_MARGIN = 1.08  # on answering, where what MLX has under way is a larger share
STEP = "a training step"
REPLAY, RETENTION = "data.replay", "train.retention"  # settings with which the model answers, before and after training
_AT_ONCE = 2048  # positions that may be measured without measuring fewer first


@dataclass(frozen=True)
class Phase:
    """What a part of the run needs at its worst moment, in bytes; `how`: where the last figure comes from."""

    name: str
    weights: int
    adapter: int
    optimizer: int
    working: int
    how: str

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.adapter + self.optimizer + self.working


@dataclass(frozen=True)
class Prediction:
    """The phases of a run in their order; rows and tokens: of the step's worst micro-batch."""

    phases: tuple[Phase, ...]
    rows: int
    tokens: int
    compute: str
    shapes_from: str

    @property
    def worst(self) -> Phase:
        """The phase that needs the most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def step(self) -> Phase:
        """The training step."""
        return next(phase for phase in self.phases if phase.name == STEP)


class Slices:
    """The run of `config` on slices of its model. `room`: bytes that measuring itself must not go beyond.

    Raises: MlxLoraError as the run would.
    """

    def __init__(self, config: RunConfig, rows: RunRows, folder: Path, room: int) -> None:
        self.config, self.rows, self._room = config, rows, room
        self._probes: list[Probe] = []
        self._missing: list[int] = []  # layers that only the whole model has, by the kind of which a probe has more
        with _telling():
            thin = Probe(config, rows, FEW, folder)
            depths, there = thin.slice.kinds.counts, thin.slice.counts
            for kind, (depth, count) in enumerate(zip(depths, there, strict=True)):
                if depth > count and thin.is_trained(kind):
                    self._probes.append(Probe(config, rows, FEW, folder, kind=kind, more=MORE))
                    self._missing.append(depth - count)
        self.thin = thin
        self.rest, self.kinds = thin.sizes()
        self.depths = depths
        layers = [str(sum(probe.slice.counts)) for probe in (thin, *self._probes)]
        whole = f", extended to {sum(depths)}" if len(layers) > 1 else ""
        self.how = f"measured here on {' and '.join(layers)} layers{whole}"

    def whole(self, measure: Callable[[Probe], int]) -> int:
        """What `measure` finds on the slices, extended to the whole model."""
        return self._extended(self._measured(measure))

    @property
    def counting(self) -> Counting:
        """How the engine goes through the rows."""
        engine = self.thin.session.stepper.engine
        chunks = 2 * CHUNK_BYTES if engine.supervised_positions else 0  # one, and what is left of the one before
        return Counting(engine.shared_prefix, chunks // (4 * max(1, engine.vocabulary)))

    @cached_property
    def worst_step(self) -> tuple[list[Example], Phase]:
        """The rows of the micro-batch that needs the most, and an update on them.

        That is the one with the most positions, the one with the most trained ones (their logits are large where the
        vocabulary is), or one between: what these two take tells how much each kind of position weighs.
        """
        counting, schedule = self.counting, self.thin.session.schedule
        found: dict[tuple[int, int], tuple[list[Example], Phase]] = {}

        def attempt(*weights: float) -> None:
            batch = worst_batch(self.rows.train, schedule, counting, weights)
            if counting.positions(batch) not in found:
                found[counting.positions(batch)] = batch, self.step(batch)

        attempt(1.0, 0.0)
        attempt(0.0, 1.0)
        if len(found) > 1:
            taken = [phase.working for _, phase in found.values()]
            attempt(*np.maximum(np.linalg.solve(np.array(list(found), float), taken), 0.0))
        return max(found.values(), key=lambda one: one[1].total)

    def step(self, batch: Sequence[Example]) -> Phase:
        """An update on micro-batches of these rows."""
        copies = min(2, self.config.train.gradient_accumulation_steps)  # one after the other: more take no more
        static = self.static(optimizer=True, frozen_gone=True)
        # Replay rows come last in a step: the taught rows' gradients, as large as the adapter, wait for theirs.
        waiting = static.adapter if batch[0].expected is not None else 0
        working = 0
        for part, growth in _ladder(batch):
            found = self._measured(partial(Probe.step, batch=part, copies=copies))
            working = self._extended(found)
            if growth > 1 and max(found) * growth > self._room:  # the next part may not fit here, even on a slice
                how = f"estimated: {len(part)} rows were measured, and more would not fit"
                return self.phase(STEP, static, working * growth + waiting, how)
        # On a slice the update may be hidden below the head's share, which does not grow with the layers.
        return self.phase(STEP, static, max(working, self.whole(Probe.update)) + waiting)

    def asking(self, asked: Asked) -> Phase:
        """Answering prompts, before any other phase is measured: later ones take layers away."""
        probe = max((self.thin, *self._probes), key=lambda one: sum(one.slice.counts))  # two layers are too few to tell
        with _telling():
            working = asking_bytes(probe, asked, self.depths)
        layers = sum(probe.slice.counts)
        how = f"keys and values computed from shapes, the rest measured here on {layers} layers"
        static = self.static(optimizer=asked.setting == RETENTION)
        return self.phase(f"answering for {asked.setting}", static, int(ASKING_MARGIN * working), how)

    def _measured(self, measure: Callable[[Probe], int]) -> list[int]:
        with _telling():
            return [measure(probe) for probe in (self.thin, *self._probes)]

    def _extended(self, found: Sequence[int]) -> int:
        few, *others = found
        total = float(few)
        for probe, much, missing in zip(self._probes, others, self._missing, strict=True):
            more = sum(probe.slice.counts) - sum(self.thin.slice.counts)
            total += max(0.0, (much - few) / more) * missing
        return int(MARGIN * total)

    def static(self, *, optimizer: bool, frozen_gone: bool = False) -> Sizes:
        """Bytes that lie there between two steps, of the whole model."""
        gone = frozen_gone and self.thin.frozen is not None
        there = [
            (one, depth)
            for kind, (one, depth) in enumerate(zip(self.kinds, self.depths, strict=True))
            if self.thin.is_trained(kind) or not gone
        ]
        return Sizes(
            self.rest.weights + sum(one.weights * depth for one, depth in there),
            sum(one.adapter * depth for one, depth in there),
            sum(one.optimizer * depth for one, depth in there) if optimizer else 0,
        )

    def phase(self, name: str, sizes: Sizes, working: int, how: str | None = None) -> Phase:
        """A phase with these sizes."""
        return Phase(name, sizes.weights, sizes.adapter, sizes.optimizer, working, how or self.how)


def predict(slices: Slices) -> Prediction:
    """All phases of the run."""
    config, thin = slices.config, slices.thin
    before, between = slices.static(optimizer=False), slices.static(optimizer=True, frozen_gone=True)
    phases = [slices.phase("loading the base", before, slices.whole(lambda probe: probe.loading.nbytes))]
    asking = [slices.asking(asked) for asked in slices.rows.asked]
    phases += [phase for phase in asking if not phase.optimizer]  # before training
    if contrast := find_contrast(config, slices.rows):
        phases.append(slices.phase("choosing what A reads", before, contrast, "at most, from shapes"))
    if config.train.engine != "plain":
        phases.append(slices.phase("comparing the engine with the plain forward", before, slices.whole(Probe.check)))
    if thin.frozen is not None:
        longest = max(
            (slices.rows.train, slices.rows.valid), key=lambda rows: max((len(row.tokens) for row in rows), default=0)
        )
        phases.append(
            slices.phase("running the frozen layers", before, slices.whole(partial(Probe.freezing, examples=longest)))
        )
    batch, step = slices.worst_step
    phases.append(step)
    if slices.rows.valid:
        held_out = worst_validation(slices.rows.valid, config.train.batch_rows)
        phases.append(slices.phase("a validation", between, slices.whole(partial(Probe.validation, batch=held_out))))
    phases += [phase for phase in asking if phase.optimizer]
    tokens = max(len(row.tokens) for row in batch)
    return Prediction(tuple(phases), len(batch), tokens, thin.slice.compute, thin.slice.source)


@contextmanager
def _telling() -> Iterator[None]:
    """Raises: PredictionError in the place of what a family's own code raises when it does not run in slices."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise PredictionError(
            f"memory cannot be predicted: a slice of this model does not run ({type(error).__name__}: {error})",
            "start with a small train.batch_size, and read the peak memory that training shows",
        ) from error


def _ladder(batch: Sequence[Example]) -> list[tuple[list[Example], int]]:
    """Parts of the batch, each at most twice the one before, and by how much memory can at most grow to the next."""
    steps: list[tuple[list[Example], int]] = [(list(batch), 1)]
    while True:
        rows = steps[0][0]
        length = max(len(row.tokens) for row in rows)
        if len(rows) * length <= _AT_ONCE:
            return steps
        if len(rows) > 1:
            steps.insert(0, (rows[: -(-len(rows) // 2)], 2))
        else:
            steps.insert(0, ([longer(row, max(2, len(row.tokens) // 2)) for row in rows], 4))
