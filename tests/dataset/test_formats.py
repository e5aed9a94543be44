"""Every row format becomes the Record it means, and every faulty row says in words what is wrong."""

import json

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mlx_lora.dataset.formats import RowError, record_from_row

ASKED = {"role": "user", "content": "Who won?"}
SAID = {"role": "assistant", "content": "Paris."}


def fault_of(row: object) -> str:
    with pytest.raises(RowError) as caught:
        record_from_row(row, "f.jsonl:1")
    return str(caught.value)


CONVERSATIONS: list[tuple[dict[str, object], str]] = [
    ({"messages": [ASKED, SAID]}, "chat"),
    ({"prompt": "Who won?", "completion": "Paris."}, "prompt/completion"),
    ({"question": "Who won?", "answer": "Paris."}, "question/answer"),
    ({"instruction": "Who won?", "input": "", "output": "Paris."}, "alpaca"),
    ({"conversations": [{"from": "human", "value": "Who won?"}, {"from": "gpt", "value": "Paris."}]}, "sharegpt"),
    ({"conversations": [ASKED, SAID]}, "sharegpt"),
]
OTHERS = [(row, format) for row, format in CONVERSATIONS if format != "question/answer"]


@pytest.mark.parametrize(("row", "format"), CONVERSATIONS)
def test_every_conversation_format_gives_the_same_messages(row: dict[str, object], format: str) -> None:
    record = record_from_row(row, "f.jsonl:1")
    assert record.messages == (ASKED, SAID)
    assert record.answers == ("Paris.",)
    assert (record.format, record.place, record.question) == (format, "f.jsonl:1", "Who won?")


def test_a_text_row_has_no_messages_and_asks_itself() -> None:
    record = record_from_row({"text": "Once upon a time"}, "f.jsonl:1")
    assert (record.messages, record.text, record.format) == ((), "Once upon a time", "text")
    assert record.question == "Once upon a time"


@pytest.mark.parametrize(("row", "format"), CONVERSATIONS)
def test_rows_keep_variants_category_and_fact_with_the_canonical_answer_first(
    row: dict[str, object], format: str
) -> None:
    """Reported by a review: rows of other formats than question/answer dropped these keys without a word."""
    more = {"answers": ["France", "Paris.", "France"], "category": "c", "fact": "f/1"}
    record = record_from_row({**row, **more}, "f.jsonl:1")
    assert record.messages == (ASKED, SAID)
    assert record.answers == ("Paris.", "France")
    assert (record.category, record.fact, record.format) == ("c", "f/1", format)


@pytest.mark.parametrize(("row", "format"), OTHERS)
@pytest.mark.parametrize(
    ("value", "label"),
    [
        (None, None),
        ("", None),
        ("  ", None),
        (5, "5"),
        (0, "0"),
        (2.5, "2.5"),
        (float("nan"), None),  # as pandas fills a column
        (True, "true"),
        ([], None),
        (["open_qa"], None),
        ({"name": "open_qa"}, None),
    ],
)
def test_a_strange_category_or_fact_stops_no_row_of_a_published_set(
    row: dict[str, object], format: str, value: object, label: str | None
) -> None:
    """Such as dolly, whose `category` nobody wrote for us; in question/answer rows these keys are ours."""
    record = record_from_row({**row, "category": value, "fact": value}, "f.jsonl:1")
    assert (record.category, record.fact, record.answers) == (label, label, ("Paris.",))


ANSWERS_HINT = (
    'it lists what else counts as right, such as "answers": ["Ann", "Anna"]; rename a key that means something else'
)
NO_CHOICES_HINT = (
    'write the row as "question", "choices" and "answer" alone, or remove or rename "choices" if it is no quiz'
)


@pytest.mark.parametrize(("row", "format"), OTHERS)
@pytest.mark.parametrize("choices", [["Paris.", "Rome."], {"text": ["A"]}, "A", 3, 0, True])
def test_choices_outside_question_rows_stop_no_training_and_are_kept_for_eval_to_refuse(
    row: dict[str, object], format: str, choices: object
) -> None:
    """Reported by a review: they were dropped without a word. In session 11: a published row could not be trained."""
    record = record_from_row({**row, "choices": choices, "answers": ["Paris."]}, "f.jsonl:1")
    assert (record.choices, record.answers, record.unread) == ((), ("Paris.",), ("choices",))
    fact = f'"choices" does not belong to the {format} format; only question/answer rows have choices'
    assert record.unaskable == {"choices": (fact, NO_CHOICES_HINT)}


