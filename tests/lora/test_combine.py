"""Combining updates: exact sums, TIES and DARE by hand, and what they say they lost."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_lora.lora.combine import Recipe, combine
from mlx_lora.lora.factors import Factors


def _dense_factors(matrix: list[list[float]]) -> Factors:
    """A matrix as factors of full rank: itself times one."""
    values = np.array(matrix)
    with mx.stream(mx.cpu):
        a, b = mx.array(values)[None].astype(mx.float64), mx.eye(values.shape[1])[None].astype(mx.float64)
    return Factors(a, b)


def _combined(matrices: list[list[list[float]]], recipe: Recipe) -> tuple[np.ndarray, object]:
    found = combine([{"m": _dense_factors(matrix)} for matrix in matrices], recipe)
    factors = found.factors["m"]
    return np.array(factors.update)[0], found.loss


ONE = [[4.0, -1.0, 0.0], [0.5, 3.0, 2.0]]
TWO = [[-2.0, -3.0, 1.0], [0.1, 1.0, 0.2]]


def test_ties_trims_elects_and_averages_by_hand():
    """Kept of ONE: 4, 3, 2; of TWO: -2, -3 and its ones, which tie. 4 beats -2; the mean is of those that agree."""
    found, loss = _combined([ONE, TWO], Recipe("ties", (1.0, 1.0), rank=3, density=0.5))
    # times 2, the sum of the weights
    assert np.allclose(found, [[8.0, -6.0, 2.0], [0.0, 4.0, 4.0]], atol=1e-5)
    assert loss.conflicts == pytest.approx(1 / 2), "two entries are shared: 4 against -2, and 3 with 1"
    assert loss.dropped[0] == pytest.approx((1 + 0.25) / (16 + 1 + 0.25 + 9 + 4))
    assert loss.dropped[1] == pytest.approx((0.01 + 0.04) / (4 + 9 + 1 + 0.01 + 1 + 0.04))


def test_ties_that_keeps_all_of_agreeing_updates_is_the_weighted_sum():
    one, two = np.abs(ONE) + 1, np.abs(TWO)
    found, loss = _combined([one.tolist(), two.tolist()], Recipe("ties", (0.7, 0.3), rank=3, density=1.0))
    assert np.allclose(found, 0.7 * one + 0.3 * two, atol=1e-5)
    assert loss.conflicts == 0.0


def test_a_negative_weight_takes_an_update_away_in_ties_too():
    found, _ = _combined([ONE], Recipe("ties", (-0.5,), rank=3, density=1.0))
    assert np.allclose(found, -0.5 * np.array(ONE), atol=1e-5)


def test_dare_keeps_a_share_scaled_up_and_is_repeatable():
    matrix = np.random.default_rng(0).standard_normal((60, 50)).tolist()
    recipe = Recipe("dare", (0.5,), rank=50, density=0.25, seed=3)
    found, loss = _combined([matrix], recipe)
    kept = np.abs(found) > 1e-4
    assert kept.mean() == pytest.approx(0.25, abs=0.03)
    assert np.allclose(found[kept], 0.5 * np.array(matrix)[kept] / 0.25, atol=1e-4)
    assert loss.dropped[0] == pytest.approx(0.75, abs=0.05)
    assert np.array_equal(found, _combined([matrix], recipe)[0])
    assert not np.array_equal(kept, np.abs(_combined([matrix], Recipe("dare", (0.5,), 50, 0.25, seed=4))[0]) > 1e-4)


def test_two_adapters_lose_different_entries_in_dare():
    matrix = np.ones((30, 30)).tolist()
    found, _ = _combined([matrix, matrix], Recipe("dare", (1.0, 1.0), rank=30, density=0.5))
    assert set(np.round(np.unique(np.round(found, 3))).tolist()) == {0.0, 2.0, 4.0}


def test_a_module_that_one_adapter_lacks_is_the_others_alone_and_all_get_one_rank():
    both, alone = _dense_factors(ONE), _dense_factors(TWO)
    found = combine([{"m": both}, {"m": both, "n": alone}], Recipe("linear", (0.5, 0.25)))
    assert found.rank == 6
    assert {path: factors.rank for path, factors in found.factors.items()} == {"m": 6, "n": 6}
    assert np.allclose(np.array(found.factors["m"].update)[0], 0.75 * np.array(ONE), atol=1e-6)
    assert np.allclose(np.array(found.factors["n"].update)[0], 0.25 * np.array(TWO), atol=1e-6)
    assert (found.loss.moved, found.loss.cut) == (0.0, 0.0)


def test_svd_says_how_far_from_the_sum_it_ends():
    total = 0.5 * np.array(ONE) + 0.5 * np.array(TWO)
    singular = np.linalg.svd(total, compute_uv=False)
    found, loss = _combined([ONE, TWO], Recipe("svd", (0.5, 0.5), rank=1))
    assert np.linalg.norm(found - total) == pytest.approx(singular[1], rel=1e-5)
    assert loss.cut == pytest.approx(singular[1] ** 2 / (singular**2).sum(), rel=1e-5)
    assert loss.moved == pytest.approx(singular[1] / np.linalg.norm(singular), rel=1e-5)
