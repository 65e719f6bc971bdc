"""New rooms by reverse play: boxes start on their targets and are pulled away, so the way back solves the room."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from envs.sokoban.grid import NAMES, OPPOSITE, Board, Push, Room, cells_of, shifted, spread

# Floor as a share of the cells inside the outer wall. With less of it most rooms allow a single order of pushes.
LEAST_FLOOR, MOST_FLOOR = 0.7, 1.0
# Chance that the walk which carves the floor turns after a step.
TURN_SHARE = 0.5
# Pulls are drawn from 1 a box to this many a box and, for long ways in large rooms, half a row and column more.
PULLS_A_BOX = 4
MOST_DRAWS = 300


@dataclass(frozen=True, slots=True)
class Plan:
    """What a room is to be like: its size with the outer wall, and the most moves that solving it may take."""

    rows: int
    columns: int
    boxes: int
    most_moves: int


def draw_board(plan: Plan, rng: Random) -> Board | None:
    """A board that `board.known` solves in at most `plan.most_moves` moves; None if MOST_DRAWS draws find none.

    No box starts on a target, unless the moves are fewer than the boxes or all draws leave one there.
    """
    best = None
    for _ in range(MOST_DRAWS):
        board = _drawn(plan, rng)
        if board is None:
            continue
        if board.boxes_on_targets <= max(0, plan.boxes - plan.most_moves):
            return board
        if best is None or board.boxes_on_targets < best.boxes_on_targets:
            best = board
    return best


def _drawn(plan: Plan, rng: Random) -> Board | None:
    floor = carved(plan, rng)
    cells = cells_of(floor)
    if len(cells) < 2 * plan.boxes + 1:
        return None
    *targets, player = rng.sample(cells, plan.boxes + 1)
    room = Room(plan.rows, plan.columns, floor, sum(1 << cell for cell in targets))
    pulls = rng.randint(plan.boxes, PULLS_A_BOX * plan.boxes + (plan.rows + plan.columns) // 2)
    board = _Reverse(room, player, plan.most_moves).played(pulls, rng)
    # A room that one move solves teaches nothing, unless there are no more moves.
    if board is not None and plan.most_moves > 1 and any(board.moved(name).solved for name in NAMES):
        return None
    return board


def carved(plan: Plan, rng: Random) -> int:
    """Mask of a connected floor inside the outer wall: the track of a random walk, of a drawn size."""
    rows, columns = plan.rows, plan.columns
    row = sum(1 << column for column in range(1, columns - 1))
    inside = sum(row << columns * i for i in range(1, rows - 1))
    size = inside.bit_count()
    wanted = max(2 * plan.boxes + 1, round(size * rng.uniform(LEAST_FLOOR, MOST_FLOOR)))
    steps = (-1, -columns, 1, columns)
    cell = rng.randrange(1, rows - 1) * columns + rng.randrange(1, columns - 1)
    step = rng.choice(steps)
    floor = 1 << cell
    # Far more steps than a walk needs to get everywhere; what it left out then stays wall.
    for _ in range(40 * size):
        if floor.bit_count() >= wanted:
            break
        if rng.random() < TURN_SHARE or not inside >> (cell + step) & 1:
            step = rng.choice(steps)
        if inside >> (cell + step) & 1:
            cell += step
            floor |= 1 << cell
    return floor


class _Reverse:
    """Reverse play in one room, from the end of the solution back to its start."""

    def __init__(self, room: Room, player: int, most_moves: int) -> None:
        self._room = room
        self._boxes = room.targets
        self._player = player
        self._left = most_moves
        self._pushes: list[Push] = []

    def played(self, pulls: int, rng: Random) -> Board | None:
        """The board after at most so many pulls and a walk; None where there is no pull."""
        seen = {self._boxes}
        for _ in range(pulls):
            options = [pull for pull in self._options() if self._after(*pull[1:]) not in seen]
            if not options:
                break
            self._pull(*options[rng.randrange(len(options))])
            seen.add(self._boxes)
        if self._boxes == self._room.targets:
            return None
        self._walk(rng)
        board = Board(self._room, self._player, self._boxes)
        known = board.moves_of(self._pushes[::-1])
        assert known is not None, "what was pulled can be pushed back"
        return Board(self._room, self._player, self._boxes, tuple(known))

    def _options(self) -> Iterator[tuple[int, int, str]]:
        """Every pull there are moves for: (moves with the walk to it, the player's cell before it, direction)."""
        room, boxes = self._room, self._boxes
        free = room.floor & ~boxes
        steps = [(name, room.step(name)) for name in NAMES]
        stands = [(name, shifted(boxes, step) & free & shifted(free, -step)) for name, step in steps]
        for walked, layer in enumerate(spread(free, 1 << self._player, room.columns)):
            # The player need not have walked to where the solution ends.
            moves = walked + 1 if self._pushes else 1
            if moves > self._left:
                return
            for name, stand in stands:
                for cell in cells_of(layer & stand):
                    yield moves, cell, name

    def _after(self, cell: int, name: str) -> int:
        return self._boxes ^ (1 << cell | 1 << (cell - self._room.step(name)))

    def _pull(self, moves: int, cell: int, name: str) -> None:
        self._boxes = self._after(cell, name)
        self._player = cell + self._room.step(name)
        self._left -= moves
        self._pushes.append((cell, OPPOSITE[name]))

    def _walk(self, rng: Random) -> None:
        """Put the player on any cell that the moves left allow."""
        near = 0
        for walked, layer in enumerate(spread(self._room.floor & ~self._boxes, 1 << self._player, self._room.columns)):
            if walked > self._left:
                break
            near |= layer
        self._player = rng.choice(cells_of(near))
