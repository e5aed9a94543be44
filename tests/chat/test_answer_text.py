"""Thinking and answer, taken apart while they stream."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_lora.chat.answer_text import AnswerText


def taken_apart(pieces: list[str], *, opened: bool = False) -> tuple[str, str]:
    text = AnswerText(opened=opened)
    shown = [text.feed(piece) for piece in pieces] + [text.finish()]
    return "".join(part.thinking for part in shown), "".join(part.answer for part in shown)


@pytest.mark.parametrize(
    ("whole", "opened", "thinking", "answer"),
    [
        ("Paris.", False, "", "Paris."),
        ("  Paris. \n", False, "", "Paris."),
        ("<think>\nFrance… \n</think>\n\nParis.", False, "France…", "Paris."),
        ("\n<think>a</think>b", False, "a", "b"),
        ("<think>\n\n</think>\n\nParis.", False, "", "Paris."),
        ("France…\n</think>\n\nParis.", True, "France…", "Paris."),
        ("<think>not at an end", False, "not at an end", ""),
        ("<think>ends in a tag </thi", False, "ends in a tag </thi", ""),
        ("<thin", False, "", "<thin"),
        ("The tag <think> opens, </think> closes.", False, "", "The tag <think> opens, </think> closes."),
        ("<think>a</think>b <think>c</think>", False, "a", "b <think>c</think>"),
        ("a < b", False, "", "a < b"),
        ("", False, "", ""),
    ],
)
def test_only_a_block_at_the_beginning_is_thinking(whole: str, opened: bool, thinking: str, answer: str) -> None:
    assert taken_apart([whole], opened=opened) == (thinking, answer)
    assert taken_apart(list(whole), opened=opened) == (thinking, answer)


WORDS = st.lists(st.sampled_from(["<think>", "</think>", "<", "</th", ">", " ", "\n", "x", "é🐉"]), max_size=12)


@given(WORDS, st.lists(st.integers(0, 60)), st.booleans())
def test_the_result_does_not_depend_on_where_the_pieces_are_cut(
    words: list[str], cuts: list[int], opened: bool
) -> None:
    whole = "".join(words)
    places = sorted({0, *(cut for cut in cuts if cut < len(whole)), len(whole)})
    pieces = [whole[start:stop] for start, stop in pairwise(places)]
    assert taken_apart(pieces, opened=opened) == taken_apart([whole], opened=opened)


@given(WORDS)
def test_what_does_not_begin_with_thinking_is_the_stripped_answer(words: list[str]) -> None:
    whole = "x" + "".join(words)
    assert taken_apart(list(whole)) == ("", whole.strip())


def test_other_tags_serve_too() -> None:
    text = AnswerText(("<|channel>thought", "<channel|>"))
    shown = text.feed("<|channel>thought\nhm<channel|>yes")
    assert (shown.thinking, shown.answer) == ("hm", "yes")
