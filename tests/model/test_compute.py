"""Quantized modules to plain ones: exactly what their bits mean."""

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_lora.errors import ModelError
from mlx_lora.model import compute

pytestmark = pytest.mark.usefixtures("on_the_cpu")


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64])
def test_unpacking_gives_mlxs_own_float32_bit_for_bit(bits: int, group_size: int) -> None:
    mx.random.seed(bits)
    for kind, layer in (("linear", nn.Linear(128, 48)), ("embedding", nn.Embedding(48, 128))):
        packed = layer.to_quantized(group_size=group_size, bits=bits)
        packed.set_dtype(mx.bfloat16)
        expected = mx.dequantize(
            packed.weight,
            packed.scales.astype(mx.float32),
            packed.biases.astype(mx.float32),
            group_size=group_size,
            bits=bits,
        )
        assert mx.array_equal(compute._plain_weight(packed), expected), kind


@pytest.mark.parametrize(("mode", "group_size", "bits"), [("mxfp4", 32, 4), ("mxfp8", 32, 8), ("nvfp4", 16, 4)])
def test_other_modes_are_dequantized_by_mlx(mode: str, group_size: int, bits: int) -> None:
    mx.random.seed(0)
    linear = nn.Linear(64, 32)
    packed = linear.to_quantized(group_size=group_size, bits=bits, mode=mode)
    model = nn.Sequential(packed)
    line = compute.apply_compute(model, "auto")
    assert line == f"float32, dequantized from {bits}-bit (CPU device)"
    plain = model.layers[0]
    assert type(plain) is nn.Linear
    assert plain.weight.dtype == mx.float32
    expected = mx.dequantize(packed.weight, packed.scales, group_size=group_size, bits=bits, mode=mode)
    assert mx.array_equal(plain.weight.astype(expected.dtype), expected)
    assert mx.array_equal(plain.bias, linear.bias)


def test_a_quantized_layer_that_cannot_be_undone_is_named() -> None:
    class QuantizedOther(nn.QuantizedLinear):
        pass

    with pytest.raises(ModelError, match=r"module layers\.0: QuantizedOther cannot be dequantized") as caught:
        compute.apply_compute(nn.Sequential(QuantizedOther(64, 32, group_size=32, bits=4)), "auto")
    assert "compute: quantized" in str(caught.value.hint)
