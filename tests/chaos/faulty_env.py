"""Environments that fail at the tickets whose faults say so; made in the environment workers of a run under faults."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from configs.environments import EnvSettings
from envs.base import TextEnv
from envs.registry import make_env
from orchestration.tickets import training_ticket
from tests.chaos.faults import Kind, read

FAULTS, DONE = "SESA_CHAOS_FAULTS", "SESA_CHAOS_DONE"
AT_RESET = (Kind.ENV_RAISES, Kind.ENV_HANGS, Kind.ENV_EATS)
FOR_EVER_S = 10_000
RUN_SEED = 0


def once(name: str) -> bool:
    """Whether nobody has done this before, in any process of any life of the run."""
    try:
        os.close(os.open(Path(os.environ[DONE]) / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def make(settings: EnvSettings) -> TextEnv:
    """As `make_env`, but for what its `reset` does with the seeds of tickets that are to fail."""
    env: Any = make_env(settings)
    faults = [fault for fault in read(Path(os.environ[FAULTS])) if fault.kind in AT_RESET]
    kinds = {training_ticket(RUN_SEED, fault.at, settings.name).seed: fault.kind for fault in faults}
    whole = env.reset

    def reset(*, seed: int, **others: Any) -> Any:
        kind = kinds.get(seed)
        if kind is not None and once(f"{kind} {seed}"):
            fail(kind)
        return whole(seed=seed, **others)

    env.reset = reset
    made: TextEnv = env
    return made


def fail(kind: Kind) -> None:
    if kind is Kind.ENV_RAISES:
        raise RuntimeError("the environment is broken")
    if kind is Kind.ENV_HANGS:
        time.sleep(FOR_EVER_S)
    eaten = []
    while True:
        eaten.append(bytearray(1 << 24))
