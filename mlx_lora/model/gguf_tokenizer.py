"""A GGUF file's tokenizer to the files that transformers reads: byte-level BPE or SentencePiece's. Knows no tensors."""

from typing import Any

from mlx_lora.errors import ModelError
from mlx_lora.model.gguf_settings import MLX_VERSION, Metadata
from mlx_lora.model.pre_tokenizers import BYTE_LEVEL, PRE_TOKENIZERS, SYNONYMS
from mlx_lora.model.sentence_pieces import decoder_of, merges_of, normalizer_of

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # llama.h: llama_token_type
_ADDED = (_UNKNOWN, _CONTROL, _USER_DEFINED)  # taken out of a text before it is cut
_KINDS: dict[type, str] = {str: "texts", int: "whole numbers", float: "numbers"}


def tokenizer_files(gguf: Metadata) -> dict[str, dict[str, Any]]:
    """tokenizer.json, tokenizer_config.json and generation_config.json by name; the chat template byte for byte.

    Raises: ModelError for a tokenizer of another kind, that cuts texts in a way that has no name here, or whose lists
    do not agree with one another.
    Source: llama.cpp llama-vocab.cpp. transformers reads such a tokenizer only with torch.
    """
    tokens: list[str] = _list(gguf, "tokens", str)
    types: list[int] = _list(gguf, "token_type", int, [_NORMAL] * len(tokens))
    named = {
        role: tokens[number]
        for role, key in (
            ("bos_token", "bos"),
            ("eos_token", "eos"),
            ("unk_token", "unknown"),
            ("pad_token", "padding"),
        )
        if (number := _token(gguf, key, len(tokens))) is not None
    }
    parts, adds_bos = _sentence_pieces(gguf, tokens, types) or _byte_level(gguf, tokens)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(number, tokens[number], kind) for number, kind in enumerate(types) if kind in _ADDED],
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": _bos_first(named.get("bos_token"), gguf, adds_bos),
        "decoder": parts["decoder"],
        "model": {
            "type": "BPE",
            "dropout": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            **parts["model"],
            "vocab": {token: number for number, token in enumerate(tokens)},
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
        token = _token(gguf, role, len(tokens))
        if token is not None:
            generation[f"{role.replace('padding', 'pad')}_token_id"] = token
    return {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": settings,
        "generation_config.json": generation,
    }


def _byte_level(gguf: Metadata, tokens: list[str]) -> tuple[dict[str, Any], bool]:
    """The parts of tokenizer.json for byte-level BPE, and whether a text begins with BOS where the file is silent."""
    model, pre = gguf.value("tokenizer.ggml.model"), gguf.value("tokenizer.ggml.pre")
    known = PRE_TOKENIZERS.get(SYNONYMS.get(str(pre), str(pre)))
    if model != "gpt2" or known is None:
        raise ModelError(
            f"{gguf.path}: its tokenizer is {model!r} with {pre!r}, "
            f"expected 'llama', or 'gpt2' with {', '.join(PRE_TOKENIZERS)}",
            MLX_VERSION,
        )
    merges = [merge.split(" ") for merge in _list(gguf, "merges", str, [])]
    if odd := next((merge for merge in merges if len(merge) != 2), None):
        raise _wrong(gguf, "merges", " ".join(odd), "two tokens with a blank between them")
    rules = {"unk_token": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": known.ignore_merges}
    return {
        "normalizer": {"type": "NFC"} if known.normalized else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(known.steps)},
        "decoder": {**BYTE_LEVEL, "add_prefix_space": True},
        "model": {**rules, "merges": merges},
    }, known.adds_bos


def _sentence_pieces(gguf: Metadata, tokens: list[str], types: list[int]) -> tuple[dict[str, Any], bool] | None:
    """The same for SentencePiece's BPE; None for a file of another kind."""
    if gguf.value("tokenizer.ggml.model") != "llama":
        return None
    scores: list[float] = _list(gguf, "scores", float, [0.0] * len(tokens))
    built = {tokens[number]: scores[number] for number, kind in enumerate(types) if kind == _NORMAL}
    unknown = next((tokens[number] for number, kind in enumerate(types) if kind == _UNKNOWN), None)
    adds_space = bool(gguf.value("tokenizer.ggml.add_space_prefix", True))
    rules = {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False}
    return {
        "normalizer": normalizer_of(adds_space=adds_space),
        "pre_tokenizer": None,
        "decoder": decoder_of(adds_space=adds_space),
        "model": {**rules, "merges": merges_of(built)},
    }, True


def _bos_first(bos: str | None, gguf: Metadata, by_itself: bool) -> dict[str, Any] | None:
    """The step that puts the first token before a text, where the file asks for it."""
    if bos is None or not gguf.value("tokenizer.ggml.add_bos_token", by_itself):
        return None
    text = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*text, {"Sequence": {"id": "B", "type_id": 1}}]
    number = gguf.value("tokenizer.ggml.bos_token_id")
    tokens = {bos: {"id": bos, "ids": [number], "tokens": [bos]}}
    return {"type": "TemplateProcessing", "single": text, "pair": pair, "special_tokens": tokens}


def _added(number: int, content: str, kind: int) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": content, **plain, "special": kind != _USER_DEFINED}


def _list(gguf: Metadata, key: str, kind: type, default: list[Any] | None = None) -> list[Any]:
    """The list `key` of the tokenizer, all of one kind, and as long as `default`, where that is one entry a token.

    Raises: ModelError where it is none.
    """
    found = gguf.value(f"tokenizer.ggml.{key}", default)
    if not isinstance(found, list):
        raise _wrong(gguf, key, found, "a list")
    if (stranger := next((one for one in found if not isinstance(one, kind)), None)) is not None:
        raise _wrong(gguf, key, stranger, f"only {_KINDS[kind]} in it")
    if default and len(found) != len(default):
        raise _wrong(gguf, key, f"{len(found)} entries", f"{len(default)}, one a token")
    return found


def _token(gguf: Metadata, role: str, tokens: int) -> int | None:
    """The number of the token in that role; None where the file names none.

    So too for a padding token beyond the vocabulary, which files have that were padded with a token of their own:
    nothing here pads with it, and llama.cpp passes over it. Raises: ModelError for another that is none of `tokens`.
    """
    number = gguf.value(f"tokenizer.ggml.{role}_token_id")
    if role == "padding" and isinstance(number, int) and number >= tokens:
        return None
    if number is not None and (not isinstance(number, int) or not 0 <= number < tokens):
        raise _wrong(gguf, f"{role}_token_id", number, f"the number of one of {tokens} tokens")
    return number


def _wrong(gguf: Metadata, key: str, value: Any, expected: str) -> ModelError:
    shown = value[:60] if isinstance(value, str) else f"{value!r:.60}"
    return ModelError(f"{gguf.path}: tokenizer.ggml.{key} is {shown}, expected {expected}", MLX_VERSION)
