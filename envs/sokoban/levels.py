"""Levels from text files in the common format.

`#` wall, `@` player, `+` player on a target, `$` box, `*` box on a target, `.` target, blank or `-` or `_` floor. A
level is a run of lines that begin with a wall, after floor; anything else (blank lines, titles, `;` comments) separates
levels. What the player cannot reach is drawn as wall; boxes there that are on their targets count as decoration.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import StringIO
from itertools import chain
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from threading import Lock

from configs.files import read_file
from envs.base import BadEnvironment
from envs.sokoban.grid import Board, Room, spread

ENDINGS = (".txt", ".sok", ".xsb")
LARGEST = 64
MOST_BOXES = 200
# Collections have a hundred thousand; small levels take thirty times their bytes, and a second a megabyte.
MOST_BYTES = 4 * 2**20
_FLOOR = " -_"
_KNOWN = frozenset("#@+$*." + _FLOOR)

# Number, from 1, and text of a line.
Line = tuple[int, str]
# Path, time of the last change and size of a file.
Stamp = tuple[str, int, int]

_LOADING = Lock()


@dataclass(frozen=True, slots=True)
class Source:
    """Where levels come from, for messages."""

    path: str

    def bad(self, line: int, what: str) -> BadEnvironment:
        """The complaint about a line, counted from 1."""
        return BadEnvironment(f"env.levels: {_shown(self.path)}:{line}: {what}")


def load(path: str) -> tuple[Board, ...]:
    """The levels of a file, or of a folder's files sorted by name; `~` is the home folder. Raises BadEnvironment.

    They are read once a process while no file changes: called for every episode, it only looks at the files' dates.
    """
    try:
        stamps = _stamps(Path(path).expanduser())
        with _LOADING:
            return _loaded(stamps)
    except BadEnvironment:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or error
        raise BadEnvironment(f"env.levels: {_shown(path)} cannot be read ({why}): name a file of levels") from None


def _stamps(path: Path) -> tuple[Stamp, ...]:
    status = path.stat()
    if S_ISREG(status.st_mode):
        return (_stamp(str(path), status),)
    if not S_ISDIR(status.st_mode):
        raise BadEnvironment(f"env.levels: {_shown(path)} is neither a file nor a folder: name a file of levels")
    with os.scandir(path) as entries:
        files = [entry for entry in entries if Path(entry.name).suffix.lower() in ENDINGS and entry.is_file()]
    if not files:
        raise BadEnvironment(
            f"env.levels: folder {_shown(path)} holds no file that ends in {', '.join(ENDINGS)}: add one"
        )
    return tuple(sorted(_stamp(file.path, file.stat()) for file in files))


def _stamp(path: str, status: os.stat_result) -> Stamp:
    if status.st_size > MOST_BYTES:
        raise BadEnvironment(
            f"env.levels: {_shown(path)} has more than {MOST_BYTES >> 20} MiB: split it, or name another file"
        )
    return path, status.st_mtime_ns, status.st_size


@lru_cache(maxsize=8)
def _loaded(files: tuple[Stamp, ...]) -> tuple[Board, ...]:
    """All levels in the order of the files; one entry a folder, whatever the number of its files."""
    return tuple(board for path, _, _ in files for board in parse(_text(path), path))


def _text(path: str) -> str:
    return read_file(path, MOST_BYTES).decode("utf-8-sig", errors="replace")


def _shown(path: str | Path) -> str:
    """On one line, whatever is in it."""
    name = str(path)
    return name if name.isprintable() else ascii(name)


def parse(text: str, path: str) -> tuple[Board, ...]:
    """The levels of a text; `path` is for messages. Raises BadEnvironment, also where there are none."""
    source = Source(path)
    boards = tuple(_board(rows, source) for rows in _levels(text))
    if not boards:
        raise source.bad(1, "no level in this file: a level is lines of # @ + $ * . and blanks")
    return boards


def _levels(text: str) -> Iterator[list[Line]]:
    """The rows of each level. A line in the middle of one that ends in a wall is a row, whatever it begins with."""
    rows: list[Line] = []
    lines = StringIO(text, newline=None)  # ends lines as any system does, and at no other character
    for number, line in enumerate(chain(lines, [""]), start=1):
        line = line.rstrip()
        inner = line.lstrip(_FLOOR)
        if inner.startswith("#") or (rows and inner and (line.endswith("#") or _KNOWN.issuperset(line))):
            rows.append((number, line))
            if len(rows) > LARGEST:  # refused for that, wherever it ends
                yield rows
        elif rows:
            yield rows
            rows = []


def _board(rows: list[Line], source: Source) -> Board:
    margin = min(len(line) - len(line.lstrip(_FLOOR)) for _, line in rows)
    rows = [(number, line[margin:]) for number, line in rows]
    _check_size(rows, source)
    for number, line in rows:
        strange = next((c for c in line if c not in _KNOWN), None)
        if strange is not None:
            raise source.bad(number, f"unknown character {strange!a} in a level: use # @ + $ * . and blanks")
    columns = max(len(line) for _, line in rows)
    grid = "".join(line.ljust(columns) for _, line in rows)
    player = _player(rows, columns, source)
    floor = _reached(grid, 1 << player, columns)
    edge = _mask(grid, " -_@+$*.") & _edge(len(rows), columns)
    outside = _reached(grid, edge, columns) if edge else 0
    if floor & outside:
        raise source.bad(rows[player // columns][0], "the walls around the player have a gap: close them with #")
    _check_reachable(rows, grid, columns, floor, outside, source)
    boxes, targets = _mask(grid, "$*") & floor, _mask(grid, ".+*") & floor
    first = rows[0][0]
    if not boxes:
        raise source.bad(first, "no box ($) in this level")
    if boxes.bit_count() != targets.bit_count():
        raise source.bad(
            first, f"boxes ({boxes.bit_count()}) and targets ({targets.bit_count()}) of this level must be as many"
        )
    if boxes.bit_count() > MOST_BOXES:
        raise source.bad(first, f"{boxes.bit_count()} boxes in this level: at most {MOST_BOXES}")
    if boxes == targets:
        raise source.bad(first, "this level is solved already: move a box off its target")
    return Board(Room(len(rows), columns, floor, targets), player, boxes)


def _check_size(rows: list[Line], source: Source) -> None:
    if len(rows) > LARGEST:
        raise source.bad(rows[0][0], f"a level of more than {LARGEST} rows: split it, or take it out")
    for number, line in rows:
        if len(line) > LARGEST:
            raise source.bad(number, f"a level of {len(line)} columns: at most {LARGEST}")


def _player(rows: list[Line], columns: int, source: Source) -> int:
    places = [
        (i * columns + column, number)
        for i, (number, line) in enumerate(rows)
        for column, c in enumerate(line)
        if c in "@+"
    ]
    if not places:
        raise source.bad(rows[0][0], "no player (@) in this level")
    if len(places) > 1:
        raise source.bad(places[1][1], f"a second player (@) in this level; the first is in line {places[0][1]}")
    return places[0][0]


def _check_reachable(rows: list[Line], grid: str, columns: int, floor: int, outside: int, source: Source) -> None:
    for cell, c in enumerate(grid):
        if c in "$." and not floor >> cell & 1:
            what = "box" if c == "$" else "target"
            where = "outside the walls" if outside >> cell & 1 else "where the player cannot get"
            raise source.bad(rows[cell // columns][0], f"a {what} {where}: move it, or take it out")
        if c == "*" and outside >> cell & 1:
            raise source.bad(rows[cell // columns][0], "a box outside the walls: move it, or take it out")


def _mask(grid: str, wanted: str) -> int:
    return sum(1 << cell for cell, c in enumerate(grid) if c in wanted)


def _edge(rows: int, columns: int) -> int:
    row = (1 << columns) - 1
    sides = sum((1 | 1 << (columns - 1)) << columns * i for i in range(rows))
    return row | row << columns * (rows - 1) | sides


def _reached(grid: str, start: int, columns: int) -> int:
    """Mask of the cells that can be walked to through boxes, in a grid whose lines go on into one another."""
    reached = 0
    for layer in spread(_mask(grid, " -_@+$*."), start, columns):
        reached |= layer
    return reached
