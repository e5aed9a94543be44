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


@pytest.mark.parametrize("entries", [2**40, 2**63])
def test_a_list_longer_than_its_file_is_a_file_that_is_cut_off(tmp_path: Path, entries: int) -> None:
    """Found in session 11: the reader went through as many entries as were announced, past the end of the file."""
    file = write_gguf(tmp_path / "long.gguf")
    whole = file.read_bytes()
    key = b"tokenizer.ggml.token_type"
    start = whole.index(key) + len(key) + 8  # past the types of the value and of its entries
    file.write_bytes(whole[:start] + entries.to_bytes(8, "little") + whole[start + 8 :])
    with pytest.raises(ModelError) as caught:
        GgufFile(file)
    assert caught.value.message == (
        f"{file}: is no GGUF file, or is cut off: it announces {entries} entries of a list, more than it has bytes for"
    )


def test_a_file_that_ends_within_a_list_is_cut_off(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "cut.gguf")
    whole = file.read_bytes()
    key = b"tokenizer.ggml.token_type"
    file.write_bytes(whole[: whole.index(key) + len(key) + 8 + 8 + 10])
    with pytest.raises(ModelError, match="is cut off: it announces 262 entries of a list, more than it has bytes for"):
        GgufFile(file)


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


@pytest.mark.parametrize(
    ("facts", "fact"),
    [
        (
            {"llama.attention.key_length": 24, "llama.attention.value_length": 16},
            "a head's keys are 24 wide, its values 16",
        ),
        ({"llama.attention.key_length": 24}, "a head's keys are 24 wide, its values 16"),
        ({"llama.rope.dimension_count": 8}, "rotary embeddings of 8 of a head's 16 numbers"),
        ({"llama.attention.head_count": 5}, "embedding_length 64 is not divisible by llama.attention.head_count 5"),
        ({"llama.attention.head_count": 0}, "llama.attention.head_count is 0, expected a whole number from 1 up"),
        ({"llama.attention.head_count": [4, 4]}, "llama.attention.head_count is [4, 4], expected a whole number"),
        ({"llama.attention.head_count_kv": 4}, "tensor blk.0.attn_k.weight has 32 rows, heads of 16 make 64"),
        ({"llama.attention.layer_norm_rms_epsilon": "tiny"}, "is 'tiny', expected a number over 0"),
        ({"llama.context_length": "long"}, "llama.context_length is 'long', expected a whole number from 1 up"),
        ({"llama.rope.scaling.type": "linear"}, "scaled rotary embeddings are not converted (llama.rope.scaling.type"),
        ({"llama.rope.scale_linear": 4}, "scaled rotary embeddings are not converted (llama.rope.scale_linear = 4)"),
        ({"llama.expert_count": 8}, "is a mixture of 8 experts, which is not converted"),
        ({"tokenizer.ggml.bos_token_id": 262}, "bos_token_id is 262, expected the number of one of 262 tokens"),
    ],
)
def test_a_setting_that_is_not_carried_over_is_refused_for_what_it_is(
    tmp_path: Path, facts: dict[str, Any], fact: str
) -> None:
    """Heads of a width of their own were called scaled; a list of head counts, or none, ended in a traceback."""
    file = GgufFile(write_gguf(tmp_path / "odd.gguf", **facts))
    with pytest.raises(ModelError) as caught:
        file.check()
    assert caught.value.message.startswith(f"{tmp_path}/odd.gguf: ")
    assert fact in caught.value.message


@pytest.mark.parametrize(
    ("old", "new", "fact"),
    [
        (
            "größe".encode(),
            b"gr\xff\xff\xff\xffe",
            r"tokenizer.chat_template is not UTF-8: b'% endfor %}{# gr\xff\xff\xff\xffe",
        ),
        ("Ġt".encode(), b"\xff\xa0t", r"tokenizer.ggml.tokens is not UTF-8: b'\xff\xa0t'"),
        (b"llama.rope.freq_base", b"llama.rope.freq_bas\xff", "the name of a setting or a tensor is not UTF-8"),
    ],
)
def test_a_text_that_is_not_utf_8_is_named(tmp_path: Path, old: bytes, new: bytes, fact: str) -> None:
    """It ended in a UnicodeDecodeError; a name of a setting was called a file that is cut off."""
    path = write_gguf(tmp_path / "tiny.gguf")
    content = path.read_bytes()
    assert (content.count(old), len(new)) == (1, len(old))
    path.write_bytes(content.replace(old, new))
    with pytest.raises(ModelError) as caught:
        GgufFile(path).check()
    assert caught.value.message.startswith(f"{path}: {fact}")


def test_a_text_that_is_not_utf_8_and_that_nobody_reads_does_no_harm(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", **{"general.author": "Zoë"})
    content = path.read_bytes()
    path.write_bytes(content.replace("Zoë".encode(), b"Zo\xff\xff"))
    GgufFile(path).check()


def test_a_scale_that_cannot_be_shifted_is_told_with_file_and_tensor(tmp_path: Path) -> None:
    """Neither was named."""
    tensor = np.full((64, 96), 1e6, np.float32)
    path = write_gguf(tmp_path / "large.gguf", matrices="Q8_0", **{"blk.1.ffn_down.weight": tensor})
    with pytest.raises(ModelError) as caught:
        dict(GgufFile(path).iter_arrays())
    assert caught.value.message.startswith(f"{path}: tensor blk.1.ffn_down.weight: a scale of Q8_0 is over 511")


def test_a_file_of_the_other_byte_order_is_refused(tmp_path: Path) -> None:
    """Its packed weights were read the wrong way round, and nothing was said."""
    from gguf import GGUFEndian, GGUFWriter

    writer = GGUFWriter(tmp_path / "big.gguf", "llama", endianess=GGUFEndian.BIG)
    writer.add_tensor("output_norm.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"big\.gguf: has the byte order of other machines \(big-endian\)"):
        GgufFile(tmp_path / "big.gguf")
