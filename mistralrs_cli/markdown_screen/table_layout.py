"""Tables in aligned columns, or as a list of fields where the terminal is too narrow for columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.style import Style

from mistralrs_cli.markdown_screen.word_wrap import Piece, cell_width, wrap

_LEAST_COLUMN = 6
_GAP = 2


class Cell(NamedTuple):
    """The text of a cell, and ``left``, ``right`` or ``center``; empty: left."""

    pieces: list[Piece]
    align: str


class TableShape(NamedTuple):
    """The columns of a table, which further rows of it keep."""

    width: int
    """Cells that there are."""
    columns: tuple[int, ...]
    """Cells of each column; empty: the terminal is too narrow for columns."""


def shape_of(rows: Sequence[Sequence[Cell]], width: int) -> TableShape:
    """Returns the columns that rows need in ``width`` cells."""
    natural = [
        max(max(map(_line_width, wrap(cell.pieces, width))) for cell in column) for column in zip(*rows, strict=True)
    ]
    available = width - _GAP * (len(natural) - 1)
    if available < sum(min(each, _LEAST_COLUMN) for each in natural):
        return TableShape(width, ())
    return TableShape(width, tuple(_fitted(natural, available)))


def table_lines(
    rows: Sequence[Sequence[Cell]], shape: TableShape, *, rule: Style, continues: bool
) -> list[list[Piece]]:
    """Returns the lines of a table; the first row is its head, and a rule is below it. ``continues``: the head and
    earlier rows are shown already."""
    if not shape.columns:
        fields = _fields(rows, shape.width)
        return [[], *fields] if continues else fields
    lines: list[list[Piece]] = []
    for number, row in enumerate(rows):
        if number == 0 and continues:
            continue
        lines += _row(row, shape.columns)
        if number == 0:
            lines.append([Piece((" " * _GAP).join("─" * each for each in shape.columns), rule)])
    return lines


def _fitted(natural: Sequence[int], available: int) -> list[int]:
    """Returns widths of columns that fit; the widest ones give way."""
    widths = [max(each, 1) for each in natural]
    excess = sum(widths) - available
    while excess > 0:
        widest = max(widths)
        seconds = max([each for each in widths if each < widest], default=1)
        places = [place for place, each in enumerate(widths) if each == widest]
        step = max(1, min(widest - seconds, excess // len(places)))
        for place in places[:excess]:
            widths[place] -= step
        excess = sum(widths) - available
    return widths


def _row(row: Sequence[Cell], widths: Sequence[int]) -> list[list[Piece]]:
    cells = [wrap(cell.pieces, width) for cell, width in zip(row, widths, strict=True)]
    lines = []
    for number in range(max(map(len, cells))):
        line: list[Piece] = []
        behind = 0
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            text = cell[number] if number < len(cell) else []
            room = max(0, width - _line_width(text))
            before = {"right": room, "center": room // 2}.get(row[place].align, 0)
            if text:
                line += [Piece(" " * (behind + before)), *text]
                behind = 0
            else:
                before = 0
            behind += (room - before) + _GAP
        lines.append(line)
    return lines


def _fields(rows: Sequence[Sequence[Cell]], width: int) -> list[list[Piece]]:
    lines: list[list[Piece]] = []
    for row in rows[1:] or rows:
        if lines:
            lines.append([])
        for head, cell in zip(rows[0], row, strict=True):
            text = cell.pieces if row is rows[0] else [*head.pieces, Piece(": "), *cell.pieces]
            lines += wrap(text, width)
    return lines


def _line_width(line: Sequence[Piece]) -> int:
    return sum(cell_width(piece.text) for piece in line)
