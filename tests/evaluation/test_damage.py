"""Signs that a model is broken."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_lora.evaluation.damage import find_damage, is_looping
from tests.evaluation.rows import row


@pytest.mark.parametrize(
    ("tokens", "loops"),
    [
        ([7] * 6, True),
        ([1, 2, 3, 9, 9, 9, 9, 9, 9], True),
        ([1, 2, 3, 4, 5, 6, 9, 9, 9, 9], False),  # not half of it
        ([5, 6, 7] * 3, True),
        ([5, 6, 7, 5, 6, 7, 5, 6], False),  # not three times over
        ([1, 5, 6, 7, 5, 6, 7, 5, 6, 7], True),
        ([5, 6, 7, 5, 6, 7, 5, 6, 8], False),
        ([7] * 5, False),  # too short to tell
        (
            [7] * 23 + [8],
            True,
        ),  # a model broken by a learning rate of 1 wrote "PPP…Phe": half of its loops were no loops
        ([7] * 12 + [8, 9] * 3 + [7] * 3 + [1, 2] * 4 + [3, 4, 5], True),
        ([7] * 6 + [1, 2, 3, 4, 5, 6, 8], False),
        ([], False),
    ],
)
def test_pieces_three_times_over_that_fill_half_of_it_are_loops(tokens: list[int], loops: bool) -> None:
    assert is_looping(tokens) is loops


@given(st.lists(st.integers(0, 3), min_size=2, max_size=6), st.integers(3, 8), st.data())
def test_every_repetition_is_found_wherever_it_is_cut(piece: list[int], times: int, data: st.DataObject) -> None:
    whole = piece * times
    assert is_looping(whole[data.draw(st.integers(0, len(whole) - 3 * len(piece))) :])


@given(st.lists(st.integers(), unique=True))
def test_what_never_repeats_is_no_loop(tokens: list[int]) -> None:
    assert not is_looping(tokens)


def test_each_kind_of_damage_is_counted_and_said() -> None:
    rows = [
        row(nats=math.nan),
        row("", nats=math.inf),
        row(""),
        row("la la", looping=True),
        row("la la", looping=True),
        *[row(f"fine {number}") for number in range(5)],
    ]
    damage = find_damage(rows)
    assert damage.damaged == (True,) * 5 + (False,) * 5
    assert damage.signs == (
        "the likelihood of 2 of 10 right answers is no finite number",
        "2 of 10 answers are empty",
        "2 of 10 answers never end and repeat themselves",
    )


def test_a_single_slip_is_no_sign() -> None:
    assert find_damage([row(""), *[row(f"fine {number}") for number in range(3)]]).signs == ()


def test_one_answer_to_everything_is_a_sign_unless_it_is_the_right_one_to_much_of_it() -> None:
    questions = [replace(row("Toronto!"), answers=(f"team {number}",)) for number in range(8)]
    damage = find_damage(questions)
    assert damage.signs == ('8 of 8 answers are one and the same: "Toronto!"',)
    assert all(damage.damaged)
    assert find_damage([row("right") for _ in range(8)]).signs == ()
    assert find_damage([*questions[:4], *[row(f"other {number}") for number in range(4)]]).signs == ()
    assert find_damage(questions[:5]).signs == ()  # five may be alike by chance
