"""The state that the routes share: the engine and its condition, the requests under way, numbers and log."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from mistralrs.api.engine_client.engine_client import EngineClient
from mistralrs.api.serving.answers.respond import submit
from mistralrs.api.serving.policy import Policy
from mistralrs.engine.config import Request
from mistralrs.errors import EngineDeadError, EngineError
from mistralrs.server.inflight import InflightRequest, InflightRequests
from mistralrs.server.log import Kind, RequestLog
from mistralrs.server.metrics import Metrics
from mistralrs.server.middleware import Context
from mistralrs.server.settings import ServerSettings


class Service:
    """One server. It has no engine until ``open``; from then on it serves until the engine dies."""

    def __init__(self, settings: ServerSettings, log: RequestLog | None = None) -> None:
        self.settings = settings
        self.log = log
        self.metrics = Metrics()
        self.inflight = InflightRequests(self.metrics)
        self.draining = False
        """The server is about to end: running requests go on, new ones are refused."""
        self.created = int(time.time())
        self._engine: EngineClient | None = None

    def open(self, engine: EngineClient) -> None:
        """Serves with ``engine`` from now on."""
        self._engine = engine

    @property
    def model_name(self) -> str:
        """The model's id in answers. Raises like ``engine``."""
        return self.settings.model_name or self.engine.model.info.name

    @property
    def engine(self) -> EngineClient:
        """Raises EngineError if there is none, or a dead one."""
        engine = self._engine
        if engine is None:
            raise EngineError("the model is being loaded", hint="ask again in a moment", code="model_loading")
        if engine.fault is not None:
            raise EngineDeadError(engine.fault.message, hint="the server has to be started again")
        return engine

    def admit(self) -> EngineClient:
        """Returns the engine for a new request.

        Raises like ``engine``, and when it stands still or the server is about to end.
        """
        if self.draining:
            raise EngineError("the server is shutting down", hint="ask again", code="shutting_down")
        engine = self.engine
        if engine.stalled is not None:
            raise engine.stalled
        return engine

    @property
    def is_serving(self) -> bool:
        """Returns whether a new request would be accepted."""
        try:
            self.admit()
        except EngineError:
            return False
        return True

    def policy(self, identity: str) -> Policy:
        """Returns the decisions about requests that came with the key of ``identity``."""
        settings = self.settings
        return Policy(
            model_name=self.model_name,
            strict=settings.strict,
            strict_model=settings.strict_model,
            truncate=settings.truncate,
            sampling=settings.sampling,
            cache_salt=identity if settings.isolate_keys else "",
            deadline_s=settings.request_timeout,
            template_hint="use /v1/completions, or start the server with --chat-template",
        )

    def begin(
        self, id: str, context: Context, requests: Sequence[Request], adapters: Mapping[str, float] | None = None
    ) -> InflightRequest:
        """Submits the requests of one answer, all of them or none. Raises the engine's errors.

        ``adapters``: names and weights of those that act; None: the default ones.
        """
        live = InflightRequest(id, context.id, context.path, context.key_id)
        self.inflight.open(live, submit(self.admit(), requests, adapters))
        return live

    def end(self, live: InflightRequest) -> None:
        """Cancels the rest of a request, and removes it. Idempotent."""
        if self.inflight.close(live):
            self.record("cancelled", live.request_id, answer=live.id, tokens=live.tokens)

    def record(self, kind: Kind, id: str, *, body: bytes | None = None, **facts: object) -> None:
        """Writes a line into the log, if there is one."""
        if self.log is not None:
            self.log.record(kind, id, body=body, **facts)
