"""Who can be asked: the base and the adapters on it by name, and how each wants its prompts. Knows nothing of HTTP."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_lora.chat.voice import context_length
from mlx_lora.dataset.record import Message
from mlx_lora.dataset.rendering import encode_plain, render_prompt
from mlx_lora.errors import MlxLoraError
from mlx_lora.lora.bank import Resident
from mlx_lora.lora.rendering import Rendering, rendering_of
from mlx_lora.model.continuous import Owner
from mlx_lora.model.load import LoadedModel
from mlx_lora.model.tokenizer import Tokenizer
from mlx_lora.serving.refusals import bad_request

# The tokenizers library refuses to be read while another thread sets it up; a prompt takes milliseconds.
_RENDERING = threading.Lock()


@dataclass(frozen=True, eq=False)
class Speaker:
    """A name that a request's `model` can say. owner: the adapter's number in the batch, None for the base.

    facts: what /v1/adapters tells of it, without paths.
    """

    name: str
    owner: Owner
    rendering: Rendering
    tokenizer: Tokenizer
    context: int | None  # tokens of prompt and answer together, None where the base does not say
    created: int  # seconds since 1970
    facts: Mapping[str, Any] = field(default_factory=dict)

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens up to where the answer starts, as in training and in chat.

        The adapter's system prompt is added where the messages do not begin with one. Raises: Refusal in the words of
        the chat template.
        """
        row_format = self.rendering.row_format("question/answer")
        try:
            with _RENDERING:
                return render_prompt(messages, self.tokenizer, self.rendering.settings(), row_format=row_format)
        except MlxLoraError as error:
            raise bad_request(f"{error.message}.", param="messages") from error

    def plain_prompt(self, prompt: str | list[int]) -> list[int]:
        """The tokens of a text outside any template, or of tokens that came as such. Raises: Refusal."""
        if isinstance(prompt, str):
            with _RENDERING:
                prompt = encode_plain(prompt, self.tokenizer)
        if not prompt:  # a tokenizer may drop all of a text's characters
            raise bad_request("The prompt has no tokens.", param="prompt")
        if max(prompt) >= self.tokenizer.vocabulary_size:
            raise bad_request(
                f"The prompt has token {max(prompt)}; the vocabulary has {self.tokenizer.vocabulary_size}.",
                param="prompt",
            )
        return prompt

    def room(self, prompt: Sequence[int], wanted: int) -> int:
        """How many tokens of answer there may be, at most `wanted`. Raises: Refusal where there is no room for any."""
        if self.context is None:
            return wanted
        if len(prompt) >= self.context:
            raise bad_request(
                f"The prompt has {len(prompt)} tokens; prompt and answer have {self.context} together.",
                code="context_length_exceeded",
            )
        return min(wanted, self.context - len(prompt))


def base_speaker(base: LoadedModel, created: int) -> Speaker:
    """The base itself."""
    return Speaker(base.identity.name, None, Rendering(), base.tokenizer, context_length(base.config), created)


def adapter_speaker(base: LoadedModel, number: int, resident: Resident, created: int) -> Speaker:
    """An adapter on the base, asked as it was trained.

    Raises: AdapterError for a config, ModelError for a template that cannot be used.
    """
    adapter = resident.adapter
    rendering = rendering_of(adapter.config, adapter.folder)
    tokenizer = base.tokenizer.with_chat_template(rendering.chat_template, rendering.place)
    facts = {
        "base": base.identity.name,
        "method": adapter.parameters.method,
        "rank": adapter.parameters.rank,
        "modules": resident.applied.active_modules,
        "notes": list(resident.applied.notes),
        "step": adapter.facts.get("step"),
    }
    return Speaker(resident.name, number, rendering, tokenizer, context_length(base.config), created, facts)


def adapter_folders(root: Path | None) -> dict[str, Path]:
    """The adapters that may be loaded by name: the folders in `root` that hold one, sorted by name."""
    if root is None:
        return {}
    found = sorted(root.glob("*/adapter_config.json"))
    return {config.parent.name: config.parent for config in found}
