"""Asking, retrying, comparing, taking back."""

import re
import signal
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from mlx_lora.chat.conversation import Ending, Turn
from mlx_lora.chat.interrupt import stop_on_interrupt
from mlx_lora.chat.sampling import Sampling
from mlx_lora.chat.screen import PlainScreen, Screen, TerminalScreen
from mlx_lora.chat.session import Session, SystemPrompt
from mlx_lora.errors import AdapterError, MlxLoraError, ModelError
from mlx_lora.lora.rendering import Rendering
from mlx_lora.model.stream import Piece
from tests.chat.stand_ins import ScriptedVoice


def session_of(voice: ScriptedVoice, sampling: Sampling | None = None) -> Session:
    return Session(voice, PlainScreen(), sampling or Sampling())  # type: ignore[arg-type]


def asked(voice: ScriptedVoice) -> list[str]:
    return [message["content"] for message in voice.seen[-1]]


def test_each_question_comes_with_the_turns_before_it() -> None:
    voice = ScriptedVoice("Paris.", "Rome.")
    session = session_of(voice)
    assert session.ask("France?") == Turn("France?", "Paris.")
    session.ask("Italy?")
    assert asked(voice) == ["France?", "Paris.", "Italy?"]


def test_ctrl_c_keeps_what_was_answered_and_marks_it(capsys: pytest.CaptureFixture[str]) -> None:
    voice = ScriptedVoice("Paris is the capital.", "ok")
    voice.interrupt_after = 3
    session = session_of(voice)
    assert session.ask("France?") == Turn("France?", "Paris ", Ending.INTERRUPTED)
    assert capsys.readouterr().out == "Paris\n"
    session.ask("Go on")
    assert asked(voice) == ["France?", "Paris ", "Go on"]


def test_ctrl_c_before_the_first_word_leaves_the_conversation_as_it_was() -> None:
    voice = ScriptedVoice("Paris.")
    voice.interrupt_after = 0
    session = session_of(voice)
    assert session.ask("France?").ending is Ending.INTERRUPTED
    assert session.conversation.turns == []


def test_after_an_answer_ctrl_c_is_a_keyboard_interrupt_again() -> None:
    session_of(ScriptedVoice("x")).ask("y")
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_twice_does_not_wait_for_the_next_token() -> None:
    with stop_on_interrupt() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("interrupt_after", [1, 2])
def test_ctrl_c_again_while_an_answer_is_being_stopped_loses_nothing(interrupt_after: int) -> None:
    """Found by reading: it broke off the reader in its last step; the answer was lost, and what the cache holds."""
    settled = []

    class Settling(ScriptedVoice):
        def _pieces(self, reply: str, limit: int) -> Generator[Piece, None, None]:
            try:
                yield from super()._pieces(reply, limit)
            finally:
                for _ in range(3):  # while the token under way is waited for
                    signal.raise_signal(signal.SIGINT)
                settled.append(True)

    voice = Settling("Paris.")
    voice.interrupt_after = interrupt_after
    session = session_of(voice)
    turn = Turn("France?", "Paris."[: 2 * interrupt_after], Ending.INTERRUPTED)
    assert session.ask("France?") == turn
    assert session.conversation.turns == [turn]
    assert settled == [True]


def test_an_answer_cut_at_max_tokens_is_kept_and_marked() -> None:
    session = session_of(ScriptedVoice("abcdef"), Sampling(max_tokens=2))
    assert session.ask("q") == Turn("q", "abcd", Ending.LENGTH)


def test_an_answer_cut_by_the_context_is_told_from_one_cut_by_max_tokens() -> None:
    session = session_of(ScriptedVoice("abcdef", context=3))
    assert session.ask("q") == Turn("q", "abcd", Ending.CONTEXT)


def test_a_question_that_does_not_fit_leaves_the_conversation_as_it_was() -> None:
    session = session_of(ScriptedVoice("ab", context=10))
    session.ask("q")
    with pytest.raises(ModelError, match="too long"):
        session.ask("a longer question")
    assert session.conversation.turns == [Turn("q", "ab")]


