"""Batched answers and log-likelihoods equal those of one row at a time, for every family."""

import random
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import mlx_lora  # noqa: F401  (loads OpenBLAS before MLX)

import mlx.core as mx  # isort: skip
import mlx.nn as nn
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache

from mlx_lora.model.batching import (
    TESTED,
    Batching,
    Prefix,
    batching_note,
    choose_batching,
    common_prefix,
    probe_batching,
    row_limit,
)
from mlx_lora.model.caches import RowCache, RowLayout, join_rows, keep_rows
from mlx_lora.model.generate import answer_nats, generate_answers, iter_answers, iter_divergences
from tests.divergence import plain_divergence
from tests.tiny import FAMILIES, TRANSFORMERS, tiny_model

ENDS = frozenset({2, 4, *range(9, 21)})


class Numbers:
    """A tokenizer whose text is the token numbers."""

    def __init__(self, ends: frozenset[int] = ENDS) -> None:
        self.eos_ids = ends

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(map(str, tokens))


class Recorded(nn.Module):
    """Passes calls through and notes the shape of every input."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.shapes: list[tuple[int, ...]] = []

    @property
    def layers(self) -> Any:
        return self.model.layers

    @property
    def model_type(self) -> str:
        return str(self.model.model_type)

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        self.shapes.append(inputs.shape)
        return self.model(inputs, cache=cache)


class IntegerPositions(Recorded):
    """A family that nobody tested and that takes positions for plain ints."""

    model_type = "unheard-of"

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        for layer in cache:
            if not isinstance(layer.offset, int):
                raise TypeError("an integer is required")
        return super().__call__(inputs, cache)


def plain_answer(model: nn.Module, prompt: list[int], max_tokens: int) -> tuple[list[int], bool]:
    """mlx-lm's own greedy loop, with a look at how near the second likeliest token was."""
    tokens: list[int] = []
    for token, logprobs in generate_step(mx.array(prompt), model, max_tokens=max_tokens):
        best = mx.sort(logprobs)[-2:]
        assert (best[1] - best[0]).item() > 1e-4, "a near tie: rounding may flip it, choose another seed"
        if token in ENDS:
            return tokens, True
        tokens.append(token)
        if len(tokens) == max_tokens:
            break
    return tokens, False


