"""What every request passes first: who may ask, from where, and what the log and the metrics keep of it.

Knows nothing of what is asked; nothing of a prompt comes into the log.
"""

import hashlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import Collection

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_lora.serving.metrics import Metrics
from mlx_lora.serving.refusals import Refusal, failed

OPEN_PATHS = frozenset({"/", "/page.css", "/page.js", "/health"})  # nothing in them is worth a key
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
log = logging.getLogger("mlx_lora.serving")
requests_log = logging.getLogger("mlx_lora.serving.requests")


class Guard:
    """Checks key and host, gives every request a number, answers faults in OpenAI's format, and writes one log line."""

    def __init__(self, app: ASGIApp, *, key: str | None, metrics: Metrics, endpoints: Collection[str]) -> None:
        """key None: only requests that were addressed to this machine itself are answered."""
        self._app = app
        self._digest = None if key is None else _digest(key)
        self._metrics = metrics
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.monotonic()
        number = f"req-{uuid.uuid4().hex[:16]}"
        facts = scope.setdefault("state", {})["facts"] = {}  # what the endpoint has to say for the log
        status: int | None = None

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", number.encode())]
            await send(message)

        try:
            try:
                self._check(Request(scope))
                await self._app(scope, receive, note)
            except Refusal as refusal:
                facts["error"] = refusal.code or refusal.status
                if status is None:
                    await JSONResponse(refusal.body(), refusal.status, refusal.headers)(scope, receive, note)
            except Exception:
                log.exception("%s failed", number)
                if status is None:
                    fault = failed(number)
                    await JSONResponse(fault.body(), fault.status)(scope, receive, note)
        finally:
            seconds = time.monotonic() - begun
            path = self._endpoint(scope["path"])
            self._metrics.count("requests_total", endpoint=path, status=str(status))
            self._metrics.observe("request_seconds", seconds)
            line = {"request": number, "method": scope["method"], "path": path, "status": status, **facts}
            requests_log.info(json.dumps({**line, "seconds": round(seconds, 4)}))

    def _endpoint(self, path: str) -> str:
        """The route that `path` belongs to: a name from a request is no label for a metric."""
        if path in self._endpoints:
            return path
        named = (route for route in self._endpoints if "{" in route and path.startswith(route.partition("{")[0]))
        return next(named, "other")

    def _check(self, request: Request) -> None:
        """Raises: Refusal for a request without the key, or one that a web page elsewhere made a browser send."""
        if self._digest is None:
            host = request.headers.get("host", "")
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if name.lower() not in LOOPBACK:
                # DNS rebinding: the page's own name leads to this machine, and the browser sends that name.
                raise Refusal(403, "This server answers only requests to localhost. To open it, start it with a key.")
            return
        if request.url.path in OPEN_PATHS:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(_digest(given.strip()), self._digest):
            raise Refusal(
                401,
                "Give the server's API key: Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _digest(key: str) -> bytes:
    # Equal lengths, so that the comparison's time does not tell the key's.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
