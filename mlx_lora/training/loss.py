"""The loss: a weighted sum of token cross-entropies. Who knows all counts divides, once."""

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_lora.model.cpu import exp2

_LEAST = 1e-6  # of a probability: below float32's rounding of 1 − p


def summed_nats(logits: mx.array, targets: mx.array, weights: mx.array) -> mx.array:
    """Sum over tokens of weight · (logsumexp(logits) − logits[target]), in nats, float32; differentiable in `logits`.

    logits: (..., V); targets: (...) int; weights: (...) float32. The gradient weight · (softmax(logits) − one-hot)
    comes from the same exponentials as the loss: one an element, where logsumexp and its derivative take two.
    """
    wanted, shares = targets[..., None], weights[..., None]

    def total(logits: mx.array) -> tuple[mx.array, mx.array]:
        powers, sums, largest = _powers(logits)
        nats = ((mx.log(sums) + largest - mx.take_along_axis(logits, wanted, axis=-1)) * shares).sum()
        gradient = powers * (shares / sums)
        at_target = mx.take_along_axis(gradient, wanted, axis=-1) - shares
        return nats, mx.put_along_axis(gradient, wanted, at_target, axis=-1)

    return _with_own_gradient(total, logits)


def summed_divergence(logits: mx.array, targets: mx.array, shares: mx.array, weights: mx.array) -> mx.array:
    """Sum over tokens of weight · KL(p ‖ softmax(logits)), in nats, float32; differentiable in `logits`.

    p has the probabilities `shares` (..., K) at the tokens `targets` (..., K); what is left to 1 belongs to all other
    tokens together, however they share it. logits: (..., V); weights: (...) float32. Where the model is as p says, loss
    and gradient are zero.
    """
    weights = weights[..., None]
    rest = mx.maximum(1.0 - shares.sum(axis=-1, keepdims=True), 0.0)
    constant = (shares * _log(shares)).sum(axis=-1, keepdims=True) + rest * _log(rest)

    def total(logits: mx.array) -> tuple[mx.array, mx.array]:
        powers, sums, largest = _powers(logits)
        found = mx.take_along_axis(powers, targets, axis=-1) / sums
        others = mx.maximum(1.0 - found.sum(axis=-1, keepdims=True), _LEAST)
        logs = mx.take_along_axis(logits, targets, axis=-1) - largest - mx.log(sums)
        nats = constant - (shares * logs).sum(axis=-1, keepdims=True) - rest * mx.log(others)
        gradient = powers * (weights / sums * (1.0 - rest / others))
        gradient = mx.put_along_axis(gradient, targets, weights * (found - shares), axis=-1)
        return (nats * weights).sum(), gradient

    return _with_own_gradient(total, logits)


def _with_own_gradient(total: Callable[[mx.array], tuple[mx.array, mx.array]], logits: mx.array) -> mx.array:
    """The first value of `total`, called on `logits` in float32; its gradient in `logits` is the second."""
    kept = logits.dtype

    @mx.custom_function
    def both(logits: mx.array) -> tuple[mx.array, mx.array]:
        return total(logits.astype(mx.float32))

    @both.vjp
    def both_vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
        return (cotangents[0] * outputs[1]).astype(kept)

    values: tuple[mx.array, mx.array] = both(logits)  # type: ignore[assignment]  # mx.custom_function says object
    return values[0]


def _powers(logits: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """e^(logits − largest), their sums and the largest logits: (..., V), (..., 1), (..., 1)."""
    largest = logits.max(axis=-1, keepdims=True)
    powers = _exp(logits - largest)
    return powers, powers.sum(axis=-1, keepdims=True), largest


def _log(shares: mx.array) -> mx.array:
    return mx.log(mx.maximum(shares, _LEAST))


def _exp(exponents: mx.array) -> mx.array:
    """e to the power of `exponents` ≤ 0, float32."""
    if mx.default_device() == mx.cpu:
        return exp2(exponents * math.log2(math.e))
    return mx.exp(exponents)
