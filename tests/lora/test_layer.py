"""LoRALinear, LoRASwitchLinear and DoRALinear: the arithmetic, the switch, and equality with mlx-lm's layers."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlx_lora.lora.layer import (
    AdapterLayer,
    DoRALinear,
    LoRALinear,
    LoRASwitchLinear,
    can_adapt,
    dense_weight,
    linear_dims,
)

INPUTS, OUTPUTS, RANK, SCALE = 64, 96, 4, 1.75


def _linear(bits: int | None = None, bias: bool = True, dtype: mx.Dtype = mx.float32) -> nn.Module:
    mx.random.seed(3)
    linear = nn.Linear(INPUTS, OUTPUTS, bias=bias)
    linear.set_dtype(dtype)
    if bits is not None:
        linear = nn.QuantizedLinear.from_linear(linear, group_size=32, bits=bits)
    linear.eval()
    return linear


def _experts(bits: int | None = None) -> nn.Module:
    from mlx_lm.models.switch_layers import SwitchLinear

    mx.random.seed(3)
    experts = SwitchLinear(INPUTS, OUTPUTS, num_experts=4)
    experts.bias = mx.random.normal(experts.bias.shape)
    return (experts if bits is None else experts.to_quantized(group_size=32, bits=bits)).eval()


def _inputs(*shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(7))


def _trained(layer: AdapterLayer) -> AdapterLayer:
    layer.lora_b = 0.1 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(11))
    if isinstance(layer, DoRALinear):
        layer.m = layer.m * (1 + 0.1 * mx.random.normal(layer.m.shape, key=mx.random.key(12)))
    return layer


@pytest.mark.parametrize("layer_class", [LoRALinear, DoRALinear])
@pytest.mark.parametrize("bits", [None, 3, 4, 8])
@pytest.mark.parametrize("bias", [True, False])
def test_a_new_layer_answers_bit_for_bit_as_its_base(layer_class, bits, bias):
    linear = _linear(bits, bias)
    x = _inputs(5, INPUTS)
    assert mx.array_equal(layer_class(linear, RANK, SCALE, 0.0, mx.random.key(0))(x), linear(x))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("layer_class", [LoRALinear, DoRALinear])
def test_a_half_precision_base_keeps_its_type_and_answer_beside_float32_factors(layer_class, dtype):
    linear = _linear(dtype=dtype)
    x = _inputs(5, INPUTS).astype(dtype)
    layer = layer_class(linear, RANK, SCALE, 0.0, mx.random.key(0))
    assert layer(x).dtype == dtype
    assert mx.array_equal(layer(x), linear(x))
    assert {value.dtype for value in layer.adapter_parameters.values()} == {mx.float32}


@pytest.mark.parametrize("bits", [None, 4])
def test_new_expert_adapters_answer_bit_for_bit_as_their_base(bits):
    experts = _experts(bits)
    x, indices = _inputs(6, 1, 1, INPUTS), mx.array([[0, 3], [1, 2], [3, 3], [2, 0], [0, 1], [1, 1]])
    layer = LoRASwitchLinear(experts, RANK, SCALE, 0.0, mx.random.key(0))
    assert mx.array_equal(layer(x, indices), experts(x, indices))


def test_the_update_is_scale_times_x_a_b():
    linear = _linear()
    layer = _trained(LoRALinear(linear, RANK, SCALE, 0.0, mx.random.key(0)))
    x = _inputs(5, INPUTS)
    assert mx.array_equal(layer(x), linear(x) + SCALE * ((x @ layer.lora_a) @ layer.lora_b))


def test_a_is_uniform_within_one_over_the_root_of_the_width_and_b_is_zero():
    layer = LoRALinear(_linear(), 256, SCALE, 0.0, mx.random.key(0))
    assert (layer.lora_a.shape, layer.lora_b.shape) == ((INPUTS, 256), (256, OUTPUTS))
    assert mx.abs(layer.lora_a).max().item() <= INPUTS**-0.5
    assert mx.abs(layer.lora_a).max().item() > 0.99 * INPUTS**-0.5
    assert abs(layer.lora_a.mean().item()) < 0.01 * INPUTS**-0.5
    assert mx.all(layer.lora_b == 0).item()


def test_the_same_key_gives_the_same_a_and_the_global_random_stream_is_left_alone():
    linear = _linear()
    mx.random.seed(1)
    first = LoRALinear(linear, RANK, SCALE, 0.0, mx.random.key(5)).lora_a
    drawn = mx.random.uniform(shape=(4,))
    mx.random.seed(1)
    assert mx.array_equal(drawn, mx.random.uniform(shape=(4,)))
    assert mx.array_equal(first, LoRALinear(linear, RANK, SCALE, 0.0, mx.random.key(5)).lora_a)
    assert not mx.array_equal(first, LoRALinear(linear, RANK, SCALE, 0.0, mx.random.key(6)).lora_a)


@pytest.mark.parametrize("layer_class", [LoRALinear, DoRALinear])
def test_a_disabled_layer_is_its_base_and_enabled_again_it_is_itself(layer_class):
    linear = _linear()
    layer = _trained(layer_class(linear, RANK, SCALE, 0.0, mx.random.key(0)))
    x = _inputs(5, INPUTS)
    before = layer(x)
    layer.enabled = False
    assert mx.array_equal(layer(x), linear(x))
    layer.enabled = True
    assert mx.array_equal(layer(x), before)
    assert not mx.allclose(before, linear(x), atol=1e-3)


@pytest.mark.parametrize("layer_class", [LoRALinear, DoRALinear])
def test_dropout_acts_on_the_adapters_input_in_training_mode_only(layer_class):
    linear = _linear()
    layer = _trained(layer_class(linear, RANK, SCALE, 0.5, mx.random.key(0)))
    x = _inputs(5, INPUTS)
    assert not layer.dropout.training, "the base was in evaluation mode"
    assert mx.array_equal(layer(x), layer(x))
    layer.train()
    mx.random.seed(0)
    first = layer(x)
    assert not mx.array_equal(first, layer(x))
    mx.random.seed(0)
    assert mx.array_equal(first, layer(x))


def test_only_the_factors_are_trained():
    layer = LoRALinear(_linear(4), RANK, SCALE, 0.0, mx.random.key(0))
    layer.freeze()
    layer.unfreeze_adapter()
    assert [name for name, _ in tree_flatten(layer.trainable_parameters())] == ["lora_a", "lora_b"]


@pytest.mark.parametrize("bits", [None, 4])
def test_lora_answers_bitwise_as_mlx_lm_with_the_same_parameters(bits):
    from mlx_lm.tuner.lora import LoRALinear as Theirs

    linear, x = _linear(bits), _inputs(2, 5, INPUTS)
    ours = _trained(LoRALinear(linear, RANK, SCALE, 0.0, mx.random.key(0)))
    theirs = Theirs.from_base(linear, r=RANK, dropout=0.0, scale=SCALE)
    theirs.lora_a, theirs.lora_b = ours.lora_a, ours.lora_b
    assert mx.array_equal(ours(x), theirs(x))


@pytest.mark.parametrize("bits", [None, 4])
def test_expert_adapters_answer_bitwise_as_mlx_lm_with_the_same_parameters(bits):
    from mlx_lm.tuner.lora import LoRASwitchLinear as Theirs

    experts, x = _experts(bits), _inputs(3, 1, 1, INPUTS)
    indices = mx.array([[0, 3], [1, 2], [3, 3]])
    ours = _trained(LoRASwitchLinear(experts, RANK, SCALE, 0.0, mx.random.key(0)))
    theirs = Theirs.from_base(experts, r=RANK, dropout=0.0, scale=SCALE)
    assert (theirs.lora_a.shape, theirs.lora_b.shape) == (ours.lora_a.shape, ours.lora_b.shape)
    theirs.lora_a, theirs.lora_b = ours.lora_a, ours.lora_b
    assert mx.array_equal(ours(x, indices), theirs(x, indices))


def test_each_expert_adds_its_own_update():
    experts, x = _experts(), _inputs(1, 1, 1, INPUTS)
    layer = _trained(LoRASwitchLinear(experts, RANK, SCALE, 0.0, mx.random.key(0)))
    for expert in range(4):
        index = mx.array([[expert]])
        expected = experts(x, index) + SCALE * (x @ layer.lora_a[expert].T) @ layer.lora_b[expert].T
        assert mx.allclose(layer(x, index), expected, atol=1e-5)


@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("bias", [True, False])
def test_dora_answers_and_learns_as_mlx_lms(bits, bias):
    """https://github.com/ml-explore/mlx-examples/issues/919: DoRA on quantized layers."""
    from mlx_lm.tuner.dora import DoRALinear as Theirs

    linear, x = _linear(bits, bias), _inputs(2, 5, INPUTS)
    ours = DoRALinear(linear, RANK, SCALE, 0.0, mx.random.key(0))
    theirs = Theirs(INPUTS, OUTPUTS, r=RANK, scale=SCALE)
    theirs.set_linear(linear)
    assert mx.allclose(ours.m, theirs.m, rtol=1e-6)
    _trained(ours)
    theirs.lora_a, theirs.lora_b, theirs.m = ours.lora_a, ours.lora_b, ours.m
    assert mx.allclose(ours(x), theirs(x), rtol=1e-5, atol=2e-6)
    target = _inputs(2, 5, OUTPUTS)
    gradients = []
    for layer in (ours, theirs):
        layer.freeze()
        layer.unfreeze(keys=["lora_a", "lora_b", "m"], recurse=False)
        gradient = nn.value_and_grad(layer, lambda layer=layer: mx.square(layer(x) - target).mean())()[1]
        gradients.append(dict(tree_flatten(gradient)))
    assert set(gradients[0]) == {"lora_a", "lora_b", "m"}
    for name, gradient in gradients[1].items():
        assert mx.allclose(gradients[0][name], gradient, rtol=1e-4, atol=1e-7), name


