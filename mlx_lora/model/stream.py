"""One answer as a stream of text, on a key/value cache that lives across turns. Knows nothing of messages."""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache

from mlx_lora.model.batching import PREFILL_TOKENS

Sampler = Callable[[mx.array], mx.array]  # logits (1, V) → token (1,)


class TextStream(Protocol):
    """Tokens in, finished text out."""

    def add(self, token: int) -> str:
        """The text that `token` finishes."""

    def finish(self) -> str:
        """What is left at the end."""


class StreamTokenizer(Protocol):
    """What streaming needs of a tokenizer."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """All tokens that end an answer."""

    def stream_decoder(self) -> TextStream:
        """A fresh decoder."""


@dataclass
class PromptCache:
    """What a model has read: `tokens` lists exactly the tokens that `layers` hold.

    Belongs to one model in one state: after another adapter was switched on, start a new one.
    """

    tokens: list[int] = field(default_factory=list)
    layers: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Piece:
    """A portion of an answer. Exactly one piece, the last, is `done`; it carries the rest of the text."""

    text: str
    token: int | None  # None on the last piece of an answer that max_tokens cut
    done: bool
    stopped: bool  # ended by an end token
    tokens: int  # generated so far, the end token not counted
    seconds: float  # since the prompt was read
    reused_tokens: int  # tokens of the prompt that the cache held already

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens a second, so far."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


def stream_answer(
    model: nn.Module,
    tokenizer: StreamTokenizer,
    prompt: Sequence[int],
    *,
    cache: PromptCache | None = None,
    max_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Generator[Piece, None, None]:
    """Stream the answer to `prompt`, computing only what `cache` does not hold, and leave the cache grown.

    Temperature 0 is greedy; otherwise tokens are drawn from the smallest set with probability `top_p`, by a key from
    `seed`. The last piece is `done`. Closing the generator, or an interrupt in it, leaves `cache` consistent.
    Raises: ValueError for an empty prompt or a setting out of range.
    """
    if not prompt:
        raise ValueError("the prompt has no tokens")
    if max_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"out of range: {max_tokens=}, {temperature=}, {top_p=}")
    sample = make_sampler(temperature, top_p, seed)
    return _stream(_Reader(model, cache if cache is not None else PromptCache()), tokenizer, prompt, max_tokens, sample)


def make_sampler(temperature: float, top_p: float, seed: int) -> Sampler:
    """A function from logits (1, V) to a token (1,): greedy at temperature 0, else drawn with its own random key."""
    if temperature == 0:
        return lambda logits: mx.argmax(logits, axis=-1)
    key = mx.random.key(seed)

    def draw(logits: mx.array) -> mx.array:
        nonlocal key
        key, now = mx.random.split(key)
        logits = logits.astype(mx.float32) / temperature
        if top_p == 1:
            return mx.random.categorical(logits, key=now)
        order = mx.argsort(-logits, axis=-1)
        ordered = mx.take_along_axis(logits, order, axis=-1)
        shares = mx.softmax(ordered, axis=-1)
        before = mx.cumsum(shares, axis=-1) - shares  # 0 for the likeliest token, which always stays
        place = mx.random.categorical(mx.where(before < top_p, ordered, -mx.inf), key=now)
        return mx.take_along_axis(order, place[:, None], axis=-1)[:, 0]

    return draw


def _stream(
    reader: "_Reader", tokenizer: StreamTokenizer, prompt: Sequence[int], max_tokens: int, sample: Sampler
) -> Generator[Piece, None, None]:
    decoder = tokenizer.stream_decoder()
    try:
        reused = reader.read(prompt[:-1])
        start = time.perf_counter()
        following = sample(reader.feed(mx.array([prompt[-1]])))
        mx.async_eval(following)
        for count in range(1, max_tokens + 1):
            current = following
            if count < max_tokens:
                # The next step is under way while this token is turned into text and shown.
                following = sample(reader.feed(current))
                mx.async_eval(following)
            token = _number(current)
            seconds = time.perf_counter() - start
            if token in tokenizer.eos_ids:
                yield Piece(decoder.finish(), token, True, True, count - 1, seconds, reused)
                return
            yield Piece(decoder.add(token), token, False, False, count, seconds, reused)
        yield Piece(decoder.finish(), None, True, False, max_tokens, seconds, reused)
    finally:
        reader.settle()


def _number(token: mx.array) -> int:
    return int(token.item())  # type: ignore[arg-type]


class _Reader:
    """Feeds tokens to the model and keeps account of them, so that an interrupt finds the cache consistent."""

    def __init__(self, model: nn.Module, cache: PromptCache) -> None:
        self.model = model
        self.cache = cache
        self._unlisted: list[mx.array] = []  # fed, perhaps not computed yet
        self._inside = False  # an interrupt now leaves some layers ahead of others

    def read(self, tokens: Sequence[int]) -> int:
        """Make the cache hold exactly `tokens`; return how many of them it held already."""
        cache = self.cache
        pairs = zip(cache.tokens, tokens, strict=False)
        common = next((place for place, (held, wanted) in enumerate(pairs) if held != wanted), None)
        if common is None:
            common = min(len(cache.tokens), len(tokens))
        self._inside = True
        surplus = len(cache.tokens) - common
        if not cache.layers or (surplus and not can_trim_prompt_cache(cache.layers)):
            self._forget()
            common = 0
        elif surplus:
            trim_prompt_cache(cache.layers, surplus)
            del cache.tokens[common:]
        self._inside = False
        for start in range(common, len(tokens), PREFILL_TOKENS):
            portion = list(tokens[start : start + PREFILL_TOKENS])
            self._forward(mx.array(portion))
            cache.tokens += portion
            self._inside = False
            mx.eval([layer.state for layer in cache.layers])  # the logits are never computed
        return common

    def feed(self, token: mx.array) -> mx.array:
        """Logits (1, V) after one more token (1,)."""
        logits = self._forward(token)
        self._unlisted.append(token)
        self._inside = False
        return logits[:, -1]

    def settle(self) -> None:
        """Bring the list of tokens up to the layers, or empty both after an interrupt in a forward pass or here."""
        try:
            if not self._inside:
                self.cache.tokens += [_number(token) for token in self._unlisted]
        except BaseException:
            self._inside = True
            raise
        finally:
            self._unlisted = []
            if self._inside:
                self._forget()

    def _forward(self, tokens: mx.array) -> mx.array:
        self._inside = True
        logits: mx.array = self.model(tokens[None], cache=self.cache.layers)
        return logits

    def _forget(self) -> None:
        self.cache.tokens.clear()
        self.cache.layers[:] = make_prompt_cache(self.model)
