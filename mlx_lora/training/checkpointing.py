"""Gradient checkpointing: a layer's activations are computed again in the backward pass instead of being kept.

Source: Chen et al., arXiv 1604.06174. All that has a gradient is an explicit input of the recomputed function: what a
closure hides from it would lose its gradient without a word. A cache and a mask have none.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_lora.training.trunk import Trunk


def checkpoint_layers(trunk: Trunk) -> None:
    """Let every layer that holds trained parameters recompute its activations; weights and names stay as they are."""
    for layer in trunk.layers:
        if tree_flatten(layer.trainable_parameters()):
            layer.__class__ = _checkpointed(type(layer))  # type: ignore[arg-type]  # classes are hashable


def recomputed(first: Callable[..., Any], again: Callable[..., Any]) -> Callable[..., Any]:
    """`first` of arrays; in the backward pass `again` computes the same, once the gradient of its result is there.

    `mx.checkpoint` waits for the result alone: MLX is then free to recompute layers long before their turn, and to hold
    what they gave.
    """
    run: Any = mx.custom_function(first)

    @run.vjp  # type: ignore[untyped-decorator]
    def backward(primals: Any, cotangents: Any, _: Any) -> Any:
        pulls = list(cotangents) if isinstance(cotangents, (tuple, list)) else [cotangents]
        _, gradients = mx.vjp(again, mx.depends(list(primals), pulls), pulls)
        # All together: MLX would put the adapters' gradients off to the end, and hold what they are made of.
        return mx.depends(gradients, gradients)

    return run  # type: ignore[no-any-return]


@lru_cache
def _checkpointed(plain: type[nn.Module]) -> type[nn.Module]:
    """A subclass of the layer class `plain` whose call is recomputed in the backward pass."""

    def call(self: nn.Module, inputs: mx.array, mask: Any = None, cache: Any = None) -> Any:
        if not self.training:  # validating or generating: there is no backward pass
            return plain.__call__(self, inputs, mask, cache)
        trained = dict(tree_flatten(self.trainable_parameters()))
        random: Any = mx.random.state
        state = random[0]

        def first(inputs: mx.array, *values: mx.array) -> Any:
            self.update(tree_unflatten(list(zip(trained, values, strict=True))))
            return plain.__call__(self, inputs, mask, cache)

        def again(inputs: mx.array, *values: mx.array) -> Any:
            with _drawing_from(state, self):
                return first(inputs, *values)

        outputs = recomputed(first, again)(inputs, *trained.values())
        self.update(tree_unflatten(list(trained.items())))
        return outputs

    return type(f"Checkpointed{plain.__name__}", (plain,), {"__call__": call})


@contextmanager
def _drawing_from(state: mx.array, layer: nn.Module) -> Iterator[None]:
    """Let the layer's dropout draw the masks that MLX's random `state` gave; the state of now stays as it is."""

    class Redrawn(nn.Dropout):
        def __call__(self, x: mx.array) -> mx.array:
            nonlocal state
            if self._p_1 == 1 or not self.training:
                return x
            state, key = mx.random.split(state)  # as MLX's own functions do without a key
            return (mx.random.bernoulli(self._p_1, x.shape, key) * x) * (1 / self._p_1)

    dropouts = [module for module in layer.modules() if type(module) is nn.Dropout]
    for module in dropouts:
        module.__class__ = Redrawn
    try:
        yield
    finally:
        for module in dropouts:
            module.__class__ = nn.Dropout
