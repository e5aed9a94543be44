"""A base with adapters for Python programs: load, add, use, ask. What `mlx-lora chat` does, without its screens."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_lora.chat.answer_text import AnswerText, take_apart
from mlx_lora.chat.conversation import Ending
from mlx_lora.chat.sampling import Sampling
from mlx_lora.chat.voice import DEFAULT_MODEL, Voice
from mlx_lora.dataset.formats import RowError, record_from_row
from mlx_lora.dataset.record import Message
from mlx_lora.errors import DataError, MlxLoraError, ModelError
from mlx_lora.files import typed_path
from mlx_lora.model.compute import COMPUTE_TYPES
from mlx_lora.model.load import load_base

Asked = str | Sequence[Mapping[str, Any]]  # a question, or messages {"role": …, "content": …}


@dataclass(frozen=True)
class Reply:
    """An answer. `print` shows its text.

    text: without thinking, outer space stripped. thinking: of the block before it, where there is one. by: who
    answered. complete: ended by itself; otherwise `ending` says what cut it. tokens: generated, prompt_tokens: read.
    """

    text: str
    thinking: str
    by: str
    complete: bool
    ending: str
    tokens: int
    prompt_tokens: int

    def __str__(self) -> str:
        return self.text


class LoraModel:
    """One base in memory and any number of adapters, of which one, a mix of several, or none answers.

    Not for several threads at once.
    """

    def __init__(self, voice: Voice) -> None:
        """`LoraModel.load` makes one."""
        self._voice = voice
        self._answering = False

    @classmethod
    def load(cls, base: str = DEFAULT_MODEL, *, revision: str | None = None, compute: str = "auto") -> "LoraModel":
        """Load a base: a built-in name, a folder, a llama's .gguf file or a Hub id. compute: as in a run file.

        Raises: ModelError.
        """
        if compute not in COMPUTE_TYPES:
            raise ModelError(f"compute: there is no {compute}", f"one of {', '.join(COMPUTE_TYPES)}")
        return cls(Voice(load_base(base, revision=revision, compute=compute)))

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters, in the order in which they were added."""
        return self._voice.bank.names

    @property
    def active(self) -> str:
        """Who answers: a name, a mix such as "a:0.7+b:0.3", or "base"."""
        return self._voice.label

    def add_adapter(self, name: str, folder: str | Path) -> "LoraModel":
        """Read the adapter in `folder`, check it against the base and keep it as `name`; who answers stays.

        Raises: AdapterError, also for a name that is taken; all is then as before.
        """
        self._voice.add(typed_path(folder), name)
        return self

    def remove_adapter(self, name: str) -> "LoraModel":
        """Forget an adapter; where it answers, the base does from now on. Raises: AdapterError for an unknown name."""
        self._refuse_while_answering()
        self._voice.remove(name)
        return self

    def use(self, who: str | None) -> "LoraModel":
        """Answer as an adapter, several by weight (`a:0.7+b:0.3`), or, with None, as the base alone.

        Prompts are written as the adapter was trained, its system prompt included. Raises: AdapterError.
        """
        self._refuse_while_answering()
        if who is None:
            self._voice.answer_as_base()
        else:
            self._voice.answer_as(who)
        return self

    def generate(
        self,
        asked: Asked,
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Reply:
        """The answer to a question or to messages; settings and faults as in `stream`."""
        pieces = self.stream(asked, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                reply: Reply = end.value
                return reply

    def stream(
        self,
        asked: Asked,
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Generator[str, None, Reply]:
        """Yield the answer's text as it comes, thinking left out; the generator's value is the Reply.

        temperature 0 is greedy; seed None is random. A system message among `asked` stands in place of the adapter's.
        What was read stays in memory: asked again with a longer conversation, only what is new is read.
        Raises: MlxLoraError for settings or messages that cannot be, a prompt too long, an answer not read to its end.
        """
        sampling = Sampling(temperature, top_p, max_tokens, seed)
        self._refuse_while_answering()
        self._answering = True
        try:
            return (yield from self._answer(_messages(asked), sampling))
        finally:
            self._answering = False

    def _answer(self, messages: list[Message], sampling: Sampling) -> Generator[str, None, Reply]:
        voice = self._voice
        system = voice.rendering.system_prompt
        if system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
        prompt = voice.render(messages)
        opened = voice.opens_thinking(prompt)
        parts = AnswerText(voice.think_tags, opened=opened)
        text, ending, tokens = "", Ending.INTERRUPTED, 0
        with closing(voice.stream(prompt, sampling, sampling.seed_of(0))) as pieces:
            for piece in pieces:
                text, tokens = text + piece.text, piece.tokens
                if piece.done:
                    ending = Ending.of(piece.stopped, tokens, sampling.max_tokens)
                if shown := parts.feed(piece.text).answer:
                    yield shown
        if rest := parts.finish().answer:
            yield rest
        whole = take_apart(text, voice.think_tags, opened=opened)
        complete = ending is Ending.COMPLETE
        return Reply(whole.answer, whole.thinking, voice.label, complete, ending.value, tokens, len(prompt))

    def _refuse_while_answering(self) -> None:
        if self._answering:
            raise MlxLoraError("an answer is still being streamed", "read it to its end, or close() its generator")


def _messages(asked: Asked) -> list[Message]:
    """The messages of what was asked, by the rules for rows of chat; a developer's are system messages, as in serve.

    Raises: DataError.
    """
    given = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
    row = {"messages": [*given, {"role": "assistant", "content": "…"}]}  # a row ends with its answer
    try:
        return list(record_from_row(row, "messages").messages[:-1])
    except RowError as error:
        raise DataError(f"what is asked: {error}", "give a text, or messages with role and content") from error
