"""Gradient checkpointing: a layer's activations are computed again in the backward pass instead of being kept.

Source: Chen et al., arXiv 1604.06174. All that has a gradient is an explicit input of the recomputed function: what a
closure hides from `mx.checkpoint` would lose its gradient without a word. A cache and a mask have none.
"""

from functools import lru_cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_lora.training.trunk import Trunk


def checkpoint_layers(trunk: Trunk) -> None:
    """Let every layer that holds trained parameters recompute its activations; weights and names stay as they are."""
    for layer in trunk.layers:
        if layer.trainable_parameters():
            layer.__class__ = _checkpointed(type(layer))  # type: ignore[arg-type]  # classes are hashable


@lru_cache
def _checkpointed(plain: type[nn.Module]) -> type[nn.Module]:
    """A subclass of the layer class `plain` whose call is recomputed in the backward pass."""

    def call(self: nn.Module, inputs: mx.array, mask: Any = None, cache: Any = None) -> Any:
        if not self.training:  # validating or generating: there is no backward pass
            return plain.__call__(self, inputs, mask, cache)
        trained = dict(tree_flatten(self.trainable_parameters()))

        @mx.checkpoint
        def run(trained: dict[str, mx.array], inputs: mx.array) -> Any:
            self.update(tree_unflatten(list(trained.items())))
            return plain.__call__(self, inputs, mask, cache)

        outputs = run(trained, inputs)
        self.update(tree_unflatten(list(trained.items())))
        return outputs

    return type(f"Checkpointed{plain.__name__}", (plain,), {"__call__": call})
