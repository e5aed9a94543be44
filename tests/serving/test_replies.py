"""Answers as OpenAI's JSON: what stands beside the text."""

import json

from mlx_lora.serving.answer import Delta, Finished, Likelihood
from mlx_lora.serving.app import _event
from mlx_lora.serving.replies import Choice, Reply, TextReply

SPELLED = {1: "New", 2: " York", 3: "\ufffd", 4: "\ufffd"}  # the last two are parts of characters


def spell(token: int, after: int | None = None) -> str:
    return SPELLED[token]


def delta(*tokens: int) -> Delta:
    return Delta("".join(map(spell, tokens)), tuple(Likelihood(token, -1.0) for token in tokens))


def test_the_offsets_of_a_stream_go_on_from_chunk_to_chunk():
    """Found by reading: every chunk began at 0 again."""
    reply = TextReply("m", spell, True)
    chunks = [reply.part(0, delta(1, 2)), reply.part(1, delta(2)), reply.part(0, delta(3, 1)), reply.part(1, delta(1))]
    offsets = [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks]
    assert offsets == [[0, 3], [0], [8, 9], [5]]
    parts = delta(1, 2, 3, 1)
    choice = Choice([parts.text], list(parts.likelihoods), Finished("stop", 1, 0, 4))
    assert reply.complete([choice])["choices"][0]["logprobs"]["text_offset"] == [0, 3, 8, 9]


def test_an_event_is_one_line_for_readers_that_split_at_more_than_line_feeds():
    """Found by reading: str.splitlines and httpx's iter_lines cut an event in two at these, and its JSON with it."""
    text = "a\u2028b\u2029c\x85d\x0be\x1cf\ng 日本"
    lines = _event(Reply("m", spell, False).part(0, Delta(text))).decode().splitlines()
    assert len(lines) == 2
    assert lines[1] == ""
    assert json.loads(lines[0].removeprefix("data: "))["choices"][0]["delta"]["content"] == text
    assert "日本" in lines[0]


def test_a_part_of_a_character_has_no_bytes_rather_than_wrong_ones():
    """Found by reading: it had the three bytes of U+FFFD, which no reader can join to the character."""
    one = Likelihood(2, -1.0, ((2, -1.0), (3, -2.0)))
    [content] = Reply("m", spell, True).part(0, Delta(" York", (one,)))["choices"][0]["logprobs"]["content"]
    assert content["bytes"] == [32, 89, 111, 114, 107]
    assert [top["bytes"] for top in content["top_logprobs"]] == [[32, 89, 111, 114, 107], None]


def test_of_tokens_that_are_spelled_alike_the_likeliest_is_told():
    one = Likelihood(1, -0.5, ((1, -0.5), (3, -1.0), (4, -9.0)))
    logprobs = TextReply("m", spell, True).part(0, Delta("New", (one,)))["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"] == [{"New": -0.5, "\ufffd": -1.0}]
