"""Rows that join and leave a running batch get the tokens that each gets alone, with its own adapter."""

import random

import pytest
from mlx_lm.models.cache import ChunkedKVCache

import mlx_lora  # noqa: F401  (loads OpenBLAS before MLX)
from mlx_lora.errors import ModelError
from mlx_lora.model.continuous import ContinuousBatch, batches_rows, refuse_unjoinable
from mlx_lora.model.stream import make_sampler, stream_answer
from tests.model.test_generate import plain_answer
from tests.tiny import TRANSFORMERS, tiny_model

ENDS = frozenset({2, 4, *range(9, 21)})  # as in plain_answer


def prompts_of(count: int, seed: int) -> list[list[int]]:
    choose = random.Random(seed)
    return [[choose.randrange(21, 320) for _ in range(choose.randrange(1, 30))] for _ in range(count)]


def run(batch: ContinuousBatch, rows: dict[int, list[int]]) -> None:
    """Step until all rows are through; their tokens, without end tokens, go into `rows`."""
    while batch.rows:
        for token in batch.step():
            if token.end != "stop":
                rows[token.row].append(token.token)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma3", "mixtral"])
def test_rows_that_join_and_leave_get_the_tokens_that_each_gets_alone(family):
    model = tiny_model(family)
    prompts = prompts_of(9, seed=3)
    wanted = [plain_answer(model, prompt, 7)[0] for prompt in prompts]
    batch = ContinuousBatch(model, lambda owners: None, cache_bytes=0)
    answers: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        row, _ = batch.insert(prompt, None, max_tokens=7, ends=ENDS)
        answers[row] = []
        for _ in range(place % 3):  # the next one joins while this one is read or answered
            for token in batch.step():
                if token.end != "stop":
                    answers[token.row].append(token.token)
    run(batch, answers)
    assert list(answers.values()) == wanted


def test_the_owners_follow_their_rows_through_every_change_of_the_batch():
    model = tiny_model("llama")
    seen: list[tuple[int | None, ...]] = []

    class Spied:
        def __init__(self):
            self.layers = model.layers
            self.owners: tuple[int | None, ...] = ()

        def __call__(self, tokens, cache):
            assert tokens.shape[0] == len(self.owners)
            # The first token of each prompt is its owner's number: whose row it is can be seen in the row itself.
            seen.append(self.owners)
            firsts.append((tokens[:, 0].tolist(), self.owners, tokens.shape[1]))
            return model(tokens, cache=cache)

    firsts: list = []
    spied = Spied()
    batch = ContinuousBatch(spied, lambda owners: setattr(spied, "owners", owners), cache_bytes=0)
    rows = {}
    choose = random.Random(5)
    for number in range(30, 42):
        prompt = [number] * choose.randrange(3, 12)
        row, _ = batch.insert(prompt, number, max_tokens=choose.randrange(1, 6), ends=frozenset())
        rows[row] = number
        for _ in range(choose.randrange(3)):
            batch.step()
        if number % 4 == 0 and row in batch._owners:
            batch.remove(row)
    run(batch, {row: [] for row in rows})
    prompts = [(tokens, owners) for tokens, owners, width in firsts if width > 1]
    assert prompts
    assert all(tokens == list(owners) for tokens, owners in prompts)
    assert max(len(owners) for owners in seen) >= 3
    assert batch.rows == 0


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_what_was_read_is_read_again_only_for_another_owner(family):
    model = tiny_model(family)
    batch = ContinuousBatch(model, lambda owners: None, cache_bytes=1 << 30)
    prompt = prompts_of(1, seed=8)[0] * 3
    row, reused = batch.insert(prompt, 1, max_tokens=4, ends=frozenset())
    assert reused == 0
    answers: dict[int, list[int]] = {row: []}
    run(batch, answers)
    longer = [*prompt, *answers[row], 30, 31]
    again, reused = batch.insert(longer, 1, max_tokens=4, ends=frozenset())
    assert reused == len(longer) - 2  # all but what is new
    other, none = batch.insert(longer, 2, max_tokens=4, ends=frozenset())
    assert none == 0
    answers = {again: [], other: []}
    run(batch, answers)
    assert answers[again] == answers[other] == plain_answer(model, longer, 4)[0]
    same, reused = batch.insert(longer, 1, max_tokens=1, ends=frozenset())
    # One token is always fed; past its window a sliding layer gives none back, and the turn before is taken.
    assert reused == len(longer) - (1 if family == "llama" else 2)
    run(batch, {same: []})


