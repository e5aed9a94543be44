"""One row of a data set, whatever its format was. Knows nothing of files, tokenizers or MLX."""

import hashlib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]  # {"role": ..., "content": text}, with tool_calls etc. as templates want them
# Key of an assistant's message that is context only; no template sees it. True where the row marks the turn so.
UNTRAINED = "untrained"
OF_THE_PROMPT = "prompt"  # its value where the turn stands in the prompt, which data.train_on: all trains too


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
    # Of those, key → fact and hint, what eval refuses the row for; training does not read it.
    unaskable: Mapping[str, tuple[str, str]] = field(default_factory=dict, compare=False)

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
        return folded(self.question)

    @property
    def questions(self) -> tuple[str, ...]:
        """The user turn that each trained answer answers; the whole text of a `text` row."""
        if self.text is not None:
            return (self.text,)
        asked: list[str] = []
        last = ""
        for message in self.messages:
            if message["role"] == "user":
                last = str(message["content"])
            elif is_trained(message) and last:
                asked.append(last)
        return tuple(asked)

    @property
    def asked_keys(self) -> tuple[str, ...]:
        """What each trained answer answers, so that equal keys are the same question after the same conversation.

        Without case, spacing and system messages; what a conversation begins with is a key as its question_key is.
        """
        if self.text is not None:
            return (self.question_key,)
        keys: list[str] = []
        said: str | None = None
        for message in self.messages:
            if is_trained(message) and said is not None:
                keys.append(said)
            if message["role"] not in ("system", "developer"):
                turn = folded(str(message["content"]))
                # A digest, so that a conversation of many turns is not held once for each of them.
                said = turn if said is None else _digest(f"{said}\n{turn}")
        return tuple(keys)


def is_trained(message: Message) -> bool:
    """Whether it is a turn of the assistant that a row teaches."""
    return message["role"] == "assistant" and not message.get(UNTRAINED, False)


def folded(text: str) -> str:
    """`text` without case and spacing, with letters in one part (NFC): as macOS and PDFs write é, it is two."""
    return unicodedata.normalize("NFC", " ".join(text.split()).casefold())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
