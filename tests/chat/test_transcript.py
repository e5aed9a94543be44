"""A conversation as Markdown."""

import pytest

from mlx_lora.chat.answer_text import Shown
from mlx_lora.chat.conversation import Conversation, Ending, Turn
from mlx_lora.chat.transcript import markdown_transcript
from mlx_lora.errors import MlxLoraError


def test_a_transcript_says_who_answered_folds_thinking_and_names_cut_answers() -> None:
    turns = [
        Turn("Who?\n\nReally?", "", speaker="cup", shown=Shown("hm", "Ann.")),
        Turn("Code", "", Ending.LENGTH, "base", Shown("", "```\nx = 1")),
        Turn("And?", "", speaker="base"),
    ]
    text = markdown_transcript(Conversation(turns), base="tiny", system="Be\nbrief.", sampling="greedy")
    assert text == (
        "# Conversation\n\n- base: tiny\n- settings at the end: greedy\n- system prompt: Be brief.\n\n"
        "> Who?\n>\n> Really?\n\n**cup:**\n\n<details><summary>thinking</summary>\n\nhm\n\n</details>\n\nAnn.\n\n"
        "> Code\n\n**base:**\n\n```\nx = 1\n```\n\n*(cut at max_tokens)*\n\n"
        "> And?\n\n**base:**\n\n(no answer)\n"
    )


@pytest.mark.parametrize(
    ("answer", "written"),
    [
        ("~~~\nx = 1", "~~~\nx = 1\n~~~"),
        ("````md\n```py\nx\n```", "````md\n```py\nx\n```\n````"),
        ("```x``` is code", "```x``` is code"),
        ("```py\n```not the end", "```py\n```not the end\n```"),
        ("~~~\nx\n~~~\nso", "~~~\nx\n~~~\nso"),
    ],
)
def test_a_block_is_closed_by_the_fence_that_opened_it(answer: str, written: str) -> None:
    """Found by reading: fences were only counted, and always closed with backticks."""
    turns = [Turn("q", "", shown=Shown(answer, answer))]
    text = markdown_transcript(Conversation(turns), base="tiny", system=None, sampling="greedy")
    assert text.endswith(f"</summary>\n\n{written}\n\n</details>\n\n{written}\n")


def test_an_empty_conversation_is_not_exported() -> None:
    with pytest.raises(MlxLoraError, match="nothing to export"):
        markdown_transcript(Conversation(), base="tiny", system=None, sampling="greedy")
