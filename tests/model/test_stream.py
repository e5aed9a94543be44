"""Streaming on a cache that lives across turns: the answers of a fresh one, and never an inconsistent cache."""

import random
from collections.abc import Sequence
from typing import Any

import mlx_lora  # noqa: F401  (loads OpenBLAS before MLX)

import mlx.core as mx  # isort: skip
import mlx.nn as nn
import pytest

from mlx_lora.model import stream
from mlx_lora.model.generate import Piece, PromptCache, generate_answers, stream_answer
from mlx_lora.model.stream import make_sampler
from tests.model.test_generate import Numbers, Recorded, plain_answer
from tests.tiny import FAMILIES, tiny_model


class Words(Numbers):
    """A tokenizer whose decoder holds every other token back."""

    def stream_decoder(self) -> "Words":
        self.held: list[int] = []
        return self

    def add(self, token: int) -> str:
        self.held.append(token)
        return self.finish() if len(self.held) == 2 else ""

    def finish(self) -> str:
        text = "".join(f"<{token}>" for token in self.held)
        self.held = []
        return text


class Interrupted(Recorded):
    """Ctrl-C in the middle of the given call, after half of the layers."""

    def __init__(self, model: nn.Module, at: int) -> None:
        super().__init__(model)
        self.at = at

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        if len(self.shapes) + 1 == self.at:
            half = len(cache) // 2
            for layer in cache[:half]:
                layer.update_and_fetch(mx.zeros((1, 2, inputs.shape[1], 16)), mx.zeros((1, 2, inputs.shape[1], 16)))
            raise KeyboardInterrupt
        return super().__call__(inputs, cache)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    choose = random.Random(seed)
    return [choose.randrange(5, 320) for _ in range(length)]


def streamed(model: nn.Module, prompt: Sequence[int], cache: PromptCache | None, count: int = 6) -> list[Piece]:
    return list(stream_answer(model, Words(), prompt, cache=cache, max_tokens=count))


def numbers(pieces: Sequence[Piece]) -> list[int]:
    return [piece.token for piece in pieces if not piece.done and piece.token is not None]


def assert_consistent(cache: PromptCache) -> None:
    assert {getattr(layer, "offset", len(cache.tokens)) for layer in cache.layers} <= {len(cache.tokens)}


@pytest.mark.parametrize("family", FAMILIES)
def test_turns_on_one_cache_answer_as_fresh_ones(family: str) -> None:
    model = tiny_model(family)
    cache = PromptCache()
    prompt = prompt_of(9)
    for turn in range(3):
        expected, stopped = plain_answer(model, prompt, 6)
        pieces = streamed(model, prompt, cache)
        assert numbers(pieces) == expected
        assert pieces[-1].stopped is stopped
        assert_consistent(cache)
        prompt = prompt + expected + prompt_of(5, seed=turn + 1)
    # A third turn crosses the window of 16: what rotated out cannot be taken back, but going on needs no taking back.
    assert pieces[-1].reused_tokens > 0


@pytest.mark.parametrize("family", ["llama", "mistral", "mamba", "gemma3"])
def test_a_prompt_that_differs_earlier_answers_as_a_fresh_one(family: str) -> None:
    model = tiny_model(family)
    cache = PromptCache()
    for prompt in (prompt_of(30), prompt_of(30)[:12] + prompt_of(6, seed=5), prompt_of(30)[:4], prompt_of(8, seed=9)):
        expected, _ = plain_answer(model, prompt, 4)
        assert numbers(streamed(model, prompt, cache, 4)) == expected
        assert_consistent(cache)


def test_only_what_the_cache_does_not_hold_is_computed() -> None:
    model = Recorded(tiny_model())
    cache = PromptCache()
    streamed(model, [5, 6, 7, 8], cache, 2)
    assert model.shapes == [(1, 3), (1, 1), (1, 1)]
    held = list(cache.tokens)
    assert held[:4] == [5, 6, 7, 8]
    assert len(held) == 5
    model.shapes.clear()
    pieces = streamed(model, [*held, 30, 31], cache, 1)
    assert model.shapes == [(1, 1), (1, 1)]
    assert pieces[-1].reused_tokens == 5
    model.shapes.clear()
    pieces = streamed(model, [5, 6, 7, 8], cache, 1)  # the same question again: its last token is fed anew
    assert model.shapes == [(1, 1)]
    assert pieces[-1].reused_tokens == 3


