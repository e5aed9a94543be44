"""What an adapter's config says of its base and its prompts, and a model's config of its context.

Knows nothing of weights; imports no MLX.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mlx_lora.config import DataSettings
from mlx_lora.errors import AdapterError

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")


@dataclass(frozen=True)
class Rendering:
    """How messages become a prompt: the adapter's system prompt, its own template (None: the tokenizer's), switches."""

    system_prompt: str | None = None
    chat_template: str | None = None
    chat_template_args: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> DataSettings:
        """The data settings that render_prompt wants. The system prompt is not in them: it comes as a message."""
        return DataSettings.model_validate({"train": "chat", "chat_template_args": dict(self.chat_template_args)})


def rendering_of(config: Mapping[str, Any], folder: Path) -> Rendering:
    """How the prompts of this adapter are written; plain for one that mlx-lm wrote. Raises: AdapterError."""
    facts = config.get("mlx_lora") or {}
    rendering = Rendering(facts.get("system_prompt"), facts.get("chat_template"), facts.get("chat_template_args") or {})
    for name, value in (("system_prompt", rendering.system_prompt), ("chat_template", rendering.chat_template)):
        if value is not None and not isinstance(value, str):
            raise _damaged(folder, name, "text or null")
    try:
        rendering.settings()
    except (ValidationError, TypeError, ValueError) as error:
        raise _damaged(folder, "chat_template_args", "an object of texts, numbers and true or false") from error
    return rendering


def model_of(config: Mapping[str, Any], folder: Path) -> tuple[str, str | None]:
    """Name and revision of the base that this adapter was trained on. Raises: AdapterError when it does not say."""
    facts = config.get("mlx_lora") or {}
    name = facts.get("model", config.get("model"))  # mlx-lm writes its own `model`
    revision = facts.get("revision")
    if not isinstance(name, str) or not (revision is None or isinstance(revision, str)):
        raise AdapterError(
            f"{folder / 'adapter_config.json'}: does not say which base it was trained on", "name the base with --model"
        )
    return name, revision


def context_length(config: Mapping[str, Any]) -> int | None:
    """The tokens that a model with this config.json reads and writes at most, None where it does not say."""
    nested = config.get("text_config")
    for part in (config, nested if isinstance(nested, Mapping) else {}):
        for key in _CONTEXT_KEYS:
            value = part.get(key)
            if isinstance(value, int) and value > 0:
                return value
    return None


def _damaged(folder: Path, name: str, expected: str) -> AdapterError:
    return AdapterError(
        f"{folder / 'adapter_config.json'}: mlx_lora.{name}: expected {expected}", "train or copy it again"
    )
