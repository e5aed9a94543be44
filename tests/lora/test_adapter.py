"""Adapter folders: what save_adapter writes, who can read it, and everything that apply_adapter refuses."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_lora.config import LoraSettings
from mlx_lora.errors import AdapterError, MlxLoraError
from mlx_lora.lora.adapter import apply_adapter, read_adapter, save_adapter
from mlx_lora.lora.inject import inject_lora, iter_lora_modules, remove_lora
from mlx_lora.lora.tensor_file import encode_tensors
from tests.tiny import FAMILIES, save_tiny_folder, tiny_model

TOKENS = mx.array([[1, 7, 30, 31, 200, 9, 12, 300]])
IDENTITY = {
    "name": "tiny",
    "revision": None,
    "config_sha256": "c1",
    "weights_sha256": "w1",
    "tokenizer_sha256": "t1",
    "chat_template_sha256": None,
}


def _train(model: Any) -> None:
    """Give every adapter parameter a value of its own, as training would."""
    for index, (_, layer) in enumerate(iter_lora_modules(model)):
        layer.lora_b = 0.05 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(index))
        if "m" in layer:
            layer.m = layer.m * (1 + 0.1 * mx.random.normal(layer.m.shape, key=mx.random.key(1000 + index)))


def _saved(folder: Path, family: str = "llama", bits: int | None = None, **settings: Any) -> mx.array:
    """Save a trained adapter of the tiny model into `folder`; return the adapted model's logits."""
    model = tiny_model(family, bits=bits)
    chosen = LoraSettings(rank=4, **settings)
    inject_lora(model, chosen, seed=0)
    _train(model)
    save_adapter(folder, model, settings=chosen, metadata={"identity": IDENTITY, "step": 7})
    logits: mx.array = model(TOKENS)
    return logits


