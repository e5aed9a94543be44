"""The CPU's own SwiGLU against mlx-lm's, gradients and far values included."""

import mlx.core as mx
import pytest
from mlx_lm.models import activations, llama

from mlx_lora.model.cpu import swiglu, use_fast_cpu
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
    model = tiny_model("llama")
    tokens = mx.array([[5, 6, 7, 8]])
    before = model(tokens)
    mx.eval(before)
    use_fast_cpu(model)
    assert llama.swiglu is swiglu
    assert mx.allclose(model(tokens), before, rtol=1e-5, atol=1e-5).item()
