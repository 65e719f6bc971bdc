"""The lake itself: cells, moves, routes, and the best that can be hoped for. Knows no text and no turns' wording.

Cells are (row, column), counted from 0. A move that would leave the board stays where it is.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Cell = tuple[int, int]
Values = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]

# Clockwise from left: a slip goes to a neighbour in this order, and ties go to the earlier move.
MOVES: dict[str, Cell] = {"Left": (0, -1), "Up": (-1, 0), "Right": (0, 1), "Down": (1, 0)}
NAMES = tuple(MOVES)
# Chances that differ by less are equal.
TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Lake:
    """A map and where the player stands."""

    size: int
    holes: frozenset[Cell]
    goal: Cell
    player: Cell

    def look(self, cell: Cell) -> str:
        """What lies on a cell: edge, goal, hole or ice."""
        if not (0 <= cell[0] < self.size and 0 <= cell[1] < self.size):
            return "edge"
        return "goal" if cell == self.goal else "hole" if cell in self.holes else "ice"

    def beside(self, cell: Cell, name: str) -> Cell:
        """Where a move that does not slip leads."""
        row, column = cell[0] + MOVES[name][0], cell[1] + MOVES[name][1]
        return (row, column) if 0 <= row < self.size and 0 <= column < self.size else cell

    def moved(self, name: str) -> Lake:
        """After a move that does not slip."""
        return Lake(self.size, self.holes, self.goal, self.beside(self.player, name))

    def route(self, start: Cell, end: Cell) -> list[str] | None:
        """Shortest safe moves from `start` to `end`, breadth first, ties to the earlier of MOVES; None if no way."""
        came: dict[Cell, tuple[Cell, str] | None] = {start: None}
        frontier = deque([start])
        while frontier and end not in came:
            here = frontier.popleft()
            for name in NAMES:
                there = self.beside(here, name)
                if there not in came and there not in self.holes:
                    came[there] = (here, name)
                    frontier.append(there)
        if end not in came:
            return None
        moves: list[str] = []
        step = came[end]
        while step is not None:
            moves.append(step[1])
            step = came[step[0]]
        return moves[::-1]

    def openings(self, longest: int, limit: int) -> list[tuple[str, ...]]:
        """First `longest` moves, or all, of different safe ways to the goal of at most `limit` moves.

        An opening sees no cell twice; the way behind it is the shortest.
        """
        found: list[tuple[str, ...]] = []
        walks: deque[tuple[tuple[str, ...], tuple[Cell, ...]]] = deque([((), (self.player,))])
        while walks:
            moves, passed = walks.popleft()
            rest = self.route(passed[-1], self.goal)
            if rest is None or len(moves) + len(rest) > limit:
                continue
            if not rest or len(moves) == longest:
                found.append(moves)
                continue
            steps = ((name, self.beside(passed[-1], name)) for name in NAMES)
            walks += [((*moves, name), (*passed, c)) for name, c in steps if c not in passed and c not in self.holes]
        return found


def slipped(name: str, turn: int) -> str:
    """The move beside `name`: clockwise for 1, the other way for -1."""
    return NAMES[(NAMES.index(name) + turn) % len(NAMES)]


class BestPlay:
    """The best chances to reach the goal of a slippery lake, from every cell, with every number of turns and actions.

    The moves of a turn are fixed before any of them is made, so a turn is a sequence tried over the chances of where
    each slip leads, and turns are a dynamic programme: V(turns, actions, cell) = max over sequences w of at most
    `width` moves of E[V(turns - 1, actions - |w|, cell after w)], with 1 on the goal and 0 in a hole. Exact.
    """

    def __init__(self, lake: Lake, slip: float, turns: int, actions: int, width: int) -> None:
        self._lake, self._slip, self._width = lake, slip, width
        self._steps = _steps(lake)
        goal_only = np.zeros(lake.size**2)
        goal_only[_number(lake, lake.goal)] = 1.0
        self._values = {(0, left): goal_only for left in range(actions + 1)}
        for turn in range(1, turns + 1):
            for left in range(actions + 1):
                # Playing no move is never better than what one turn less is worth.
                self._values[turn, left] = np.maximum(self._values[turn - 1, left], self._best_turn(turn, left))

    def chance(self, cell: Cell, turns: int, actions: int) -> float:
        """The best chance from a cell."""
        return float(self._values[turns, actions][_number(self._lake, cell)])

    def moves(self, cell: Cell, turns: int, actions: int) -> list[str]:
        """The shortest moves of one turn from a cell, neither goal nor hole, that keep that chance; [] without one."""
        wanted, here = self.chance(cell, turns, actions), _number(self._lake, cell)
        if not wanted:
            return []
        for length in range(1, min(self._width, actions) + 1):
            worth = self._sequences(turns, actions, length)[:, here]
            number = int(worth.argmax())
            if worth[number] >= wanted - TINY:
                return [NAMES[number // 4 ** (length - 1 - i) % 4] for i in range(length)]
        return self.moves(cell, turns - 1, actions)

    def _best_turn(self, turns: int, actions: int) -> Values:
        """(cells,) the best that one turn of 1 to `width` moves comes to, with turns - 1 after it."""
        best = np.zeros(self._steps.shape[1])
        for length in range(1, min(self._width, actions) + 1):
            best = np.maximum(best, self._sequences(turns, actions, length).max(axis=0))
        return best

    def _sequences(self, turns: int, actions: int, length: int) -> Values:
        """(4^length, cells) what each sequence of moves is worth from each cell; its digits in base 4 are the moves."""
        sequences = self._values[turns - 1, actions - length][None]
        for _ in range(length):
            sequences = _backed_up(sequences, self._steps, self._slip)
        return sequences


@lru_cache(maxsize=16)
def best_play(lake: Lake, slip: float, turns: int, actions: int, width: int) -> BestPlay:
    """Kept, since all turns of an episode ask one table: give the lake with the player on its goal.

    width: most moves of a turn; time and memory grow with 4^width times the cells.
    """
    return BestPlay(lake, slip, turns, actions, width)


def _number(lake: Lake, cell: Cell) -> int:
    return cell[0] * lake.size + cell[1]


def _steps(lake: Lake) -> Steps:
    """(4, cells): where each move leads if it does not slip; goal and holes keep whoever is there."""
    cells = [divmod(index, lake.size) for index in range(lake.size**2)]
    steps = [
        [_number(lake, cell if lake.look(cell) in ("goal", "hole") else lake.beside(cell, name)) for cell in cells]
        for name in NAMES
    ]
    return np.array(steps)


def _backed_up(after: Values, steps: Steps, slip: float) -> Values:
    """(n, cells) values after a move -> (4 n, cells) before it: row a * n + i made move a, then followed row i."""
    reached = after[:, steps]  # (n, 4, cells)
    straight = (1 - slip) * reached
    aside = slip / 2 * (np.roll(reached, 1, axis=1) + np.roll(reached, -1, axis=1))
    return np.moveaxis(straight + aside, 1, 0).reshape(-1, after.shape[1])
