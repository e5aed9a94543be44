"""A GGUF file's byte-level BPE tokenizer to the files that transformers reads. Knows nothing of tensors or folders."""

from typing import Any, Protocol

from mlx_lora.errors import ModelError
from mlx_lora.model.pre_tokenizers import BYTE_LEVEL, PRE_TOKENIZERS, SYNONYMS, PreTokenizer

_CONTROL, _USER_DEFINED = 3, 4  # llama.h: llama_token_type


class Metadata(Protocol):
    """What is read of a GGUF file."""

    def value(self, key: str, default: Any = None) -> Any:
        """The metadata value `key`."""


def tokenizer_files(gguf: Metadata) -> dict[str, dict[str, Any]]:
    """tokenizer.json, tokenizer_config.json and generation_config.json by name; the chat template byte for byte.

    Raises: ModelError for a tokenizer that is not byte-level BPE, or that cuts texts in a way that has no name here.
    Source: llama.cpp llama-vocab.cpp. transformers reads such a tokenizer only with torch.
    """
    model, pre = gguf.value("tokenizer.ggml.model"), gguf.value("tokenizer.ggml.pre")
    known = PRE_TOKENIZERS.get(SYNONYMS.get(pre, pre))
    if model != "gpt2" or known is None:
        raise ModelError(
            f"the GGUF file's tokenizer is {model!r} with {pre!r}, expected 'gpt2' with {', '.join(PRE_TOKENIZERS)}",
            "look for an MLX version of the model on Hugging Face (mlx-community/…)",
        )
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
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if known.normalized else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(known.steps)},
        "post_processor": _bos_first(named.get("bos_token"), gguf, known),
        "decoder": {**BYTE_LEVEL, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": known.ignore_merges,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in gguf.value("tokenizer.ggml.merges", [])],
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


def _bos_first(bos: str | None, gguf: Metadata, known: PreTokenizer) -> dict[str, Any] | None:
    """The step that puts the first token before a text, where the file asks for it."""
    if bos is None or not gguf.value("tokenizer.ggml.add_bos_token", known.adds_bos):
        return None
    text = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*text, {"Sequence": {"id": "B", "type_id": 1}}]
    number = gguf.value("tokenizer.ggml.bos_token_id")
    tokens = {bos: {"id": bos, "ids": [number], "tokens": [bos]}}
    return {"type": "TemplateProcessing", "single": text, "pair": pair, "special_tokens": tokens}


def _added(number: int, content: str, kind: int) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": content, **plain, "special": kind == _CONTROL}
