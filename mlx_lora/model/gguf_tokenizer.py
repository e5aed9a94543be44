"""A GGUF file's byte-level BPE tokenizer to the files that transformers reads. Knows nothing of tensors or folders."""

from typing import Any, Protocol

from mlx_lora.errors import ModelError

_CONTROL, _USER_DEFINED = 3, 4  # llama.h: llama_token_type


class Metadata(Protocol):
    """What is read of a GGUF file."""

    def value(self, key: str, default: Any = None) -> Any:
        """The metadata value `key`."""


def tokenizer_files(gguf: Metadata) -> dict[str, dict[str, Any]]:
    """tokenizer.json, tokenizer_config.json and generation_config.json by name; the chat template byte for byte.

    Raises: ModelError for a tokenizer that is not byte-level BPE with single digits ("smollm").
    Source: llama.cpp llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM. transformers reads such a tokenizer only with torch.
    """
    kind = (gguf.value("tokenizer.ggml.model"), gguf.value("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise ModelError(f"the GGUF tokenizer is {kind}, expected ('gpt2', 'smollm')")
    tokens: list[str] = gguf.value("tokenizer.ggml.tokens")
    types: list[int] = gguf.value("tokenizer.ggml.token_type", [1] * len(tokens))
    added = [
        _added(number, tokens[number], kind) for number, kind in enumerate(types) if kind in (_CONTROL, _USER_DEFINED)
    ]
    named = {
        role: tokens[gguf.value(f"tokenizer.ggml.{key}_token_id")]
        for role, key in (
            ("bos_token", "bos"),
            ("eos_token", "eos"),
            ("unk_token", "unknown"),
            ("pad_token", "padding"),
        )
        if gguf.value(f"tokenizer.ggml.{key}_token_id") is not None
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in gguf.value("tokenizer.ggml.merges")],
        },
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": gguf.value("llama.context_length"),
        **named,
    }
    if gguf.value("tokenizer.chat_template") is not None:
        settings["chat_template"] = gguf.value("tokenizer.chat_template")
    generation: dict[str, Any] = {}
    for role in ("bos", "eos", "padding"):
        token = gguf.value(f"tokenizer.ggml.{role}_token_id")
        if token is not None:
            generation[f"{role.replace('padding', 'pad')}_token_id"] = token
    return {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": settings,
        "generation_config.json": generation,
    }


def _added(number: int, content: str, kind: int) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": content, **plain, "special": kind == _CONTROL}
