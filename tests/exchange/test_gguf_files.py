"""GGUF files as they are written: names, rows, values, metadata, read back by the gguf package and by ours."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_lora.commands.export import run_export
from mlx_lora.errors import MlxLoraError
from mlx_lora.exchange.gguf_file import Tensor, kind_for, write_gguf
from mlx_lora.lora.adapter import apply_adapter, read_adapter
from mlx_lora.lora.inject import iter_lora_modules
from mlx_lora.lora.merge import merged_weight
from mlx_lora.model.gguf_layout import gguf_name, mlx_name, permute_rows, unpermute_rows
from mlx_lora.model.load import load_base
from tests.exchange.adapters import TOKENS, make_adapter
from tests.model.gguf_files import permuted
from tests.tiny import CHATML


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors in float32 and metadata, as the gguf package reads them."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader: Any = GGUFReader(path)
    tensors = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    return tensors, {name: field.contents() for name, field in reader.fields.items()}


def _export(root: Path, to: str, name: str, **options: Any) -> Path:
    assert run_export(root / "run", root / name, to=to, **options) == 0
    return root / name


def test_names_go_both_ways_and_strangers_have_none() -> None:
    names = {
        "model.layers.11.self_attn.k_proj.bias": "blk.11.attn_k.bias",
        "model.layers.0.self_attn.q_norm.weight": "blk.0.attn_q_norm.weight",
        "model.embed_tokens.weight": "token_embd.weight",
        "lm_head.weight": "output.weight",
    }
    for ours, theirs in names.items():
        assert (gguf_name(ours), mlx_name(theirs)) == (theirs, ours)
    assert gguf_name("model.layers.0.mlp.router.weight") is None
    assert mlx_name("blk.0.ffn_gate_exps.weight") is None
    assert mlx_name("blk.x.attn_q.weight") is None


def test_rows_are_permuted_as_llama_cpp_does_and_back() -> None:
    rows = np.arange(2 * 8 * 3, dtype=np.float32).reshape(16, 3)
    assert np.array_equal(permute_rows(rows, 2), permuted(rows, 2))
    assert np.array_equal(permute_rows(rows, 2)[:4, 0], [0, 12, 3, 15])
    assert np.array_equal(unpermute_rows(permute_rows(rows, 2), 2), rows)


def test_an_adapter_for_llama_cpp_is_the_same_update_with_rows_of_q_and_k_reordered(tmp_path: Path) -> None:
    make_adapter(tmp_path, "llama", target_modules=["q_proj", "k_proj", "down_proj"], use_rslora=True)
    path = _export(tmp_path, "gguf-lora", "adapter.gguf")
    tensors, facts = _read(path)
    assert {facts[f"general.{key}"] for key in ("type", "architecture")} == {"adapter", "llama"}
    assert facts["adapter.type"] == "lora"
    assert facts["adapter.lora.alpha"] == 12.0  # alpha 6 over √4, times rank 4: llama.cpp divides by the rank
    assert len(tensors) == 2 * 3 * 4
    ours = read_adapter(tmp_path / "run").tensors
    for name, module, heads in (("attn_q", "self_attn.q_proj", 4), ("attn_k", "self_attn.k_proj", 2)):
        factors = [tensors[f"blk.3.{name}.weight.lora_{part}"] for part in "ab"]
        lora_a, lora_b = (np.array(ours[f"model.layers.3.{module}.lora_{part}"]) for part in "ab")
        assert np.array_equal(factors[0], lora_a.T)
        assert np.array_equal(factors[1], permuted(lora_b.T, heads))
    assert np.array_equal(
        tensors["blk.0.ffn_down.weight.lora_b"], np.array(ours["model.layers.0.mlp.down_proj.lora_b"]).T
    )


@pytest.mark.parametrize(("family", "permutes"), [("llama_untied", True), ("qwen2", False), ("qwen3", False)])
def test_a_model_for_llama_cpp_holds_the_merged_weights_and_every_setting(
    tmp_path: Path, family: str, permutes: bool
) -> None:
    make_adapter(tmp_path, family, method="dora")
    tensors, facts = _read(_export(tmp_path, "gguf", "model.gguf"))
    base = load_base(str(tmp_path / "base"), compute="quantized")
    apply_adapter(base.model, read_adapter(tmp_path / "run"))
    layers = dict(iter_lora_modules(base.model))
    query = np.array(merged_weight(layers["model.layers.1.self_attn.q_proj"]))
    stored = permuted(query, 4) if permutes else query
    assert np.array_equal(tensors["blk.1.attn_q.weight"], stored.astype(np.float16).astype(np.float32))
    up = np.array(merged_weight(layers["model.layers.2.mlp.up_proj"]))
    assert np.array_equal(tensors["blk.2.ffn_up.weight"], up.astype(np.float16).astype(np.float32))
    plain: Any = base.model
    assert np.array_equal(tensors["output_norm.weight"], np.array(plain.model.norm.weight))
    architecture = family.removesuffix("_untied")
    assert facts["general.architecture"] == architecture
    assert {
        key: facts[f"{architecture}.{key}"]
        for key in ("block_count", "embedding_length", "attention.head_count", "attention.head_count_kv", "vocab_size")
    } == {
        "block_count": 4,
        "embedding_length": 64,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "vocab_size": 320,
    }
    assert ("output.weight" in tensors) == (family == "llama_untied")
    assert ("blk.0.attn_q.bias" in tensors) == (family == "qwen2")
    assert ("blk.0.attn_q_norm.weight" in tensors) == (family == "qwen3")


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    make_adapter(tmp_path)
    _, facts = _read(_export(tmp_path, "gguf", "model.gguf"))
    tokens, types = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    assert (facts["tokenizer.ggml.model"], facts["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert len(tokens) == len(types) == 320
    assert tokens[:6] == ["<|pad|>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "!"]
    assert types[:6] == [3, 3, 3, 3, 3, 1]
    assert (tokens[319], types[319]) == ("[PAD319]", 5)
    assert {role: facts[f"tokenizer.ggml.{role}_token_id"] for role in ("bos", "eos", "padding")} == {
        "bos": 1,
        "eos": 4,
        "padding": 0,
    }
    assert facts["tokenizer.ggml.add_bos_token"] is False
    assert facts["tokenizer.chat_template"] == CHATML


def test_an_adapters_own_chat_template_and_end_token_go_along(tmp_path: Path) -> None:
    own = CHATML.replace("<|im_end|>", "</s>")
    make_adapter(tmp_path, facts={"chat_template": own})
    _, facts = _read(_export(tmp_path, "gguf", "model.gguf"))
    assert (facts["tokenizer.chat_template"], facts["tokenizer.ggml.eos_token_id"]) == (own, 2)


def test_q8_0_keeps_the_update_and_says_how_much(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_adapter(tmp_path, "llama", bits=4)
    tensors, facts = _read(_export(tmp_path, "gguf", "model.gguf", kind="Q8_0", json_output=True))
    base = load_base(str(tmp_path / "base"), compute="quantized")
    apply_adapter(base.model, read_adapter(tmp_path / "run"))
    down = np.array(merged_weight(dict(iter_lora_modules(base.model))["model.layers.0.mlp.down_proj"]))
    assert np.abs(tensors["blk.0.ffn_down.weight"] - down).max() <= np.abs(down).max() / 127 * 0.51
    assert facts["general.file_type"] == 7
    printed = capsys.readouterr()
    assert "Q8_0: 100.0% of the update is in the rounded weights" in printed.err
    assert '"pre_tokenizer": "gpt-2"' in printed.out


def test_an_adapter_smaller_than_the_rounding_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    make_adapter(tmp_path, "llama", size=1e-6)
    with pytest.raises(MlxLoraError, match="Q8_0 rounds the adapter away"):
        _export(tmp_path, "gguf", "model.gguf", kind="Q8_0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "run"]


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("gemma2", "gguf", {}, "model_type 'gemma2' is not written to GGUF"),
    ("mistral", "gguf", {}, "layers with a sliding window"),
    ("llama", "gguf-lora", {"method": "dora"}, r"m: llama\.cpp's adapters have no place for it"),
]


@pytest.mark.parametrize(("family", "to", "lora", "message"), REFUSED)
def test_what_llama_cpp_has_no_equal_for_is_refused(
    tmp_path: Path, family: str, to: str, lora: dict[str, Any], message: str
) -> None:
    make_adapter(tmp_path, family, **lora)
    with pytest.raises(MlxLoraError, match=message):
        _export(tmp_path, to, "out.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "run"]


def test_the_output_has_the_name_that_the_format_wants_and_is_never_overwritten(tmp_path: Path) -> None:
    make_adapter(tmp_path)
    with pytest.raises(MlxLoraError, match=r"gguf-lora needs a file name that ends in \.gguf"):
        _export(tmp_path, "gguf-lora", "adapter")
    with pytest.raises(MlxLoraError, match="ollama needs the name of a folder"):
        _export(tmp_path, "ollama", "folder.gguf")
    (tmp_path / "there.gguf").write_bytes(b"mine")
    with pytest.raises(MlxLoraError, match="exists already"):
        _export(tmp_path, "gguf-lora", "there.gguf")
    assert (tmp_path / "there.gguf").read_bytes() == b"mine"


def test_for_ollama_a_folder_holds_model_and_modelfile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_adapter(tmp_path, facts={"system_prompt": "Be brief."})
    folder = _export(tmp_path, "ollama", "whole")
    assert sorted(path.name for path in folder.iterdir()) == ["Modelfile", "model.gguf"]
    text = (folder / "Modelfile").read_text()
    assert text.startswith('FROM ./model.gguf\nTEMPLATE """{{- range .Messages }}')
    assert text.endswith('SYSTEM """Be brief."""\nPARAMETER stop "</s>"\nPARAMETER stop "<|im_end|>"\n')
    folder = _export(tmp_path, "ollama", "onto", ollama_base="base:1b")
    assert sorted(path.name for path in folder.iterdir()) == ["Modelfile", "adapter.gguf"]
    assert (folder / "Modelfile").read_text().startswith("FROM base:1b\nADAPTER ./adapter.gguf\n")
    assert "no TEMPLATE" not in capsys.readouterr().err


def test_a_value_that_float16_cannot_hold_is_named(tmp_path: Path) -> None:
    tensor = Tensor("blk.0.ffn_up.weight", (2, 32), "F16", lambda: np.full((2, 32), 1e6, np.float32))
    with pytest.raises(MlxLoraError, match=r"blk\.0\.ffn_up\.weight: holds a value that F16 cannot hold"):
        write_gguf(tmp_path / "x.gguf", "llama", lambda writer: None, [tensor])


def test_vectors_and_odd_rows_keep_a_type_that_holds_them() -> None:
    assert [kind_for(shape, "Q8_0") for shape in ((64,), (4, 64), (4, 60))] == ["F32", "Q8_0", "F16"]
    assert kind_for((4, 60), "F16") == "F16"


def test_a_merged_model_reads_back_as_a_base_with_the_same_answers(tmp_path: Path) -> None:
    expected = make_adapter(tmp_path, "llama_untied")
    path = _export(tmp_path, "gguf", "model.gguf")
    assert mx.allclose(load_base(str(path)).model(TOKENS), expected, atol=0.05)
