"""Prompts that the base writes: which of its drawn texts count, drawn once, found again."""

import pytest

from mlx_lora.model.generate import generate_answers
from mlx_lora.training import prompts
from mlx_lora.training.prompts import write_prompts
from tests.tiny import tiny_model

BEGINNINGS = [[5, 9, 11], [5, 40, 41, 42], [7], [5, 9, 11]]


class Ends:
    """A tokenizer for which every token from 200 on ends a text, and whose other tokens are letters."""

    eos_ids = frozenset(range(200, 320))

    def decode(self, tokens):
        return "".join("abc?"[token % 4] for token in tokens)


def written(folder, *, model=None, seed=0, base="base"):
    *_, texts = write_prompts(model or tiny_model(), Ends(), BEGINNINGS, seed, base, folder)
    return texts


def test_the_base_goes_on_from_each_beginning_by_chance_until_it_ends_or_asks(tmp_path):
    drawn = generate_answers(tiny_model(), Ends(), BEGINNINGS, max_tokens=24, temperature=0.8, seed=0)
    expected = [
        answer.text.split("?")[0] + "?" if "?" in answer.text else answer.text * answer.stopped for answer in drawn
    ]
    assert written(tmp_path) == expected
    assert len(set(expected)) == 4  # the first and the last beginning are equal


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
    ],
)
def test_only_a_finished_line_is_a_prompt(text, stopped, kept):
    assert prompts._finished(text, stopped) == kept


def test_a_second_run_finds_what_was_drawn_and_another_seed_or_base_draws_anew(tmp_path):
    first = written(tmp_path)
    (again,) = write_prompts(None, Ends(), BEGINNINGS, 0, "base", tmp_path)
    assert again == first
    (kept,) = tmp_path.iterdir()
    kept.write_text(kept.read_text()[:-9])
    assert written(tmp_path) == first
    (again,) = write_prompts(None, Ends(), BEGINNINGS, 0, "base", tmp_path)
    assert again == first
    assert written(tmp_path, seed=1) != first
    assert written(tmp_path, model=tiny_model(seed=1), base="other") != first
    assert len(list(tmp_path.iterdir())) == 3
