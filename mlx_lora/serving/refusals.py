"""What a client is told when a request cannot be answered, in OpenAI's error format. Nothing of the inside is in it."""

import difflib
from collections.abc import Iterable
from typing import Any


class Refusal(Exception):  # noqa: N818  (what a client is told; most are no fault of ours)
    """A request that is not answered: HTTP status, OpenAI's type and code, the field it is about, and a sentence."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The JSON object that OpenAI's clients read."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> Refusal:
    """A request that has to be changed before it can be answered."""
    return Refusal(400, message, param=param, code=code)


def unknown_model(name: str, known: Iterable[str]) -> Refusal:
    """No base and no adapter of this name: says which there are, and the nearest."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return Refusal(
        404,
        f"The model {_short(name)!r} does not exist here. {hint}There are: {', '.join(names)}.",
        code="model_not_found",
        param="model",
    )


def overloaded(waiting: int, seconds: int) -> Refusal:
    """The queue is full; `seconds` is when to try again."""
    return Refusal(
        429,
        f"{waiting} answers are waiting already. Try again in {seconds} s.",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(seconds)},
    )


def too_many(answers: int, places: int) -> Refusal:
    """More answers in one request than the server ever takes on: trying again would not help."""
    return bad_request(f"{answers} answers asked for in one request; this server has room for {places}.", param="n")


def timed_out(seconds: float) -> Refusal:
    """The answer was not finished in time."""
    return Refusal(504, f"The answer was not finished within {seconds:g} s.", code="timeout")


def stopping() -> Refusal:
    """The server ends: running answers are finished, new ones are not begun."""
    return Refusal(503, "The server is shutting down.", code="shutting_down", headers={"Retry-After": "5"})


def failed(request: str) -> Refusal:
    """A fault of ours; the log has it under the request's number."""
    return Refusal(500, f"The server failed on this request; its log has it as {request}.", code="internal_error")


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"
