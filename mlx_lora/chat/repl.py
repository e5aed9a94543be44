"""The interactive chat: reads entries, carries out commands, prints what they did on stderr."""

from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Protocol

from rich.markup import escape
from rich.table import Table

from mlx_lora.chat.columns import side_by_side
from mlx_lora.chat.lines import COMMANDS, Command, parse_line
from mlx_lora.chat.places import adapter_names, append_row
from mlx_lora.chat.screen import TerminalScreen, write_answer
from mlx_lora.chat.session import Session, SystemPrompt
from mlx_lora.chat.transcript import markdown_transcript
from mlx_lora.console import print_error, talk, visible
from mlx_lora.errors import MlxLoraError
from mlx_lora.files import typed_path, write_whole

_SHOWN = 240  # characters of the system prompt in the header
_KEYS = "Alt-Enter: new line · Ctrl-C: stop the answer · Ctrl-D: leave"


class Reader(Protocol):
    """Where entries come from."""

    def read(self, label: str) -> str:
        """One entry. Raises: EOFError to leave, KeyboardInterrupt for Ctrl-C with nothing typed."""


class Leave(Exception):  # noqa: N818 (no error)
    """The person wants to leave."""


class Repl:
    """A session, a screen and a reader at work together."""

    def __init__(self, session: Session, screen: TerminalScreen, reader: Reader) -> None:
        self.session, self.screen, self.reader = session, screen, reader
        self._saved: Path | None = None
        self._actions: dict[str, Callable[[str], None]] = {
            "help": self._help,
            "adapter": self._adapter,
            "adapters": self._adapters,
            "compare": self._compare,
            "retry": self._retry,
            "undo": self._undo,
            "reset": self._reset,
            "system": self._system,
            "set": self._set,
            "thinking": self._thinking,
            "save": self._save,
            "export": self._export,
            "quit": self._quit,
        }

    def run(self) -> None:
        """Show the header, then answer and obey until the person leaves."""
        self._header()
        while True:
            try:
                self.obey(self.reader.read(self.session.voice.label))
            except KeyboardInterrupt:
                talk.print("Ctrl-D or /quit leaves; Ctrl-C stops an answer", style="dim")
            except (EOFError, Leave):
                return

    def obey(self, line: str) -> None:
        """Answer one entry or carry it out; a fault is printed and changes nothing. Raises: Leave."""
        try:
            entry = parse_line(line)
            if isinstance(entry, Command):
                self._carry_out(entry)
            elif entry is not None:
                self.session.ask(entry.text)
        except MlxLoraError as error:
            print_error(error)

    def _carry_out(self, command: Command) -> None:
        if command.argument and not COMMANDS[command.name].arguments:
            raise MlxLoraError(
                f"/{command.name} takes nothing after it, and got {shorten(command.argument, 60, placeholder='…')}",
                f"/{command.name} alone does it (begin with // to ask the line as a question)",
            )
        self._actions[command.name](command.argument)

    def _header(self) -> None:
        voice = self.session.voice
        facts = {"base": voice.base.identity.name, "compute": voice.base.compute, "adapter": self._describe_adapter()}
        others = [name for name in voice.choices if name != voice.label]
        if others:
            facts["beside"] = f"{', '.join(others)} (/adapter, /compare)"
        if self.session.system is not None:
            facts["system"] = shorten(self.session.system, _SHOWN, placeholder="… (/system shows all of it)")
        facts["answers"] = self.session.sampling.described()
        for name, fact in facts.items():
            talk.print(f"[dim]{name:<7}[/]  {escape(visible(fact))}")
        self._notes()
        talk.print(f"/help: commands · {_KEYS}\n", style="dim")

    def _describe_adapter(self) -> str:
        voice, attached = self.session.voice, self.session.voice.attached
        if attached is None:
            return "none: the base answers" + (" (/adapter NAME)" if adapter_names() else "")
        if not voice.enabled:
            return f"off: the base answers, its prompts written as {attached.label} wants them"
        return f"{attached.label} · {attached.line}"

    def _notes(self) -> None:
        attached = self.session.voice.attached
        for note in attached.notes if attached is not None else ():
            talk.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)

    def _help(self, _argument: str) -> None:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column()
        for usage in COMMANDS.values():
            table.add_row(escape(f"/{usage.name} {usage.arguments}"), f"[dim]{escape(usage.help)}[/]")
        talk.print(table)
        talk.print(
            f"{_KEYS}\n\\ at the end: new line · Ctrl-R: search past lines · // begins a question with /\n", style="dim"
        )

    def _adapter(self, argument: str) -> None:
        voice = self.session.voice
        if not argument:
            talk.print(escape(visible(self._describe_adapter())))
        elif argument == "off":
            voice.switch(False)
            talk.print("the base answers, with the same prompt and conversation", style="dim")
        else:
            voice.use(argument)
            talk.print(escape(self._describe_adapter()), style="dim", highlight=False)
            self._notes()
            if self.session.chosen_system is None and self.session.system is not None:
                talk.print(f"its system prompt: {escape(visible(self.session.system))}", style="dim", soft_wrap=True)

    def _adapters(self, _argument: str) -> None:
        voice = self.session.voice
        table = Table.grid(padding=(0, 2))
        for name in dict.fromkeys([*voice.choices, *adapter_names()]):
            mark = "*" if name == voice.label else " "
            size = voice.lookup(name).size if name in voice.choices else ""
            table.add_row(f"{mark} {escape(visible(name))}", f"[dim]{escape(size)}[/]")
        talk.print(table)
        if not table.row_count:
            talk.print("adapters/ holds none yet: `mlx-lora train` makes them", style="dim")

    def _compare(self, question: str) -> None:
        with side_by_side(1 + len(self.session.voice.choices), self.screen) as open_screen:
            self.session.compare(question, open_screen)

    def _retry(self, _argument: str) -> None:
        turns = list(self.session.conversation.turns)
        turn = self.session.retry()
        if turn == turns[-1] and self.session.sampling.greedy:
            talk.print("greedy answers repeat: /set temperature 0.7 gives others\n", style="dim")

    def _undo(self, _argument: str) -> None:
        turn = self.session.conversation.take_back()
        talk.print(f"took back: {escape(visible(turn.question))}", style="dim", soft_wrap=True)

    def _reset(self, _argument: str) -> None:
        self.session.reset()
        kept = "" if self.session.system is None else "; the system prompt stays"
        talk.print(f"a new conversation{kept}", style="dim")

    def _system(self, argument: str) -> None:
        if argument == "default":
            self.session.chosen_system = None
        elif argument:
            self.session.chosen_system = SystemPrompt(None if argument == "none" else argument)
        system = self.session.system
        shown = "none" if system is None else escape(visible(system))
        talk.print(f"system prompt: {shown}", style="dim", soft_wrap=True)

    def _set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        if name and not value.strip():
            raise MlxLoraError(f"/set {name}: no value given", "such as /set temperature 0.7")
        if name:
            self.session.set(name, value.strip())
        talk.print(self.session.sampling.described(), style="dim", highlight=False)
        if name in self.session.sampling.idle:
            talk.print(f"{name} changes nothing while answers are greedy: /set temperature 0.7 draws them", style="dim")

    def _thinking(self, argument: str) -> None:
        if argument in ("on", "off"):
            self.screen.show_thinking = argument == "on"
            talk.print("thinking is shown" if argument == "on" else "thinking is folded", style="dim")
        elif argument:
            raise MlxLoraError(f"/thinking {argument}: expected on, off or nothing")
        else:
            thought = visible(self.screen.last_thinking) or "the last answer had no thinking"
            talk.print(escape(thought), style="dim", soft_wrap=True)

    def _save(self, argument: str) -> None:
        path = typed_path(argument) if argument else self._saved
        if path is None:
            raise MlxLoraError(
                "/save: no file given", "such as /save data/chats.jsonl; later /save alone goes there too"
            )
        row = self.session.conversation.row(self.session.system)
        number = append_row(path, row)
        self._saved = path
        talk.print(f"saved as {escape(str(path.resolve()))}:{number}", soft_wrap=True)
        cut = self.session.conversation.cut_answers()
        if cut:
            which = ", ".join(map(str, cut))
            talk.print(f"[yellow]note:[/] cut short: answer {which}; a row teaches the model to stop there")

    def _export(self, argument: str) -> None:
        voice, sampling = self.session.voice, self.session.sampling
        text = markdown_transcript(
            self.session.conversation,
            base=voice.base.identity.name,
            system=self.session.system,
            sampling=sampling.described(),
        )
        if not argument:
            write_answer(text)
            return
        path = typed_path(argument)
        if path.exists():
            raise MlxLoraError(f"{path}: exists already", "take another name; nothing was overwritten")
        write_whole(path, text)
        talk.print(f"written to {escape(str(path.resolve()))}", soft_wrap=True)

    def _quit(self, _argument: str) -> None:
        raise Leave
