"""A run put together: model with adapters, engine, schedule and progress. Knows nothing of screens or commands."""

import json
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_lora.config import RunConfig
from mlx_lora.dataset.examples import Example
from mlx_lora.dataset.groups import training_groups
from mlx_lora.dataset.replay import replay_rows
from mlx_lora.errors import MlxLoraError, TrainingError
from mlx_lora.training.checkpoint import Progress
from mlx_lora.training.distributed import Group
from mlx_lora.training.engine import Engine
from mlx_lora.training.frozen import (
    FrozenStore,
    build_store,
    count_stand_ins,
    data_set_prefix,
    remove_frozen_layers,
    state_kind,
    store_bytes,
    store_key,
)
from mlx_lora.training.loop import Schedule, StepReport, build_schedule, train_steps
from mlx_lora.training.optim import build_optimizer
from mlx_lora.training.parts import (
    PartReport,
    build_engine,
    check_batch,
    disk_refusal,
    frozen_refusal,
    gradient_difference,
    tolerance,
)
from mlx_lora.training.stepper import Stepper
from mlx_lora.training.storefolder import BUDGET_BYTES, make_room
from mlx_lora.training.trainable import Trainable
from mlx_lora.training.validation import Validation, is_best, most_right, packed, validate

_LEAST_CACHE = 32 * 2**20  # bytes of freed arrays: what MLX keeps on a CPU by itself
_CPU_SHARE = 10  # on a CPU the heap keeps freed memory too (model/cpu.py): of what a step takes, so little is enough


