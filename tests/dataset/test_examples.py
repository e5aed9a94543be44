"""Masks, end tokens, prompts without templates and the length limit, token by token."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mlx_lora.dataset.examples import SHORTENED, build_example, build_examples, record_prompt, render_prompt
from mlx_lora.dataset.rendering import render_beginning
from mlx_lora.dataset.spans import (
    CALLS_IGNORED,
    DATED,
    EMBEDDED_END,
    END_ADDED,
    LAST_ONLY,
    MERGED,
    MESSAGE_IGNORED,
    NO_END,
    PROMPT_IGNORED,
    THINKING_IGNORED,
    TOOLS_UNWRITTEN,
    common_prefix,
)
from mlx_lora.errors import ConfigError, DataError
from tests.dataset.examples_of import chat, example_of, record, settings, trained
from tests.dataset.tokenizers import SHAPES, TemplateTokenizer, tokenizer_of, tokenizer_without_template

EXCHANGE = {"question": "Q", "answer": "Paris."}


def test_all_tokens_but_the_first_are_trained_when_the_settings_say_so() -> None:
    tokenizer = tokenizer_of("smollm2")
    example = example_of(chat("Q", "A"), tokenizer, train_on="all")
    assert example.loss_mask.tolist() == [False] + [True] * (len(example.tokens) - 1)
    assert tokenizer.decode(example.tokens.tolist()).endswith("A<|im_end|>\n")


class TestEndTokens:
    """https://github.com/hiyouga/LLaMA-Factory/issues/7943: without a trained end token answers never end."""

    def test_a_template_without_end_tokens_gets_one_after_the_last_answer(self) -> None:
        tokenizer = tokenizer_of("no_end")
        example = example_of(chat("Q1", "A1", "Q2", "A2"), tokenizer)
        assert trained(example) == [tokenizer.encode("A1\n"), [*tokenizer.encode("A2\n"), tokenizer.eos_id]]
        assert example.note == f"{NO_END}; {END_ADDED}"

    def test_it_gets_one_too_where_all_tokens_are_trained(self) -> None:
        tokenizer = tokenizer_of("no_end")
        assert example_of(chat("Q", "A"), tokenizer, train_on="all").tokens[-1] == tokenizer.eos_id

    def test_an_end_token_that_the_data_spells_is_trained_once(self) -> None:
        tokenizer = tokenizer_of("mistral")
        example = example_of(chat("Q", "Paris.</s>"), tokenizer)
        assert trained(example) == [tokenizer.encode(" Paris.</s>")]
        assert example.note == EMBEDDED_END

    def test_what_follows_a_spelled_end_token_is_not_trained(self) -> None:
        tokenizer = tokenizer_of("mistral")
        example = example_of(chat("Q1", "A</s>B", "Q2", "Paris."), tokenizer)
        assert trained(example) == [tokenizer.encode(" A</s>"), tokenizer.encode(" Paris.</s>")]
        assert example.note == EMBEDDED_END

    @pytest.mark.parametrize("family", list(SHAPES))
    @pytest.mark.parametrize("train_on", ["completion", "all"])
    def test_every_family_trains_an_end_token(self, family: str, train_on: str) -> None:
        tokenizer = tokenizer_of(family)
        example = example_of(chat("Q1", "A1", "Q2", "A2"), tokenizer, train_on=train_on)
        assert tokenizer.eos_ids & set(example.tokens[example.loss_mask].tolist())


