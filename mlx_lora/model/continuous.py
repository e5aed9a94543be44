"""Answers to many prompts at once on mlx-lm's BatchGenerator: rows join and leave a running batch.

Every row carries the number of its owner (an adapter, or None for the base) through the batch as a cache layer that
holds no keys: whoever filters, joins or splits the caches moves the owners too. Knows nothing of text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.generate import BatchGenerator, StopSequences
from mlx_lm.models.cache import LRUPromptCache, make_prompt_cache

from mlx_lora.errors import ModelError

Owner = int | None
Sampler = Callable[[mx.array], mx.array]  # ln p (B, V) → tokens (B,)

_PREFILL_TOKENS = 512  # of each waiting prompt between two tokens of the running answers
_PREFILL_ROWS = 8
_ROWS = 32
_ENTRIES = 4096  # of the prompt cache; what bounds it is its bytes


@dataclass(frozen=True)
class Token:
    """One more token of row `row`. end: "stop" for an end token, "length" where max_tokens are reached, else None."""

    row: int
    token: int
    logprobs: mx.array  # ln p of every token, (V,) float32, before temperature and top_p
    end: str | None

    def likeliest(self, count: int) -> list[tuple[int, float]]:
        """The `count` likeliest tokens in this place and their ln p, then this token and its own."""
        order = [int(each) for each in np.array(mx.argsort(-self.logprobs)[:count])]
        values = np.array(self.logprobs)
        return [(each, float(values[each])) for each in (*order, self.token)]


class ContinuousBatch:
    """The running batch of one model. All calls come from one thread."""

    def __init__(
        self,
        model: nn.Module,
        use_owners: Callable[[tuple[Owner, ...]], None],
        *,
        cache_bytes: int,
        most_rows: int = _ROWS,
    ) -> None:
        """use_owners: told whose rows the next forward pass holds. cache_bytes: budget for finished prompts.

        most_rows: that are answered at once (mlx-lm takes 8 at least); further ones wait.
        """
        self._most_rows = most_rows
        self._model = model
        self._owned = _OwnedModel(model, use_owners)
        self._finished = LRUPromptCache(max_size=_ENTRIES, max_bytes=cache_bytes)
        self._owners: dict[int, Owner] = {}
        self._stops: dict[frozenset[int], StopSequences] = {}
        self._generator = self._new_generator()

    @property
    def rows(self) -> int:
        """Rows that are being read or answered."""
        return len(self._owners)

    @property
    def cached_bytes(self) -> int:
        """Bytes of keys and values kept of finished rows."""
        return int(self._finished.nbytes)

    @property
    def running_bytes(self) -> int:
        """Bytes of keys and values of the rows in the batch."""
        return int(self._generator.prompt_cache_nbytes)

    def owners(self) -> set[Owner]:
        """Whose rows are in the batch."""
        return set(self._owners.values())

    def insert(
        self,
        prompt: Sequence[int],
        owner: Owner,
        *,
        max_tokens: int,
        ends: frozenset[int],
        sampler: Sampler | None = None,
    ) -> tuple[int, int]:
        """Let a row join; return its number and how many tokens of the prompt were read before, for the same owner.

        sampler None is greedy. Raises: ValueError for an empty prompt.
        """
        if not prompt:
            raise ValueError("the prompt has no tokens")
        tokens = list(prompt)
        layers, rest = self._finished.fetch_nearest_cache(owner, tokens)
        if not rest:  # all of it was read, and a token has to be fed
            layers, rest = self._finished.fetch_nearest_cache(owner, tokens[:-1])
            rest = [*rest, tokens[-1]]
        if layers is None:
            layers = make_prompt_cache(self._model)
        stops = self._stops.setdefault(ends, StopSequences([[end] for end in sorted(ends)]))
        reused = len(tokens) - len(rest)
        [row] = self._generator.insert(
            [rest],
            [max_tokens],
            caches=[[*layers, _Owners([owner])]],
            all_tokens=[tokens[:reused]],
            samplers=[sampler],
            stop_sequences=[stops],
        )
        self._owners[row] = owner
        return row, reused

    def step(self) -> list[Token]:
        """Read a portion of the new prompts and return one more token of every row that is being answered."""
        _, responses = self._generator.next()
        tokens = []
        for response in responses:
            tokens.append(Token(response.uid, response.token, response.logprobs, response.finish_reason))
            if response.finish_reason is not None:
                self._keep(self._owners.pop(response.uid), response.all_tokens, response.prompt_cache)
        return tokens

    def remove(self, row: int) -> None:
        """Let a row leave at once; what it has read is kept for others like it."""
        owner = self._owners.pop(row)
        for layers, tokens in self._generator.remove([row], return_prompt_caches=True).values():
            self._keep(owner, tokens, layers)

    def clear(self) -> None:
        """Let all rows leave and forget what was read: the way on after a step that failed."""
        self._generator.close()
        self._owners.clear()
        self._finished.trim_to(n_sequences=0)
        self._generator = self._new_generator()

    def close(self) -> None:
        """Give back what the batch changed in the process."""
        self._generator.close()

    def _new_generator(self) -> BatchGenerator:
        return BatchGenerator(
            self._owned,
            completion_batch_size=self._most_rows,
            prefill_batch_size=_PREFILL_ROWS,
            prefill_step_size=_PREFILL_TOKENS,
        )

    def _keep(self, owner: Owner, tokens: list[int], layers: list[Any]) -> None:
        layers = layers[:-1]
        if tokens and not any(layer.empty() for layer in layers):
            mx.eval([layer.state for layer in layers])  # or each would hold the whole batch's arrays
            self._finished.insert_cache(owner, list(tokens), layers)


def leave_thread() -> None:
    """Give back what MLX keeps for this thread, as its last act.

    Left to the end of the thread, the clean-up may meet an interpreter that ends, and aborts the process. Source:
    https://github.com/ml-explore/mlx/pull/4110 and 3395.
    """
    mx.clear_streams()


def refuse_unjoinable(model: nn.Module) -> None:
    """Raises: ModelError where mlx-lm has no way to put this family's caches into a running batch."""
    kinds = {type(layer).__name__ for layer in make_prompt_cache(model) if not hasattr(layer, "merge")}
    if kinds:
        family = getattr(model, "model_type", type(model).__name__)
        raise ModelError(
            f"{family} models cannot be served: mlx-lm cannot batch their caches ({', '.join(sorted(kinds))})",
            "`mlx-lora chat` and `mlx-lora eval` answer with them",
        )


