"""What a person sees: talk on stderr, colour as decoration. Knows nothing of MLX."""

import os
import sys
from contextlib import suppress
from typing import IO, Any, cast

from rich.console import Console
from rich.text import Text

from mlx_lora.errors import MlxLoraError


class _Stderr:
    """The stderr of the moment. When its reader has gone (`2>&1 | head`, a closed terminal) the work goes on silently.

    Rich would end the program instead, and with it a run between two checkpoints.
    """

    @property
    def rich_proxied_file(self) -> "_Stderr":
        """This: a Rich bar puts a stand-in for sys.stderr, and looks by this name for what is behind it."""
        return self

    @property
    def _stream(self) -> IO[str]:
        return cast(IO[str], getattr(sys.stderr, "rich_proxied_file", sys.stderr))

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._hush()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._hush()

    def _hush(self) -> None:
        with suppress(OSError, ValueError):  # what is left in Python's buffer is flushed at exit, into nothing
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


talk = Console(file=cast(IO[str], _Stderr()), highlight=False, emoji=False)
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
