"""Ctrl-C and SIGTERM while a run trains: once to stop after the step, twice to stop at once. Knows nothing of steps."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from mlx_lora.console import talk

if TYPE_CHECKING:
    from mlx_lora.training.distributed import Group


class Stop:
    """Whether the loop has been asked to end."""

    asked = False
    over = False  # what comes now is mlx.launch, which ends the ranks that are left


@contextmanager
def stop_signals(group: "Group") -> Iterator[Stop]:
    """The first Ctrl-C or SIGTERM asks the loop to stop after this step; a second one stops at once."""
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.over:
            return
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        if number != signal.SIGHUP:  # the terminal is gone
            talk.print("stopping after this step; once more to stop at once", markup=False)

    # A rank that ssh started gets SIGHUP where the launcher got Ctrl-C.
    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if group.size > 1 else [])]
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield stop
    finally:
        stop.over = True
        if group.size == 1:  # a rank keeps them, so that it can still say why it ends
            for number, handler in before.items():
                signal.signal(number, handler)
