"""Tokens of an answer to text that may be sent: whole characters, stop texts, likelihoods. Knows nothing of batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


class TextStream(Protocol):
    """Tokens in, finished text out."""

    def add(self, token: int) -> str:
        """The text that `token` finishes."""

    def finish(self) -> str:
        """What is left at the end."""


@dataclass(frozen=True)
class Likelihood:
    """ln p of a token of the answer, and of the likeliest tokens in its place; `after`: the token before it, if any."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    after: int | None = None


@dataclass(frozen=True)
class Delta:
    """A portion of an answer: text, and the likelihoods of the tokens that it ends with where they were asked for."""

    text: str
    likelihoods: tuple[Likelihood, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The end of an answer. reason: "stop" or "length". Tokens: of the prompt, of these reused, of the answer."""

    reason: str
    prompt_tokens: int
    reused_tokens: int
    answer_tokens: int


@dataclass
class AnswerText:
    """The text of an answer as it grows. What may be the beginning of a stop text is held back until it is not."""

    decoder: TextStream
    stops: Sequence[str] = ()
    stopped: bool = False  # by a stop text
    _held: str = ""
    _likelihoods: list[Likelihood] = field(default_factory=list)

    def add(self, token: int, likelihood: Likelihood | None = None) -> Delta:
        """What may be sent after this token."""
        if likelihood is not None:
            self._likelihoods.append(likelihood)
        return self._release(self.decoder.add(token), final=False)

    def finish(self) -> Delta:
        """What is left at the end."""
        return self._release(self.decoder.finish(), final=True)

    def _release(self, text: str, *, final: bool) -> Delta:
        if self.stopped:
            return Delta("")
        text = self._held + text
        found = [place for place in (text.find(stop) for stop in self.stops) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return self._delta(text[: min(found)])
        keep = 0 if final else _beginning(text, self.stops)
        self._held = text[len(text) - keep :]
        sent = text[: len(text) - keep]
        return self._delta(sent) if sent or final else Delta("")

    def _delta(self, text: str) -> Delta:
        likelihoods = tuple(self._likelihoods)
        self._likelihoods.clear()
        return Delta(text, likelihoods)


def _beginning(text: str, stops: Sequence[str]) -> int:
    """Number of characters at the end of `text` that begin a stop text."""
    longest = min(len(text), max((len(stop) - 1 for stop in stops), default=0))
    return next((size for size in range(longest, 0, -1) if any(s.startswith(text[-size:]) for s in stops)), 0)
