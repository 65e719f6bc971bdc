"""FrozenLake as a text game: walk over the ice to the goal; a hole ends the game.

Cells are (row, column), counted from 0 in the code and from 1, top left, in every text. A map is drawn from the
episode's seed and can be solved, but for slips, within the turns and actions an episode has.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from configs.environments import FrozenLakeSettings
from envs.base import BadEnvironment, TextEnv
from envs.frozen_lake.lake import NAMES, BestPlay, Cell, Lake, best_play, slipped
from envs.protocol import Unreadable, form

LEGAL = {name.lower(): name for name in NAMES}
MOVE = re.compile(rf"\b(?:{'|'.join(NAMES)})\b", re.IGNORECASE | re.ASCII)
# A sketch says how to begin: so many moves at most.
LONGEST_OPENING = 3

# A goal next to the start teaches nothing.
SHORTEST_ROUTE = 2
MOST_DRAWS = 2000
# Of a turn on a slippery lake: with more, the best play that tries this many is a lower bound.
MOST_MOVES_TRIED = 6


class FrozenLake(TextEnv):
    """Reward 1 on the goal, 0 in a hole. A sketch is an opening: the first moves of a walk."""

    settings: FrozenLakeSettings
    state: Lake

    # --- texts -------------------------------------------------------------------------------------------------------

    @property
    def rules(self) -> str:
        slip = f" A move goes sideways with chance {self.settings.slip:g}." if self.settings.slip else ""
        example = " || ".join(["Right", "Down"][: self.settings.actions_per_turn])
        return (
            f"Walk from P to G over frozen cells F, not into a hole H. r1c2: row 1, column 2.{slip} "
            f"Reply {form(self.settings, example)}. Moves: Left, Up, Right, Down, "
            f"{self.settings.actions_per_turn} a turn."
        )

    def sketch_request(self, number: int) -> str:
        return "\nFirst say how to begin, as: begin Right, Down, Down" if number == 0 else "Begin another way."

    def guidance(self, sketch: str) -> str:
        # On a line of its own: the sketch's tokens are the ones it was sampled with, at the start of an answer.
        return f"\nGo\n{sketch}"

    def sketch_key(self, sketch: str) -> str | None:
        """The moves named, such as `Right,Down`, one to `LONGEST_OPENING`; those into a hole are readable (and bad)."""
        moves = [LEGAL[found[0].lower()] for found in MOVE.finditer(sketch)]
        return ",".join(moves) if 1 <= len(moves) <= LONGEST_OPENING else None

    def render(self) -> str:
        """The board: one character a cell, cells separated by blanks."""
        size = self.settings.size
        return "\n".join(" ".join(self._letter((row, column)) for column in range(size)) for row in range(size))

    def _letter(self, cell: Cell) -> str:
        if cell == self.state.player:
            return "P"
        if cell == self.state.goal:
            return "G"
        return "H" if cell in self.state.holes else "F"

    def _state_text(self) -> str:
        # The board never changes: later messages tell what does, and cost half the tokens.
        (row, column), look = self.state.player, self.state.look
        return (
            f"P {place(self.state.player)}, G {place(self.state.goal)}. Left {look((row, column - 1))}, "
            f"Up {look((row - 1, column))}, Right {look((row, column + 1))}, Down {look((row + 1, column))}."
        )

    def _ending(self) -> str:
        return "You reached G." if self.solved else "You fell." if self.lost else "No turns or actions left."

    # --- episode -----------------------------------------------------------------------------------------------------

    def _draw(self) -> Lake:
        size, limit = self.settings.size, self.settings.action_limit
        for _ in range(MOST_DRAWS):
            holes = self.np_random.random((size, size)) < self.settings.hole_share
            start, goal = 0, size * size - 1
            if self.settings.random_ends:
                start, goal = (int(end) for end in self.np_random.choice(size * size, size=2, replace=False))
            ends = {divmod(start, size), divmod(goal, size)}
            cells = ((int(row), int(column)) for row, column in np.argwhere(holes))
            lake = Lake(size, frozenset(cells) - ends, divmod(goal, size), divmod(start, size))
            route = lake.route(lake.player, lake.goal)
            if route is not None and min(SHORTEST_ROUTE, limit) <= len(route) <= limit:
                return lake
        raise BadEnvironment(
            f"env.hole_share {self.settings.hole_share:g} with env.size {size}: none of {MOST_DRAWS} maps has a way "
            f"of at most {limit} moves (env.max_turns, env.actions_per_turn, env.max_actions): use fewer holes or more "
            "moves"
        )

    def _act(self, word: str) -> tuple[str, float]:
        name = LEGAL.get(word.lower())
        if name is None:
            raise Unreadable("moves are Left, Up, Right, Down.")
        went = name
        if self.settings.slip and self.np_random.random() < self.settings.slip:
            went = slipped(name, 1 if self.np_random.random() < 0.5 else -1)
        before = self.state
        self.state = before.moved(went)
        # A move against the edge is an action, but makes no other way.
        return name[0] if self.state != before else "", float(self.solved)

    @property
    def solved(self) -> bool:
        return self.state.player == self.state.goal

    @property
    def lost(self) -> bool:
        return self.state.player in self.state.holes

    def _answer(self) -> str:
        return "".join(self.done)

    # --- how well it can be played -----------------------------------------------------------------------------------

    @property
    def _best(self) -> BestPlay:
        settings, lake = self.settings, replace(self.state, player=self.state.goal)
        width = min(settings.actions_per_turn, MOST_MOVES_TRIED)
        limit = min(settings.max_actions, settings.max_turns * width)
        return best_play(lake, settings.slip, settings.max_turns, limit, width)

    @property
    def _room(self) -> tuple[int, int]:
        """Turns and actions left, as far as the best play needs them."""
        turns = self.settings.max_turns - self.turns
        return turns, min(self.actions_left, turns * MOST_MOVES_TRIED)

    def _ceiling(self) -> float:
        """By a dynamic programme over cells, turns and actions (`BestPlay`) where moves slip."""
        if self.settings.slip:
            return self._best.chance(self.state.player, *self._room)
        length = self._optimal_length()
        return float(length is not None and length <= self.actions_left)

    @property
    def ceiling_is_exact(self) -> bool:
        return not self.settings.slip or self.settings.actions_per_turn <= MOST_MOVES_TRIED

    def _oracle(self) -> str | None:
        if self.settings.slip:
            return " || ".join(self._best.moves(self.state.player, *self._room)) or None
        route = self.state.route(self.state.player, self.state.goal)
        if route is None or len(route) > self.actions_left:
            return None
        return " || ".join(route[: self.settings.actions_per_turn])

    def _optimal_length(self) -> int | None:
        route = self.state.route(self.state.player, self.state.goal)
        return None if route is None else len(route)

    def random_answer(self, rng: np.random.Generator) -> str:
        return " || ".join(NAMES[i] for i in rng.integers(len(NAMES), size=self.settings.actions_per_turn))


def place(cell: Cell) -> str:
    """Such as `r1c2`, counted from 1."""
    return f"r{cell[0] + 1}c{cell[1] + 1}"
