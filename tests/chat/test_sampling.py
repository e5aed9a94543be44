"""The settings of answers."""

import pytest

from mlx_lora.chat.sampling import Sampling
from mlx_lora.errors import MlxLoraError


def test_answers_are_greedy_unless_asked_otherwise() -> None:
    assert Sampling().greedy
    assert Sampling().described() == "greedy, at most 512 tokens"
    assert Sampling(0.7, 0.9, 64, 3).described() == "temperature 0.7, top_p 0.9, seed 3, at most 64 tokens"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("temperature", "0.7", Sampling(temperature=0.7)),
        ("top_p", "0.9", Sampling(top_p=0.9)),
        ("max_tokens", "64", Sampling(max_tokens=64)),
        ("seed", "5", Sampling(seed=5)),
        ("seed", "random", Sampling()),
    ],
)
def test_every_setting_is_read_from_text(name: str, text: str, expected: Sampling) -> None:
    assert Sampling().changed(name, text) == expected


@pytest.mark.parametrize(
    ("name", "text", "fact"),
    [
        ("temperature", "-1", "temperature is -1.0, expected 0"),
        ("temperature", "nan", "temperature is nan"),
        ("temperature", "inf", "temperature is inf"),
        ("temperature", "warm", "temperature is warm, expected a number"),
        ("top_p", "0", "top_p is 0.0"),
        ("top_p", "1.01", "top_p is 1.01"),
        ("max_tokens", "0", "max_tokens is 0, expected 1 or more"),
        ("max_tokens", "1.5", "max_tokens is 1.5"),
        ("seed", "-1", "seed is -1"),
        ("seed", "4294967296", "seed is 4294967296"),
    ],
)
def test_a_value_outside_its_limits_is_refused(name: str, text: str, fact: str) -> None:
    with pytest.raises(MlxLoraError, match=fact):
        Sampling().changed(name, text)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("temp", "did you mean temperature?"),
        ("top-p", "did you mean top_p?"),
        ("sede", "did you mean seed?"),
        ("x", "there are temperature, top_p, max_tokens, seed"),
    ],
)
def test_an_unknown_setting_is_refused_with_near_names(name: str, hint: str) -> None:
    with pytest.raises(MlxLoraError) as caught:
        Sampling().changed(name, "1")
    assert caught.value.hint == hint


def test_answers_of_one_seed_differ_from_each_other_but_not_from_run_to_run() -> None:
    sampling = Sampling(seed=2**32 - 1)
    assert [sampling.seed_of(answer) for answer in range(3)] == [2**32 - 1, 0, 1]


def test_without_a_seed_each_answer_has_one_of_its_own() -> None:
    assert len({Sampling().seed_of(0) for _ in range(8)}) > 1
