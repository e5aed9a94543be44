"""A request's JSON to what is asked: strict types, known fields, limits. Knows nothing of models or HTTP.

Fields follow OpenAI's API. What this server cannot do is refused where it would change the answer, and accepted where
a client only says that it does not want it.
"""

import difflib
import json
from itertools import takewhile
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError, model_validator

from mlx_lora.serving.limits import Limits
from mlx_lora.serving.refusals import Refusal, bad_request

# Fields that say nothing about the answer's text.
_SILENT = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "parallel_tool_calls"),
    }
)
# Fields that this server does not have, and the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
}
_TOP_LOGPROBS = 20

Asked = TypeVar("Asked", bound=BaseModel)
Number = Annotated[float, Field(strict=True)]
Text = StrictStr


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)

    include_usage: StrictBool | None = None

    @model_validator(mode="after")
    def _refuse_what_is_not_done(self) -> "_StreamOptions":
        for name, value in (self.model_extra or {}).items():
            if value not in (None, False):
                said = f"This server does not support {name[:80]!r} in 'stream_options': leave it out."
                raise bad_request(said, param="stream_options", code="unsupported_parameter")
        return self


class _Asked(BaseModel):
    """What both endpoints share."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    model: Text
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Text | list[Text] | None = None
    n: Annotated[StrictInt, Field(ge=1)] | None = None
    stream: StrictBool | None = None
    stream_options: _StreamOptions | None = None

    @model_validator(mode="after")
    def _refuse_what_is_not_done(self) -> "_Asked":
        for name, value in (self.model_extra or {}).items():
            if value is None or name in _SILENT or any(value == neutral for neutral in _NEUTRAL.get(name, ())):
                continue
            if name in _NEUTRAL:
                raise bad_request(
                    f"This server does not support {name!r}: leave it out.", param=name, code="unsupported_parameter"
                )
            near = difflib.get_close_matches(name, [*type(self).model_fields, *_NEUTRAL], n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise bad_request(f"Unknown field {name[:80]!r}.{hint}", param=name[:80], code="unknown_parameter")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def with_usage(self) -> bool:
        """Whether a stream's last chunk says how many tokens there were."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    type: Literal["text"]
    text: Text