def prompts_with(shared: int, count: int, seed: int, longest: int = 12) -> list[list[int]]:
    choose = random.Random(seed)
    start = [choose.randrange(5, 320) for _ in range(shared)]
    return [start + [choose.randrange(5, 320) for _ in range(choose.randrange(1, longest))] for _ in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shared", [0, 24])
def test_batched_answers_are_those_of_mlx_lm_alone(family: str, shared: int) -> None:
    # The window of sliding layers is 16: it is crossed inside the prefix, in the rows, and while decoding.
    model = tiny_model(family)
    prompts = prompts_with(shared, count=7, seed=1 + shared)
    expected = [plain_answer(model, prompt, 9) for prompt in prompts]
    answers = generate_answers(model, Numbers(), prompts, max_tokens=9, batch_size=3)
    assert [(answer.tokens, answer.stopped) for answer in answers] == expected
    assert [answer.prompt_tokens for answer in answers] == [len(prompt) for prompt in prompts]
    assert [answer.text for answer in answers] == [" ".join(map(str, tokens)) for tokens, _ in expected]


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_the_probe_finds_what_is_known_of_each_family(family: str) -> None:
    model = tiny_model(family)
    assert probe_batching(model) is TESTED[model.model_type]
    assert choose_batching(model) is (Batching.FOLDED if family == "gemma2" else Batching.MASKED)
    assert batching_note(model) is None


def test_a_state_space_model_answers_one_row_at_a_time_and_says_so() -> None:
    model = tiny_model("mamba")
    assert choose_batching(model) is Batching.SINGLE
    assert batching_note(model) == (
        "mamba models cannot mix rows of different lengths: answers are generated with one row at a time (slower)"
    )


def test_a_family_with_integer_positions_is_batched_by_equal_lengths() -> None:
    model = IntegerPositions(tiny_model())
    assert choose_batching(model) is Batching.EQUAL_LENGTHS
    assert "rows of equal lengths" in (batching_note(model) or "")
    prompts = prompts_with(6, count=9, seed=3, longest=4)
    expected = [plain_answer(model.model, prompt, 6) for prompt in prompts]
    answers = generate_answers(model, Numbers(), prompts, max_tokens=6)
    assert [(answer.tokens, answer.stopped) for answer in answers] == expected
    rests = prompts_with(0, count=9, seed=4, longest=5)
    expected_nats = [plain_nats(model.model, prompt, rest) for prompt, rest in zip(prompts, rests, strict=True)]
    assert [nats for nats, _ in answer_nats(model, prompts, rests)] == pytest.approx(expected_nats, rel=1e-4)


def test_a_model_that_ignores_masks_is_not_batched_by_masks() -> None:
    class Unmasked(Recorded):
        model_type = "unheard-of"

        def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
            for layer in cache:
                layer.make_mask = lambda count, **_: "causal" if count > 1 else None
            return super().__call__(inputs, cache)

    assert probe_batching(Unmasked(tiny_model())) is Batching.EQUAL_LENGTHS


def test_the_shared_prefix_is_computed_once_and_finished_rows_leave() -> None:
    model = Recorded(tiny_model("llama_untied"))
    prompts = [[7] * 20 + [30 + 20 * row] * 3 for row in range(8)]
    answers = generate_answers(model, Numbers(frozenset({2})), prompts, max_tokens=4)
    # Prefix, then the rows but for their last token, then one token of each row a step.
    assert model.shapes == [(1, 20), (8, 2), (8, 1), (8, 1), (8, 1), (8, 1)]
    assert all(len(answer.tokens) == 4 and not answer.stopped for answer in answers)

    firsts = [answer.tokens[0] for answer in answers]
    end = firsts[0]
    assert 0 < firsts.count(end) < 8, "choose prompts whose answers begin differently"
    model.shapes.clear()
    ended = generate_answers(model, Numbers(frozenset({end})), prompts, max_tokens=2)
    assert [answer.stopped and not answer.tokens for answer in ended] == [first == end for first in firsts]
    assert model.shapes == [(1, 20), (8, 2), (8, 1), (8 - firsts.count(end), 1)]


def test_waiting_rows_take_the_places_of_finished_ones() -> None:
    model = Recorded(tiny_model())
    prompts = prompts_with(4, count=10, seed=5)
    generate_answers(model, Numbers(frozenset({2})), prompts, max_tokens=3, batch_size=4)
    decoding = [shape[0] for shape in model.shapes[1:] if shape[1] == 1]
    assert max(decoding) == 4
    assert sum(decoding) >= 30


def test_every_end_token_stops_an_answer() -> None:
    model = tiny_model("llama_untied")
    tokens = distinct_start(model, [50, 8, 7])
    for place, end in enumerate(tokens):
        for ends in ({end}, {end, 319}):
            [answer] = generate_answers(model, Numbers(frozenset(ends)), [[50, 8, 7]], max_tokens=10)
            assert (answer.tokens, answer.stopped) == (tokens[:place], True)


def test_an_end_token_as_the_last_allowed_one_counts_as_stopped() -> None:
    model = tiny_model("llama_untied")
    tokens = distinct_start(model, [50, 8, 7])
    last = len(tokens) - 1
    ends = Numbers(frozenset({tokens[last]}))
    [answer] = generate_answers(model, ends, [[50, 8, 7]], max_tokens=last + 1)
    assert (answer.tokens, answer.stopped) == (tokens[:last], True)
    [answer] = generate_answers(model, ends, [[50, 8, 7]], max_tokens=last)
    assert (answer.tokens, answer.stopped) == (tokens[:last], False)


def distinct_start(model: nn.Module, prompt: list[int]) -> list[int]:
    """The free greedy answer up to its first repeated token."""
    tokens = [token for token, _ in generate_step(mx.array(prompt), model, max_tokens=12)]
    start = next((place for place, token in enumerate(tokens) if token in tokens[:place]), len(tokens))
    assert start >= 3
    return tokens[:start]


def test_answers_are_yielded_as_they_finish_and_each_once() -> None:
    model = tiny_model()
    prompts = prompts_with(3, count=6, seed=6)
    found = list(iter_answers(model, Numbers(), prompts, max_tokens=5, batch_size=2))
    assert sorted(index for index, _ in found) == list(range(6))


def test_equal_prompts_and_single_prompts_are_answered() -> None:
    model = tiny_model()
    expected, _ = plain_answer(model, [11, 12, 13], 5)
    assert [answer.tokens for answer in generate_answers(model, Numbers(), [[11, 12, 13]] * 3, max_tokens=5)] == (
        [expected] * 3
    )
    assert generate_answers(model, Numbers(), [], max_tokens=5) == []
    one, _ = plain_answer(model, [11], 5)
    assert generate_answers(model, Numbers(), [[11]], max_tokens=5)[0].tokens == one


@pytest.mark.parametrize(("prompts", "max_tokens", "batch_size"), [([[]], 5, 1), ([[1]], 0, 1), ([[1]], 5, 0)])
def test_nonsense_is_refused(prompts: list[list[int]], max_tokens: int, batch_size: int) -> None:
    with pytest.raises(ValueError):
        generate_answers(tiny_model(), Numbers(), prompts, max_tokens=max_tokens, batch_size=batch_size)


def test_a_quantized_model_gives_the_answers_of_mlx_lm() -> None:
    model = tiny_model(bits=4)
    prompts = prompts_with(5, count=4, seed=8)
    expected = [plain_answer(model, prompt, 5)[0] for prompt in prompts]
    assert [answer.tokens for answer in generate_answers(model, Numbers(), prompts, max_tokens=5)] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_log_likelihoods_are_those_of_a_plain_forward_pass(family: str) -> None:
    model = tiny_model(family)
    prompts = prompts_with(18, count=5, seed=2)
    rests = prompts_with(0, count=5, seed=3, longest=9)
    expected = [(plain_nats(model, prompt, rest), len(rest)) for prompt, rest in zip(prompts, rests, strict=True)]
    found = answer_nats(model, prompts, rests, batch_size=3)
    assert [tokens for _, tokens in found] == [tokens for _, tokens in expected]
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], rel=2e-4)


