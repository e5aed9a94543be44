"""Where a model's trunk (embedding and layers) ends and its head begins, and how to run either alone.

Knows nothing of families: an mlx-lm model calls its trunk and then projects, caps and scales what came back. With the
trunk replaced by a stand-in that returns given states, the model's own code is its head, capping and scaling included.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

_TRUNK_NAMES = ("model", "transformer", "backbone", "language_model")
_LAYER_NAMES = ("layers", "h", "blocks")


class _Given(nn.Module):
    """A stand-in for the trunk that returns given states and lends the trunk's other attributes (a tied embedding)."""

    def __init__(self, trunk: nn.Module, states: mx.array) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        object.__setattr__(self, "_trunk", trunk)
        object.__setattr__(self, "_states", states)

    def __call__(self, *_: Any, **__: Any) -> mx.array:
        states: mx.array = object.__getattribute__(self, "_states")
        return states

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_trunk"), name)


class Trunk:
    """A model seen as trunk, layers and head.

    `layers` is the list that the trunk iterates: replacing an entry replaces the layer. `head_axes` is how many axes
    the heads have in the scores of this family's attention.
    """

    head_axes = 1

    def __init__(self, model: nn.Module, owner: nn.Module, name: str, layers: list[Any]) -> None:
        self.model, self.layers = model, layers
        self._owner, self._name = owner, name

    def states(self, tokens: mx.array, cache: Sequence[Any] | None = None) -> mx.array:
        """Final normalised states (B, T, D) of `tokens` (B, T)."""
        trunk = self._owner[self._name]
        states: mx.array = trunk(tokens, cache)
        return states

    def logits(self, states: mx.array) -> mx.array:
        """Logits (B, T, V) of `states` (B, T, D), by the model's own code after its trunk."""
        trunk = self._owner[self._name]
        self._owner[self._name] = _Given(trunk, states)
        try:
            logits: mx.array = self.model(mx.zeros(states.shape[:2], mx.int32))
        finally:
            self._owner[self._name] = trunk
        return logits

    @contextmanager
    def replaced(self, wrap: Callable[[int, Any], Any]) -> Iterator[None]:
        """Put `wrap(index, layer)` in the place of every layer while the context is open."""
        originals = list(self.layers)
        self.layers[:] = [wrap(index, layer) for index, layer in enumerate(originals)]
        try:
            yield
        finally:
            self.layers[:] = originals


def find_trunk(model: nn.Module) -> Trunk | None:
    """The trunk of `model`, or None where its parts are not where mlx-lm's models have them."""
    owner = model
    for _ in range(3):  # a text model may sit inside a multimodal one
        name = next((name for name in _TRUNK_NAMES if isinstance(owner.get(name), nn.Module)), None)
        if name is None:
            return None
        trunk = owner[name]
        for layers in _LAYER_NAMES:
            if isinstance(trunk.get(layers), list):
                return Trunk(model, owner, name, trunk[layers])
        owner = trunk
    return None
