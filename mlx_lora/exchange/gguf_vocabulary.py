"""A BPE tokenizer as GGUF's metadata: tokens, types, merges or scores, what they mean. Knows nothing of weights.

Source: conversion/base.py of llama.cpp; llama.h, llama_token_type.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_lora.errors import ModelError
from mlx_lora.model.identity import read_json_object
from mlx_lora.model.pre_tokenizers import PRE_TOKENIZERS, recognize
from mlx_lora.model.sentence_pieces import is_sentencepiece, scores_of
from mlx_lora.model.tokenizer import Tokenizer

BY_LLAMA_CPP = "fuse --dequantize, and convert the folder with llama.cpp's convert_hf_to_gguf.py"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp needs to read and write text as the base does.

    pre: llama.cpp's name for how a text is cut before merging; None for SentencePiece's BPE, which has scores in place
    of merges, and cuts nothing. roles: GGUF's name of a role ("eos") → token.
    """

    pre: str | None
    tokens: list[str]
    types: list[int]
    merges: list[list[str]]
    roles: dict[str, int]
    adds_bos: bool
    chat_template: str | None

    def add_to(self, writer: Any) -> None:
        """Give it to gguf's GGUFWriter."""
        writer.add_tokenizer_model("llama" if self.pre is None else "gpt2")
        writer.add_tokenizer_pre(self.pre or "default")
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.pre is None:
            writer.add_token_scores(scores_of(self.tokens, self.merges))
        else:
            writer.add_token_merges([" ".join(merge) for merge in self.merges])
        for role, token in self.roles.items():
            writer.add_uint32(f"tokenizer.ggml.{role}_token_id", token)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_space_prefix(self.pre is None)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(folder: Path, tokenizer: Tokenizer, *, rows: int) -> Vocabulary:
    """The vocabulary of the model in `folder`; rows: those of its embedding, filled up with unused tokens.

    Raises: ModelError for a tokenizer that is no BPE, or that cuts texts in a way that has no name here.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelError(f"{folder}: has no tokenizer.json", BY_LLAMA_CPP)
    content = read_json_object(file)
    model = content.get("model") or {}
    pre = recognize(content) if model.get("type") == "BPE" else None
    if pre is None and not is_sentencepiece(content):
        raise ModelError(
            f"{file}: cuts texts neither as {', '.join(PRE_TOKENIZERS)} do nor as SentencePiece's BPE", BY_LLAMA_CPP
        )
    known = {int(number): token for token, number in model["vocab"].items()}
    types = dict.fromkeys(known, _NORMAL)
    if pre is None:
        types |= {number: _BYTE for number, token in known.items() if _BYTE_TOKEN.fullmatch(token)}
    for added in content.get("added_tokens", []):
        known[added["id"]] = added["content"]
        types[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
        if added["content"] == model.get("unk_token"):
            types[added["id"]] = _UNKNOWN
    if known and max(known) >= rows:
        raise ModelError(f"{file}: names token {max(known)}, the model's embedding has {rows} rows", BY_LLAMA_CPP)
    return Vocabulary(
        pre,
        [known.get(number, f"[PAD{number}]") for number in range(rows)],
        [types.get(number, _UNUSED) for number in range(rows)],
        [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]],
        _roles(folder, tokenizer, {token: number for number, token in known.items()}),
        tokenizer.adds_bos,
        tokenizer.chat_template,
    )


def _roles(folder: Path, tokenizer: Tokenizer, numbers: Mapping[str, int]) -> dict[str, int]:
    """The tokens with a meaning: the end token is the one that the chat template writes after an answer."""
    file = folder / "tokenizer_config.json"
    settings = read_json_object(file) if file.is_file() else {}
    named: dict[str, int] = {}
    for role, key in (("bos", "bos_token"), ("unknown", "unk_token"), ("padding", "pad_token")):
        token = settings.get(key)
        text = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(text, str) and text in numbers:
            named[role] = numbers[text]
    return {**named, "eos": tokenizer.eos_id}
