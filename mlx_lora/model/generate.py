"""Prompts to answers, in batches, with the likelihood of given ones. Knows nothing of records, templates or metrics.

The tokens that all prompts begin with are computed once; finished rows leave the batch and waiting ones take their
place. The result for each prompt is that of generating it alone, to rounding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_lora.model.batching import choose_batching, common_prefix, next_rows, prefill_prefix, row_limit
from mlx_lora.model.caches import copy_rows, join_rows, keep_rows
from mlx_lora.model.likelihood import (
    Likeliest,
    answer_nats,
    check_continuations,
    continued_nats,
    iter_divergences,
    iter_nats,
)
from mlx_lora.model.stream import Piece, PromptCache, stream_answer

__all__ = [
    "Answer",
    "AnswerTokenizer",
    "Likeliest",
    "Piece",
    "PromptCache",
    "answer_nats",
    "find_likeliest",
    "generate_answers",
    "iter_answers",
    "iter_divergences",
    "iter_nats",
    "stream_answer",
]


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
    reference_nats: float | None = None  # -ln p of the prompt's reference, where one was given
    likeliest: Likeliest | None = None  # at each token and, where it stopped, at its end; where they were asked for


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
    references: Sequence[Sequence[int]] | None = None,
    likeliest: int = 0,
) -> Iterator[tuple[int, Answer]]:
    """Yield (index of the prompt, answer) as rows finish; otherwise as generate_answers.

    `references` are continuations, one a prompt, whose likelihood is wanted too: the prompt is computed once for both.
    `likeliest`: how many of the likeliest tokens to keep at each place, with their probabilities at temperature 1.
    """
    _check(prompts, max_tokens=max_tokens, batch_size=batch_size)
    if references is not None:
        check_continuations(prompts, references)
    if temperature < 0:
        raise ValueError(f"temperature must not be negative: {temperature}")
    if not prompts:
        return
    batching = choose_batching(model)
    shared = common_prefix(prompts)
    prefix = prefill_prefix(model, prompts[0][:shared], batching)
    longest = max([max_tokens, *map(len, references or ())])
    limit = row_limit(batch_size, max(map(len, prompts)) + longest)
    waiting = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # longest last, taken first
    keys = mx.random.split(mx.random.key(seed), len(prompts))
    batch = _OpenRows(model, temperature, keys, likeliest)
    while waiting or batch.live:
        new = next_rows(waiting, prompts, batching, free=limit - batch.live, limit=limit)
        if new:
            batch.drop_finished()
            suffixes = [prompts[index][shared:] for index in new]
            caches = prefix.open_rows(model, suffixes)
            nats: Sequence[float | None] = [None] * len(new)
            if references is not None:
                wanted = [references[index] for index in new]
                nats = continued_nats(model, copy_rows(caches), [suffix[-1] for suffix in suffixes], wanted)
            rows = [_Row(index, one) for index, one in zip(new, nats, strict=True)]
            batch.join(rows, caches, [suffix[-1] for suffix in suffixes])
            del caches  # the batch has them, or copies; held here they would outlive their rows
        for row, token in zip(batch.rows, batch.step(), strict=True):
            if row.finished:
                continue
            row.stopped = token in tokenizer.eos_ids
            if not row.stopped:
                row.tokens.append(token)
            row.finished = row.stopped or len(row.tokens) == max_tokens
            if row.finished:
                text = tokenizer.decode(row.tokens)
                yield (
                    row.index,
                    Answer(
                        text, row.tokens, row.stopped, len(prompts[row.index]), row.reference_nats, row.all_likeliest()
                    ),
                )
        # Dropping copies the caches: it pays once an eighth of the rows idle along.
        if 8 * (len(batch.rows) - batch.live) >= len(batch.rows):
            batch.drop_finished()


def _check(prompts: Sequence[Sequence[int]], *, max_tokens: int, batch_size: int) -> None:
    if max_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_tokens and batch_size must be at least 1: {max_tokens=}, {batch_size=}")
    if not all(prompts):
        raise ValueError("a prompt has no tokens")


@dataclass
class _Row:
    index: int
    reference_nats: float | None = None
    tokens: list[int] = field(default_factory=list)
    likeliest: list[Likeliest] = field(default_factory=list)  # one of (K,) a place
    stopped: bool = False
    finished: bool = False

    def all_likeliest(self) -> Likeliest | None:
        """Those of all places together."""
        if not self.likeliest:
            return None
        return Likeliest(*(np.stack([getattr(one, name) for one in self.likeliest]) for name in ("tokens", "shares")))


class _OpenRows:
    """The rows that are being answered, their caches and the token that each feeds next."""

    def __init__(self, model: nn.Module, temperature: float, keys: mx.array, likeliest: int) -> None:
        self.model = model
        self.temperature = temperature
        self.likeliest = likeliest
        self.keys = keys  # (number of prompts, 2): drawing follows from prompt and place, not from who shares the batch
        self.rows: list[_Row] = []
        self.caches: list[Any] = []
        self.last: list[int] = []

    @property
    def live(self) -> int:
        """Number of rows that are not finished."""
        return sum(not row.finished for row in self.rows)

    def join(self, rows: Sequence[_Row], caches: list[Any], last: Sequence[int]) -> None:
        """Let rows into the batch; `caches` hold their prompts but for the `last` tokens."""
        self.caches = join_rows(self.caches, caches) if self.rows else caches
        self.rows += rows
        self.last += last

    def step(self) -> list[int]:
        """Feed the last token of every row and return the likeliest next ones, or drawn ones.

        No look-ahead: a finished row would pay a whole step more, and answers to evaluate are short.
        """
        logits = self.model(mx.array(self.last)[:, None], cache=self.caches)[:, -1]
        if self.likeliest:
            tokens, shares = (np.array(array) for array in find_likeliest(logits, self.likeliest))
            for place, row in enumerate(self.rows):
                if not row.finished:
                    row.likeliest.append(Likeliest(tokens[place], shares[place]))
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


def find_likeliest(logits: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """The likeliest tokens (B, K) int32 of logits (B, V), in no order, and their probabilities, float32."""
    logits = logits.astype(mx.float32)
    count = min(count, logits.shape[-1])
    tokens = mx.argpartition(-logits, count - 1, axis=-1)[:, :count]
    shares = mx.exp(mx.take_along_axis(logits, tokens, axis=-1) - mx.logsumexp(logits, axis=-1, keepdims=True))
    return tokens.astype(mx.int32), shares
