"""What an adapter's config says of its prompts and of its base: read once, for chat, eval and fuse alike.

Knows nothing of tensors or models; imports no MLX.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from mlx_lora.config import DataSettings
from mlx_lora.errors import AdapterError
from mlx_lora.lora.adapter_config import CONFIG_FILE


@dataclass(frozen=True)
class Rendering:
    """How messages become a prompt: the adapter's system prompt, its own template (None: the tokenizer's), switches.

    row_formats: the formats of the rows that it was trained on, the commonest first; they matter without a template.
    """

    system_prompt: str | None = None
    chat_template: str | None = None
    chat_template_args: Mapping[str, Any] = field(default_factory=dict)
    row_formats: tuple[str, ...] = ()
    place: str = field(default="the adapter's template", compare=False)  # of the template, for its faults

    @property
    def key(self) -> str:
        """Equal for equal prompts."""
        return json.dumps(
            [self.settings().model_dump(), self.chat_template, self.row_formats], sort_keys=True, ensure_ascii=True
        )

    def settings(self, *, system_prompt: bool = True) -> DataSettings:
        """The data settings that render_prompt wants; without the system prompt where it comes as a message."""
        system = self.system_prompt if system_prompt else None
        values = {"train": "as trained", "system_prompt": system, "chat_template_args": dict(self.chat_template_args)}
        return DataSettings.model_validate(values)

    def row_format(self, own: str) -> str:
        """The format in which to ask a row of format `own`: its own if the adapter knows it, else the commonest."""
        known = own if own in self.row_formats or not self.row_formats else self.row_formats[0]
        return "prompt/completion" if known == "text" else known  # text goes on where the prompt ends


def rendering_of(config: Mapping[str, Any], folder: Path) -> Rendering:
    """How the prompts of this adapter are written; plain for one that mlx-lm wrote. Raises: AdapterError."""
    facts = config.get("mlx_lora") or {}
    formats = facts.get("row_formats") or []
    for name in ("system_prompt", "chat_template"):
        if not (facts.get(name) is None or _is_text(facts[name])):
            raise _damaged(folder, name, "text or null")
    if not isinstance(formats, list) or not all(map(_is_text, formats)):
        raise _damaged(folder, "row_formats", "a list of texts")
    rendering = Rendering(
        facts.get("system_prompt"),
        facts.get("chat_template"),
        facts.get("chat_template_args") or {},
        tuple(formats),
        f"{folder / CONFIG_FILE}: mlx_lora.chat_template",
    )
    try:
        rendering.settings()
    except (TypeError, ValueError) as error:
        raise _damaged(folder, "chat_template_args", "an object of texts, numbers and true or false") from error
    return rendering


def model_of(config: Mapping[str, Any], folder: Path) -> tuple[str, str | None]:
    """Name and revision of the base that this adapter was trained on. Raises: AdapterError when it does not say."""
    facts = config.get("mlx_lora") or {}
    name = facts.get("model", config.get("model"))  # mlx-lm writes its own `model`
    revision = facts.get("revision")
    if not _is_text(name) or not (revision is None or _is_text(revision)):
        raise AdapterError(
            f"{folder / CONFIG_FILE}: does not say which base it was trained on", "name the base with --model"
        )
    return name, revision


def choose_base(
    model: str | None, revision: str | None, own: Callable[[], tuple[str, str | None]]
) -> tuple[str, str | None]:
    """Name and revision of the base: `model` where it is given, else what `own` gives, at `revision` where that is."""
    if model is not None:
        return model, revision
    name, stored = own()
    return name, revision or stored


def _is_text(value: Any) -> TypeGuard[str]:
    """Whether it is a text that a tokenizer or a path can take: JSON can spell half of a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _damaged(folder: Path, name: str, expected: str) -> AdapterError:
    return AdapterError(f"{folder / CONFIG_FILE}: mlx_lora.{name}: expected {expected}", "train or copy it again")
