"""How byte-level BPE tokenizers cut a text before merging: llama.cpp's name for it, and the steps in tokenizer.json.

Used both ways, to read a GGUF file and to write one. Source: llama.cpp src/llama-vocab.cpp (the regular expressions of
each LLAMA_VOCAB_PRE_TYPE), and the tokenizer.json of the models that they are named after.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTE_LEVEL: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _split(pattern: str) -> list[dict[str, Any]]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [split, {**BYTE_LEVEL, "use_regex": False}]


@dataclass(frozen=True)
class PreTokenizer:
    """The steps; whether the text is normalized (NFC) first, and whether a word that is a token is left whole.

    adds_bos: whether a file that does not say so begins a text with the first token.
    """

    steps: tuple[dict[str, Any], ...]
    normalized: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False


# llama.cpp's name -> the steps. Other names of the same steps stand below.
PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "gpt-2": PreTokenizer((BYTE_LEVEL,)),
    "smollm": PreTokenizer(({"type": "Digits", "individual_digits": True}, BYTE_LEVEL)),
    "llama-bpe": PreTokenizer(tuple(_split(rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}")), ignore_merges=True, adds_bos=True),
    "qwen2": PreTokenizer(tuple(_split(rf"{_WORDS}|\p{{N}}|{_REST}")), normalized=True),
}
SYNONYMS = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2", "phi-2": "gpt-2"}


def recognize(tokenizer: Mapping[str, Any]) -> str | None:
    """llama.cpp's name for what this tokenizer.json does before merging; None when it is none of PRE_TOKENIZERS."""
    own = tokenizer.get("pre_tokenizer") or {}
    steps = own.get("pretokenizers", []) if own.get("type") == "Sequence" else [own]
    normalizer = (tokenizer.get("normalizer") or {}).get("type")
    if normalizer not in (None, "NFC"):
        return None
    compared = [_essence(step) for step in steps]
    return next((name for name, known in PRE_TOKENIZERS.items() if compared == [*map(_essence, known.steps)]), None)


def _essence(step: Mapping[str, Any]) -> dict[str, Any]:
    """What decides where a text is cut; trim_offsets only moves the places that are reported."""
    defaults: dict[str, Any] = {"use_regex": True} if step.get("type") == "ByteLevel" else {}
    return {**defaults, **{key: value for key, value in step.items() if key != "trim_offsets"}}
