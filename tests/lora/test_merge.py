"""Merged weights, the forms they are stored in, and the measure that says whether a fine-tune survived."""

import math

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_lora.config import LoraSettings
from mlx_lora.errors import AdapterError
from mlx_lora.lora.fidelity import Distance, Row, answer_logits, explain_loss, measure_distance
from mlx_lora.lora.inject import inject_lora, iter_lora_modules, replace_module
from mlx_lora.lora.layer import LoRALinear, dense_weight
from mlx_lora.lora.merge import delta_ratio, merged_weight
from mlx_lora.lora.precision import Step, measure_steps, mixed_attempts
from mlx_lora.lora.storage import Storage, plan_attempts, restore, store, stored_form
from tests.tiny import tiny_model

TOKENS = mx.array([[1, 7, 30, 31, 200, 9, 12, 300]])


def _adapted(family: str, bits: int | None, size: float, **settings: object) -> nn.Module:
    model = tiny_model(family, bits=bits)
    inject_lora(model, LoraSettings(rank=4, **settings), seed=0)
    for index, (_, layer) in enumerate(iter_lora_modules(model)):
        layer.lora_b = size * mx.random.normal(layer.lora_b.shape, key=mx.random.key(index))
        if "m" in layer:
            layer.m = layer.m * (1 + mx.random.normal(layer.m.shape, key=mx.random.key(index)) * 0.1)
    return model


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_the_merged_weight_answers_as_base_and_adapter_together(family, method, bits):
    model = _adapted(family, bits, 0.05, method=method)
    expected = model(TOKENS)
    for path, layer in list(iter_lora_modules(model)):
        weight = merged_weight(layer)
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in layer.linear)
        linear.weight = weight
        if "bias" in layer.linear:
            linear.bias = layer.linear.bias
        replace_module(model, path, linear)
    assert mx.allclose(model(TOKENS), expected, rtol=1e-4, atol=1e-4)


def test_experts_merge_one_by_one():
    model = _adapted("mixtral", 4, 0.05, target_modules="mlp")
    _, layer = next(iter_lora_modules(model))
    merged, base = merged_weight(layer), dense_weight(layer.linear)
    for expert in range(4):
        expected = base[expert] + layer.scale * (layer.lora_b[expert] @ layer.lora_a[expert])
        assert mx.allclose(merged[expert], expected, atol=1e-6)


def test_merging_happens_in_float32_whatever_the_base_is_stored_in():
    """mlx-lm#1172: a small update added in half precision is rounded away before it is ever quantized."""
    linear = nn.Linear(64, 64, bias=False)
    linear.set_dtype(mx.bfloat16)
    layer = LoRALinear(linear, 4, 1.0, 0.0, mx.random.key(0))
    layer.lora_b = 1e-5 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(1))
    expected = (layer.lora_a @ layer.lora_b).T

    def lost(weight: mx.array) -> float:
        difference = weight.astype(mx.float32) - linear.weight.astype(mx.float32) - expected
        return (mx.linalg.norm(difference) / mx.linalg.norm(expected)).item()

    assert lost(merged_weight(layer)) < 0.01
    assert lost(linear.weight + expected.astype(mx.bfloat16)) > 0.5, "the naive sum"


def test_the_ratio_of_an_untrained_adapter_is_zero():
    for method in ("lora", "dora"):
        model = tiny_model(bits=4)
        inject_lora(model, LoraSettings(rank=4, method=method), seed=0)
        assert delta_ratio(model) == 0.0


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_a_packed_weight_is_restored_within_one_step_of_its_grid(bits):
    weight = mx.random.normal((8, 64), key=mx.random.key(0))
    storage = Storage(mx.float32, bits, 32)
    tensors = store(weight, storage)
    assert set(tensors) == {"weight", "scales", "biases"}
    steps = mx.abs(restore(tensors, storage) - weight).reshape(8, 2, 32) / mx.abs(tensors["scales"])[..., None]
    assert steps.max().item() < 1
    assert steps.mean().item() < 0.27  # rounding alone gives a quarter of a step


@pytest.mark.parametrize(("mode", "bits", "group_size"), [("mxfp4", 4, 32), ("nvfp4", 4, 16), ("mxfp8", 8, 32)])
def test_the_other_modes_of_mlx_are_kept(mode, bits, group_size):
    linear = nn.QuantizedLinear(64, 8, bias=False, group_size=group_size, bits=bits, mode=mode)
    storage = stored_form(linear)
    assert storage.config == {"group_size": group_size, "bits": bits, "mode": mode}
    tensors = store(dense_weight(linear), storage)
    assert set(tensors) == {"weight", "scales"}
    assert mx.allclose(restore(tensors, storage), dense_weight(linear), atol=1e-6)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_a_plain_weight_is_stored_in_its_type(dtype):
    tensors = store(mx.ones((2, 2)), Storage(dtype))
    assert {name: value.dtype for name, value in tensors.items()} == {"weight": dtype}
    assert Storage(dtype).config is False


def _forms(linears: dict[str, nn.Module], **options: object) -> list[list[str]]:
    return [[str(form) for form in attempt.storages.values()] for attempt in plan_attempts(linears, **options)]


def test_by_default_bits_are_raised_for_the_touched_layers_and_then_dequantized():
    half = nn.Linear(64, 8)
    half.set_dtype(mx.bfloat16)
    linears = {"a": half.to_quantized(64, 4), "b": half.to_quantized(32, 6)}
    assert _forms(linears) == [["4-bit", "6-bit"], ["8-bit", "8-bit"], ["bfloat16"] * 2, ["float32"] * 2]
    raised = plan_attempts(linears)[1].storages
    assert (raised["a"].group_size, raised["b"].group_size) == (64, 32)
    assert raised["a"].dtype == mx.bfloat16


