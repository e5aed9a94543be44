"""Random rows and small set-ups that the training tests share."""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_lora.config import LoraSettings, OptimizerSettings, TrainSettings
from mlx_lora.dataset.examples import Example
from mlx_lora.lora.inject import inject_lora
from mlx_lora.training.engine import Engine
from mlx_lora.training.loop import build_schedule
from mlx_lora.training.optim import build_optimizer
from mlx_lora.training.parts import build_engine
from mlx_lora.training.stepper import Stepper
from mlx_lora.training.trainable import Trainable
from tests.tiny import tiny_model


def random_rows(count: int, *, seed: int = 0, shared: int = 20, most: int = 30, answers: int = 6) -> list[Example]:
    """Rows that begin with the same `shared` tokens, go on with up to `most` and end with a trained answer."""
    generator = np.random.default_rng(seed)
    prefix = generator.integers(5, 300, shared)
    rows = []
    for number in range(count):
        own = generator.integers(5, 300, int(generator.integers(2, most)))
        answer = generator.integers(5, 300, int(generator.integers(1, answers)))
        tokens = np.concatenate([prefix, own, answer]).astype(np.int32)
        mask = np.zeros(len(tokens), bool)
        mask[-len(answer) :] = True
        rows.append(Example(tokens, mask, f"rows:{number}", None))
    return rows


def multi_turn_rows(count: int, *, seed: int = 0, shared: int = 12) -> list[Example]:
    """Rows with two trained spans each, between untrained ones."""
    rows = []
    for example in random_rows(count, seed=seed, shared=shared, most=24):
        mask = example.loss_mask.copy()
        mask[shared + 1 : shared + 3] = True
        rows.append(Example(example.tokens, mask, example.place, None))
    return rows


@dataclass
class Trial:
    """A tiny model with adapters whose B is not zero, so that every gradient has something to say."""

    model: nn.Module
    trainable: Trainable
    first_layer: int
    lora: LoraSettings


def trial(family: str = "llama", *, bits: int | None = None, seed: int = 0, **lora: object) -> Trial:
    """A Trial of `family` with the given LoraSettings."""
    settings = LoraSettings.model_validate({"rank": 4, "alpha": 8.0, **lora})
    model = tiny_model(family, bits=bits)
    injection = inject_lora(model, settings, seed=seed)
    trainable = Trainable(model)
    keys = mx.random.split(mx.random.key(seed + 1), len(trainable.arrays()))
    trainable.assign(
        {
            name: array + 0.05 * mx.random.normal(array.shape, key=key)
            for (name, array), key in zip(trainable.arrays().items(), keys, strict=True)
        }
    )
    model.train()
    return Trial(model, trainable, injection.first_layer, settings)


def stepper(run: Trial, engine: Engine, *, compiled: bool = False, **optimizer: object) -> Stepper:
    """A Stepper on `engine` with the given OptimizerSettings."""
    settings = OptimizerSettings.model_validate(optimizer)
    return Stepper(engine, run.trainable, build_optimizer(settings), settings, compiled=compiled)


def engine(run: Trial, rows: list[Example], parts: list[str] | str = "auto", **train: object) -> Engine:
    """The engine that a run over `rows` would use."""
    settings = TrainSettings.model_validate({"epochs": 2, "engine": parts, **train})
    batches = build_schedule([len(row.tokens) - 1 for row in rows], settings).first_batches()
    return build_engine(run.model, rows, batches, settings, run.lora)[0]


def differences(one: tuple, other: tuple) -> dict[str, float]:
    """Relative difference of (nats, gradients) pairs: of the nats, and of each array to its own norm."""
    (nats, gradients), (other_nats, other_gradients) = one, other
    found = {"nats": float(mx.abs(nats - other_nats) / mx.abs(other_nats))}
    for name, gradient in other_gradients.items():
        norm = mx.linalg.norm(gradient.reshape(-1))
        found[name] = float(mx.linalg.norm((gradients[name] - gradient).reshape(-1)) / mx.maximum(norm, 1e-9))
    return found
