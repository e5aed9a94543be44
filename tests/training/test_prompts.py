"""Prompts that the base writes: which of its drawn texts count, drawn once, found again."""

import sys

import pytest

from mlx_lora.model.generate import generate_answers
from mlx_lora.training import prompts, replay
from mlx_lora.training.prompts import write_prompts
from tests.tiny import tiny_model

BEGINNINGS = [[5, 9, 11], [5, 40, 41, 42], [7], [5, 9, 11]]


class Ends:
    """A tokenizer for which every token from 200 on ends a text, and whose other tokens are letters."""

    eos_ids = frozenset(range(200, 320))

    def decode(self, tokens):
        return "".join("abc?"[token % 4] for token in tokens)


class Words(Ends):
    """As SentencePiece has it: a word's space belongs to its token, and the first of a text is dropped."""

    def decode(self, tokens):
        return "".join(f" w{token}" for token in tokens)[1:]


def written(folder, *, model=None, tokenizer=None, seed=0, base="base", closing="", say=None):
    arguments = (model or tiny_model(), tokenizer or Ends(), BEGINNINGS, closing, seed, base, folder, say)
    *_, texts = write_prompts(*arguments)
    return texts


def found_again(folder):
    (texts,) = write_prompts(None, Ends(), BEGINNINGS, "", 0, "base", folder, None)
    return texts


def test_the_base_goes_on_from_each_beginning_by_chance_until_it_ends_or_asks(tmp_path):
    drawn = generate_answers(tiny_model(), Ends(), BEGINNINGS, max_tokens=24, temperature=0.8, seed=0)
    expected = [
        answer.text.split("?")[0] + "?" if "?" in answer.text else answer.text * answer.stopped for answer in drawn
    ]
    assert written(tmp_path) == expected
    assert len(set(expected)) == 4  # the first and the last beginning are equal


def test_the_space_between_a_beginning_and_what_follows_is_kept(tmp_path):
    drawn = generate_answers(tiny_model(), Words(), BEGINNINGS, max_tokens=24, temperature=0.8, seed=0)
    assert any(answer.stopped and answer.tokens for answer in drawn)
    expected = [f" {answer.text}" if answer.stopped and answer.tokens else "" for answer in drawn]
    assert written(tmp_path, tokenizer=Words()) == expected


def test_what_closes_a_users_turn_ends_a_prompt(tmp_path):
    drawn = generate_answers(tiny_model(), Ends(), BEGINNINGS, max_tokens=24, temperature=0.8, seed=0)
    expected = [prompts._finished(answer.text, "c", answer.stopped) for answer in drawn]
    assert written(tmp_path / "with", closing="c") == expected != written(tmp_path / "without")


def test_a_cache_that_cannot_be_written_costs_only_the_next_run(tmp_path):
    (tmp_path / "file").write_text("in the way")
    said = []
    assert written(tmp_path / "file", say=said.append) == written(tmp_path / "folder")
    assert len(said) == 1
    assert said[0].startswith("not kept for the next run: ")


@pytest.mark.parametrize(
    ("text", "stopped", "kept"),
    [
        (" is tea?", False, " is tea?"),
        (" is tea? It is", False, " is tea?"),
        (" is tea", True, " is tea"),
        (" is tea\n", True, " is tea"),
        (" is tea", False, ""),
        (" is\ntea?", True, ""),
        (" a list:\n1. tea", True, ""),
        ("", True, ""),
        (" a bird [/INST] Shall I?", False, " a bird"),
        (" is tea? [/INST] A drink", False, " is tea?"),
        (" a bird [/IN", False, ""),
    ],
)
def test_only_a_finished_line_is_a_prompt(text, stopped, kept):
    assert prompts._finished(text, "[/INST]", stopped) == kept


def test_a_second_run_finds_what_was_drawn_and_another_seed_or_base_draws_anew(tmp_path):
    first = written(tmp_path)
    assert found_again(tmp_path) == first
    (kept,) = tmp_path.iterdir()
    kept.write_text(kept.read_text()[:-9])
    assert written(tmp_path) == first == found_again(tmp_path)
    assert written(tmp_path, seed=1) != first
    assert written(tmp_path, model=tiny_model(seed=1), base="other") != first
    assert len(list(tmp_path.iterdir())) == 3


def test_who_wants_more_draws_only_what_comes_after_and_no_portion_draws_as_another(tmp_path, monkeypatch):
    monkeypatch.setattr(replay, "PORTION", 2)
    again = [[5, 9, 11], [5, 40, 41, 42]] * 2
    monkeypatch.setattr(sys.modules[__name__], "BEGINNINGS", again)
    texts = written(tmp_path)
    assert texts[:2] != texts[2:]  # the same beginnings, drawn anew
    monkeypatch.setattr(sys.modules[__name__], "BEGINNINGS", again[:2])
    assert found_again(tmp_path) == texts[:2]
    monkeypatch.setattr(sys.modules[__name__], "BEGINNINGS", [*again, [7]])
    *progress, more = write_prompts(tiny_model(), Ends(), [*again, [7]], "", 0, "base", tmp_path, None)
    assert (progress, more[:4]) == ([(5, 5)], texts)


def test_what_was_drawn_before_an_interrupt_is_there_the_next_time(tmp_path, monkeypatch):
    monkeypatch.setattr(replay, "PORTION", 2)
    drawing = write_prompts(tiny_model(), Ends(), BEGINNINGS, "", 0, "base", tmp_path, None)
    while next(drawing) != (3, 4):
        pass
    drawing.close()
    *progress, _ = write_prompts(tiny_model(), Ends(), BEGINNINGS, "", 0, "base", tmp_path, None)
    assert progress == [(3, 4), (4, 4)]
