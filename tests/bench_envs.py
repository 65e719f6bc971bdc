"""Speed of the environments on one core: steps and new episodes a second, against their goals.

python -m tests.bench_envs [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from envs.base import Snapshot, TextEnv
from envs.protocol import spoken
from envs.registry import ENTRIES

REPEATS = 3
SECONDS = 1.0
# Episodes whose turns are timed again and again: enough that no branch predictor or cache knows them by heart.
EPISODES_STEPPED = 64
STEPS_A_ROUND = 256


@dataclass(frozen=True, slots=True)
class Case:
    """Settings to measure, and the goals: steps and episodes a second, None where there is none."""

    name: str
    env: str
    fields: dict[str, Any]
    steps_goal: int | None = None
    episodes_goal: int | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians over the repeats, a second on one core."""

    steps_per_s: float
    episodes_per_s: float


CASES = (
    Case("FrozenLake 4x4", "frozen_lake", {}, steps_goal=20_000),
    Case("FrozenLake 8x8", "frozen_lake", {"size": 8, "max_turns": 20, "max_actions": 20}, steps_goal=20_000),
    Case("Sokoban 6x6, 1 box", "sokoban", {}, steps_goal=20_000, episodes_goal=300),
    Case("Sokoban 8x8, 2 boxes", "sokoban", {"rows": 8, "columns": 8, "boxes": 2}, steps_goal=20_000),
    Case("Countdown 3-4 numbers", "countdown", {}, episodes_goal=2_000),
    Case("Countdown 6 numbers", "countdown", {"least_numbers": 6, "most_numbers": 6}),
    Case("Sudoku 4x4", "sudoku", {}, steps_goal=20_000),
    Case("Sudoku 9x9, 40 blanks", "sudoku", {"size": 9, "blanks": 40, "max_actions": 80}),
    Case("PathExploration", "path_exploration", {}, steps_goal=20_000),
)


def measured(env: TextEnv) -> Figures:
    turns = random_turns(env)
    steps = median(per_second(lambda done: step_some(env, turns, done)) for _ in range(REPEATS))
    # Seeds that nothing has drawn from yet: an environment may keep what it found for one.
    seeds = iter(range(10**6, 10**9))
    episodes = median(per_second(lambda _: reset_once(env, next(seeds))) for _ in range(REPEATS))
    return Figures(steps, episodes)


def random_turns(env: TextEnv) -> list[tuple[Snapshot, str]]:
    """All turns of some episodes of random legal play: where each began, and what was answered."""
    rng, turns = np.random.default_rng(0), []
    for seed in range(EPISODES_STEPPED):
        env.reset(seed=seed)
        over = False
        while not over:
            turns.append((env.snapshot(), spoken(env.settings, "so", env.random_answer(rng))))
            _, _, terminated, truncated, _ = env.step(turns[-1][1])
            over = terminated or truncated
    return turns


def per_second(work: Callable[[int], tuple[int, float]]) -> float:
    """Repeat `work`, told how much was done before, until its own seconds add up to SECONDS; it returns both."""
    done, seconds = 0, 0.0
    while seconds < SECONDS:
        more, took = work(done)
        done, seconds = done + more, seconds + took
    return done / seconds


def step_some(env: TextEnv, turns: list[tuple[Snapshot, str]], done: int) -> tuple[int, float]:
    """Steps made and the seconds in `env.step` alone, going on after the `done` turns stepped before."""
    seconds = 0.0
    start = done % len(turns)
    for snapshot, answer in islice(cycle(turns), start, start + STEPS_A_ROUND):
        env.restore(snapshot)
        began = time.perf_counter()
        env.step(answer)
        seconds += time.perf_counter() - began
    return STEPS_A_ROUND, seconds


def reset_once(env: TextEnv, seed: int) -> tuple[int, float]:
    began = time.perf_counter()
    env.reset(seed=seed)
    return 1, time.perf_counter() - began


def against(figure: float, goal: int | None) -> str:
    """A figure, and whether it reaches its goal."""
    verdict = "" if goal is None else f"{'PASS' if figure >= goal else 'missed'} ({goal:,})"
    return f"{figure:12,.0f} {verdict:16}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    print(f"{'one core':24}{'steps/s':>12} {'goal':16}{'episodes/s':>12} goal")
    figures: dict[str, dict[str, float]] = {}
    for case in CASES:
        entry = ENTRIES[case.env]
        found = measured(entry.env(entry.settings.model_validate(case.fields)))
        figures[case.name] = asdict(found)
        steps = against(found.steps_per_s, case.steps_goal)
        print(f"{case.name:24}{steps}{against(found.episodes_per_s, case.episodes_goal)}".rstrip(), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
