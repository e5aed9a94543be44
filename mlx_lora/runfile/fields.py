"""The settings of RunConfig, one by one: path, type in words, default, description. Knows nothing of files."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from mlx_lora.config import RunConfig, Settings

JsonSchema = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """A group of settings; the one named "" holds the settings at the top."""

    name: str
    description: str
    model: type[Settings]


@dataclass(frozen=True)
class Setting:
    """One setting of the run file; `default` is meaningless where `required`."""

    section: str
    name: str
    description: str
    kind: str  # "a positive integer"
    required: bool
    default: Any
    schema: JsonSchema

    @property
    def path(self) -> str:
        return f"{self.section}.{self.name}" if self.section else self.name


@cache
def config_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a run file, for editors."""
    schema = RunConfig.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "mlx-lora run file"}


@cache
def all_sections() -> Mapping[str, Section]:
    """Every section by name, in the order of the schema; "" is first."""
    sections = {"": Section("", _first_paragraph(RunConfig), RunConfig)}
    for name, info in RunConfig.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Settings):
            sections[name] = Section(name, _first_paragraph(info.annotation), info.annotation)
    return MappingProxyType(sections)


@cache
def all_settings() -> Mapping[str, Setting]:
    """Every setting by its dotted path ("lora.rank", "model"), in the order of the schema."""
    settings: dict[str, Setting] = {}
    for name in RunConfig.model_fields:
        sections = [name] if name in all_sections() else [""]
        for section in sections:
            model = all_sections()[section].model
            names = [name] if section == "" else list(model.model_fields)
            for setting in (_setting(section, model, each) for each in names):
                settings[setting.path] = setting
    return MappingProxyType(settings)


def _setting(section: str, model: type[Settings], name: str) -> Setting:
    info = model.model_fields[name]
    schema = model.model_json_schema()["properties"][name]
    required = info.is_required()
    default = None if required else info.get_default(call_default_factory=True)
    return Setting(section, name, info.description or "", kind_in_words(schema), required, default, schema)


def kind_in_words(schema: JsonSchema) -> str:
    """What values `schema` accepts: `a positive integer`, `error, drop or prompt`, `text or null`."""
    return _one_of(_alternatives(schema))


def _alternatives(schema: JsonSchema) -> list[str]:
    if "anyOf" in schema:
        return [word for each in schema["anyOf"] for word in _alternatives(each)]
    if "enum" in schema:
        return [str(value) for value in schema["enum"]]
    if "const" in schema:
        return [str(schema["const"])]
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return [_number_in_words(schema)]
    if kind == "array":
        items = schema["items"]
        return ["a list of " + (", ".join(items["enum"]) if "enum" in items else "text")]
    if kind == "object":
        return [f"a mapping of names to {kind_in_words(schema['additionalProperties'])}"]
    return [{"string": "text", "boolean": "true or false", "null": "null"}[str(kind)]]


def literals(schema: JsonSchema) -> list[str]:
    """The words that `schema` accepts, in its lists too: ["error", "drop", "prompt"]; empty for free values."""
    if "enum" in schema:
        return [str(value) for value in schema["enum"]]
    if "const" in schema:
        return [str(schema["const"])]
    inner = [*schema.get("anyOf", []), *([schema["items"]] if "items" in schema else [])]
    return [literal for each in inner for literal in literals(each)]


def _number_in_words(schema: JsonSchema) -> str:
    noun = "integer" if schema["type"] == "integer" else "number"
    article = "an" if noun == "integer" else "a"
    low, high, below = schema.get("minimum"), schema.get("maximum"), schema.get("exclusiveMaximum")
    if schema.get("exclusiveMinimum") == 0 and high is None and below is None:
        return f"a positive {noun}"
    if low is None:
        return f"{article} {noun}"
    if below is not None and noun == "integer":
        return f"an integer from {low} to {below - 1}"
    if below is not None:
        return f"{article} {noun} from {low:g} to below {below:g}"
    return f"{article} {noun} " + (f"from {low:g} to {high:g}" if high is not None else f"of {low:g} or more")


def _one_of(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


def _first_paragraph(model: type[Settings]) -> str:
    return (model.__doc__ or "").split("\n\n")[0]
