"""Ctrl-C, SIGTERM and a closed terminal while a run trains: what is asked for, and when. Knows nothing of steps.

Python runs a signal's handler between two bytecodes, and a step of a large model is a single call that lasts seconds.
So a thread reads the signals from the pipe that Python's C handler writes to at once.
"""

import _thread
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from mlx_lora.console import talk

if TYPE_CHECKING:
    from mlx_lora.training.distributed import Group

GRACE_SECONDS = 3.0  # how long a second signal waits for the step's call to return
_END = 0  # no signal has this number


@dataclass
class Stop:
    """What signals have asked for. Until `training` is set, and once `trained` is, there is no step to wait for."""

    asked: bool = False
    training: bool = False
    trained: bool = False
    asked_aloud: bool = False
    over: bool = False  # what comes now is mlx.launch, which ends the ranks that are left
    _interrupted: bool = False

    @property
    def waits(self) -> bool:
        """Whether the first signal waits for the end of a step."""
        return self.training and not self.trained

    def at_once(self) -> None:
        """Raises: KeyboardInterrupt, the first time."""
        if not self._interrupted and not self.over:
            self._interrupted = True
            raise KeyboardInterrupt


@contextmanager
def stop_signals(stop: Stop, group: "Group") -> Iterator[None]:
    """Inside, the first Ctrl-C or SIGTERM asks `stop` for an end after this step; a second one is a KeyboardInterrupt.

    Where no step runs the first one is. Where the interrupt does not get through, the process ends after GRACE_SECONDS:
    the files are whole at any moment. Outside the main thread, which alone is told of signals, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = _Signals()

    def handle(number: int, frame: FrameType | None) -> None:
        if signals.twice or not stop.waits:
            stop.at_once()
        stop.asked = True

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        numbers.append(signal.SIGHUP)  # the terminal has been closed; a rank that ssh started gets it for Ctrl-C
    before_fd = signal.set_wakeup_fd(signals.writing, warn_on_full_buffer=False)
    before = {number: signal.signal(number, handle) for number in numbers}
    watcher = threading.Thread(target=signals.watch, args=(stop,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.over = True
        signals.end()
        watcher.join()
        signal.set_wakeup_fd(before_fd)
        if group.size == 1:  # a rank keeps them, so that it can still say why it ends
            for number, handler in before.items():
                signal.signal(number, handler)
        signals.close()


class _Signals:
    """The pipe that Python's C handler writes the signals' numbers to, and what a thread does about them at once."""

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()
        os.set_blocking(self.writing, False)
        self.twice = False

    def end(self) -> None:
        os.write(self.writing, bytes([_END]))

    def close(self) -> None:
        os.close(self._reading)
        os.close(self.writing)

    def watch(self, stop: Stop) -> None:
        """Answer every signal until `end`: two that arrive in one long call would reach `handle` as one."""
        while True:
            numbers = os.read(self._reading, 100)
            if signal.SIGHUP in numbers:
                talk.quiet = True
            if _END in numbers:  # the main thread has gone on: nothing is left to interrupt
                return
            for _ in numbers:
                if stop.asked_aloud or not stop.waits:
                    self._interrupt()
                    return
                stop.asked = stop.asked_aloud = True
                talk.print("stopping after this step; once more to stop at once", markup=False)

    def _interrupt(self) -> None:
        self.twice = True
        _thread.interrupt_main(signal.SIGINT)  # for `handle`, which may have run before `twice` was set
        deadline = time.monotonic() + GRACE_SECONDS
        while (left := deadline - time.monotonic()) > 0 and select.select([self._reading], [], [], left)[0]:
            if _END in os.read(self._reading, 100):
                return
        talk.show_cursor(True)
        os._exit(130)
