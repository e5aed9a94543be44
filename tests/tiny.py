"""Tiny random models of every supported family, and a small tokenizer, made in memory. Shared by all tests."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

VOCABULARY = 320
_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "eos_token_id": 2,
    "bos_token_id": 1,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": True},
    "llama_untied": {"model_type": "llama", "tie_word_embeddings": False},
    "mistral": {
        "model_type": "mistral",
        "tie_word_embeddings": False,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": True, "head_dim": 16},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 16,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": 16,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 16,
        "sliding_window_pattern": 2,
        "rope_local_base_freq": 10000.0,
    },
    "phi3": {"model_type": "phi3", "num_key_value_heads": 2, "partial_rotary_factor": 1.0},
    "gpt2": {
        "model_type": "gpt2",
        "n_ctx": 512,
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 4,
        "n_positions": 512,
        "layer_norm_epsilon": 1e-5,
    },
    "olmo2": {"model_type": "olmo2", "tie_word_embeddings": False},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "mamba": {
        "model_type": "mamba",
        "state_size": 8,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_rank": 4,
        "tie_word_embeddings": True,
        "intermediate_size": 128,
    },
}
TRANSFORMERS = [name for name in FAMILIES if name != "mamba"]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_config(family: str, layers: int = 4) -> dict[str, Any]:
    """config.json of the tiny model of `family` (a key of FAMILIES)."""
    return {**_COMMON, "num_hidden_layers": layers, **FAMILIES[family]}


def tiny_model(family: str = "llama", *, seed: int = 0, bits: int | None = None, layers: int = 4) -> nn.Module:
    """A random float32 model with D=64, V=320; with `bits`, quantized in groups of 32."""
    from mlx_lm.utils import _get_classes

    config = tiny_config(family, layers)
    model_class, args_class = _get_classes(config)
    mx.random.seed(seed)
    model = model_class(args_class.from_dict(config))
    # Norms away from 1 and weights large enough for attention to matter: equality tests must be able to fail.
    model.update(tree_map(lambda p: p + 0.05 * mx.random.normal(p.shape), model.parameters()))
    if bits is not None:
        nn.quantize(model, group_size=32, bits=bits, class_predicate=_quantizable)
    model.eval()
    mx.eval(model.parameters())
    return model


def _quantizable(path: str, module: nn.Module) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % 32 == 0


def tiny_tokenizer(chat_template: str | None = CHATML) -> Any:
    """A byte-level BPE tokenizer without merges (one token a byte), with <|pad|>=0, <s>=1, </s>=2 and ChatML marks."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def save_tiny_folder(
    folder: Path, family: str = "llama", *, seed: int = 0, bits: int | None = None, chat_template: str | None = CHATML,
    layers: int = 4,
) -> Path:  # fmt: skip
    """Write the tiny model as a folder that mlx_lm.load reads, with its tokenizer; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(family, layers)
    config["eos_token_id"] = [2, 4]
    if bits is not None:
        config["quantization"] = {"group_size": 32, "bits": bits}
    model = tiny_model(family, seed=seed, bits=bits, layers=layers)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tiny_tokenizer(chat_template).save_pretrained(folder)
    return folder