def freed_bytes(taken: int) -> int:
    """How much freed memory MLX may keep between steps, where the largest step so far has taken `taken` bytes.

    Rows of varying lengths leave arrays of many sizes, and a cache with more room fills with those that nothing asks
    for again. On a GPU, where new memory is costly, it may hold all that a step takes.
    """
    on_cpu = mx.default_device() == mx.cpu
    return max(_LEAST_CACHE, taken // _CPU_SHARE if on_cpu else taken)


@dataclass
class Session:
    """All that the loop of a run needs, and what a checkpoint holds."""

    config: RunConfig
    model: nn.Module
    stepper: Stepper
    schedule: Schedule
    train_set: Sequence[Example]
    valid_set: Sequence[Example]
    progress: Progress
    reports: list[PartReport]
    store: FrozenStore | None = None
    valid_store: FrozenStore | None = None
    group: Group = field(default_factory=Group)

    def steps(self) -> Iterator[StepReport]:
        """Train from the step after `progress.step`; one report a step, with `progress.step` moved on."""
        first_step = self.progress.step + 1
        for report in train_steps(
            self.stepper, self.train_set, self.schedule, first_step=first_step, store=self.store, group=self.group
        ):
            self.progress.step = report.step
            mx.set_cache_limit(freed_bytes(report.peak_bytes - mx.get_active_memory()))
            yield report

    def validate(self) -> Validation:
        """Loss and right rows of the whole validation set, with dropout off."""
        self.model.eval()
        try:
            rows = self.config.train.batch_rows
            return validate(self.stepper.engine, self.valid_set, rows, self.valid_store, self.group)
        finally:
            self.model.train()

    def note_validation(self, found: Validation) -> bool:
        """Remember a validation; True when it is the best so far. Raises: TrainingError when it is not finite."""
        self.require_finite(found.nats)
        kept = self.progress
        best = is_best(found, kept)
        if best:
            kept.most_right = most_right(found, kept)
            kept.best_loss, kept.best_step, kept.best_right = found.nats, kept.step, packed(found.right)
            kept.validations_without_gain = 0
        else:
            kept.validations_without_gain += 1
        return best

    def require_finite(self, loss: float) -> None:
        """Refuse a validation loss that says nothing."""
        if not math.isfinite(loss):
            raise TrainingError(
                f"step {self.progress.step}: the validation loss is {loss}",
                "compute: float32 has the widest range; a lower optimizer.learning_rate keeps weights small",
            )

    def out_of_patience(self) -> bool:
        """Whether early stopping ends the run."""
        patience = self.config.train.early_stopping_patience
        return patience is not None and self.progress.validations_without_gain >= patience

    def restore(self, progress: Progress, parameters: dict[str, mx.array], optimizer_state: dict[str, Any]) -> None:
        """Continue from a checkpoint. Raises: TrainingError when it was made for other adapters."""
        stepper = self.stepper
        # What is not trained is there since before the steps were compiled: no later value would reach them.
        if not stepper.trainable.fits(parameters) or _shapes(stepper.optimizer.state) != _shapes(optimizer_state):
            raise TrainingError("the checkpoint holds other adapters than this run has", "begin again with --overwrite")
        stepper.trainable.assign(parameters)
        stepper.optimizer.state = optimizer_state
        self.progress = progress

    def restore_layers(self, reload: Callable[[int], Sequence[nn.Module]]) -> None:
        """Make the run's model whole, so that it can generate: layers that ran once and left memory come back.

        reload: number of layers → that many of the base's lowest ones; not called where none are missing.
        """
        engine = self.stepper.engine
        missing = count_stand_ins(engine.trunk) if engine.trunk is not None else 0
        if missing and engine.trunk is not None:
            layers = list(reload(missing))
            for layer in layers:
                layer.freeze()
            engine.trunk.layers[:missing] = layers
        engine.boundary = self.store = self.valid_store = None

    def require_one_start(self) -> None:
        """Refuse to begin unless every rank has the same base, rows, settings, step and weights."""
        progress = asdict(self.progress)
        progress["fingerprint"].pop("engine", None)  # hosts may differ in what their disks have room for
        if not self.group.same(json.dumps(progress, sort_keys=True), self.stepper.trainable.whole(), patient=True):
            raise TrainingError(
                "the ranks do not begin alike: base, data, settings or checkpoint differ between them",
                "give every host the same run file, data and output_dir",
            )

    def require_equal_weights(self) -> None:
        """Refuse to go on when the ranks' weights are no longer the same, to the bit."""
        if not self.group.same(str(self.progress.step), self.stepper.trainable.arrays()):
            raise TrainingError(
                f"the ranks' weights differ after step {self.progress.step}: nothing of this step is kept",
                "this should not happen: please report it; --resume goes back to the last checkpoint",
            )


def build_session(
    config: RunConfig, model: nn.Module, train_set: Sequence[Example], valid_set: Sequence[Example],
    group: Group | None = None,
) -> Session:  # fmt: skip
    """Put a run together; `model` has its adapters, and `train_set` the taught rows before the replay rows.

    Raises: TrainingError when there is nothing to train on.
    """
    if not train_set:
        raise TrainingError("there are no training rows", "see `mlx-lora check`")
    trainable = Trainable(model)
    group = group or Group()
    taught = [example for example in train_set if example.expected is None]
    batch_size = config.train.batch_rows * group.size
    schedule = build_schedule(
        [len(example.tokens) - 1 for example in taught],
        config.train,
        group.size,
        groups=training_groups(taught, batch_size, config.train.group_by_prefix),
        replay_pool=len(train_set) - len(taught),
        replay_rows=replay_rows(len(taught), config.data.replay),
    )
    batches = [share for rows in schedule.first_batches() if (share := group.share(rows))]
    engine, reports = build_engine(model, train_set, batches, config.train, config.lora)
    model.train()
    compiled = config.train.engine == "auto" or "compiled_step" in config.train.engine
    stepper = Stepper(engine, trainable, build_optimizer(config.optimizer), config.optimizer, compiled=compiled)
    if compiled:
        reports.append(PartReport("compiled_step", True, "loss, gradients and update as two compiled functions"))
    return Session(config, model, stepper, schedule, train_set, valid_set, Progress(), reports, group=group)


def prepare_engine(session: Session, first_layer: int, base: str, folder: Path) -> Iterator[tuple[int, int]]:
    """Run the layers below `first_layer` once where that pays, and compare the engine with the plain forward.

    Yields (rows done, rows in all) while the lower layers run. `base` names the base's weights; `folder` keeps the
    outputs, so that a second run finds them. Beyond rounding the engine steps aside, and its report says so.
    """
    if session.config.train.engine == "plain":
        return
    expected = plain_gradients(session)
    removed = yield from _freeze(session, first_layer, base, folder)
    session.reports.append(_compare(session, expected, removed))


def _freeze(session: Session, first_layer: int, base: str, folder: Path) -> Generator[tuple[int, int], None, list[Any]]:
    """Install the stores and the stand-ins; return the layers that were removed, none where the part steps aside."""
    train, engine = session.config.train, session.stepper.engine
    if train.engine != "auto" and "frozen_layers" not in train.engine:
        return []
    epochs = session.schedule.total_steps / session.schedule.steps_per_epoch
    refusal = frozen_refusal(engine.trunk, train, first_layer, epochs)
    trunk = engine.trunk
    sets = [examples for examples in (session.train_set, session.valid_set) if examples]
    plans: list[tuple[Sequence[Example], int, Path]] = []
    sizes: dict[Path, int] = {}
    if refusal is None and trunk is not None:
        width, dtype = state_kind(trunk, first_layer)
        for examples in sets:
            prefix = data_set_prefix(examples) if engine.shared_prefix else 0
            path = folder / f"{store_key(examples, first_layer, prefix, dtype, base)}.states"
            plans.append((examples, prefix, path))
            sizes[path] = store_bytes(examples, prefix, width, dtype)
        refusal = disk_refusal(sum(size for path, size in sizes.items() if not path.exists()), folder)
    if refusal is not None or trunk is None:
        session.reports.append(PartReport("frozen_layers", False, refusal or ""))
        return []
    stores, done, total = [], 0, sum(len(examples) for examples in sets)
    try:
        old, old_bytes = make_room(folder, sizes)
        for examples, prefix, path in plans:
            for event in build_store(trunk, first_layer, examples, prefix, path):
                if isinstance(event, FrozenStore):
                    stores.append(event)
                else:
                    yield done + event, total
            done += len(examples)
    except MlxLoraError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        session.reports.append(PartReport("frozen_layers", False, f"not kept: {error.message} ({error.hint})"))
        return []
    session.store, session.valid_store = stores[0], stores[-1] if session.valid_set else None
    removed = list(trunk.layers[:first_layer])
    engine.boundary = remove_frozen_layers(trunk, first_layer)
    line = (
        f"the lower {first_layer} of {len(trunk.layers)} layers ran once for {total} rows "
        f"({sum(sizes.values()) / 1e6:.0f} MB)"
    )
    if any(store.was_damaged for store in stores):
        line += "; what was kept of them on disk was damaged, and is made anew"
    if old:
        line += f"; {old} older ones of {old_bytes / 1e9:.1f} GB removed to stay within {BUDGET_BYTES / 1e9:.0f} GB"
    session.reports.append(PartReport("frozen_layers", True, line))
    return removed


def plain_gradients(session: Session) -> tuple[mx.array, dict[str, mx.array]]:
    """The plain way's loss and gradients on the first rows, computed now: the layers may be gone later."""
    batch = check_batch(session.train_set, session.schedule.micro_batches(1)[0])
    optimizer = session.config.optimizer
    plain = Stepper(
        Engine(session.model), session.stepper.trainable, build_optimizer(optimizer), optimizer, compiled=False
    )
    mx.random.seed(session.config.train.seed)
    expected = plain.gradients(plain.engine.arrays(batch))
    mx.eval(expected)
    return expected


def _compare(session: Session, expected: tuple[mx.array, dict[str, mx.array]], removed: list[Any]) -> PartReport:
    stepper, trunk = session.stepper, session.stepper.engine.trunk
    batch = check_batch(session.train_set, session.schedule.micro_batches(1)[0])
    mx.random.seed(session.config.train.seed)
    found = stepper.gradients(stepper.engine.arrays(batch, session.store))
    difference, limit = gradient_difference(found, expected), tolerance(session.model)
    mx.clear_cache()
    if difference <= limit:
        line = f"loss and gradients differ from the plain forward by {difference:.1e} (limit {limit:.0e})"
        return PartReport("checked", True, line)
    if trunk is not None:
        trunk.layers[: len(removed)] = removed
    session.store = session.valid_store = None
    plain = Engine(session.model, trunk)
    session.stepper = Stepper(
        plain, stepper.trainable, build_optimizer(stepper.settings), stepper.settings, compiled=stepper.compiled
    )
    line = f"loss or gradients are {difference:.1e} from the plain forward's (limit {limit:.0e}): plain forward used"
    return PartReport("checked", False, line)


def _shapes(arrays: Any) -> Any:
    if isinstance(arrays, dict):
        return {name: _shapes(array) for name, array in arrays.items()}
    return tuple(arrays.shape)
