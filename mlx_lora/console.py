"""What a person sees: talk on stderr, colour as decoration. Knows nothing of MLX."""

from rich.console import Console
from rich.text import Text

from mlx_lora.errors import MlxLoraError

talk = Console(stderr=True, highlight=False, emoji=False)
# Models, files and names may hold sequences that move the cursor or retitle the window: terminals get pictures of them.
_HARMLESS: dict[int, int | None] = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
_HARMLESS |= {0x0D: None, 0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def print_error(error: MlxLoraError) -> None:
    """Print `error: place, fact` and, where there is one, `hint: remedy` on stderr."""
    talk.print(Text.assemble(("error:", "bold red"), " ", visible(error.message)), soft_wrap=True)
    if error.hint:
        talk.print(Text.assemble(("hint:", "bold cyan"), " ", visible(error.hint)), soft_wrap=True)


def visible(text: str) -> str:
    """`text` without characters that a terminal obeys."""
    return text.translate(_HARMLESS)