def _edit(folder: Path, **changes: Any) -> None:
    """Change adapter_config.json: dotted names as `lora_parameters__rank`; None removes."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    for name, value in changes.items():
        place = config
        *parents, last = name.split("__")
        for parent in parents:
            place = place[parent]
        place[last] = value
        if value is None:
            del place[last]
    path.write_text(json.dumps(config))


def _edit_tensors(folder: Path, change: Any) -> None:
    path = folder / "adapters.safetensors"
    tensors = dict(mx.load(str(path)))
    change(tensors)
    path.write_bytes(encode_tensors(tensors, {}))


CASES: list[tuple[str, int | None, dict[str, Any]]] = [
    *((family, None, {}) for family in FAMILIES),
    *((family, 4, {"layers": 2, "use_rslora": True}) for family in FAMILIES),
    *((family, 4, {"method": "dora", "layers": 3}) for family in FAMILIES if family != "mixtral"),
    ("mixtral", 4, {"target_modules": "attention", "method": "dora"}),
]


@pytest.mark.parametrize(("family", "bits", "settings"), CASES)
def test_a_saved_adapter_answers_bitwise_the_same_here_and_the_same_in_mlx_lm(tmp_path, family, bits, settings):
    from mlx_lm.utils import load_adapters

    logits = _saved(tmp_path / "run", family, bits, **settings)
    ours = tiny_model(family, bits=bits)
    applied = apply_adapter(ours, read_adapter(tmp_path / "run"), IDENTITY)
    assert mx.array_equal(ours(TOKENS), logits)
    assert applied.active_modules == f"{len(applied.modules)}/{len(applied.modules)}"
    assert applied.notes == ()

    theirs = load_adapters(tiny_model(family, bits=bits), str(tmp_path / "run"))
    theirs.eval()
    wrapped = {path for path, module in theirs.named_modules() if "lora_a" in module}
    assert wrapped == set(applied.modules)
    if settings.get("method") == "dora":  # the norm is computed in another order
        assert mx.allclose(theirs(TOKENS), logits, rtol=1e-5, atol=1e-5)
    else:
        assert mx.array_equal(theirs(TOKENS), logits)


def test_mlx_lms_own_load_takes_the_folder_as_it_is(tmp_path):
    import mlx_lm

    base = save_tiny_folder(tmp_path / "base", bits=4)
    logits = _saved(tmp_path / "run", bits=4)
    model, tokenizer = mlx_lm.load(str(base), adapter_path=str(tmp_path / "run"))
    assert mx.array_equal(model(TOKENS), logits)
    assert mlx_lm.generate(model, tokenizer, "Who?", max_tokens=3) is not None


@pytest.mark.parametrize("keys", [["self_attn.q_proj", "mlp.down_proj"], None])
def test_an_adapter_that_mlx_lm_wrote_is_applied_with_a_note(tmp_path, keys):
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers

    theirs = tiny_model(bits=4)
    theirs.freeze()
    parameters = {"rank": 3, "scale": 20.0, "dropout": 0.1, **({} if keys is None else {"keys": keys})}
    linear_to_lora_layers(theirs, 2, parameters)
    theirs.eval()
    for _, module in theirs.named_modules():
        if "lora_b" in module:
            module.lora_b = 0.01 * mx.random.normal(module.lora_b.shape)
    folder = tmp_path / "theirs"
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), dict(tree_flatten(theirs.trainable_parameters())))
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters, "model": "x", "iters": 100}
    (folder / "adapter_config.json").write_text(json.dumps(config))

    ours = tiny_model(bits=4)
    applied = apply_adapter(ours, read_adapter(folder), IDENTITY)
    assert mx.array_equal(ours(TOKENS), theirs(TOKENS))
    assert len(applied.modules) == (14 if keys is None else 4)
    assert "does not name the base" in applied.notes[0]


def test_the_config_says_what_mlx_lm_needs_and_what_we_know(tmp_path):
    _saved(tmp_path, family="gpt2", layers=3, target_modules=["c_proj"])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    facts = config.pop("mlx_lora")
    assert config == {
        "fine_tune_type": "lora",
        "num_layers": 3,
        "lora_parameters": {"rank": 4, "scale": 8.0, "dropout": 0.0, "keys": ["attn.c_proj", "mlp.c_proj"]},
    }
    assert facts["format_version"] == 1
    assert facts["identity"] == IDENTITY
    assert facts["step"] == 7
    assert facts["lora"]["target_modules"] == ["c_proj"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapters.safetensors"]


def test_equal_adapters_are_equal_bytes(tmp_path):
    _saved(tmp_path / "one")
    _saved(tmp_path / "two")
    for name in ("adapters.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_value_that_is_not_finite_is_not_saved(tmp_path):
    model = tiny_model()
    inject_lora(model, LoraSettings(rank=2), seed=0)
    model.layers[1].mlp.up_proj.lora_a = model.layers[1].mlp.up_proj.lora_a * float("nan")
    with pytest.raises(AdapterError, match=r"model\.layers\.1\.mlp\.up_proj\.lora_a is not finite in float32"):
        save_adapter(tmp_path / "run", model, settings=LoraSettings(rank=2))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_a_half_precision_file_is_half_as_large_and_reads_as_float32(tmp_path, dtype):
    from mlx_lm.utils import load_adapters

    logits = _saved(tmp_path / "whole", bits=4)
    model = tiny_model(bits=4)
    apply_adapter(model, read_adapter(tmp_path / "whole"), None)
    save_adapter(tmp_path / "half", model, settings=LoraSettings(rank=4), dtype=dtype)
    sizes = [(tmp_path / name / "adapters.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.65 * sizes[0]  # the header stays
    half = tiny_model(bits=4)
    adapter = read_adapter(tmp_path / "half")
    apply_adapter(half, adapter, None)
    assert {tensor.dtype for tensor in adapter.tensors.values()} == {mx.float32}
    assert mx.allclose(half(TOKENS), logits, atol=0.05)
    theirs = load_adapters(tiny_model(bits=4), str(tmp_path / "half"))
    theirs.eval()
    assert mx.allclose(half(TOKENS), theirs(TOKENS), atol=1e-5)


def test_a_value_too_large_for_the_files_type_is_not_saved(tmp_path):
    model = tiny_model()
    inject_lora(model, LoraSettings(rank=2), seed=0)
    model.layers[0].mlp.up_proj.lora_b = model.layers[0].mlp.up_proj.lora_b + 1e5
    with pytest.raises(AdapterError, match=r"up_proj\.lora_b is not finite in float16"):
        save_adapter(tmp_path / "run", model, settings=LoraSettings(rank=2), dtype=mx.float16)


def test_the_ratio_is_that_of_the_dense_norms(tmp_path):
    from mlx_lora.lora.layer import dense_weight
    from mlx_lora.lora.merge import merged_weight

    for family, settings in (("llama", {}), ("mixtral", {}), ("llama", {"method": "dora"})):
        _saved(tmp_path / "run", family, 4, **settings)
        model = tiny_model(family, bits=4)
        applied = apply_adapter(model, read_adapter(tmp_path / "run"), None)
        delta = base = 0.0
        for _, layer in iter_lora_modules(model):
            weight = dense_weight(layer.linear)
            delta += mx.square(merged_weight(layer) - weight).sum().item()
            base += mx.square(weight).sum().item()
        assert applied.delta_ratio == pytest.approx((delta / base) ** 0.5, rel=1e-4)


def test_swapping_adapters_gives_bitwise_what_fresh_loads_give(tmp_path):
    """FIELD.md, Peers: mlx-lm's load_adapters twice on one model is silently wrong."""
    first = _saved(tmp_path / "a", bits=4)
    second = _saved(tmp_path / "b", bits=4, layers=2, alpha=3.0, method="dora", target_modules="mlp")
    model = tiny_model(bits=4)
    plain = model(TOKENS)
    for name, expected in (("a", first), ("b", second), ("a", first)):
        apply_adapter(model, read_adapter(tmp_path / name), IDENTITY)
        assert mx.array_equal(model(TOKENS), expected)
        remove_lora(model)
        assert mx.array_equal(model(TOKENS), plain)