@pytest.mark.parametrize(("row", "format"), OTHERS)
@pytest.mark.parametrize(
    ("answers", "fact", "hint"),
    [
        (5, '"answers" is a number, expected a list of texts', ANSWERS_HINT),
        (False, '"answers" is false, expected a list of texts', ANSWERS_HINT),
        ("France", '"answers" is a text, expected a list of texts', ANSWERS_HINT),
        ({"text": ["France"]}, '"answers" is an object, expected a list of texts', ANSWERS_HINT),
        (["France", 5], '"answers" is a number, expected text', 'texts stand in quotes: "5"'),
        ([""], '"answers" is empty', "write what is missing, or remove the row"),
    ],
)
def test_strange_answers_of_a_published_row_stop_no_training_and_are_kept_for_eval_to_refuse(
    row: dict[str, object], format: str, answers: object, fact: str, hint: str
) -> None:
    """Reported in session 11: a chat row with a column of this name was refused, though training never reads it."""
    record = record_from_row({**row, "answers": answers, "category": "c"}, "f.jsonl:1")
    assert (record.messages, record.answers, record.category) == ((ASKED, SAID), ("Paris.",), "c")
    assert (record.unread, record.unaskable) == (("answers",), {"answers": (fact, hint)})
    both = record_from_row({"id": 1, **row, "answers": answers, "choices": 2}, "f.jsonl:1")
    assert (both.unread, list(both.unaskable)) == (("id", "answers", "choices"), ["answers", "choices"])


@pytest.mark.parametrize(("row", "format"), CONVERSATIONS)
@pytest.mark.parametrize("nothing", [None, "", [], {}, float("nan")])
def test_empty_answers_are_none_as_data_sets_fill_a_column(
    row: dict[str, object], format: str, nothing: object
) -> None:
    more = {"answers": nothing} if format == "question/answer" else {"answers": nothing, "choices": nothing}
    record = record_from_row({**row, **more}, "f.jsonl:1")
    assert (record.answers, record.choices, record.unread, record.unaskable) == (("Paris.",), (), (), {})


def test_a_text_row_takes_no_notice_of_keys_for_asking() -> None:
    """Nothing asks such a row: eval refuses it, so no figure is silently another one."""
    row = {"text": "Once", "answers": "A", "category": ["c"], "fact": 5, "choices": ["A", "B"]}
    record = record_from_row(row, "f.jsonl:1")
    assert (record.answers, record.category, record.fact, record.choices) == ((), None, None, ())


def test_a_last_turn_that_only_calls_a_tool_has_no_accepted_answers() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    called = {"role": "assistant", "content": " ", "tool_calls": [call]}
    record = record_from_row({"messages": [ASKED, called], "answers": "[as text]", "category": "c"}, "f.jsonl:1")
    assert (record.answers, record.category) == ((), "c")


def test_accepted_answers_of_a_question_are_a_list_of_texts() -> None:
    row = {"question": "Who won?", "answer": "Paris."}
    for answers, fault in (
        ("France", '"answers" is a text, expected a list of texts'),
        ({"text": ["France"]}, '"answers" is an object, expected a list of texts'),
        (["France", 5], '"answers" is a number, expected text'),
        ([""], '"answers" is empty'),
    ):
        assert fault_of({**row, "answers": answers}) == fault
    with pytest.raises(RowError) as caught:
        record_from_row({**row, "answers": "France"}, "f.jsonl:1")
    assert caught.value.hint == ANSWERS_HINT


def test_the_first_of_answers_is_the_answer_where_there_is_no_other() -> None:
    record = record_from_row({"question": "Q", "answers": ["A", "B"]}, "f.jsonl:1")
    assert (record.messages[-1]["content"], record.answers) == ("A", ("A", "B"))


