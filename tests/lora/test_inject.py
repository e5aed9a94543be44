"""inject_lora: which modules of every family, what is trained, and the model before and after."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlx_lora.config import LoraSettings
from mlx_lora.errors import AdapterError
from mlx_lora.lora.inject import (
    inject_lora,
    iter_lora_modules,
    parameter_count,
    remove_lora,
    set_adapter_enabled,
    transformer_layers,
)
from tests.tiny import FAMILIES, tiny_model

TOKENS = mx.array([[1, 7, 30, 31, 200, 9, 12, 300], [5, 5, 6, 8, 13, 21, 34, 55]])
_SEPARATE = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
_GATED = ["mlp.gate_proj", "mlp.down_proj", "mlp.up_proj"]
ATTENTION = dict.fromkeys(FAMILIES, _SEPARATE) | {
    "phi3": ["self_attn.qkv_proj", "self_attn.o_proj"],
    "gpt2": ["attn.c_attn", "attn.c_proj"],
    "mamba": [],
}
MLP = dict.fromkeys(FAMILIES, _GATED) | {
    "phi3": ["mlp.gate_up_proj", "mlp.down_proj"],
    "gpt2": ["mlp.c_fc", "mlp.c_proj"],
    "mixtral": [f"block_sparse_moe.switch_mlp.{name}_proj" for name in ("gate", "up", "down")],
    "mamba": [],
}
ALL = {family: ATTENTION[family] + MLP[family] for family in FAMILIES} | {
    "mamba": ["mixer.in_proj", "mixer.x_proj", "mixer.dt_proj", "mixer.out_proj"]
}
LAYERS = dict.fromkeys(FAMILIES, "model.layers") | {"gpt2": "model.h", "mamba": "backbone.layers"}


def _paths(family: str, names: list[str], layers: range = range(4)) -> set[str]:
    return {f"{LAYERS[family]}.{index}.{name}" for index in layers for name in names}


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_adapts_exactly_the_linear_modules_of_the_layers_and_changes_no_bit(family, bits):
    model = tiny_model(family, bits=bits)
    before = model(TOKENS)
    injection = inject_lora(model, LoraSettings(rank=4), seed=0)
    assert set(injection.modules) == _paths(family, ALL[family])
    assert injection.first_layer == 0
    assert mx.array_equal(model(TOKENS), before)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "mamba"])
@pytest.mark.parametrize(("preset", "names"), [("attention", ATTENTION), ("mlp", MLP)])
def test_presets_adapt_their_part_of_every_family(family, preset, names):
    injection = inject_lora(tiny_model(family), LoraSettings(rank=2, target_modules=preset), seed=0)
    assert set(injection.modules) == _paths(family, names[family])


@pytest.mark.parametrize("preset", ["attention", "mlp"])
def test_a_preset_that_matches_nothing_lists_what_there_is(preset):
    with pytest.raises(AdapterError, match=f"nothing matches {preset}") as raised:
        inject_lora(tiny_model("mamba"), LoraSettings(target_modules=preset), seed=0)
    assert "mixer.in_proj, mixer.x_proj, mixer.dt_proj, mixer.out_proj" in raised.value.hint


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["c_proj"], ["attn.c_proj", "mlp.c_proj"]),
        (["attn.c_proj"], ["attn.c_proj"]),
        (["c_attn", "mlp.c_proj"], ["attn.c_attn", "mlp.c_proj"]),
    ],
)
def test_names_match_whole_last_components_or_dotted_ends(names, expected):
    injection = inject_lora(tiny_model("gpt2"), LoraSettings(rank=2, target_modules=names), seed=0)
    assert set(injection.modules) == _paths("gpt2", expected)


@pytest.mark.parametrize("names", [["q_porj", "v_proj", "roj", "lm_head"], ["q_proj", "embed_tokens"], []])
def test_every_unmatched_name_of_a_list_is_named_and_the_model_left_alone(names):
    model = tiny_model("llama_untied")
    with pytest.raises(AdapterError) as raised:
        inject_lora(model, LoraSettings(target_modules=names), seed=0)
    wrong = [name for name in names if name not in ("q_proj", "v_proj")]
    assert raised.value.message.endswith(", ".join(wrong) or "an empty list")
    assert "self_attn.q_proj" in raised.value.hint
    assert not list(iter_lora_modules(model))
    assert model.trainable_parameters() == model.parameters()


def test_a_name_with_a_letter_missing_gets_the_near_one():
    with pytest.raises(AdapterError) as raised:
        inject_lora(tiny_model(), LoraSettings(target_modules=["q_prj", "mlp.up_prj", "wibble"]), seed=0)
    assert raised.value.message == "lora.target_modules: nothing matches q_prj, mlp.up_prj, wibble"
    assert raised.value.hint.startswith("did you mean q_proj and mlp.up_proj? the layers of this model have self_attn.")


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"rank": 65}, "lora.rank: 65 is more than any module of this model can use"),
        ({"rank": 4, "alpha": 4e5}, r"lora.alpha: 400000 at rank 4 is an effective scale of 100000"),
    ],
)
def test_a_rank_or_scale_beyond_all_use_is_refused_before_anything_changes(settings, fact):
    model = tiny_model()
    with pytest.raises(AdapterError, match=fact):
        inject_lora(model, LoraSettings(**settings), seed=0)
    assert list(iter_lora_modules(model)) == []
    assert len(inject_lora(model, LoraSettings(rank=64), seed=0).modules) == 28


def test_a_router_is_adapted_only_when_it_is_named():
    model = tiny_model("mixtral")
    assert not any(path.endswith(".gate") for path in inject_lora(model, LoraSettings(rank=2), seed=0).modules)
    named = inject_lora(tiny_model("mixtral"), LoraSettings(rank=2, target_modules=["gate"]), seed=0)
    assert set(named.modules) == _paths("mixtral", ["block_sparse_moe.gate"])


class _RoutedLayer(nn.Module):
    """Experts whose router has a name of its own, as in mlx-lm's Klear."""

    def __init__(self) -> None:
        super().__init__()
        from mlx_lm.models.switch_layers import SwitchGLU

        self.mlp = nn.Module()
        self.mlp.chooser = nn.Linear(16, 4)
        self.mlp.shared_gate = nn.Linear(16, 1)
        self.mlp.shared_up = nn.Linear(16, 32)
        self.mlp.experts = SwitchGLU(16, 32, 4)


