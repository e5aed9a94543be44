"""How likely a model finds given continuations of prompts, in batches. Knows nothing of records or templates."""

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_lora.model.batching import Prefix, choose_batching, common_prefix, next_rows, prefill_prefix, row_limit
from mlx_lora.model.caches import keep_rows

LOGIT_POSITIONS = 512  # rows × tokens whose logits are in memory at once


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
        wanted = [continuations[row] for row in rows]
        totals = continued_nats(model, caches, [suffix[-1] for suffix in suffixes], wanted)
        del caches  # before the next rows have theirs
        yield from ((row, (total, len(continuations[row]))) for row, total in zip(rows, totals, strict=True))


def continued_nats(
    model: nn.Module, caches: Sequence[Any], last: Sequence[int], continuations: Sequence[Sequence[int]]
) -> list[float]:
    """-ln p of each row's continuation; the caches hold all but the `last` token of each prompt, and are used up."""
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
        target = mx.array([row[part] for row in targets])
        losses = mx.logsumexp(logits, axis=-1) - mx.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        real = mx.arange(start, start + target.shape[1])[None] < lengths
        totals = totals + mx.where(real, losses, 0.0).sum(axis=1)
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