def test_an_alpaca_input_follows_its_instruction() -> None:
    record = record_from_row({"instruction": "Translate.", "input": "Bonjour", "output": "Hello"}, "f.jsonl:1")
    assert record.question == "Translate.\n\nBonjour"


def test_a_row_of_two_formats_is_read_as_the_conversation() -> None:
    """The published Alpaca set has a `text` column beside its instructions."""
    row = {"instruction": "I", "output": "O", "text": "### Instruction: I"}
    assert record_from_row(row, "f.jsonl:1").format == "alpaca"


def test_a_system_text_of_the_row_becomes_its_first_message() -> None:
    record = record_from_row({"system": "Be brief.", "question": "Q", "answer": "A"}, "f.jsonl:1")
    assert record.messages[0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_a_system_text_beside_messages_is_their_first_and_never_a_second(key: str) -> None:
    """Found in session 10: beside `messages` it was dropped without a word, beside `conversations` it stood twice."""
    own = {"role": "system", "content": "Be brief."}
    assert record_from_row({"system": "Be brief.", key: [ASKED, SAID]}, "").messages == (own, ASKED, SAID)
    assert record_from_row({"system": "Be brief. ", key: [own, ASKED, SAID]}, "").messages == (own, ASKED, SAID)
    assert record_from_row({"system": "", key: [own, ASKED, SAID]}, "").messages == (own, ASKED, SAID)
    assert fault_of({"system": "Be long.", key: [own, ASKED, SAID]}) == (
        'the row has two system prompts: "system", and its first message'
    )


def test_a_developers_message_is_a_system_message() -> None:
    """Found in session 10: it was trained as a role of its own, and asked as `system` by chat, serve and LoraModel."""
    rows = [{"messages": [{"role": role, "content": "Be brief."}, ASKED, SAID]} for role in ("developer", "system")]
    assert record_from_row(rows[0], "").messages == record_from_row(rows[1], "").messages


def test_the_history_of_an_alpaca_row_comes_before_its_instruction() -> None:
    """Found in session 10: LLaMA-Factory's `history` was dropped without a word."""
    row = {"system": "S", "instruction": "And in 2024?", "output": "Ann.", "history": [["Who won?", "Paris."]]}
    messages = record_from_row(row, "").messages
    assert [message["content"] for message in messages] == ["S", "Who won?", "Paris.", "And in 2024?", "Ann."]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert len(record_from_row({**row, "history": []}, "").messages) == 3
    for history in ("Who won? Paris.", [["Who won?"]], ["Who won?", "Paris."], {"a": 1}):
        assert fault_of({**row, "history": history}) == '"history" is no list of pairs of question and answer'
    assert fault_of({**row, "history": [["Who won?", 5]]}) == '"history" is a number, expected text'


@pytest.mark.parametrize(("row", "format"), CONVERSATIONS)
def test_every_conversation_format_keeps_its_tools(row: dict[str, object], format: str) -> None:
    """Found in session 10: beside prompt and completion, where mlx-lm reads them, they were dropped without a word."""
    assert record_from_row({**row, "tools": [{"type": "function"}]}, "").tools == ({"type": "function"},)


@pytest.mark.parametrize(("row", "format"), CONVERSATIONS)
def test_keys_that_no_format_reads_are_kept_by_name(row: dict[str, object], format: str) -> None:
    empty = {"a": "", "b": None, "c": [], "d": {}}
    assert record_from_row({**row, **empty, "system": "S", "category": "c", "tools": []}, "").unread == ()
    assert record_from_row({**row, **empty, "context": "It was Ann.", "id": 0}, "").unread == ("context", "id")


MARKED = {**SAID, "untrained": True}


@pytest.mark.parametrize("key", ["weight", "train", "training", "loss"])
@pytest.mark.parametrize("turns", ["messages", "conversations"])
def test_a_turn_that_shall_not_be_trained_is_context_only(key: str, turns: str) -> None:
    """They were trained without a word (session 10), then refused; axolotl, ms-swift and OpenAI leave them out."""
    for no in (False, 0):
        record = record_from_row({turns: [ASKED, {**SAID, key: no}, {**ASKED, key: 1}, {**SAID, key: True}]}, "")
        assert record.messages == (ASKED, MARKED, ASKED, SAID)
    assert record_from_row({turns: [{**ASKED, key: False}, {**SAID, "untrained": True}]}, "").messages == (ASKED, SAID)


def test_what_follows_the_last_trained_turn_is_left_out_and_without_one_the_row_is_refused() -> None:
    last = [ASKED, SAID, {**ASKED, "content": "And then?"}, {**SAID, "train": False}]
    record = record_from_row({"messages": last}, "")
    assert (record.messages, record.answers) == ((ASKED, SAID), ("Paris.",))
    assert fault_of({"messages": last[2:]}) == "no turn of the assistant is trained"


@pytest.mark.parametrize(
    ("key", "value", "told"), [("weight", 0.5, "0.5"), ("train", "false", '"false"'), ("loss", [], "[]")]
)
def test_a_mark_that_is_neither_yes_nor_no_is_refused(key: str, value: object, told: str) -> None:
    """Found in session 15: "train": "false" was trained without a word."""
    fault = f'message 2 has "{key}" {told}: a turn is trained whole or not at all'
    assert fault_of({"messages": [ASKED, {**SAID, key: value}]}) == fault


def test_a_greeting_before_the_first_question_is_no_row_of_its_own() -> None:
    """Found in session 15: where all that follows is context only, the split ended in a traceback."""
    assert fault_of({"messages": [SAID, ASKED, {**SAID, "weight": 0}]}).startswith("no message has the role user")
    assert record_from_row({"messages": [SAID, ASKED, SAID]}, "").messages == (SAID, ASKED, SAID)


@pytest.mark.parametrize("turns", ["messages", "conversations"])
def test_a_turn_of_which_parts_shall_not_be_trained_is_refused(turns: str) -> None:
    detail = [{"begin_offset": 0, "end_offset": 2, "train": False}]
    fault = fault_of({turns: [ASKED, {**SAID, "train_detail": detail}]})
    assert fault == 'message 2 has "train_detail": here whole turns are trained'
    assert record_from_row({turns: [ASKED, {**SAID, "train_detail": []}]}, "").question == "Who won?"


SYSTEM = {"role": "system", "content": "S"}


def test_a_prompt_and_a_completion_of_messages_are_one_conversation() -> None:
    """TRL's conversational prompt/completion was refused, with a hint at formats that it nearly has."""
    record = record_from_row({"prompt": [SYSTEM, ASKED], "completion": [SAID]}, "f.jsonl:1")
    assert record.messages == (SYSTEM, ASKED, SAID)
    assert (record.format, record.answers, record.unread) == ("prompt/completion", ("Paris.",), ())
    assert record_from_row({"prompt": [ASKED], "completion": [SAID], "system": "S"}, "").messages[0] == SYSTEM
    turns = record_from_row({"prompt": [ASKED, SAID, ASKED], "completion": [SAID]}, "").messages
    context = SAID | {"untrained": "prompt"}
    assert turns == (ASKED, context, ASKED, SAID)  # of the prompt nothing is trained, here as there


@pytest.mark.parametrize(
    ("prompt", "completion", "fault"),
    [
        ([SYSTEM], [ASKED, SAID], 'no message of the "prompt" has the role user'),
        ([ASKED], [], 'last message has role "user", expected "assistant"'),
        ([], [], '"prompt and completion" is empty'),
        ([ASKED], "Paris.", '"prompt" is a list, expected text'),
        ("Who won?", [SAID], '"completion" is a list, expected text'),
    ],
)
def test_a_prompt_and_a_completion_that_are_no_conversation_are_refused(
    prompt: object, completion: object, fault: str
) -> None:
    assert fault_of({"prompt": prompt, "completion": completion}) == fault


def test_sharegpt_speakers_become_roles() -> None:
    turns = [("system", "S"), ("human", "Q"), ("gpt", "A"), ("observation", "T"), ("chatgpt", "B")]
    row = {"conversations": [{"from": speaker, "value": value} for speaker, value in turns]}
    roles = [message["role"] for message in record_from_row(row, "f.jsonl:1").messages]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize("written", ["{}", "[{}, {}]"])
def test_a_sharegpt_function_call_is_an_answer_that_calls_tools(written: str) -> None:
    """Found in session 12: LLaMA-Factory's turn was refused, with the advice to rename it to an answer of the model."""
    value = written.replace("{}", '{"name": "add", "arguments": {"a": 1}}')
    turns = [("human", "Q"), ("function_call", value), ("observation", "2"), ("gpt", "A")]
    row = {"conversations": [{"from": speaker, "value": said} for speaker, said in turns]}
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    assert record_from_row(row, "f.jsonl:1").messages[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [call] * (2 if written.startswith("[") else 1),
    }


@pytest.mark.parametrize("value", ["add(1)", "3", "[]", "", None, 3, '["add"]', "[" * 100_000])
def test_a_sharegpt_function_call_that_is_none_is_refused(value: object) -> None:
    turns = [{"from": "human", "value": "Q"}, {"from": "function_call", "value": value}, {"from": "gpt", "value": "A"}]
    fact = 'message 2 is a function_call that is not JSON of a call, such as {"name": "add", "arguments": {"a": 1}}'
    assert fault_of({"conversations": turns}) == fact


@pytest.mark.parametrize(("row", "format"), CONVERSATIONS)
@pytest.mark.parametrize("nothing", [None, "", [], float("nan")])
def test_a_column_of_nothing_beside_a_conversation_is_none(
    row: dict[str, object], format: str, nothing: object
) -> None:
    """Found in session 12: `"tools": ""`, and NaN under system, stopped whole published sets."""
    empty = {"system": nothing, "tools": nothing} | ({"input": nothing, "history": nothing} if "output" in row else {})
    assert record_from_row({**row, **empty}, "f.jsonl:1") == record_from_row(row, "f.jsonl:1")


TWICE = '{"name": "add", "name": "sub"}'


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, SAID], "tools": f"[{TWICE}]"},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "function_call", "value": TWICE}]},
        {
            "messages": [
                ASKED,
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": TWICE}}]},
            ]
        },
    ],
)
def test_a_key_that_stands_twice_in_json_within_a_text_is_a_fault(row: dict[str, object]) -> None:
    """Found by a review in session 15: the last value was trained, and the other dropped without a word."""
    assert fault_of(row) == 'JSON in a text of the row: "name" is given twice'


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "Who "}, {"type": "text", "text": "won?"}]
    record = record_from_row({"messages": [{"role": "user", "content": parts}, SAID]}, "f.jsonl:1")
    assert record.messages[0]["content"] == "Who won?"


