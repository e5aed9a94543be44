"""Every row once an epoch, like lengths together, and arrays in which padding weighs nothing."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mlx_lora.dataset.batches import collate, padded_length, plan_epoch, plan_validation
from mlx_lora.dataset.examples import Example

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=80)


def example(tokens: list[int], trained: int) -> Example:
    """An example whose last `trained` tokens are targets."""
    mask = np.arange(len(tokens)) >= len(tokens) - trained
    return Example(np.array(tokens, dtype=np.int32), mask, "f.jsonl:1", None)


def padding(lengths: list[int], plan: list[tuple[int, ...]]) -> float:
    """Share of padding of a plan."""
    places = sum(max(lengths[row] for row in rows) * len(rows) for rows in plan)
    return 1 - sum(lengths) / places


@hypothesis_settings(deadline=None)
@given(LENGTHS, st.integers(1, 20), st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_every_row_is_in_exactly_one_batch_and_one_batch_at_most_is_smaller(
    lengths: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    """https://github.com/ml-explore/mlx-examples/issues/258: the last partial batch was dropped."""
    plan = plan_epoch(lengths, batch_size, seed=seed, epoch=epoch)
    assert sorted(row for rows in plan for row in rows) == list(range(len(lengths)))
    assert len(plan) == -(-len(lengths) // batch_size)
    assert sum(len(rows) != batch_size for rows in plan) <= 1


@hypothesis_settings(deadline=None)
@given(LENGTHS, st.integers(1, 20), st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_a_plan_follows_from_seed_and_epoch_and_leaves_other_random_numbers_alone(
    lengths: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    np.random.seed(1)
    random.seed(1)
    first = plan_epoch(lengths, batch_size, seed=seed, epoch=epoch)
    after = np.random.random(), random.random()
    np.random.seed(1)
    random.seed(1)
    assert (np.random.random(), random.random()) == after
    assert plan_epoch(lengths, batch_size, seed=seed, epoch=epoch) == first


@pytest.mark.parametrize("lengths", [[12] * 64, [5, 6, 7, 8] * 16, list(range(100, 164))])
def test_rows_change_company_and_batches_change_order_from_epoch_to_epoch(lengths: list[int]) -> None:
    plans = [plan_epoch(lengths, 8, seed=0, epoch=epoch) for epoch in range(6)]
    companies = [frozenset(frozenset(rows) for rows in plan) for plan in plans]
    assert len(set(companies)) == 6
    assert len({tuple(min(rows) for rows in plan) for plan in plans}) == 6
    assert plan_epoch(lengths, 8, seed=1, epoch=0) != plans[0]


def test_rows_of_like_length_go_together() -> None:
    """https://github.com/ml-explore/mlx-lm/issues/596: rows sorted by their number of JSON keys, 25 % padding."""
    lengths = [int(length) for length in np.random.default_rng(0).lognormal(4, 0.8, 1000)]
    mixed = [tuple(range(start, start + 8)) for start in range(0, 1000, 8)]
    assert padding(lengths, mixed) > 0.5
    for epoch in range(3):
        assert padding(lengths, plan_epoch(lengths, 8, seed=0, epoch=epoch)) < 0.08


def test_batches_do_not_come_in_order_of_length() -> None:
    plan = plan_epoch(list(range(1, 401)), 8, seed=0, epoch=0)
    longest = [max(rows) for rows in plan]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.4


def test_the_smaller_batch_is_not_always_the_same_rows() -> None:
    smaller = [
        frozenset(rows)
        for epoch in range(20)
        for rows in plan_epoch(list(range(1, 18)), 4, seed=0, epoch=epoch)
        if len(rows) == 1
    ]
    assert len(smaller) == 20
    assert len(set(smaller)) > 3


@hypothesis_settings(deadline=None)
@given(LENGTHS, st.integers(1, 20))
def test_a_validation_takes_every_row_once_in_order_of_length(lengths: list[int], batch_size: int) -> None:
    plan = plan_validation(lengths, batch_size)
    order = [row for rows in plan for row in rows]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[row] for row in order] == sorted(lengths)
    assert all(len(rows) == batch_size for rows in plan[:-1])


def test_a_batch_holds_inputs_targets_and_weights_side_by_side() -> None:
    examples = [example([5, 6, 7, 8], 2), example([1, 2], 1), example([9, 9, 9], 1)]
    batch = collate(examples, [2, 0])
    assert batch.inputs.tolist() == [[9, 9, 0, 0], [5, 6, 7, 0]]
    assert batch.targets.tolist() == [[9, 9, 0, 0], [6, 7, 8, 0]]
    assert batch.weights.tolist() == [[0, 1, 0, 0], [0, 1, 1, 0]]
    assert batch.rows.tolist() == [2, 0]
    assert batch.lengths.tolist() == [2, 3]
    assert (batch.tokens, batch.targets_count, batch.padding_share) == (5, 3, 3 / 8)
    types = [array.dtype for array in (batch.inputs, batch.targets, batch.weights, batch.rows, batch.lengths)]
    assert types == [np.int32, np.int32, np.float32, np.int32, np.int32]


@hypothesis_settings(deadline=None)
@given(st.lists(st.integers(2, 140), min_size=1, max_size=6))
def test_padding_has_weight_zero_and_no_target_is_lost(lengths: list[int]) -> None:
    """https://github.com/ml-explore/mlx-lm/pull/1697: one padding token of every row was trained."""
    examples = [example(list(range(1, length + 1)), length - 1) for length in lengths]
    batch = collate(examples, range(len(lengths)))
    assert batch.inputs.shape[1] == padded_length(max(lengths) - 1)
    for row, length in enumerate(lengths):
        assert batch.weights[row].sum() == length - 1
        assert not batch.weights[row, length - 1 :].any()
        assert batch.targets[row, : length - 1].tolist() == list(range(2, length + 1))
    assert batch.targets_count == batch.tokens == sum(lengths) - len(lengths)


def test_widths_are_multiples_that_grow_with_the_length() -> None:
    assert [padded_length(longest) for longest in (1, 4, 5, 127, 128, 129, 257, 1000, 2047)] == [
        4, 4, 8, 128, 128, 136, 272, 1024, 2048,
    ]  # fmt: skip


@given(st.integers(1, 100_000))
def test_padding_is_three_tokens_or_less_than_a_sixteenth(longest: int) -> None:
    assert 0 <= padded_length(longest) - longest <= max(3, longest / 16)


def test_a_width_that_is_given_is_kept_and_a_narrow_one_refused() -> None:
    examples = [example([1, 2, 3], 1)]
    assert collate(examples, [0], width=5).inputs.shape == (1, 5)
    with pytest.raises(ValueError, match="a row of 2 inputs does not fit a width of 1"):
        collate(examples, [0], width=1)
