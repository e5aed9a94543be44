"""What a run takes while its model answers questions: keys and values from shapes, the rest measured.

Keys and values of a row and token are as large in a slice's layer as in the whole model's. So the run's own questions
are asked of the thin slice, part by part (opening rows, the likelihood of references, a token of each answer), and what
its layers keep is exchanged for what all layers keep.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_lora.lora.inject import transformer_layers
from mlx_lora.memory.probe import Probe, Spent, measured
from mlx_lora.memory.rows import Asked
from mlx_lora.model.batching import Batching, choose_batching, common_prefix, prefill_prefix, row_limit
from mlx_lora.model.caches import copy_rows
from mlx_lora.model.generate import find_likeliest
from mlx_lora.model.likelihood import continued_nats
from mlx_lora.training.frozen import PassThrough

COLUMNS = 64  # keys and values grow by so many tokens at a time


@dataclass(frozen=True)
class _Beyond:
    """Bytes that the parts of answering take beside keys and values: however many layers, one runs at a time."""

    opening: int
    continuing: int
    stepping: int


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
        rows = 1 if batching is Batching.SINGLE else min(len(asked.prompts), row_limit(asked.rows, longest))
        each = sum(size * depth for size, depth in zip(_token_bytes(probe, batching), depths, strict=True))
        few = asked.longest(rows)
        return _worst(few, rows * each, _ask(model, few, batching), more_wait=rows < len(asked.prompts))
    finally:
        for layer in stand_ins:
            layer.__class__ = PassThrough
        model.train()


def _worst(asked: Asked, each: float, beyond: _Beyond, *, more_wait: bool) -> int:
    """The worst moment of all parts; `each`: bytes of keys and values of a column, in all rows and layers."""
    prompt, continued = max(map(len, asked.prompts)), max(map(len, asked.references or ()), default=0)
    opened, followed, whole = (
        each * _columns(tokens) for tokens in (prompt, prompt + continued, prompt + asked.max_tokens)
    )
    parts = [opened + beyond.opening]
    if continued:  # the likelihood of references is taken on a copy, where answers are wanted too
        parts.append((opened if asked.max_tokens else 0) + followed + beyond.continuing)
    if asked.max_tokens:  # rows that wait are opened beside those whose answers are long by then
        parts.append(whole + max(beyond.stepping, beyond.opening if more_wait else 0))
    return int(max(parts))


def _ask(model: nn.Module, asked: Asked, batching: Batching) -> _Beyond:
    """Ask for a token and for the references, a part after the other."""
    shared = common_prefix(asked.prompts)
    prefix = prefill_prefix(model, asked.prompts[0][:shared], batching)
    suffixes = [prompt[shared:] for prompt in asked.prompts]
    last = [suffix[-1] for suffix in suffixes]
    with measured() as opening:
        caches = prefix.open_rows(model, suffixes)
    there = _nbytes(caches)
    copies, continuing = [], Spent()
    if asked.references:
        with measured(continuing):
            copies = copy_rows(caches)
            continued_nats(model, copies, last, asked.references)
        continuing.nbytes -= _nbytes(copies)
        del copies
    with measured() as stepping:
        logits = model(mx.array(last)[:, None], cache=caches)[:, -1]
        mx.eval(find_likeliest(logits, asked.likeliest) if asked.likeliest else logits)
    grown = _nbytes(caches) - there
    return _Beyond(opening.nbytes - there, continuing.nbytes, stepping.nbytes - grown)


def _token_bytes(probe: Probe, batching: Batching) -> list[float]:
    """Keys and values of one token of one row, in a layer of each kind."""
    sizes = [_nbytes([layer]) for layer in prefill_prefix(probe.slice.model, [0] * COLUMNS, batching).caches]
    kinds = probe.slice.kinds
    found = []
    for kind in range(len(kinds.counts)):
        own = [size for size, one in zip(sizes, kinds.of, strict=False) if one == kind and size]
        found.append(max(own, default=0) / COLUMNS)
    return found


def _nbytes(caches: Sequence[Any]) -> int:
    arrays: list[tuple[str, mx.array]] = tree_flatten([cache.state for cache in caches])  # type: ignore[assignment]
    return sum(array.nbytes for _, array in arrays if isinstance(array, mx.array))


def _columns(tokens: int) -> int:
    return -(-tokens // COLUMNS) * COLUMNS
