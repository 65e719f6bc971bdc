"""Path exploration: guess paths through named levels; some of them, the same in every run, are hidden targets.

A question with many right answers that the prompt says nothing about. What counts is how many of them a group of
samples covers, so the number of different answers among the solved ones is the metric.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from configs.environments import PathExplorationSettings
from envs.base import BadEnvironment, TextEnv
from envs.path_exploration.atlas import SLASH, Atlas, Targets, hidden_targets, invented
from envs.path_exploration.names_file import read_names
from envs.path_exploration.reading import read_region, split_path
from envs.protocol import Illegal, Unreadable, form, shown

# More names than this and the prompt would be longer than the search.
MOST_NAMES_TOLD = 200
LETTERS = "ABCDEFGHIJKLMNOP"


@dataclass(frozen=True, slots=True)
class Search:
    """The map that is searched, the target found on it, and the turn (from 1) of the last miss, 0 before any."""

    map_number: int
    found: str = ""
    missed_in: int = 0


class PathExploration(TextEnv):
    """Reward 1 for a hidden target, 0 for any other path. A sketch is a region: the first names of a path.

    Episodes of seed s play map s // 2 % maps, so that even (training) and odd (held-out) seeds see the same maps.
    Raises BadEnvironment where the file of names is bad or makes fewer paths than there are targets.
    """

    settings: PathExplorationSettings
    state: Search

    def __init__(self, settings: PathExplorationSettings) -> None:
        super().__init__(settings)
        self.atlas: Atlas = (
            invented(settings.depth, settings.branching) if settings.names is None else read_names(settings.names)
        )
        if settings.targets > self.atlas.paths:
            raise BadEnvironment(
                f"env.targets {settings.targets}: {self.atlas.source} has {self.atlas.paths} paths: ask for fewer"
            )

    # --- texts -------------------------------------------------------------------------------------------------------

    @property
    def rules(self) -> str:
        count = self.settings.actions_per_turn
        example = " || ".join([self._written] * min(count, 2))
        several = f" Up to {count} paths a turn." if count > 1 else ""
        return (
            f"{self.target_count} of {self.atlas.paths} paths are hidden targets: find one. A path is {self._written}, "
            f"one name a level.{self._names()}\nReply {form(self.settings, example)}.{several}"
        )

    @property
    def _written(self) -> str:
        return SLASH.join(LETTERS[: self.atlas.depth])

    def _names(self) -> str:
        """The names of every level; in a tree, or where they are too many, those of the first level if they are few."""
        levels = self.atlas.levels or ()
        if not levels or sum(map(len, levels)) > MOST_NAMES_TOLD:
            levels = (self.atlas.first.names,)
        if len(levels[0]) > MOST_NAMES_TOLD:
            return ""
        letters = zip(LETTERS, levels, strict=False)
        return "".join(f"\n{letter}: {', '.join(names)}." for letter, names in letters)

    def render(self) -> str:
        """The question, and the map's number where there are several. All else is hidden."""
        return f"Map {self.state.map_number}. Guess a path." if self.settings.maps > 1 else "Guess a path."

    def _state_text(self) -> str:
        return "No target there." if self.turns and self.state.missed_in == self.turns else ""

    def _ending(self) -> str:
        return "You found a target." if self.solved else "No target found."

    def sketch_request(self, number: int) -> str:
        if number:
            return "Name another region."
        start = SLASH.join(LETTERS[: max(1, self.atlas.depth - 1)])
        return f"\nFirst name a region, as: in {start}"

    def guidance(self, sketch: str) -> str:
        # On a line of its own: the sketch's tokens are the ones it was sampled with, at the start of an answer.
        return f"\nStay\n{sketch}"

    def sketch_key(self, sketch: str) -> str | None:
        """The region's names joined by `/`; None where one of them is not known in its place."""
        region = read_region(sketch, self.atlas)
        return None if region is None else "/".join(region)

    # --- episode -----------------------------------------------------------------------------------------------------

    def _draw(self) -> Search:
        return Search(self.seed // 2 % self.settings.maps)

    def _act(self, word: str) -> tuple[str, float]:
        names = split_path(word, self.atlas.depth)
        if names is None:
            raise Unreadable(f"a path is {self._written}.")
        known, _ = self.atlas.walked(names)
        if len(known) < self.atlas.depth:
            unknown = shown(" ".join(names[len(known)].split()))
            inside = f" in {known[-1]}" if known and self.atlas.levels is None else ""
            raise Illegal(f"no {unknown} at level {len(known) + 1}{inside}.")
        path = SLASH.join(known)
        if path in self.targets:
            self.state = replace(self.state, found=path)
        else:
            self.state = replace(self.state, missed_in=self.turns)
        return path, float(self.solved)

    @property
    def solved(self) -> bool:
        return bool(self.state.found)

    def _answer(self) -> str:
        """The target that was found, whatever was guessed before; else all guesses."""
        return self.state.found or " || ".join(self.done)

    # --- targets -----------------------------------------------------------------------------------------------------

    @property
    def hidden(self) -> Targets:
        """The targets of the episode's map: a pure function of its number, the names and `targets`."""
        return hidden_targets(self.atlas, self.state.map_number, self.settings.targets)

    @property
    def targets(self) -> frozenset[str]:
        """Canonical texts of the hidden targets of the episode's map."""
        return self.hidden.all

    @property
    def target_count(self) -> int:
        """How many targets a map has."""
        return self.settings.targets

    # --- how well it can be played -----------------------------------------------------------------------------------

    def _ceiling(self) -> float:
        """Exact: whoever knows the targets finds one with any guess that is left."""
        return 1.0

    def _oracle(self) -> str:
        """A target; none of them can have been tried before, as the first would have ended the episode."""
        return self.hidden.drawn[0]

    def _optimal_length(self) -> int:
        return 1

    def random_answer(self, rng: np.random.Generator) -> str:
        paths = rng.integers(self.atlas.paths, size=self.settings.actions_per_turn)
        return " || ".join(SLASH.join(self.atlas.first.path(int(path))) for path in paths)


def coverage(answers: Iterable[str], targets: frozenset[str]) -> float:
    """Coverage@k: the share of the hidden targets that k samples found, 0 to 1.

    `answers`: canonical answers of the k episodes, found or not and in any order; `targets` of their common map.
    """
    return len(targets.intersection(answers)) / len(targets)
