"""GGUF's llama layout to MLX's, without loss."""

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
from mlx_lora.model.gguf import GgufFile, unpack_q4_1, unpack_q8_0
from mlx_lora.model.gguf_layout import unpermute_rows
from mlx_lora.model.gguf_tokenizer import tokenizer_files
from tests.model.gguf_files import TEMPLATE, kind_of, permuted, random_tensors, vocabulary, write_gguf


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    return GgufFile(write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf"))


def _plain(parts: dict[str, np.ndarray], bits: int) -> np.ndarray:
    found = mx.dequantize(
        mx.array(parts["weight"]),
        mx.array(parts["scales"]).astype(mx.float32),
        mx.array(parts["biases"]).astype(mx.float32),
        group_size=32,
        bits=bits,
    )
    return np.array(found)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_q4_1_blocks_mean_in_mlx_exactly_what_they_mean_in_gguf(data: st.DataObject) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    numbers = arrays.arrays(np.float16, (3, 2, 2), elements=st.floats(-1000, 1000, width=16))
    blocks = np.concatenate(
        [data.draw(numbers).view(np.uint8), data.draw(arrays.arrays(np.uint8, (3, 2, 16)))], axis=-1
    ).reshape(3, 40)
    parts = unpack_q4_1(blocks)
    assert (parts["weight"].shape, parts["scales"].shape, parts["biases"].shape) == ((3, 8), (3, 2), (3, 2))
    assert np.array_equal(_plain(parts, 4), dequantize(blocks, GGMLQuantizationType.Q4_1))


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_q8_0_blocks_mean_in_mlx_exactly_what_they_mean_in_gguf(data: st.DataObject) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    scales = data.draw(arrays.arrays(np.float16, (3, 2, 1), elements=st.floats(-511, 511, width=16)))
    values = data.draw(arrays.arrays(np.uint8, (3, 2, 32)))
    blocks = np.concatenate([scales.view(np.uint8), values], axis=-1).reshape(3, 68)
    assert np.array_equal(_plain(unpack_q8_0(blocks), 8), dequantize(blocks, GGMLQuantizationType.Q8_0))


def test_a_q8_0_scale_that_float16_cannot_shift_is_an_error() -> None:
    blocks = np.zeros((1, 34), np.uint8)
    blocks[0, :2] = np.array([512.0], np.float16).view(np.uint8)
    with pytest.raises(ModelError, match="over 511"):
        unpack_q8_0(blocks)


@settings(deadline=None)
@given(heads=st.integers(1, 5), half=st.integers(1, 8), width=st.integers(1, 3))
def test_the_order_of_query_and_key_rows_is_undone(heads: int, half: int, width: int) -> None:
    rows = np.arange(heads * half * 2 * width).reshape(-1, width)
    assert np.array_equal(unpermute_rows(permuted(rows, heads), heads), rows)


def test_every_tensor_of_a_file_keeps_its_values_under_mlx_lms_names(tiny: GgufFile) -> None:
    from gguf.quants import dequantize, quantize

    found = dict(tiny.iter_arrays())
    names = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "token_embd": "model.embed_tokens", "output_norm": "model.norm",
    }  # fmt: skip
    counted = 0
    for name, tensor in random_tensors().items():
        parts = name.split(".")
        path = f"model.layers.{parts[1]}.{names[parts[2]]}" if parts[0] == "blk" else names[parts[0]]
        if tensor.ndim == 1:
            assert np.array_equal(found[f"{path}.weight"], tensor)
            counted += 1
            continue
        kind = kind_of(name, tensor)
        stored = {part: found[f"{path}.{part}"] for part in ("weight", "scales", "biases")}
        assert np.array_equal(_plain(stored, 4 if kind.name == "Q4_1" else 8), dequantize(quantize(tensor, kind), kind))
        counted += 3
    assert counted == len(found)


def test_the_config_carries_every_setting_of_the_file(tiny: GgufFile) -> None:
    assert tiny.config() == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
        "vocab_size": 262,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "quantization": {
            "group_size": 32,
            "bits": 4,
            "mode": "affine",
            "model.embed_tokens": {"group_size": 32, "bits": 8},
        },
    }


def test_what_cannot_be_carried_over_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "none.gguf").write_bytes(b"no gguf at all, whatever its name says")
    with pytest.raises(ModelError, match="is no GGUF file"):
        GgufFile(tmp_path / "none.gguf")
    whole = write_gguf(tmp_path / "cut.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:-5000])
    with pytest.raises(ModelError, match="cut off"):
        GgufFile(tmp_path / "cut.gguf")
    with pytest.raises(ModelError, match="architecture 'gpt2', expected 'llama'"):
        GgufFile(write_gguf(tmp_path / "gpt2.gguf", architecture="gpt2"))
    with pytest.raises(ModelError, match="rotary"):
        GgufFile(write_gguf(tmp_path / "scaled.gguf", llama_rope_scaling_factor=8.0)).config()
    bias = {"blk.0.attn_q.bias": np.zeros(64, np.float32)}
    with pytest.raises(ModelError, match=r"tensor blk\.0\.attn_q\.bias has no place"):
        dict(GgufFile(write_gguf(tmp_path / "bias.gguf", **bias)).iter_arrays())
    with pytest.raises(ModelError, match="'gpt2' with 'tekken', expected 'llama', or 'gpt2'"):
        tokenizer_files(GgufFile(write_gguf(tmp_path / "pre.gguf", pre="tekken")))


@pytest.fixture(scope="module")
def tokenizer(tiny: GgufFile, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    for name, content in tokenizer_files(tiny).items():
        (folder / name).write_text(json.dumps(content))
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def test_the_tokenizer_splits_digits_merges_and_knows_its_marks(tokenizer: Any) -> None:
    tokens, _ = vocabulary()
    assert tokenizer.chat_template == TEMPLATE
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    text = "he the 1915 ä<|im_end|>\n<|im_start|>"
    pieces = ["he", "Ġt", "he", "Ġ", "1", "9", "1", "5", "Ġ", "Ã", "¤", "<|im_end|>", "Ċ", "<|im_start|>"]
    found = tokenizer.encode(text)
    assert [tokens[token] for token in found] == pieces
    assert tokenizer.decode(found) == text
    assert len(tokenizer) == len(tokens) == 262


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_any_text_comes_back_from_its_tokens(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text), clean_up_tokenization_spaces=False) == text


def _bare(path: Path, *, architecture: str = "llama", **facts: Any) -> Path:
    """A GGUF file with one tensor and little metadata; keys have __ for a dot."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    for key, value in facts.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint16
        add(key.replace("__", "."), value)
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("facts", "fact", "remedy"),
    [
        ({"general__type": "adapter", "adapter__type": "lora"}, "holds an adapter, not a model", "--lora"),
        ({"general__type": "adapter", "architecture": "qwen2"}, "holds an adapter, not a model", "--lora"),
        ({"split__count": 3, "split__no": 0}, "is one of 3 parts of a model", "llama-gguf-split --merge"),
        ({}, "is no whole model: it has no llama.embedding_length, llama.block_count", "MLX version"),
    ],
)
def test_a_gguf_file_that_is_no_whole_model_says_what_it_is(
    tmp_path: Path, facts: dict[str, Any], fact: str, remedy: str
) -> None:
    """The adapter that `export --to gguf-lora` had written ended in a TypeError when it was given as a model."""
    with pytest.raises(ModelError) as caught:
        GgufFile(_bare(tmp_path / "cup.gguf", **facts))
    assert caught.value.message.startswith(f"{tmp_path}/cup.gguf: {fact}")
    assert remedy in str(caught.value.hint)
