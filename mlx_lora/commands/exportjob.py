"""What one `mlx-lora export` is to write: the adapter, its base and the options, as each format's writer takes them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlx_lora.commands.promptnotes import prompt_notes
from mlx_lora.console import talk
from mlx_lora.lora.rendering import Rendering

if TYPE_CHECKING:
    from mlx_lora.exchange.gguf_file import Kind
    from mlx_lora.lora.adapter import AdapterFolder
    from mlx_lora.model.load import LoadedModel
    from mlx_lora.model.tokenizer import Tokenizer


@dataclass(frozen=True)
class Job:
    """What is to be written: the adapter, the base as stored with the adapter on it, and the options."""

    folder: "AdapterFolder"
    base: "LoadedModel"
    rendering: Rendering
    kind: "Kind"
    base_name: str | None
    ollama_base: str | None

    @property
    def tokenizer(self) -> "Tokenizer":
        """The base's, with the adapter's own template where it has one."""
        return self.base.tokenizer.with_chat_template(self.rendering.chat_template, self.rendering.place)


def say_prompt_notes(job: Job, holder: str, **held: Any) -> None:
    """Say what `holder` loses of the adapter's prompts; `held` as prompt_notes takes it."""
    for note in prompt_notes(job.rendering, holder, **held):
        say_note(note)


def say_note(text: str) -> None:
    talk.print(f"note: {text}", markup=False, soft_wrap=True)
