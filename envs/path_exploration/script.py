"""Scripted play of path exploration: favourite targets, favourite misses, and any path of a given region."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from envs.demonstrations import ListScript
from envs.path_exploration.atlas import SLASH, Atlas, Path, Targets, draw, hidden_targets
from envs.path_exploration.env import PathExploration
from envs.path_exploration.reading import read_region
from envs.protocol import spoken

FAVOURITES = 32
# Careless guesses that are any path at all, so that the policy leaves no path without a chance.
ANY_PATH_SHARE = 0.25
MOST_REGIONS = 48
MOST_TRIES = 16


class PathExplorationScript(ListScript[PathExploration]):
    """Careful plain play guesses targets, careless play misses; guided play stays in the region of its sketch."""

    def sketches(self, env: PathExploration) -> list[str]:
        """Regions of all names but the last: those with targets, and half as many without, the same for one map."""
        return list(_regions(env.atlas, env.state.map_number, env.target_count))

    def answers(
        self, env: PathExploration, sketch: str | None, careful: bool, rng: np.random.Generator
    ) -> Iterator[tuple[str, str]]:
        while True:
            guesses = [_guess(env, sketch, careful, rng) for _ in range(env.settings.actions_per_turn)]
            yield _region(guesses[0]), " || ".join(guesses)

    def solutions(self, env: PathExploration, count: int, skill: float, rng: np.random.Generator) -> list[str]:
        """Different guesses; ones that were made already are left out, so that favourites come first."""
        guesses = dict.fromkeys(_guess(env, None, rng.random() < skill, rng) for _ in range(MOST_TRIES * count))
        return [spoken(env.settings, _region(guess), guess) for guess in [*guesses][:count]]


def _guess(env: PathExploration, sketch: str | None, careful: bool, rng: np.random.Generator) -> str:
    if sketch is not None:
        region = read_region(sketch, env.atlas)
        assert region is not None, f"not a sketch: {sketch}"
        return _inside(env, region, careful, rng)
    return _skewed(env.hidden.drawn, rng) if careful else _miss(env, rng)


def _inside(env: PathExploration, region: Path, careful: bool, rng: np.random.Generator) -> str:
    """A target of the region, if play is careful and the region has one; else a miss, a new one if it can be had."""
    start = SLASH.join(region)
    targets = [target for target in env.hidden.drawn if f"{target}{SLASH}".startswith(f"{start}{SLASH}")]
    if careful and targets:
        return targets[rng.integers(len(targets))]
    after = env.atlas.walked(region)[1]
    if after is None:
        return start
    guesses = [SLASH.join((*region, *after.path(int(n)))) for n in rng.integers(after.paths, size=MOST_TRIES)]
    misses = [guess for guess in guesses if guess not in env.targets] or guesses
    return next((guess for guess in misses if guess not in env.done), misses[0])


def _miss(env: PathExploration, rng: np.random.Generator) -> str:
    """A path that is no target: mostly a favourite one, sometimes any."""
    favourites = _favourite_misses(env.atlas, env.state.map_number, env.target_count)
    if favourites and rng.random() >= ANY_PATH_SHARE:
        return _skewed(favourites, rng)
    return _inside(env, (), False, rng)


def _skewed(favourites: tuple[str, ...], rng: np.random.Generator) -> str:
    """One of them, the earlier the likelier: rank r or less with chance (log(r + 1) / log(n + 1)) ** 0.5.

    Of 20 the first has 0.48 and the first five 0.77, of 32 0.45 and 0.72.
    """
    n = len(favourites)
    rank = int((n + 1) ** (rng.random() ** 2))
    return favourites[min(rank, n) - 1]


@lru_cache(maxsize=256)
def _favourite_misses(atlas: Atlas, map_number: int, count: int) -> tuple[str, ...]:
    """Paths of a map that are no targets, in an order of its own; none where nearly every path is a target."""
    targets = hidden_targets(atlas, map_number, count).all
    numbers = draw(f"favourites of map {map_number}", atlas.paths, min(atlas.paths, 2 * FAVOURITES))
    paths = (SLASH.join(atlas.first.path(number)) for number in numbers)
    return tuple(path for path in paths if path not in targets)[:FAVOURITES]


@lru_cache(maxsize=256)
def _regions(atlas: Atlas, map_number: int, count: int) -> tuple[str, ...]:
    hidden = hidden_targets(atlas, map_number, count)
    found = list(dict.fromkeys(map(_region, hidden.drawn)))[: 2 * MOST_REGIONS // 3]
    return (*found, *_empty_regions(atlas, map_number, hidden, len(found) // 2))


def _empty_regions(atlas: Atlas, map_number: int, hidden: Targets, wanted: int) -> list[str]:
    """Up to `wanted` regions without a target; fewer where they are hard to find."""
    with_targets = set(map(_region, hidden.drawn))
    numbers = draw(f"regions of map {map_number}", atlas.paths, min(atlas.paths, MOST_TRIES * wanted))
    regions = dict.fromkeys(_region(SLASH.join(atlas.first.path(number))) for number in numbers)
    return [region for region in regions if region not in with_targets][:wanted]


def _region(path: str) -> str:
    """The region of a path, as a sketch says it: all names but the last, or the only one."""
    return f"in {path.rpartition(SLASH)[0] or path}"
