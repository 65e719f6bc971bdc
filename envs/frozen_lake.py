"""FrozenLake as a text game: walk over the ice to the goal; a hole ends the game.

Cells are (row, column), counted from 0 in the code and from 1, top left, in every text. A map is drawn from the
episode's seed and can be solved within `max_actions`.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Any

import numpy as np

from configs.schema import FrozenLakeSettings
from envs.base import Outcome, TextEnv, read_actions
from envs.trajectory import Conversation, Message, Verdict

Cell = tuple[int, int]

# Clockwise from left: a slip goes to a neighbour in this order, and the demonstrator's ties go to the earlier move.
MOVES: dict[str, Cell] = {"Left": (0, -1), "Up": (-1, 0), "Right": (0, 1), "Down": (1, 0)}
NAMES = tuple(MOVES)
LEGAL = {name.lower(): name for name in NAMES}
WAY_POINT = re.compile(r"\br(?:ow)?\s*(\d{1,4})\W{0,3}c(?:ol(?:umn)?)?\s*(\d{1,4})", re.IGNORECASE | re.ASCII)

# A goal next to the start teaches nothing.
SHORTEST_ROUTE = 2

# The demonstrator. Following takes more examples than playing; its few careless ones show the same words failing.
GUIDED_SHARE, SKETCH_SHARE = 0.5, 0.08
GUIDED_SKILL = 0.95
SKETCHES_A_LIST = 8
# Careless players that hold one direction whatever comes; the others walk straight at the goal.
HABIT_SHARE = 0.7
# A careless game is cut here: the rest repeats itself and costs training time.
CARELESS_TURNS = 3


class FrozenLake(TextEnv):
    """Reward 1 on the goal, 0 in a hole, `format_penalty` for an answer that is unreadable or holds an illegal move."""

    settings: FrozenLakeSettings

    def __init__(self, settings: FrozenLakeSettings) -> None:
        super().__init__(settings)
        self.holes: frozenset[Cell] = frozenset()
        self.player: Cell = (0, 0)
        self.goal: Cell = (0, 0)
        self._turns = 0
        self._executed = ""
        self._readable = False
        self._over = True

    # --- texts -------------------------------------------------------------------------------------------------------

    @property
    def rules(self) -> str:
        slip = f" A move goes sideways with chance {self.settings.slip:g}." if self.settings.slip else ""
        example = " || ".join(["Right", "Down"][: self.settings.actions_per_turn])
        return (
            f"Walk from P to G over frozen cells F, not into a hole H. r1c2: row 1, column 2.{slip} "
            f"Reply <think>...</think><answer>{example}</answer>. Moves: Left, Up, Right, Down, "
            f"{self.settings.actions_per_turn} a turn."
        )

    def sketch_request(self, number: int) -> str:
        return "\nFirst name a cell to pass on the way, as: via r1c2" if number == 0 else "Name another cell."

    def guidance(self, sketch: str) -> str:
        # On a line of its own: the sketch's tokens are the ones it was sampled with, at the start of an answer.
        return f"\nGo\n{sketch}"

    def sketch_key(self, sketch: str) -> str | None:
        """`row,column` of the named way-point; a hole is readable (and a bad plan), a cell off the board is not."""
        found = WAY_POINT.search(sketch)
        if found is None:
            return None
        row, column = int(found[1]), int(found[2])
        on_board = 1 <= row <= self.settings.size and 1 <= column <= self.settings.size
        return f"{row},{column}" if on_board else None

    def render(self) -> str:
        """The board: one character a cell, cells separated by blanks."""
        size = self.settings.size
        return "\n".join(" ".join(self._letter((row, column)) for column in range(size)) for row in range(size))

    def _letter(self, cell: Cell) -> str:
        if cell == self.player:
            return "P"
        if cell == self.goal:
            return "G"
        return "H" if cell in self.holes else "F"

    def look(self, cell: Cell) -> str:
        """What lies on a cell: edge, goal, hole or ice."""
        size = self.settings.size
        if not (0 <= cell[0] < size and 0 <= cell[1] < size):
            return "edge"
        return "goal" if cell == self.goal else "hole" if cell in self.holes else "ice"

    def _state(self) -> str:
        around = ", ".join(f"{name} {self.look(_beside(self.player, name))}" for name in NAMES)
        turns = self.settings.max_turns - self._turns
        return f"P {_place(self.player)}, G {_place(self.goal)}. {around}.\n{turns} turns left."

    # --- episode -----------------------------------------------------------------------------------------------------

    @property
    def action_limit(self) -> int:
        """Most moves an episode has room for."""
        return min(self.settings.max_actions, self.settings.max_turns * self.settings.actions_per_turn)

    def _begin(self) -> str:
        size = self.settings.size
        while True:
            holes = self.np_random.random((size, size)) < self.settings.hole_share
            start, goal = self.np_random.choice(size * size, size=2, replace=False)
            self.player, self.goal = divmod(int(start), size), divmod(int(goal), size)
            cells = ((int(row), int(column)) for row, column in np.argwhere(holes))
            self.holes = frozenset(cells) - {self.player, self.goal}
            route = self.route(self.player, self.goal)
            if route is not None and min(SHORTEST_ROUTE, self.action_limit) <= len(route) <= self.action_limit:
                break
        self._turns, self._executed, self._readable, self._over = 0, "", False, False
        # The board never changes: later messages tell what does, and cost half the tokens.
        return f"{self.render()}\n{self._state()}"

    @property
    def solvable(self) -> bool:
        """Whether moves that do not slip reach the goal from here with the moves and turns that are left."""
        route = self.route(self.player, self.goal)
        turns = (self.settings.max_turns - self._turns) * self.settings.actions_per_turn
        return route is not None and len(route) <= min(self.settings.max_actions - len(self._executed), turns)

    def route(self, start: Cell, end: Cell, avoid: frozenset[Cell] = frozenset()) -> list[str] | None:
        """Shortest safe moves from `start` to `end`, breadth first, ties to the earlier of MOVES; None if no way."""
        came: dict[Cell, tuple[Cell, str] | None] = {start: None}
        frontier = deque([start])
        while frontier and end not in came:
            here = frontier.popleft()
            for name in NAMES:
                there = _beside(here, name)
                if there not in came and there not in avoid and self.look(there) in ("ice", "goal"):
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

    def route_via(self, way_point: Cell, start: Cell | None = None) -> list[str] | None:
        """Shortest safe moves from `start` (default: the player) to the way-point and on to the goal."""
        before = self.route(self.player if start is None else start, way_point, frozenset({self.goal} - {way_point}))
        after = self.route(way_point, self.goal)
        return None if before is None or after is None else before + after

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self._over:
            return "The game is over.", 0.0, self._terminated, not self._terminated, {"outcome": self._outcome()}
        self._turns += 1
        words = read_actions(action, self.settings.actions_per_turn)
        moves = _legal_prefix(words or [])
        complaint = "Unreadable answer." if words is None else "Illegal move." if len(moves) < len(words) else ""
        self._readable |= words is not None
        for move in moves[: self.settings.max_actions - len(self._executed)]:
            self._move(move)
            if self._terminated:
                break
        out_of_room = self._turns >= self.settings.max_turns or len(self._executed) >= self.settings.max_actions
        truncated = out_of_room and not self._terminated
        self._over = self._terminated or truncated
        reward = (self.settings.format_penalty if complaint else 0.0) + float(self.player == self.goal)
        text = "\n".join(part for part in (complaint, self._ending() if self._over else self._state()) if part)
        return text, reward, self._terminated, truncated, {"outcome": self._outcome()}

    @property
    def _terminated(self) -> bool:
        return self.player == self.goal or self.player in self.holes

    def _move(self, name: str) -> None:
        self._executed += name[0]
        if self.settings.slip and self.np_random.random() < self.settings.slip:
            turn = 1 if self.np_random.random() < 0.5 else -1
            name = NAMES[(NAMES.index(name) + turn) % len(NAMES)]
        there = _beside(self.player, name)
        if self.look(there) != "edge":
            self.player = there

    def _ending(self) -> str:
        return "You reached G." if self.player == self.goal else "You fell." if self._terminated else "No turns left."

    def _outcome(self) -> Outcome:
        if self.player == self.goal:
            verdict = Verdict.SOLVED
        else:
            verdict = Verdict.WRONG if self._readable else Verdict.UNPARSABLE
        return Outcome(verdict, self._executed)

    # --- demonstrations ----------------------------------------------------------------------------------------------

    def way_points(self) -> list[Cell]:
        """Cells, start and goal left out, that a safe walk from the player to the goal can pass within the limit."""
        cells = [divmod(index, self.settings.size) for index in range(self.settings.size**2)]
        routes = {cell: self.route_via(cell) for cell in cells if cell not in (self.player, self.goal)}
        return [cell for cell, route in routes.items() if route is not None and len(route) <= self.action_limit]

    def demonstrate(self, seed: int, skill: float) -> Conversation:
        """Plain play, guided play or a list of sketches, by chance.

        Plain play is careful (a safe shortest way, ties always the same: few plans) with probability `skill`, else
        careless. Guided play follows any way-point, good or bad for its length, so that following is learned apart
        from preferring.
        """
        game = FrozenLake(self.settings)
        first, _ = game.reset(seed=seed)
        rng = np.random.default_rng([seed, 1])
        kind, way_points = rng.random(), game.way_points()
        if way_points and kind < SKETCH_SHARE:
            return _sketch_list(game, first, way_points, rng)
        if way_points and kind < SKETCH_SHARE + GUIDED_SHARE:
            target = way_points[rng.integers(len(way_points))]
            return _play(game, first + self.guidance(_name(target)), target, rng.random() < GUIDED_SKILL, rng)
        return _play(game, first, None, rng.random() < skill, rng)


def _play(game: FrozenLake, first: str, target: Cell | None, careful: bool, rng: np.random.Generator) -> Conversation:
    messages = [Message("system", game.rules), Message("user", first)]
    habit = NAMES[rng.integers(len(NAMES))] if rng.random() < HABIT_SHARE else None
    over = False
    while not over and (careful or len(messages) < 2 * (CARELESS_TURNS + 1)):
        bearing = _bearing(game.player, target or game.goal)
        if game.player == target:
            target = None
            bearing += f"; {_bearing(game.player, game.goal)}"
        moves = _careful_moves(game, target) if careful else _careless_moves(game, target, habit)
        trace = _trace(game, moves)
        seen = ", ".join(f"{move} {game.look(cell)}" if careful else move for move, cell in trace)
        thought = f"<think>{bearing}: {seen}.</think>"
        if target in [cell for _, cell in trace[:-1]]:
            target = None
        answer = f"{thought}<answer>{' || '.join(moves)}</answer>"
        messages.append(Message("assistant", answer, trained=True))
        observation, _, terminated, truncated, _ = game.step(answer)
        over = terminated or truncated
        if not over:
            messages.append(Message("user", observation))
    return tuple(messages if messages[-1].trained else messages[:-1])


def _careful_moves(game: FrozenLake, target: Cell | None) -> list[str]:
    route = game.route(game.player, game.goal) if target is None else game.route_via(target)
    # A slip can leave the player where the way-point is cut off by the goal: then the goal itself is the plan.
    route = route or game.route(game.player, game.goal) or [NAMES[0]]
    return route[: game.settings.actions_per_turn]


def _careless_moves(game: FrozenLake, target: Cell | None, habit: str | None) -> list[str]:
    """The same move for a whole turn, without a look at what lies there: the habit, or toward the aim."""
    here, aim = game.player, game.goal if target is None else target
    nearer = [name for name in NAMES if _distance(_beside(here, name), aim) < _distance(here, aim)]
    return [habit or nearer[0]] * game.settings.actions_per_turn


def _sketch_list(game: FrozenLake, first: str, way_points: list[Cell], rng: np.random.Generator) -> Conversation:
    messages = [Message("system", game.rules)]
    for number, index in enumerate(rng.permutation(len(way_points))[:SKETCHES_A_LIST]):
        request = game.sketch_request(number)
        messages.append(Message("user", first + request if number == 0 else request))
        messages.append(Message("assistant", _name(way_points[index]), trained=True))
    return tuple(messages)


def _trace(game: FrozenLake, moves: list[str]) -> list[tuple[str, Cell]]:
    """Each move with the cell it leads to, if it does not slip."""
    here, seen = game.player, []
    for move in moves:
        here = _beside(here, move)
        seen.append((move, here))
    return seen


def _legal_prefix(words: list[str]) -> list[str]:
    moves = []
    for word in words:
        if word not in LEGAL:
            break
        moves.append(LEGAL[word])
    return moves


def _beside(cell: Cell, name: str) -> Cell:
    return cell[0] + MOVES[name][0], cell[1] + MOVES[name][1]


def _distance(one: Cell, other: Cell) -> int:
    return abs(one[0] - other[0]) + abs(one[1] - other[1])


def _bearing(start: Cell, end: Cell) -> str:
    """Rows, then columns, from where to where and which way: each word next to the two numbers it follows from."""
    vertical = "up" if end[0] < start[0] else "down" if end[0] > start[0] else "same"
    horizontal = "left" if end[1] < start[1] else "right" if end[1] > start[1] else "same"
    return f"r{start[0] + 1} to r{end[0] + 1} {vertical}, c{start[1] + 1} to c{end[1] + 1} {horizontal}"


def _place(cell: Cell) -> str:
    return f"r{cell[0] + 1}c{cell[1] + 1}"


def _name(way_point: Cell) -> str:
    return f"via {_place(way_point)}"
