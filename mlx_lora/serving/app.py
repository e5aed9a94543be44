"""The endpoints: HTTP to what is asked, and answers to HTTP. Knows nothing of MLX."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mlx_lora.errors import MlxLoraError
from mlx_lora.serving.answer import Finished
from mlx_lora.serving.asking import Asking
from mlx_lora.serving.engine import Engine
from mlx_lora.serving.guard import Guard
from mlx_lora.serving.metrics import Metrics
from mlx_lora.serving.refusals import Refusal, bad_request
from mlx_lora.serving.replies import Reply
from mlx_lora.serving.requests import AdapterRequest, ChatRequest, CompletionRequest, read_request
from mlx_lora.serving.residents import Residents
from mlx_lora.serving.roster import Speaker, adapter_folders

_PAGE = Path(__file__).parent / "page"
# Ends of lines to many a reader of events (str.splitlines, httpx), though not to JSON, which has them in texts only.
_LINE_ENDS = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Service:
    """What the endpoints share."""

    def __init__(
        self, engine: Engine, residents: Residents, metrics: Metrics, *, adapters: Path | None, log_prompts: bool
    ) -> None:
        """adapters: the folder whose adapters may be loaded by name. log_prompts: write messages into the log too."""
        self.engine = engine
        self.residents = residents
        self.metrics = metrics
        self._adapters = adapters
        self._log_prompts = log_prompts

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions"""
        return await self._answer(request, ChatRequest)

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions"""
        return await self._answer(request, CompletionRequest)

    async def models(self, request: Request) -> Response:
        """GET /v1/models"""
        return JSONResponse({"object": "list", "data": [self._model(each) for each in self._speakers()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME"""
        return JSONResponse(self._model(self.residents.speaker(request.path_params["name"])))

    async def adapters(self, request: Request) -> Response:
        """GET /v1/adapters: those in memory, then those that can be loaded by name, which POST does."""
        if request.method == "POST":
            return await self.load(request)
        loaded = [_adapter(each) for each in self._speakers() if each.owner is not None]
        names = {each["name"] for each in loaded}
        folders = await asyncio.to_thread(adapter_folders, self._adapters)
        others = [{"name": name, "object": "adapter", "loaded": False} for name in folders if name not in names]
        return JSONResponse({"object": "list", "data": loaded + others})

    async def load(self, request: Request) -> Response:
        """POST /v1/adapters"""
        name = read_request(await self._body(request), AdapterRequest, self.engine.limits).name
        folders = await asyncio.to_thread(adapter_folders, self._adapters)
        if name not in folders:
            none = "The folder of --adapters holds none." if self._adapters else "The server has no --adapters folder."
            there = f"There are: {', '.join(folders)}." if folders else none
            raise Refusal(404, f"No adapter of this name to load. {there}", code="adapter_not_found", param="name")
        folder = folders[name]
        try:
            work = self.engine.call(lambda: self.residents.load(name, folder))
            speaker: Speaker = await asyncio.wrap_future(work)
        except MlxLoraError as error:
            message = error.message.replace(str(folder), name)  # where adapters lie is nobody's business
            raise bad_request(f"{message}.", param="name", code="adapter_refused") from error
        self.metrics.gauges(adapters=len(self.residents.speakers) - 1)
        return JSONResponse(_adapter(speaker))

    async def unload(self, request: Request) -> Response:
        """DELETE /v1/adapters/NAME"""
        name = request.path_params["name"]
        await asyncio.wrap_future(self.engine.call(lambda: self.residents.unload(name)))
        self.metrics.gauges(adapters=len(self.residents.speakers) - 1)
        return JSONResponse({"name": name, "object": "adapter", "deleted": True})

    async def health(self, request: Request) -> Response:
        """GET /health"""
        if not self.engine.alive:
            raise Refusal(503, "The engine has ended; restart the server.", code="engine_ended")
        return JSONResponse({"status": "ok"})

    async def metrics_text(self, request: Request) -> Response:
        """GET /metrics"""
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        """GET / and what the page is made of"""
        name = request.url.path.removeprefix("/") or "page.html"
        return FileResponse(_PAGE / name, headers=_PAGE_HEADERS)

    async def _answer(self, request: Request, kind: type[ChatRequest | CompletionRequest]) -> Response:
        asked = read_request(await self._body(request), kind, self.engine.limits)
        facts = request.state.facts
        facts["model"] = asked.model[:80]
        if self._log_prompts:
            facts["asked"] = asked.model_dump(mode="json", include={"messages", "prompt"})
        asking = Asking(self.engine, self.residents, self.metrics)
        reply = await asking.begin(asked)
        if asked.stream:
            return _EventStream(asking, reply, facts, self.metrics, with_usage=asked.with_usage)
        async with _watched(request.receive, asking, facts, self.metrics):
            choices = await asking.choices()
        return Response(status_code=499) if choices is None else JSONResponse(reply.complete(choices))

    async def _body(self, request: Request) -> bytes:
        limits = self.engine.limits
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # Browsers send other types to other sites unasked; this one they ask for first, and we do not allow it.
            raise Refusal(415, "Send the body as application/json.", code="unsupported_media_type")
        too_large = Refusal(413, f"The body is larger than {limits.body_bytes} bytes.", code="body_too_large")
        said = request.headers.get("content-length", "")
        if said.isdecimal() and int(said[:20]) > limits.body_bytes:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(limits.body_seconds):
                async for piece in request.stream():
                    body += piece
                    if len(body) > limits.body_bytes:
                        raise too_large
        except TimeoutError as error:
            raise Refusal(408, f"The body did not come within {limits.body_seconds:g} s.", code="timeout") from error
        except ClientDisconnect as error:
            raise bad_request("The body ended early.") from error
        return bytes(body)

    def _speakers(self) -> list[Speaker]:
        return list(self.residents.speakers.values())

    def _model(self, speaker: Speaker) -> dict[str, Any]:
        parent = None if speaker.owner is None else self.residents.base_name
        head = {"id": speaker.name, "object": "model", "created": speaker.created, "owned_by": "mlx-lora"}
        return {**head, "parent": parent, "max_model_len": speaker.context}