def test_a_base_in_evaluation_mode_gets_its_adapter_without_dropout(tmp_path):
    logits = _saved(tmp_path, dropout=0.5)
    model = tiny_model()
    apply_adapter(model, read_adapter(tmp_path), None)
    assert mx.array_equal(model(TOKENS), logits)


PARTS = {"lora_a": (64, 4), "lora_b": (4, 128)}


def _refusal(folder: Path, family: str = "llama", identity: dict[str, Any] | None = None) -> str:
    model = tiny_model(family)
    before = {path: id(module) for path, module in model.named_modules()}
    with pytest.raises(AdapterError) as raised:
        apply_adapter(model, read_adapter(folder), identity)
    assert {path: id(module) for path, module in model.named_modules()} == before, "the model was touched"
    return raised.value.message


@pytest.mark.parametrize("key", ["config_sha256", "weights_sha256"])
def test_another_base_is_refused_with_both_names(tmp_path, key):
    """mlx-lm#1249, mlx-lm#1725: an adapter on the wrong base answers nonsense without a word."""
    _saved(tmp_path)
    other = {**IDENTITY, "name": "other/base", "revision": "abc", key: "different"}
    message = _refusal(tmp_path, identity=other)
    assert message.endswith(
        f"trained on tiny (config c1, weights w1), the base here is other/base at abc "
        f"(config {other['config_sha256']}, weights {other['weights_sha256']}): other {key.removesuffix('_sha256')}"
    )


def test_the_same_base_under_another_name_is_taken(tmp_path):
    _saved(tmp_path)
    applied = apply_adapter(tiny_model(), read_adapter(tmp_path), {**IDENTITY, "name": "copy", "revision": "main"})
    assert len(applied.notes) == 0
    assert applied.active == len(applied.modules) > 0


def test_another_tokenizer_is_said(tmp_path):
    _saved(tmp_path)
    applied = apply_adapter(tiny_model(), read_adapter(tmp_path), {**IDENTITY, "tokenizer_sha256": "t2"})
    assert "tokenizer" in applied.notes[0]


def test_modules_that_the_base_does_not_have_are_named(tmp_path):
    _saved(tmp_path, "phi3")
    assert "does not have: model.layers.0.mlp.gate_up_proj, model.layers.0.self_attn.qkv_proj" in _refusal(tmp_path)


