"""The loop: batches to optimizer updates, one report a step. Knows nothing of files, screens or validation."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx
import numpy as np

from mlx_lora.config import TrainSettings
from mlx_lora.dataset.batches import Batch, collate, plan_epoch, plan_replay
from mlx_lora.dataset.examples import Example
from mlx_lora.errors import TrainingError
from mlx_lora.training.distributed import Group
from mlx_lora.training.engine import Arrays, Engine
from mlx_lora.training.frozen import FrozenStore
from mlx_lora.training.optim import learning_rate_at
from mlx_lora.training.stepper import Parameters, Stepper


@dataclass(frozen=True)
class StepReport:
    """What one optimizer update did."""

    step: int
    epoch: float  # passes over the rows so far
    loss: float  # mean nats a trained token, replay rows by their weight
    gradient_norm: float  # before clipping
    learning_rate: float
    targets: int  # trained tokens
    tokens: int  # real tokens, prompt included
    padding_share: float
    seconds: float
    peak_bytes: int  # of MLX's memory, since the first step


@dataclass(frozen=True)
class Schedule:
    """Which rows go into which step: everything a resumed run has to find again from the step number alone."""

    lengths: tuple[int, ...]  # of the taught rows
    batch_size: int
    accumulation: int
    seed: int
    steps_per_epoch: int
    total_steps: int
    groups: tuple[int, ...] | None = None  # of each taught row: batches are made within one
    replay_pool: int = 0  # replay rows, which follow the taught ones in the data set
    replay_rows: int = 0  # of them in an epoch

    def micro_batches(self, step: int) -> list[tuple[int, ...]]:
        """Rows of each micro-batch of `step` (1 … total_steps); replay rows are in micro-batches of their own.

        Every step has its share of them: it holds the model back while the taught rows pull.
        """
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        batches = _epoch_batches(self.lengths, self.groups, self.batch_size, self.seed, epoch)
        first, stop = ((number * self.replay_rows) // self.steps_per_epoch for number in (step - 1, step))
        replay = [len(self.lengths) + row for row in plan_replay(first, stop - first, self.replay_pool, seed=self.seed)]
        return batches[position * self.accumulation : (position + 1) * self.accumulation] + [
            tuple(replay[start : start + self.batch_size]) for start in range(0, len(replay), self.batch_size)
        ]

    def first_batches(self, most: int = 50) -> list[tuple[int, ...]]:
        """The first micro-batches of the first epoch: what reports are counted on."""
        steps = range(1, min(self.steps_per_epoch, most) + 1)
        return [batch for step in steps for batch in self.micro_batches(step)][:most]


@lru_cache(maxsize=1)  # asked once a step, made once an epoch
def _epoch_batches(
    lengths: tuple[int, ...], groups: tuple[int, ...] | None, batch_size: int, seed: int, epoch: int
) -> list[tuple[int, ...]]:
    return plan_epoch(lengths, batch_size, seed=seed, epoch=epoch, groups=groups)


def build_schedule(
    lengths: Sequence[int], settings: TrainSettings, ranks: int = 1, *, groups: tuple[int, ...] | None = None,
    replay_pool: int = 0, replay_rows: int = 0,
) -> Schedule:  # fmt: skip
    """The run's schedule; the last, smaller batch of an epoch and its last, smaller group of micro-batches are used.

    lengths, groups: of the taught rows. Each of the `ranks` takes `batch_size` rows, so a micro-batch has
    `batch_size` × `ranks`. Of the `replay_pool` rows that follow, each epoch takes the next `replay_rows`, spread over
    its steps.
    """
    batch_size = settings.batch_rows * ranks
    batches = math.ceil(len(lengths) / batch_size)
    steps_per_epoch = math.ceil(batches / settings.gradient_accumulation_steps)
    total = settings.steps if settings.steps is not None else (settings.epochs or 1) * steps_per_epoch
    return Schedule(
        tuple(lengths),
        batch_size,
        settings.gradient_accumulation_steps,
        settings.seed,
        steps_per_epoch,
        total,
        groups,
        replay_pool,
        replay_rows if replay_pool else 0,
    )


@dataclass(frozen=True)
class _Prepared:
    """A step's rows on all ranks, and this rank's micro-batches of them: none where there are fewer rows than ranks."""

    rows: list[int]
    batches: list[Batch]
    arrays: list[Arrays]


@dataclass(frozen=True)
class _Begun:
    """What `Stepper.gradients` gave for a step's first micro-batch, not yet computed, and the parameters it saw."""

    parameters: Parameters
    nats: mx.array
    gradients: Parameters