def test_mixtures_spend_bytes_where_most_noise_goes_for_each():
    forms = [Storage(mx.float16, bits, 32) for bits in (4, 5, 6, 8)]

    def layer(noise: float, size: int) -> list[Step]:
        return [Step(form, size * (form.bits or 0), noise / 4**place) for place, form in enumerate(forms)]

    steps = {"loud": layer(8.0, 1), "quiet": layer(1.0, 1), "large": layer(8.0, 100)}
    found = [{path: form.bits for path, form in one.storages.items()} for one in mixed_attempts(steps)]
    assert found == [
        {"loud": 8, "quiet": 6, "large": 5},
        {"loud": 8, "quiet": 8, "large": 6},
    ]  # the third is all of 8 bits


def test_noise_is_measured_on_the_merged_weight_and_falls_with_bits():
    model = _adapted("llama", 4, 0.05)
    for forms in measure_steps(model).values():
        assert [form.storage.bits for form in forms] == [4, 5, 6, 8, None]
        assert [form.noise for form in forms] == sorted((form.noise for form in forms), reverse=True)
        assert [form.stored_bytes for form in forms] == sorted(form.stored_bytes for form in forms)
    path, layer = next(iter_lora_modules(model))
    merged = merged_weight(layer)
    storage = stored_form(layer.linear)
    tensors = store(merged, storage)
    error = mx.square(restore(tensors, storage) - merged).sum() / mx.square(merged).sum()
    assert measure_steps(model)[path][0].noise == pytest.approx(error.item(), rel=1e-5)
    assert measure_steps(model)[path][0].stored_bytes == sum(tensor.nbytes for tensor in tensors.values())


def test_forms_that_are_the_same_are_tried_once():
    assert _forms({"a": nn.Linear(64, 8).to_quantized(64, 8)}) == [["8-bit"], ["float32"]]
    assert _forms({"a": nn.Linear(64, 8)}) == [["float32"]]


def test_bits_and_dequantize_allow_one_kind_of_form():
    linears = {"a": nn.Linear(64, 8).to_quantized(64, 4), "b": nn.Linear(96, 8)}
    assert _forms(linears, bits=6) == [["6-bit", "6-bit"]]
    assert plan_attempts(linears, bits=6)[0].storages["b"].group_size == 32
    assert _forms(linears, dequantize=True) == [["float32", "float32"]]
    assert plan_attempts(linears, dequantize=True)[0].dequantize_others


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"bits": 7}, "--bits 7: MLX packs 2, 3, 4, 5, 6, 8 bits"),
        ({"bits": 4, "dequantize": True}, "exclude each other"),
        ({"bits": 4}, "a: a width of 20 is not divisible"),
    ],
)
def test_forms_that_cannot_be_are_refused(options, fact):
    with pytest.raises(AdapterError, match=fact):
        plan_attempts({"a": nn.Linear(20, 8)}, **options)


def test_only_the_answers_positions_are_compared():
    model = tiny_model()
    tokens = (1, 7, 30, 31, 200)
    (logits,) = answer_logits(model, [Row(tokens, 3)])
    assert mx.allclose(logits, model(mx.array([tokens]))[0, 2:4], atol=1e-5)


def test_the_distance_is_worked_out_by_hand():
    certain, other = mx.array([[0.0, math.log(3.0)]]), mx.array([[math.log(3.0), 0.0]])  # (1/4, 3/4) and (3/4, 1/4)
    distance = measure_distance([certain, certain], [certain, other])
    assert distance.positions == 2
    assert distance.agreement == distance.decided_agreement == 0.5
    assert distance.kl == pytest.approx(0.5 * 0.5 * math.log(3.0))
    assert distance.largest_logit_difference == pytest.approx(math.log(3.0))


def test_a_position_where_the_adapter_hesitates_is_judged_by_its_kl_alone():
    hesitant, other = mx.array([[0.0, 0.05, -9.0]]), mx.array([[0.05, 0.0, -9.0]])
    distance = measure_distance([hesitant], [other])
    assert (distance.agreement, distance.decided_agreement) == (0.0, 1.0)


def test_a_model_that_computes_nan_is_as_far_away_as_can_be():
    distance = measure_distance([mx.zeros((1, 3))], [mx.full((1, 3), float("nan"))])
    assert explain_loss(distance, Distance(1, 0.0, 0.0, 1.0, 1.0), 1.0) == "its logits are not finite"
    assert distance.as_json()["kl"] is None


BASE = Distance(100, 0.4, 0.4, 0.2, 3.0)


@pytest.mark.parametrize(
    ("agreement", "kl", "base", "kept", "reason"),
    [
        (1.0, 0.010, BASE, 1.0, None),
        (0.99, 0.0, BASE, 1.0, None),
        (0.98, 0.0, BASE, 1.0, "98.00% of the tokens"),
        (1.0, 0.011, BASE, 1.0, "its KL is 5.5% of the base's, 5% allowed"),
        (1.0, 1e-7, Distance(100, 1.0, 1.0, 1e-5, 0.1), 0.0, None),  # below what rounding does
        (1.0, 0.0, Distance(100, 1.0, 1.0, 1e-8, 0.1), 0.1, "10% of the update"),
        (1.0, 0.0, Distance(100, 1.0, 1.0, 1e-8, 0.1), 0.97, None),
    ],
)
def test_a_fine_tune_is_lost_when_the_fused_model_is_not_near_beside_its_effect(agreement, kl, base, kept, reason):
    found = explain_loss(Distance(100, agreement, agreement, kl, 0.1), base, kept)
    assert found is None if reason is None else reason in found
