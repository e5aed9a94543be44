"""Templates, end tokens and streaming text, on small tokenizers."""

import gc
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lora.errors import ConfigError, ModelError
from mlx_lora.model.tokenizer import Tokenizer
from tests.tiny import CHATML, tiny_tokenizer

USER = {"role": "user", "content": "Hi"}
# Writes its own end token </s> although the tokenizer's eos_token is <|im_end|>, as Mistral's and Llama's do in places.
SLASH_S = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}[INST]{{ message.content }}[/INST]"
    "{% else %}{{ message.content }}</s>{% endif %}{% endfor %}"
)
THINKING = (
    "{% for message in messages %}{{ message.content }}<|im_end|>{% endfor %}"
    "{{ 'think' if enable_thinking is defined and enable_thinking else 'plain' }}"
    "{{ ' defined' if enable_thinking is defined else '' }}"
)


def _tokenizer(template: Any = CHATML, **changes: Any) -> Tokenizer:
    plain = tiny_tokenizer(template)
    for name, value in changes.items():
        setattr(plain, name, value)
    return Tokenizer(_wrapper(plain))


def _wrapper(plain: Any) -> Any:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    return TokenizerWrapper(plain)


def _with_ends(template: Any, ends: list[int]) -> Tokenizer:
    return Tokenizer(_tokenizer(template).wrapper, end_tokens=ends)


def test_the_end_token_is_the_one_that_the_template_writes() -> None:
    """https://github.com/hiyouga/LLaMA-Factory/issues/7943: trained to end with one token, stopped at another."""
    assert _tokenizer(CHATML).eos_id == 4  # <|im_end|>
    assert _tokenizer(SLASH_S).eos_id == 2  # </s>
    assert _tokenizer(SLASH_S).eos_ids == {2, 4}
    assert _tokenizer(None).eos_id == 4


def test_all_end_tokens_stop_an_answer_in_mlx_lm_too() -> None:
    """https://github.com/ml-explore/mlx-examples/issues/756: generation ran over <|eot_id|> to the token limit."""
    tokenizer = _with_ends(CHATML, [2, 0])
    assert tokenizer.eos_ids == {0, 2, 4}
    assert tokenizer.wrapper.eos_token_ids == {0, 2, 4}


def test_a_template_that_ends_turns_with_two_tokens_gives_the_first() -> None:
    template = "{% for message in messages %}{{ message.content }}<|im_end|>{% endfor %}{{ '</s>' }}"
    assert _with_ends(template, [2]).eos_id == 4


def test_an_end_mark_that_is_not_declared_is_found() -> None:
    """A fine-tune that speaks ChatML over a base whose eos is </s>: https://github.com/QwenLM/Qwen3/issues/1064."""
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    plain = tiny_tokenizer(CHATML)
    plain.eos_token = "</s>"
    tokenizer = Tokenizer(TokenizerWrapper(plain))
    assert (tokenizer.eos_id, tokenizer.eos_ids) == (4, {2, 4})


@pytest.mark.parametrize(
    "template",
    [
        "{% for message in messages %}{{ message.content }}\n{% endfor %}",
        "{{ raise_exception('only one turn') }}",
        "{{ messages[5].content.x }}",
        "{% if %}",
        "{% for message in messages %}{{ message.content }}{% endfor %}\n<s>assistant",
    ],
)
def test_a_template_that_shows_no_end_token_leaves_the_tokenizers_own(template: str) -> None:
    assert _tokenizer(template).eos_id == 4


def test_a_tokenizer_without_any_end_token_is_an_error() -> None:
    with pytest.raises(ModelError, match="no end token") as caught:
        _tokenizer(None, eos_token=None)
    assert "generation_config.json" in str(caught.value.hint)


def test_a_template_sees_only_the_switches_it_is_given() -> None:
    """mlx_lm's wrapper passes enable_thinking by itself: https://github.com/QwenLM/Qwen3/issues/1575."""
    tokenizer = _tokenizer(THINKING)
    render = tokenizer.render_chat
    assert render([USER], add_generation_prompt=True, template_args={}) == "Hi<|im_end|>plain"
    assert (
        render([USER], add_generation_prompt=True, template_args={"enable_thinking": False})
        == "Hi<|im_end|>plain defined"
    )
    assert (
        render([USER], add_generation_prompt=True, template_args={"enable_thinking": True})
        == "Hi<|im_end|>think defined"
    )


