"""Admission, and requests refused before anything is computed: keys, hosts, origins, sizes, malformed bodies."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from mistralrs.server.settings import ServerSettings, is_loopback
from tests.server.fake import FakeEngine
from tests.server.harness import CHAT, QUESTION, Served, fault

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}
KEYS = ServerSettings(api_keys=("first key", "zweiter schlüssel"))


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [("/nowhere", 404, "unknown_url"), ("/v1", 404, "unknown_url"), (CHAT, 405, "method_not_allowed")],
)
async def test_wrong_addresses_get_errors_of_the_same_shape(server: Served, path: str, status: int, code: str) -> None:
    response = await server.get(path)
    assert (response.status_code, fault(response)["code"]) == (status, code)
    assert fault(response)["type"] == "invalid_request_error"
    assert ("allow" in response.headers) == (status == 405)


ADDRESSES = {
    CHAT: ["//v1/chat/completions", "/v1//chat/completions", "/v1/v1/chat/completions", "/v1/chat/completions//",
           "//chat//completions/", "/v1/v1//v1/chat/completions", "/v1/%63hat/completions"],
    "/tokenize": ["//tokenize", "/tokenize//"],
    "/v1/models": ["//v1//models/", "/v1/v1/models", "//models", "/v1/models//"],
}  # fmt: skip


@pytest.mark.parametrize(("path", "given"), [(path, given) for path, all in ADDRESSES.items() for given in all])
async def test_base_urls_may_end_in_a_slash_or_repeat_the_version(engine: FakeEngine, path: str, given: str) -> None:
    key = {"authorization": "Bearer first key"}
    content = {CHAT: QUESTION, "/tokenize": {"content": "a"}}.get(path)
    method = "GET" if content is None else "POST"
    url = f"http://localhost:1234{given}"
    answer = await Served(engine).client.request(method, url, json=content)
    assert answer.status_code == 200
    closed = Served(engine, KEYS).client
    assert (await closed.request(method, url, json=content)).status_code == 401
    assert (await closed.request(method, url, json=content, headers=key)).status_code == 200
    elsewhere = await Served(engine).client.request(method, url, json=content, headers={"host": "evil.example"})
    assert elsewhere.status_code == 403


@pytest.mark.parametrize(
    "path",
    ["/v1%2Fchat/completions", "/v1/chat%2Fcompletions", "/%2Fv1/chat/completions", "/v1/health", "/v1/version",
     "/health/v1/models", "/health/%2E%2E/v1/models", "/v1/tokenize/%2E%2E/%2E%2E/health", "/health%2F..%2Fmetrics",
     "/v1/v1/health", "//metrics", "/%2E/metrics", "/health;/metrics", "/health%00", "/v1%2Fmodels", "/%2Fhealth"],
)  # fmt: skip
async def test_odd_addresses_open_nothing(engine: FakeEngine, path: str) -> None:
    closed = await Served(engine, KEYS).get(f"http://localhost:1234{path}")
    assert (closed.status_code, fault(closed)["code"]) == (401, "invalid_api_key")
    if path != "//metrics":
        assert (await Served(engine).get(f"http://localhost:1234{path}")).status_code == 404


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", None])
async def test_what_a_web_page_can_send_unasked_is_not_read(server: Served, media_type: str | None) -> None:
    headers = {} if media_type is None else {"content-type": media_type}
    response = await server.client.post(CHAT, content=b"{}", headers=headers)
    assert (response.status_code, fault(response)["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("media_type", ["application/json; charset=utf-8", "APPLICATION/JSON"])
async def test_json_may_say_more_of_itself(server: Served, media_type: str) -> None:
    content = b'{"messages":"Hi"}'
    assert (await server.client.post(CHAT, content=content, headers={"content-type": media_type})).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe{}", b'{"messages":"\xff"}', b'{"messages":"\\ud800"}',
        b'{"messages":' + b"[" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b'{"messages":"Hi","n":NaN}',
        b'{"messages":"Hi","seed":' + b"9" * 100_000 + b"}", b'{"messages":"Hi","temperature":1e999}',
        b'{"messages":"Hi","max_tokens":' + b"1" * 400 + b"}", b"{}" + b"\x00" * 100,
    ],
)  # fmt: skip
async def test_malformed_bodies_are_400(server: Served, engine: FakeEngine, body: bytes) -> None:
    response = await server.client.post(CHAT, content=body, headers=JSON)
    assert response.status_code == 400
    assert fault(response)["code"] == "invalid_value"
    assert len(response.content) < 1000
    assert engine.submitted == []


async def test_an_error_names_the_field(server: Served) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]
    response = await server.chat(messages=messages)
    assert response.status_code == 400
    assert (fault(response)["code"], fault(response)["param"]) == ("unsupported_content_part", "messages[1].content[0]")


async def test_a_long_body_is_refused_whether_it_says_so_or_not(engine: FakeEngine) -> None:
    server = Served(engine, ServerSettings(max_body_bytes=1000))
    taken = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(1000):
            taken += 100
            yield b" " * 100

    said = await server.client.post(CHAT, content=b" " * 1001, headers=JSON)
    unsaid = await server.client.post(CHAT, content=pieces(), headers=JSON)
    for response in (said, unsaid):
        assert (response.status_code, fault(response)["code"]) == (413, "request_too_large")
        assert response.headers["connection"] == "close"
    assert taken < 10_000
    assert (await server.chat()).status_code == 200


async def test_without_a_key_nobody_needs_one(server: Served) -> None:
    assert (await server.post(CHAT, QUESTION, headers={"authorization": "Bearer x"})).status_code == 200


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic first key", "Bearer first ke"])
async def test_a_wrong_key_is_401(engine: FakeEngine, given: str | None) -> None:
    server = Served(engine, KEYS)
    headers = {} if given is None else {"authorization": given}
    for path in ("/v1/models", "/metrics", "/docs", "/openapi.json", "/nowhere", "/v1/requests"):
        response = await server.get(path, headers=headers)
        assert (response.status_code, fault(response)["code"]) == (401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
    assert (await server.post(CHAT, QUESTION, headers=headers)).status_code == 401
    assert engine.submitted == []


@pytest.mark.parametrize("key", KEYS.api_keys)
async def test_every_key_opens(engine: FakeEngine, key: str) -> None:
    server = Served(engine, KEYS)
    for scheme in ("Bearer", "bearer"):
        headers = {"authorization": f"{scheme} {key}".encode()}
        assert (await server.post(CHAT, QUESTION, headers=headers)).status_code == 200


async def test_whether_there_is_a_server_is_no_secret(engine: FakeEngine) -> None:
    server = Served(engine, KEYS)
    for path in ("/", "/health", "/ready", "/version", "/health/"):
        assert (await server.get(path)).status_code == 200


@pytest.mark.parametrize(
    ("given", "milliseconds"), [("250", 250), ("", 1000), ("0", 1000), ("-5", 1000), ("1.5", 1000), ("x", 1000)]
)
def test_the_silence_in_a_stream_is_set_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, given: str, milliseconds: int
) -> None:
    monkeypatch.setenv("KEEP_ALIVE_INTERVAL", given)
    assert ServerSettings().keep_alive_ms == milliseconds


def test_settings_do_not_show_keys() -> None:
    assert "first key" not in repr(KEYS)


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:1234", "127.0.0.1:99", "[::1]:1234", "a.localhost", "127.1.2.3"]
)
async def test_a_local_server_has_the_names_of_this_machine(server: Served, host: str) -> None:
    assert (await server.post(CHAT, QUESTION, headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:1234", "localhost.evil.example", "10.0.0.1", "", "[::2]"]
)
async def test_a_local_server_has_no_other_name(server: Served, engine: FakeEngine, host: str) -> None:
    response = await server.post(CHAT, QUESTION, headers={"host": host})
    assert (response.status_code, fault(response)["code"]) == (403, "forbidden_host")
    assert engine.submitted == []


@pytest.mark.parametrize(
    "host",
    ["[::1].evil.example", "[::1]evil", "[::1", "::1", "[evil.example]", "user@localhost", "localhost:port",
     "localhost:1:2", "localhost:99999", "localhost, evil.example", "localhost/", "local host", "localh\xf6st",
     "127.0.0.1#"],
)  # fmt: skip
@pytest.mark.parametrize("settings", [ServerSettings(), KEYS, ServerSettings(host="0.0.0.0")])
async def test_a_malformed_host_is_refused_by_every_server(
    engine: FakeEngine, settings: ServerSettings, host: str
) -> None:
    server = Served(engine, settings)
    for path in ("/health", "/v1/models"):
        response = await server.get(path, headers={"host": host.encode("latin-1")})
        assert (response.status_code, fault(response)["code"]) == (400, "invalid_host")
    assert engine.submitted == []


async def test_with_a_key_or_a_network_any_name_will_do(engine: FakeEngine) -> None:
    for settings in (KEYS, ServerSettings(host="0.0.0.0")):
        response = await Served(engine, settings).get("/health", headers={"host": "llm.example"})
        assert response.status_code == 200


@pytest.mark.parametrize("host", ["::1", "127.0.0.1", "127.9.9.9", "LOCALHOST", "localhost.", "x.localhost"])
def test_loopback_names(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.org", "127.0.0.1.org", ""])
def test_other_names(host: str) -> None:
    assert not is_loopback(host)


async def preflight(server: Served, origin: str) -> tuple[int, str | None]:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
    }
    response = await server.client.options(CHAT, headers=headers)
    return response.status_code, response.headers.get("access-control-allow-origin")


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:8080", "http://a.localhost"]
)
async def test_pages_of_this_machine_may_ask(engine: FakeEngine, origin: str) -> None:
    for settings in (ServerSettings(), KEYS):  # a browser sends no key with its first question
        server = Served(engine, settings)
        assert await preflight(server, origin) == (200, origin)
        refused = await server.get("/nowhere", headers={"origin": origin})
        assert refused.headers["access-control-allow-origin"] == origin  # also of errors, or nobody could read them


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost.evil.example", "http://127.0.0.1.x"]
)
async def test_other_pages_may_not(server: Served, origin: str) -> None:
    assert await preflight(server, origin) == (400, None)
    assert "access-control-allow-origin" not in (await server.get("/", headers={"origin": origin})).headers


async def test_origins_can_be_opened(engine: FakeEngine) -> None:
    one = Served(engine, ServerSettings(cors_origins=("https://app.example",)))
    assert await preflight(one, "https://app.example") == (200, "https://app.example")
    assert await preflight(one, "http://localhost:3000") == (400, None)
    assert await preflight(Served(engine, ServerSettings(cors_origins=("*",))), "https://any.example") == (200, "*")
