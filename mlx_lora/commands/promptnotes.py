"""What of an adapter's prompts a file for another program does not hold: said for every format in the same words."""

import json

from mlx_lora.lora.rendering import Rendering


def prompt_notes(
    rendering: Rendering,
    holder: str,
    *,
    system_prompt: bool = False,
    template: bool = False,
    switches: bool = False,
    instead: str = "",
) -> list[str]:
    """A note for each part of how the adapter is asked that is lost in what is written.

    holder: what is written, such as "a GGUF file". system_prompt, template, switches: whether it holds them. instead:
    what else can be done about the system prompt.
    """
    notes = []
    if rendering.system_prompt is not None and not system_prompt:
        notes.append(f"{holder} holds no system prompt: give the adapter's own in conversations{instead}")
    if rendering.chat_template is not None and not template:
        notes.append(f"{holder} holds no chat template: the adapter's own is mlx_lora.chat_template of its config")
    if rendering.chat_template_args and not switches:
        args = json.dumps(dict(rendering.chat_template_args), ensure_ascii=False)
        notes.append(f"{holder} holds no switches of the chat template: give them in conversations: {args}")
    return notes
