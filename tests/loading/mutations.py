"""Damaged model files: from a sound one and a generator of random numbers, one broken in one to three places.

Half of the damage is done to the numbers of the header (counts, lengths, types, offsets); in GGUF files `gguf` finds
them.
"""

from __future__ import annotations

import math
import struct
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import gguf
from hypothesis import event

from mistralrs.errors import LoadError
from mistralrs.loading.checkpoint import Checkpoint
from mistralrs.loading.gguf_file import GgufFile

SECONDS = 1.0
BYTES = 16 << 20
"""The memory that reading may take: some hundred times that of a tiny file's metadata."""

NUMBERS = (
    0, 1, 2, 3, 7, 8, 31, 32, 33, 127, 255, 256, 65535, 10**6, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62,
    2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1,
)  # fmt: skip
"""Values at which arithmetic overflows or changes its sign."""


@dataclass(frozen=True, slots=True)
class Base:
    """A valid file to be damaged: its first bytes, the zeros behind them, and the places of the header's numbers."""

    name: str
    data: bytes
    zeros: int
    numbers: tuple[tuple[int, int], ...]
    """(position, size) of each, sizes 4 and 8."""

    @classmethod
    def read(cls, path: Path, *, header_only: bool = False) -> Base:
        """Returns the file; with ``header_only`` its data section is zeros, which a file system need not store."""
        reader = gguf.GGUFReader(path)
        data = path.read_bytes()
        numbers = [(4, 4), (8, 8), (16, 8)]  # version and counts
        for field in [*reader.fields.values(), *(tensor.field for tensor in reader.tensors)]:
            numbers += _numbers_of(field) if field.offset >= 24 else []
        kept = reader.data_offset if header_only else len(data)
        return cls(path.name, data[:kept], len(data) - kept, tuple(numbers))


def _numbers_of(field: gguf.ReaderField) -> list[tuple[int, int]]:
    """Returns the lengths and types of one entry, and its value if it is a number; of long arrays a few elements."""
    numbers, position = [], field.offset
    for part in field.parts:
        if part.dtype.itemsize >= 4:
            numbers += [(position + i * part.dtype.itemsize, part.dtype.itemsize) for i in range(part.size)]
        position += part.nbytes
    return numbers if len(numbers) <= 32 else numbers[:24] + numbers[-8:]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A damaged file, not yet written."""

    data: bytes
    zeros: int

    def write(self, path: Path) -> None:
        with path.open("wb") as file:
            file.write(self.data)
            file.truncate(len(self.data) + self.zeros)


def mutate(base: Base, random: Random) -> Mutant:
    """Returns a damaged file, which is the same for the same state of ``random``."""
    data, zeros = bytearray(base.data), base.zeros
    for _ in range(random.randint(1, 3)):
        kind = random.randint(0, 9)
        if kind <= 4:
            _change_number(data, base, random)
        elif kind <= 6:
            _flip_bits(data, random)
        elif kind == 7:
            del data[random.randint(0, len(data)) :]
            zeros = 0
        else:
            _move_bytes(data, random)
    return Mutant(bytes(data), zeros)


def _change_number(data: bytearray, base: Base, random: Random) -> None:
    position, size = random.choice(base.numbers)
    if position + size > len(data):
        return
    code = "<I" if size == 4 else "<Q"
    value = struct.unpack_from(code, data, position)[0]
    choice = random.randint(0, 2)
    if choice == 0:
        value = random.choice(NUMBERS)
    elif choice == 1:
        value += random.choice((-32, -8, -1, 1, 8, 32))
    else:
        value = random.getrandbits(random.randint(1, 8 * size))
    struct.pack_into(code, data, position, value % (1 << 8 * size))


def _flip_bits(data: bytearray, random: Random) -> None:
    for _ in range(random.randint(1, 8)):
        if data:
            # Everything else depends on the first bytes.
            reach = random.choice((64, 1024, len(data)))
            data[random.randrange(min(reach, len(data)))] ^= 1 << random.randint(0, 7)


def _move_bytes(data: bytearray, random: Random) -> None:
    """Deletes, inserts or repeats a range of bytes, which moves everything after it."""
    start = random.randint(0, len(data))
    stretch = data[start : start + random.randint(1, 64)]
    choice = random.randint(0, 2)
    if choice == 0:
        del data[start : start + len(stretch)]
    elif choice == 1:
        data[start:start] = random.randbytes(random.randint(1, 64))
    else:
        data[start:start] = stretch


def open_and_read(path: Path) -> None:
    """Opens a GGUF file and reads it; AssertionError if a tensor does not match its entry."""
    with GgufFile.open(path) as file:
        check_and_read(file)


def check_and_read(checkpoint: Checkpoint) -> None:
    """Reads a byte of every page of every tensor; AssertionError if one does not match its entry."""
    for name, tensor in checkpoint.tensors.items():
        assert tensor.name == name
        assert checkpoint.tensor(name) is tensor
        columns = tensor.shape[-1] if tensor.shape else 1
        assert columns % tensor.type.block_len == 0
        assert len(tensor.data) == math.prod(tensor.shape[:-1]) * tensor.type.row_bytes(columns)
        sum(tensor.data[::4096])
        checkpoint.release(tensor)


def assert_sound_or_refused(path: Path, load: Callable[[Path], None] = open_and_read) -> None:
    """Checks that ``load`` reads or refuses the file at once and without taking memory."""
    refusal: LoadError | None = None
    tracemalloc.start()
    start = time.process_time()
    try:
        load(path)
    except LoadError as error:
        refusal = error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert time.process_time() - start < SECONDS
    assert peak < BYTES
    event("loaded" if refusal is None else "refused")
    if refusal is not None:
        assert str(path) in refusal.message
        assert refusal.hint
