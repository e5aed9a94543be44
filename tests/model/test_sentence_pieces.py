"""SentencePiece's BPE between a score a token (GGUF) and merges in order (tokenizer.json)."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_lora.model.gguf_tokenizer import tokenizer_files
from mlx_lora.model.sentence_pieces import SPACE, is_sentencepiece, merges_of, scores_of
from tests.model.test_pre_tokenizers import Metadata

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
BUILT = [SPACE + "t", "he", SPACE + "the", "in", SPACE + "in", SPACE + "the" + SPACE + "in", *SPACE, *"theins"]
TOKENS = ["<unk>", "<s>", "</s>", *BYTES, *BUILT]
SCORES = [0.0] * 259 + [-float(rank) for rank in range(len(BUILT))]
TYPES = [2, 3, 3] + [6] * 256 + [1] * len(BUILT)


def metadata(**changes: Any) -> Metadata:
    """A GGUF file's SentencePiece tokenizer: three marks, the bytes, a few words."""
    facts = {"model": "llama", "tokens": TOKENS, "scores": SCORES, "token_type": TYPES, "unknown_token_id": 0}
    return Metadata("default", **{**facts, "bos_token_id": 1, "eos_token_id": 2, **changes})


def _tokenizer(**changes: Any) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(tokenizer_files(metadata(**changes))["tokenizer.json"]))


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("the inn", [SPACE + "the" + SPACE + "in", "n"]),
        ("then", [SPACE + "the", "n"]),
        (" it", [SPACE, SPACE, "i", "t"]),
        ("hé", [SPACE, "h", "<0xC3>", "<0xA9>"]),
        ("the</s>the", [SPACE + "the", "</s>", SPACE + "the"]),
    ],
)
def test_texts_are_built_up_by_score_with_bytes_for_what_is_unknown(text: str, pieces: list[str]) -> None:
    tokenizer = _tokenizer()
    found = tokenizer.encode(text, add_special_tokens=False)
    assert found.tokens == pieces
    if "</s>" not in text:
        assert tokenizer.decode(found.ids) == text


def test_bos_comes_first_unless_the_file_says_otherwise() -> None:
    assert _tokenizer().encode("the").tokens == ["<s>", SPACE + "the"]
    assert _tokenizer(add_bos_token=False).encode("the").tokens == [SPACE + "the"]
    assert _tokenizer(add_space_prefix=False).encode("he", add_special_tokens=False).tokens == ["he"]


def test_what_is_read_is_known_again_and_other_tokenizers_are_not() -> None:
    content = tokenizer_files(metadata())["tokenizer.json"]
    assert is_sentencepiece(content)
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}
    assert is_sentencepiece({**content, "normalizer": None, "pre_tokenizer": metaspace})
    assert not is_sentencepiece({**content, "normalizer": None})
    assert not is_sentencepiece({**content, "model": {**content["model"], "byte_fallback": False}})
    assert not is_sentencepiece({**content, "pre_tokenizer": {**metaspace, "split": True}, "normalizer": None})
    assert not is_sentencepiece(tokenizer_files(Metadata("smollm"))["tokenizer.json"])


words = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=12, unique=True)


@given(words)
def test_scores_made_of_merges_give_the_same_merges(built: list[str]) -> None:
    tokens = [*built, *({*"abc"} - set(built))]
    scores = {token: -float(rank) for rank, token in enumerate(tokens)}
    merges = merges_of(scores)
    again = dict(zip(tokens, scores_of(tokens, merges), strict=True))
    assert merges_of(again) == merges
    made = {left + right for left, right in merges}
    assert sorted(made, key=again.__getitem__) == sorted(made, key=scores.__getitem__)
