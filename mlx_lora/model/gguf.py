"""GGUF's llama layout to MLX arrays, without loss. Knows nothing of tokenizers, folders or the network."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mlx_lora.errors import ModelError
from mlx_lora.model.gguf_layout import mlx_name, rotary_heads, unpermute_rows
from mlx_lora.model.gguf_reader import open_gguf
from mlx_lora.model.gguf_settings import MLX_VERSION, positive_number, read_heads, whole_number

_GROUP = 32  # values that share a scale in Q4_1 and Q8_0, and in the MLX weights made of them
_DAMAGED = "the file is damaged, or not as llama.cpp writes it: download it again, or look for an MLX version"
_BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
# llama-quantize keeps these two in Q6_K in files that it calls Q4_0 and Q4_1.
_ROUNDED, _VOCABULARY = ("Q6_K",), ("token_embd.weight", "output.weight")
_PLAIN = ("F16", "F32")
_ROTARY = "rope_freqs.weight"
_LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_STRETCHES = (8.0, 32.0, 16.0)  # Llama 3.1 and 3.3, 3.2, and some models made of them
_NEEDED = (
    *("llama.embedding_length", "llama.block_count", "llama.feed_forward_length", "llama.attention.head_count"),
    *("llama.attention.layer_norm_rms_epsilon", "tokenizer.ggml.model", "tokenizer.ggml.tokens"),
)


class GgufFile:
    """An open GGUF file of the llama architecture: its metadata, and its tensors under the names that mlx_lm uses."""

    def __init__(self, path: Path) -> None:
        """Raises: ModelError when it is no GGUF file, no whole model or of another architecture."""
        try:
            self._reader: Any = open_gguf(path)
        except UnicodeDecodeError as error:
            raise ModelError(
                f"{path}: the name of a setting or a tensor is not UTF-8: {_around(error)}", _DAMAGED
            ) from error
        except (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError) as error:
            raise ModelError(f"{path}: is no GGUF file, or is cut off: {error}", "download it again") from error
        self.path = path
        if self._reader.byte_order == "S":  # what is packed would be read the wrong way round
            raise ModelError(f"{path}: has the byte order of other machines (big-endian)", MLX_VERSION)
        if self.value("general.type") == "adapter":
            raise ModelError(
                f"{path}: holds an adapter, not a model",
                "give its base as the model; llama.cpp puts such a file on the base with --lora",
            )
        if isinstance(parts := self.value("split.count"), int) and parts > 1:
            raise ModelError(
                f"{path}: is one of {parts} parts of a model",
                "join them first, with llama.cpp: llama-gguf-split --merge FIRST-PART WHOLE.gguf",
            )
        if self.value("general.architecture") != "llama":
            raise ModelError(
                f"{path}: holds architecture {self.value('general.architecture')!r}, expected 'llama'",
                MLX_VERSION,
            )
        if missing := [key for key in _NEEDED if self.value(key) is None]:
            raise ModelError(f"{path}: is no whole model: it has no {', '.join(missing[:3])}", MLX_VERSION)

    def value(self, key: str, default: Any = None) -> Any:
        """The metadata value `key` as Python has it: str, int, float, bool or a list.

        Raises: ModelError for a text that is not UTF-8.
        """
        field = self._reader.fields.get(key)
        try:
            return default if field is None else field.contents()
        except UnicodeDecodeError as error:
            raise ModelError(f"{self.path}: {key} is not UTF-8: {_around(error)}", _DAMAGED) from error

    def check(self) -> None:
        """Raises: ModelError for whatever the conversion would stop at: settings, tokenizer, names and types."""
        from mlx_lora.model.gguf_tokenizer import tokenizer_files

        tokenizer_files(self)
        self.config()
        heads = read_heads(self)
        for tensor in self._reader.tensors:
            if tensor.name != _ROTARY:
                module = self._mlx_name(tensor.name).split(".")[-2]
                self._check_type(tensor)
                rows, expected = (tensor.shape.tolist() or [1])[-1], heads.rows(module)
                if expected not in (None, rows):
                    raise ModelError(
                        f"{self.path}: tensor {tensor.name} has {rows} rows, heads of {heads.width} make {expected}",
                        _DAMAGED,
                    )

    def config(self) -> dict[str, Any]:
        """config.json of the MLX model: the llama settings, the tokens with a meaning, the quantization per module.

        Raises: ModelError for a setting that the conversion does not carry over.
        """
        if (experts := self.value("llama.expert_count")) not in (None, 0):
            raise ModelError(f"{self.path}: is a mixture of {experts} experts, which is not converted", MLX_VERSION)
        if scaling := next((key for key in self._reader.fields if key.startswith("llama.rope.scal")), None):
            raise ModelError(
                f"{self.path}: scaled rotary embeddings are not converted ({scaling} = {self.value(scaling)})",
                MLX_VERSION,
            )
        heads = read_heads(self)
        longest = self.value("llama.context_length")
        config: dict[str, Any] = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": whole_number(self, "llama.embedding_length"),
            "num_hidden_layers": whole_number(self, "llama.block_count"),
            "intermediate_size": whole_number(self, "llama.feed_forward_length"),
            "num_attention_heads": heads.queries,
            "num_key_value_heads": heads.keys,
            "head_dim": heads.width,
            "hidden_act": "silu",
            "max_position_embeddings": None if longest is None else whole_number(self, "llama.context_length"),
            "rms_norm_eps": _shortest(positive_number(self, "llama.attention.layer_norm_rms_epsilon")),
            "rope_theta": _shortest(positive_number(self, "llama.rope.freq_base", 10000.0)),
            "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in self._reader.tensors),
            "vocab_size": len(self.value("tokenizer.ggml.tokens", [])),
        }
        for kind in ("bos", "eos"):
            token = self.value(f"tokenizer.ggml.{kind}_token_id")
            if token is not None:
                config[f"{kind}_token_id"] = token
        if (rule := self._rope_scaling(heads.width, config["rope_theta"])) is not None:
            config["rope_scaling"] = rule
        if (quantization := self._quantization()) is not None:
            config["quantization"] = quantization
        return config

    def iter_arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every array of the MLX model with its name, packed weights, scales and biases included, values unchanged.

        But an embedding or output in Q6_K, for which MLX has no form, is rounded to float16.
        Raises: ModelError for a tensor of another name or type.
        """
        heads = read_heads(self)
        for tensor in self._reader.tensors:
            if tensor.name == _ROTARY:
                continue  # in the config, as a rule
            name = self._mlx_name(tensor.name)
            self._check_type(tensor)
            kind = tensor.tensor_type.name
            plain = kind in _PLAIN
            try:
                parts = {name.rpartition(".")[2]: np.array(tensor.data)} if plain else _unpacker(kind)(tensor.data)
            except ModelError as error:
                raise ModelError(f"{self.path}: tensor {tensor.name}: {error.message}", error.hint) from error
            if (rows := rotary_heads(name, heads.queries, heads.keys)) is not None:
                parts = {part: unpermute_rows(array, rows) for part, array in parts.items()}
            for part, array in parts.items():
                yield f"{name.rpartition('.')[0]}.{part}", array

    def _mlx_name(self, name: str) -> str:
        found = mlx_name(name)
        if found is None or found.endswith(".bias"):
            raise ModelError(f"{self.path}: tensor {name} has no place in a llama model", MLX_VERSION)
        return found

    def _check_type(self, tensor: Any) -> None:
        known = (*_UNPACK, *_PLAIN, *(_ROUNDED if tensor.name in _VOCABULARY else ()))
        if tensor.tensor_type.name not in known:
            raise ModelError(
                f"{self.path}: tensor {tensor.name} is of type {tensor.tensor_type.name}, expected {', '.join(known)}",
                "take the file of the model in one of these types, or an MLX version of it (mlx-community/…)",
            )

    def _quantization(self) -> dict[str, Any] | None:
        bits = {
            self._mlx_name(tensor.name).removesuffix(".weight"): _BITS[tensor.tensor_type.name]
            for tensor in self._reader.tensors
            if tensor.tensor_type.name in _BITS
        }
        if not bits:
            return None
        own = {name: {"group_size": _GROUP, "bits": count} for name, count in bits.items() if count != 4}
        return {"group_size": _GROUP, "bits": 4, "mode": "affine", **own}

    def _rope_scaling(self, dims: int, base: float) -> dict[str, Any] | None:
        """The rule behind the factors of Llama 3's rotary waves, None where there are none.

        Raises: ModelError for factors of another rule: MLX has no place for a list.
        """
        tensor = next((tensor for tensor in self._reader.tensors if tensor.name == _ROTARY), None)
        if tensor is None:
            return None
        for factor in _STRETCHES:
            rule = {"rope_type": "llama3", "factor": factor, **_LLAMA_3}
            if np.allclose(llama3_factors(rule, dims, base), np.array(tensor.data).reshape(-1), rtol=1e-4):
                return rule
        raise ModelError(
            f"{self.path}: {_ROTARY} is not by the rule of Llama 3.1 to 3.3",
            MLX_VERSION,
        )