def test_a_shape_of_another_base_names_the_tensor_and_both_shapes(tmp_path):
    _saved(tmp_path)
    _edit_tensors(tmp_path, lambda t: t.update({"model.layers.2.mlp.up_proj.lora_a": mx.zeros((63, 4))}))
    assert _refusal(tmp_path).endswith(
        "model.layers.2.mlp.up_proj.lora_a has shape (63, 4), this base and rank 4 need (64, 4)"
    )


def test_a_rank_in_the_config_that_the_tensors_do_not_have_is_refused(tmp_path):
    """mlx-examples#982, mlx-lm#1670: config and tensors disagree and nobody says so."""
    _saved(tmp_path)
    _edit(tmp_path, lora_parameters__rank=8)
    assert "has shape (64, 4), this base and rank 8 need (64, 8)" in _refusal(tmp_path)


def test_an_adapted_module_without_tensors_is_named(tmp_path):
    _saved(tmp_path)

    def drop(tensors: dict[str, mx.array]) -> None:
        for leaf in ("lora_a", "lora_b"):
            del tensors[f"model.layers.3.mlp.down_proj.{leaf}"]

    _edit_tensors(tmp_path, drop)
    assert _refusal(tmp_path).endswith("no tensors for: model.layers.3.mlp.down_proj")


def test_a_tensor_whose_module_is_not_adapted_is_named(tmp_path):
    _saved(tmp_path)
    _edit(tmp_path, num_layers=3)
    message = _refusal(tmp_path)
    assert "tensors for modules that its config does not adapt: model.layers.0." in message
    assert message.endswith("and 4 more")


