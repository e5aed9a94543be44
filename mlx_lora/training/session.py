"""A run put together: model with adapters, engine, schedule and progress. Knows nothing of screens or commands."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_lora.config import RunConfig
from mlx_lora.dataset.examples import Example
from mlx_lora.errors import TrainingError
from mlx_lora.training.checkpoint import Progress
from mlx_lora.training.engine import Engine
from mlx_lora.training.frozen import FrozenStore
from mlx_lora.training.loop import Schedule, Stepper, StepReport, build_schedule, mean_nats, train_steps
from mlx_lora.training.optim import build_optimizer
from mlx_lora.training.parts import PartReport, build_engine, check_batch, gradient_difference, tolerance
from mlx_lora.training.trainable import Trainable


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

    def steps(self) -> Iterator[StepReport]:
        """Train from the step after `progress.step`; one report a step, with `progress.step` moved on."""
        for report in train_steps(
            self.stepper, self.train_set, self.schedule, first_step=self.progress.step + 1, store=self.store
        ):
            self.progress.step = report.step
            yield report

    def validation_loss(self) -> float:
        """Mean nats a trained token over the whole validation set, with dropout off."""
        self.model.eval()
        try:
            return mean_nats(self.stepper.engine, self.valid_set, self.config.train.batch_size, self.valid_store)
        finally:
            self.model.train()

    def note_validation(self, loss: float) -> bool:
        """Remember a validation; True when it is the best so far."""
        best = self.progress.best_loss is None or loss < self.progress.best_loss
        if best:
            self.progress.best_loss, self.progress.best_step = loss, self.progress.step
            self.progress.validations_without_gain = 0
        else:
            self.progress.validations_without_gain += 1
        return best

    def out_of_patience(self) -> bool:
        """Whether early stopping ends the run."""
        patience = self.config.train.early_stopping_patience
        return patience is not None and self.progress.validations_without_gain >= patience

    def restore(self, progress: Progress, parameters: dict[str, mx.array], optimizer_state: dict[str, Any]) -> None:
        """Continue from a checkpoint. Raises: TrainingError when it was made for other adapters."""
        stepper = self.stepper
        if _shapes(stepper.trainable.arrays()) != _shapes(parameters) or (
            _shapes(stepper.optimizer.state) != _shapes(optimizer_state)
        ):
            raise TrainingError("the checkpoint holds other adapters than this run has", "begin again with --overwrite")
        stepper.trainable.assign(parameters)
        stepper.optimizer.state = optimizer_state
        self.progress = progress


def build_session(
    config: RunConfig, model: nn.Module, train_set: Sequence[Example], valid_set: Sequence[Example]
) -> Session:
    """Put a run together. `model` has its adapters; the engine has been compared with the plain forward.

    Raises: TrainingError when there is nothing to train on.
    """
    if not train_set:
        raise TrainingError("there are no training rows", "see `mlx-lora check`")
    trainable = Trainable(model)
    engine, reports = build_engine(model, train_set, config.train, config.lora)
    model.train()
    compiled = config.train.engine == "auto" or "compiled_step" in config.train.engine
    stepper = Stepper(engine, trainable, build_optimizer(config.optimizer), config.optimizer, compiled=compiled)
    if config.train.engine != "plain":
        reports.append(_compare(config, model, train_set, stepper))
    schedule = build_schedule([len(example.tokens) for example in train_set], config.train)
    return Session(config, model, stepper, schedule, train_set, valid_set, Progress(), reports)


def _compare(config: RunConfig, model: nn.Module, examples: Sequence[Example], stepper: Stepper) -> PartReport:
    """Compare the engine with the plain forward on the first rows; beyond rounding it steps aside, loudly."""
    batch = check_batch(examples, config.train)
    plain = Stepper(
        Engine(model), stepper.trainable, build_optimizer(config.optimizer), config.optimizer, compiled=False
    )
    mx.random.seed(config.train.seed)
    arrays = stepper.engine.arrays(batch)
    difference = gradient_difference(stepper, plain, batch, arrays)
    mx.clear_cache()
    mx.reset_peak_memory()
    limit = tolerance(model)
    if difference <= limit:
        line = f"loss and gradients differ from the plain forward by {difference:.1e} (limit {limit:.0e})"
        return PartReport("checked", True, line)
    stepper.engine.supervised_positions = stepper.engine.shared_prefix = False
    line = (
        f"loss or gradients differ from the plain forward by {difference:.1e} (limit {limit:.0e}): plain forward used"
    )
    return PartReport("checked", False, line)


def _shapes(arrays: Any) -> Any:
    if isinstance(arrays, dict):
        return {name: _shapes(array) for name, array in arrays.items()}
    return tuple(arrays.shape)
