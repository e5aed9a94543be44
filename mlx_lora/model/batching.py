"""How rows of a model may share a forward pass, and the prefilled prefix that they begin with. Knows nothing of text.

Most mlx-lm models take a mask and a position for each row; some fold query heads so that masks need a fifth axis; some
take positions as plain ints, so that only rows of equal length go together; state-space models take one row at a time.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from mlx_lora.model.caches import RowCache, RowLayout

PREFILL_TOKENS = 2048  # in one forward pass: bounded work between evaluations
CACHED_TOKENS = 32768  # over all rows of a batch: a few GB of keys and values for a 7B model


class Batching(Enum):
    """Which rows go through a model together."""

    MASKED = "rows of any lengths"
    FOLDED = "rows of any lengths, masks with a fifth axis"
    EQUAL_LENGTHS = "rows of equal lengths"
    SINGLE = "one row at a time"

    @property
    def any_lengths(self) -> bool:
        """Whether rows of different lengths share a batch."""
        return self in (Batching.MASKED, Batching.FOLDED)


# Families whose batched tokens the tests compare with the plain loop; all others are probed.
TESTED: dict[str, Batching] = {
    "llama": Batching.MASKED,
    "mistral": Batching.MASKED,
    "qwen2": Batching.MASKED,
    "qwen3": Batching.MASKED,
    "gemma2": Batching.FOLDED,
    "gemma3_text": Batching.MASKED,
    "phi3": Batching.MASKED,
    "gpt2": Batching.MASKED,
    "olmo2": Batching.MASKED,
    "mixtral": Batching.MASKED,
}


def choose_batching(model: nn.Module) -> Batching:
    """The fastest way of batching that is exact for this model: known for tested families, probed for others."""
    layers = make_prompt_cache(model)
    if not all(_is_plain(layer) for layer in layers):
        return Batching.SINGLE
    known = TESTED.get(getattr(model, "model_type", ""))
    return known if known is not None else probe_batching(model)


def batching_note(model: nn.Module) -> str | None:
    """One sentence for the user where answers are not generated in full batches, else None."""
    batching = choose_batching(model)
    if batching.any_lengths:
        return None
    family = getattr(model, "model_type", type(model).__name__)
    return f"{family} models cannot mix rows of different lengths: answers are generated with {batching.value} (slower)"


def probe_batching(model: nn.Module) -> Batching:
    """Try four tokens: a padded row in a batch of three must give the logits of the same row alone."""
    tokens = [5, 6, 7, 8]
    alone = model(mx.array([tokens[1:]]), cache=make_prompt_cache(model))[0, -1].astype(mx.float32)
    tolerance = 0.02 * (alone.max() - alone.min())
    for batching in (Batching.MASKED, Batching.FOLDED):
        caches = new_row_caches(model, RowLayout(0, (0, 1, 2), 5 if batching is Batching.FOLDED else 4))
        try:
            model(mx.array([tokens[:3], [0, *tokens[1:3]], [0, 0, tokens[2]]]), cache=caches)
            padded = model(mx.array([tokens[3:]] * 3), cache=caches)[1, -1].astype(mx.float32)
            if mx.abs(padded - alone).max() <= tolerance:
                return batching
        except (ValueError, TypeError, RuntimeError):
            # A shape that does not broadcast, or a position taken for an int: this layout is not for this model.
            continue
    return Batching.EQUAL_LENGTHS


def new_row_caches(model: nn.Module, layout: RowLayout) -> list[RowCache]:
    """Empty caches, one for each that the model asks for, with its sliding windows."""
    return [RowCache(layout, getattr(layer, "max_size", None)) for layer in make_prompt_cache(model)]


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all rows share, leaving at least one token of its own to each."""
    limit = min(map(len, rows)) - 1
    first, last = min(map(list, rows)), max(map(list, rows))  # what the outermost in order share, all share
    return next((place for place in range(limit) if first[place] != last[place]), limit)


@dataclass(frozen=True)
class Prefix:
    """The tokens that all prompts begin with, computed once."""

    length: int
    caches: list[Any]
    batching: Batching

    def open_rows(self, model: nn.Module, rows: Sequence[Sequence[int]]) -> list[Any]:
        """Caches that hold the prefix and all but the last token of each row.

        `rows` are the tokens after the prefix. With EQUAL_LENGTHS they must be equally long; with SINGLE there is one.
        """
        width = max(len(row) for row in rows)
        gaps = tuple(width - len(row) for row in rows)
        if self.batching is Batching.SINGLE:
            caches = copy.deepcopy(self.caches)
        else:
            layout = RowLayout(self.length, gaps, 5 if self.batching is Batching.FOLDED else 4)
            caches = [cache.spread(layout) for cache in self.caches]
        prefill(model, [[0] * gap + list(row[:-1]) for gap, row in zip(gaps, rows, strict=True)], caches)
        return caches


def prefill_prefix(model: nn.Module, tokens: Sequence[int], batching: Batching) -> Prefix:
    """Compute the keys and values of the shared tokens for one row."""
    single = batching is Batching.SINGLE
    caches = make_prompt_cache(model) if single else new_row_caches(model, RowLayout(len(tokens), (0,)))
    prefill(model, [list(tokens)], caches)
    return Prefix(len(tokens), caches, batching)


def prefill(model: nn.Module, rows: Sequence[Sequence[int]], caches: Sequence[Any]) -> None:
    """Feed rows of equal length (B, T) into the caches, in bounded portions, without computing logits."""
    width = len(rows[0])
    portion = max(16, PREFILL_TOKENS // len(rows))
    for start in range(0, width, portion):
        # The logits are never evaluated, so the vocabulary projection does not run.
        model(mx.array([row[start : start + portion] for row in rows]), cache=caches)
        mx.eval([cache.state for cache in caches])


def row_limit(batch_size: int, longest: int) -> int:
    """Rows that may be open at once when the longest reaches `longest` tokens."""
    return max(1, min(batch_size, CACHED_TOKENS // longest))


def next_rows(
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


def _is_plain(layer: Any) -> bool:
    return type(layer) is KVCache or (type(layer) is RotatingKVCache and layer.keep == 0)