def plain_nats(model: nn.Module, prompt: list[int], rest: list[int]) -> float:
    tokens = mx.array([prompt + rest])
    logits = model(tokens[:, :-1], cache=make_prompt_cache(model)).astype(mx.float32)
    losses = nn.losses.cross_entropy(logits, tokens[:, 1:])[0, len(prompt) - 1 :]
    return float(losses.sum().item())


def test_long_continuations_are_scored_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    prompts, rests = prompts_with(3, count=3, seed=1), prompts_with(0, count=3, seed=2, longest=30)
    whole = [nats for nats, _ in answer_nats(model, prompts, rests)]
    monkeypatch.setattr("mlx_lora.model.likelihood.LOGIT_POSITIONS", 6)
    assert [nats for nats, _ in answer_nats(model, prompts, rests)] == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "mamba"])
@pytest.mark.parametrize("likeliest", [8, 320])  # of a vocabulary of 320
def test_divergences_are_those_of_plain_forward_passes(
    family: str, likeliest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = tiny_model(family), tiny_model(family, seed=1)
    prompts = prompts_with(18, count=5, seed=2)
    end = generate_answers(first, Numbers(frozenset()), prompts[:1], max_tokens=4)[0].tokens[3]
    answers = dict(iter_answers(first, Numbers(frozenset({end})), prompts, max_tokens=9, likeliest=likeliest))
    assert answers[0].stopped
    said = [[*answers[row].tokens, 2][: len(answers[row].likeliest.tokens)] for row in range(5)]
    expected = [answers[row].likeliest for row in range(5)]
    monkeypatch.setattr("mlx_lora.model.likelihood.LOGIT_POSITIONS", 12)
    found = dict(iter_divergences(other, prompts, said, expected, batch_size=3))
    plain = [plain_divergence(other, prompts[row], answers[row]) for row in range(5)]
    assert [found[row] for row in range(5)] == pytest.approx(plain, rel=2e-4)
    assert min(plain) > 1e-3
    own = dict(iter_divergences(first, prompts, said, expected, batch_size=3))
    assert [own[row] for row in range(5)] == pytest.approx([0.0] * 5, abs=2e-5)


def test_divergences_need_probabilities_at_every_place() -> None:
    model, prompts = tiny_model(), prompts_with(3, count=1, seed=0)
    ((_, answer),) = iter_answers(model, Numbers(), prompts, max_tokens=4, likeliest=3)
    with pytest.raises(ValueError, match="every token of an answer"):
        list(iter_divergences(model, prompts, [[5] * 9], [answer.likeliest]))


def test_long_prompts_are_prefilled_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Recorded(tiny_model("mistral"))
    prompts = [[5 + place % 300 for place in range(70 + row)] for row in range(3)]
    prompts = [[30 + row, *prompt] for row, prompt in enumerate(prompts)]
    expected = [plain_answer(model.model, prompt, 4)[0] for prompt in prompts]
    monkeypatch.setattr("mlx_lora.model.batching.PREFILL_TOKENS", 60)
    assert [answer.tokens for answer in generate_answers(model, Numbers(), prompts, max_tokens=4)] == expected
    assert max(shape[0] * shape[1] for shape in model.shapes) <= 60


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "mamba"])
def test_references_are_scored_on_the_way_and_change_no_answer(family: str) -> None:
    model = tiny_model(family)
    prompts = prompts_with(5, count=9, seed=3)
    references = [[5 + place, *range(30, 30 + place % 4)] for place in range(9)]
    plain = generate_answers(model, Numbers(), prompts, max_tokens=7, batch_size=4)
    both = dict(iter_answers(model, Numbers(), prompts, max_tokens=7, batch_size=4, references=references))
    assert [both[place].tokens for place in range(9)] == [answer.tokens for answer in plain]
    expected = [nats for nats, _ in answer_nats(model, prompts, references)]
    assert [both[place].reference_nats for place in range(9)] == pytest.approx(expected, rel=1e-4)
    assert plain[0].reference_nats is None