class ChatMessage(BaseModel):
    """One turn of a conversation. A client may send an answer back with its empty fields."""

    model_config = ConfigDict(extra="allow", frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[_Part]

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_text(cls, message: Any) -> Any:
        """Before anything else is looked at: beside tool calls there is no content, and an image is no text part."""
        if not isinstance(message, dict):
            return message
        for name, value in message.items():
            if name not in cls.model_fields and value not in (None, [], {}, ""):
                raise bad_request(f"Messages with {name[:80]!r} are not supported.", param="messages")
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind != "text":
                raise bad_request(f"Message parts of type {kind[:80]!r} are not supported.", param="messages")
        return message

    def message(self) -> dict[str, str]:
        """Role and text; a developer's is a system message, as other servers have it: few templates know the role."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(_Asked):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=_TOP_LOGPROBS)] | None = None

    @property
    def answer_tokens(self) -> int | None:
        """The longest answer asked for. Raises: Refusal where two of its names say two things."""
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            said = f"'max_tokens' is {self.max_tokens} and 'max_completion_tokens' {self.max_completion_tokens}"
            raise bad_request(f"{said}: give one of them.", param="max_tokens")
        return self.max_completion_tokens or self.max_tokens

    @property
    def likelihoods(self) -> int | None:
        """How many likely tokens to name beside each token of the answer; None for no likelihoods at all."""
        if not self.logprobs and self.top_logprobs:
            raise bad_request("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Asked):
    """POST /v1/completions."""

    prompt: (
        Annotated[Text, Field(min_length=1)]
        | Annotated[list[Annotated[StrictInt, Field(ge=0)]], Field(min_length=1)]
        | Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=1)]
        | Annotated[list[Annotated[list[Annotated[StrictInt, Field(ge=0)]], Field(min_length=1)]], Field(min_length=1)]
    )
    logprobs: Annotated[StrictInt, Field(ge=0, le=_TOP_LOGPROBS)] | None = None

    @property
    def answer_tokens(self) -> int | None:
        """The longest answer asked for."""
        return self.max_tokens

    @property
    def likelihoods(self) -> int | None:
        """How many likely tokens to name beside each token of the answer; None for no likelihoods at all."""
        return self.logprobs

    @property
    def prompts(self) -> "list[str | list[int]]":
        """Each prompt, as text or as tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class AdapterRequest(BaseModel):
    """POST /v1/adapters: a name in the folder that the server was given, never a path."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[Text, Field(min_length=1, max_length=200)]


def read_request(body: bytes, kind: type[Asked], limits: Limits) -> Asked:
    """The request in `body`. Raises: Refusal with the first fault and its field."""
    try:
        asked = kind.model_validate(_read_json(body, limits))
    except ValidationError as error:
        raise _first_fault(error) from error
    if isinstance(asked, (ChatRequest, CompletionRequest)):
        _check_limits(asked, limits)
    return asked


def _read_json(body: bytes, limits: Limits) -> dict[str, Any]:
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise _too_deep(limits) from error
    except ValueError as error:  # no UTF-8, no JSON, or a number of thousands of digits
        raise bad_request("The body is not JSON.", code="invalid_json") from error
    level: list[Any] = [value]
    for _ in range(limits.json_depth):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise _too_deep(limits)
    if not isinstance(value, dict):
        raise bad_request("The body is not a JSON object.", code="invalid_json")
    if _has_half_characters(value):
        raise bad_request("The body has half of a surrogate pair in a text.", code="invalid_json")
    return value


def _has_half_characters(value: Any) -> bool:
    """Whether a text in it cannot be encoded: JSON can spell half a character."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _too_deep(limits: Limits) -> Refusal:
    return bad_request(f"The body is nested more than {limits.json_depth} levels deep.", code="invalid_json")


def _first_fault(error: ValidationError) -> Refusal:
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    places = [[str(part) for part in fault["loc"]] for fault in faults]
    # Of a field that takes several types pydantic names every try; the field and one sentence are enough.
    field = places[0][0] if places[0] else None
    alike = places[0][: 2 if "".join(places[0][1:2]).isdigit() else 1]  # of several messages the first
    same = [fault for fault, place in zip(faults, places, strict=True) if place[: len(alike)] == alike]
    columns = zip(*(place for place in places if place[: len(alike)] == alike), strict=False)
    shared = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
    where = ".".join(part for part in shared if part.isidentifier() or part.isdigit())
    message = same[0]["msg"] if len(same) == 1 else f"not of the form that {field!r} takes"
    return bad_request(f"{where or 'body'}: {message}.", param=field)


def _check_limits(asked: ChatRequest | CompletionRequest, limits: Limits) -> None:
    count = (asked.n or 1) * (len(asked.prompts) if isinstance(asked, CompletionRequest) else 1)
    if count > limits.choices:
        raise bad_request(f"{count} answers asked for in one request, at most {limits.choices}.", param="n")
    if (asked.answer_tokens or 0) > limits.answer_tokens:
        name = "max_tokens" if asked.max_tokens is not None else "max_completion_tokens"
        raise bad_request(f"{name} is {asked.answer_tokens}, this server allows {limits.answer_tokens}.", param=name)
    if len(asked.stops) > limits.stops:
        raise bad_request(f"{len(asked.stops)} stop texts, at most {limits.stops}.", param="stop")
    if any(not 0 < len(stop) <= limits.stop_characters for stop in asked.stops):
        raise bad_request(f"A stop text has 1 to {limits.stop_characters} characters.", param="stop")
    asked.likelihoods  # noqa: B018  (says what does not go together)