def test_half_a_module_is_refused_before_there_is_a_model(tmp_path):
    _saved(tmp_path)
    _edit_tensors(tmp_path, lambda t: t.pop("model.layers.0.self_attn.q_proj.lora_b"))
    with pytest.raises(AdapterError, match=r"missing: model\.layers\.0\.self_attn\.q_proj\.lora_b"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("name", ["lm_head.weight", "lora_a", "model.layers.0.self_attn.q_proj.m"])
def test_a_foreign_tensor_is_named(tmp_path, name):
    _saved(tmp_path)
    _edit_tensors(tmp_path, lambda t: t.update({name: mx.zeros((4,))}))
    with pytest.raises(AdapterError, match=f"no part of a lora adapter: {name}"):
        read_adapter(tmp_path)


def test_an_embedding_adapter_is_refused_by_kind(tmp_path):
    _saved(tmp_path)
    extra = {"model.embed_tokens.lora_a": mx.zeros((320, 4)), "model.embed_tokens.lora_b": mx.zeros((4, 64))}
    _edit_tensors(tmp_path, lambda t: t.update(extra))
    assert "cannot adapt: model.embed_tokens (Embedding)" in _refusal(tmp_path)


def test_an_untrained_adapter_is_refused(tmp_path):
    model = tiny_model()
    settings = LoraSettings(rank=2)
    inject_lora(model, settings, seed=0)
    save_adapter(tmp_path, model, settings=settings)
    assert "teaches nothing: B of all 28 modules is zero" in _refusal(tmp_path)


def test_an_update_beyond_all_numbers_is_refused(tmp_path):
    _saved(tmp_path)
    huge = {f"model.layers.0.mlp.up_proj.{part}": mx.full(shape, 1e38) for part, shape in PARTS.items()}
    _edit_tensors(tmp_path, lambda t: t.update(huge))
    assert _refusal(tmp_path).endswith("its update is not finite on this base")


def test_a_large_update_that_is_finite_is_put_on_and_its_size_said(tmp_path):
    _saved(tmp_path)
    huge = {"model.layers.0.mlp.up_proj.lora_b": mx.full((4, 128), 1e30)}  # its square is beyond float32
    _edit_tensors(tmp_path, lambda t: t.update(huge))
    applied = apply_adapter(tiny_model(), read_adapter(tmp_path), None)
    assert 1e29 < applied.delta_ratio < 1e33
    assert applied.line.startswith("adapter active: 28/28 modules, ‖ΔW‖/‖W‖ = ")


def test_modules_that_learned_nothing_do_not_count_as_active(tmp_path):
    _saved(tmp_path)
    _edit_tensors(tmp_path, lambda t: t.update({"model.layers.0.mlp.up_proj.lora_b": mx.zeros((4, 128))}))
    assert apply_adapter(tiny_model(), read_adapter(tmp_path), None).active_modules == "27/28"


def test_a_second_adapter_on_an_adapted_model_is_refused(tmp_path):
    _saved(tmp_path)
    model = tiny_model()
    apply_adapter(model, read_adapter(tmp_path), None)
    with pytest.raises(AdapterError, match="has an adapter already"):
        apply_adapter(model, read_adapter(tmp_path), None)


CONFIG_FAULTS = [
    ({"fine_tune_type": "full"}, 'fine_tune_type is "full", expected "lora" or "dora"'),
    ({"fine_tune_type": ["lora"]}, "fine_tune_type is"),
    ({"num_layers": None}, "num_layers is missing"),
    ({"num_layers": 2.5}, "num_layers is 2.5, expected a whole number"),
    ({"lora_parameters": None}, "lora_parameters is missing"),
    ({"lora_parameters": [1]}, "lora_parameters is [1]"),
    ({"lora_parameters__rank": 0}, "lora_parameters.rank is 0, expected a whole number ≥ 1"),
    ({"lora_parameters__rank": True}, "lora_parameters.rank is true"),
    ({"lora_parameters__scale": None, "lora_parameters__alpha": 16}, "lora_parameters.scale is missing"),
    ({"lora_parameters__scale": float("nan")}, "lora_parameters.scale is NaN"),
    ({"lora_parameters__scale": 10**400}, "lora_parameters.scale is 1000"),
    ({"lora_parameters__scale": "2"}, 'lora_parameters.scale is "2"'),
    ({"lora_parameters__dropout": 1.0}, "lora_parameters.dropout is 1.0"),
    ({"lora_parameters__keys": []}, "lora_parameters.keys is []"),
    ({"lora_parameters__keys": "q_proj"}, 'lora_parameters.keys is "q_proj"'),
    ({"mlx_lora": []}, "mlx_lora is [], expected an object"),
    ({"mlx_lora__format_version": 2}, "format_version 2, this mlx-lora reads up to 1"),
]


@pytest.mark.parametrize(("changes", "fact"), CONFIG_FAULTS)
def test_a_config_that_cannot_be_is_refused_with_key_and_value(tmp_path, changes, fact):
    _saved(tmp_path)
    _edit(tmp_path, **changes)
    with pytest.raises(AdapterError) as raised:
        read_adapter(tmp_path)
    assert raised.value.message.startswith(f"{tmp_path / 'adapter_config.json'}: {fact}")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"nul", b'{"a":' * 100_000])
def test_a_config_that_is_no_json_object_is_refused(tmp_path, content):
    _saved(tmp_path)
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(AdapterError, match=r"adapter_config\.json: "):
        read_adapter(tmp_path)


def test_unknown_keys_in_the_config_are_no_fault(tmp_path):
    _saved(tmp_path)
    _edit(tmp_path, future=1, mlx_lora__future=2, lora_parameters__future=3)
    assert read_adapter(tmp_path).facts["future"] == 2


def test_what_is_not_an_adapter_folder_is_said(tmp_path):
    with pytest.raises(AdapterError, match="no such adapter folder"):
        read_adapter(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(AdapterError, match="is a file, not an adapter folder"):
        read_adapter(tmp_path / "file")
    with pytest.raises(AdapterError, match=r"no adapters\.safetensors in it"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(AdapterError, match="a PEFT adapter"):
        read_adapter(tmp_path)
    spaced = tmp_path / "my adapter"
    spaced.mkdir()
    (spaced / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(AdapterError) as caught:
        read_adapter(spaced)
    assert caught.value.hint == f"take it over with `mlx-lora import '{spaced}' -o NAME`"


def test_a_folder_where_a_file_should_be_is_an_error_for_people(tmp_path):
    (tmp_path / "adapters.safetensors").mkdir()
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(MlxLoraError):
        read_adapter(tmp_path)