def test_exactly_the_last_piece_is_done_and_the_texts_make_the_whole() -> None:
    model = tiny_model("llama_untied")
    prompt = [50, 8, 7]
    free = numbers(list(stream_answer(model, Words(frozenset()), prompt, max_tokens=5)))
    pieces = list(stream_answer(model, Words(frozenset({1, free[3]})), prompt, max_tokens=5))
    assert [piece.done for piece in pieces] == [False, False, False, True]
    assert "".join(piece.text for piece in pieces) == "".join(f"<{token}>" for token in free[:3])
    assert (pieces[-1].stopped, pieces[-1].token, pieces[-1].tokens) == (True, free[3], 3)

    cut = list(stream_answer(model, Words(frozenset()), prompt, max_tokens=3))
    assert [piece.done for piece in cut] == [False, False, False, True]
    assert (cut[-1].stopped, cut[-1].token, cut[-1].tokens) == (False, None, 3)
    assert "".join(piece.text for piece in cut) == "".join(f"<{token}>" for token in free[:3])
    assert cut[-1].seconds > 0
    assert cut[-1].tokens_per_second == pytest.approx(3 / cut[-1].seconds)


@pytest.mark.parametrize("family", ["llama", "mistral", "mamba"])
@pytest.mark.parametrize("pieces_seen", [0, 1, 3])
def test_closing_midway_leaves_a_cache_that_goes_on_rightly(family: str, pieces_seen: int) -> None:
    model = tiny_model(family)
    cache = PromptCache()
    stream = stream_answer(model, Words(), prompt_of(10), cache=cache, max_tokens=8)
    for _ in range(pieces_seen):
        next(stream)
    stream.close()
    assert_consistent(cache)
    assert len(cache.tokens) == (10 + pieces_seen if pieces_seen else 0)
    again = prompt_of(10) + prompt_of(3, seed=2)
    assert numbers(streamed(model, again, cache)) == plain_answer(model, again, 6)[0]


@pytest.mark.parametrize("at", [1, 2, 4])
def test_an_interrupt_inside_a_forward_pass_empties_the_cache(at: int) -> None:
    model = tiny_model()
    cache = PromptCache()
    with pytest.raises(KeyboardInterrupt):
        list(stream_answer(Interrupted(model, at), Words(), prompt_of(10), cache=cache, max_tokens=8))
    assert cache.tokens == []
    assert_consistent(cache)
    assert numbers(streamed(model, prompt_of(10), cache)) == plain_answer(model, prompt_of(10), 6)[0]


def test_an_interrupt_while_the_tokens_are_listed_empties_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """It left the layers ahead of the list: the next answer on that cache began from what it did not know of."""
    model = tiny_model()
    cache = PromptCache()
    pieces = stream_answer(model, Words(), prompt_of(10), cache=cache, max_tokens=8)
    next(pieces)

    def interrupted(token: mx.array) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stream, "_number", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pieces.close()
    assert cache.tokens == []
    assert_consistent(cache)
    assert numbers(streamed(model, prompt_of(10), cache)) == plain_answer(model, prompt_of(10), 6)[0]


def test_temperature_zero_is_the_batched_greedy_answer() -> None:
    model = tiny_model("qwen3")
    [answer] = generate_answers(model, Words(), [prompt_of(7)], max_tokens=6)
    assert numbers(streamed(model, prompt_of(7), None)) == answer.tokens


def test_a_seed_fixes_the_answer_and_global_randomness_stays_untouched() -> None:
    model = tiny_model()

    def sample(seed: int) -> list[int]:
        ends = Words(frozenset())
        return numbers(list(stream_answer(model, ends, [5, 6], max_tokens=12, temperature=1.5, seed=seed)))

    mx.random.seed(7)
    expected = mx.random.uniform(shape=(3,)).tolist()
    mx.random.seed(7)
    first = sample(1)
    assert mx.random.uniform(shape=(3,)).tolist() == expected
    assert sample(1) == first
    assert sample(2) != first


def test_top_p_draws_from_the_smallest_set_that_reaches_it() -> None:
    logits = mx.log(mx.array([[0.1, 0.5, 0.15, 0.25]]))

    def drawn(top_p: float, count: int = 300) -> set[int]:
        sample = make_sampler(1.0, top_p, seed=3)
        return {int(sample(logits).item()) for _ in range(count)}

    assert drawn(0.3) == {1}
    assert drawn(0.6) == {1, 3}
    assert drawn(0.8) == {1, 3, 2}
    assert drawn(1.0) == {0, 1, 2, 3}
    cold = make_sampler(0.01, 1.0, seed=3)
    assert {int(cold(logits).item()) for _ in range(50)} == {1}


def test_draws_follow_the_probabilities() -> None:
    logits = mx.log(mx.array([[0.2, 0.8]]))
    sample = make_sampler(1.0, 0.99, seed=0)
    ones = sum(int(sample(logits).item()) for _ in range(1000))
    assert 740 < ones < 860  # five standard deviations


@pytest.mark.parametrize("wrong", [{"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_settings_out_of_range_are_refused_before_anything_runs(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        stream_answer(tiny_model(), Words(), [5], **{"max_tokens": 1, **wrong})
    with pytest.raises(ValueError):
        stream_answer(tiny_model(), Words(), [], max_tokens=1)
