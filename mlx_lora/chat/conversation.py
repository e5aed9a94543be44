"""A conversation's turns: what was asked, answered and taken back, and its form as a training row.

Knows nothing of models, terminals or files.
"""

from dataclasses import dataclass, field
from enum import Enum

from mlx_lora.chat.answer_text import Shown
from mlx_lora.dataset.record import Message
from mlx_lora.errors import MlxLoraError


class Ending(Enum):
    """Why an answer ended; the values are what a person reads."""

    COMPLETE = "complete"
    INTERRUPTED = "stopped by Ctrl-C"
    LENGTH = "cut at max_tokens"
    CONTEXT = "cut where the model's context is full"
    MEMORY = "cut where no memory was left"  # never of a turn that is kept

    @staticmethod
    def of(stopped: bool, tokens: int, max_tokens: int) -> "Ending":
        """Why an answer of `tokens` tokens ended that nobody interrupted; `stopped`: by an end token."""
        if stopped:
            return Ending.COMPLETE
        return Ending.CONTEXT if tokens < max_tokens else Ending.LENGTH


@dataclass(frozen=True)
class Turn:
    """A question and its answer, both as exact text (thinking included).

    speaker: who answered. shown: the answer taken apart for people.
    """

    question: str
    answer: str
    ending: Ending = Ending.COMPLETE
    speaker: str = field(default="base", compare=False)
    shown: Shown = field(default=Shown(), compare=False)


@dataclass
class Conversation:
    """The turns so far, oldest first. The system prompt is not among them: it may change in between."""

    turns: list[Turn] = field(default_factory=list)

    def messages(self, system: str | None, question: str | None = None) -> list[Message]:
        """The turns as chat messages, after `system` where there is one, and before `question` where there is one."""
        messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
        if question is not None:
            messages.append({"role": "user", "content": question})
        return messages

    def take_back(self) -> Turn:
        """Remove the last turn and return it. Raises: MlxLoraError when there is none."""
        if not self.turns:
            raise MlxLoraError("nothing was asked yet")
        return self.turns.pop()

    def row(self, system: str | None) -> dict[str, list[Message]]:
        """The conversation as one training row in chat format, {"messages": […]}, outer space stripped.

        Raises: MlxLoraError when it is empty, when its last answer was cut short, as a row would teach to stop there,
        or when an answer says nothing: no training reads such a row.
        """
        if not self.turns:
            raise MlxLoraError("nothing was asked yet, so there is nothing to save")
        last = self.turns[-1]
        if last.ending is not Ending.COMPLETE:
            raise MlxLoraError(
                f"the last answer was {last.ending.value}: a training row would teach the model to stop there",
                "/retry gives a whole answer, /undo takes the question back; then /save",
            )
        if not last.answer.strip():
            raise MlxLoraError("the last answer is empty: a training row would teach the model to say nothing", "/undo")
        empty = [str(number) for number, turn in enumerate(self.turns, 1) if not turn.answer.strip()]
        if empty:
            raise MlxLoraError(
                f"answer {', '.join(empty)} is empty: training refuses a row with an answer that says nothing",
                "/undo takes turns back from the last on, or /export FILE keeps the conversation for people",
            )
        messages = self.messages(system)
        return {"messages": [{**message, "content": message["content"].strip()} for message in messages]}

    def cut_answers(self) -> list[int]:
        """The numbers (from 1) of the answers that were cut short."""
        return [number for number, turn in enumerate(self.turns, 1) if turn.ending is not Ending.COMPLETE]
