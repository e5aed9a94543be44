"""Loading a base: what it computes in, what it is called, and what it refuses to run or to read."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_lora.errors import ModelError
from mlx_lora.lora.inject import transformer_layers
from mlx_lora.model.load import LoadedModel, load_base, load_tokenizer, reload_layers
from tests.tiny import CHATML, TRANSFORMERS, save_tiny_folder, tiny_model

pytestmark = pytest.mark.usefixtures("on_the_cpu")

TOKENS = mx.array([[5, 9, 200, 17, 3, 60]])


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("base") / "tiny-4bit", "llama", bits=4)


@pytest.fixture
def folder(quantized: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(quantized, tmp_path / "tiny"))


def _edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def _types(base: LoadedModel) -> set[mx.Dtype]:
    return {parameter.dtype for _, parameter in tree_flatten(base.model.parameters())}


def _kinds(base: LoadedModel) -> set[str]:
    return {type(module).__name__ for _, module in base.model.named_modules() if "Quantized" in type(module).__name__}


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_layers_that_are_loaded_again_are_those_of_the_base_bit_for_bit(family: str, tmp_path: Path) -> None:
    base = load_base(str(save_tiny_folder(tmp_path / "m", family, bits=4)))
    whole = base.model(TOKENS)
    layers = transformer_layers(base.model)
    layers[:3] = reload_layers(base, "auto", 3)
    assert mx.array_equal(base.model(TOKENS), whole)
    assert _types(base) == {mx.float32}


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_on_a_cpu_every_quantized_family_computes_in_float32_what_it_stores(family: str, tmp_path: Path) -> None:
    base = load_base(str(save_tiny_folder(tmp_path / "m", family, bits=4)))
    assert base.compute == "float32, dequantized from 4-bit (CPU device)"
    assert _types(base) == {mx.float32}
    assert _kinds(base) == set()
    stored = tiny_model(family, bits=4)  # float32 scales: a quantized matmul in float32
    expected, found = stored(TOKENS), base.model(TOKENS)
    assert mx.abs(expected - found).max().item() < 1e-4 * mx.abs(expected).max().item()
    assert not base.model.training


def test_dequantized_weights_are_exactly_what_the_bits_mean(quantized: Path) -> None:
    base = load_base(str(quantized))
    stored = dict(tree_flatten(tiny_model("llama", bits=4).parameters()))
    found = dict(tree_flatten(base.model.parameters()))
    names = [name.removesuffix(".scales") for name in stored if name.endswith(".scales")]
    assert len(names) == 29
    for name in names:
        parts = (stored[f"{name}.{part}"] for part in ("weight", "scales", "biases"))
        assert mx.array_equal(found[f"{name}.weight"], mx.dequantize(*parts, group_size=32, bits=4))
    assert base.quantization is not None
    assert sorted(base.quantization) == sorted(names)
    assert base.quantization["model.embed_tokens"] == {"group_size": 32, "bits": 4, "mode": "affine"}


def test_rotary_settings_are_found_where_transformers_5_writes_them(folder: Path) -> None:
    """mlx-lm 0.32.2 looks for rope_theta at the top only, and computes with 10000 where it does not find it."""
    nested = {"rope_theta": 777.0, "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
    nested |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    _edit(folder / "config.json", rope_theta=..., rope_parameters=nested)
    moved = load_base(str(folder))
    _edit(folder / "config.json", rope_theta=777.0, rope_parameters=..., rope_scaling=nested)
    plain = load_base(str(folder))
    assert mx.array_equal(moved.model(TOKENS), plain.model(TOKENS))
    args: Any = moved.model.args
    assert (args.rope_theta, args.rope_scaling["factor"]) == (777.0, 8.0)
    _edit(folder / "config.json", rope_theta=555.0, rope_parameters={"rope_theta": 777.0})
    top: Any = load_base(str(folder)).model
    assert top.args.rope_theta == 555.0


def test_an_explicit_type_is_honoured(quantized: Path, tmp_path: Path) -> None:
    kept = load_base(str(quantized), compute="quantized")
    assert kept.compute == "4-bit, as stored (CPU device)"
    assert _kinds(kept) == {"QuantizedLinear", "QuantizedEmbedding"}
    half = load_base(str(quantized), compute="float16")
    assert half.compute == "float16, dequantized from 4-bit (CPU device)"
    assert _types(half) == {mx.float16}
    plain = save_tiny_folder(tmp_path / "plain", "llama")
    assert load_base(str(plain)).compute == "float32 (CPU device)"
    assert load_base(str(plain)).quantization is None
    assert load_base(str(plain), compute="quantized").compute == "float32, as stored (CPU device)"
    assert load_base(str(plain), compute="bfloat16").compute == "bfloat16, stored as float32 (CPU device)"


def test_on_a_gpu_the_base_stays_quantized(quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    base = load_base(str(quantized))
    assert base.compute == "4-bit, as stored (GPU device)"
    assert _kinds(base) == {"QuantizedLinear", "QuantizedEmbedding"}


def test_an_identity_is_the_same_for_every_compute_type_and_place(quantized: Path, tmp_path: Path) -> None:
    """https://github.com/ml-explore/mlx-lm/issues/1725: an adapter on the wrong base, silently."""
    identity = load_base(str(quantized)).identity
    assert identity.name == "tiny-4bit"
    assert identity.revision is None
    assert str(quantized.parent) not in str(identity)
    assert identity == load_base(str(quantized), compute="float16").identity
    copy = Path(shutil.copytree(quantized, tmp_path / "elsewhere" / "tiny-4bit"))
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(dict(reversed(content.items())), indent=1))
    assert load_base(str(copy)).identity == identity


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("config", "config_sha256"),
        ("weights", "weights_sha256"),
        ("tokenizer", "tokenizer_sha256"),
        ("template", "chat_template_sha256"),
    ],
)
def test_each_part_of_a_base_changes_its_own_fingerprint(
    change: str, field: str, quantized: Path, folder: Path
) -> None:
    if change == "config":
        _edit(folder / "config.json", rope_theta=20000.0)
    elif change == "weights":
        save_tiny_folder(folder, "llama", bits=4, seed=1)
    elif change == "tokenizer":
        content = json.loads((folder / "tokenizer.json").read_text())
        content["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
        (folder / "tokenizer.json").write_text(json.dumps(content))
        before, after = load_base(str(quantized)).identity, load_base(str(folder)).identity
        assert before.tokenizer_sha256 == after.tokenizer_sha256  # a left-over of somebody's last call
        content["added_tokens"][0]["lstrip"] = True
        (folder / "tokenizer.json").write_text(json.dumps(content))
    else:
        shutil.rmtree(folder)
        save_tiny_folder(folder, "llama", bits=4, chat_template=CHATML + " ")
    before, after = vars(load_base(str(quantized)).identity), vars(load_base(str(folder)).identity)
    assert {key for key in before if before[key] != after[key]} == {field, "name"}


def test_end_tokens_come_from_every_file_that_names_them(folder: Path) -> None:
    """https://github.com/ml-explore/mlx-examples/issues/756"""
    assert load_tokenizer(str(folder)).eos_ids == {2, 4}  # config.json: [2, 4], tokenizer: 4
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3]}))
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.eos_ids == {2, 3, 4}
    assert tokenizer.eos_id == 4
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": None}))
    assert load_tokenizer(str(folder)).eos_ids == {2, 4}


