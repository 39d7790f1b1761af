"""How the calls of ``worker`` and the answers of ``worker_process`` cross a pipe: JSON, and bytes behind it."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

HEADER = struct.Struct(">II")
"""Bytes of the JSON and of what follows it."""


def frame(head: Mapping[str, Any], payload: bytes = b"") -> tuple[bytes, bytes, bytes]:
    """The pieces of a frame. Raises TypeError and ValueError for what JSON cannot say."""
    data = json.dumps(head, ensure_ascii=False, check_circular=False).encode("utf-8", "surrogatepass")
    return HEADER.pack(len(data), len(payload)), data, payload


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """The next frame; None at the end."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    head_bytes, payload_bytes = HEADER.unpack(header)
    head = json.loads(stream.read(head_bytes).decode("utf-8", "surrogatepass"))
    return head, stream.read(payload_bytes)
