"""A thin slice of a base: true shapes, one number for all weights, and few layers. Knows nothing of rows or limits.

Layers of one kind cost the same, so a model with two and one with four of them tell what each costs. Stand-ins take
the places of the others: what a family does by a layer's place (masks, windows) stays right.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_lora.config import RunConfig
from mlx_lora.errors import AdapterError, PredictionError
from mlx_lora.lora.inject import inject_lora, transformer_layers
from mlx_lora.model.compute import apply_compute
from mlx_lora.model.outline import outline_base
from mlx_lora.training.frozen import PassThrough, plain_attributes

_WEIGHT = 1 / 64  # not 0: DoRA divides by the length of a row


@dataclass(frozen=True)
class Kinds:
    """The layers of a model, sorted: `of[i]` is the kind of layer i; layers of one kind have equal shapes and tasks."""

    of: tuple[int, ...]

    @property
    def counts(self) -> list[int]:
        """Number of layers of each kind."""
        return [self.of.count(kind) for kind in range(max(self.of) + 1)]

    def choose(self, counts: Sequence[int]) -> set[int]:
        """Indices of so many layers of each kind, the highest."""
        places = [[index for index, one in enumerate(self.of) if one == kind] for kind in range(len(counts))]
        return {index for found, count in zip(places, counts, strict=True) for index in found[len(found) - count :]}


@dataclass
class Slice:
    """A thin model with the run's adapters, and the true model's layers that it stands for."""

    model: nn.Module
    kinds: Kinds
    counts: list[int]  # layers that are there, of each kind
    first_layer: int  # the lowest adapted layer of the whole model
    compute: str
    source: str  # where the shapes come from


def cut_slice(config: RunConfig, most: int, *, kind: int | None = None, more: int = 0) -> Slice:
    """The base of `config` with `most` layers of each kind, and `more` of one `kind`, its adapters put in.

    Raises: MlxLoraError as loading the base would.
    """
    model, source = outline_base(config.model, revision=config.revision)
    try:
        layers = transformer_layers(model)
    except AdapterError as error:
        raise PredictionError(error.message, error.hint) from error
    first_adapted = 0 if config.lora.layers == "all" else max(0, len(layers) - config.lora.layers)
    kinds = sort_layers(layers, first_adapted)
    counts = [min(count, most + more * (number == kind)) for number, count in enumerate(kinds.counts)]
    kept = kinds.choose(counts)
    for index, layer in enumerate(layers):
        if index not in kept:
            layers[index] = PassThrough(plain_attributes(layer))
    _hollow(model)
    compute = apply_compute(model, config.compute)
    inject_lora(model, config.lora, seed=config.train.seed)
    adapted = {kinds.of[index] for index in kept if is_trained(layers[index])}
    first_layer = next(index for index, one in enumerate(kinds.of) if one in adapted)
    return Slice(model, kinds, counts, first_layer, compute, source)


def is_trained(layer: nn.Module) -> bool:
    """Whether the layer holds trained parameters."""
    return bool(tree_flatten(layer.trainable_parameters()))


def _hollow(model: nn.Module) -> None:
    """One small number for all weights; what a family computes for itself (a leading underscore) stays."""
    for module in model.modules():
        for name, value in list(module.items()):
            if isinstance(value, mx.array) and not name.startswith("_"):
                number = _WEIGHT if mx.issubdtype(value.dtype, mx.floating) else 0
                module[name] = mx.full(value.shape, number, value.dtype)


def sort_layers(layers: Sequence[nn.Module], first_adapted: int) -> Kinds:
    """Layers of equal shapes, flags and names that are adapted, or not, are of one kind."""
    names: dict[Any, int] = {}
    return Kinds(
        tuple(
            names.setdefault((index >= first_adapted, _signature(layer)), len(names))
            for index, layer in enumerate(layers)
        )
    )


def _signature(module: nn.Module) -> Any:
    """What tells one kind of layer from another: classes, shapes, types, and settings that are switches or names."""
    found = []
    for path, part in module.named_modules():
        arrays = [
            (name, tuple(value.shape), str(value.dtype)) for name, value in part.items() if isinstance(value, mx.array)
        ]
        flags = [(name, value) for name, value in vars(part).items() if isinstance(value, (bool, str))]
        found.append((path, type(part).__name__, tuple(sorted(arrays)), tuple(sorted(flags))))
    return tuple(sorted(found))
