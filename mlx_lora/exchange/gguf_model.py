"""A whole model, adapter merged in, as the GGUF file that llama.cpp runs. Knows nothing of tokenizers.

Source: conversion/base.py and conversion/llama.py of llama.cpp.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_lora.errors import ModelError
from mlx_lora.exchange.gguf_file import Kind, Tensor, kind_for, write_gguf
from mlx_lora.exchange.gguf_vocabulary import BY_LLAMA_CPP, Vocabulary
from mlx_lora.lora.inject import iter_modules
from mlx_lora.lora.layer import AdapterLayer, dense_weight, linear_dims
from mlx_lora.lora.merge import merged_weight
from mlx_lora.model.gguf_layout import ARCHITECTURES, PERMUTED, gguf_name, permute_rows, rotary_heads

_FILE_TYPES: dict[Kind, int] = {"F32": 0, "F16": 1, "Q8_0": 7}  # llama.h: llama_ftype


@dataclass(frozen=True)
class Layout:
    """What llama.cpp calls the model's architecture, and the heads over which it reorders rows of q and k."""

    architecture: str
    heads: int
    key_heads: int

    def in_order(self, name: str, array: np.ndarray) -> np.ndarray:
        """Rows of MLX tensor `name`, (D_out, …), in llama.cpp's order."""
        heads = rotary_heads(name, self.heads, self.key_heads) if self.architecture in PERMUTED else None
        return array if heads is None else permute_rows(array, heads)


def layout_of(model: nn.Module, model_type: str) -> Layout:
    """The layout of a model as mlx_lm loaded it. Raises: ModelError for a family that is not written to GGUF."""
    if model_type not in ARCHITECTURES:
        raise ModelError(
            f"model_type {model_type!r} is not written to GGUF, only {', '.join(ARCHITECTURES)}", BY_LLAMA_CPP
        )
    args: Any = model.args
    return Layout(ARCHITECTURES[model_type], args.num_attention_heads, args.num_key_value_heads)


@dataclass
class Kept:
    """How much of the update is in the file: ⟨W' - W, ΔW⟩ / ‖ΔW‖² over the adapted modules, 1 when all of it is."""

    product: float = 0.0
    square: float = 0.0

    @property
    def share(self) -> float:
        """1 where nothing was adapted."""
        return self.product / self.square if self.square else 1.0


def write_gguf_model(
    path: Path, model: nn.Module, layout: Layout, vocabulary: Vocabulary, *, kind: Kind, name: str
) -> Kept:
    """Write `model` (as stored, with adapters applied) to `path`, matrices as `kind`, vectors in float32.

    Raises: ModelError for what llama.cpp's architecture has no place for, MlxLoraError when it cannot be written.
    """
    kept = Kept()
    tensors = [*_tensors(model, layout, kind, kept)]
    if (factors := _rotary_factors(model)) is not None:
        tensors.append(Tensor("rope_freqs.weight", factors.shape, "F32", lambda: factors))

    def fill(writer: Any) -> None:
        writer.add_type("model")
        writer.add_name(name)
        writer.add_file_type(_FILE_TYPES[kind])
        writer.add_quantization_version(2)
        _add_settings(writer, model, layout)
        vocabulary.add_to(writer)

    write_gguf(path, layout.architecture, fill, tensors)
    return kept


def _tensors(model: nn.Module, layout: Layout, kind: Kind, kept: Kept) -> Iterator[Tensor]:
    for path, module in iter_modules(model):
        linear: Any = module.linear if isinstance(module, AdapterLayer) else module
        for part, value in linear.items():
            if not isinstance(value, mx.array) or part.startswith("_") or part in ("scales", "biases"):
                continue
            name = f"{path}.{part}"
            target = gguf_name(name)
            if target is None:
                raise ModelError(f"{name}: llama.cpp's {layout.architecture} has no place for it", BY_LLAMA_CPP)
            if part != "weight" or value.ndim < 2:
                yield Tensor(target, value.shape, "F32", _vector(layout, name, value))
                continue
            shape = linear_dims(linear)[::-1]
            written = _watch(module, layout, name, kept) if isinstance(module, AdapterLayer) else None
            yield Tensor(target, shape, kind_for(shape, kind), _matrix(module, layout, name), written)


def _vector(layout: Layout, name: str, value: mx.array) -> Callable[[], np.ndarray]:
    return lambda: layout.in_order(name, np.array(value.astype(mx.float32)))


def _matrix(module: nn.Module, layout: Layout, name: str) -> Callable[[], np.ndarray]:
    def values() -> np.ndarray:
        dense = merged_weight(module) if isinstance(module, AdapterLayer) else dense_weight(module)
        return layout.in_order(name, np.array(dense))

    return values


def _watch(adapter: AdapterLayer, layout: Layout, name: str, kept: Kept) -> Callable[[np.ndarray], None]:
    def written(back: np.ndarray) -> None:
        base = dense_weight(adapter.linear)
        update = layout.in_order(name, np.array(merged_weight(adapter) - base))
        difference = back.astype(np.float32) - layout.in_order(name, np.array(base))
        kept.product += float((difference * update).sum(dtype=np.float64))
        kept.square += float(np.square(update).sum(dtype=np.float64))

    return written


def _add_settings(writer: Any, model: nn.Module, layout: Layout) -> None:
    args: Any = model.args
    head_dim = int(getattr(args, "head_dim", None) or args.hidden_size // args.num_attention_heads)
    writer.add_block_count(args.num_hidden_layers)
    writer.add_context_length(args.max_position_embeddings or 2048)
    writer.add_embedding_length(args.hidden_size)
    writer.add_feed_forward_length(args.intermediate_size)
    writer.add_head_count(layout.heads)
    writer.add_head_count_kv(layout.key_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(args.rms_norm_eps)
    writer.add_rope_freq_base(float(args.rope_theta))
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(args.vocab_size)
    scale = float(getattr(_rope(model), "scale", 1.0))
    if scale != 1.0:
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(1 / scale)


def _rope(model: Any) -> Any:
    return model.layers[0].self_attn.rope


def _rotary_factors(model: nn.Module) -> np.ndarray | None:
    """By how much Llama 3 slows each rotary wave, (head_dim / 2,), as the loaded model computes it; None elsewhere.

    Raises: ModelError for another kind of rotary embedding, or for sliding windows.
    """
    args: Any = model.args
    rope = _rope(model)
    kind = type(rope).__name__
    if "sliding_attention" in (getattr(args, "layer_types", None) or ()):
        raise ModelError("the base has layers with a sliding window, which llama.cpp's llama has not", BY_LLAMA_CPP)
    if kind not in ("RoPE", "Llama3RoPE") or rope.traditional:
        raise ModelError(f"the base's rotary embedding ({kind}) is not written to GGUF", BY_LLAMA_CPP)
    if kind == "RoPE":
        return None
    plain = args.rope_theta ** (np.arange(0, rope.dims, 2, dtype=np.float32) / rope.dims)
    factors: np.ndarray = (np.array(rope._freqs) / plain).astype(np.float32)
    return factors
