"""Breaking lines between words while they stream."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from mlx_lora.chat.wrapping import WordWrap


def wrapped(text: str, width: int) -> str:
    wrap = WordWrap(lambda: width)
    return "".join(map(wrap.feed, text)) + wrap.finish()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("one two three", "one two\nthree"),
        ("one two 34567", "one two\n34567"),
        ("12345678 2", "12345678\n2"),
        ("http://a.b/c?d=e f", "http://a.b/c?d=e f"),
        ("see http://a.b/c then", "see\nhttp://a.b/c\nthen"),
        ("a\n\n  b", "a\n\n  b"),
        ("one two    three", "one two\nthree"),
        ("日本語日本語", "日本語日\n本語"),
        ("ab 日本語", "ab 日本\n語"),
        ("one ce\u0301dez", "one\nce\u0301dez"),  # an accent of its own; so are Hindi's vowel signs
        ("one ab हिन्दी", "one ab\nहिन्दी"),
        ("日\u3099本語日本", "日\u3099本語日\n本"),
        ("end ", "end "),
        ("", ""),
        ("```\nx = 1234567 + 1\n```\none two three", "```\nx = 1234567 + 1\n```\none two\nthree"),
    ],
)
def test_a_word_that_would_cross_the_edge_goes_to_the_next_line(text: str, shown: str) -> None:
    assert wrapped(text, 8) == shown


def test_joined_emoji_stay_together() -> None:
    assert wrapped("abcd 👩\u200d💻", 8).split("\n")[-1].endswith("👩\u200d💻")


def test_a_terminal_of_no_columns_is_no_error() -> None:  # COLUMNS=0: a division by zero in the middle of an answer
    assert wrapped("one two", 0) == wrapped("one two", 1)


def test_the_width_is_asked_for_each_word() -> None:
    width = 20
    wrap = WordWrap(lambda: width)
    shown = wrap.feed("one two three ")
    width = 8
    assert shown + wrap.feed("four ") + wrap.finish() == "one two three\nfour "


TEXT = st.text(alphabet="ab \n\t日é🐉`")


@given(TEXT, st.integers(4, 12))
def test_nothing_but_space_changes(text: str, width: int) -> None:
    assert "".join(wrapped(text, width).split()) == "".join(text.split())


def rows(text: str, width: int) -> list[str]:
    """What stands in each row of a terminal that breaks lines wherever they reach its edge."""
    shown = [""]
    for character in text:
        if character == "\n" or cell_len(shown[-1] + character) > width:
            shown.append("")
        shown[-1] += character.strip("\n")
    return shown


@given(st.text(alphabet="ab \n日é"), st.integers(4, 12))
def test_no_word_that_fits_a_row_is_broken(text: str, width: int) -> None:
    broken = rows(wrapped(text, width), width)
    whole = [word for word in text.replace("日", " 日 ").split() if len(word) <= width]
    found = [word for row in broken for word in row.replace("日", " 日 ").split()]
    assert [word for word in whole if word not in found] == []


@given(TEXT)
def test_text_narrower_than_the_terminal_is_untouched(text: str) -> None:
    assert wrapped(text, 10_000) == text
