"""Prompts to answers and to log-likelihoods, in batches. Knows nothing of records, templates or metrics.

The tokens that all prompts begin with are computed once; finished rows leave the batch and waiting ones take their
place. The result for each prompt is that of generating it alone, to rounding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn

from mlx_lora.model.batching import Batching, Prefix, choose_batching, common_prefix, prefill_prefix, row_limit
from mlx_lora.model.caches import join_rows, keep_rows
from mlx_lora.model.stream import Piece, PromptCache, stream_answer

__all__ = [
    "Answer",
    "AnswerTokenizer",
    "Piece",
    "PromptCache",
    "answer_nats",
    "generate_answers",
    "iter_answers",
    "iter_nats",
    "stream_answer",
]

_LOGIT_POSITIONS = 512  # rows × tokens whose logits are in memory at once


class AnswerTokenizer(Protocol):
    """What generating needs of a tokenizer."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """All tokens that end an answer."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of these tokens."""


@dataclass(frozen=True)
class Answer:
    """An answer; text and tokens without the end token."""

    text: str
    tokens: list[int]
    stopped: bool  # ended by an end token, not by max_tokens
    prompt_tokens: int


def generate_answers(
    model: nn.Module,
    tokenizer: AnswerTokenizer,
    prompts: Sequence[list[int]],
    *,
    max_tokens: int,
    batch_size: int = 32,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Answer]:
    """Answers in the order of the prompts: greedy at temperature 0, else each drawn with a random key of its own.

    Raises: ValueError for an empty prompt, max_tokens or batch_size below 1, or a negative temperature.
    """
    settings: dict[str, Any] = {"batch_size": batch_size, "temperature": temperature, "seed": seed}
    answers = dict(iter_answers(model, tokenizer, prompts, max_tokens=max_tokens, **settings))
    return [answers[index] for index in range(len(prompts))]


