"""What a run takes while its model answers questions: keys and values from shapes, the rest measured.

Keys and values of a row and token are as large in a slice's layer as in the whole model's. So the run's own questions
are asked of the thin slice, for one token, and what its layers keep is exchanged for what all layers keep.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_lora.lora.inject import transformer_layers
from mlx_lora.memory.probe import Probe, measured
from mlx_lora.memory.rows import Asked
from mlx_lora.model.batching import Batching, choose_batching, prefill_prefix, row_limit
from mlx_lora.model.generate import iter_answers, iter_nats
from mlx_lora.training.frozen import PassThrough

ROWS = 32  # at most together: what replay and retention ask for
COLUMNS = 64  # keys and values grow by so many tokens at a time


class Mute:
    """A tokenizer for answers that nobody reads."""

    eos_ids: frozenset[int] = frozenset()

    def decode(self, tokens: Sequence[int]) -> str:
        """Nothing."""
        return ""


@dataclass(frozen=True)
class Kept:
    """Bytes of keys and values: when the rows have just been opened, and when their answers are whole."""

    opened: int
    whole: int


class _Follower(PassThrough):
    """A stand-in whose cache keeps step: families make their masks from the first layer's."""

    def __call__(self, inputs: mx.array, *given: Any, **named: Any) -> mx.array:
        cache = named.get("cache", given[-1] if given else None)
        if cache is not None and hasattr(cache, "update_and_fetch"):
            nothing = mx.zeros((inputs.shape[0], 1, inputs.shape[1], 1), inputs.dtype)
            cache.update_and_fetch(nothing, nothing)
        return super().__call__(inputs)


def asking_bytes(probe: Probe, asked: Asked, depths: Sequence[int]) -> int:
    """What asking takes beyond the weights; `depths`: the whole model's layers of each kind. Before layers leave."""
    model = probe.slice.model
    stand_ins = [layer for layer in transformer_layers(model) if isinstance(layer, PassThrough)]
    model.eval()
    for layer in stand_ins:
        layer.__class__ = _Follower
    try:
        batching = choose_batching(model)
        longest = max(map(len, asked.prompts)) + max([asked.max_tokens, *map(len, asked.references or ())])
        rows = 1 if batching is Batching.SINGLE else min(len(asked.prompts), row_limit(ROWS, longest))
        few = asked.longest(rows)
        each = _token_bytes(probe, batching)
        here, there = (_kept(few, each, counts) for counts in (probe.slice.counts, depths))
        with measured() as spent:
            _ask(probe, few)
        return max(0, spent.nbytes - here.opened) + max(there.opened, there.whole)
    finally:
        for layer in stand_ins:
            layer.__class__ = PassThrough
        model.train()


def _ask(probe: Probe, asked: Asked) -> None:
    model, prompts = probe.slice.model, [list(prompt) for prompt in asked.prompts]
    if asked.max_tokens:
        for _ in iter_answers(model, Mute(), prompts, max_tokens=1, batch_size=ROWS, references=asked.references):
            pass
    elif asked.references:
        for _ in iter_nats(model, prompts, asked.references, batch_size=ROWS):
            pass


def _token_bytes(probe: Probe, batching: Batching) -> list[float]:
    """Keys and values of one token of one row, in a layer of each kind."""
    sizes = []
    for layer in prefill_prefix(probe.slice.model, [0] * COLUMNS, batching).caches:
        arrays: list[tuple[str, mx.array]] = tree_flatten(layer.state)  # type: ignore[assignment]
        sizes.append(sum(array.nbytes for _, array in arrays if isinstance(array, mx.array)))
    kinds = probe.slice.kinds
    found = []
    for kind in range(len(kinds.counts)):
        own = [size for size, one in zip(sizes, kinds.of, strict=False) if one == kind and size]
        found.append(max(own, default=0) / COLUMNS)
    return found


def _kept(asked: Asked, each: Sequence[float], counts: Sequence[int]) -> Kept:
    rows = len(asked.prompts) * sum(size * count for size, count in zip(each, counts, strict=True))
    prompt, continued = max(map(len, asked.prompts)), max(map(len, asked.references or ()), default=0)
    opened = _columns(prompt + continued) if continued else 0
    if asked.max_tokens:  # the likelihood of references is taken on a copy
        opened += _columns(prompt)
    return Kept(int(rows * opened), int(rows * _columns(prompt + asked.max_tokens)))


def _columns(tokens: int) -> int:
    return -(-tokens // COLUMNS) * COLUMNS
