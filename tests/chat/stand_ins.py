"""Stand-ins for what a chat needs: a voice that says what it is told to, a reader of written entries."""

import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlx_lora.chat.places import find_adapter
from mlx_lora.chat.sampling import Sampling
from mlx_lora.errors import AdapterError, ModelError
from mlx_lora.lora.adapter import AppliedAdapter
from mlx_lora.lora.rendering import Rendering
from mlx_lora.model.stream import Piece


class ScriptedVoice:
    """Gives `replies` one after another, a piece for every two characters; the base says them in capitals.

    `interrupt_after`: Ctrl-C comes with this piece of the next answer; 0 is Ctrl-C pressed twice before the first.
    """

    think_tags = ("<think>", "</think>")

    def __init__(self, *replies: str, adapters: Iterable[str] = (), context: int | None = 1000) -> None:
        self.replies = list(replies)
        self.adapters = set(adapters)
        self.context = context
        self.attached: Any = None
        self.enabled = False
        self.rendering = Rendering()
        self.base = SimpleNamespace(identity=SimpleNamespace(name="tiny"), compute="float32")
        self.seen: list[list[dict[str, Any]]] = []
        self.seeds: list[int] = []
        self.interrupt_after: int | None = None
        self.forgotten = 0

    @property
    def label(self) -> str:
        return str(self.attached.label) if self.attached and self.enabled else "base"

    def use(self, who: str | Path) -> None:
        folder = find_adapter(who) if isinstance(who, str) else who
        if folder.name not in self.adapters:
            raise AdapterError(f"{folder}: belongs to another base")
        applied = AppliedAdapter(tuple(f"m{number}" for number in range(7)), 7, 0.01, ("a note",))
        self.attached = SimpleNamespace(label=folder.name, line=applied.line, size="7/7 modules", notes=applied.notes)
        self.enabled = True

    @property
    def choices(self) -> tuple[str, ...]:
        return () if self.attached is None else (self.attached.label,)

    def lookup(self, _name: str) -> Any:
        return self.attached

    def answer_as(self, _name: str) -> None:
        self.switch(True)

    @contextmanager
    def aside(self) -> Iterator[None]:
        before = self.enabled
        yield
        self.enabled = before

    def switch(self, enabled: bool) -> None:
        if self.attached is None:
            raise AdapterError("no adapter is loaded")
        self.enabled = enabled

    def render(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        self.seen.append([dict(message) for message in messages])
        return list(range(sum(len(message["content"]) for message in messages)))

    def opens_thinking(self, prompt: Sequence[int]) -> bool:
        return False

    def stream(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> Generator[Piece, None, None]:
        if self.context is not None and len(prompt) >= self.context:
            raise ModelError("the conversation is too long")
        self.seeds.append(seed)
        room = sampling.max_tokens if self.context is None else min(sampling.max_tokens, self.context - len(prompt))
        reply = self.replies.pop(0)
        return self._pieces(reply if self.attached is None or self.enabled else reply.upper(), room)

    def forget(self) -> None:
        self.forgotten += 1

    def _pieces(self, reply: str, limit: int) -> Generator[Piece, None, None]:
        interrupt, self.interrupt_after = self.interrupt_after, None
        count = 0
        if interrupt == 0:
            raise KeyboardInterrupt
        for start in range(0, len(reply), 2):
            if count == limit:
                yield Piece("", None, True, False, count, 0.5, 0)
                return
            count += 1
            if count == interrupt:
                signal.raise_signal(signal.SIGINT)
            yield Piece(reply[start : start + 2], 7, False, False, count, 0.5, 0)
        yield Piece("", 2, True, True, count, 0.5, 0)


class WrittenEntries:
    """A reader that gives these entries and then ends; an exception among them is raised."""

    def __init__(self, *entries: str | BaseException) -> None:
        self.entries = list(entries)
        self.labels: list[str] = []

    def read(self, label: str) -> str:
        self.labels.append(label)
        entry = self.entries.pop(0) if self.entries else EOFError()
        if isinstance(entry, BaseException):
            raise entry
        return entry
