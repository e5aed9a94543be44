"""Llamas in float64, here and in transformers: what is left between their logits is then no rounding.

Both libraries compute norms and rotary embeddings in float32 whatever the weights are, and MLX's exp, cos and sin are
right to float32 alone. What stands here in their place is written from the formulas, in operations that are right to
float64: products, sums, powers and square roots.
"""

import math
import sys
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest


def use_float64(model: Any, patch: pytest.MonkeyPatch) -> None:
    """Let `model`, a llama without a cache, compute in float64 from here on; MLX has it on the CPU alone."""
    model.set_dtype(mx.float64)
    family = sys.modules[type(model).__module__]
    patch.setattr(nn.RMSNorm, "__call__", _norm)
    patch.setattr(nn.RoPE, "__call__", _rope)
    patch.setattr(family, "swiglu", _swiglu)
    patch.setattr(family, "scaled_dot_product_attention", _attention)


def use_float64_in_torch(model: Any, patch: pytest.MonkeyPatch) -> None:
    """Let transformers' llama in the PEFT model `model` do the same: where its code says float32, it gets float64."""
    import torch

    model.double()
    patch.setattr(torch, "float32", torch.float64)
    patch.setattr(torch, "float", torch.float64)
    patch.setattr(torch.Tensor, "float", torch.Tensor.double)
    trunk = model.get_base_model().model
    trunk.rotary_emb = type(trunk.rotary_emb)(trunk.config)  # its frequencies were computed in float32


def _float64(values: Any) -> mx.array:
    return mx.array(np.asarray(values, np.float64).tolist(), dtype=mx.float64)  # mx.array(ndarray) gives float32


def _exp(x: mx.array) -> mx.array:
    return mx.power(_float64(math.e), x)


def _norm(self: Any, x: mx.array) -> mx.array:
    return self.weight * (x * mx.rsqrt(mx.square(x).mean(axis=-1, keepdims=True) + _float64(self.eps)))


def _rope(self: Any, x: mx.array, offset: int = 0) -> mx.array:
    """x: (B, H, T, D), the two halves of D rotated against each other."""
    assert not self.traditional
    assert self.dims == x.shape[-1]
    positions = self.scale * np.arange(offset, offset + x.shape[2])
    angles = positions[:, None] * self.base ** -(np.arange(0, self.dims, 2) / self.dims)
    cosines, sines = _float64(np.cos(angles)), _float64(np.sin(angles))
    first, second = mx.split(x, 2, axis=-1)
    return mx.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)


def _swiglu(gate: mx.array, x: mx.array) -> mx.array:
    return x * gate / (1 + _exp(-gate))


def _attention(queries: mx.array, keys: mx.array, values: mx.array, cache: None, scale: float, mask: str) -> mx.array:
    """queries: (B, H, T, D), keys and values: (B, K, T, D) → (B, H, T, D)."""
    assert cache is None
    assert mask == "causal"
    groups, length = queries.shape[1] // keys.shape[1], queries.shape[2]
    keys, values = (mx.repeat(array, groups, axis=1) for array in (keys, values))
    scores = (queries * _float64(scale)) @ keys.swapaxes(-1, -2)
    scores = mx.where(mx.tri(length) > 0, scores, _float64(-1e300))
    powers = _exp(scores - scores.max(axis=-1, keepdims=True))
    return (powers / powers.sum(axis=-1, keepdims=True)) @ values
