"""One row of a data set, whatever its format was. Knows nothing of files, tokenizers or MLX."""

from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]  # {"role": ..., "content": text}, with tool_calls etc. as templates want them


@dataclass(frozen=True)
class Record:
    """A conversation that ends with an assistant turn, or a plain text."""

    messages: tuple[Message, ...]  # empty for a `text` row
    text: str | None = None  # for a `text` row
    tools: tuple[dict[str, Any], ...] = ()
    answers: tuple[str, ...] = ()  # accepted answers, the canonical one first
    choices: tuple[str, ...] = ()  # of a multiple-choice row: the texts to pick from, answers[0] among them
    category: str | None = None
    fact: str | None = None
    place: str = ""  # "data/train.jsonl:17"
    format: str = ""  # "chat", "prompt/completion", "question/answer", "alpaca", "sharegpt", "text"
    unread: tuple[str, ...] = field(default=(), compare=False)  # keys that the row has and its format does not

    @property
    def question(self) -> str:
        """The last user turn's text; the whole text of a `text` row."""
        if self.text is not None:
            return self.text
        turns = [str(message["content"]) for message in self.messages if message["role"] == "user"]
        return turns[-1] if turns else ""

    @property
    def question_key(self) -> str:
        """The question without case and spacing: equal keys are the same question."""
        return " ".join(self.question.split()).casefold()
