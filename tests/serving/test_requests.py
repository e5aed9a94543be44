"""Requests: strict types, known fields, limits; every fault is named with its field, and nothing breaks the reader."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_lora.serving.limits import Limits
from mlx_lora.serving.refusals import Refusal
from mlx_lora.serving.requests import AdapterRequest, ChatRequest, CompletionRequest, read_request

LIMITS = Limits(choices=4, answer_tokens=100, stops=2, stop_characters=10)
HELLO = [{"role": "user", "content": "Hello"}]


def chat(**fields) -> ChatRequest:
    return read_request(json.dumps({"model": "m", "messages": HELLO, **fields}).encode(), ChatRequest, LIMITS)


def refused(body: bytes | dict, kind=ChatRequest) -> tuple[int, str | None, str]:
    with pytest.raises(Refusal) as refusal:
        read_request(body if isinstance(body, bytes) else json.dumps(body).encode(), kind, LIMITS)
    return refusal.value.status, refusal.value.param, refusal.value.message


def test_what_clients_send_unasked_is_accepted():
    asked = chat(
        **{"user": "u", "metadata": {"a": "b"}, "store": False, "frequency_penalty": 0, "presence_penalty": 0.0},
        **{"logit_bias": {}, "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "n": None},
        **{"stop": None, "logprobs": None, "temperature": 0.5, "max_completion_tokens": 7, "max_tokens": 7},
        **{"verbosity": "medium", "stream_options": {"include_usage": True, "include_obfuscation": False}},
    )
    assert (asked.temperature, asked.answer_tokens, asked.stops, asked.likelihoods) == (0.5, 7, (), None)
    assert asked.with_usage
    assert not chat(stream_options={"include_usage": None}).with_usage


def test_an_answer_may_come_back_with_its_empty_fields():
    back = {"role": "assistant", "content": "Hi", "refusal": None, "tool_calls": None, "annotations": []}
    asked = chat(messages=[*HELLO, back, {"role": "user", "content": [{"type": "text", "text": "And"}]}])
    assert [each.message() for each in asked.messages][1:] == [
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "And"},
    ]


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty", "does not support"),
        ({"tools": [{"type": "function"}]}, "tools", "does not support"),
        ({"response_format": {"type": "json_object"}}, "response_format", "does not support"),
        ({"chat_template": "{{ x }}"}, "chat_template", "Unknown field"),
        ({"temprature": 1}, "temprature", "Did you mean 'temperature'?"),
        ({"temperature": "1"}, "temperature", "valid number"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": True}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 101}, "max_tokens", "this server allows 100"),
        ({"max_tokens": 1.5}, "max_tokens", "valid integer"),
        ({"max_completion_tokens": 101}, "max_completion_tokens", "max_completion_tokens is 101, this server"),
        ({"max_completion_tokens": 7, "max_tokens": 9}, "max_tokens", "give one of them"),
        ({"verbosity": "low"}, "verbosity", "does not support"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options", "valid boolean"),
        ({"stream_options": {"continuous_usage_stats": True}}, "stream_options", "'continuous_usage_stats'"),
        ({"stream_options": True}, "stream_options", "valid dictionary"),
        ({"n": 5}, "n", "at most 4"),
        ({"stop": ["a", "b", "c"]}, "stop", "at most 2"),
        ({"stop": ""}, "stop", "1 to 10 characters"),
        ({"stop": 5}, "stop", "stop: not of the form"),
        ({"top_logprobs": 3}, "top_logprobs", "needs 'logprobs'"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "less than or equal to 20"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "'system', 'developer', 'user' or 'assistant'"),
        ({"messages": [{"role": "user"}]}, "messages", "Field required"),
        # Found by reading: of these it said "messages.0.content.str: not of the form that 'messages' takes".
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "of type 'image_url' are"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "messages", "with 'tool_calls'"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages", "messages.0.content: not of the form"),
        ({"messages": [{"role": "user", "content": [{"type": 5}, "x"]}, {}]}, "messages", "messages.0.content: not"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, "messages", "'tool_calls'"),
        ({"model": None}, "model", "valid string"),
        ({"seed": 2**70}, "seed", "less than"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, None, "surrogate"),
    ],
)
def test_each_fault_is_named_with_its_field(fields, param, said):
    status, field, message = refused({"model": "m", "messages": HELLO, **fields})
    assert (status, field) == (400, param)
    assert said in message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b'"text"',
        b'{"model": NaN}',
        b"1" * 5000,
        b"[" * 100000,
        b'{"a":' * 90000,
        b'{"model": "m", "metadata": ' + b"[" * 16 + b"]" * 16 + b"}",
    ],
    ids=range(10),
)
def test_what_is_no_request_is_refused_without_a_trace(body):
    status, _, message = refused(body)
    assert status == 400
    assert message.startswith("The body")


def test_prompts_are_texts_or_tokens():
    def prompts(value):
        return read_request(json.dumps({"model": "m", "prompt": value}).encode(), CompletionRequest, LIMITS).prompts

    assert prompts("a") == ["a"]
    assert prompts(["a", "b"]) == ["a", "b"]
    assert prompts([1, 2]) == [[1, 2]]
    assert prompts([[1, 2], [3]]) == [[1, 2], [3]]
    for wrong in ("", [], [""], [[]], [-1], [True], [1, "a"], None, 7):
        assert refused({"model": "m", "prompt": wrong}, CompletionRequest)[1] == "prompt"
    assert refused({"model": "m", "prompt": ["a", "b"], "n": 3}, CompletionRequest)[1] == "n"


def test_an_adapter_is_asked_for_by_name_alone():
    assert read_request(b'{"name": "red"}', AdapterRequest, LIMITS).name == "red"
    assert refused({"name": "red", "path": "/etc"}, AdapterRequest)[1] == "path"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from([*ChatRequest.model_fields, "tools", "echo", "stream_options", "other"])


@given(st.dictionaries(fields, json_values, max_size=4), st.sampled_from([ChatRequest, CompletionRequest]))
def test_any_json_is_read_or_refused(values, kind):
    body = json.dumps({"model": "m", "messages": HELLO, "prompt": "x", **values}).encode()
    told = None
    try:
        read_request(body, kind, LIMITS)
    except Refusal as refusal:
        told = json.loads(json.dumps(refusal.body()))["error"]["type"]
    assert told in (None, "invalid_request_error")


def test_a_developers_message_is_a_system_message():
    """Found by reading: Qwen's templates pass over the role, and the adapter's own prompt was left out too."""
    back = [{"role": "user", "content": "Hi"}, {"role": "developer", "content": [{"type": "text", "text": "Be sad."}]}]
    asked = chat(messages=[{"role": "developer", "content": "Be glad."}, *back])
    assert [each.message() for each in asked.messages] == [
        {"role": "system", "content": "Be glad."},
        {"role": "user", "content": "Hi"},
        {"role": "system", "content": "Be sad."},
    ]
