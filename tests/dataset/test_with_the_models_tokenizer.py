"""The room's protocol is the one that model.tokenizer.Tokenizer keeps."""

import json
from pathlib import Path

import pytest

from mlx_lora.dataset.rendering import ChatTokenizer, record_prompt
from mlx_lora.errors import DataError
from mlx_lora.model.load import load_tokenizer
from tests.dataset.examples_of import chat, example_of, record, settings, trained
from tests.dataset.tokenizers import SHAPES, TEMPLATES, tokenizer_of
from tests.tiny import CHATML, tiny_config, tiny_tokenizer


def loaded(folder: Path, chat_template: str | None = CHATML) -> ChatTokenizer:
    tiny_tokenizer(chat_template).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(tiny_config("llama")))
    return load_tokenizer(str(folder))


def test_answers_and_their_end_tokens_are_trained(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path)
    example = example_of(chat("Q1", "A1", "Q2", "Paris."), tokenizer)
    end = tokenizer.encode("<|im_end|>")
    assert trained(example) == [tokenizer.encode("A1") + end, tokenizer.encode("Paris.") + end]
    assert record_prompt(chat("Q1", "A1", "Q2", "Paris."), tokenizer, settings()) == tokenizer.encode(
        "<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
        "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_base_models_tokenizer_renders_questions_plainly(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path, None)
    example = example_of(record({"question": "Q", "answer": "A"}), tokenizer)
    assert tokenizer.decode(example.tokens.tolist()).startswith("Question: Q\nAnswer: A<")
    assert int(example.tokens[-1]) == tokenizer.eos_id


@pytest.mark.parametrize("family", list(SHAPES))
def test_every_familys_template_trains_as_with_the_tests_own_double(family: str, tmp_path: Path) -> None:
    double = tokenizer_of(family)
    double.plain.chat_template = (TEMPLATES / f"{family}.jinja").read_text()
    double.plain.save_pretrained(tmp_path)
    ends = [double.id(token) for token in SHAPES[family].ends]
    (tmp_path / "config.json").write_text(json.dumps({**tiny_config("llama"), "eos_token_id": ends}))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.eos_ids == double.eos_ids
    for turns in (("Q", "Paris."), ("Q1", " A1", "Q2", "<think>\nhm\n</think>\n\nA2 ", "Q3", "A3")):
        ours, theirs = example_of(chat(*turns), tokenizer), example_of(chat(*turns), double)
        assert ours.tokens.tolist() == theirs.tokens.tolist()
        assert trained(ours) == trained(theirs)


def test_a_templates_refusal_is_a_fault_with_its_words(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path, "{{ raise_exception('System role not supported') }}")
    with pytest.raises(DataError) as caught:
        example_of(chat("Q", "A", system="S"), tokenizer)
    assert caught.value.message == "f.jsonl:7: the chat template refuses the conversation: System role not supported"
    assert "put it into the first user message" in str(caught.value.hint)