def test_tool_arguments_written_as_json_text_become_objects() -> None:
    """OpenAI's files hold arguments as text; templates apply tojson to them, which would quote them twice."""
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "2"}]
    row = {"messages": [*messages, SAID], "tools": json.dumps([{"type": "function"}])}
    record = record_from_row(row, "f.jsonl:1")
    assert record.messages[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1}}
    assert record.messages[1]["content"] == ""
    assert record.tools == ({"type": "function"},)


@pytest.mark.parametrize(
    ("arguments", "kept"), [('{"a": 1, "b": null}', {"a": 1, "b": None}), ({"a": 1, "b": None}, {"a": 1})]
)
def test_a_null_that_the_text_of_arguments_has_is_kept(arguments: object, kept: dict[str, object]) -> None:
    """Columns of a data set fill what is absent with null, texts do not: there it was written."""
    call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
    row = {"messages": [ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}]}
    assert record_from_row(row, "").messages[1]["tool_calls"][0]["function"]["arguments"] == kept


@pytest.mark.parametrize("arguments", ["", None, {}, "{}"])
def test_a_call_of_a_function_without_parameters_may_leave_its_arguments_empty(arguments: object) -> None:
    call = {"type": "function", "function": {"name": "now", "arguments": arguments}}
    row = {"messages": [ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}]}
    record = record_from_row(row, "f.jsonl:1")
    assert record.messages[1]["tool_calls"][0]["function"] == {"name": "now", "arguments": {}}