def batches_rows(model: nn.Module) -> bool:
    """Whether rows of different lengths that share a batch get the tokens' likelihoods that each gets alone.

    Some families take one position, or one kind of mask, for all rows. Costs a few forward passes of four tokens.
    """
    prompts = [[5, 6, 7, 8], [6, 7, 8], [7, 8]]
    try:
        together = _first_logprobs(model, prompts)
    except (ValueError, TypeError, RuntimeError, AttributeError):
        return False  # shapes that do not broadcast, or a cache that does not know rows
    for prompt, shared in zip(prompts, together, strict=True):
        alone = model(mx.array([prompt]), cache=make_prompt_cache(model))[0, -1].astype(mx.float32)
        alone = alone - mx.logsumexp(alone)
        if not (mx.abs(shared - alone).max() <= 0.02 * (alone.max() - alone.min())).item():
            return False
    return True


def _first_logprobs(model: nn.Module, prompts: list[list[int]]) -> list[mx.array]:
    batch = ContinuousBatch(model, lambda owners: None, cache_bytes=0)
    rows = [batch.insert(prompt, None, max_tokens=2, ends=frozenset())[0] for prompt in prompts]
    found: dict[int, mx.array] = {}
    while len(found) < len(rows):
        for token in batch.step():
            found.setdefault(token.row, token.logprobs)
    batch.close()
    return [found[row] for row in rows]


class _OwnedModel:
    """The model as the generator calls it: takes the owners off the caches, says them, and gives float32 logits.

    float32, because in half precision ln p ties where the logits did not, and greedy would take another token.
    """

    def __init__(self, model: nn.Module, use_owners: Callable[[tuple[Owner, ...]], None]) -> None:
        self._model = model
        self._use_owners = use_owners

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        *layers, owners = cache
        self._use_owners(tuple(owners.numbers))
        logits: mx.array = self._model(tokens, cache=layers)
        return logits.astype(mx.float32)


class _Owners:
    """Whose row each is, in the form of a cache layer, so that it follows the batch as the keys and values do."""

    nbytes = 0
    state: tuple[()] = ()

    def __init__(self, numbers: list[Owner]) -> None:
        self.numbers = numbers

    def merge(self, layers: Sequence["_Owners"]) -> "_Owners":
        """One layer for the rows of all `layers`."""
        return _Owners([number for layer in layers for number in layer.numbers])

    def extend(self, other: "_Owners") -> None:
        """Append the rows of `other`."""
        self.numbers = self.numbers + other.numbers

    def filter(self, keep: Sequence[int]) -> None:
        """Leave only these rows."""
        self.numbers = [self.numbers[place] for place in keep]

    def extract(self, place: int) -> "_Owners":
        """The layer of one row."""
        return _Owners([self.numbers[place]])

    def prepare(self, **padding: Any) -> None:
        """Padding of prompts moves no row."""

    def finalize(self) -> None:
        """Nothing was padded."""
