"""A room and what stands in it, as values: moves, pushes, walks. Knows no text of the game.

Cells are numbers, row * columns + column, counted from 0 at the top left; a set of cells is an int with a bit for each
("mask"). No floor touches the edge of the grid, so shifting a mask of floor by one cell never leaves its row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

# (rows, columns) of a move; ties go to the earlier one.
MOVES: dict[str, tuple[int, int]] = {"Left": (0, -1), "Up": (-1, 0), "Right": (0, 1), "Down": (1, 0)}
NAMES = tuple(MOVES)
OPPOSITE = {"Left": "Right", "Up": "Down", "Right": "Left", "Down": "Up"}

# The cell a box stands on and the direction it is pushed.
Push = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Room:
    """What never changes. `floor`, `targets`: masks; every cell that is no floor is wall."""

    rows: int
    columns: int
    floor: int
    targets: int

    def step(self, name: str) -> int:
        """What a move adds to a cell's number."""
        down, right = MOVES[name]
        return down * self.columns + right


@dataclass(frozen=True, slots=True)
class Board:
    """A room, the player's cell and the mask of the boxes.

    `known`: moves that solve it from here, by the way it was made; empty where none are known.
    """

    room: Room
    player: int
    boxes: int
    known: tuple[str, ...] = field(default=(), compare=False)

    @property
    def solved(self) -> bool:
        """Whether every box is on a target."""
        return self.boxes == self.room.targets

    @property
    def free(self) -> int:
        """Mask of the floor without boxes, where the player can walk."""
        return self.room.floor & ~self.boxes

    @property
    def boxes_on_targets(self) -> int:
        """How many boxes are on targets."""
        return (self.boxes & self.room.targets).bit_count()

    def moved(self, name: str) -> Board:
        """After a move; the same board where a wall or a blocked box is in the way."""
        step = self.room.step(name)
        there = self.player + step
        cell, boxes, floor = 1 << there, self.boxes, self.room.floor
        if boxes & cell:
            beyond = 1 << (there + step)
            if not floor & beyond or boxes & beyond:
                return self
            boxes ^= cell | beyond
        elif not floor & cell:
            return self
        known = self.known[1:] if self.known and self.known[0] == name else ()
        return Board(self.room, there, boxes, known)

    def look(self, cell: int) -> str:
        """What lies on a cell: box, target, floor or wall."""
        bit = 1 << cell
        if self.boxes & bit:
            return "box"
        return "target" if self.room.targets & bit else "floor" if self.room.floor & bit else "wall"

    def walk(self, end: int) -> list[str] | None:
        """Fewest moves to a cell without pushing a box; None if there is no way."""
        if not self.free >> end & 1:
            return None
        layers: list[int] = []
        for layer in spread(self.free, 1 << self.player, self.room.columns):
            layers.append(layer)
            if layer >> end & 1:
                return self._way_back(layers, end)
        return None

    def _way_back(self, layers: Sequence[int], end: int) -> list[str]:
        moves: list[str] = []
        for layer in reversed(layers[:-1]):
            name = next(name for name in NAMES if layer >> (end - self.room.step(name)) & 1)
            moves.append(name)
            end -= self.room.step(name)
        return moves[::-1]

    def moves_of(self, pushes: Sequence[Push]) -> list[str] | None:
        """The pushes in their order, each after the shortest walk to where it starts; None if one cannot be made."""
        board, moves = self, list[str]()
        for cell, name in pushes:
            way = board.walk(cell - self.room.step(name)) if board.boxes >> cell & 1 else None
            if way is None:
                return None
            after = Board(board.room, cell - self.room.step(name), board.boxes).moved(name)
            if after.boxes == board.boxes:
                return None
            board = after
            moves += [*way, name]
        return moves


def spread(free: int, start: int, columns: int) -> Iterator[int]:
    """Masks of the cells of `free` that are 0, 1, 2, ... moves away from the mask `start`, until there are none."""
    seen = layer = start
    while layer:
        yield layer
        layer = (layer << 1 | layer >> 1 | layer << columns | layer >> columns) & free & ~seen
        seen |= layer


def shifted(mask: int, step: int) -> int:
    """Every cell of the mask moved by `step`."""
    return mask << step if step > 0 else mask >> -step


def cells_of(mask: int) -> list[int]:
    """The cells of a mask, in their order."""
    cells = []
    while mask:
        low = mask & -mask
        cells.append(low.bit_length() - 1)
        mask ^= low
    return cells
