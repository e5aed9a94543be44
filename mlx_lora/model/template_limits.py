"""A chat template is a program from outside: how long it may compute and how much it may write. Knows no tokenizers."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

LONGEST_SECONDS = 10.0  # of computing, for one conversation; templates take milliseconds
LONGEST_TEXT = 16 * 2**20  # characters; the longest contexts of today are a third of it


class TemplateLimitError(Exception):
    """A template that computes or writes more than any template has to."""


@contextmanager
def template_limits() -> Iterator[None]:
    """Stop the block when it has computed for LONGEST_SECONDS. In the main thread only: others have no signals.

    Raises: TemplateLimitError.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, _stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def check_length(text: str) -> None:
    """Raises: TemplateLimitError for more than LONGEST_TEXT characters."""
    if len(text) > LONGEST_TEXT:
        raise TemplateLimitError(f"it writes {len(text):,} characters for one conversation")


def _stop(number: int, frame: FrameType | None) -> None:
    raise TemplateLimitError(f"it does not end within {LONGEST_SECONDS:g} seconds of computing")
