"""The CPU's own exponentials, SwiGLU and attention against MLX's, gradients and far values included."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlx_lm.models import activations, base, llama

from mlx_lora.model import cpu
from mlx_lora.model.cpu import Rotation, attention, exp2, swiglu, use_fast_cpu
from tests.tiny import tiny_model


@pytest.mark.parametrize("size", [1.0, 30.0, 20_000.0])
def test_swiglu_and_its_gradients_are_mlx_lms(size):
    gate, x = (mx.random.normal((64, 33), key=mx.random.key(key)) * size for key in (0, 1))

    def values(function):
        return function(gate, x), *mx.grad(lambda gate, x: function(gate, x).sum(), argnums=(0, 1))(gate, x)

    for found, expected in zip(values(swiglu), values(activations.swiglu), strict=True):
        assert mx.isfinite(found).all().item()
        assert mx.allclose(found, expected, rtol=1e-5, atol=1e-5 * size).item()


def test_a_family_takes_it_and_keeps_its_answers(monkeypatch):
    monkeypatch.setattr(llama, "swiglu", activations.swiglu)
    monkeypatch.setattr(llama, "scaled_dot_product_attention", base.scaled_dot_product_attention)
    model = tiny_model("llama")
    tokens = mx.array([[5, 6, 7, 8]])
    before = model(tokens)
    mx.eval(before)
    use_fast_cpu(model)
    assert llama.swiglu is swiglu
    assert llama.scaled_dot_product_attention is attention
    assert mx.allclose(model(tokens), before, rtol=1e-5, atol=1e-5).item()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("offset", [0, 5, mx.array([0, 3, 700])], ids=["start", "later", "each row's own"])
@pytest.mark.parametrize(("dims", "width", "scale"), [(16, 16, 1.0), (8, 12, 0.25)])
def test_rotary_positions_and_their_gradients_are_mlxs_to_the_bit(dims, width, scale, offset, compiled):
    plain, fast = (nn.RoPE(dims, base=10_000.0, scale=scale) for _ in range(2))
    fast.__class__ = Rotation
    x = mx.random.normal((3, 2, 7, width), key=mx.random.key(0))
    target = mx.random.normal(x.shape, key=mx.random.key(1))

    def values(rope):
        run = mx.value_and_grad(lambda x: (rope(x, offset) * target).sum())
        return rope(x, offset), *(mx.compile(run) if compiled else run)(x)

    for found, expected in zip(values(fast), values(plain), strict=True):
        assert (found == expected).all().item()


def test_other_rotations_stay_what_they_are():
    model = tiny_model("llama")
    use_fast_cpu(model)
    rope = model.layers[0].self_attn.rope
    assert type(rope) is Rotation
    one, half = mx.random.normal((1, 2, 1, 16)), mx.random.normal((1, 2, 3, 16)).astype(mx.float16)
    for x in (one, half):
        assert (rope(x, 4) == nn.RoPE.__call__(rope, x, 4)).all().item()
    rope.traditional = True
    x = mx.random.normal((1, 2, 3, 16))
    assert (rope(x, 4) == nn.RoPE.__call__(rope, x, 4)).all().item()


@pytest.mark.parametrize("compiler", [True, False])
def test_a_power_of_two_is_right_to_two_units_in_the_last_place(compiler, monkeypatch):
    monkeypatch.setattr(cpu, "_fuses", lambda: compiler)
    x = mx.random.uniform(-126, 127, (20_000,), key=mx.random.key(0))
    expected = np.exp2(np.array(x).astype(np.float64))
    assert np.abs(np.array(exp2(x)) / expected - 1).max() < 2.4e-7


def test_whole_powers_are_exact_and_far_ones_end_in_nothing_but_nan_stays():
    assert exp2(mx.array([-126.0, -1.0, 0.0, 1.0, 10.0, 127.0])).tolist() == [
        2.0**-126,
        0.5,
        1.0,
        2.0,
        1024.0,
        2.0**127,
    ]
    assert exp2(mx.array([-127.0, -1e30, -float("inf")])).tolist() == [0.0, 0.0, 0.0]
    assert mx.isnan(exp2(mx.array([float("nan")]))).item()


def masks(kind, rows, heads, length, total):
    keys = mx.arange(total)
    causal = keys[None] <= mx.arange(total - length, total)[:, None]
    window = causal & (keys[None] > mx.arange(total - length, total)[:, None] - 4)
    own = mx.random.uniform(shape=(rows, heads, length, total), key=mx.random.key(9)) > 0.3
    return {
        "none": None,
        "causal": "causal",
        "array": window,
        "row": mx.broadcast_to(window, (rows, 1, length, total)),
        "head": own | (keys == 0),
        "added": mx.where(window, 0.0, -1e9),
    }[kind]


@pytest.mark.parametrize("kind", ["none", "causal", "array", "row", "head", "added"])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2)])
def test_attention_and_its_gradients_are_mlxs(kind, heads, groups):
    rows, length, total, width = 3, 5, 8, 16
    shapes = [(rows, heads, length, width), (rows, groups, total, width), (rows, groups, total, width)]
    arrays = [3 * mx.random.normal(shape, key=mx.random.key(place)) for place, shape in enumerate(shapes)]
    mask = masks(kind, rows, heads, length, total)

    def values(function):
        def total(*arrays):
            answer = function(*arrays, cache=None, scale=0.25, mask=mask)
            return (answer * mx.cos(mx.arange(answer.size).reshape(answer.shape))).sum()

        return function(*arrays, cache=None, scale=0.25, mask=mask), *mx.grad(total, argnums=(0, 1, 2))(*arrays)

    for found, expected in zip(values(attention), values(base.scaled_dot_product_attention), strict=True):
        assert mx.allclose(found, expected, rtol=1e-4, atol=2e-5).item()


@given(st.floats(1.0, 1e4))
@example(9562.969259271471)  # the scores of the backward pass are rounded otherwise: their powers were infinite
def test_attention_stays_finite_where_scores_are_far_apart(size):
    arrays = [size * mx.random.normal((1, 2, 4, 8), key=mx.random.key(place)) for place in range(3)]
    answer, gradients = mx.value_and_grad(lambda *arrays: attention(*arrays, None, 1.0, "causal").sum(), (0, 1, 2))(
        *arrays
    )
    assert mx.isfinite(answer).item()
    assert all(mx.isfinite(gradient).all().item() for gradient in gradients)


def test_half_precision_and_single_queries_go_to_mlxs_own_attention(monkeypatch):
    seen = []
    monkeypatch.setattr(cpu, "scaled_dot_product_attention", lambda queries, *_: seen.append(queries.dtype) or queries)
    one, half = mx.zeros((1, 2, 1, 8)), mx.zeros((1, 2, 3, 8), mx.float16)
    attention(one, one, one, None, 1.0, None)
    attention(half, half, half, None, 1.0, None)
    assert seen == [mx.float32, mx.float16]