def test_a_router_of_another_name_is_known_by_its_experts():
    model = nn.Module()
    model.layers = [_RoutedLayer()]
    injection = inject_lora(model, LoraSettings(rank=2), seed=0)
    names = ["shared_up", "experts.gate_proj", "experts.up_proj", "experts.down_proj"]
    assert set(injection.modules) == {f"layers.0.mlp.{name}" for name in names}


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "mixtral"])
def test_the_last_n_layers_are_adapted_and_no_other(family):
    injection = inject_lora(tiny_model(family), LoraSettings(rank=2, layers=3), seed=0)
    assert set(injection.modules) == _paths(family, ALL[family], range(1, 4))
    assert injection.first_layer == 1


def test_more_layers_than_there_are_is_an_error():
    with pytest.raises(AdapterError, match=r"lora\.layers: 5 asked for, the model has 4"):
        inject_lora(tiny_model(), LoraSettings(layers=5), seed=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("method", "leaves"), [("lora", {"lora_a", "lora_b"}), ("dora", {"lora_a", "lora_b", "m"})])
def test_gradients_reach_every_adapter_parameter_and_nothing_else(family, method, leaves):
    model = tiny_model(family, bits=4)
    targets = "attention" if family == "mixtral" else "all-linear"
    injection = inject_lora(model, LoraSettings(rank=2, method=method, target_modules=targets), seed=0)
    for _, layer in iter_lora_modules(model):
        layer.lora_b = layer.lora_b + 0.01  # with B = 0 the gradient of A is zero
    gradients = dict(tree_flatten(nn.value_and_grad(model, lambda: mx.square(model(TOKENS)).mean())()[1]))
    assert set(gradients) == {f"{path}.{leaf}" for path in injection.modules for leaf in leaves}
    assert all(mx.any(gradient != 0).item() for gradient in gradients.values())


def test_gradients_reach_the_factors_of_the_experts_that_were_chosen():
    model = tiny_model("mixtral", bits=4)
    inject_lora(model, LoraSettings(rank=2, target_modules="mlp"), seed=0)
    gradients = dict(tree_flatten(nn.value_and_grad(model, lambda: mx.square(model(TOKENS)).mean())()[1]))
    assert all(mx.any(value != 0).item() for name, value in gradients.items() if name.endswith("lora_b"))
    assert {name.rpartition(".")[2] for name in gradients} == {"lora_a", "lora_b"}


