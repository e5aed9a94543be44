"""A stand-in for the Hugging Face Hub on loopback: as much of its HTTP API as push and pull use, kept in memory."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "x" * 34
USER = "anna"


@dataclass
class Repo:
    """A repository: its files now, those of every commit, and whether it is private."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    head: str = ""

    def commit(self, files: dict[str, bytes]) -> str:
        """Add a commit on top; its hash."""
        every = {**self.commits.get(self.head, {}), **files}
        self.head = hashlib.sha1(repr((self.head, sorted(every.items()))).encode()).hexdigest()
        self.commits[self.head] = every
        return self.head


@dataclass
class Hub:
    """The stand-in: repositories by name, every request's method and path, and statuses to answer with instead."""

    address: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # large files, by SHA-256
    requests: list[str] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)  # part of "METHOD /path" → status
    damaged: set[str] = field(default_factory=set)  # paths whose content is cut on its way


@contextmanager
def hub_stand_in() -> Iterator[Hub]:
    """A running stand-in."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._answer()

        do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            status = next((code for part, code in hub.failures.items() if part in hub.requests[-1]), None)
            if status is not None:
                return self._send(status, {"error": "as the test wants"})
            reader = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            writes = self.command == "POST" and path != "/api/validate-yaml"
            if writes and not reader:
                return self._send(401, {"error": "Invalid credentials"})
            return self._route(path, body, reader)

        def _route(self, path: str, body: bytes, reader: bool) -> None:
            if path == "/api/validate-yaml":
                return self._send(200, {"errors": [], "warnings": []})
            if path == "/api/repos/create":
                return self._create(json.loads(body))
            if path.startswith("/objects/"):
                hub.objects[path.removeprefix("/objects/")] = body
                return self._send(200, {})
            api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(preupload|commit|revision)/(.+))?", path)
            files = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            batch = re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path)
            found = api or files or batch
            repo = hub.repos.get(found[1]) if found else None
            if repo is None or (repo.private and not reader):
                return self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            if batch:
                return self._send(
                    200, {"transfer": "basic", "objects": list(map(_upload, json.loads(body)["objects"]))}
                )
            if api and api[2] == "preupload":
                return self._send(200, {"files": [_mode(one) for one in json.loads(body)["files"]]})
            if api and api[2] == "commit":
                return self._commit(api[1], repo, body)
            return self._info(api[1], repo, api[3]) if api else self._file(repo, files[2], files[3])

        def _create(self, wanted: dict[str, Any]) -> None:
            name = f"{wanted['organization']}/{wanted['name']}"
            if wanted["organization"] != USER:
                return self._send(403, {"error": "You don't have the rights to create a model under this namespace"})
            if name in hub.repos:
                return self._send(409, {"error": "You already created this model repo", "url": f"{hub.address}/{name}"})
            hub.repos[name] = Repo(wanted.get("visibility") == "private")
            return self._send(200, {"url": f"{hub.address}/{name}", "name": name})

        def _commit(self, name: str, repo: Repo, body: bytes) -> None:
            files = {}
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
            commit = repo.commit(files)
            self._send(
                200, {"success": True, "commitOid": commit, "commitUrl": f"{hub.address}/{name}/commit/{commit}"}
            )

        def _info(self, name: str, repo: Repo, revision: str | None) -> None:
            commit = repo.head if revision in (None, "main") else revision
            if commit not in repo.commits:
                return self._send(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            siblings = [_sibling(path, content) for path, content in repo.commits[commit].items()]
            return self._send(200, {"id": name, "sha": commit, "private": repo.private, "siblings": siblings})

        def _file(self, repo: Repo, revision: str, path: str) -> None:
            commit = repo.head if revision == "main" else revision
            content = repo.commits.get(commit, {}).get(path)
            if content is None:
                return self._send(404, {"error": "no such file"}, {"X-Error-Code": "EntryNotFound"})
            content = content[:-1] + b"!" if path in hub.damaged else content
            etag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit}
            return self._send(200, content, etag)

        def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(raw)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(raw)

    def _upload(one: dict[str, Any]) -> dict[str, Any]:
        return {**one, "actions": {"upload": {"href": f"{hub.address}/objects/{one['oid']}"}}}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _mode(one: dict[str, Any]) -> dict[str, Any]:
    large = one["path"].endswith(".safetensors")
    return {"path": one["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": None}


def _sibling(path: str, content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
    if path.endswith(".safetensors"):
        digest = hashlib.sha256(content).hexdigest()
        found["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
    return found
