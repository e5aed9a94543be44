"""The base's own answers: greedy, with their probabilities, kept, found again; and the loss that rehearses them."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_lora.config import DataSettings
from mlx_lora.dataset.batches import collate
from mlx_lora.dataset.replay import build_replay_examples
from mlx_lora.training import replay
from mlx_lora.training.engine import Engine
from mlx_lora.training.replay import answer_prompts
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.rows import differences, engine, random_rows, stepper, trial


class Ends:
    """A tokenizer for which every token from `first` on ends an answer; `first` is the usual end."""

    def __init__(self, first):
        self.eos_ids, self.eos_id = frozenset(range(first, 320)), first
        self.decode = tiny_tokenizer().decode


PROMPTS = [[5, 9, 11], [5, 40, 41, 42], [7]]


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch):
    monkeypatch.setattr(replay, "MOST_TOKENS", 6)


def answered(folder, *, seed=0, base="base", first=160):
    *_, answers = answer_prompts(tiny_model(seed=seed), Ends(first), PROMPTS, base, folder, never)
    return answers


def never(line):
    raise AssertionError(line)


def same(one, other):
    return all(
        (mine.tokens, mine.ended) == (theirs.tokens, theirs.ended)
        and np.array_equal(mine.expected.tokens, theirs.expected.tokens)
        and np.array_equal(mine.expected.shares, theirs.expected.shares)
        for mine, theirs in zip(one, other, strict=True)
    )


def test_answers_are_the_bases_own_with_an_end_only_where_it_ended(tmp_path):
    from mlx_lora.model.generate import generate_answers

    model, tokenizer = tiny_model(), Ends(160)
    alone = [generate_answers(model, tokenizer, [prompt], max_tokens=6)[0] for prompt in PROMPTS]
    answers = answered(tmp_path)
    assert [answer.tokens for answer in answers] == [one.tokens + [160] * one.stopped for one in alone]
    assert [answer.ended for answer in answers] == [one.stopped for one in alone]
    assert {answer.ended for answer in answers} == {True, False}


def test_probabilities_are_the_bases_at_every_token_of_its_answer(tmp_path):
    (answer, *_) = answered(tmp_path)
    shares = mx.softmax(tiny_model()(mx.array([PROMPTS[0] + answer.tokens[:-1]]))[0, 2:], axis=-1)
    assert shares.shape[0] == len(answer.tokens)
    ordered = np.sort(np.array(shares), axis=-1)[:, ::-1][:, :32]
    assert np.sort(answer.expected.shares, axis=-1)[:, ::-1] == pytest.approx(ordered, rel=1e-5)
    assert answer.expected.tokens[0][answer.expected.shares[0].argmax()] == answer.tokens[0]


def test_portions_give_the_same_answers_in_order_and_more_prompts_ask_only_for_theirs(tmp_path, monkeypatch):
    whole = answered(tmp_path / "whole")
    monkeypatch.setattr(replay, "PORTION", 2)
    folder = tmp_path / "portions"
    *progress, first = answer_prompts(tiny_model(), Ends(160), PROMPTS[:2], "base", folder, never)
    assert (progress, [one.tokens for one in first]) == ([(1, 2), (2, 2)], [one.tokens for one in whole[:2]])
    *progress, every = answer_prompts(tiny_model(), Ends(160), PROMPTS, "base", folder, never)
    assert (progress, [one.tokens for one in every]) == ([(3, 3)], [one.tokens for one in whole])


def test_a_second_run_finds_the_answers_without_asking(tmp_path):
    first = answered(tmp_path)
    (again,) = answer_prompts(None, Ends(160), PROMPTS, "base", tmp_path, never)
    assert same(again, first)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:-9])
    assert same(answered(tmp_path), first)
    (again,) = answer_prompts(None, Ends(160), PROMPTS, "base", tmp_path, never)
    assert same(again, first)


@pytest.mark.parametrize(("place", "bit"), [(6, 6), (8, 0), (8, 6), (10, 0)])
def test_a_flipped_bit_in_what_was_kept_has_the_base_asked_anew(tmp_path, place, bit):
    """zipfile says of them: a newer version, a password, a strong encryption, an unknown compression."""
    first = answered(tmp_path)
    (kept,) = tmp_path.iterdir()
    content = bytearray(kept.read_bytes())
    content[content.index(b"PK\x01\x02") + place] ^= 1 << bit
    kept.write_bytes(content)
    assert same(answered(tmp_path), first)
    (again,) = answer_prompts(None, Ends(160), PROMPTS, "base", tmp_path, never)
    assert same(again, first)


def test_a_cache_that_cannot_be_written_costs_only_the_next_run(tmp_path):
    (tmp_path / "file").write_text("in the way")
    said = []
    *_, answers = answer_prompts(tiny_model(), Ends(160), PROMPTS, "base", tmp_path / "file", said.append)
    assert same(answers, answered(tmp_path))
    (line,) = said
    assert line.startswith("not kept for the next run: ")
    assert str(tmp_path / "file") in line


def test_another_base_or_other_ends_are_asked_anew(tmp_path):
    first = answered(tmp_path)
    assert not same(answered(tmp_path, seed=1, base="other"), first)
    assert not same(answered(tmp_path, first=320 - 1), first)
    assert len(list(tmp_path.iterdir())) == 3


def mixed_rows(folder):
    """Five taught rows and three replay rows, which begin alike."""
    taught = random_rows(5)
    prompts = [[*taught[0].tokens[:20].tolist(), *prompt] for prompt in PROMPTS]
    *_, answers = answer_prompts(tiny_model(), Ends(160), prompts, "base", folder, never)
    return taught + build_replay_examples(prompts, answers, taught, DataSettings(train="rows"))


@pytest.mark.parametrize("parts", [["supervised_positions"], ["shared_prefix"], "auto"])
@pytest.mark.parametrize("rows", [[0, 5, 2, 6], [5, 6, 7]], ids=["mixed", "replay alone"])
def test_every_engine_part_gives_the_plain_gradients_of_replay_rows(parts, rows, tmp_path):
    data, run = mixed_rows(tmp_path), trial()
    batch = collate(data, rows)
    expected = stepper(run, plain := Engine(run.model)).gradients(plain.arrays(batch))
    way = engine(run, data, parts)
    found = stepper(run, way).gradients(way.arrays(batch))
    assert ("pieces" in way.arrays(batch)) == way.shared_prefix
    assert max(differences(found, expected).values()) < 1e-4


def test_a_model_that_is_still_the_base_has_nothing_to_learn_from_replay_rows(tmp_path):
    data, run = mixed_rows(tmp_path), trial()
    way = engine(run, data)
    run.trainable.assign(
        {name: array * 0 if name.endswith("lora_b") else array for name, array in run.trainable.arrays().items()}
    )
    nats, gradients = stepper(run, way).gradients(way.arrays(collate(data, [5, 6, 7])))
    assert abs(float(nats)) < 1e-4
    taught = stepper(run, way).gradients(way.arrays(collate(data, [0, 1, 2])))[1]
    for name, gradient in gradients.items():
        assert float(mx.abs(gradient).max()) <= 1e-4 * max(1e-3, float(mx.abs(taught[name]).max()))