def iter_answers(
    model: nn.Module,
    tokenizer: AnswerTokenizer,
    prompts: Sequence[list[int]],
    *,
    max_tokens: int,
    batch_size: int = 32,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[tuple[int, Answer]]:
    """Yield (index of the prompt, answer) as rows finish; otherwise as generate_answers."""
    _check(prompts, max_tokens=max_tokens, batch_size=batch_size)
    if temperature < 0:
        raise ValueError(f"temperature must not be negative: {temperature}")
    if not prompts:
        return
    batching = choose_batching(model)
    shared = common_prefix(prompts)
    prefix = prefill_prefix(model, prompts[0][:shared], batching)
    limit = row_limit(batch_size, max(map(len, prompts)) + max_tokens)
    waiting = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # longest last, taken first
    keys = mx.random.split(mx.random.key(seed), len(prompts))
    batch = _OpenRows(model, temperature, keys)
    while waiting or batch.live:
        new = _next_rows(waiting, prompts, batching, free=limit - batch.live, limit=limit)
        if new:
            batch.drop_finished()
            batch.join(prefix, new, [prompts[index][shared:] for index in new])
        for row, token in zip(batch.rows, batch.step(), strict=True):
            if row.finished:
                continue
            row.stopped = token in tokenizer.eos_ids
            if not row.stopped:
                row.tokens.append(token)
            row.finished = row.stopped or len(row.tokens) == max_tokens
            if row.finished:
                answer = Answer(tokenizer.decode(row.tokens), row.tokens, row.stopped, len(prompts[row.index]))
                yield row.index, answer
        # Dropping copies the caches: it pays once an eighth of the rows idle along.
        if 8 * (len(batch.rows) - batch.live) >= len(batch.rows):
            batch.drop_finished()


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
    _check(prompts, max_tokens=1, batch_size=batch_size)
    if len(prompts) != len(continuations) or not all(continuations):
        raise ValueError("every prompt needs a continuation of at least one token")
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
        rows = _next_rows(waiting, prompts, batching, free=limit, limit=limit)
        suffixes = [prompts[row][shared:] for row in rows]
        totals = _batch_nats(model, prefix, suffixes, [continuations[row] for row in rows])
        yield from ((row, (total, len(continuations[row]))) for row, total in zip(rows, totals, strict=True))


def _batch_nats(
    model: nn.Module, prefix: Prefix, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> list[float]:
    caches = _open_once(model, prefix, prompts)
    width = max(map(len, continuations))
    # The last prompt token predicts the first of the continuation. Padding on the right is behind every real token.
    targets = [[*rest] + [0] * (width - len(rest)) for rest in continuations]
    inputs = [[prompt[-1], *target[:-1]] for prompt, target in zip(prompts, targets, strict=True)]
    lengths = mx.array([len(rest) for rest in continuations])[:, None]
    totals = mx.zeros((len(prompts),))
    portion = max(1, _LOGIT_POSITIONS // len(prompts))
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


def _check(prompts: Sequence[Sequence[int]], *, max_tokens: int, batch_size: int) -> None:
    if max_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_tokens and batch_size must be at least 1: {max_tokens=}, {batch_size=}")
    if not all(prompts):
        raise ValueError("a prompt has no tokens")


@dataclass
class _Row:
    index: int
    tokens: list[int] = field(default_factory=list)
    stopped: bool = False
    finished: bool = False


class _OpenRows:
    """The rows that are being answered, their caches and the token that each feeds next."""

    def __init__(self, model: nn.Module, temperature: float, keys: mx.array) -> None:
        self.model = model
        self.temperature = temperature
        self.keys = keys  # (number of prompts, 2): drawing follows from prompt and place, not from who shares the batch
        self.rows: list[_Row] = []
        self.caches: list[Any] = []
        self.last: list[int] = []

    @property
    def live(self) -> int:
        """Number of rows that are not finished."""
        return sum(not row.finished for row in self.rows)

    def join(self, prefix: Prefix, indices: Sequence[int], suffixes: Sequence[Sequence[int]]) -> None:
        """Prefill these rows and let them into the batch."""
        caches = prefix.open_rows(self.model, suffixes)
        self.caches = join_rows(self.caches, caches) if self.rows else caches
        self.rows += [_Row(index) for index in indices]
        self.last += [suffix[-1] for suffix in suffixes]

    def step(self) -> list[int]:
        """Feed the last token of every row and return the likeliest next ones, or drawn ones.

        No look-ahead: a finished row would pay a whole step more, and answers to evaluate are short.
        """
        logits = self.model(mx.array(self.last)[:, None], cache=self.caches)[:, -1]
        if self.temperature > 0:
            logits = logits.astype(mx.float32) / self.temperature + self._noise(logits.shape[-1])
        self.last = mx.argmax(logits, axis=-1).tolist()  # type: ignore[assignment]
        return self.last

    def _noise(self, vocabulary: int) -> mx.array:
        """Gumbel noise (B, V): the greatest noisy logit is a draw from their softmax."""
        keys = [mx.random.split(self.keys[row.index], len(row.tokens) + 1)[-1] for row in self.rows]
        return mx.stack([mx.random.gumbel((vocabulary,), key=key) for key in keys])

    def drop_finished(self) -> None:
        """Let finished rows leave the batch."""
        keep = [place for place, row in enumerate(self.rows) if not row.finished]
        if len(keep) == len(self.rows):
            return
        self.caches = keep_rows(self.caches, keep) if keep else []
        self.rows = [self.rows[place] for place in keep]
        self.last = [self.last[place] for place in keep]


def _next_rows(
    waiting: list[int], prompts: Sequence[Sequence[int]], batching: Batching, *, free: int, limit: int
) -> list[int]:
    """Take the rows that enter the batch now off the end of `waiting`."""
    if batching is Batching.SINGLE:
        free = 1 if free == limit else 0
    elif batching is Batching.EQUAL_LENGTHS:
        last = len(prompts[waiting[-1]]) if waiting else 0
        alike = sum(len(prompts[index]) == last for index in waiting)
        free = min(free, alike) if free == limit else 0
    elif free < limit and free < -(-limit // 4):
        free = 0  # a prefill for a row or two costs as much as for a quarter of the batch
    taken = waiting[len(waiting) - min(free, len(waiting)) :]
    del waiting[len(waiting) - len(taken) :]
    return taken
