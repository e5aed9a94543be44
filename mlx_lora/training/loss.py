"""The loss: a weighted sum of token cross-entropies. Who knows all counts divides, once."""

import mlx.core as mx


def summed_nats(logits: mx.array, targets: mx.array, weights: mx.array) -> mx.array:
    """Sum over tokens of weight · (logsumexp(logits) − logits[target]), in nats, float32.

    logits: (..., V); targets: (...) int; weights: (...) float32.
    """
    logits = logits.astype(mx.float32)
    picked = mx.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return ((mx.logsumexp(logits, axis=-1) - picked) * weights).sum()
