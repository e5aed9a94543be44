"""Who answers: one base in memory, at most one adapter on it, and what each of them has read so far.

Knows nothing of conversations, commands or terminals.
"""

from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlx_lora.chat.answer_text import THINK_TAGS
from mlx_lora.chat.places import adapter_label
from mlx_lora.chat.sampling import Sampling
from mlx_lora.dataset.record import Message
from mlx_lora.dataset.rendering import render_prompt
from mlx_lora.errors import AdapterError, ModelError
from mlx_lora.lora.adapter import AdapterFolder, AppliedAdapter, apply_adapter, read_adapter
from mlx_lora.lora.adapter_config import WEIGHTS_FILE
from mlx_lora.lora.inject import remove_lora, set_adapter_enabled
from mlx_lora.lora.rendering import Rendering, model_of, rendering_of
from mlx_lora.model.generate import Piece, PromptCache, stream_answer
from mlx_lora.model.load import LoadedModel, load_base

DEFAULT_MODEL = "smollm2-135m-instruct"
_CACHES = 4  # key/value caches kept: those of the base and of the adapters used last
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")


@dataclass(frozen=True)
class Attached:
    """The adapter on the base: the name people use for it, its folder as read, and what applying it did."""

    label: str
    adapter: AdapterFolder
    applied: AppliedAdapter
    version: str  # names this state of the files: the key/value cache belongs to it


class Voice:
    """Answers prompts as the base, or as base and adapter; the key/value caches of the two never mix."""

    def __init__(self, base: LoadedModel) -> None:
        self.base = base
        self.attached: Attached | None = None
        self.enabled = False
        self.context = context_length(base.config)  # tokens that the model reads and writes, None where it does not say
        self.rendering = Rendering()
        self._tokenizer = base.tokenizer
        self._caches: OrderedDict[str | None, PromptCache] = OrderedDict()

    @property
    def label(self) -> str:
        """Who answers now: the adapter's name, or "base"."""
        return self.attached.label if self.attached is not None and self.enabled else "base"

    @property
    def think_tags(self) -> tuple[str, str]:
        """The texts that open and close a thinking block."""
        wrapper = self._tokenizer.wrapper
        begin, end = wrapper.think_start, wrapper.think_end
        return (begin, end) if begin and end else THINK_TAGS

    def use(self, folder: Path) -> Attached:
        """Put the adapter in `folder` on the base, in place of the one before; prompts are rendered as it was trained.

        Raises: AdapterError for an adapter that cannot be read or belongs to another base; all is then as before.
        """
        adapter = read_adapter(folder)
        rendering = rendering_of(adapter.config, folder)
        before = self.attached
        remove_lora(self.base.model)
        try:
            applied = apply_adapter(self.base.model, adapter, asdict(self.base.identity))
        except AdapterError:
            if before is not None:
                apply_adapter(self.base.model, before.adapter, None)
                set_adapter_enabled(self.base.model, self.enabled)
            raise
        self.base.model.eval()
        self.attached = Attached(adapter_label(folder), adapter, applied, _version(folder))
        self.enabled = True
        self._set_rendering(rendering)
        return self.attached

    def switch(self, enabled: bool) -> None:
        """Switch the adapter on or off; the prompt stays rendered as the adapter wants it, so that only it differs.

        Raises: AdapterError when there is none.
        """
        if self.attached is None:
            raise AdapterError("no adapter is loaded, the base answers already", "/adapter NAME loads one")
        set_adapter_enabled(self.base.model, enabled)
        self.enabled = enabled

    def render(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of the prompt, up to where the answer starts, exactly as in training."""
        settings = self.rendering.settings(system_prompt=False)  # it comes as a message
        row_format = self.rendering.row_format("question/answer")
        return render_prompt(messages, self._tokenizer, settings, row_format=row_format)

    def opens_thinking(self, prompt: Sequence[int]) -> bool:
        """Whether `prompt` ends inside a thinking block that the template has opened."""
        return self._tokenizer.decode(prompt[-16:]).rstrip().endswith(self.think_tags[0])

    def stream(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> Generator[Piece, None, None]:
        """Stream the answer to `prompt`, computing only what this voice has not read yet.

        Raises: ModelError when prompt and one token of answer do not fit the model's context.
        """
        room = self.room(prompt)
        return stream_answer(
            self.base.model,
            self._tokenizer,
            list(prompt),
            cache=self._cache(),
            max_tokens=sampling.max_tokens if room is None else min(sampling.max_tokens, room),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seed,
        )

    def room(self, prompt: Sequence[int]) -> int | None:
        """How many tokens of answer fit after `prompt`, None for any number. Raises: ModelError for none at all."""
        if self.context is None:
            return None
        if len(prompt) >= self.context:
            raise ModelError(
                f"the conversation is {len(prompt):,} tokens long with this question, and {self.base.identity.name} "
                f"reads at most {self.context:,}",
                "/undo takes turns back, /reset begins anew, and a shorter question may fit",
            )
        return self.context - len(prompt)

    def forget(self) -> None:
        """Drop all key/value caches: nothing has been read."""
        self._caches.clear()

    def _cache(self) -> PromptCache:
        key = self.attached.version if self.attached is not None and self.enabled else None
        cache = self._caches.setdefault(key, PromptCache())
        self._caches.move_to_end(key)
        while len(self._caches) > _CACHES:
            self._caches.popitem(last=False)
        return cache

    def _set_rendering(self, rendering: Rendering) -> None:
        self.rendering = rendering
        self._tokenizer = self.base.tokenizer.with_chat_template(rendering.chat_template, rendering.place)


def load_voice(adapter: Path | None, *, model: str | None, revision: str | None) -> Voice:
    """Load the base (`model`, or the one that `adapter` was trained on, or the built-in one) and put `adapter` on it.

    Raises: ModelError, AdapterError.
    """
    if adapter is not None and model is None:
        model, stored_revision = model_of(read_adapter(adapter).config, adapter)
        revision = revision or stored_revision
    voice = Voice(load_base(model or DEFAULT_MODEL, revision=revision))
    if adapter is not None:
        voice.use(adapter)
    return voice


def context_length(config: Mapping[str, Any]) -> int | None:
    """The tokens that a model with this config.json reads and writes at most, None where it does not say."""
    nested = config.get("text_config")
    for part in (config, nested if isinstance(nested, Mapping) else {}):
        for key in _CONTEXT_KEYS:
            value = part.get(key)
            if isinstance(value, int) and value > 0:
                return value
    return None


def _version(folder: Path) -> str:
    weights = folder / WEIGHTS_FILE
    facts = weights.stat()
    return f"{weights.resolve()} {facts.st_mtime_ns} {facts.st_size}"
