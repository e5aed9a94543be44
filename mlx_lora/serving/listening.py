"""The socket, uvicorn on it, and the log's form. Knows nothing of endpoints."""

import json
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from mlx_lora.errors import MlxLoraError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_KEEP_ALIVE_SECONDS = 15


class _Server(uvicorn.Server):
    """uvicorn's server, for which a signal is the ordinary end: it does not raise it again when all is done."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The first signal lets running answers finish, the second does not wait for them."""
        if threading.current_thread() is not threading.main_thread():  # who runs it in a thread ends it otherwise
            yield
            return
        before = {each: signal.signal(each, self._handle) for each in _SIGNALS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _handle(self, number: int, frame: object) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises: MlxLoraError where that cannot be."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=256)
    except OSError as error:
        reason = error.strerror or str(error)
        raise MlxLoraError(
            f"{host} port {port}: {reason}", "--port 0 takes a free port, --host another address"
        ) from error


def listen(app: ASGIApp, listener: socket.socket, *, grace_seconds: float) -> None:
    """Serve until a signal comes, then finish what runs, at most `grace_seconds` long."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(grace_seconds),
    )
    _Server(config).run(sockets=[listener])


class _Lines(logging.Formatter):
    """One JSON object a line; a line that is one already gets the time in front."""

    def format(self, record: logging.LogRecord) -> str:
        head: dict[str, object] = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(record.created))}
        message = record.getMessage()
        if record.name.endswith(".requests"):
            return json.dumps({**head, **json.loads(message)}, ensure_ascii=False)
        head |= {"level": record.levelname.lower(), "message": message}
        if record.exc_info:
            head["traceback"] = self.formatException(record.exc_info)
        return json.dumps(head, ensure_ascii=False)


def log_to_stderr() -> None:
    """Write the server's and uvicorn's log to stderr, one JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    for name, level in (("mlx_lora.serving", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