def test_columns_that_are_null_count_as_absent() -> None:
    """Hugging Face data sets fill the columns of all rows with null."""
    row = {"messages": None, "question": "Q", "answer": "A", "answers": None, "category": None}
    record = record_from_row(row, "f.jsonl:1")
    assert (record.format, record.answers, record.category) == ("question/answer", ("A",), None)
    said = {"role": "assistant", "content": "A", "tool_calls": None, "name": None}
    assert record_from_row({"messages": [ASKED, said]}, "").messages[1] == {"role": "assistant", "content": "A"}


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"messages": [ASKED]}, 'last message has role "user", expected "assistant"'),
        ({"messages": [ASKED, {"role": "assistant", "content": " "}]}, "message 2 (assistant) is an empty answer"),
        ({"messages": [ASKED, {"role": "assistant"}]}, "message 2 (assistant) is an empty answer"),
        ({"messages": [{"role": "user", "content": ""}, SAID]}, "message 1 (user) is empty"),
        ({"messages": []}, '"messages" is empty'),
        ({"messages": "hello"}, '"messages" is a text, expected a list'),
        ({"messages": ["hello"]}, "message 1 is a text, expected an object with role and content"),
        (
            {"messages": [{"role": "usr", "content": "Q"}, SAID]},
            'message 1 has role "usr", expected one of system, developer, user, assistant, tool',
        ),
        (
            {"messages": [{"content": "Q"}, SAID]},
            "message 1 has no role, expected one of system, developer, user, assistant, tool",
        ),
        ({"messages": [SAID]}, "no message has the role user: nothing asks for the answer"),
        ({"messages": [ASKED, {**SAID, "content": 7}]}, "message 2 (assistant) content is a number, expected text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, SAID]},
            "message 1 (user) has a part that is not text; only text can be trained",
        ),
        ({"question": "Q", "answer": ""}, '"answer" is empty'),
        ({"question": "Q", "answer": 42}, '"answer" is a number, expected text'),
        ({"question": "Q", "answer": True}, '"answer" is true, expected text'),
        ({"question": "Q", "answer": "A", "answers": "A"}, '"answers" is a text, expected a list of texts'),
        ({"question": "Q", "answer": "A", "answers": [["A"]]}, '"answers" is a list, expected text'),
        ({"question": "Q", "id": 1}, 'the question/answer row has no "answer" (its keys: question, id)'),
        (
            {"prompt": "Q", "response": "A"},
            'the prompt/completion row has no "completion" (its keys: prompt, response)',
        ),
        ({"instruction": "I"}, 'the alpaca row has no "output" (its keys: instruction)'),
        ({"foo": 1, "bar": 2}, "no known format (its keys: foo, bar)"),
        ({}, "the row is empty"),
        (["Q", "A"], "the row is a list, expected an object"),
        (None, "the row is null, expected an object"),
        ({"text": "  "}, '"text" is empty'),
        ({"text": "half an emoji \ud83d"}, "a text has half of a surrogate pair, \\ud83d"),
        (
            {"conversations": [{"from": "narrator", "value": "Q"}, SAID]},
            'message 1 has from "narrator", expected one of system, human, user, gpt, assistant, chatgpt, bot, model, '
            "tool, observation, function_response, function_call",
        ),
        ({"messages": [ASKED, SAID], "tools": "no json"}, '"tools" is a text that is not JSON'),
    ],
)
def test_a_faulty_row_says_what_is_wrong(row: object, fault: str) -> None:
    assert fault_of(row) == fault


KEYS = ["messages", "conversations", "question", "answer", "answers", "prompt", "completion", "instruction", "output"]
KEYS += ["input", "text", "system", "tools", "role", "content", "from", "value", "tool_calls", "weight"]
KEYS += ["choices", "category", "fact"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner | st.sampled_from(["user", "assistant", "human", "gpt", "hello"]),
            max_size=4,
        )
    ),
    max_leaves=20,
)


@hypothesis_settings(deadline=None)
@given(JSON)
def test_any_json_value_is_a_record_or_a_fault_in_words(value: object) -> None:
    words = ""
    try:
        record = record_from_row(value, "f.jsonl:1")
    except RowError as fault:
        words = str(fault)
    else:
        words = record.question
        assert record.text is not None or record.messages[-1]["role"] == "assistant"
    assert words.strip()
