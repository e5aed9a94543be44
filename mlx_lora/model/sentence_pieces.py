"""SentencePiece's BPE, as GGUF has it (a score a token) and as tokenizer.json has it (merges in order), both ways.

Source: llama.cpp src/llama-vocab.cpp, llm_tokenizer_spm; transformers convert_slow_tokenizer.py, generate_merges.
"""

from collections.abc import Mapping, Sequence
from typing import Any

SPACE = "▁"  # U+2581, which stands for a blank
_REPLACE: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND: dict[str, Any] = {"type": "Prepend", "prepend": SPACE}


def merges_of(scores: Mapping[str, float]) -> list[list[str]]:
    """The merges that build the tokens of `scores` as SentencePiece does, that of the highest score first."""
    found = [
        (-score, [token[:place], token[place:]])
        for token, score in scores.items()
        for place in range(1, len(token))
        if token[:place] in scores and token[place:] in scores
    ]
    return [pair for _, pair in sorted(found, key=lambda merge: merge[0])]


def scores_of(tokens: Sequence[str], merges: Sequence[Sequence[str]]) -> list[float]:
    """A score for each token under which SentencePiece merges in the order of `merges`; the lowest for all others."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def is_sentencepiece(tokenizer: Mapping[str, Any]) -> bool:
    """Whether this tokenizer.json is SentencePiece's BPE with bytes for what it does not know, a blank put first."""
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        return False
    normalizer, cut = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    if cut is None:
        return normalizer == normalizer_of(adds_space=True)
    whole = cut.get("type") == "Metaspace" and cut.get("replacement") == SPACE and cut.get("split") is False
    return normalizer is None and whole and cut.get("prepend_scheme") in ("first", "always")


def normalizer_of(*, adds_space: bool) -> dict[str, Any]:
    """The step of tokenizer.json that puts the sign for blanks in their place, and before the text."""
    return {"type": "Sequence", "normalizers": [_PREPEND, _REPLACE]} if adds_space else _REPLACE


def decoder_of(*, adds_space: bool) -> dict[str, Any]:
    """The step of tokenizer.json that makes text of tokens."""
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    return {
        "type": "Sequence",
        "decoders": [*steps, {"type": "Strip", "content": " ", "start": 1, "stop": 0}] if adds_space else steps,
    }
