"""How likely a model finds given continuations of prompts, in batches. Knows nothing of records or templates."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_lora.model.batching import Prefix, choose_batching, common_prefix, next_rows, prefill_prefix, row_limit
from mlx_lora.model.caches import keep_rows

LOGIT_POSITIONS = 512  # rows × tokens whose logits are in memory at once
_LEAST_SHARE = 1e-12  # of what is left: its logarithm is finite


@dataclass(frozen=True)
class Likeliest:
    """The K likeliest tokens at each of A places, in no order, and their probabilities."""

    tokens: np.ndarray  # (A, K) int32
    shares: np.ndarray  # (A, K) float32


def answer_nats(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    batch_size: int = 32,
) -> list[tuple[float, int]]:
    """Negative log-likelihood of each continuation after its prompt: (nats summed over its tokens, number of tokens).

    exp(nats / tokens) is its perplexity; among several continuations of one prompt the least nats is the likeliest.
    Raises: ValueError for an empty prompt or continuation, or lists of different lengths.
    """
    nats = dict(iter_nats(model, prompts, continuations, batch_size=batch_size))
    return [nats[index] for index in range(len(prompts))]


def iter_nats(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    batch_size: int = 32,
) -> Iterator[tuple[int, tuple[float, int]]]:
    """Yield (index, (nats, number of tokens)) as batches are done; otherwise as answer_nats.

    A prompt with several continuations (choices of one question) is computed once a batch.
    """

    def total(rows: Sequence[int], caches: Sequence[Any], last: Sequence[int]) -> list[float]:
        return continued_nats(model, caches, last, [continuations[row] for row in rows])

    for row, nats in _iter_totals(model, prompts, continuations, batch_size, total):
        yield row, (nats, len(continuations[row]))


def iter_divergences(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    expected: Sequence[Likeliest],
    *,
    batch_size: int = 32,
) -> Iterator[tuple[int, float]]:
    """Yield (index, KL(expected‖model) in nats, summed over the answer's A places) as batches are done.

    answers: A tokens each, of which the last is not read: what follows it is not asked. expected: another model's
    probabilities at these places; all tokens but its K likeliest count as one, so this is a lower bound (by a little)
    of the divergence over the vocabulary. Raises: as answer_nats, and ValueError where places are not A.
    """
    if [len(answer) for answer in answers] != [len(one.tokens) for one in expected]:
        raise ValueError("every token of an answer needs its expected probabilities")

    def total(rows: Sequence[int], caches: Sequence[Any], last: Sequence[int]) -> list[float]:
        width = max(len(answers[row]) for row in rows)
        tokens, shares = (
            _padded([getattr(expected[row], name) for row in rows], width) for name in ("tokens", "shares")
        )

        def measure(logits: mx.array, part: slice) -> mx.array:
            logs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            found, wanted = mx.take_along_axis(logs, tokens[:, part], axis=-1), shares[:, part]
            left, others = (mx.maximum(1.0 - one.sum(axis=-1), _LEAST_SHARE) for one in (wanted, mx.exp(found)))
            listed = mx.where(wanted > 0, wanted * (mx.log(wanted) - found), 0.0).sum(axis=-1)
            return listed + left * (mx.log(left) - mx.log(others))

        return _total(model, caches, last, [answers[row] for row in rows], measure)

    yield from _iter_totals(model, prompts, answers, batch_size, total)


def _padded(lines: Sequence[np.ndarray], width: int) -> mx.array:
    """Lines (A, K) as one (B, width, K)."""
    return mx.array(np.stack([np.pad(line, ((0, width - len(line)), (0, 0))) for line in lines]))


def _iter_totals(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    batch_size: int,
    total: Callable[[Sequence[int], Sequence[Any], Sequence[int]], list[float]],
) -> Iterator[tuple[int, float]]:
    """Yield (index, what `total` makes of rows, their caches and their prompts' last tokens) batch by batch."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1: {batch_size}")
    check_continuations(prompts, continuations)
    if not prompts:
        return
    batching = choose_batching(model)
    shared = common_prefix(prompts)
    prefix = prefill_prefix(model, prompts[0][:shared], batching)
    longest = max(len(prompt) + len(rest) for prompt, rest in zip(prompts, continuations, strict=True))
    limit = row_limit(batch_size, longest)
    # Equal prompts go together; then rows of like continuations: logits are computed for the longest of a batch.
    width: dict[tuple[int, ...], int] = {}
    for prompt, rest in zip(map(tuple, prompts), continuations, strict=True):
        width[prompt] = max(width.get(prompt, 0), len(rest))
    keys = [(len(prompt), width[prompt], prompt) for prompt in map(tuple, prompts)]
    waiting = sorted(range(len(prompts)), key=keys.__getitem__)
    while waiting:
        rows = next_rows(waiting, prompts, batching, free=limit, limit=limit)
        suffixes = [prompts[row][shared:] for row in rows]
        caches = _open_once(model, prefix, suffixes)
        totals = total(rows, caches, [suffix[-1] for suffix in suffixes])
        del caches  # before the next rows have theirs
        yield from zip(rows, totals, strict=True)


def continued_nats(
    model: nn.Module, caches: Sequence[Any], last: Sequence[int], continuations: Sequence[Sequence[int]]
) -> list[float]:
    """-ln p of each row's continuation; the caches hold all but the `last` token of each prompt, and are used up."""
    width = max(map(len, continuations))
    targets = mx.array([[*rest] + [0] * (width - len(rest)) for rest in continuations])

    def measure(logits: mx.array, part: slice) -> mx.array:
        target = targets[:, part, None]
        return mx.logsumexp(logits, axis=-1) - mx.take_along_axis(logits, target, axis=-1)[..., 0]

    return _total(model, caches, last, continuations, measure)


def _total(
    model: nn.Module,
    caches: Sequence[Any],
    last: Sequence[int],
    continuations: Sequence[Sequence[int]],
    measure: Callable[[mx.array, slice], mx.array],
) -> list[float]:
    """Sums over each row's places of what `measure` makes of float32 logits (B, P, V) and their part of the places."""
    width = max(map(len, continuations))
    # The last prompt token predicts the first of the continuation. Padding on the right is behind every real token.
    targets = [[*rest] + [0] * (width - len(rest)) for rest in continuations]
    inputs = [[first, *target[:-1]] for first, target in zip(last, targets, strict=True)]
    lengths = mx.array([len(rest) for rest in continuations])[:, None]
    totals = mx.zeros((len(last),))
    portion = max(1, LOGIT_POSITIONS // len(last))
    for start in range(0, width, portion):
        part = slice(start, start + portion)
        logits = model(mx.array([row[part] for row in inputs]), cache=caches).astype(mx.float32)  # (B, portion, V)
        real = mx.arange(start, start + logits.shape[1])[None] < lengths
        totals = totals + mx.where(real, measure(logits, part), 0.0).sum(axis=1)
        mx.eval(totals)
    return [float(total) for total in totals.tolist()]  # type: ignore[union-attr, arg-type]


def _open_once(model: nn.Module, prefix: Prefix, prompts: Sequence[Sequence[int]]) -> list[Any]:
    """Caches as Prefix.open_rows, with equal prompts computed once."""
    distinct = {prompt: place for place, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    if len(distinct) == len(prompts):
        return prefix.open_rows(model, prompts)
    caches = prefix.open_rows(model, list(distinct))
    return list(keep_rows(caches, [distinct[tuple(prompt)] for prompt in prompts]))


def check_continuations(prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> None:
    """Raises: ValueError for an empty prompt or continuation, or lists of different lengths."""
    if not all(prompts):
        raise ValueError("a prompt has no tokens")
    if len(prompts) != len(continuations) or not all(continuations):
        raise ValueError("every prompt needs a continuation of at least one token")
