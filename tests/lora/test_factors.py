"""Low-rank updates against NumPy's dense algebra in double precision: norms, sums, cuts, overlaps."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_lora.lora.factors import Factors, add, cut, factorize, inner, norm, overlap, widen

INPUTS, OUTPUTS = 40, 24


def _factors(seed: int, rank: int = 4, experts: int = 1, size: float = 1.0) -> Factors:
    generator = np.random.default_rng(seed)
    shapes = (experts, INPUTS, rank), (experts, rank, OUTPUTS)
    with mx.stream(mx.cpu):
        a, b = (mx.array(size * generator.standard_normal(shape)).astype(mx.float64) for shape in shapes)
    return Factors(a, b, experts > 1)


def _dense(factors: Factors) -> np.ndarray:
    return np.array(factors.a, dtype=np.float64) @ np.array(factors.b, dtype=np.float64)


@pytest.mark.parametrize("experts", [1, 3])
def test_norm_and_inner_product_are_those_of_the_dense_updates(experts):
    one, two = _factors(0, 4, experts), _factors(1, 7, experts)
    assert norm(one) == pytest.approx(np.linalg.norm(_dense(one)), rel=1e-6)
    assert inner(one, two) == pytest.approx((_dense(one) * _dense(two)).sum(), rel=1e-5)


def test_a_sum_is_exact_and_its_rank_is_the_sum_of_the_ranks():
    one, two = _factors(0, 4), _factors(1, 7)
    total = add([(0.7, one), (-0.3, two)])
    assert total.rank == 11
    assert np.allclose(_dense(total), 0.7 * _dense(one) - 0.3 * _dense(two), atol=1e-6)


def test_an_update_differs_from_itself_by_nothing():
    one = _factors(0, size=1e3)
    assert norm(add([(1.0, one), (-1.0, one)])) < 1e-6 * norm(one)


@pytest.mark.parametrize("rank", [1, 3, 8, 30])
def test_a_cut_is_the_best_approximation_of_its_rank(rank):
    total = add([(1.0, _factors(0, 6)), (0.5, _factors(1, 9))])
    u, s, vt = np.linalg.svd(_dense(total)[0], full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vt[:rank]
    found = cut(total, rank)
    assert found.factors.rank == min(rank, 15)
    assert np.allclose(_dense(found.factors)[0], best, atol=1e-5)
    assert found.whole == pytest.approx((s**2).sum(), rel=1e-6)
    assert found.kept == pytest.approx((s[:rank] ** 2).sum(), rel=1e-6)


def test_experts_are_cut_one_by_one():
    three = _factors(0, 6, 3)
    found = _dense(cut(three, 2).factors)
    for expert in range(3):
        u, s, vt = np.linalg.svd(_dense(three)[expert])
        assert np.allclose(found[expert], (u[:, :2] * s[:2]) @ vt[:2], atol=1e-5)


def test_noise_of_full_rank_is_factorized_within_a_thousandth_of_the_best_error():
    noise = np.random.default_rng(0).standard_normal((160, 200)).astype(np.float32)
    singular = np.linalg.svd(noise, compute_uv=False)
    found = factorize(mx.array(noise)[None], 8)
    error = np.linalg.norm(noise - _dense(found.factors)[0])
    best = np.sqrt((singular[8:] ** 2).sum())
    assert best <= error * (1 + 1e-6)
    assert error <= 1.001 * best
    assert np.sqrt(found.whole - found.kept) == pytest.approx(error, rel=1e-4), "the error that is told is the true one"


def test_a_cut_of_nothing_and_of_a_wide_rank_is_whole():
    nothing = Factors(mx.ones((1, 5, 2)), mx.zeros((1, 2, 3)))
    assert (cut(nothing, 1).whole, cut(nothing, 1).kept) == (0.0, 0.0)
    wide = Factors(mx.ones((1, 3, 6)), mx.ones((1, 6, 4)))
    assert np.allclose(_dense(cut(wide, 6).factors), 6.0)


def test_widening_adds_columns_and_changes_nothing():
    one = _factors(0)
    assert widen(one, 9).rank == 9
    assert np.array_equal(_dense(widen(one, 9)), _dense(one))


def test_overlap_is_one_within_a_span_and_zero_between_orthogonal_ones():
    basis = np.eye(INPUTS)[None]
    outputs = np.eye(OUTPUTS)[None]
    one = Factors(mx.array(basis[:, :, :4]), mx.array(outputs[:, :4]))
    other = Factors(mx.array(basis[:, :, 4:8]), mx.array(outputs[:, 2:6]))
    assert overlap(one, one) == (pytest.approx(1.0), pytest.approx(1.0))
    assert overlap(one, other) == (pytest.approx(0.0, abs=1e-9), pytest.approx(0.5))
    smaller = Factors(mx.array(basis[:, :, :2]), mx.array(outputs[:, :2]))
    assert overlap(one, smaller) == (pytest.approx(1.0), pytest.approx(1.0))