def test_a_prompt_is_computed_once_for_its_answer_and_its_reference() -> None:
    model = Recorded(tiny_model())
    prompts = [[5, 6, 7, 8], [5, 9, 10, 11]]
    tokenizer = Numbers(frozenset(range(320)))  # every answer ends at once
    dict(iter_answers(model, tokenizer, prompts, max_tokens=7, references=[[12, 13], [14]]))
    # The shared token; the rows but for their last token; the references; the first token of the answers.
    assert model.shapes == [(1, 1), (2, 2), (2, 2), (2, 1)]


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "mamba"])
def test_the_choices_of_one_prompt_are_scored_as_they_are_alone(family: str) -> None:
    model = tiny_model(family)
    prompts = [prompt for prompt in prompts_with(6, count=4, seed=2) for _ in range(3)]
    rests = [[5 + place, *range(20, 20 + place % 4)] for place in range(12)]
    alone = [answer_nats(model, [prompt], [rest])[0] for prompt, rest in zip(prompts, rests, strict=True)]
    order = random.Random(0).sample(range(12), 12)
    together = answer_nats(model, [prompts[row] for row in order], [rests[row] for row in order], batch_size=5)
    assert [nats for nats, _ in together] == pytest.approx([alone[row][0] for row in order], rel=1e-4)


def test_a_prompt_with_several_choices_is_computed_once() -> None:
    model = Recorded(tiny_model())
    prompts = [prompt for prompt in ([5, 6, 7, 8], [5, 9, 10, 11]) for _ in range(4)]
    answer_nats(model, prompts, [[12 + place] for place in range(8)])
    # The shared token; two prompts, not eight, but for their last token; that token of eight rows.
    assert model.shapes == [(1, 1), (2, 2), (8, 1)]


def test_drawn_answers_follow_from_seed_and_place_and_not_from_who_shares_the_batch() -> None:
    model = tiny_model()
    prompts = prompts_with(3, count=8, seed=4)

    def draw(**settings: Any) -> list[list[int]]:
        return [one.tokens for one in generate_answers(model, Numbers(), prompts, max_tokens=6, **settings)]

    once = draw(temperature=0.7, seed=1)
    assert draw(temperature=0.7, seed=1, batch_size=3) == once
    assert draw(temperature=0.7, seed=2) != once
    assert draw(temperature=1e-6, seed=1) == draw()
    with pytest.raises(ValueError, match="temperature"):
        draw(temperature=-0.1)


def test_tokens_are_drawn_as_often_as_their_probability_says() -> None:
    model = tiny_model()
    prompt = [5, 6, 7]
    logits = model(mx.array([prompt]))[0, -1]
    wanted = mx.softmax(logits / 0.25).tolist()
    count = 2000
    answers = generate_answers(
        model, Numbers(frozenset()), [prompt] * count, max_tokens=1, batch_size=500, temperature=0.25, seed=3
    )
    drawn = Counter(answer.tokens[0] for answer in answers)
    likeliest = sorted(range(len(wanted)), key=wanted.__getitem__)[-5:]
    assert sum(wanted[token] for token in likeliest) > 0.15  # else this would test nothing
    for token in likeliest:
        deviation = (wanted[token] * (1 - wanted[token]) / count) ** 0.5
        assert abs(drawn[token] / count - wanted[token]) < 4 * deviation


