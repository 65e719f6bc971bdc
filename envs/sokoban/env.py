"""Sokoban as a text game: push every box onto a target.

A room is drawn from the episode's seed and can be solved within the turns and actions an episode has, or it is a level
of a file. Cells are told as r1c2, row and column from 1, top left, with the outer wall.
"""

from __future__ import annotations

import re
from itertools import islice
from random import Random

import numpy as np

from configs.environments import SokobanSettings
from envs.base import BadEnvironment, TextEnv
from envs.protocol import MAX_TEXT, Unreadable, form
from envs.sokoban.grid import NAMES, Board, Push, cells_of
from envs.sokoban.levels import load
from envs.sokoban.rooms import MOST_DRAWS, Plan, draw_board
from envs.sokoban.search import Found, Solver

LEGAL = {name.lower(): name for name in NAMES}
# A cell, and its direction where there is one behind it: a cell without one makes a sketch unreadable, not shorter.
PUSH = re.compile(
    r"\br(?:ow)?\s{0,3}(\d{1,4})\W{0,3}c(?:ol(?:umn)?)?\s{0,3}(\d{1,4})"
    r"(?:\W{1,3}(?:to\s{1,3})?(?:the\s{1,3})?(left|up|right|down)\b)?",
    re.IGNORECASE | re.ASCII,
)
VERB = re.compile("push", re.IGNORECASE | re.ASCII)
# A sketch is the first pushes of a solution; what follows these is not read.
MOST_PUSHES = 8