def test_an_answer_without_memory_leaves_the_conversation_as_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a Mac MLX refuses a buffer, and the chat ended in a traceback with all that was said in it."""
    voice = ScriptedVoice("ab", "cd")
    session = session_of(voice)
    session.ask("q")

    def refused(message: str) -> Callable[[str, int], Generator[Piece, None, None]]:
        def pieces(reply: str, limit: int) -> Generator[Piece, None, None]:
            yield Piece("a", 7, False, False, 1, 0.5, 0)
            raise RuntimeError(message)

        return pieces

    told = "[metal::malloc] Attempting to allocate 48 bytes which is greater than the maximum allowed buffer size"
    monkeypatch.setattr(voice, "_pieces", refused(told))
    with pytest.raises(ModelError, match=re.escape(f"no memory is left for this answer: {told}")):
        session.ask("a long question")
    assert session.conversation.turns == [Turn("q", "ab")]
    assert voice.forgotten == 1
    assert "the answer was cut where no memory was left\n" in capsys.readouterr().err
    monkeypatch.setattr(voice, "_pieces", refused("a bug of ours"))
    voice.replies = ["x"]
    with pytest.raises(RuntimeError, match="a bug of ours"):
        session.ask("again")


def test_retry_replaces_the_last_answer_and_asks_without_it() -> None:
    voice = ScriptedVoice("one", "two")
    session = session_of(voice)
    session.ask("q")
    assert session.retry() == Turn("q", "two")
    assert session.conversation.turns == [Turn("q", "two")]
    assert asked(voice) == ["q"]


def test_a_retry_that_fails_or_is_stopped_at_once_keeps_the_old_answer() -> None:
    voice = ScriptedVoice("one", context=100)
    session = session_of(voice)
    session.ask("q")
    voice.context = 1
    with pytest.raises(ModelError):
        session.retry()
    voice.context, voice.replies = 100, ["x"]
    voice.interrupt_after = 0
    session.retry()
    assert session.conversation.turns == [Turn("q", "one")]


def test_retry_with_nothing_asked_is_refused() -> None:
    with pytest.raises(MlxLoraError, match="nothing was asked yet"):
        session_of(ScriptedVoice()).retry()


def test_a_seed_makes_a_session_repeat_but_not_its_retries() -> None:
    seeds = []
    for _ in range(2):
        voice = ScriptedVoice("a", "b", "c")
        session = session_of(voice, Sampling(temperature=1.0, seed=7))
        session.ask("q")
        session.retry()
        session.set("seed", "7")
        session.retry()
        seeds.append(voice.seeds)
    assert seeds == [[7, 8, 7]] * 2


def test_the_adapters_system_prompt_holds_until_a_person_chooses_another_or_none() -> None:
    voice = ScriptedVoice("a", "b", "c")
    voice.rendering = Rendering(system_prompt="From training.")
    session = session_of(voice)
    session.ask("q")
    assert voice.seen[-1][0] == {"role": "system", "content": "From training."}
    session.chosen_system = SystemPrompt("Mine.")
    session.retry()
    assert voice.seen[-1][0] == {"role": "system", "content": "Mine."}
    session.chosen_system = SystemPrompt(None)
    session.retry()
    assert asked(voice) == ["q"]


def screens(session: Session, labels: list[str] | None = None) -> Callable[[str], Screen]:
    """Opens the session's own screen for everybody, and notes for whom."""

    def open_screen(label: str) -> Screen:
        (labels if labels is not None else []).append(label)
        return session.screen

    return open_screen


def with_adapter(*replies: str) -> ScriptedVoice:
    voice = ScriptedVoice(*replies, adapters=["cup"])
    voice.use(Path("cup"))
    return voice


def test_compare_answers_as_base_and_as_adapter_outside_the_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    voice = with_adapter("paris", "paris", "paris")
    session = session_of(voice)
    session.ask("France?")
    labels: list[str] = []
    session.compare("Italy?", screens(session, labels))
    assert labels == ["base", "cup"]
    assert capsys.readouterr().out == "paris\nPARIS\nparis\n"
    assert asked(voice) == voice_messages(voice, -2) == ["France?", "paris", "Italy?"]
    assert session.conversation.turns == [Turn("France?", "paris")]
    assert voice.enabled


def voice_messages(voice: ScriptedVoice, number: int) -> list[str]:
    return [message["content"] for message in voice.seen[number]]


def test_compare_without_a_question_takes_the_last_one_and_draws_both_from_one_seed() -> None:
    voice = with_adapter("a", "b", "c")
    session = session_of(voice, Sampling(temperature=1.0, seed=0))
    session.ask("France?")
    voice.switch(False)
    session.compare("", screens(session))
    assert asked(voice) == ["France?"]
    assert voice.seeds == [0, 1, 1]
    assert not voice.enabled


def test_ctrl_c_in_a_comparison_ends_it_and_switches_back() -> None:
    voice = with_adapter("aaaaaa", "b")
    voice.interrupt_after = 1
    session = session_of(voice)
    session.compare("q", screens(session))
    assert voice.replies == ["b"]
    assert voice.enabled


def test_compare_without_an_adapter_is_refused() -> None:
    session = session_of(ScriptedVoice())
    with pytest.raises(AdapterError, match="no adapter"):
        session.compare("q", screens(session))


def test_reset_forgets_the_turns_and_what_the_model_has_read() -> None:
    voice = ScriptedVoice("a", "b")
    session = session_of(voice)
    session.ask("q")
    session.reset()
    session.ask("r")
    assert asked(voice) == ["r"]
    assert voice.forgotten == 1


def test_thinking_stays_in_the_text_that_the_template_gets(capsys: pytest.CaptureFixture[str]) -> None:
    voice = ScriptedVoice("<think>hm</think>\n\nyes", "no")
    session = Session(voice, TerminalScreen(), Sampling())  # type: ignore[arg-type]
    session.ask("q")
    session.ask("r")
    assert asked(voice) == ["q", "<think>hm</think>\n\nyes", "r"]
    assert capsys.readouterr().out == "yes\nno\n"
