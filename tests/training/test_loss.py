"""The loss and its gradient against the textbook's, far values included."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_lora.training.loss import summed_divergence, summed_nats


def textbook(logits, targets, weights):
    return (nn.losses.cross_entropy(logits, targets, reduction="none") * weights).sum()


@given(seed=st.integers(0, 10_000), size=st.sampled_from([1.0, 10.0, 100.0]), rows=st.integers(1, 5))
def test_loss_and_gradient_are_those_of_the_textbook(seed, size, rows):
    generator = np.random.default_rng(seed)
    logits = mx.array(generator.normal(size=(rows, 17)).astype(np.float32) * size)
    targets = mx.array(generator.integers(0, 17, rows))
    weights = mx.array(generator.integers(0, 2, rows).astype(np.float32))
    value, gradient = mx.value_and_grad(summed_nats)(logits, targets, weights)
    expected, expected_gradient = mx.value_and_grad(textbook)(logits, targets, weights)
    assert float(value) == pytest.approx(float(expected), rel=1e-5, abs=1e-5)
    assert mx.allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6).item()


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
    logits = mx.zeros((2, 3, 8))
    targets = mx.array([[0, 1, 2], [3, 4, 5]])
    weights = mx.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    assert float(summed_nats(logits, targets, weights)) == pytest.approx(3 * math.log(8))


def test_a_hopeless_token_costs_what_it_should_and_stays_finite():
    # https://github.com/ml-explore/mlx-examples/issues/620: a probability that underflows became an infinite loss
    logits = mx.array([[0.0, 500.0, -500.0]])
    value, gradient = mx.value_and_grad(summed_nats)(logits, mx.array([2]), mx.array([1.0]))
    assert float(value) == 1000.0
    assert gradient.tolist() == [[0.0, 1.0, -1.0]]


def test_a_weight_of_zero_leaves_no_gradient():
    logits = mx.random.normal((4, 9), key=mx.random.key(0))
    gradient = mx.grad(summed_nats)(logits, mx.array([0, 1, 2, 3]), mx.array([1.0, 0.0, 1.0, 0.0]))
    assert gradient[1].tolist() == [0.0] * 9
    assert gradient[3].tolist() == [0.0] * 9


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_logits_are_summed_in_float32_and_get_their_own_type_back(dtype):
    logits = mx.random.normal((3, 400), key=mx.random.key(1)).astype(dtype)
    targets, weights = mx.array([5, 6, 7]), mx.ones(3)
    value, gradient = mx.value_and_grad(summed_nats)(logits, targets, weights)
    assert value.dtype == mx.float32
    assert gradient.dtype == dtype
    assert float(value) == pytest.approx(float(textbook(logits.astype(mx.float32), targets, weights)), rel=1e-5)


def test_divergence_and_gradient_are_those_of_the_textbook():
    generator = np.random.default_rng(3)
    logits = mx.array(generator.normal(0, 3, (4, 9)).astype(np.float32))
    targets = mx.array([[0, 3], [8, 1], [2, 5], [4, 6]])
    shares = mx.array([[0.5, 0.3], [0.9, 0.1], [0.2, 0.2], [0.7, 0.0]])
    weights = mx.array([1.0, 0.5, 2.0, 0.0])

    def plain(logits):
        found = mx.take_along_axis(mx.softmax(logits, axis=-1), targets, axis=-1)
        rest, others = 1 - shares.sum(axis=-1), 1 - found.sum(axis=-1)
        known = (shares * mx.log(mx.maximum(shares, 1e-6) / found)).sum(axis=-1)
        return ((known + rest * mx.log(mx.maximum(rest, 1e-6) / others)) * weights).sum()

    value, gradient = mx.value_and_grad(summed_divergence)(logits, targets, shares, weights)
    expected, expected_gradient = mx.value_and_grad(plain)(logits)
    assert float(value) == pytest.approx(float(expected), rel=1e-4)
    assert float(value) > 0.1
    assert np.array(gradient) == pytest.approx(np.array(expected_gradient), abs=1e-4)


def test_a_model_as_expected_has_no_divergence_whatever_the_other_tokens_do():
    logits = mx.array([[2.0, 1.0, 0.0, -1.0, -50.0]])
    targets = mx.array([[1, 0]])
    shares = mx.take_along_axis(mx.softmax(logits, axis=-1), targets, axis=-1)
    value, gradient = mx.value_and_grad(summed_divergence)(logits, targets, shares, mx.array([1.0]))
    assert float(value) == pytest.approx(0.0, abs=1e-6)
    assert np.array(gradient) == pytest.approx(np.zeros((1, 5)), abs=1e-6)
    certain = summed_divergence(mx.array([[0.0, 90.0]]), mx.array([[1]]), mx.array([[1.0]]), mx.array([1.0]))
    assert float(certain) == pytest.approx(0.0, abs=1e-6)