def test_a_row_that_leaves_early_frees_its_place_and_keeps_what_it_read():
    model = tiny_model("llama")
    batch = ContinuousBatch(model, lambda owners: None, cache_bytes=1 << 30)
    gone, _ = batch.insert([30] * 20, None, max_tokens=50, ends=frozenset())
    stays, _ = batch.insert([40] * 9, None, max_tokens=5, ends=frozenset())
    for _ in range(3):
        batch.step()
    batch.remove(gone)
    assert batch.rows == 1
    answers: dict[int, list[int]] = {stays: []}
    run(batch, answers)
    assert batch.insert([30] * 21, None, max_tokens=1, ends=frozenset())[1] == 20


def test_the_budget_of_bytes_bounds_what_is_kept():
    model = tiny_model("llama")
    budget = 3 * 4 * 2 * 2 * 16 * 4 * 40  # three rows: layers · (keys, values) · heads · D · float32 · 40 tokens
    batch = ContinuousBatch(model, lambda owners: None, cache_bytes=budget)
    for start in range(6):
        row, _ = batch.insert([30 + start] * 33, None, max_tokens=4, ends=frozenset())
        run(batch, {row: []})
        assert batch.cached_bytes <= budget
    assert batch.cached_bytes > 0
    assert batch.running_bytes == 0
    assert batch.insert([35] * 33, None, max_tokens=1, ends=frozenset())[1] == 32
    assert batch.insert([30] * 33, None, max_tokens=1, ends=frozenset())[1] == 0  # the longest unused went first


class Decoder:
    def add(self, token: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


class Tokens:
    eos_ids = ENDS

    def stream_decoder(self) -> Decoder:
        return Decoder()


def test_a_drawn_answer_follows_from_its_seed_and_not_from_who_shares_the_batch():
    model = tiny_model("qwen2")
    prompts = prompts_of(4, seed=2)

    def alone(prompt: list[int], seed: int) -> list[int]:
        pieces = stream_answer(model, Tokens(), prompt, max_tokens=6, temperature=0.8, top_p=0.9, seed=seed)
        return [piece.token for piece in pieces if piece.token is not None and not piece.stopped]

    batch = ContinuousBatch(model, lambda owners: None, cache_bytes=0)
    answers: dict[int, list[int]] = {}
    for seed, prompt in enumerate(prompts):
        sampler = make_sampler(0.8, 0.9, seed) if seed != 2 else None
        answers[batch.insert(prompt, None, max_tokens=6, ends=ENDS, sampler=sampler)[0]] = []
    run(batch, answers)
    wanted = [alone(prompt, seed) for seed, prompt in enumerate(prompts)]
    wanted[2] = plain_answer(model, prompts[2], 6)[0]
    assert list(answers.values()) == wanted


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_the_probe_says_which_families_share_batches(family):
    assert batches_rows(tiny_model(family)) is (family != "gemma2")  # whose grouped masks mlx-lm's batches do not have


def test_a_family_whose_caches_join_no_batch_is_refused_by_name():
    model = tiny_model("llama")
    refuse_unjoinable(model)
    model.make_cache = lambda: [ChunkedKVCache(8) for _ in model.layers]  # as llama4 has them
    with pytest.raises(ModelError, match=r"llama models cannot be served: .* \(ChunkedKVCache\)"):
        refuse_unjoinable(model)


def test_after_a_failed_step_the_batch_begins_anew():
    model = tiny_model("llama")
    batch = ContinuousBatch(model, lambda owners: None, cache_bytes=1 << 20)
    batch.insert([30, 31], None, max_tokens=3, ends=frozenset())
    batch.step()
    batch.clear()
    assert batch.rows == 0
    assert batch.cached_bytes == 0
    row, _ = batch.insert([30, 31], None, max_tokens=3, ends=frozenset())
    answers: dict[int, list[int]] = {row: []}
    run(batch, answers)
    assert answers[row] == plain_answer(model, [30, 31], 3)[0]


@pytest.mark.parametrize(("most", "together"), [(40, 40), (12, 12)])
def test_as_many_rows_are_answered_at_once_as_there_may_be(most, together):
    """Found by reading: BatchGenerator's own bound of 32 held, whatever `serve --rows` said."""
    batch = ContinuousBatch(tiny_model("llama", layers=1), lambda owners: None, cache_bytes=0, most_rows=most)
    for prompt in prompts_of(40, seed=5):
        batch.insert(prompt, None, max_tokens=20, ends=frozenset())
    counts = []
    while batch.rows:
        counts.append(len(batch.step()))
    batch.close()
    assert max(counts) == together
    assert sum(counts) == 40 * 20
