"""A fake model hub on 127.0.0.1: enough of its protocol for the hub's own client, and switches for failures.

Serves `resolve` (HEAD, GET, ranges) and the file listing.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """The content of one repository, and its access rules."""

    files: dict[str, bytes]
    commit: str = COMMIT
    revisions: tuple[str, ...] = ("main", COMMIT)
    gated: bool = False
    private: bool = False
    token: str = "hf_let_me_in"


@dataclass(frozen=True)
class Asked:
    """One request as received."""

    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class Trouble:
    """The next failure."""

    cuts: list[int] = field(default_factory=list)
    """The number of bytes after which the connection breaks, for each coming download."""
    status: int | None = None
    """The status of all answers."""


class Hub:
    """A context manager; `env(home)` is the environment that sends a process to it."""

    def __init__(self, repositories: dict[str, Repository]) -> None:
        self.repositories = repositories
        self.asked: list[Asked] = []
        self.trouble = Trouble()
        hub = self

        class Handler(_Handler):
            @property
            def hub(self) -> Hub:
                return hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def env(self, home: Path) -> dict[str, str]:
        """Returns the variables for a process that is to use this hub, with its cache and token file under `home`."""
        direct = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", **direct}

    def downloads(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.method == "GET" and "/resolve/" in asked.path]


@contextmanager
def serving(
    repositories: dict[str, Repository], monkeypatch: pytest.MonkeyPatch, cache: Path, *, chunk: int | None = None
) -> Iterator[Hub]:
    """Yields a hub that this process's own client uses, with its cache in ``cache``; ``chunk``: bytes read at once."""
    with Hub(repositories) as hub:
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")
        send_to(hub.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        if chunk is not None:
            monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", chunk)
        yield hub
        huggingface_hub.close_session()


def send_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process's client use ``address``; it reads the environment only once."""
    huggingface_hub.close_session()
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        raise AssertionError("bound by Hub")

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing: tests read `Hub.asked`."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        authorization = self.headers.get("Authorization")
        self.hub.asked.append(Asked(self.command, path, self.headers.get("Range"), authorization))
        if self.hub.trouble.status is not None:
            return self._refuse(self.hub.trouble.status, {})
        resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", path)
        match = resolve or listing
        repository = self.hub.repositories.get(match[1]) if match else None
        if match is None or repository is None or (repository.private and not self._let_in(repository)):
            return self._refuse(401 if authorization is None else 404, {"X-Error-Code": "RepoNotFound"})
        if match[2] not in repository.revisions:
            return self._refuse(404, {"X-Error-Code": "RevisionNotFound"})
        if listing:
            return self._list(repository)
        if repository.gated and not self._let_in(repository):
            return self._refuse(401 if authorization is None else 403, {"X-Error-Code": "GatedRepo"})
        if match[3] not in repository.files:
            return self._refuse(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repository.commit})
        return self._send(repository, repository.files[match[3]])

    def _let_in(self, repository: Repository) -> bool:
        return bool(self.headers.get("Authorization") == f"Bearer {repository.token}")

    def _refuse(self, status: int, headers: dict[str, str]) -> None:
        self._head(status, {**headers, "Content-Length": "0"})

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _list(self, repository: Repository) -> None:
        entries = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in repository.files.items()
        ]
        body = json.dumps(entries).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        self.wfile.write(body)

    def _send(self, repository: Repository, content: bytes) -> None:
        begin = 0
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            begin = int(asked[1])
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": repository.commit,
            "X-Linked-Size": str(len(content)),
            "Accept-Ranges": "bytes",
            "Content-Length": str(len(content) - begin),
        }
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self._head(206 if begin else 200, headers)
        if self.command == "HEAD":
            return
        cut = self.hub.trouble.cuts.pop(0) if self.hub.trouble.cuts else None
        self.wfile.write(content[begin:] if cut is None else content[begin : begin + cut])
        if cut is not None:
            self.close_connection = True