def test_continuations_must_not_be_empty() -> None:
    with pytest.raises(ValueError):
        answer_nats(tiny_model(), [[5]], [[]])
    with pytest.raises(ValueError):
        answer_nats(tiny_model(), [[5]], [])
    assert answer_nats(tiny_model(), [], []) == []


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=5))
def test_the_common_prefix_is_the_longest_that_leaves_every_row_a_token(rows: list[list[int]]) -> None:
    length = common_prefix(rows)
    assert all(row[:length] == rows[0][:length] and len(row) > length for row in rows)
    longer = length + 1
    assert any(row[:longer] != rows[0][:longer] or len(row) <= longer for row in rows)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 5),
    st.lists(st.integers(0, 4), min_size=1, max_size=3),
    st.integers(1, 4),
    st.one_of(st.none(), st.integers(1, 6)),
)
def test_a_row_sees_what_it_would_see_alone(prefix: int, gaps: list[int], count: int, window: int | None) -> None:
    first = prefix + max(gaps)  # the shortest row begins here
    visible = RowLayout(prefix, tuple(gaps)).visible(first, count, window).tolist()
    for row, gap in enumerate(gaps):
        columns = [column for column in range(first + count) if column < prefix or column >= prefix + gap]
        for query in range(count):
            position = columns.index(first + query)
            seen = {
                columns[place]
                for place in range(position + 1)
                if window is None or position - place < window
            }  # fmt: skip
            assert {column for column, sees in enumerate(visible[row][query]) if sees} == seen


def test_a_query_in_a_gap_sees_itself_so_that_nothing_is_nan() -> None:
    assert RowLayout(0, (2,)).visible(0, 3, None).tolist()[0] == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]


def test_joining_rows_aligns_their_ends_and_drops_columns_that_are_gap_in_all() -> None:
    def cache(gaps: tuple[int, ...], columns: int, start: float) -> RowCache:
        made = RowCache(RowLayout(1, gaps), None)
        values = start + mx.arange(len(gaps) * columns, dtype=mx.float32).reshape(len(gaps), 1, columns, 1)
        made.update_and_fetch(values, -values)
        return made

    [joined] = join_rows([cache((2, 1), 5, 0.0)], [cache((0,), 2, 100.0)])
    assert joined.layout.gaps == (1, 0, 2)
    assert joined.columns == 4
    assert joined.keys is not None
    assert joined.keys[:, 0, :, 0].tolist() == [[0, 2, 3, 4], [5, 7, 8, 9], [100, 0, 0, 101]]
    assert joined.offset.tolist() == [3, 4, 2]
    [kept] = keep_rows([joined], [2, 0])
    assert kept.layout.gaps == (2, 1)
    assert kept.offset.tolist() == [2, 3]


def test_open_rows_are_bounded_by_the_tokens_they_will_hold() -> None:
    assert row_limit(32, 100) == 32
    assert row_limit(32, 4096) == 8
    assert row_limit(32, 1_000_000) == 1


@pytest.mark.parametrize("wanted", ["answers", "likelihoods"])
def test_no_keys_and_values_of_rows_gone_by_are_held(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last batch opened stayed in memory beside the next one."""
    opened: list[weakref.ref[RowCache]] = []
    alive: list[int] = []
    open_rows = Prefix.open_rows

    def watched(self: Prefix, model: nn.Module, rows: Sequence[Sequence[int]]) -> list[Any]:
        alive.append(sum(cache() is not None for cache in opened))
        caches = open_rows(self, model, rows)
        opened.append(weakref.ref(caches[0]))
        return caches

    monkeypatch.setattr(Prefix, "open_rows", watched)
    model, prompts = tiny_model(), prompts_with(6, count=6, seed=4)
    if wanted == "answers":
        generate_answers(model, Numbers(frozenset()), prompts, max_tokens=2, batch_size=2)
    else:
        answer_nats(model, prompts, [[5, 6]] * 6, batch_size=2)
    assert alive == [0, 0, 0]
