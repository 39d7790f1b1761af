"""A server of another make, whose answers a test writes byte by byte."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

Answer = Callable[["Handler"], None]


def chunk(text: str | None = None, reason: str | None = None, **more: object) -> dict[str, object]:
    delta = {} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more}


USAGE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}}
HELLO = (chunk("Hel"), chunk("lo"), chunk(reason="stop"), USAGE)


class Handler(BaseHTTPRequestHandler):
    """Plays ``server.double.answer`` for a POST; GET has the list of models alone."""

    server: Any

    def do_GET(self) -> None:
        double: OpenAIDouble = self.server.double
        self.server.double.paths.append(self.path)
        if double.key and self.headers["Authorization"] != f"Bearer {double.key}":
            self.json(401, {"error": {"message": "wrong key"}})
        elif self.path == "/v1/models" and double.models is not None:
            card = {"object": "model", "default_sampling": double.default_sampling}
            self.json(200, {"object": "list", "data": [{"id": name, **card} for name in double.models]})
        elif self.path == "/v1/capabilities" and double.is_ours:
            self.json(200, {"object": "capabilities", "endpoints": []})
        else:
            self.json(404, double.refusal)

    def do_POST(self) -> None:
        try:
            self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        except ValueError:
            self.json(400, self.server.double.refusal)
            return
        self.server.double.bodies.append(self.body)
        self.server.double.answer(self)

    def json(self, status: int, value: object, **headers: str) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(data)

    def stream(self, *events: object, end: bytes = b"data: [DONE]\n\n", kind: str = "text/event-stream") -> None:
        """Sends events, and bytes as they are."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        for event in events:
            self.wfile.write(event if isinstance(event, bytes) else f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(end)

    def log_message(self, *arguments: object) -> None:
        return


class OpenAIDouble:
    """Serves while entered. ``answer`` may be changed at any time."""

    def __init__(self) -> None:
        self.answer: Answer = lambda handler: handler.stream(*HELLO)
        self.models: list[str] | None = ["first", "second"]
        self.key: str | None = None
        self.is_ours = False
        self.default_sampling: object = None
        self.refusal: object = {"error": "no such path"}
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.double = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
