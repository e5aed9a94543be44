"""Reading what a person types: several lines, past lines, completion. Draws on stderr; runs no command."""

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout.processors import TabsProcessor
from prompt_toolkit.output import create_output

from mlx_lora.chat.lines import COMMANDS
from mlx_lora.chat.places import open_history
from mlx_lora.chat.sampling import SETTING_NAMES
from mlx_lora.console import print_error
from mlx_lora.errors import MlxLoraError
from mlx_lora.files import named_errors

if TYPE_CHECKING:
    from prompt_toolkit.input import Input
    from prompt_toolkit.output import Output

_MENU_LINES = 6


class Keyboard:
    """A prompt that keeps its history in a file and completes commands, adapter names, settings and paths."""

    def __init__(
        self,
        history: Path,
        adapters: Callable[[], Iterable[str]],
        *,
        keys: "Input | None" = None,
        output: "Output | None" = None,
    ) -> None:
        """`adapters` gives the names to complete; `keys` and `output` stand in for the terminal."""
        self._history = _open_history(history)
        self._session: PromptSession[str] = PromptSession(
            multiline=True,
            history=self._history,
            completer=LineCompleter(adapters),
            complete_while_typing=Condition(self._is_command),
            reserve_space_for_menu=_MENU_LINES,
            key_bindings=_bindings(),
            enable_open_in_editor=True,
            enable_suspend=True,
            prompt_continuation=_continuation,
            input_processors=[TabsProcessor(char1=" ", char2=" ")],  # not ^I
            input=keys,
            output=output or create_output(stdout=sys.stderr),
        )

    def read(self, label: str) -> str:
        """One entry, of one line or several.

        Raises: EOFError on Ctrl-D, KeyboardInterrupt on Ctrl-C, each where nothing is typed yet.
        """
        entry = self._session.prompt([("class:prompt bold", f"{label}> ")])
        if isinstance(self._history, _KeptHistory) and self._history.fault is not None and not self._history.is_told:
            self._history.is_told = True
            _say_not_kept(self._history.fault)
        return entry

    def _is_command(self) -> bool:
        return self._session.default_buffer.text.startswith("/")


class LineCompleter(Completer):
    """Completes /commands and their arguments."""

    def __init__(self, adapters: Callable[[], Iterable[str]]) -> None:
        self._adapters = adapters

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """The ways to go on with what stands before the cursor."""
        typed = document.text_before_cursor
        command, space, argument = typed.partition(" ")
        if not typed.startswith("/") or "\n" in typed:
            return
        if not space:
            for usage in COMMANDS.values():
                if usage.name.startswith(command[1:].lower()):
                    yield Completion(f"/{usage.name}", start_position=-len(command), display_meta=usage.help)
            return
        begun = argument.rpartition("+")[2] if command == "/adapter" else argument  # the next part of a mix
        for choice in self._choices(command[1:].lower()):
            if choice.startswith(begun):
                yield Completion(choice, start_position=-len(begun))
        if command in ("/adapter", "/save", "/export") and argument:
            paths = PathCompleter(expanduser=True, only_directories=command == "/adapter")
            yield from paths.get_completions(Document(argument), complete_event)

    def _choices(self, command: str) -> Iterable[str]:
        if command == "adapter":
            return [*self._adapters(), "off"]
        return {"set": SETTING_NAMES, "system": ("none", "default"), "thinking": ("on", "off")}.get(command, ())


def _bindings() -> KeyBindings:
    bindings = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)  # in a search (Ctrl-R) these keys end it, as prompt_toolkit has them

    @bindings.add("enter", filter=typing)
    def _enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=typing)
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @bindings.add("c-c", filter=typing)
    def _discard(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return bindings


def _continuation(width: int, _line: int, wraps: int) -> StyleAndTextTuples:
    """What stands under the prompt in further lines; nothing where a long line only wraps."""
    return [("class:prompt", " " * width if wraps else "… ".rjust(width))]


class _KeptHistory(FileHistory):
    """Past lines in a file, which may become unwritable while a person types."""

    fault: MlxLoraError | None = None
    is_told = False

    def store_string(self, string: str) -> None:
        """Append an entry to the file; where that cannot be, `fault` says why."""
        try:
            with named_errors(str(self.filename)):
                super().store_string(string)
        except MlxLoraError as error:
            self.fault = error


def _open_history(path: Path) -> History:
    try:
        open_history(path)
    except MlxLoraError as error:
        _say_not_kept(error)
        return InMemoryHistory()
    return _KeptHistory(str(path))


def _say_not_kept(error: MlxLoraError) -> None:
    print_error(MlxLoraError(f"{error.message}: past lines are not kept", error.hint))