def test_dora_on_experts_is_refused_before_anything_changes():
    model = tiny_model("mixtral")
    with pytest.raises(AdapterError, match=r"model\.layers\.0\.block_sparse_moe.*DoRA has no layer for experts"):
        inject_lora(model, LoraSettings(method="dora"), seed=0)
    assert model.trainable_parameters() == model.parameters()


@pytest.mark.parametrize("bits", [None, 4])
def test_parameters_are_counted_as_if_unpacked(bits):
    plain = sum(value.size for _, value in tree_flatten(tiny_model("gpt2").parameters()))
    model = tiny_model("gpt2", bits=bits)
    assert parameter_count(model) == plain
    injection = inject_lora(model, LoraSettings(rank=4), seed=0)
    expected = 4 * 4 * ((64 + 192) + (64 + 64) + (64 + 256) + (256 + 64))
    assert injection.trainable_parameters == expected
    assert injection.total_parameters == plain + expected


def test_injecting_twice_is_an_error():
    model = tiny_model()
    inject_lora(model, LoraSettings(rank=2), seed=0)
    with pytest.raises(AdapterError, match="has an adapter already"):
        inject_lora(model, LoraSettings(rank=2), seed=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("bits", [None, 4])
def test_remove_puts_the_very_same_modules_back(family, bits):
    """mlx-lm's remove_lora_layers leaves DoRA and expert wrappers in the model (FIELD.md, Peers)."""
    model = tiny_model(family, bits=bits)
    before = {path: id(module) for path, module in model.named_modules()}
    answer = model(TOKENS)
    for settings in (LoraSettings(rank=2), LoraSettings(rank=3, method="dora", target_modules="attention", layers=2)):
        inject_lora(model, settings, seed=0)
        remove_lora(model)
        assert {path: id(module) for path, module in model.named_modules()} == before
        assert mx.array_equal(model(TOKENS), answer)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformer_layers_is_the_list_that_the_model_iterates(family):
    """Some families' `layers` property is a copy: replacing an entry there would change nothing."""
    model = tiny_model(family)
    layers = transformer_layers(model)
    assert len(layers) == 4
    before = model(TOKENS)
    layers[1], layers[2] = layers[2], layers[1]
    assert not mx.array_equal(model(TOKENS), before)


def test_a_model_without_layers_is_refused():
    with pytest.raises(AdapterError, match="shows no list of layers"):
        inject_lora(nn.Linear(4, 4), LoraSettings(), seed=0)


def test_disabled_adapters_answer_bit_for_bit_as_the_base():
    model = tiny_model("llama", bits=4)
    before = model(TOKENS)
    inject_lora(model, LoraSettings(rank=2), seed=0)
    for _, layer in iter_lora_modules(model):
        layer.lora_b = layer.lora_b + 0.1
    changed = model(TOKENS)
    assert not mx.allclose(changed, before, atol=1e-2)
    set_adapter_enabled(model, False)
    assert mx.array_equal(model(TOKENS), before)
    set_adapter_enabled(model, True)
    assert mx.array_equal(model(TOKENS), changed)


def test_the_seed_alone_decides_a():
    factors = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 1)):
        model = tiny_model()
        mx.random.seed(global_seed)
        inject_lora(model, LoraSettings(rank=2), seed=seed)
        factors.append([layer.lora_a for _, layer in iter_lora_modules(model)])
    assert all(mx.array_equal(a, b) for a, b in zip(factors[0], factors[1], strict=True))
    assert not any(mx.array_equal(a, b) for a, b in zip(factors[0], factors[2], strict=True))
    assert not mx.array_equal(factors[0][0], factors[0][7]), "equal modules of two layers start differently"


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        (LoraSettings(rank=16, alpha=32.0), 2.0),
        (LoraSettings(rank=4, alpha=1.0), 0.25),
        (LoraSettings(rank=16, alpha=32.0, use_rslora=True), 8.0),
    ],
)
def test_the_effective_scale_is_alpha_over_rank_or_over_its_root(settings, scale):
    model = tiny_model()
    inject_lora(model, settings, seed=0)
    assert {layer.scale for _, layer in iter_lora_modules(model)} == {scale}
