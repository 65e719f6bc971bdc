"""Fewest moves that solve a board: A* over pushes, the walks between them counted exactly.

A node is (boxes, player) right after a push; its cost is all moves so far. The estimate is the sum over the boxes of
the fewest pushes from each to its nearest target if it were alone, which never exceeds the moves that are left. Cells
from which a lone box reaches no target are dead: no box is pushed there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from heapq import heappop, heappush

from envs.sokoban.grid import NAMES, Board, Push, Room, cells_of, shifted, spread

# Nodes whose pushes are looked at before a search gives up, about a second on one core: of boards with at most so much
# to look at, cells times boxes. Larger ones get as many fewer nodes as they have more.
MOST_NODES = 50_000
USUAL_WORK = 16 * 16 * 3

Node = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Found:
    """What a search for a solution of at most some number of moves came to.

    moves: a solution, None if there is none or none was found. proven: the moves are the fewest, or there is no
    solution. least: no solution has fewer moves.
    """

    moves: tuple[str, ...] | None
    proven: bool
    least: int


class Solver:
    """Searches, and remembers the last board's searches and the boards on a way it found: to follow that is cheap.

    What a search proved holds for every equal board. What a board is known to be solved by is its own, and not kept.
    """

    def __init__(self, most_nodes: int = MOST_NODES) -> None:
        self._most_nodes = most_nodes
        self._ways: dict[Board, tuple[str, ...]] = {}
        self._board: Board | None = None
        self._founds: dict[int | None, Found] = {}

    def solve(self, board: Board, most: int | None = None) -> Found:
        """A solution of the fewest moves, if they are at most `most`; where search gives up, the board's known one."""
        way = self._ways.get(board)
        if way is not None:
            return _within(Found(way, True, len(way)), most)
        if self._board != board:
            self._board, self._founds = board, {}
        if most not in self._founds:
            found = self._founds[most] = search(board, most, self._most_nodes)
            if found.moves is not None and found.proven:
                self._ways = _boards_on_the_way(board, found.moves)
        found = self._founds[most]
        return found if found.proven else replace(found, moves=_known(board, most))


def _within(found: Found, most: int | None) -> Found:
    return found if most is None or found.least <= most else Found(None, True, found.least)


def _known(board: Board, most: int | None) -> tuple[str, ...] | None:
    return board.known if board.known and (most is None or len(board.known) <= most) else None


def _boards_on_the_way(board: Board, moves: tuple[str, ...]) -> dict[Board, tuple[str, ...]]:
    """Every board on the way -> the moves that are left, which are the fewest from there too."""
    ways = {board: moves}
    for done, name in enumerate(moves, start=1):
        board = board.moved(name)
        ways[board] = moves[done:]
    return ways


def search(board: Board, most: int | None = None, most_nodes: int = MOST_NODES) -> Found:
    """Without memory; see Solver.solve. Looks at `most_nodes` nodes at most, at fewer on boards above USUAL_WORK."""
    work = board.room.rows * board.room.columns * board.boxes.bit_count()
    return _Search(board, most).run(most_nodes * USUAL_WORK // max(work, USUAL_WORK))


class _Search:
    """One A* search for a solution of at most `most` moves."""

    def __init__(self, board: Board, most: int | None) -> None:
        self._board = board
        self._most = most
        self._far = pushes_left(board.room)
        self._alive = living(board.room)
        start = board.boxes, board.player
        self._costs: dict[Node, int] = {start: 0}
        self._came: dict[Node, tuple[Node, Push]] = {}
        self._queue: list[tuple[int, int, int, int]] = []
        # A box on a dead cell never leaves them.
        if not board.boxes & ~self._alive:
            self._put(start, 0, sum(self._far[cell] for cell in cells_of(board.boxes)))

    def _put(self, node: Node, cost: int, left: int) -> None:
        if self._most is None or cost + left <= self._most:
            heappush(self._queue, (cost + left, left, *node))

    def run(self, most_nodes: int) -> Found:
        closed: set[Node] = set()
        while self._queue:
            total, left, boxes, player = heappop(self._queue)
            node = boxes, player
            if node in closed:
                continue
            if not left:
                return Found(self._moves(node), True, total)
            if len(closed) >= most_nodes:
                return Found(_known(self._board, self._most), False, total)
            closed.add(node)
            self._expand(node, left)
        return Found(None, True, 0 if self._most is None else self._most + 1)

    def _expand(self, node: Node, left: int) -> None:
        """`left`: what the estimate says of the node."""
        boxes, player = node
        for walked, there, step, name in next_pushes(self._board.room, self._alive, boxes, player):
            cost, beyond = self._costs[node] + walked + 1, there + step
            after = boxes ^ (1 << there | 1 << beyond), there
            if self._costs.get(after, cost + 1) > cost:
                self._costs[after] = cost
                self._came[after] = node, (there, name)
                self._put(after, cost, left - self._far[there] + self._far[beyond])

    def _moves(self, node: Node) -> tuple[str, ...]:
        pushes: list[Push] = []
        while node in self._came:
            node, push = self._came[node]
            pushes.append(push)
        moves = self._board.moves_of(pushes[::-1])
        assert moves is not None, "every push that was searched can be made"
        return tuple(moves)


def next_pushes(room: Room, alive: int, boxes: int, player: int) -> Iterator[tuple[int, int, int, str]]:
    """Every push that can be made next onto a cell of `alive`: (moves walked before it, the box's cell, step, name)."""
    free = room.floor & ~boxes
    # For each direction, the cells to push from: a box ahead, and a free living cell ahead of that.
    stands = []
    for name in NAMES:
        step = room.step(name)
        stand = shifted(boxes, -step) & shifted(free & alive, -2 * step) & free
        if stand:
            stands.append((stand, step, name))
    wanted = 0
    for stand, _, _ in stands:
        wanted |= stand
    for walked, layer in enumerate(spread(free, 1 << player, room.columns)):
        if layer & wanted:
            wanted &= ~layer
            for stand, step, name in stands:
                for cell in cells_of(layer & stand):
                    yield walked, cell + step, step, name
        if not wanted:
            return


@lru_cache(maxsize=64)
def pushes_left(room: Room) -> tuple[int, ...]:
    """For each cell the fewest pushes of a lone box from there to the nearest target; 0 too where it reaches none."""
    far = [0] * (room.rows * room.columns)
    for distance, layer in enumerate(_pulled(room)):
        for cell in cells_of(layer):
            far[cell] = distance
    return tuple(far)


@lru_cache(maxsize=64)
def living(room: Room) -> int:
    """Mask of the cells from which a lone box can be pushed to a target."""
    return sum(_pulled(room))


def _pulled(room: Room) -> Iterator[int]:
    """Masks of the cells from which a lone box needs 0, 1, 2, ... pushes to a target."""
    floor, seen, layer = room.floor, room.targets, room.targets
    while layer:
        yield layer
        before = 0
        for step in map(room.step, NAMES):
            # The box was one cell back, and the player stood another cell back.
            before |= shifted(layer, -step) & floor & shifted(floor, step)
        layer = before & ~seen
        seen |= layer
