"""Several servers as one, on one machine or many: replicas of the OpenAI-compatible server behind Ray Serve.

    pip install "mistralrs-cli[ray]"
    serve run ray_serve:build model=/path/to/model.gguf replicas=2

Each replica is a whole server with an engine process of its own. Requests that have the same header `x-session-id` go
to the same replica, so that a conversation finds what was computed for it before; all others are spread. The server's
guide says what else is different behind Ray.
"""

# Without `from __future__ import annotations`: Ray reads the type of build's argument.
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mistralrs.api.engine_client.remote import RemoteEngine
from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.server.app import create_app
from mistralrs.server.service import Service
from mistralrs.server.settings import ServerSettings

STICKY = RequestRouterConfig(request_router_class="ray.serve.experimental.consistent_hash_router.ConsistentHashRouter")
"""Ray's router by the text of prompts is a part of its LLM module and knows the requests of that alone."""


class Arguments(BaseModel):
    """The arguments after `ray_serve:build`, as `name=value`."""

    model_config = ConfigDict(extra="forbid")

    model: str
    """A file, a folder, or a hub repository; every machine must be able to read it."""
    filename: str | None = None
    """The file in a repository of several."""
    replicas: int = 2
    threads: int | None = None
    """Threads of each replica, which is also the number of cores that Ray reserves for it; None: all physical cores,
    and Ray reserves one."""
    max_seqs: int = 16
    """Sequences that a replica runs at once."""
    max_queue: int = 64
    """Sequences that may wait at a replica."""


@serve.deployment(request_router_config=STICKY, health_check_period_s=2, graceful_shutdown_timeout_s=30)
@serve.ingress()
class Replica:
    """One server. Ray starts another one in its place when its engine has died."""

    async def __init__(self, source: ModelSource, load: LoadOptions, settings: ServerSettings) -> None:
        self._engine = await RemoteEngine.start(source, load)
        self._service = Service(settings)
        self._service.open(self._engine)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return _named(create_app(self._service), serve.get_replica_context().replica_id.unique_id)

    def check_health(self) -> None:
        """Raises the engine's fault."""
        self._service.admit()

    async def __del__(self) -> None:
        await self._engine.close()


def _named(app: ASGIApp, name: str) -> ASGIApp:
    """``app``, whose answers say in a header which replica they are from."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-replica"] = name
            await send(message)

        await app(scope, receive, send_named)

    return answer


def build(arguments: Arguments) -> Application:
    """The application that `serve run` and a configuration file of `serve deploy` name."""
    path = Path(arguments.model)
    source = ModelSource(
        architecture=None,
        path=path if path.exists() else None,
        repo=None if path.exists() else arguments.model,
        filename=arguments.filename,
    )
    load = LoadOptions(max_seqs=arguments.max_seqs, max_queue=arguments.max_queue, threads=arguments.threads)
    keys = tuple(key for key in os.environ.get("MISTRALRS_API_KEY", "").split(",") if key)
    settings = ServerSettings(model_name=path.stem if path.is_file() else arguments.model, api_keys=keys)
    replica = Replica.options(
        num_replicas=arguments.replicas,
        # more than run and wait in the server, which then says itself that it is full
        max_ongoing_requests=arguments.max_seqs + arguments.max_queue + 8,
        ray_actor_options={"num_cpus": arguments.threads or 1},
    )
    return replica.bind(source, load, settings)
