"""A real environment with poison in it; apart from the tests, so that workers import nothing else."""

from __future__ import annotations

from typing import Any

from envs.frozen_lake.env import FrozenLake
from tests.actors.hostile import Hostile

POISON = ("exit 3", "hold 600", "eat", "raise it")


class PoisonedLake(FrozenLake):
    """FrozenLake, but some words do what they say in `Hostile`."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        word, _, rest = action.partition(" ")
        if word in {poison.partition(" ")[0] for poison in POISON}:
            getattr(Hostile(), f"_{word}")(rest)
        return super().step(action)