def test_dora_on_a_row_of_zeros_gives_zeros_and_not_nan():
    linear = _linear(bias=False)
    linear.weight = linear.weight.at[0].multiply(0)
    layer = DoRALinear(linear, RANK, SCALE, 0.0, mx.random.key(0))
    assert mx.array_equal(layer(_inputs(3, INPUTS))[:, 0], mx.zeros(3))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_dims_and_dense_weight_of_every_packing(bits):
    linear = _linear(bits)
    assert linear_dims(linear) == (INPUTS, OUTPUTS)
    identity = mx.eye(INPUTS)
    assert mx.allclose(dense_weight(linear).T, linear(identity) - linear.bias, atol=1e-6)


def test_what_can_be_adapted():
    from mlx_lm.models.mla import MultiLinear

    assert all(map(can_adapt, (_linear(), _linear(4), _experts(), _experts(4))))
    others = (nn.Embedding(8, INPUTS), nn.RMSNorm(INPUTS), nn.Conv1d(4, 4, 2), MultiLinear(8, 8, 2))
    assert not any(map(can_adapt, others))
    assert not can_adapt(LoRALinear(_linear(), RANK, SCALE, 0.0, mx.random.key(0)))


def test_gains_that_are_kept_give_the_same_bits_and_do_not_follow_later_changes():
    layer = _trained(DoRALinear(_linear(4), RANK, SCALE, 0.0, mx.random.key(0)))
    x = _inputs(5, INPUTS)
    before = layer(x)
    layer.keep_gains()
    assert mx.array_equal(layer(x), before)
    gains = layer.gains()
    layer.m = 2 * layer.m
    assert mx.array_equal(layer.gains(), 2 * gains)
    assert mx.array_equal(layer(x), before)
    assert "_kept_gains" not in dict(tree_flatten(layer.parameters()))