def train_steps(
    stepper: Stepper, examples: Sequence[Example], schedule: Schedule, *, first_step: int = 1,
    store: FrozenStore | None = None, group: Group | None = None,
) -> Iterator[StepReport]:  # fmt: skip
    """Yield a report after every optimizer update from `first_step` on; the model holds that step's parameters.

    The next step's batch is prepared, and its graph laid out, while the device computes this one; there is one
    synchronization a step, and one more where a `group` of ranks sums its gradients. The report's figures are those of
    all ranks.
    Raises TrainingError at the first loss or gradient that is not finite, and when a rank is lost, with the parameters
    of the step before.
    """
    group = group or Group()
    prepared = _prepare(stepper.engine, examples, schedule, first_step, store, group)
    begun = _begin(stepper, prepared, _seed(schedule, group, first_step))
    for step in range(first_step, schedule.total_steps + 1):
        started = time.perf_counter()
        group.place = f"step {step}"
        rows, batches, arrays = prepared.rows, prepared.batches, prepared.arrays
        weight = total_weight(examples, rows)
        tokens = sum(len(examples[row].tokens) - 1 for row in rows)
        places = float(sum(batch.inputs.size for batch in batches))
        learning_rate = learning_rate_at(step, schedule.total_steps, stepper.settings)
        before = stepper.trainable.arrays()
        if any(begun.parameters[name] is not array for name, array in before.items()):  # changed since the last report
            begun = _begin(stepper, prepared, _seed(schedule, group, step))
        nats, gradients = begun.nats, begun.gradients
        for number, more in enumerate(arrays[1:], start=1):
            mx.async_eval(nats, gradients)  # in one graph MLX goes forward through all of them first, and holds it all
            mx.random.seed(_seed(schedule, group, step, number))
            more_nats, more_gradients = stepper.gradients(more)
            nats = nats + more_nats
            gradients = {name: gradient + more_gradients[name] for name, gradient in gradients.items()}
        if group.size > 1:
            mx.async_eval(nats, gradients)
            prepared = _prepare(stepper.engine, examples, schedule, step + 1, store, group)
            sums = group.sum_arrays({**gradients, "nats": nats, "places": mx.array(places)})
            nats, places = sums.pop("nats"), _number(sums.pop("places"))
            gradients = sums
        norm = stepper.update(gradients, weight, learning_rate)
        mx.async_eval(nats, norm, stepper.trainable.arrays(), stepper.optimizer.state)
        if group.size == 1:
            prepared = _prepare(stepper.engine, examples, schedule, step + 1, store, group)
        begun = _begin(stepper, prepared, _seed(schedule, group, step + 1))
        loss, gradient_norm = _number(nats) / weight, _number(norm)
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            stepper.trainable.assign(before)
            raise _not_finite(step, loss, gradient_norm, learning_rate, [examples[row] for row in rows])
        yield StepReport(
            step=step,
            epoch=step / schedule.steps_per_epoch,
            loss=loss,
            gradient_norm=gradient_norm,
            learning_rate=learning_rate,
            targets=sum(_targets(examples[row]) for row in rows),
            tokens=tokens,
            padding_share=1 - tokens / places,
            seconds=time.perf_counter() - started,
            peak_bytes=mx.get_peak_memory(),
        )


def _number(scalar: mx.array) -> float:
    return float(np.array(scalar))


def _targets(example: Example) -> int:
    return int(np.count_nonzero(example.loss_mask[1:]))


def total_weight(examples: Sequence[Example], rows: Sequence[int]) -> float:
    """What the trained targets of `rows` weigh together: known to every rank without asking the others."""
    return sum(_targets(examples[row]) * examples[row].weight for row in rows)


def _prepare(
    engine: Engine, examples: Sequence[Example], schedule: Schedule, step: int, store: FrozenStore | None, group: Group
) -> _Prepared:
    if step > schedule.total_steps:
        return _Prepared([], [], [])
    micro_batches = schedule.micro_batches(step)
    shares = [group.share(rows) for rows in micro_batches]
    batches = [collate(examples, rows) for rows in shares if rows]
    rows = [row for rows in micro_batches for row in rows]
    return _Prepared(rows, batches, [engine.arrays(batch, store) for batch in batches])


def _begin(stepper: Stepper, prepared: _Prepared, seed: int) -> _Begun:
    parameters = stepper.trainable.arrays()
    mx.random.seed(seed)
    arrays = prepared.arrays
    return _Begun(parameters, *(stepper.gradients(arrays[0]) if arrays else stepper.no_gradients()))


def _seed(schedule: Schedule, group: Group, step: int, micro_batch: int = 0) -> int:
    """Dropout depends on run, rank, step and micro-batch alone: a resumed run draws the same."""
    return (group.rank << 53) + (micro_batch << 46) + schedule.seed * 1_000_003 + step


def _not_finite(step: int, loss: float, norm: float, learning_rate: float, rows: Sequence[Example]) -> TrainingError:
    places = ", ".join(sorted({row.place for row in rows})[:8])
    return TrainingError(
        f"step {step}: the loss is {loss} and the gradient norm {norm} at learning rate {learning_rate:.3g}; "
        f"rows: {places}",
        "lower optimizer.learning_rate, or set optimizer.max_grad_norm: 1.0",
    )
