"""Requests that no honest client sends: damaged, lying, endless or huge, each made from its number."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from tests.grammar.hostile_grammars import MAKERS

End = Literal["read", "half-close", "leave", "reset"]
Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Attack:
    """The bytes that are sent, and the way in which the connection is left."""

    kind: str
    pieces: tuple[bytes, ...]
    """The pieces, sent one after the other."""
    pause: float = 0.0
    """Seconds between two pieces."""
    end: End = "read"
    """``read``: reads the whole answer. ``half-close``: announces first that nothing more comes. ``leave``: goes at
    once; ``reset``: goes at once and resets the connection."""


PATIENT = 0.1
"""Clients that never finish their request and stay until the server ends it."""
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RESPONSES, MESSAGES, COUNT = "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"
_ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 1e308, -1e-308, 5e-324, "", "1", "\x00", "\ud800",
    "x" * 100_000, [], [[]], [None], {}, {"": {}}, [0] * 10_000, "\u202e", "../../etc/passwd", "{{ 7*7 }}", "🙂" * 1000,
)  # fmt: skip
_PATHS = (
    CHAT, COMPLETIONS, EMBEDDINGS, "/tokenize", "/detokenize", "/apply-template", "/v1/models", "/v1/models/%2e%2e%2f",
    "/v1/requests/%00", "/metrics", "/", "//", "/v1/../../etc/passwd", "/v1//chat/completions", "/%ff",
    "/" + "a" * 9000, "/docs", "/openapi.json?x=%", "*", "http://example.org/", "/v1/models/" + "b" * 5000,
    "/health?" + "q=1&" * 2000, RESPONSES, MESSAGES, COUNT, RESPONSES + "/%00", MESSAGES + "/../chat/completions",
)  # fmt: skip
_METHODS = (
    "GET",
    "POST",
    "PUT",
    "DELETE",
    "PATCH",
    "OPTIONS",
    "HEAD",
    "TRACE",
    "CONNECT",
    "BREW",
    "get",
    "P\x00ST",
    "",
)


def attack(number: int, seed: int) -> Attack:
    """Returns attack number ``number``: always the same one for the same seed."""
    random = Random(f"{seed}:{number}")
    return KINDS[number % len(KINDS)](random)


def good_body(random: Random | None = None) -> Body:
    """Returns a small chat."""
    words = "Hi" if random is None else random.choice(("Hi", "Count to three.", "Why?"))
    return {"messages": [{"role": "user", "content": words}], "temperature": 0, "max_tokens": 4}


def message(path: str, body: bytes, *, method: str = "POST", head: str = "", length: str | None = None) -> bytes:
    """Returns a request as bytes; ``length`` is its claim about its body."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", "Connection: close"]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return ("\r\n".join(lines) + f"\r\n{head}\r\n").encode("latin-1", "replace") + body


def as_json(value: object) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def random_bytes(random: Random) -> Attack:
    return Attack("random bytes", (random.randbytes(random.randrange(1, 5000)),), end="half-close")


def random_body(random: Random) -> Attack:
    body = random.randbytes(random.randrange(3000))
    return Attack("random body", (message(random.choice(_PATHS[:6]), body),))


def damaged(random: Random) -> Attack:
    data = bytearray(message(CHAT, as_json(good_body(random))))
    for _ in range(random.randrange(1, 8)):
        place = random.randrange(len(data))
        data[place : place + random.randrange(3)] = random.randbytes(random.randrange(3))
    return Attack("damaged request", (bytes(data),), end="half-close")


def deep(random: Random) -> Attack:
    depth = random.choice((100, 1000, 20_000, 500_000))
    opening, closing = random.choice(((b"[", b"]"), (b'{"a":', b"}")))
    nested = opening * depth + b"1" + closing * depth
    field = random.choice((b"messages", b"prompt", b"chat_template_kwargs", b"metadata", b"logit_bias", b"zzz"))
    body = as_json(good_body())[:-1] + b',"' + field + b'":' + nested + b"}"
    return Attack("deep JSON", (message(CHAT, random.choice((body, nested, opening * depth))),))


def huge_numbers(random: Random) -> Attack:
    digits = random.choice((20, 400, 5000, 100_000))
    number = random.choice((b"", b"-")) + b"9" * digits + random.choice((b"", b".5", b"e9", b"e999"))
    field = random.choice(
        (b"seed", b"n", b"max_tokens", b"temperature", b"top_k", b"prompt", b"stop_token_ids", b"top_p")
    )
    value = b"[" + number + b"]" if field in (b"prompt", b"stop_token_ids") else number
    body = b'{"prompt":"a","max_tokens":2,"' + field + b'":' + value + b',"logit_bias":{"' + number[:50] + b'":1}}'
    return Attack("huge numbers", (message(COMPLETIONS, body),))


