"""One answer on its way: what is asked of the engine, and where its tokens go. Knows nothing of MLX or HTTP."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mlx_lora.serving.answer import Delta, Finished
from mlx_lora.serving.refusals import Refusal
from mlx_lora.serving.roster import Speaker

Event = Delta | Finished | Refusal
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Wanted:
    """How an answer is drawn and where it ends. seed None is random. likelihoods: tokens to name, None: none.

    continues: its text goes on from the prompt's.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stops: tuple[str, ...] = ()
    likelihoods: int | None = None
    continues: bool = False


@dataclass(eq=False)
class Job:
    """A prompt, who answers it and how. `choice` is its place among the answers of its request."""

    speaker: Speaker
    prompt: Sequence[int]
    wanted: Wanted
    choice: int
    deadline: float  # time.monotonic()
    answers: "Answers"
    number: int = field(default_factory=lambda: next(_NUMBERS))

    @property
    def tokens(self) -> int:
        """The most tokens that its row can hold."""
        return len(self.prompt) + self.wanted.max_tokens


class Answers:
    """The answers of one request as they come, in the event loop that asked for them."""

    def __init__(self, cancel: Callable[["Answers"], None]) -> None:
        self.jobs: list[Job] = []
        self._cancel = cancel
        self._events: asyncio.Queue[tuple[int, Event] | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._open = 0

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that events are delivered to."""
        return self._loop

    def add(self, job: Job) -> None:
        """One more answer to wait for."""
        self.jobs.append(job)
        self._open += 1

    def deliver(self, choice: int, event: Event) -> None:
        """Take an event; called in the loop."""
        self._events.put_nowait((choice, event))

    def give_up(self) -> None:
        """Nobody listens any more: free the rows, and let whoever waits for `next` see the end."""
        self._cancel(self)
        self._events.put_nowait(None)

    async def next(self) -> list[tuple[int, Event]]:
        """What has come since the last call, at least one event; empty at the end.

        Raises: Refusal when an answer could not be finished.
        """
        if not self._open:
            return []
        found = [await self._events.get()]
        while not self._events.empty():
            found.append(self._events.get_nowait())
        events = []
        for each in found:
            if each is None:
                self._open = 0
                return []
            if isinstance(each[1], Refusal):
                self.give_up()
                raise each[1]
            self._open -= isinstance(each[1], Finished)
            events.append(each)
        return events
