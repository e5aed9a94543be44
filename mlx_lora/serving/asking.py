"""From a request to its answers: who is asked, the prompts as tokens, the rows they wait for. Knows nothing of HTTP."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from mlx_lora.serving.answer import Delta, Finished
from mlx_lora.serving.engine import Engine
from mlx_lora.serving.job import Answers, Job, Wanted
from mlx_lora.serving.metrics import Metrics
from mlx_lora.serving.replies import Choice, Reply, TextReply
from mlx_lora.serving.requests import ChatRequest, CompletionRequest
from mlx_lora.serving.residents import Residents
from mlx_lora.serving.roster import Speaker


class Asking:
    """One request on its way through the engine, and what the log says of it."""

    def __init__(self, engine: Engine, residents: Residents, metrics: Metrics) -> None:
        self._engine = engine
        self._residents = residents
        self._metrics = metrics
        self._arrived = time.monotonic()
        self.first_token_seconds: float | None = None
        self.ends: dict[int, Finished] = {}  # by the place of the answer
        self.speaker: Speaker | None = None
        self.answers: Answers | None = None

    async def begin(self, asked: ChatRequest | CompletionRequest) -> Reply:
        """Put the request's answers into the queue; return the form of its reply. Raises: Refusal."""
        speaker = self.speaker = self._residents.speaker(asked.model)
        prompts = await asyncio.to_thread(_prompts, speaker, asked)
        limits = self._engine.limits
        longest = asked.answer_tokens or limits.default_answer_tokens
        answers = self.answers = Answers(self._engine.cancel)
        for prompt in prompts:
            room = speaker.room(prompt, longest)
            for _ in range(asked.n or 1):
                wanted = Wanted(
                    room,
                    asked.temperature or 0.0,
                    asked.top_p or 1.0,
                    asked.seed,
                    asked.stops,
                    asked.likelihoods,
                    continues=isinstance(asked, CompletionRequest),
                )
                deadline = self._arrived + limits.request_seconds
                answers.add(Job(speaker, prompt, wanted, len(answers.jobs), deadline, answers))
        self._engine.submit(answers.jobs)
        form = TextReply if isinstance(asked, CompletionRequest) else Reply
        with_likelihoods = asked.likelihoods is not None
        return form(speaker.name, speaker.tokenizer.spell, with_likelihoods, len(prompts))

    async def events(self) -> AsyncIterator[tuple[int, Delta | Finished]]:
        """The portions of all answers as they come, with the answer's place. Ends early where the client has gone.

        Raises: Refusal.
        """
        if self.answers is None or self.speaker is None:
            raise RuntimeError("nothing was asked")
        name = self.speaker.name
        while events := await self.answers.next():
            if self.first_token_seconds is None:
                self.first_token_seconds = time.monotonic() - self._arrived
                self._metrics.observe("first_token_seconds", self.first_token_seconds)
            for place, event in events:
                if isinstance(event, Finished):
                    self.ends[place] = event
                    self._metrics.count("answers_total", model=name, reason=event.reason)
                    self._metrics.count("prompt_tokens_total", event.prompt_tokens, model=name)
                    self._metrics.count("reused_tokens_total", event.reused_tokens, model=name)
                    self._metrics.count("answer_tokens_total", event.answer_tokens, model=name)
                if not isinstance(event, Exception):
                    yield place, event

    async def choices(self) -> list[Choice] | None:
        """All answers when they are finished; None where the client has gone. Raises: Refusal."""
        if self.answers is None:
            raise RuntimeError("nothing was asked")
        choices = [Choice() for _ in self.answers.jobs]
        async for place, event in self.events():
            if isinstance(event, Finished):
                choices[place].end = event
            else:
                choices[place].text.append(event.text)
                choices[place].likelihoods += event.likelihoods
        return choices if all(choice.end for choice in choices) else None

    @property
    def ordered_ends(self) -> list[Finished]:
        """The ends of the finished answers, in the order of their places."""
        return [self.ends[place] for place in sorted(self.ends)]

    @property
    def complete(self) -> bool:
        """Whether all answers are finished."""
        return self.answers is not None and len(self.ends) == len(self.answers.jobs)

    def give_up(self) -> None:
        """The client has gone, or the reply failed: free the rows that are still its own."""
        if self.answers is not None and not self.complete:
            self.answers.give_up()

    def facts(self) -> dict[str, Any]:
        """What the log keeps: counts, times and ends."""
        first = self.first_token_seconds
        return {
            "prompt_tokens": sum(end.prompt_tokens for end in self.ends.values()),
            "reused_tokens": sum(end.reused_tokens for end in self.ends.values()),
            "answer_tokens": sum(end.answer_tokens for end in self.ends.values()),
            "finish": [end.reason for end in self.ordered_ends],
            "first_token_seconds": None if first is None else round(first, 4),
        }


def _prompts(speaker: Speaker, asked: ChatRequest | CompletionRequest) -> Sequence[list[int]]:
    if isinstance(asked, ChatRequest):
        return [speaker.chat_prompt([message.message() for message in asked.messages])]
    return [speaker.plain_prompt(prompt) for prompt in asked.prompts]
