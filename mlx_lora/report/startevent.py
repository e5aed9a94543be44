"""The first event of a metrics.jsonl, held against the types that a page counts on. Knows nothing of pages.

Whatever is missing, or new, is read around: other versions wrote other facts. What is there has the type it had.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mlx_lora.errors import MlxLoraError

Count = Annotated[int, Field(ge=0, lt=2**53)]  # beyond, JSON's numbers are no longer exact


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Split(_Part):
    rows: Count | None = None
    examples: Count | None = None
    tokens: Count | None = None
    trained_tokens: Count | None = None
    duplicates: Count | None = None
    length_quantiles: dict[str, int | float] = {}


class _EnginePart(_Part):
    name: str
    active: bool
    line: str


class _Facts(_Part):
    started: str | None = None
    total_steps: Count | None = None
    steps_per_epoch: Annotated[Count, Field(gt=0)] | None = None
    ranks: Annotated[Count, Field(gt=0)] | None = None
    compute: str | None = None
    modules: Count | None = None
    trainable_parameters: Count | None = None
    total_parameters: Annotated[Count, Field(gt=0)] | None = None
    data: dict[str, _Split] = {}
    data_warnings: list[str] | None = None
    engine: list[_EnginePart] | None = None
    machine: dict[str, str] | None = None

    @model_validator(mode="after")
    def _trained_of_all(self) -> "_Facts":
        if self.trainable_parameters and self.total_parameters is None:
            raise ValueError("there are trainable_parameters, but no total_parameters")
        return self


class _Fingerprint(_Part):
    ranks: Annotated[Count, Field(gt=0)] | None = None


class _Start(_Part):
    model: str | None = None
    revision: str | None = None
    identity: dict[str, Any] | None = None
    system_prompt: str | None = None
    chat_template_sha256: str | None = None
    data_sha256: dict[str, str] | None = None
    versions: dict[str, str] | None = None
    fingerprint: _Fingerprint = _Fingerprint()
    run: _Facts = _Facts()


def require_start_event(event: Mapping[str, Any], place: str) -> None:
    """Raises: MlxLoraError that names `place` and the first fact of another type."""
    try:
        _Start.model_validate(dict(event))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = ".".join(map(str, fault["loc"]))
        said = fault["msg"].removeprefix("Value error, ")
        raise MlxLoraError(
            f"{place}: {name} of the {event.get('event', 'start')} event: {said[0].lower()}{said[1:]}",
            "put back what the run wrote there, or delete the line: the page then does without its facts",
        ) from error
