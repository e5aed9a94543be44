"""The loss: a weighted sum of token cross-entropies. Who knows all counts divides, once."""

import math
from typing import Any

import mlx.core as mx

from mlx_lora.model.cpu import exp2


def summed_nats(logits: mx.array, targets: mx.array, weights: mx.array) -> mx.array:
    """Sum over tokens of weight · (logsumexp(logits) − logits[target]), in nats, float32; differentiable in `logits`.

    logits: (..., V); targets: (...) int; weights: (...) float32. The gradient weight · (softmax(logits) − one-hot)
    comes from the same exponentials as the loss: one an element, where logsumexp and its derivative take two.
    """
    kept, wanted, shares = logits.dtype, targets[..., None], weights[..., None]

    @mx.custom_function
    def total(logits: mx.array) -> tuple[mx.array, mx.array]:
        logits = logits.astype(mx.float32)
        largest = logits.max(axis=-1, keepdims=True)
        powers = _exp(logits - largest)
        sums = powers.sum(axis=-1, keepdims=True)
        nats = ((mx.log(sums) + largest - mx.take_along_axis(logits, wanted, axis=-1)) * shares).sum()
        gradient = powers * (shares / sums)
        at_target = mx.take_along_axis(gradient, wanted, axis=-1) - shares
        return nats, mx.put_along_axis(gradient, wanted, at_target, axis=-1)

    @total.vjp
    def total_vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
        return (cotangents[0] * outputs[1]).astype(kept)

    both: tuple[mx.array, mx.array] = total(logits)  # type: ignore[assignment]  # mx.custom_function says object
    return both[0]


def _exp(exponents: mx.array) -> mx.array:
    """e to the power of `exponents` ≤ 0, float32."""
    if mx.default_device() == mx.cpu:
        return exp2(exponents * math.log2(math.e))
    return mx.exp(exponents)
