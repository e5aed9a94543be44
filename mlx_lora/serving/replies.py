"""Answers as OpenAI's JSON, whole and in chunks. Knows nothing of models, batches or HTTP."""

import itertools
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from mlx_lora.serving.answer import Delta, Finished, Likelihood


class Spell(Protocol):
    """A token's own text."""

    def __call__(self, token: int, after: int | None = None) -> str:
        """As it follows token `after`."""


@dataclass
class Choice:
    """One answer as it has come so far."""

    text: list[str] = field(default_factory=list)
    likelihoods: list[Likelihood] = field(default_factory=list)
    end: Finished | None = None


@dataclass
class Reply:
    """What all forms share: the reply's number, time and model, and how tokens are spelled."""

    model: str
    spell: Spell
    likelihoods: bool
    prompts: int = 1  # of the request: `n` choices each
    prefix: str = "chatcmpl-"
    whole: str = "chat.completion"
    chunk: str = "chat.completion.chunk"
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = self.id or f"{self.prefix}{uuid.uuid4().hex}"

    def complete(self, choices: list[Choice]) -> dict[str, Any]:
        """The reply to a request without `stream`."""
        body = [self._whole_choice(place, choice) for place, choice in enumerate(choices)]
        ends = [choice.end for choice in choices if choice.end is not None]
        return {**self._head(self.whole), "choices": body, "usage": self.usage(ends)}

    def first(self, place: int) -> dict[str, Any] | None:
        """The chunk that opens an answer, where there is one."""
        return self._chunk(place, {"delta": {"role": "assistant", "content": ""}})

    def part(self, place: int, delta: Delta) -> dict[str, Any]:
        """The chunk of a portion."""
        content = {"delta": {"content": delta.text}}
        return self._chunk(place, {**content, "logprobs": self._logprobs(delta.likelihoods)})

    def last(self, place: int, end: Finished) -> dict[str, Any]:
        """The chunk that closes an answer."""
        return self._chunk(place, {"delta": {}}, end.reason)

    def totals(self, ends: Iterable[Finished]) -> dict[str, Any]:
        """The chunk behind all others, for a client that asked for it."""
        return {**self._head(self.chunk), "choices": [], "usage": self.usage(ends)}

    def usage(self, ends: Iterable[Finished]) -> dict[str, Any]:
        """Tokens of all answers; a prompt with several answers counts once."""
        ends = list(ends)
        of_prompts = ends[:: max(1, len(ends) // self.prompts)]
        prompt = sum(end.prompt_tokens for end in of_prompts)
        answer = sum(end.answer_tokens for end in ends)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": sum(end.reused_tokens for end in of_prompts)},
        }

    def _whole_choice(self, place: int, choice: Choice) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(choice.text), "refusal": None}
        return {
            "index": place,
            "message": message,
            "logprobs": self._logprobs(choice.likelihoods),
            "finish_reason": choice.end.reason if choice.end else None,
        }

    def _logprobs(self, likelihoods: Iterable[Likelihood]) -> dict[str, Any] | None:
        if not self.likelihoods:
            return None
        return {
            "content": [
                {
                    **self._named(each.token, each.logprob, each.after),
                    "top_logprobs": [self._named(token, logprob, each.after) for token, logprob in each.top],
                }
                for each in likelihoods
            ],
            "refusal": None,
        }

    def _named(self, token: int, logprob: float, after: int | None) -> dict[str, Any]:
        text = self.spell(token, after)
        # Of a part of a character only the model's tokenizer knows the bytes; OpenAI's format has null for that.
        spelled = None if "\ufffd" in text else list(text.encode())
        return {"token": text, "logprob": logprob, "bytes": spelled}

    def _chunk(self, place: int, content: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": place, "logprobs": None, **content, "finish_reason": reason}
        return {**self._head(self.chunk), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


@dataclass
class TextReply(Reply):
    """The forms of /v1/completions."""

    prefix: str = "cmpl-"
    whole: str = "text_completion"
    chunk: str = "text_completion"
    _spelled: dict[int, int] = field(default_factory=dict)  # characters of an answer's tokens so far, by its place

    def first(self, place: int) -> dict[str, Any] | None:
        """Plain texts begin without a chunk of their own."""
        return None

    def part(self, place: int, delta: Delta) -> dict[str, Any]:
        """The chunk of a portion."""
        begin = self._spelled.get(place, 0)
        logprobs = self._logprobs(delta.likelihoods, begin)
        self._spelled[place] = begin + sum(map(len, logprobs["tokens"] if logprobs else ()))
        return self._chunk(place, {"text": delta.text, "logprobs": logprobs})

    def last(self, place: int, end: Finished) -> dict[str, Any]:
        """The chunk that closes an answer."""
        return self._chunk(place, {"text": ""}, end.reason)

    def _whole_choice(self, place: int, choice: Choice) -> dict[str, Any]:
        return {
            "index": place,
            "text": "".join(choice.text),
            "logprobs": self._logprobs(choice.likelihoods),
            "finish_reason": choice.end.reason if choice.end else None,
        }

    def _logprobs(self, likelihoods: Iterable[Likelihood], begin: int = 0) -> dict[str, Any] | None:
        if not self.likelihoods:
            return None
        each = list(likelihoods)
        texts = [self.spell(one.token, one.after) for one in each]
        offsets = list(itertools.accumulate(map(len, texts), initial=begin))
        return {
            "tokens": texts,
            "token_logprobs": [one.logprob for one in each],
            "top_logprobs": [self._by_text(one) for one in each],
            "text_offset": offsets[:-1],
        }

    def _by_text(self, one: Likelihood) -> dict[str, float]:
        found: dict[str, float] = {}
        for token, logprob in one.top:  # the likeliest first: of two tokens that are spelled alike it stands for both
            found.setdefault(self.spell(token, one.after), logprob)
        return found
