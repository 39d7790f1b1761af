"""Reads GGUF models through a memory map: metadata as Python values, tensors as bytes of the map.

The files of a split model are opened together.
"""

from __future__ import annotations

import re
from pathlib import Path

from mistralrs.errors import FormatError, LoadError
from mistralrs.loading.checkpoint import Default, DescribedCheckpoint, RawTensor
from mistralrs.loading.cursor import shown
from mistralrs.loading.gguf_header import GgufPart, read_part

__all__ = ["GgufFile", "RawTensor", "part_names"]

_PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"
_SPLIT_HINT = "the parts of a model lie in one folder and are called NAME-00001-of-00003.gguf and so on"


class GgufFile(DescribedCheckpoint):
    """An open GGUF model; a context manager."""

    def __init__(self, path: Path, parts: list[GgufPart]) -> None:
        spans = {name: span for part in parts for name, span in part.spans.items()}
        super().__init__(path, [part.mapping for part in parts], spans, metadata=parts[0].metadata)
        self.version = parts[0].version
        start, end = parts[0].metadata_range
        self.metadata_bytes = parts[0].mapping[start:end]
        """The metadata of the first file as it is stored there."""

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Maps the file and reads its header, but no tensors. Any part of a split model opens the whole model.

        Raises LoadError if the file or another part is missing or cannot be read; FormatError if it is not valid.
        """
        part = read_part(path)
        count = _number(part, _COUNT, default=1)
        return cls(path, [part] if count <= 1 else _read_parts(part, count))


def part_names(name: str) -> list[str]:
    """The file names of all parts of the split model to which a file of this name belongs, or else its own name."""
    match = _PART_NAME.fullmatch(name)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]):
        return [name]
    count = int(match["count"])
    return [f"{match['stem']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


def _read_parts(opened: GgufPart, count: int) -> list[GgufPart]:
    path = opened.path
    paths = [path.with_name(name) for name in part_names(path.name)]
    if len(paths) != count:
        reason = f"is {count}, but the file's name is not that of one of so many parts"
        raise FormatError(str(path), f"metadata key {_COUNT!r}", reason, hint=_SPLIT_HINT)
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        missing_parts = (
            f"part {missing[0]} is missing" if len(missing) == 1 else f"{len(missing)} are missing: {missing[0]}, ..."
        )
        raise LoadError(
            f"{path} is one of {count} parts of a model; {missing_parts}", hint="put all parts into one folder"
        )
    parts = [opened if part == path else read_part(part) for part in paths]
    seen: dict[str, Path] = {}
    for number, part in enumerate(parts):
        for key, expected in ((_NUMBER, number), (_COUNT, count)):
            found = _number(part, key, default=None)
            if found != expected:
                reason = f"is {'missing' if found is None else found}, expected {expected}"
                raise FormatError(str(part.path), f"metadata key {key!r}", reason, hint=_SPLIT_HINT)
        duplicates = seen.keys() & part.spans.keys()
        if duplicates:
            name = min(duplicates)
            raise FormatError(
                str(part.path), f"tensor {shown(name)}", f"is also in {seen[name].name}", hint=_SPLIT_HINT
            )
        seen |= dict.fromkeys(part.spans, part.path)
    total = _number(parts[0], _TENSORS, default=len(seen))
    if total != len(seen):
        reason = f"is {total}, but the {count} parts have {len(seen)} tensors"
        raise FormatError(str(parts[0].path), f"metadata key {_TENSORS!r}", reason, hint=_SPLIT_HINT)
    return parts


def _number(part: GgufPart, key: str, *, default: Default) -> int | Default:
    if key not in part.metadata:
        return default
    value = part.metadata[key]
    if type(value) is not int or value < 0:
        raise FormatError(str(part.path), f"metadata key {key!r}", f"is {shown(value)}, expected a count")
    return value
