"""A Hugging Face hub on this machine: the part of its protocol that fetching a model uses.

A repository is a directory. Large files are redirected to another host name (the "CDN"), as the
hub does, so that a token sent on to it would be noticed. Failures are queued by path.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin", ".model")


@dataclass
class Fault:
    """What goes wrong with one request: a status, a cut after some bytes, or a wrong byte."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    flip: int | None = None  # place in the file


@dataclass
class Hub:
    """A running server.

    Attributes:
        repositories: directory of each repository, by id.
        commits: commit that each repository is at.
        ranges: whether parts of files are sent.
        token: without it, every repository is refused; None: all are public.
        gated: the refusal is for want of an accepted licence.
        faults: queued failures by the last part of a path (a file's name, `revision`).
        requests: method, path, range and token of each.
        sent: bytes of bodies sent, by file.
    """

    port: int
    repositories: dict[str, Path] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    token: str | None = None
    gated: bool = False
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def endpoint(self) -> str:
        """Its address, for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def cdn(self) -> str:
        """The same server under another host name."""
        return f"http://localhost:{self.port}"

    def weights_sent(self) -> int:
        """Bytes of weight files sent, headers included."""
        weights = (".safetensors", ".bin")
        with self.lock:
            return sum(size for name, size in self.sent.items() if name.endswith(weights))

    def forget(self) -> None:
        """Begin counting again."""
        self.requests.clear()
        self.sent.clear()

    def fault(self, name: str) -> Fault:
        """Return the next failure queued for a name (one without effect, if there is none)."""
        with self.lock:
            waiting = self.faults.get(name)
            return waiting.pop(0) if waiting else Fault()


@contextmanager
def hub() -> Iterator[Hub]:
    """Run a hub on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    state = Hub(server.server_address[1])
    server.hub = state  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def git_hash(content: bytes) -> str:
    """Return the hash that git gives a file."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _entry(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    entry: dict[str, Any] = {"size": len(content), "blobId": git_hash(content)}
    if path.suffix in LARGE:
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
    return entry


def _node(path: Path) -> dict[str, Any]:
    """Return a file as the listing of a tree has it, where large files have an `oid`."""
    entry = _entry(path)
    node = {"type": "file", "path": path.name, "oid": entry["blobId"], "size": entry["size"]}
    if lfs := entry.get("lfs"):
        node["lfs"] = {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": 134}
    return node


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def _route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization")
        with self.hub.lock:
            self.hub.requests.append((self.command, path, self.headers.get("Range"), token))
        routes: list[tuple[str, Callable[..., None]]] = [
            (r"/api/models/(.+)/revision/(.+)", self._revision),
            (r"/api/models/(.+)/tree/([^/]+)", self._tree),
            (r"/cdn/(.+)/([^/]+)", self._cdn),
            (r"/(.+)/resolve/([^/]+)/(.+)", self._resolve),
        ]
        for pattern, action in routes:
            if match := re.fullmatch(pattern, path):
                if action != self._cdn and not self._allowed(match[1], token):
                    return
                action(*match.groups())
                return
        self._say(404, {})

    def _allowed(self, repository: str, token: str | None) -> bool:
        if self.hub.token is not None and token != f"Bearer {self.hub.token}":
            if self.hub.gated:
                self._say(403 if token else 401, {"X-Error-Code": "GatedRepo"})
            else:
                self._say(401, {"X-Error-Code": "RepoNotFound"})
            return False
        if repository not in self.hub.repositories:
            self._say(404, {"X-Error-Code": "RepoNotFound"})
            return False
        return True

    def _has_revision(self, repository: str, revision: str) -> bool:
        if revision in ("main", self._commit(repository)):
            return True
        self._say(404, {"X-Error-Code": "RevisionNotFound"})
        return False

    def _commit(self, repository: str) -> str:
        return self.hub.commits.get(repository, COMMIT)

    def _revision(self, repository: str, revision: str) -> None:
        if (fault := self.hub.fault("revision")).status == 200:
            self._json({})  # as something else than a hub might
        elif fault.status:
            self._say(fault.status, fault.headers)
        elif self._has_revision(repository, revision):
            files = sorted(p for p in self.hub.repositories[repository].iterdir() if p.is_file())
            siblings = [{"rfilename": path.name, **_entry(path)} for path in files]
            listing = {"id": repository, "sha": self._commit(repository), "siblings": siblings}
            self._json(listing)

    def _tree(self, repository: str, revision: str) -> None:
        if self._has_revision(repository, revision):
            files = sorted(p for p in self.hub.repositories[repository].iterdir() if p.is_file())
            self._json([_node(path) for path in files])

    def _resolve(self, repository: str, revision: str, file: str) -> None:
        path = self.hub.repositories[repository] / file
        if not self._has_revision(repository, revision):
            return
        if not path.is_file():
            self._say(404, {"X-Error-Code": "EntryNotFound"})
            return
        entry = _entry(path)
        large = "lfs" in entry
        etag = entry["lfs"]["sha256"] if large else entry["blobId"]
        headers = {"X-Repo-Commit": self._commit(repository), "ETag": f'"{etag}"'}
        if large:
            headers |= {"X-Linked-Size": str(entry["size"]), "X-Linked-Etag": f'"{etag}"'}
            headers |= {"Location": f"{self.hub.cdn}/cdn/{repository}/{file}"}
            self._say(302, headers)
        else:
            self._send(path, headers)

    def _cdn(self, repository: str, file: str) -> None:
        self._send(self.hub.repositories[repository] / file, {})

    def _send(self, path: Path, headers: dict[str, str]) -> None:
        content = bytearray(path.read_bytes())
        fault = self.hub.fault(path.name)
        if fault.status:
            self._say(fault.status, fault.headers)
            return
        if fault.flip is not None:
            content[fault.flip] ^= 1
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        size = len(content)
        if wanted and self.hub.ranges:
            start, end = int(wanted[1]), min(int(wanted[2]) + 1, size)
            headers = headers | {"Content-Range": f"bytes {start}-{end - 1}/{size}"}
            self._head(206, headers, end - start)
        else:
            start, end = 0, size
            self._head(200, headers, size)
        if self.command == "HEAD":
            return
        body = bytes(content[start:end])
        if fault.cut is not None:
            body = body[: fault.cut]
            self.close_connection = True
        # Before they are: the client may be done with them at once.
        with self.hub.lock:
            self.hub.sent[path.name] = self.hub.sent.get(path.name, 0) + len(body)
        try:
            self.wfile.write(body)
            self.wfile.flush()
        except OSError:  # the client has enough
            self.close_connection = True

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self._head(200, {"Content-Type": "application/json"}, len(body))
        self.wfile.write(body)

    def _say(self, status: int, headers: dict[str, str]) -> None:
        self._head(status, headers, 0)

    def _head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