class Sokoban(TextEnv):
    """Rewards: one a move, one a box moved onto a target (taken back when it leaves it), one when all are.

    A sketch is an order of pushes, and so is the canonical answer of an episode: walks and bumps make no other solution
    of it. Where the search gives up the ceiling is 1 if a solution is known from how the room was made, else 0
    (`ceiling_is_exact` is False), and `optimal_length` is the length of that solution, else a number of moves that no
    solution is below.
    """

    settings: SokobanSettings
    state: Board

    def __init__(self, settings: SokobanSettings) -> None:
        """Raises BadEnvironment when the levels cannot be read."""
        super().__init__(settings)
        self.solver = Solver()
        self._levels = load(settings.levels) if settings.levels else ()

    # --- texts -------------------------------------------------------------------------------------------------------

    @property
    def rules(self) -> str:
        example = " || ".join(["Right", "Down"][: self.settings.actions_per_turn])
        return (
            "Push every box B onto a target T: walk into it, the cell behind it must be free. "
            "P you, # wall, - floor, * box on T, + you on T. r1c2: row 1, column 2. "
            f"Reply {form(self.settings, example)}. Moves: Left, Up, Right, Down, "
            f"{self.settings.actions_per_turn} a turn."
        )

    def sketch_request(self, number: int) -> str:
        return "\nFirst plan two pushes, as: push r2c3 Left, then r2c2 Up" if number == 0 else "Plan other pushes."

    def guidance(self, sketch: str) -> str:
        # On a line of its own: the sketch's tokens are the ones it was sampled with, at the start of an answer.
        return f"\nGo\n{sketch}"

    def sketch_key(self, sketch: str) -> str | None:
        """Such as `3,4 Left; 3,3 Up`, for the pushes named after the word push, if all are on the board."""
        pushes = self.pushes_of(sketch)
        if not pushes:
            return None
        columns = self._size()[1]
        return "; ".join(_written(cell, name, columns) for cell, name in pushes)

    def pushes_of(self, sketch: str) -> list[Push] | None:
        """The first pushes of a sketch, at most MOST_PUSHES; None if one is off the board or has no direction."""
        text = sketch[:MAX_TEXT]
        verb = VERB.search(text)
        if verb is None:
            return None
        rows, columns = self._size()
        pushes = []
        for found in islice(PUSH.finditer(text, verb.end()), MOST_PUSHES):
            row, column = int(found[1]), int(found[2])
            if not (found[3] and 1 <= row <= rows and 1 <= column <= columns):
                return None
            pushes.append(((row - 1) * columns + column - 1, LEGAL[found[3].lower()]))
        return pushes

    def _size(self) -> tuple[int, int]:
        if self._levels:
            return self.state.room.rows, self.state.room.columns
        return self.settings.rows, self.settings.columns

    def render(self) -> str:
        """The board: one character a cell, cells separated by blanks."""
        board, room = self.state, self.state.room
        letters = [" ", "#"] * (room.rows * room.columns)
        for mask, letter in ((room.floor, "-"), (room.targets, "T"), (board.boxes, "B")):
            for cell in cells_of(mask):
                letters[2 * cell + 1] = letter
        for cell in cells_of(board.boxes & room.targets):
            letters[2 * cell + 1] = "*"
        letters[2 * board.player + 1] = "+" if room.targets >> board.player & 1 else "P"
        letters[:: 2 * room.columns] = ["\n"] * room.rows
        return "".join(letters[1:])

    def _state_text(self) -> str:
        board = self.state
        looks = ", ".join(f"{name} {board.look(board.player + board.room.step(name))}" for name in NAMES)
        places = f"P {self.place(board.player)}, box {self._places(board.boxes)}, "
        text = f"{places}target {self._places(board.room.targets)}. {looks}."
        # The first message has shown the board just above.
        return f"{self.render()}\n{text}" if self.settings.show_board and self.turns else text

    def place(self, cell: int) -> str:
        """A cell as the messages name it, such as `r2c3`."""
        row, column = divmod(cell, self.state.room.columns)
        return f"r{row + 1}c{column + 1}"

    def _places(self, mask: int) -> str:
        return " ".join([self.place(cell) for cell in cells_of(mask)])

    def _ending(self) -> str:
        return "All boxes are on targets." if self.solved else "No turns or actions left."

    # --- episode -----------------------------------------------------------------------------------------------------

    def _draw(self) -> Board:
        if self._levels:
            # Training seeds are even and held-out ones odd: both get to see every level.
            return self._levels[self.seed // 2 % len(self._levels)]
        settings = self.settings
        plan = Plan(settings.rows, settings.columns, settings.boxes, settings.action_limit)
        board = draw_board(plan, Random(int(self.np_random.integers(2**63))))
        if board is None:
            raise BadEnvironment(
                f"env.boxes {settings.boxes} with env.rows {settings.rows} and env.columns {settings.columns}: none of "
                f"{MOST_DRAWS} rooms can be solved in at most {settings.action_limit} moves (env.max_turns, "
                "env.actions_per_turn, env.max_actions): use a larger room, fewer boxes or more moves"
            )
        return board

    def _act(self, word: str) -> tuple[str, float]:
        name = LEGAL.get(word.lower())
        if name is None:
            raise Unreadable("moves are Left, Up, Right, Down.")
        before, after = self.state, self.state.moved(name)
        self.state = after
        reward = self.settings.move_reward
        if after.boxes == before.boxes:
            return name[0], reward
        reward += self.settings.box_reward * (after.boxes_on_targets - before.boxes_on_targets)
        reward += self.settings.solved_reward * after.solved
        return _written(after.player, name, after.room.columns), reward

    @property
    def solved(self) -> bool:
        return self.state.solved

    def _answer(self) -> str:
        # Of the forms in `done`, a letter is a move that pushed nothing.
        return " ".join([made for made in self.done if len(made) > 1])

    # --- how well it can be played -----------------------------------------------------------------------------------

    @property
    def ceiling_is_exact(self) -> bool:
        """Whether `ceiling` is: not if the search gave up and no solution within the limit is known either.

        Says nothing about `optimal_length`.
        """
        if self._is_over():
            return True
        found = self._within_limit()
        return found.proven or found.moves is not None

    def _within_limit(self) -> Found:
        return self.solver.solve(self.state, self.actions_left)

    def _ceiling(self) -> float:
        return float(self._within_limit().moves is not None)

    def _oracle(self) -> str | None:
        moves = self._within_limit().moves
        return " || ".join(moves[: self.settings.actions_per_turn]) if moves else None

    def _optimal_length(self) -> int | None:
        found = self.solver.solve(self.state)
        if found.moves is not None:
            return len(found.moves)
        return None if found.proven else found.least

    def random_answer(self, rng: np.random.Generator) -> str:
        return " || ".join(NAMES[i] for i in rng.integers(len(NAMES), size=self.settings.actions_per_turn))


def _written(cell: int, name: str, columns: int) -> str:
    """A push as it counts in keys and answers, such as `3,4 Left`."""
    return f"{cell // columns + 1},{cell % columns + 1} {name}"
