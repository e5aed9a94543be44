"""What a person sees: talk on stderr, colour as decoration; and the streams themselves. Knows nothing of MLX."""

import io
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


class _Stdout(io.FileIO):
    """Descriptor 1. What cannot be written is a user's error, once; a reader that has gone stays a BrokenPipeError."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # what is left in buffers is flushed into nothing
            raise MlxLoraError(
                f"stdout: {os.strerror(error.errno or 0)}", "send the output to another place: > FILE, or a pipe"
            ) from error


def prepare_streams() -> None:
    """Make the standard streams such that a closed one, a full disk or an old locale leaves no traceback.

    A stream that was closed (`>&-`) gets a stand-in under its own descriptor, which no file can then take: stdin is at
    its end, stdout fails where something is written to it, stderr takes all. A pipe or file gets UTF-8, as all our
    files are; a terminal that has no sign for a character gets its number.
    """
    for name, access, mode in (("stdin", os.O_RDONLY, "r"), ("stdout", os.O_RDONLY, "w"), ("stderr", os.O_WRONLY, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, access), mode, encoding="utf-8"))
    stdout = cast(io.TextIOWrapper, sys.stdout)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Stdout(stdout.fileno(), "w", closefd=False)),
        encoding=stdout.encoding if stdout.isatty() else "utf-8",
        errors="backslashreplace",
        line_buffering=stdout.line_buffering or stdout.write_through,  # as PYTHONUNBUFFERED has it
    )


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