def test_rendering_with_another_template_leaves_the_tokenizers_own() -> None:
    tokenizer = _tokenizer(CHATML)
    assert tokenizer.render_chat([USER], add_generation_prompt=True, template_args={}, chat_template="{{ 'x' }}") == "x"
    other = tokenizer.with_chat_template(SLASH_S, "own.jinja")
    assert (other.eos_id, other.eos_ids) == (2, {2, 4})
    assert other.render_chat([USER], add_generation_prompt=True, template_args={}) == "<s>[INST]Hi[/INST]"
    text = tokenizer.render_chat([USER], add_generation_prompt=True, template_args={})
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_for_tools_is_taken_when_there_are_tools() -> None:
    tokenizer = _tokenizer({"default": CHATML, "tool_use": "{{ tools[0].name }}"})
    assert tokenizer.chat_template == CHATML
    tools = [{"name": "clock"}]
    assert tokenizer.render_chat([USER], tools=tools, add_generation_prompt=False, template_args={}) == "clock"
    assert tokenizer.render_chat([USER], add_generation_prompt=False, template_args={}).startswith("<|im_start|>user")
    replaced = tokenizer.with_chat_template("{{ 'mine' }}", "own.jinja")
    assert replaced.render_chat([USER], tools=tools, add_generation_prompt=False, template_args={}) == "mine"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ 'a' + messages[0]['content'] + 1 }}",
        "{{ messages[0].missing.deeper }}",
    ],
)
def test_what_a_template_does_not_take_is_a_template_error(template: str) -> None:
    tokenizer = _tokenizer(CHATML)
    with pytest.raises(jinja2.TemplateError):
        tokenizer.render_chat([USER], add_generation_prompt=False, template_args={}, chat_template=template)


