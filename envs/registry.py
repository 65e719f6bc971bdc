"""From settings to an environment and its scripted player, and the gymnasium ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium

from configs.environments import (
    CountdownSettings,
    EnvSettings,
    FrozenLakeSettings,
    MathSettings,
    PathExplorationSettings,
    SokobanSettings,
    SudokuSettings,
    TurnSettings,
)
from envs.base import TextEnv
from envs.demonstrations import Script

EPISODES_CHECKED = 32


@dataclass(frozen=True, slots=True)
class Entry:
    """Where an environment lives; imported when it is asked for, since some bring large libraries."""

    settings: type[TurnSettings]
    module: str
    game: str

    def env(self, settings: TurnSettings) -> TextEnv:
        made: TextEnv = getattr(import_module(f"{self.module}.env"), self.game)(settings)
        return made

    def script(self) -> Script[Any]:
        made: Script[Any] = getattr(import_module(f"{self.module}.script"), f"{self.game}Script")()
        return made


ENTRIES = {
    "path_exploration": Entry(PathExplorationSettings, "envs.path_exploration", "PathExploration"),
    "frozen_lake": Entry(FrozenLakeSettings, "envs.frozen_lake", "FrozenLake"),
    "sokoban": Entry(SokobanSettings, "envs.sokoban", "Sokoban"),
    "countdown": Entry(CountdownSettings, "envs.countdown", "Countdown"),
    "sudoku": Entry(SudokuSettings, "envs.sudoku", "Sudoku"),
    "math": Entry(MathSettings, "envs.math", "Math"),
}


def make_env(settings: EnvSettings) -> TextEnv:
    """The bare environment, without gymnasium's wrappers. Raises BadEnvironment."""
    return ENTRIES[settings.name].env(settings)


def make_script(settings: EnvSettings) -> Script[Any]:
    """Who plays it for demonstrations."""
    return ENTRIES[settings.name].script()


def check_env(settings: EnvSettings) -> None:
    """Draw some episodes, so that settings or files that allow none are said before anything starts.

    Raises BadEnvironment.
    """
    env = make_env(settings)
    env.check()
    for seed in range(EPISODES_CHECKED):
        env.reset(seed=seed)


def source_folder(settings: EnvSettings) -> Path:
    """Where the environment's own code lies, and nothing else."""
    return Path(__file__).parent / ENTRIES[settings.name].module.rpartition(".")[2]


def gymnasium_id(name: str) -> str:
    """Such as `sesa/FrozenLake-v0` for `frozen_lake`."""
    return f"sesa/{ENTRIES[name].game}-v0"


def _make(name: str, **fields: Any) -> TextEnv:
    entry = ENTRIES[name]
    return entry.env(entry.settings(**fields))


def register() -> None:
    """Make `gymnasium.make("sesa/FrozenLake-v0", size=5, slip=0.1)` work; the keywords are the settings' fields."""
    for name in ENTRIES:
        if gymnasium_id(name) not in gymnasium.registry:
            made: Callable[..., TextEnv] = partial(_make, name)
            gymnasium.register(gymnasium_id(name), entry_point=made)


register()