class TestPrefixes:
    def test_an_answer_that_merges_with_the_prompts_last_space_is_trained_whole(self) -> None:
        tokenizer = tokenizer_of("no_end")
        example = example_of(chat("Q", "Paris."), tokenizer)
        assert tokenizer.encode("ASSISTANT: Paris.")[-2] == tokenizer.encode(" Paris")[0]
        assert trained(example) == [tokenizer.encode(" Paris.\n</s>")]
        assert example.note == f"{MERGED}; {END_ADDED}"

    @hypothesis_settings(deadline=None)
    @given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
    def test_the_common_prefix_is_the_longest(self, one: list[int], two: list[int]) -> None:
        length = common_prefix(one, two)
        assert one[:length] == two[:length]
        assert length in (len(one), len(two)) or one[length] != two[length]

    def test_where_earlier_answers_cannot_be_told_apart_only_the_last_is_trained_and_said(self) -> None:
        tokenizer = tokenizer_of("smollm2")
        # Earlier turns become a summary in which no answer can be found again.
        tokenizer.chat_template = (
            "{% for m in messages %}{% if not loop.last or m['role'] == 'user' %}[{{ m['content'] | length }}]"
            "{% endif %}{% endfor %}{% if messages[-1]['role'] == 'assistant' %}<|im_start|>"
            "{{ messages[-1]['content'] }}<|im_end|>\n{% elif add_generation_prompt %}<|im_start|>{% endif %}"
        )
        example = example_of(chat("Q1", "A1", "Q2", "A2"), tokenizer)
        assert trained(example) == [tokenizer.encode("A2<|im_end|>")]
        assert LAST_ONLY in str(example.note)

    def test_an_answer_that_cannot_be_found_at_all_is_a_fault(self) -> None:
        tokenizer = tokenizer_of("smollm2")
        tokenizer.chat_template = (
            "{% if add_generation_prompt %}A:{% else %}{{ messages | length }} turns{{ messages[-1].content[0] }}"
            "<|im_end|>{% endif %}"
        )
        with pytest.raises(DataError) as caught:
            example_of(chat("Q", "Answer"), tokenizer)
        assert caught.value.message == "f.jsonl:7: the answer cannot be found in what the chat template writes"

    def test_tool_calls_that_the_template_leaves_out_are_said(self) -> None:
        call = {"function": {"name": "add", "arguments": {}}}
        messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "tool_calls": [call]}]
        assert example_of(record({"messages": messages}), tokenizer_of("llama3")).note == CALLS_IGNORED

    def test_the_byte_order_mark_of_a_template_file_is_no_text(self, tmp_path: Path) -> None:
        """Found in session 15: every prompt began with it."""
        tokenizer = tokenizer_of("smollm2")
        (tmp_path / "own.jinja").write_text(f"\ufeff{tokenizer.chat_template}", encoding="utf-8")
        marked = example_of(chat("Q", "A"), tokenizer, chat_template=str(tmp_path / "own.jinja"))
        assert marked.tokens.tolist() == example_of(chat("Q", "A"), tokenizer).tokens.tolist()

    def test_a_template_that_writes_todays_date_is_said(self, tmp_path: Path) -> None:
        """Found in session 12: as Llama 3.2's. A run that stopped in the evening was refused in the morning."""
        tokenizer = tokenizer_of("smollm2")
        dated = (
            "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
            f"Today is {{{{ date_string }}}}. {tokenizer.chat_template}"
        )
        assert example_of(chat("Q", "A"), tokenizer).note is None
        (tmp_path / "dated.jinja").write_text(dated)
        assert example_of(chat("Q", "A"), tokenizer, chat_template=str(tmp_path / "dated.jinja")).note == DATED
        tokenizer.chat_template = dated
        assert example_of(chat("Q", "A"), tokenizer).note == DATED
        assert "; " not in DATED  # which is between two notes
        example = example_of(chat("Q", "A"), tokenizer, chat_template_args={"date_string": "26 Jul 2024"})
        assert example.note is None
        assert tokenizer.decode(example.tokens.tolist()).startswith("Today is 26 Jul 2024.<|im_start|>system")

    def test_messages_that_the_template_leaves_out_are_said(self) -> None:
        """Found in session 10: data.system_prompt was in the adapter, and in no token that was trained."""
        tokenizer = tokenizer_of("smollm2")
        tokenizer.chat_template = (
            "{% for m in messages if m.role in ('user', 'assistant') %}<|im_start|>{{ m.role }}\n"
            "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )
        assert example_of(chat("Who?", "Ann."), tokenizer).note is None
        assert example_of(chat("Who?", "Ann."), tokenizer, system_prompt="Be brief.").note == PROMPT_IGNORED
        ignored = MESSAGE_IGNORED.format(role="system")
        assert example_of(chat("Who?", "Ann.", system="Be brief."), tokenizer).note == ignored
        assert example_of(chat("Who?", "Ann.", system="Be brief."), tokenizer, train_on="all").note == ignored

    def test_contents_that_the_template_writes_otherwise_are_not_said_to_be_left_out(self) -> None:
        tokenizer = tokenizer_of("smollm2")
        tokenizer.chat_template = (
            "{% for m in messages %}<|im_start|>{{ m.role }}\n"
            "{{ m.content | tojson if m.role == 'user' else m.content }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )
        assert example_of(chat('Who is "Ann"?', "I."), tokenizer).note is None

    @pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
    def test_thinking_that_the_template_leaves_out_is_said(self, key: str) -> None:
        """Found in session 10: rows with thinking beside their answers were trained without it, and nothing said so."""
        said = {"role": "assistant", "content": "Ann.", key: "Let me see."}
        row = record({"messages": [{"role": "user", "content": "Who?"}, said]})
        assert example_of(row, tokenizer_of("smollm2")).note == THINKING_IGNORED.format(key=key)
        assert example_of(row, tokenizer_of("qwen3")).note is None  # transformers knows all three names

    @hypothesis_settings(max_examples=60, deadline=None)
    @given(
        st.sampled_from([family for family in SHAPES if family != "no_end"]),
        st.lists(st.tuples(*[st.text("abP <>.\n", min_size=1, max_size=6)] * 2), min_size=1, max_size=3),
        st.sampled_from([None, True, False]),
    )
    def test_any_conversation_trains_each_answer_with_its_end_and_no_question(
        self, family: str, exchanges: list[tuple[str, str]], thinking: bool | None
    ) -> None:
        tokenizer = tokenizer_of(family)
        turns = [word for n, (asked, said) in enumerate(exchanges) for word in (f"q{n}{asked}q", f"a{n}{said}a")]
        switches = {} if thinking is None else {"enable_thinking": thinking}
        example = example_of(chat(*turns), tokenizer, chat_template_args=switches)
        stretches = trained(example)
        assert len(stretches) == len(exchanges)
        for (number, (_, said)), stretch in zip(enumerate(exchanges), stretches, strict=True):
            assert stretch[-1] in tokenizer.eos_ids
            text = tokenizer.decode(stretch[:-1])
            assert text.removeprefix("<think>\n\n</think>\n\n").strip() == f"a{number}{said}a"
        untrained = tokenizer.decode(example.tokens[~example.loss_mask].tolist())
        assert all(f"q{number}{asked}q" in untrained for number, (asked, _) in enumerate(exchanges))


class TestWithoutATemplate:
    """Base models: a single exchange is plain text."""

    def test_a_question_row(self) -> None:
        tokenizer = tokenizer_without_template()
        example = example_of(record(EXCHANGE), tokenizer)
        assert tokenizer.decode(example.tokens.tolist()) == "Question: Q\nAnswer: Paris.</s>"
        assert trained(example) == [tokenizer.encode(" Paris.</s>")]
        assert example.note is None

    def test_a_prompt_row_is_written_as_it_is(self) -> None:
        tokenizer = tokenizer_without_template(adds_bos=True)
        example = example_of(record({"prompt": "2+2=", "completion": "4"}), tokenizer, system_prompt="Sums.")
        assert tokenizer.decode(example.tokens.tolist()) == "<s>Sums.\n\n2+2=4</s>"
        assert trained(example) == [tokenizer.encode("4</s>")]

    def test_an_alpaca_row_gets_alpacas_headings(self) -> None:
        tokenizer = tokenizer_without_template()
        example = example_of(record({"instruction": "Say", "input": "hi", "output": "Hi"}), tokenizer)
        text = "### Instruction:\nSay\n\nhi\n\n### Response:\nHi</s>"
        assert tokenizer.decode(example.tokens.tolist()) == text
        assert trained(example) == [tokenizer.encode("Hi</s>")]

    @pytest.mark.parametrize("row", [EXCHANGE, {"prompt": "2+2=", "completion": "4"}])
    def test_the_prompt_is_the_beginning_of_what_is_trained(self, row: dict[str, str]) -> None:
        tokenizer = tokenizer_without_template(adds_bos=True)
        tokens = example_of(record(row), tokenizer).tokens.tolist()
        prompt = record_prompt(record(row), tokenizer, settings())
        assert tokens[: len(prompt)] == prompt
        assert tokens.count(tokenizer.bos_id) == 1

    def test_a_later_question_follows_the_earlier_exchanges(self) -> None:
        tokenizer = tokenizer_without_template()
        turns = chat("Q1", "A1", "Q2", "A2").messages[:-1]
        text = tokenizer.decode(render_prompt(turns, tokenizer, settings()))
        assert text == "Question: Q1\nAnswer: A1\n\nQuestion: Q2\nAnswer:"

    def test_an_answer_that_was_given_back_has_one_space_before_it(self) -> None:
        """Found by reading: a byte-level model's answer begins with its space, and the next prompt had two."""
        tokenizer = tokenizer_without_template()
        turns = chat("Q1", "  Paris ", " Q2", "A2").messages[:-1]
        text = tokenizer.decode(render_prompt(turns, tokenizer, settings()))
        assert text == "Question: Q1\nAnswer: Paris \n\nQuestion:  Q2\nAnswer:"

    def test_tools_are_said_to_be_left_out(self) -> None:
        row = record({"prompt": "Q", "completion": "A", "tools": [{"type": "function"}]})
        assert example_of(row, tokenizer_without_template()).note == TOOLS_UNWRITTEN

    def test_rows_of_messages_need_a_template(self) -> None:
        with pytest.raises(DataError) as caught:
            example_of(chat("Q", "A"), tokenizer_without_template())
        assert caught.value.message == "f.jsonl:7: the tokenizer has no chat template, which rows of messages need"
        assert caught.value.hint == "set data.chat_template to a .jinja file, or take an instruction-tuned model"

    def test_a_completion_that_merges_with_its_prompt_is_trained_from_the_common_prefix(self) -> None:
        tokenizer = tokenizer_without_template()
        example = example_of(record({"prompt": "in ", "completion": "Paris"}), tokenizer)
        assert trained(example) == [tokenizer.encode(" Paris</s>")]
        assert example.note == MERGED

    def test_text_rows_train_every_token_and_one_end(self) -> None:
        tokenizer = tokenizer_without_template(adds_bos=True)
        for text in ("Hello", "<s>Hello", "Hello</s>"):
            example = example_of(record({"text": text}), tokenizer)
            assert tokenizer.decode(example.tokens.tolist()) == "<s>Hello</s>"
            assert trained(example) == [tokenizer.encode("Hello</s>")]
        without_bos = example_of(record({"text": "Hello"}), tokenizer_without_template())
        assert trained(without_bos) == [tokenizer.encode("ello</s>")]


class TestChatTemplateSetting:
    def test_the_file_replaces_the_tokenizers_own(self, tmp_path: Path) -> None:
        file = tmp_path / "own.jinja"
        file.write_text("{% for m in messages %}{{ m['content'] }}</s>{% endfor %}")
        tokenizer = tokenizer_of("mistral")
        for replaced in (tokenizer, tokenizer_without_template()):
            example = example_of(chat("Q", "A"), replaced, chat_template=str(file))
            assert tokenizer.decode(example.tokens.tolist()) == "Q</s>A</s>"
            assert trained(example) == [tokenizer.encode("A</s>")]

    def test_a_file_that_changes_is_read_again(self, tmp_path: Path) -> None:
        import os

        file = tmp_path / "own.jinja"
        for number, text in enumerate(("one {{ messages[0]['content'] }}", "two {{ messages[0]['content'] }}")):
            file.write_text(text)
            os.utime(file, (number, number))
            prompt = render_prompt(chat("Q", "A").messages[:1], tokenizer_of("phi"), settings(chat_template=str(file)))
            assert tokenizer_of("phi").decode(prompt) == text.replace("{{ messages[0]['content'] }}", "Q")

    def test_a_missing_file_is_a_fault_of_the_setting(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            example_of(chat("Q", "A"), tokenizer_of("phi"), chat_template=str(tmp_path / "no.jinja"))
        assert caught.value.message == f"data.chat_template: {tmp_path / 'no.jinja'}: No such file or directory"

    def test_a_broken_template_is_a_fault_with_its_own_words(self, tmp_path: Path) -> None:
        file = tmp_path / "own.jinja"
        file.write_text("{{ messages[0]['content'] + 1 }}")
        with pytest.raises(DataError, match=r"^f.jsonl:7: the chat template refuses the conversation: can only conc"):
            example_of(chat("Q", "A"), tokenizer_of("phi"), chat_template=str(file))

    def test_a_beginning_has_the_system_prompt_and_is_none_where_the_template_changes_words(
        self, tmp_path: Path
    ) -> None:
        file = tmp_path / "own.jinja"
        file.write_text("{% for message in messages %}{{ message['content'] | upper }}{% endfor %}")
        tokenizer = tokenizer_of("smollm2")
        assert render_beginning("Who wrote", tokenizer, settings(chat_template=str(file))) == ([], "")
        begun, closing = render_beginning("Who wrote", tokenizer, settings(system_prompt="Who wrote on?"))
        assert closing == "<|im_end|>"
        assert tokenizer.decode(begun) == ("<|im_start|>system\nWho wrote on?<|im_end|>\n<|im_start|>user\nWho wrote")

    def test_a_beginning_without_a_template_is_that_of_a_plain_question(self) -> None:
        tokenizer = tokenizer_without_template()
        begun, closing = render_beginning("Who wrote", tokenizer, settings())
        assert tokenizer.decode(begun).endswith("Question: Who wrote")
        assert closing == "Answer:"

    def test_switches_reach_the_template(self) -> None:
        tokenizer = tokenizer_of("qwen3")
        prompt = render_prompt(
            chat("Q", "A").messages[:1], tokenizer, settings(chat_template_args={"enable_thinking": False})
        )
        assert tokenizer.decode(prompt).endswith("assistant\n<think>\n\n</think>\n\n")


class TestLengthLimit:
    """https://github.com/ml-explore/mlx-lm/issues/1355: rows cut on the right lost their answers."""

    tokenizer = tokenizer_of("llama3")
    row = chat("Who won the cup in the long year of 1990?", "Paris.")
    length = len(example_of(row, tokenizer).tokens)

    def test_a_row_of_exactly_the_limit_stays(self) -> None:
        assert len(example_of(self.row, self.tokenizer, max_seq_length=self.length).tokens) == self.length

    def test_error_names_the_row_and_both_numbers(self) -> None:
        with pytest.raises(DataError) as caught:
            build_example(self.row, self.tokenizer, settings(max_seq_length=self.length - 1))
        expected = f"f.jsonl:7: {self.length} tokens, but data.max_seq_length is {self.length - 1}"
        assert caught.value.message == expected

    def test_drop_leaves_the_row_out_and_counts_it(self) -> None:
        limited = settings(max_seq_length=self.length - 1, truncation="drop")
        built = build_examples([self.row, chat("Q", "A")], self.tokenizer, limited)
        assert (len(built.examples), built.dropped, built.shortened) == (1, 1, 0)
        assert built.full_lengths == [self.length, len(example_of(chat("Q", "A"), self.tokenizer).tokens)]

    @pytest.mark.parametrize("less", [1, 7, 40])
    def test_prompt_takes_tokens_from_the_left_after_bos_and_none_from_the_answer(self, less: int) -> None:
        whole = example_of(self.row, self.tokenizer)
        short = example_of(self.row, self.tokenizer, max_seq_length=self.length - less, truncation="prompt")
        expected = [whole.tokens[0], *whole.tokens[1 + less :]]
        assert short.tokens.tolist() == expected
        assert trained(short) == trained(whole)
        assert (short.note, short.shortened, short.full_length) == (SHORTENED, True, self.length)

    def test_the_answer_with_one_token_before_it_is_the_least(self) -> None:
        answer = trained(example_of(self.row, self.tokenizer))[0]
        least = example_of(self.row, self.tokenizer, max_seq_length=len(answer) + 1, truncation="prompt")
        assert least.tokens.tolist() == [self.tokenizer.bos_id, *answer]
        with pytest.raises(DataError) as caught:
            build_example(self.row, self.tokenizer, settings(max_seq_length=len(answer), truncation="prompt"))
        expected = f"f.jsonl:7: the answer alone has {len(answer)} tokens, but data.max_seq_length is {len(answer)}"
        assert caught.value.message == expected

    def test_without_bos_one_token_of_the_prompt_stays(self) -> None:
        tokenizer = tokenizer_of("smollm2")
        answer = tokenizer.encode("Paris.<|im_end|>")
        least = example_of(self.row, tokenizer, max_seq_length=len(answer) + 1, truncation="prompt")
        assert least.tokens.tolist() == tokenizer.encode("\nParis.<|im_end|>")
        assert trained(least) == [answer]

    def test_an_earlier_answer_that_is_cut_through_is_no_longer_trained(self) -> None:
        row = chat("Q1", "First answer", "Q2", "Second")
        tokenizer = tokenizer_of("smollm2")
        whole = example_of(row, tokenizer)
        first = int(np.flatnonzero(whole.loss_mask)[0])
        for cut, stretches in ((first, 2), (first + 1, 1), (first + 5, 1)):
            limit = len(whole.tokens) - cut
            if cut == first:
                limit += 1  # keeps one token before the first answer
            short = example_of(row, tokenizer, max_seq_length=limit, truncation="prompt")
            assert trained(short) == trained(whole)[-stretches:]

    def test_a_text_has_no_prompt_to_shorten(self) -> None:
        with pytest.raises(DataError, match="the answer alone has 10 tokens"):
            example_of(record({"text": "Long text"}), self.tokenizer, max_seq_length=8, truncation="prompt")

    @hypothesis_settings(max_examples=60, deadline=None)
    @given(st.text("ab ", min_size=1, max_size=30), st.text("xy", min_size=1, max_size=10), st.integers(2, 80))
    def test_a_shortened_row_fits_and_keeps_its_answer_or_is_a_fault(self, asked: str, said: str, limit: int) -> None:
        row = chat(f"q{asked}", said)
        answer = self.tokenizer.encode(f"{said}<|eot_id|>")
        try:
            example = example_of(row, self.tokenizer, max_seq_length=limit, truncation="prompt")
        except DataError:
            assert len(answer) + 1 > limit
        else:
            assert len(example.tokens) <= limit
            assert trained(example) == [answer]


class TestManyRows:
    def test_faults_of_many_rows_come_together(self) -> None:
        rows = [chat("Q", "A", system="S")] * 12 + [chat("Q", "A")]
        with pytest.raises(DataError) as caught:
            build_examples(rows, tokenizer_of("mistral"), settings())
        assert len(caught.value.message.splitlines()) == 11
        built = build_examples(rows, tokenizer_of("mistral"), settings(), stop_on_fault=False)
        assert (len(built.examples), len(built.faults), len(built.hints)) == (1, 12, 1)

    def test_notes_are_counted_and_say_where_they_come_first(self) -> None:
        built = build_examples([chat("Q", "A")] * 3, tokenizer_of("no_end"), settings())
        assert built.notes == [f"{END_ADDED} (3 rows, first f.jsonl:7)"]

    def test_no_rows_give_no_examples(self) -> None:
        assert build_examples([], tokenizer_of("phi"), settings()).examples == []


def test_the_templates_own_words_survive_json() -> None:
    """Templates see messages as plain dicts: no Message subclass of ours may change how tojson writes them."""
    row = record({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]})
    assert json.loads(json.dumps(row.messages)) == list(row.messages)


def test_rows_without_a_prompt_cannot_be_asked() -> None:
    tokenizer = TemplateTokenizer(SHAPES["mistral"], None)
    with pytest.raises(DataError, match=r"^f.jsonl:7: a prompt needs at least one message"):
        record_prompt(record({"text": "T"}), tokenizer, settings())
