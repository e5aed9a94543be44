"""Exactly the answers and their end tokens are trained, in every family's template, with one and with many turns."""

import pytest

from mlx_lora.dataset.examples import record_prompt, render_prompt
from mlx_lora.dataset.rendering import render_beginning
from mlx_lora.dataset.spans import OTHER_WHEN_LAST, REWRITTEN, TOOLS_IGNORED
from mlx_lora.errors import DataError
from tests.dataset.examples_of import chat, example_of, record, settings, trained
from tests.dataset.tokenizers import tokenizer_of

# family → (the text before the only answer, what is written between prompt and answer, the end token)
EXPECTED = {
    "llama3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWho won?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "",
        "<|eot_id|>",
    ),
    "mistral": ("<s>[INST] Who won?[/INST]", " ", "</s>"),
    "qwen3": (
        "<|im_start|>user\nWho won?<|im_end|>\n<|im_start|>assistant\n",
        "<think>\n\n</think>\n\n",
        "<|im_end|>",
    ),
    "gemma3": (
        "<bos><start_of_turn>user\nWho won?<end_of_turn>\n<start_of_turn>model\n",
        "",
        "<end_of_turn>",
    ),
    "phi": ("<|user|>\nWho won?<|end|>\n<|assistant|>\n", "", "<|end|>"),
    "smollm2": (
        "<|im_start|>system\nYou are a helpful test.<|im_end|>\n<|im_start|>user\nWho won?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "",
        "<|im_end|>",
    ),
}
FAMILIES = list(EXPECTED)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_turn_trains_the_answer_and_its_end_token(family: str) -> None:
    """https://github.com/ml-explore/mlx-examples/pull/1313, ml-explore/mlx-lm#584: where the prompt ends."""
    tokenizer = tokenizer_of(family)
    before, opening, end = EXPECTED[family]
    example = example_of(chat("Who won?", "Paris."), tokenizer)
    assert trained(example) == [[*tokenizer.encode(opening + "Paris."), tokenizer.id(end)]]
    assert example.tokens.tolist() == tokenizer.encode(before + opening + "Paris." + end)
    assert example.note is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("turns", [("Who won?", "Paris."), ("Q1", "A1", "Q2", "A2", "Who won?", "Paris.")])
def test_the_prompt_of_eval_and_chat_is_a_prefix_of_what_is_trained(family: str, turns: tuple[str, ...]) -> None:
    """https://github.com/QwenLM/Qwen3/issues/1575: templates that differ between training and use."""
    tokenizer = tokenizer_of(family)
    row = chat(*turns)
    tokens = example_of(row, tokenizer).tokens.tolist()
    prompt = record_prompt(row, tokenizer, settings())
    assert tokens[: len(prompt)] == prompt
    assert tokens[len(prompt) :] == trained(example_of(row, tokenizer))[-1]
    assert prompt == render_prompt(row.messages[:-1], tokenizer, settings())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_beginning_ends_where_the_user_would_go_on(family: str) -> None:
    tokenizer = tokenizer_of(family)
    before, _, rest = EXPECTED[family][0].partition("Who won?")
    begun, closing = render_beginning("Who won", tokenizer, settings())
    assert begun == tokenizer.encode(before + "Who won")
    assert closing
    assert rest.lstrip().startswith(closing)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "qwen3"])
def test_many_turns_train_every_answer_and_its_end_token(family: str) -> None:
    """https://github.com/OpenAccess-AI-Collective/axolotl/issues/1761"""
    tokenizer = tokenizer_of(family)
    _, opening, end = EXPECTED[family]
    example = example_of(chat("Q1", "A1", "Q2", "A2", "Q3", "Paris."), tokenizer)
    assert trained(example) == [
        [*tokenizer.encode(opening + answer), tokenizer.id(end)] for answer in ("A1", "A2", "Paris.")
    ]
    assert example.note is None
    assert example.tokens[-1] == tokenizer.id(end)


@pytest.mark.parametrize("settings", [{}, {"system_prompt": "Be brief."}])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "mistral"])
def test_a_turn_that_is_context_only_is_there_as_before_and_not_trained(family: str, settings: dict[str, str]) -> None:
    tokenizer = tokenizer_of(family)
    turns = chat("Q1", "A1", "Q2", "A2", "Q3", "A3").messages
    marked = record({"messages": [*turns[:3], {**turns[3], "train": False}, *turns[4:]]})
    whole = example_of(chat("Q1", "A1", "Q2", "A2", "Q3", "A3"), tokenizer, **settings)
    example = example_of(marked, tokenizer, **settings)
    assert example.tokens.tolist() == whole.tokens.tolist()
    first, _, last = trained(whole)
    assert trained(example) == [first, last]


def test_a_turn_that_is_context_only_cannot_be_so_where_all_tokens_are_trained() -> None:
    turns = chat("Q1", "A1", "Q2", "A2").messages
    marked = record({"messages": [turns[0], {**turns[1], "weight": 0}, *turns[2:]]})
    with pytest.raises(DataError) as refused:
        example_of(marked, tokenizer_of("smollm2"), train_on="all")
    fact = "message 2 is marked as not to be trained, and data.train_on: all trains all tokens"
    assert refused.value.message == f"f.jsonl:7: {fact}"


