"""How texts are cut before merging: the names of llama.cpp, the steps of tokenizer.json, and the pieces."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_lora.errors import ModelError
from mlx_lora.model.gguf_tokenizer import tokenizer_files
from mlx_lora.model.pre_tokenizers import PRE_TOKENIZERS, recognize

TEXT = "I'VE won 12345 cups!\n\n  Größe"
PIECES = {
    "gpt-2": ["I", "'", "VE", "Ġwon", "Ġ12345", "Ġcups", "!", "ĊĊĠ", "ĠGrÃ¶ÃŁe"],
    "smollm": ["I", "'", "VE", "Ġwon", "Ġ", "1", "2", "3", "4", "5", "Ġcups", "!", "ĊĊĠ", "ĠGrÃ¶ÃŁe"],
    "llama-bpe": ["I", "'VE", "Ġwon", "Ġ", "123", "45", "Ġcups", "!ĊĊ", "Ġ", "ĠGrÃ¶ÃŁe"],
    "qwen2": ["I", "'VE", "Ġwon", "Ġ", "1", "2", "3", "4", "5", "Ġcups", "!ĊĊ", "Ġ", "ĠGrÃ¶ÃŁe"],
}


class Metadata:
    """A GGUF file's tokenizer of four tokens."""

    path = Path("some.gguf")

    def __init__(self, pre: str, **changes: Any) -> None:
        self.values = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": ["<s>", "</s>", "a", "b"],
            "tokenizer.ggml.token_type": [3, 3, 1, 1],
            "tokenizer.ggml.merges": [],
            "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.ggml.eos_token_id": 1,
            **{f"tokenizer.ggml.{key}": value for key, value in changes.items()},
        }

    def value(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_a_text_is_cut_as_llama_cpp_cuts_it(name: str) -> None:
    from tokenizers import Tokenizer

    content = tokenizer_files(Metadata(name))["tokenizer.json"]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(TEXT)] == PIECES[name]


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_what_is_read_under_a_name_is_written_under_it(name: str) -> None:
    content = tokenizer_files(Metadata(name))["tokenizer.json"]
    assert recognize(content) == name
    offsets = [{**step, "trim_offsets": False} for step in PRE_TOKENIZERS[name].steps]
    assert recognize({**content, "pre_tokenizer": {"type": "Sequence", "pretokenizers": offsets}}) == name
    if len(PRE_TOKENIZERS[name].steps) == 1:
        assert recognize({**content, "pre_tokenizer": dict(PRE_TOKENIZERS[name].steps[0])}) == name


def test_other_ways_of_cutting_have_no_name() -> None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    assert recognize({"pre_tokenizer": byte_level}) == "gpt-2"
    assert recognize({"pre_tokenizer": {**byte_level, "add_prefix_space": True}}) is None
    assert recognize({"pre_tokenizer": byte_level, "normalizer": {"type": "Lowercase"}}) is None
    assert recognize({"pre_tokenizer": {"type": "Metaspace"}}) is None
    assert recognize({"pre_tokenizer": None}) is None


def test_the_first_token_comes_before_a_text_where_the_file_or_its_kind_says_so() -> None:
    def step(pre: str, **changes: Any) -> Any:
        return tokenizer_files(Metadata(pre, **changes))["tokenizer.json"]["post_processor"]

    assert step("smollm") is None
    assert step("llama-bpe", add_bos_token=False) is None
    assert step("llama-bpe")["single"][0] == {"SpecialToken": {"id": "<s>", "type_id": 0}}
    assert step("qwen2", add_bos_token=True) == step("llama-bpe")


@pytest.mark.parametrize(
    ("pre", "changes", "fact"),
    [
        ("gpt-2", {"eos_token_id": 4}, "eos_token_id is 4, expected the number of one of 4 tokens"),
        ("gpt-2", {"token_type": [1, 1, 1, 1, 1]}, "token_type is 5 entries, expected 4, one a token"),
        ("gpt-2", {"tokens": "abc"}, "tokens is abc, expected a list"),
        ("gpt-2", {"tokens": ["a", 3, "b", "c"]}, "tokens is 3, expected only texts in it"),
        ("gpt-2", {"merges": ["a b", "ab"]}, "merges is ab, expected two tokens with a blank between them"),
        ("default", {"model": "llama", "scores": [0.0]}, "scores is 1 entries, expected 4, one a token"),
    ],
)
def test_a_tokenizer_that_contradicts_itself_is_named(pre: str, changes: dict[str, Any], fact: str) -> None:
    """They ended in an IndexError, or in a tokenizer.json that nobody could read."""
    with pytest.raises(ModelError) as caught:
        tokenizer_files(Metadata(pre, **changes))
    assert caught.value.message == f"some.gguf: tokenizer.ggml.{fact}"


def test_a_padding_token_beyond_the_vocabulary_is_none() -> None:
    files = tokenizer_files(Metadata("gpt-2", padding_token_id=4))
    assert "pad_token" not in files["tokenizer_config.json"]
    assert "pad_token_id" not in files["generation_config.json"]
    files = tokenizer_files(Metadata("gpt-2", padding_token_id=3))
    assert files["generation_config.json"]["pad_token_id"] == 3