class _EventStream(Response):
    """Server-sent events: the chunks of all answers as they come, and [DONE]."""

    def __init__(
        self, asking: Asking, reply: Reply, facts: dict[str, Any], metrics: Metrics, *, with_usage: bool
    ) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._asking = asking
        self._reply = reply
        self._facts = facts
        self._metrics = metrics
        self._with_usage = with_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the chunks until all is said, or nobody listens."""
        async with _watched(receive, self._asking, self._facts, self._metrics):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for chunk in self._chunks():
                    await send({"type": "http.response.body", "body": _event(chunk), "more_body": True})
            except Refusal as refusal:  # the status is sent; clients look for an error in the events
                self._facts["error"] = refusal.code
                await send({"type": "http.response.body", "body": _event(refusal.body()), "more_body": True})
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    async def _chunks(self) -> AsyncIterator[Mapping[str, Any]]:
        reply, opened = self._reply, set[int]()
        async for place, event in self._asking.events():
            if place not in opened:
                opened.add(place)
                first = reply.first(place)
                if first is not None:
                    yield first
            yield reply.last(place, event) if isinstance(event, Finished) else reply.part(place, event)
        if self._with_usage and self._asking.complete:
            yield reply.totals(self._asking.ordered_ends)


@asynccontextmanager
async def _watched(receive: Receive, asking: Asking, facts: dict[str, Any], metrics: Metrics) -> AsyncIterator[None]:
    """Inside, a client that leaves frees its rows at once; afterwards the log's facts say how it ended."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if not asking.complete:
            metrics.count("disconnects_total")
            facts["disconnected"] = True
        asking.give_up()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher
        asking.give_up()
        facts.update(asking.facts())


def _event(chunk: Mapping[str, Any]) -> bytes:
    text = json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).translate(_LINE_ENDS)
    return b"data: " + text.encode() + b"\n\n"


def _adapter(speaker: Speaker) -> dict[str, Any]:
    return {"name": speaker.name, "object": "adapter", "loaded": True, "created": speaker.created, **speaker.facts}


async def _http_fault(request: Request, error: Exception) -> Response:
    """Starlette's own refusals (no such path, no such method) in OpenAI's format."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else "error"
    headers = error.headers if isinstance(error, HTTPException) else None  # Allow, of a method that is not there
    refusal = Refusal(status, f"{request.method} {request.url.path[:100]}: {detail}.")
    return JSONResponse(refusal.body(), status, headers)


def build_app(service: Service, *, key: str | None) -> Starlette:
    """The ASGI application. key None: for requests from this machine only."""
    routes = [
        Route("/v1/chat/completions", service.chat, methods=["POST"]),
        Route("/v1/completions", service.complete, methods=["POST"]),
        Route("/v1/models", service.models),
        Route("/v1/models/{name:path}", service.model),
        Route("/v1/adapters", service.adapters, methods=["GET", "POST"]),
        Route("/v1/adapters/{name}", service.unload, methods=["DELETE"]),
        Route("/health", service.health),
        Route("/metrics", service.metrics_text),
        *[Route(path, service.page) for path in ("/", "/page.css", "/page.js")],
    ]
    endpoints = {route.path for route in routes}
    guard = Middleware(Guard, key=key, metrics=service.metrics, endpoints=endpoints)
    return Starlette(routes=routes, middleware=[guard], exception_handlers={HTTPException: _http_fault})