def wrong_types(random: Random) -> Attack:
    fields = (
        "messages", "prompt", "model", "stream", "n", "stop", "seed", "temperature", "top_p", "top_k", "logprobs",
        "top_logprobs", "logit_bias", "stream_options", "tools", "response_format", "chat_template_kwargs", "user",
        "min_tokens", "suffix", "echo", "best_of", "input", "encoding_format", "dimensions", "tokens", "content",
        "dry_sequence_breakers", "stop_token_ids", "repetition_penalty", "xtc_probability", "continue_final_message",
        "samplers", "min_p", "grammar", "json_schema", "structured_outputs", "guided_choice", "format",
    )  # fmt: skip
    body = {**good_body(random), "prompt": "a", "input": "a", "content": "a", "tokens": [1]}
    for name in random.sample(fields, random.randrange(1, 4)):
        body[name] = random.choice(_ODD_VALUES)
    if random.random() < 0.3:
        body["messages"] = [{"role": random.choice(("user", "tool", "?")), "content": random.choice(_ODD_VALUES)}]
    return Attack("wrong types", (message(random.choice(_PATHS[:6]), as_json(body)),))


def other_apis(random: Random) -> Attack:
    """Items, blocks and fields of the Responses and the Messages API, with values that they must not have."""
    value = random.choice(_ODD_VALUES)
    kind = random.choice(
        ("message", "reasoning", "function_call", "function_call_output", "item_reference", "text", "tool_use",
         "tool_result", "thinking", "redacted_thinking", "image", "input_text", "input_image", value)
    )  # fmt: skip
    fields = (
        "role", "content", "text", "name", "arguments", "output", "call_id", "id", "input", "tool_use_id", "thinking",
        "is_error", "summary", "status", "cache_control",
    )  # fmt: skip
    piece = {"type": kind, **{name: random.choice(_ODD_VALUES) for name in random.sample(fields, random.randrange(5))}}
    path = random.choice((RESPONSES, MESSAGES, COUNT))
    turn = {"role": "user", "content": "Hi"}
    if path == RESPONSES:
        body: Body = {"input": [turn, random.choice((piece, {**turn, "content": [piece]}))], "max_output_tokens": 4}
        odd = ("input", "instructions", "text", "tools", "tool_choice", "reasoning", "include", "truncation", "store")
    else:
        role = random.choice(("user", "assistant", "system"))
        body = {"messages": [turn, {"role": role, "content": [piece, {"type": "text", "text": "Hi"}]}], "max_tokens": 4}
        odd = ("messages", "system", "tools", "tool_choice", "thinking", "output_config", "stop_sequences", "metadata")
    for name in random.sample((*odd, "stream", "temperature", "model", "adapters"), random.randrange(3)):
        body[name] = random.choice((value, {"type": value}, [{"type": value, "name": value}]))
    return Attack("other APIs", (message(path, as_json(body)),))


def nested_results(random: Random) -> Attack:
    """Results of tools in results of tools."""
    depth = random.choice((10, 100, 5000, 30_000))
    inner = b'[{"type":"tool_result","tool_use_id":"x","content":' * depth + b'"x"' + b"}]" * depth
    body = b'{"max_tokens":4,"messages":[{"role":"user","content":' + inner + b"}]}"
    return Attack("nested results", (message(random.choice((MESSAGES, COUNT)), body),))


def bad_text(random: Random) -> Attack:
    broken = random.choice(
        (b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"\xf4\x90\x80\x80", b"\x00")
    )
    text = broken * random.randrange(1, 200)
    key = random.choice((b"content", b"role", b"con" + broken))
    body = b'{"max_tokens":2,"messages":[{"role":"user","' + key + b'":"' + text + b'"}],"stop":["' + broken + b'"]}'
    return Attack("invalid UTF-8", (message(CHAT, body),))


def slow_loris(random: Random) -> Attack:
    data = message(CHAT, as_json(good_body()))
    sent = data[: random.randrange(1, len(data))]
    pieces = tuple(sent[at : at + 40] for at in range(0, len(sent), 40))[:6]
    end: End = "read" if random.random() < PATIENT else "leave"
    return Attack("slow loris", pieces, pause=random.uniform(0.05, 0.5), end=end)


def hung_up(random: Random) -> Attack:
    body = {**good_body(random), "stream": random.random() < 0.5, "max_tokens": 200, "ignore_eos": True, "n": 3}
    data = message(CHAT, as_json(body))
    end: End = random.choice(("leave", "reset"))
    return Attack("hung up", (data,), end=end)