def _plant(folder: Path, name: str) -> Path:
    proof = folder / "it_ran"
    (folder / name).write_text(f"from pathlib import Path\nPath({str(proof)!r}).touch()\nModel = ModelArgs = None\n")
    return proof


def test_a_model_file_is_never_run(folder: Path) -> None:
    """CVE-2026-5843, https://github.com/ml-explore/mlx-lm/pull/1385: config.json named a file that was executed."""
    proof = _plant(folder, "evil.py")
    _edit(folder / "config.json", model_file="evil.py", trust_remote_code=True)
    with pytest.raises(ModelError, match=r"config.json: asks to run 'evil.py'") as caught:
        load_base(str(folder))
    assert "never run" in str(caught.value.hint)
    assert not proof.exists()


@pytest.mark.parametrize("model_type", ["../evil", "evil.py", "", 7, None])
def test_a_model_type_is_a_plain_name(model_type: Any, folder: Path) -> None:
    proof = _plant(folder, "evil.py")
    _edit(folder / "config.json", model_type=model_type)
    with pytest.raises(ModelError, match="model_type is"):
        load_base(str(folder))
    assert not proof.exists()


def test_a_tokenizers_code_is_never_run_and_nobody_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mlx_lm leaves trust_remote_code open, and transformers then asks at the terminal whether to run the code."""
    proof = _plant(folder, "evil.py")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a person was asked"))
    _edit(
        folder / "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]},
        trust_remote_code=True,
    )
    _edit(folder / "config.json", auto_map={"AutoConfig": "evil.EvilConfig"}, trust_remote_code=True)
    for load in (load_base, load_tokenizer):
        with pytest.raises(ModelError, match="asks to run code") as caught:
            load(str(folder))
        assert "never run" in str(caught.value.hint)
    assert not proof.exists()


def test_a_tokenizer_that_works_without_its_code_is_read_without_it(folder: Path) -> None:
    proof = _plant(folder, "evil.py")
    _edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "evil.EvilTokenizer"]})
    assert load_tokenizer(str(folder)).encode("a") == [69]
    assert not proof.exists()


def test_a_pickle_beside_the_weights_is_not_read(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04not a pickle")
    assert load_base(str(folder)).identity.name == "tiny"
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"only pytorch_model\.bin"):
        load_base(str(folder))


def test_weights_that_are_cut_off_are_named_before_anything_is_loaded(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(ModelError, match=r"model.safetensors: .*cut off|bytes") as caught:
        load_base(str(folder))
    assert "again" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"model_type": "megatron9000"}, "model_type 'megatron9000' is unknown to mlx-lm"),
        ({"model_type": "cache"}, "model_type 'cache' is unknown to mlx-lm"),
        ({"quantization": {"mode": "magic", "bits": 4, "group_size": 32}}, "quantization .*magic.* is unknown"),
        ({"quantization": {"mode": "affine"}}, "is unknown"),
        ({"quantization": "4bit"}, "quantization '4bit' is unknown"),
        ({"quantization": ..., "quantization_config": {"quant_method": "bitsandbytes"}}, "'bitsandbytes' is unknown"),
        ({"quantization": ...}, "weights do not fit"),
        ({"quantization": {"bits": 3, "group_size": 32}}, None),
        ({"num_hidden_layers": 5}, "weights do not fit"),
        ({"hidden_size": 32}, "weights do not fit"),
        ({"num_attention_heads": ...}, "weights do not fit"),
    ],
)
def test_a_config_that_cannot_work_is_one_clear_error(changes: dict[str, Any], fact: str | None, folder: Path) -> None:
    _edit(folder / "config.json", **changes)
    if fact is None:  # mlx_lm finds the bits of each module in its shapes, whatever the top of the config says
        assert load_base(str(folder)).compute == "float32, dequantized from 4-bit (CPU device)"
        return
    with pytest.raises(ModelError, match=fact) as caught:
        load_base(str(folder))
    assert str(folder) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "content", "fact"),
    [
        ("config.json", "{", "config.json: is not JSON"),
        ("config.json", "[]", "config.json: holds no JSON object"),
        ("tokenizer.json", "{}", "its tokenizer cannot be read"),
        ("tokenizer.json", "{", "its tokenizer cannot be read"),
        ("tokenizer.json", None, "has no tokenizer"),
        ("generation_config.json", "{", "generation_config.json: is not JSON"),
    ],
)
def test_a_damaged_or_missing_file_is_named(name: str, content: str | None, fact: str, folder: Path) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    for load in (load_base, load_tokenizer) if name != "config.json" else (load_base,):
        with pytest.raises(ModelError, match=fact) as caught:
            load(str(folder))
        assert str(folder) in caught.value.message
        assert caught.value.hint


def test_mixed_bits_are_said_and_kept_per_module(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "m", "llama_untied")
    model = tiny_model("llama_untied")

    def wide(path: str, module: nn.Module) -> dict[str, int] | bool:
        if "norm" in path or not hasattr(module, "to_quantized"):
            return False
        return {"group_size": 32, "bits": 8 if path == "lm_head" else 4}

    nn.quantize(model, class_predicate=wide)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    _edit(
        folder / "config.json",
        quantization={"group_size": 32, "bits": 4, "lm_head": {"group_size": 32, "bits": 8}},
    )
    base = load_base(str(folder))
    assert base.compute == "float32, dequantized from 4 to 8-bit (CPU device)"
    assert base.quantization is not None
    assert base.quantization["lm_head"] == {"group_size": 32, "bits": 8, "mode": "affine"}
    assert base.quantization["model.layers.0.mlp.up_proj"]["bits"] == 4
    expected = np.array(model(TOKENS))
    assert np.abs(np.array(base.model(TOKENS)) - expected).max() < 1e-4 * np.abs(expected).max()
