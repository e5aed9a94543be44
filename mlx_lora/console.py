"""What a person sees: talk on stderr, colour as decoration. Knows nothing of MLX."""

from rich.console import Console

from mlx_lora.errors import MlxLoraError

talk = Console(stderr=True, highlight=False, emoji=False)


def print_error(error: MlxLoraError) -> None:
    """Print `error: place, fact` and, where there is one, `hint: remedy` on stderr."""
    talk.print(f"[bold red]error:[/] {_plain(error.message)}", soft_wrap=True)
    if error.hint:
        talk.print(f"[bold cyan]hint:[/] {_plain(error.hint)}", soft_wrap=True)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