def half_closed(random: Random) -> Attack:
    data = message(CHAT, as_json(good_body(random)))
    cut = random.choice((len(data), len(data) - 1, len(data) // 2, 3))
    return Attack("half-closed", (data[:cut],), end="half-close")


def lying_length(random: Random) -> Attack:
    body = as_json(good_body(random))
    said = random.choice(
        ("0", "1", "-1", "1e3", "0x10", str(len(body) - 5), str(len(body) + 50), str(10**12), "9" * 40, "")
    )
    extra = random.choice(
        ("", "Content-Length: 3\r\n", "Transfer-Encoding: chunked\r\n", "Transfer-Encoding: gzip\r\n")
    )
    return Attack("lying length", (message(CHAT, body, length=said, head=extra),), end="half-close")


def bad_chunks(random: Random) -> Attack:
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    size = random.choice((b"5", b"FFFFFFFFFFFFFFFFF", b"-1", b"xyz", b"", b"5;ext=" + b"e" * 9000, b"7fffffffffffffff"))
    rest = random.choice((b'{"a":', b"0", random.randbytes(40)))
    data = head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\n" + rest + b"\r\n0\r\n\r\n"
    return Attack("bad chunks", (data,), end="half-close")


def strange_head(random: Random) -> Attack:
    head = random.choice(
        (
            "X-Big: " + "a" * random.choice((9_000, 70_000, 300_000)) + "\r\n",
            "".join(f"X-{index}: y\r\n" for index in range(random.choice((500, 20_000)))),
            "Cookie: " + "c=d; " * 20_000 + "\r\n",
            "x-request-id: " + "\x01\x7f evil\tid " * 20 + "\r\n",
            "Authorization: Bearer " + "k" * 60_000 + "\r\n",
            "Host: evil.example\r\nHost: other\r\n",
            "Expect: 100-continue\r\n",
            "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n",
        )
    )
    return Attack("strange head", (message(CHAT, as_json(good_body()), head=head),))


def strange_line(random: Random) -> Attack:
    method, path = random.choice(_METHODS), random.choice(_PATHS)
    return Attack("strange method or path", (message(path, as_json(good_body()), method=method),), end="half-close")


def large_body(random: Random) -> Attack:
    size = random.choice((1 << 20, 5 << 20, 17 << 20))
    filling = random.choice((b" ", b'"' + b"a" * (size - 2), b"[" + b"1," * (size // 2), b"\x00" * size))
    return Attack("large body", (message(random.choice(_PATHS[:6]), filling.ljust(size)),))


def pipelined(random: Random) -> Attack:
    head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n"
    end: End = random.choice(("leave", "reset", "half-close"))
    return Attack("pipelined", ((head + b'{"content":"a"}') * 200,), end=end)


def other_protocols(random: Random) -> Attack:
    greetings = (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random.randbytes(500),  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + random.randbytes(50),
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/0.9\r\n\r\n",
        b"GET / HTTP/1.1\nHost: localhost\n\n",
        b"\r\n" * 1000,
        b"GET / HTTP/1.1\r\n Host: folded\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n",
    )
    return Attack("other protocols", (random.choice(greetings),), end="half-close")


def costly_words(random: Random) -> Attack:
    body = good_body()
    body.update(
        random.choice(
            (
                {"stop": ["a" * 1000] * 64},
                {"stop": ["x"] * 100_000},
                {
                    "chat_template_kwargs": {
                        "messages": [],
                        "add_generation_prompt": "{% for i in range(10**9) %}x{% endfor %}",
                    }
                },
                {"chat_template_kwargs": {f"k{index}": index for index in range(50_000)}},
                {"logit_bias": {str(index): -100 for index in range(70_000)}},
                {"messages": [{"role": "user", "content": "a" * 3_000_000}]},
                {"messages": [{"role": "user", "content": "<|im_end|><|endoftext|></s><s>" * 5000}]},
                {"messages": [{"role": "user", "content": "x"}] * 20_000},
                {"model": "../" * 10_000, "chat_template": "{{ ''.__class__.__mro__ }}"},
                {f"field{index}": index for index in range(100_000)},
                {"dry_sequence_breakers": ["é" * 1000] * 64, "dry_multiplier": 1000, "dry_base": 1000},
                {"n": 128, "logprobs": True, "top_logprobs": 20},
            )
        )
    )
    return Attack("costly words", (message(CHAT, as_json(body)),))


def costly_grammar(random: Random) -> Attack:
    kind = random.choice(sorted(MAKERS))
    text = MAKERS[kind](random)
    fields: list[Body] = [{"grammar": {"type": kind, "value": text}}, {"guided_grammar": text}]
    if kind == "json_schema":
        fields += [{"format": text}, {"structured_outputs": {"json": text, "whitespace_pattern": "(( ?)*)*"}}]
    body = {**good_body(random), **random.choice(fields), "n": random.choice((1, 8))}
    return Attack("costly grammar", (message(CHAT, as_json(body)),), end=random.choice(("read", "leave")))


KINDS: tuple[Callable[[Random], Attack], ...] = (
    random_bytes, random_body, damaged, deep, huge_numbers, wrong_types, bad_text, slow_loris, hung_up, half_closed,
    lying_length, bad_chunks, strange_head, strange_line, large_body, pipelined, other_protocols, costly_words,
    wrong_types, damaged, costly_grammar, other_apis, nested_results,
)  # fmt: skip
"""The kinds of attacks. Attack n is of kind n modulo their number; two of them count twice."""
