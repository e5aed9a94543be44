"""Supervised positions only: the vocabulary projection and the cross-entropy run where a token is trained.

Long answers go through in chunks, so that no (positions, V) array over the budget exists; each chunk's gradient is
taken as soon as its logits are there (the idea of fused cross-entropy, as in Apple's arXiv 2411.09009, for any head).
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from mlx_lora.training.loss import summed_nats
from mlx_lora.training.trunk import Trunk

CHUNK_BYTES = 128 * 2**20  # of float32 logits at a time

Head = Callable[[mx.array], mx.array]  # states (1, K, D) → logits (1, K, V)


def select(states: mx.array, positions: mx.array, slots: mx.array) -> mx.array:
    """Rows of `states` (B, T, D) at the flat `positions` (K,), as (1, K, D).

    slots: (B · T,), the place of each position among the K, or K where it is not chosen. The backward pass gathers by
    it what it would otherwise scatter.
    """

    @mx.custom_function
    def chosen(states: mx.array) -> mx.array:
        return states.reshape(-1, states.shape[-1])[positions][None]

    @chosen.vjp
    def chosen_vjp(primal: Any, cotangent: Any, _: Any) -> Any:
        nothing = mx.zeros((1, cotangent.shape[-1]), cotangent.dtype)
        return mx.concatenate([cotangent[0], nothing])[slots].reshape(primal.shape)

    rows: mx.array = chosen(states)  # type: ignore[assignment]  # mx.custom_function says object
    return rows


def supervised_nats(
    head: Head, states: mx.array, loss: Callable[..., mx.array], of: Sequence[mx.array], vocabulary: int
) -> mx.array:
    """`loss(logits, *of)` in nats, where logits (K, V) are the head's on `states`; holds at most CHUNK_BYTES of them.

    states: (1, K, D); of: arrays (K, …), as summed_nats takes after its logits. The head's own weights must be frozen.
    """
    chunk = max(1, CHUNK_BYTES // (4 * vocabulary))
    count = states.shape[1]
    if count <= chunk:
        return loss(head(states)[0], *of)

    def one(piece: mx.array, start: int) -> mx.array:
        return loss(head(piece)[0], *(array[start : start + chunk] for array in of))

    # A chunk's gradient is taken in the forward pass, chunk after chunk, and only scaled in the backward.
    @mx.custom_function
    def total(states: mx.array) -> tuple[mx.array, mx.array]:
        nats = mx.array(0.0)
        gradients: list[mx.array] = []
        for start in range(0, count, chunk):
            piece = states[:, start : start + chunk]
            if gradients:  # one chunk's logits are gone before the next one's are made
                (piece,) = mx.depends([piece], [gradients[-1]])
            value, gradient = mx.value_and_grad(one)(piece, start)
            nats = nats + value
            gradients.append(gradient)
        return nats, mx.concatenate(gradients, axis=1)

    @total.vjp
    def total_vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
        return (cotangents[0] * outputs[1]).astype(primals.dtype)

    both: tuple[mx.array, mx.array] = total(states)  # type: ignore[assignment]  # mx.custom_function says object
    return both[0]


def supervised_answers(
    head: Head, states: mx.array, targets: mx.array, weights: mx.array, vocabulary: int
) -> tuple[mx.array, mx.array]:
    """The nats of supervised_nats by summed_nats, without gradients, and the likeliest token of each position (K,)."""
    chunk = max(1, CHUNK_BYTES // (4 * vocabulary))
    nats, likeliest = mx.array(0.0), list[mx.array]()
    for start in range(0, states.shape[1], chunk):
        part = slice(start, start + chunk)
        logits = head(states[:, part])[0]
        nats = nats + summed_nats(logits, targets[part], weights[part])
        likeliest.append(logits.argmax(axis=-1))
        mx.eval(nats, likeliest)  # before the next chunk's logits are made
    return nats, mx.concatenate(likeliest)


def head_size(trunk: Trunk) -> int:
    """V, the number of logits a position has; asked of the head's shape, without computing it."""
    width = trunk.states(mx.zeros((1, 1), mx.int32)).shape[-1]
    return int(trunk.logits(mx.zeros((1, 1, width))).shape[-1])


def row_lengths(trunk: Trunk, probes: int = 32) -> mx.array:
    """Length of every token's row of the output layer (V,), as a share of the median's, to about a tenth.

    Measured through the head itself, with random states: no name or format of a weight is known here.
    """
    probe = trunk.states(mx.zeros((1, 1), mx.int32))  # asked for its width and dtype, never computed
    states = mx.random.normal((1, probes, probe.shape[-1]), key=mx.random.key(0)).astype(probe.dtype)
    logits = trunk.logits(states)[0].astype(mx.float32)
    lengths = mx.sqrt(mx.square(logits).mean(axis=0))
    return lengths / mx.maximum(mx.sort(lengths)[lengths.shape[0] // 2], 1e-12)
