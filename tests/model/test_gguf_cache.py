"""A person's own GGUF file as a base: converted once, to weights that mean what the file's mean."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mlx_lora.errors import ModelError
from mlx_lora.model import gguf_cache
from mlx_lora.model.gguf import GgufFile, llama3_factors, unpack_q4_0
from mlx_lora.model.gguf_cache import ensure_gguf, fingerprint_file
from mlx_lora.model.gguf_layout import mlx_name
from mlx_lora.model.gguf_tokenizer import tokenizer_files
from mlx_lora.model.load import load_base
from tests.model.gguf_files import kind_of, random_tensors, write_gguf

RULE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLX_LORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.mark.parametrize("matrices", ["Q4_0", "Q4_1", "Q8_0", "F16"])
def test_a_gguf_file_is_a_base_with_the_weights_that_it_holds(tmp_path: Path, matrices: str) -> None:
    from gguf.quants import dequantize, quantize

    base = load_base(str(write_gguf(tmp_path / "my model.gguf", matrices=matrices)), compute="float32")
    assert (base.identity.name, base.identity.revision) == ("my model.gguf", None)
    assert (base.quantization is None) == (matrices == "F16")
    modules = dict(base.model.named_modules())
    for name, path in (
        ("token_embd.weight", "model.embed_tokens"),
        ("blk.1.attn_k.weight", "model.layers.1.self_attn.k_proj"),
        ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj"),
    ):
        tensor = random_tensors()[name]
        kind = kind_of(name, tensor, matrices)
        assert np.array_equal(np.array(modules[path].weight), dequantize(quantize(tensor, kind), kind)), name
    assert mx.isfinite(base.model(mx.array([[5, 9, 100]]))).all().item()


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_q4_0_blocks_mean_in_mlx_exactly_what_they_mean_in_gguf(data: st.DataObject) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    scales = data.draw(arrays.arrays(np.float16, (3, 2, 1), elements=st.floats(-8000, 8000, width=16)))
    blocks = np.concatenate([scales.view(np.uint8), data.draw(arrays.arrays(np.uint8, (3, 2, 16)))], axis=-1).reshape(
        3, 36
    )
    parts = {name: mx.array(value) for name, value in unpack_q4_0(blocks).items()}
    found = mx.dequantize(
        parts["weight"],
        parts["scales"].astype(mx.float32),
        parts["biases"].astype(mx.float32),
        group_size=32,
        bits=4,
    )
    assert np.array_equal(np.array(found), dequantize(blocks, GGMLQuantizationType.Q4_0))


def test_heads_of_a_width_of_their_own_answer_as_the_same_model_in_mlxs_format(tmp_path: Path) -> None:
    """They were refused as scaled or partial rotary embeddings, our own exports of such models too."""
    keys = ("llama.attention.key_length", "llama.attention.value_length", "llama.rope.dimension_count")
    path = write_gguf(tmp_path / "wide.gguf", matrices="F16", head_dim=24, **dict.fromkeys(keys, 24))
    folder = tmp_path / "plain"
    folder.mkdir()
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "rms_norm_eps": 1e-5}
    config |= {"rope_theta": 100000.0, "vocab_size": 262, "tie_word_embeddings": True, "eos_token_id": 2}
    for name, content in {"config.json": config, **tokenizer_files(GgufFile(path))}.items():
        (folder / name).write_text(json.dumps(content))
    tensors = {str(mlx_name(name)): mx.array(tensor) for name, tensor in random_tensors(head_dim=24).items()}
    rounded = {name: tensor.astype(mx.float16) if tensor.ndim > 1 else tensor for name, tensor in tensors.items()}
    assert rounded["model.layers.0.self_attn.q_proj.weight"].shape == (96, 64)
    mx.save_safetensors(str(folder / "model.safetensors"), rounded, {"format": "mlx"})
    tokens = mx.array([[5, 9, 100, 7]])
    found, expected = (load_base(str(place), compute="float32").model(tokens) for place in (path, folder))
    assert mx.array_equal(found, expected)


def test_it_is_converted_once_and_again_when_the_file_is_another(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    first = ensure_gguf(path)
    assert capsys.readouterr().err == f"converting {path} once …\n"
    marker = json.loads((first / "converted.json").read_text())
    assert marker["file"] == "tiny.gguf"
    with monkeypatch.context() as patch:
        patch.setattr(gguf_cache, "write_model", lambda *_: pytest.fail("it was converted again"))
        assert ensure_gguf(path) == first
    assert capsys.readouterr().err == ""
    write_gguf(path, seed=1)
    second = ensure_gguf(path)
    assert second != first
    assert first.parent == second.parent == cache


def test_another_byte_is_another_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(bytes(3 * 2**20))
    before = fingerprint_file(path)
    assert fingerprint_file(path) == before
    content = bytearray(path.read_bytes())
    content[2**20 + 5] = 1
    path.write_bytes(content)
    assert fingerprint_file(path) != before


def test_large_models_are_written_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    one = load_base(str(path), compute="float32").model(mx.array([[5, 9]]))
    monkeypatch.setenv("MLX_LORA_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(gguf_cache, "SHARD_BYTES", 20_000)
    shards = sorted(file.name for file in ensure_gguf(path).glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == "model-00001.safetensors"
    assert mx.array_equal(load_base(str(path), compute="float32").model(mx.array([[5, 9]])), one)


def test_llama_3s_rotary_factors_become_the_rule_that_made_them(tmp_path: Path) -> None:
    # As transformers has them: the first waves as they are, the last divided by the factor.
    factors = llama3_factors(RULE, 16, 100000.0).astype(np.float32)
    assert (factors[0], round(float(factors[-1]), 3)) == (1.0, 32.0)
    path = write_gguf(tmp_path / "llama3.gguf", **{"rope_freqs.weight": factors})
    assert GgufFile(path).config()["rope_scaling"] == RULE
    base: Any = load_base(str(path)).model
    waves = np.array(base.layers[0].self_attn.rope._freqs)
    assert np.allclose(waves / 100000.0 ** (np.arange(0, 16, 2) / 16), factors, rtol=1e-5)
    odd = write_gguf(tmp_path / "odd.gguf", **{"rope_freqs.weight": factors[::-1].copy()})
    with pytest.raises(ModelError, match=r"rope_freqs\.weight is not by the rule of Llama 3"):
        GgufFile(odd).config()


def test_an_output_in_q6_k_is_rounded_to_float16_and_other_tensors_in_it_are_refused(tmp_path: Path) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    blocks = np.random.default_rng(0).integers(0, 256, (2, 210), dtype=np.uint8)
    blocks[:, 208:] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)  # d, the scale of all
    found = dict(GgufFile(write_gguf(tmp_path / "q6.gguf", **{"output.weight": blocks})).iter_arrays())[
        "lm_head.weight"
    ]
    exact = dequantize(blocks, GGMLQuantizationType.Q6_K)
    assert (found.dtype, found.shape) == (np.float16, (2, 256))
    assert np.abs(found - exact).max() <= np.abs(exact).max() / 2048
    with pytest.raises(ModelError, match=r"tensor blk\.0\.ffn_up\.weight is of type Q6_K"):
        load_base(str(write_gguf(tmp_path / "all.gguf", **{"blk.0.ffn_up.weight": blocks})))


def test_other_types_are_refused_by_name_and_nothing_is_left(tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "other.gguf", matrices="Q5_0")
    with pytest.raises(ModelError, match=r"tensor blk\.0\.attn_q\.weight is of type Q5_0, expected Q4_0") as raised:
        load_base(str(path))
    assert "mlx-community" in str(raised.value.hint)
    assert not cache.exists()


@pytest.mark.slow
def test_the_built_in_models_file_is_the_same_base_under_its_own_name(tmp_path: Path) -> None:
    """So an adapter that was trained on one goes onto the other."""
    from importlib.metadata import distribution

    from mlx_lora.model.builtin import BUILTIN_MODELS
    from mlx_lora.model.identity import identify
    from mlx_lora.model.sources import find_source

    entry = BUILTIN_MODELS["smollm2-135m-instruct"]
    file = Path(str(distribution(entry.package).locate_file(entry.file)))
    own, built_in = (identify(find_source(name), None) for name in (str(file), "smollm2-135m-instruct"))
    assert own.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    for part in ("config_sha256", "weights_sha256", "tokenizer_sha256"):
        assert getattr(own, part) == getattr(built_in, part)