def test_the_answers_in_a_prompt_of_messages_are_trained_where_all_tokens_are() -> None:
    """Found by a review in session 15: the reader's own mark was refused as one of the row."""
    turns = chat("Q1", "A1", "Q2", "A2").messages
    example = example_of(
        record({"prompt": list(turns[:3]), "completion": [turns[3]]}), tokenizer_of("smollm2"), train_on="all"
    )
    whole = example_of(chat("Q1", "A1", "Q2", "A2"), tokenizer_of("smollm2"), train_on="all")
    assert example.tokens.tolist() == whole.tokens.tolist()
    assert example.loss_mask.tolist() == whole.loss_mask.tolist()
    marked = [turns[0], {**turns[1], "train": False}, turns[2]]
    with pytest.raises(DataError, match="message 2 is marked as not to be trained"):
        example_of(record({"prompt": marked, "completion": [turns[3]]}), tokenizer_of("smollm2"), train_on="all")


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "mistral"])
def test_a_system_prompt_of_the_settings_is_as_one_of_the_row(family: str) -> None:
    tokenizer = tokenizer_of(family)
    by_settings = example_of(chat("Who won?", "Paris."), tokenizer, system_prompt="Be brief.")
    by_row = example_of(chat("Who won?", "Paris.", system="Be brief."), tokenizer, system_prompt="Be long.")
    assert by_settings.tokens.tolist() == by_row.tokens.tolist()
    assert "Be brief." in tokenizer.decode(by_row.tokens.tolist())
    assert trained(by_settings) == trained(example_of(chat("Who won?", "Paris."), tokenizer))


