"""`mlx-lora chat`: talk to a base or an adapter; one question with -p; questions from a pipe. Answers go to stdout."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import chain

from mlx_lora.chat.conversation import Ending
from mlx_lora.chat.places import adapter_names, history_path
from mlx_lora.chat.sampling import Sampling
from mlx_lora.chat.screen import LineScreen, PlainScreen, TerminalScreen
from mlx_lora.chat.session import Session, SystemPrompt
from mlx_lora.console import talk
from mlx_lora.errors import MlxLoraError

_INTERRUPTED = 130  # as shells have it: 128 + SIGINT
_BROKEN_PIPE = 141  # 128 + SIGPIPE


def run_chat(
    adapters: Sequence[str],
    *,
    model: str | None,
    revision: str | None,
    prompt: str | None,
    system: str | None,
    temperature: float,
    top_p: float,
    max_tokens: int,
    seed: int | None,
) -> int:
    """Chat until the person leaves, or answer `prompt` (`-`: all of stdin), or the lines of a stdin without a person.

    adapters: folders, names under adapters/, mixes (a:0.7+b:0.3); the first answers, none leaves the base alone. model:
    the base, by default that of the first adapter or the built-in one. system: replaces the adapter's system prompt; ""
    for none. Returns 0, 130 after Ctrl-C without a prompt to go back to, 141 when the reader of stdout has left.
    Raises: MlxLoraError.
    """
    sampling = Sampling(temperature, top_p, max_tokens, seed)
    questions = _questions(prompt)
    chosen = None if system is None else SystemPrompt(_text(system, "--system") or None)
    _replace_what_cannot_be_shown()
    for name in sampling.idle:
        option = f"--{name.replace('_', '-')}"
        said = f"note: {option} changes nothing: answers are greedy (--temperature 0)"
        talk.print(said, markup=False, soft_wrap=True)
    try:
        if questions is None:
            _talk(adapters, model, revision, sampling, chosen)
            return 0
        screen = LineScreen() if prompt is None else PlainScreen()
        session = _open_session(screen, adapters, model, revision, sampling, chosen)
        interrupted = any(session.ask(question).ending is Ending.INTERRUPTED for question in questions)
        return _INTERRUPTED if interrupted else 0
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the last flush at exit does not fail
        return _BROKEN_PIPE


def _talk(
    adapters: Sequence[str], model: str | None, revision: str | None, sampling: Sampling, chosen: SystemPrompt | None
) -> None:
    from mlx_lora.chat.keyboard import Keyboard
    from mlx_lora.chat.repl import Repl

    screen = TerminalScreen()
    session = _open_session(screen, adapters, model, revision, sampling, chosen)
    keyboard = Keyboard(history_path(), lambda: dict.fromkeys([*session.voice.bank.names, *adapter_names()]))
    Repl(session, screen, keyboard).run()


def _open_session(
    screen: LineScreen | PlainScreen | TerminalScreen,
    adapters: Sequence[str],
    model: str | None,
    revision: str | None,
    sampling: Sampling,
    chosen: SystemPrompt | None,
) -> Session:
    with talk.status("loading…") if talk.is_terminal else nullcontext():
        from mlx_lora.chat.voice import load_voice  # importing MLX and transformers takes seconds, too

        voice = load_voice(adapters, model=model, revision=revision)
    if voice.attached is not None and not isinstance(screen, TerminalScreen):  # whose header says it
        talk.print(f"{voice.attached.label}: {voice.attached.line}", markup=False, soft_wrap=True)
        for note in voice.attached.notes:
            talk.print(f"note: {note}", markup=False, soft_wrap=True)
    return Session(voice, screen, sampling, chosen)


def _questions(prompt: str | None) -> Iterator[str] | None:
    """The questions given without a terminal; None where a person types them. Raises: MlxLoraError for none at all."""
    if prompt is not None:
        if not prompt.strip():
            raise MlxLoraError("-p: the question is empty", "write it in quotes: -p 'Who won?'")
        return iter([_text(prompt, "-p") if prompt != "-" else _stdin_question()])
    if sys.stdin.isatty():
        return None
    lines = _stdin_questions()
    first = next(lines, None)
    if first is None:
        raise MlxLoraError(
            "stdin: no question in it", "give one question a line, or ask with -p, or start chat in a terminal"
        )
    return chain([first], lines)


def _stdin_question() -> str:
    """All of stdin as one question, its line breaks kept."""
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig").replace("\r\n", "\n").strip()
    except UnicodeDecodeError as error:
        raise MlxLoraError("stdin: not UTF-8", "save it as UTF-8") from error
    if not text:
        raise MlxLoraError("stdin: no question in it", "-p - takes all of stdin as one question: pipe a text into it")
    return text


def _stdin_questions() -> Iterator[str]:
    """The lines of stdin that hold something, as they come."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise MlxLoraError(f"stdin:{number}: not UTF-8", "save it as UTF-8") from error
        if text:
            yield text


def _text(argument: str, name: str) -> str:
    """`argument`, if it is text. Raises: MlxLoraError for bytes of another encoding."""
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MlxLoraError(f"{name}: not UTF-8", "is your terminal set to UTF-8?") from error
    return argument


def _replace_what_cannot_be_shown() -> None:
    """Let a terminal without a character show a replacement instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
