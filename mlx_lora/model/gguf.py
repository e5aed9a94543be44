"""GGUF's llama layout to MLX arrays, without loss. Knows nothing of tokenizers, folders or the network."""

from pathlib import Path
from typing import Any

import numpy as np

from mlx_lora.errors import ModelError

_GROUP = 32  # values that share a scale in Q4_1 and Q8_0, and in the MLX weights made of them
_BLOCK = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_TOP["output.weight"] = "lm_head.weight"
_BITS = {"Q4_1": 4, "Q8_0": 8}


class GgufFile:
    """An open GGUF file of the llama architecture: its metadata, and its tensors under the names that mlx_lm uses."""

    def __init__(self, path: Path) -> None:
        """Raises: ModelError when it is no GGUF file or of another architecture."""
        from gguf import GGUFReader

        try:
            self._reader: Any = GGUFReader(path)
        except (ValueError, KeyError, IndexError) as error:
            raise ModelError(f"{path}: is no GGUF file, or is cut off: {error}") from error
        self.path = path
        if self.value("general.architecture") != "llama":
            raise ModelError(f"{path}: holds architecture {self.value('general.architecture')!r}, expected 'llama'")

    def value(self, key: str, default: Any = None) -> Any:
        """The metadata value `key` as Python has it: str, int, float, bool or a list."""
        field = self._reader.fields.get(key)
        return default if field is None else field.contents()

    def config(self) -> dict[str, Any]:
        """config.json of the MLX model: the llama settings, the tokens with a meaning, the quantization per module.

        Raises: ModelError for a setting that the conversion does not carry over.
        """
        heads = self.value("llama.attention.head_count")
        width = self.value("llama.embedding_length")
        scaling = [key for key in self._reader.fields if key.startswith("llama.rope.scaling")]
        if scaling or self.value("llama.rope.dimension_count", width // heads) != width // heads:
            raise ModelError(f"{self.path}: scaled or partial rotary embeddings are not converted")
        config: dict[str, Any] = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": width,
            "num_hidden_layers": self.value("llama.block_count"),
            "intermediate_size": self.value("llama.feed_forward_length"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.value("llama.attention.head_count_kv", heads),
            "head_dim": width // heads,
            "hidden_act": "silu",
            "max_position_embeddings": self.value("llama.context_length"),
            "rms_norm_eps": _shortest(self.value("llama.attention.layer_norm_rms_epsilon")),
            "rope_theta": _shortest(self.value("llama.rope.freq_base", 10000.0)),
            "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in self._reader.tensors),
            "vocab_size": len(self.value("tokenizer.ggml.tokens", [])),
        }
        for kind in ("bos", "eos"):
            token = self.value(f"tokenizer.ggml.{kind}_token_id")
            if token is not None:
                config[f"{kind}_token_id"] = token
        config["quantization"] = self._quantization()
        return config

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array of the MLX model by name, packed weights, scales and biases included, values unchanged.

        Raises: ModelError for a tensor of another name or type.
        """
        heads = self.value("llama.attention.head_count")
        key_heads = self.value("llama.attention.head_count_kv", heads)
        arrays: dict[str, np.ndarray] = {}
        for tensor in self._reader.tensors:
            name = self._mlx_name(tensor.name)
            kind = tensor.tensor_type.name
            if kind in _BITS:
                parts = unpack_q4_1(tensor.data) if kind == "Q4_1" else unpack_q8_0(tensor.data)
            elif kind in ("F32", "F16"):
                parts = {"weight": np.array(tensor.data)}
            else:
                raise ModelError(
                    f"{self.path}: tensor {tensor.name} is of type {kind}, expected Q4_1, Q8_0, F16 or F32"
                )
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                rows = heads if name.endswith("q_proj.weight") else key_heads
                parts = {part: unpermute_rows(array, rows) for part, array in parts.items()}
            for part, array in parts.items():
                arrays[f"{name.removesuffix('weight')}{part}"] = array
        return arrays

    def _mlx_name(self, name: str) -> str:
        if name in _TOP:
            return _TOP[name]
        prefix, _, rest = name.partition(".")
        layer, _, part = rest.partition(".")
        if prefix == "blk" and layer.isdecimal() and part in _BLOCK:
            return f"model.layers.{layer}.{_BLOCK[part]}"
        raise ModelError(f"{self.path}: tensor {name} has no place in a llama model")

    def _quantization(self) -> dict[str, Any]:
        bits = {
            self._mlx_name(tensor.name).removesuffix(".weight"): _BITS[tensor.tensor_type.name]
            for tensor in self._reader.tensors
            if tensor.tensor_type.name in _BITS
        }
        own = {name: {"group_size": _GROUP, "bits": count} for name, count in bits.items() if count != 4}
        return {"group_size": _GROUP, "bits": 4, "mode": "affine", **own}


def unpack_q4_1(blocks: np.ndarray) -> dict[str, np.ndarray]:
    """Q4_1 rows, (rows, blocks · 20) uint8, as MLX's affine 4-bit weight, scales and biases: w = d·q + m in both.

    Returns weight (rows, values / 8) uint32, scales and biases (rows, values / 32) float16, bits unchanged.
    Source: ggml-common.h block_q4_1 {d, m, qs[16]}: byte i holds value i low and value i + 16 high.
    """
    rows = blocks.reshape(blocks.shape[0], -1, 20)
    packed = rows[:, :, 4:]
    values = np.concatenate([packed & 0x0F, packed >> 4], axis=-1)  # (rows, blocks, 32)
    pairs = values[..., 0::2] | values[..., 1::2] << 4  # MLX packs value 0 into the lowest bits
    return {
        "weight": np.ascontiguousarray(pairs).view("<u4").reshape(len(rows), -1),
        "scales": np.ascontiguousarray(rows[:, :, 0:2]).view("<f2").reshape(len(rows), -1),
        "biases": np.ascontiguousarray(rows[:, :, 2:4]).view("<f2").reshape(len(rows), -1),
    }


def unpack_q8_0(blocks: np.ndarray) -> dict[str, np.ndarray]:
    """Q8_0 rows, (rows, blocks · 34) uint8, as MLX's affine 8-bit: d·q = d·(q + 128) − 128·d.

    Returns weight (rows, values / 4) uint32, scales and biases (rows, values / 32) float16. −128·d is exact in float16
    (a power of two) up to |d| < 512; float32 then gives d·q without rounding. Raises: ModelError above that.
    Source: ggml-common.h block_q8_0 {d, qs[32]}.
    """
    rows = blocks.reshape(blocks.shape[0], -1, 34)
    scales = np.ascontiguousarray(rows[:, :, 0:2]).view("<f2").reshape(len(rows), -1)
    with np.errstate(over="ignore"):  # looked for below
        biases = scales * np.float16(-128)
    if not np.isfinite(biases).all():
        raise ModelError("a Q8_0 tensor has a scale over 511, which float16 cannot shift")
    shifted = rows[:, :, 2:] ^ 0x80  # int8 q as uint8 q + 128
    weight = np.ascontiguousarray(shifted).view("<u4").reshape(len(rows), -1)
    return {"weight": weight, "scales": scales, "biases": biases}


def unpermute_rows(array: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of q and k rows: interleaved rotary pairs back to halves, per head.

    Source: llama.cpp convert_hf_to_gguf.py, LlamaModel.permute.
    """
    half = array.shape[0] // heads // 2
    return np.ascontiguousarray(array.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(array.shape))


def _shortest(number: float) -> float:
    """A float32 as the number it was written as: 9.99999975e-06 is 1e-05."""
    return float(str(np.float32(number)))