def llama3_factors(rule: Mapping[str, Any], dims: int, base: float) -> np.ndarray:
    """By how much each rotary wave of a head of `dims` is slowed, (dims / 2,) float64.

    Source: transformers modeling_rope_utils.py, _compute_llama3_parameters.
    """
    waves = 2 * np.pi * base ** (np.arange(0, dims, 2) / dims)
    low, high, factor = rule["low_freq_factor"], rule["high_freq_factor"], rule["factor"]
    smooth = np.clip((rule["original_max_position_embeddings"] / waves - low) / (high - low), 0, 1)
    slowed: np.ndarray = 1 / ((1 - smooth) / factor + smooth)
    return slowed


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


def unpack_q4_0(blocks: np.ndarray) -> dict[str, np.ndarray]:
    """Q4_0 rows, (rows, blocks · 18) uint8, as MLX's affine 4-bit: d·(q − 8) = d·q − 8·d, which float16 holds exactly.

    Returns as unpack_q4_1. Raises: ModelError for a scale that float16 cannot shift.
    Source: ggml-common.h block_q4_0 {d, qs[16]}.
    """
    rows = blocks.reshape(blocks.shape[0], -1, 18)
    with np.errstate(over="ignore"):  # looked for below
        minimum = np.ascontiguousarray(rows[:, :, :2]).view("<f2") * np.float16(-8)
    if not np.isfinite(minimum).all():
        raise ModelError("a scale of Q4_0 is over 8191, which float16 cannot shift", MLX_VERSION)
    whole = np.concatenate([rows[:, :, :2], minimum.view(np.uint8), rows[:, :, 2:]], axis=-1)
    return unpack_q4_1(whole.reshape(blocks.shape[0], -1))


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
        raise ModelError("a scale of Q8_0 is over 511, which float16 cannot shift", MLX_VERSION)
    shifted = rows[:, :, 2:] ^ 0x80  # int8 q as uint8 q + 128
    weight = np.ascontiguousarray(shifted).view("<u4").reshape(len(rows), -1)
    return {"weight": weight, "scales": scales, "biases": biases}


def unpack_rounded(blocks: np.ndarray, kind: str) -> dict[str, np.ndarray]:
    """Rows of a type that MLX has no form for as a plain weight, rounded to float16: by 1 part in 2048 at most."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    return {"weight": dequantize(blocks, GGMLQuantizationType[kind]).astype(np.float16)}


def _around(error: UnicodeDecodeError) -> str:
    """The bytes that are no text, with some before and after."""
    return repr(error.object[max(0, error.start - 16) : error.start + 24])


def _unpacker(kind: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    return _UNPACK[kind] if kind in _UNPACK else partial(unpack_rounded, kind=kind)


_UNPACK = {"Q4_0": unpack_q4_0, "Q4_1": unpack_q4_1, "Q8_0": unpack_q8_0}


def _shortest(number: float) -> float:
    """A float32 as the number it was written as: 9.99999975e-06 is 1e-05."""
    return float(str(np.float32(number)))