@pytest.mark.parametrize(
    ("template", "fact"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "it tries what no template may"),
        ("one\n{% for %}", "line 2: Expected an expression"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "does not end within"),
        ("{{ 'x' * 1200000 }}", "writes 1,200,000 characters"),
    ],
)
def test_a_template_that_can_write_nothing_is_an_error_with_its_place(
    template: str, fact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Templates of model folders run in a sandbox: CVE-2026-5760."""
    if fact == "does not end within":  # a slow moment of the machine must not end the others so
        monkeypatch.setattr("mlx_lora.model.template_limits.LONGEST_SECONDS", 0.1)
    monkeypatch.setattr("mlx_lora.model.template_limits.LONGEST_TEXT", 1_000_000)
    tokenizer = _tokenizer(CHATML)
    gc.disable()  # hypothesis calls back on a collection, which has no room at the bottom of a recursion
    try:
        with pytest.raises(ModelError, match=f"own.jinja: .*{fact}"):
            tokenizer.with_chat_template(template, "own.jinja")
    finally:
        gc.enable()
    own = _tokenizer(template)  # not refused yet: the run may bring another template, or rows of plain text
    with pytest.raises(ModelError, match=f"the model's chat template: .*{fact}"):
        own.render_chat([USER], add_generation_prompt=False, template_args={})
    assert own.with_chat_template(CHATML, "own.jinja").eos_id == 4


def test_what_the_tokenizer_takes_itself_is_no_switch_of_a_template() -> None:
    for name in ("tokenize", "messages", "return_dict", "chat_template"):
        with pytest.raises(ConfigError, match=f"data.chat_template_args: {name}: not for the template"):
            _tokenizer(CHATML).render_chat([USER], add_generation_prompt=True, template_args={name: True})


def test_a_message_of_another_shape_is_a_template_error() -> None:
    with pytest.raises(jinja2.TemplateError, match="TypeError"):
        _tokenizer(CHATML).render_chat(
            [{"role": "user", "content": [{"type": "text"}]}], add_generation_prompt=False, template_args={}
        )


def test_without_a_template_rendering_is_an_error_with_a_remedy() -> None:
    with pytest.raises(ModelError, match="no chat template") as caught:
        _tokenizer(None).render_chat([USER], add_generation_prompt=True, template_args={})
    assert "data.chat_template" in str(caught.value.hint)


def test_encoding_adds_no_special_token_and_knows_who_would() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = _tokenizer(CHATML)
    assert tokenizer.adds_bos is False
    adding = _tokenizer(CHATML)
    adding._plain.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    assert adding.adds_bos is True
    assert adding.encode("hi") == tokenizer.encode("hi") == [76, 77]
    assert tokenizer.encode("<|im_end|>\n")[0] == 4
    assert tokenizer.bos_id == 1
    assert tokenizer.vocabulary_size == 261


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_decoding_gives_the_text_back_exactly(text: str) -> None:
    assert TINY.decode(TINY.encode(text)) == text


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.sampled_from("a ,.\n'é日😀\u200d\ufffd👩🏽")))
def test_streamed_pieces_join_to_the_text(text: str) -> None:
    decoder = TINY.stream_decoder()
    pieces = [decoder.add(token) for token in TINY.encode(text)]
    assert "".join(pieces) + decoder.finish() == text
    assert decoder.finish() == ""
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(pieces)


@settings(max_examples=200, deadline=None)
@given(tokens=st.lists(st.integers(0, 260)))
def test_streamed_pieces_of_any_tokens_join_to_their_decoding(tokens: list[int]) -> None:
    decoder = TINY.stream_decoder()
    assert "".join(decoder.add(token) for token in tokens) + decoder.finish() == TINY.decode(tokens)


def test_a_character_of_four_tokens_comes_whole_and_at_once() -> None:
    decoder = TINY.stream_decoder()
    assert [decoder.add(token) for token in TINY.encode("a😀b")] == ["a", "", "", "", "😀", "b"]
    assert [decoder.add(token) for token in TINY.encode("😀")[:2]] == ["", ""]
    assert decoder.finish() == "\ufffd"


def test_a_sentencepiece_stream_keeps_its_spaces() -> None:
    decoder = Tokenizer(_sentencepiece()).stream_decoder()
    tokens = [3, 4, 5, 4, 6, 7, 8, 3]
    assert [decoder.add(token) for token in tokens] == ["the", " cat", "s", " cat", " ", "", "é", " the"]


def test_a_stream_that_goes_on_from_a_text_begins_with_its_space() -> None:
    """Found by reading: a plain completion of a SentencePiece model ran into the last word of its prompt."""
    tokenizer = Tokenizer(_sentencepiece())
    decoder = tokenizer.stream_decoder(after=[3])
    assert [decoder.add(token) for token in [4, 5, 7, 8]] == [" cat", "s", "", "é"]
    after_part = tokenizer.stream_decoder(after=[7])  # half a character of the prompt is no text to go on from
    assert [after_part.add(token) for token in [4, 5]] == ["cat", "s"]


def test_a_token_is_spelled_as_it_stands_behind_another() -> None:
    tokenizer = Tokenizer(_sentencepiece())
    assert [tokenizer.spell(4), tokenizer.spell(4, after=3), tokenizer.spell(5, after=4)] == ["cat", " cat", "s"]
    assert [tokenizer.spell(7, after=3), tokenizer.spell(8, after=7)] == ["\ufffd", "\ufffd"]


def _sentencepiece() -> Any:
    """A tokenizer in the shape of Llama 2's: ▁ for a space, bytes as <0x..>, the first space stripped."""
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models
    from transformers import PreTrainedTokenizerFast

    tokens = ["<unk>", "<s>", "</s>", "▁the", "▁cat", "s", "▁", "<0xC3>", "<0xA9>"]
    backend = Backend(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>"))


TINY = _tokenizer()


def test_the_end_token_of_one_template_is_none_of_the_next_ones() -> None:
    """Found by reading: all templates share mlx_lm's wrapper, and chat and eval did not put its end tokens back."""
    plain = tiny_tokenizer(CHATML)
    plain.add_special_tokens({"additional_special_tokens": ["<|other|>"]})
    tokenizer = Tokenizer(_wrapper(plain))
    ending = "{% for message in messages %}{{ message.content }}MARK{% endfor %}"
    first = tokenizer.with_chat_template(ending.replace("MARK", "</s>"), "first.jinja")
    assert (first.eos_id, first.eos_ids) == (2, {2, 4})
    assert tokenizer.wrapper.eos_token_ids == {4}
    with pytest.raises(ModelError):
        tokenizer.with_chat_template("{% if %}", "broken.jinja")
    assert tokenizer.wrapper.eos_token_ids == {4}
    second = tokenizer.with_chat_template(ending.replace("MARK", "<|other|>"), "second.jinja")
    assert second.eos_ids == {4, second.eos_id}
    assert second.decode([second.eos_id]) == "<|other|>"
    assert tokenizer.eos_ids == tokenizer.wrapper.eos_token_ids == {4}
