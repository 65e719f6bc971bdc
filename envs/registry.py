"""From settings to an environment, and the gymnasium ids."""

from __future__ import annotations

from typing import Any

import gymnasium

from configs.schema import EnvSettings, FrozenLakeSettings
from envs.base import TextEnv
from envs.frozen_lake import FrozenLake


def make_env(settings: EnvSettings) -> TextEnv:
    """The bare environment, without gymnasium's wrappers."""
    return FrozenLake(settings)


def _frozen_lake(**fields: Any) -> FrozenLake:
    return FrozenLake(FrozenLakeSettings(**fields))


def register() -> None:
    """Make `gymnasium.make("sesa/FrozenLake-v0", size=5, slip=0.1)` work; the keywords are the settings' fields."""
    if "sesa/FrozenLake-v0" not in gymnasium.registry:
        gymnasium.register("sesa/FrozenLake-v0", entry_point=_frozen_lake)


register()
