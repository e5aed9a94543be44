"""The turns of a conversation, and the row that they become."""

import pytest

from mlx_lora.chat.conversation import Conversation, Ending, Turn
from mlx_lora.errors import MlxLoraError

PARIS = Turn("Capital of France?", " Paris.\n")
ROME = Turn("And of Italy?", "Ro", Ending.INTERRUPTED)


def test_messages_hold_the_system_prompt_first_then_the_turns_then_the_new_question() -> None:
    assert Conversation([PARIS]).messages("Be brief.", "And of Italy?") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Capital of France?"},
        {"role": "assistant", "content": " Paris.\n"},
        {"role": "user", "content": "And of Italy?"},
    ]


def test_without_a_system_prompt_there_is_no_system_message() -> None:
    assert Conversation().messages(None, "Hi") == [{"role": "user", "content": "Hi"}]


def test_an_empty_system_text_is_a_system_message_still() -> None:
    assert Conversation().messages("", "Hi")[0] == {"role": "system", "content": ""}


def test_take_back_removes_the_last_turn_and_refuses_when_there_is_none() -> None:
    conversation = Conversation([PARIS, ROME])
    assert conversation.take_back() == ROME
    assert conversation.turns == [PARIS]
    conversation.take_back()
    with pytest.raises(MlxLoraError, match="nothing was asked yet"):
        conversation.take_back()


def test_a_row_is_the_conversation_without_outer_space() -> None:
    assert Conversation([PARIS]).row("Be brief. ") == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Capital of France?"},
            {"role": "assistant", "content": "Paris."},
        ]
    }


@pytest.mark.parametrize(
    ("turns", "fact"),
    [
        ([], "nothing to save"),
        ([PARIS, ROME], "stopped by Ctrl-C"),
        ([Turn("Hi", "He", Ending.LENGTH)], "cut at max_tokens"),
        ([Turn("Hi", " ")], "is empty"),
        ([PARIS, Turn("Hi", ""), PARIS], "answer 2 is empty: training refuses"),
    ],
)
def test_no_row_comes_of_a_conversation_that_would_teach_a_bad_end(turns: list[Turn], fact: str) -> None:
    with pytest.raises(MlxLoraError, match=fact):
        Conversation(turns).row(None)


def test_answers_cut_short_are_counted_from_one() -> None:
    assert Conversation([PARIS, ROME, PARIS]).cut_answers() == [2]
