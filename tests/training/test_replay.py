"""The base's own answers: greedy, kept, found again."""

import json

import pytest

from mlx_lora.training import replay
from mlx_lora.training.replay import answer_prompts
from tests.tiny import tiny_model, tiny_tokenizer


class Ends:
    """A tokenizer for which every token from `first` on ends an answer."""

    def __init__(self, first):
        self.eos_ids = frozenset(range(first, 320))
        self.decode = tiny_tokenizer().decode


PROMPTS = [[5, 9, 11], [5, 40, 41, 42], [7]]


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch):
    monkeypatch.setattr(replay, "MOST_TOKENS", 6)


def answered(folder, *, seed=0, base="base", first=160):
    *_, answers = answer_prompts(tiny_model(seed=seed), Ends(first), PROMPTS, base, folder)
    return answers


def test_answers_are_the_bases_own_and_say_whether_they_ended(tmp_path):
    from mlx_lora.model.generate import generate_answers

    model, tokenizer = tiny_model(), Ends(160)
    alone = [generate_answers(model, tokenizer, [prompt], max_tokens=6)[0] for prompt in PROMPTS]
    answers = answered(tmp_path)
    assert answers == [(answer.tokens, answer.stopped) for answer in alone]
    assert {ended for _, ended in answers} == {True, False}
    assert all(len(tokens) == 6 for tokens, ended in answers if not ended)


def test_a_second_run_finds_the_answers_without_asking(tmp_path):
    first = answered(tmp_path)
    assert list(answer_prompts(None, Ends(160), PROMPTS, "base", tmp_path)) == [first]
    (kept,) = tmp_path.iterdir()
    kept.write_text(kept.read_text()[:-9])
    assert answered(tmp_path) == first
    assert len(json.loads(kept.read_text())) == 3


def test_another_base_or_other_ends_are_asked_anew(tmp_path):
    first = answered(tmp_path)
    assert answered(tmp_path, seed=1, base="other") != first
    assert answered(tmp_path, first=320) != first
    assert len(list(tmp_path.iterdir())) == 3
