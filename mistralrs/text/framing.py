"""Frames of JSON and bytes, by which ``worker`` and ``worker_process`` exchange calls and answers over pipes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

HEADER = struct.Struct(">II")
"""Lengths, in bytes, of the JSON and of the payload behind it."""


def frame(head: Mapping[str, Any], payload: bytes = b"") -> tuple[bytes, bytes, bytes]:
    """The parts of a frame, to be written in order. Raises TypeError and ValueError for values that JSON lacks."""
    data = json.dumps(head, ensure_ascii=False, check_circular=False).encode("utf-8", "surrogatepass")
    return HEADER.pack(len(data), len(payload)), data, payload


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """The JSON and payload of the next frame; None at the end of the stream."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    head_bytes, payload_bytes = HEADER.unpack(header)
    head = json.loads(stream.read(head_bytes).decode("utf-8", "surrogatepass"))
    return head, stream.read(payload_bytes)