def test_a_refused_system_message_is_a_fault_with_the_place_and_the_templates_words() -> None:
    with pytest.raises(DataError) as caught:
        example_of(chat("Q", "A", system="S"), tokenizer_of("mistral"))
    assert caught.value.message == (
        "f.jsonl:7: the chat template refuses the conversation: "
        "Conversation roles must alternate user/assistant/user/assistant/..."
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_there_is_at_most_one_bos(family: str) -> None:
    """https://github.com/ggml-org/llama.cpp/issues/15326: the template writes BOS and the tokenizer adds another."""
    tokenizer = tokenizer_of(family, adds_bos=True)
    tokens = example_of(chat("Who won?", "Paris."), tokenizer).tokens.tolist()
    assert tokens.count(tokenizer.bos_id) == (tokenizer.bos_id is not None)
    spelled = chat("Who won?", "Paris.")
    prompt = record_prompt(spelled, tokenizer, settings())
    assert prompt.count(tokenizer.bos_id) == (tokenizer.bos_id is not None)


def test_phi_ends_the_answer_at_its_first_end_token_and_leaves_out_the_conversations_end() -> None:
    tokenizer = tokenizer_of("phi")
    tokens = example_of(chat("Q", "A"), tokenizer).tokens.tolist()
    assert tokens[-1] == tokenizer.id("<|end|>")
    assert tokenizer.id("<|endoftext|>") not in tokens


def test_phi_whose_end_tokens_are_not_named_learns_the_conversations_end() -> None:
    """https://github.com/ml-explore/mlx-examples/issues/756: answers never end."""
    tokenizer = tokenizer_of("phi")
    tokenizer.eos_ids = frozenset({tokenizer.id("<|endoftext|>")})
    assert trained(example_of(chat("Q", "A"), tokenizer)) == [tokenizer.encode("A<|end|>\n<|endoftext|>")]


def test_contents_that_the_template_trims_are_trained_as_it_writes_them() -> None:
    for family in ("llama3", "gemma3"):
        tokenizer = tokenizer_of(family)
        end = tokenizer.id(EXPECTED[family][2])
        example = example_of(chat(" Q1 ", " A1 \n", "Q2", "  A2"), tokenizer)
        assert trained(example) == [[*tokenizer.encode("A1"), end], [*tokenizer.encode("A2"), end]]
        assert example.note is None


class TestQwen3:
    """The template that writes a turn otherwise once another question follows it."""

    def test_without_thinking_the_closed_think_block_belongs_to_the_prompt(self) -> None:
        tokenizer = tokenizer_of("qwen3")
        example = example_of(chat("Q", "Paris."), tokenizer, chat_template_args={"enable_thinking": False})
        assert trained(example) == [[*tokenizer.encode("Paris."), tokenizer.id("<|im_end|>")]]
        assert example.note is None

    def test_thinking_is_trained_where_the_template_writes_it(self) -> None:
        tokenizer = tokenizer_of("qwen3")
        expected = [tokenizer.encode("<think>\nhm\n</think>\n\nParis.<|im_end|>")]
        inline = chat("Q", "<think>\nhm\n</think>\n\nParis.")
        assert trained(example_of(inline, tokenizer)) == expected
        said = {"role": "assistant", "content": "Paris.", "reasoning_content": "hm"}
        by_key = record({"messages": [{"role": "user", "content": "Q"}, said]})
        assert trained(example_of(by_key, tokenizer)) == expected

    def test_earlier_turns_lose_their_thinking_and_the_note_says_so(self) -> None:
        """https://github.com/NVIDIA-NeMo/Automodel/pull/3024: lengths of shorter renders mark the user's next words."""
        tokenizer = tokenizer_of("qwen3")
        row = chat("Q1", "<think>\nlong long thought\n</think>\n\nA1", "Q2", "<think>\nhm\n</think>\n\nA2")
        example = example_of(row, tokenizer)
        assert trained(example) == [
            tokenizer.encode("A1<|im_end|>"),
            tokenizer.encode("<think>\nhm\n</think>\n\nA2<|im_end|>"),
        ]
        assert example.note == OTHER_WHEN_LAST

    def test_earlier_turns_after_a_closed_think_block_start_at_the_longest_common_prefix(self) -> None:
        tokenizer = tokenizer_of("qwen3")
        row = chat("Q1", "<b>A1", "Q2", "A2", "Q3", "A3")
        example = example_of(row, tokenizer, chat_template_args={"enable_thinking": False})
        assert trained(example) == [tokenizer.encode(f"{answer}<|im_end|>") for answer in ("<b>A1", "A2", "A3")]
        assert example.note == f"{REWRITTEN}; {OTHER_WHEN_LAST}"

    def test_a_common_prefix_that_reaches_into_the_answer_is_cut_back(self) -> None:
        """Where <think> is plain text, an answer that begins with "<t" shares tokens with the prompt's think block."""
        tokenizer = tokenizer_of("qwen3")
        tokenizer.plain = tokenizer_of("smollm2").plain
        tokenizer.eos_ids = tokenizer_of("smollm2").eos_ids
        row = chat("Q1", "<th>A1", "Q2", "A2")
        example = example_of(row, tokenizer, chat_template_args={"enable_thinking": False})
        assert trained(example) == [tokenizer.encode("<th>A1<|im_end|>"), tokenizer.encode("A2<|im_end|>")]

    def test_tool_calls_and_what_follows_them_are_trained_and_tool_results_are_not(self) -> None:
        tokenizer = tokenizer_of("qwen3")
        call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
        messages = [
            {"role": "user", "content": "Q1"},
            {"role": "assistant", "reasoning_content": "why", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "It is 2."},
        ]
        tools = [{"type": "function", "function": {"name": "add"}}]
        example = example_of(record({"messages": messages, "tools": tools}), tokenizer)
        calling = '\n<tool_call>\nadd {"a": 1}\n</tool_call><|im_end|>'
        assert trained(example) == [
            tokenizer.encode("<think>\nwhy\n</think>\n\n" + calling),
            tokenizer.encode("<think>\n\n</think>\n\nIt is 2.<|im_end|>"),
        ]
        assert example.note is None
        assert '{"type": "function"' in tokenizer.decode(example.tokens.tolist())

        longer = [*messages, {"role": "user", "content": "Q2"}, {"role": "assistant", "content": "A2"}]
        example = example_of(record({"messages": longer, "tools": tools}), tokenizer)
        assert trained(example) == [
            tokenizer.encode(calling),
            tokenizer.encode("It is 2.<|im_end|>"),
            tokenizer.encode("<think>\n\n</think>\n\nA2<|im_end|>"),
        ]
        assert example.note == f"{OTHER_WHEN_LAST}; {REWRITTEN}"


def test_a_system_message_that_moves_with_the_last_question_still_leaves_every_answer_found() -> None:
    tokenizer = tokenizer_of("mistral_system_last")
    example = example_of(chat("Q1", "A1", "Q2", "A2", system="S"), tokenizer)
    assert trained(example) == [tokenizer.encode("A1</s>"), tokenizer.encode(" A2</s>")]
    assert tokenizer.decode(example.tokens.tolist()) == "<s>[INST] Q1[/INST] A1</s>[INST] S\n\nQ2[/INST] A2</s>"
    assert example.note == f"{REWRITTEN}; {OTHER_WHEN_LAST}"


def test_a_conversation_that_begins_with_an_answer_trains_it_too() -> None:
    """SmolLM2's template cannot render the empty conversation before a greeting."""
    tokenizer = tokenizer_of("smollm2")
    messages = [{"role": "assistant", "content": "Hi."}, *chat("Q", "A").messages]
    example = example_of(record({"messages": messages}), tokenizer)
    assert trained(example) == [tokenizer.encode("Hi.<|im_end|>"), tokenizer.encode("A<|im_end|>")]
    assert example.note == REWRITTEN


def test_tools_that_the_template_leaves_out_are_said() -> None:
    row = record({"messages": list(chat("Q", "A").messages), "tools": [{"type": "function"}]})
    assert example_of(row, tokenizer_of("llama3")).note == TOOLS_IGNORED


def test_an_answer_of_which_the_template_writes_nothing_is_a_fault() -> None:
    call = {"function": {"name": "add", "arguments": {}}}
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    with pytest.raises(DataError) as caught:
        example_of(record({"messages": messages}), tokenizer_of("smollm2"), system_prompt="S")
    assert caught.value.message == "f.jsonl:7: the chat template writes nothing for message 2 (assistant)"
