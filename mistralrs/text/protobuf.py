"""Reads the wire format of protocol buffers: the numbered fields of one message of any type.

The format is described at protobuf.dev under "Encoding".
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}


class WireError(ValueError):
    """The bytes are not a valid message."""


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field in the order of the file: an unsigned integer of up to 64 bits, or bytes.

    Values of fixed size are bytes too, 4 or 8 of them, little-endian. Raises WireError when the bytes end too early or
    are invalid.
    """
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if number == 0:
            raise WireError(f"a field has the number 0, before byte {position}")
        if wire_type == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type == _BYTES:
            length, position = _varint(message, position)
        elif wire_type in _FIXED:
            length = _FIXED[wire_type]
        else:
            raise WireError(f"field {number} has the unknown wire type {wire_type}, before byte {position}")
        if length > end - position:
            raise WireError(f"field {number} ends behind the end, from byte {position}")
        yield number, message[position : position + length]
        position += length


def signed(value: int) -> int:
    """The value of a signed integer field, whose negative values are written as 64 bits."""
    return value - (1 << 64) if value >> 63 else value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number stored in seven bits per byte, lowest first, and the position behind it."""
    value = shift = 0
    for byte in message[position : position + 10]:
        value |= (byte & 0x7F) << shift
        position += 1
        shift += 7
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
    raise WireError(f"a number does not end, before byte {position}")
