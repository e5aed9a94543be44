"""Ctrl-C and the keyboard while an answer streams. Knows nothing of answers."""

import signal
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """`asked` once Ctrl-C was pressed. `granted` once the answer ends: further presses then change nothing."""

    asked: bool = False
    granted: bool = False


@contextmanager
def stop_on_interrupt() -> Iterator[StopRequest]:
    """Inside, the first Ctrl-C is a request, to stop between two tokens; the second is a KeyboardInterrupt.

    It comes once: who catches it writes down what was read, and a third would leave that half done.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # only the main thread is told of signals
        yield request
        return

    def note(_signal: int, _frame: FrameType | None) -> None:
        if request.granted:
            return
        if request.asked:
            request.granted = True
            raise KeyboardInterrupt
        request.asked = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def silent_keyboard() -> Iterator[None]:
    """Inside, what is typed does not show amid the answer but waits for the next prompt. Ctrl-C still works."""
    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (OSError, ValueError, termios.error):  # no terminal
        yield
        return
    silent = list(before)
    silent[3] = before[3] & ~termios.ECHO | termios.NOFLSH  # Ctrl-C keeps what was typed ahead
    termios.tcsetattr(descriptor, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
