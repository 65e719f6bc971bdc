"""Environments that fail at the tickets whose faults say so; made in the environment workers of a run under faults."""

from __future__ import annotations

import os
import signal
import time
from functools import cache
from pathlib import Path
from typing import Any

from configs.environments import EnvSettings
from envs.base import TextEnv
from envs.math.grader import Grader
from envs.registry import make_env
from orchestration.tickets import training_ticket
from tests.chaos.faults import IN_ENV, Kind, read

FAULTS, DONE = "SESA_CHAOS_FAULTS", "SESA_CHAOS_DONE"
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
    """As `make_env`, but for what its `reset` and its `_act` do with the seeds of tickets that are to fail."""
    env: Any = make_env(settings)
    faults = [fault for fault in read(Path(os.environ[FAULTS])) if fault.kind in IN_ENV]
    kinds = {training_ticket(RUN_SEED, fault.at, settings.name).seed: fault.kind for fault in faults}
    if Kind.GRADER_HANGS in kinds.values():
        grader_that_is_up()  # its start is not for a call to wait for
    whole, acts = env.reset, env._act

    def reset(*, seed: int, **others: Any) -> Any:
        kind = kinds.get(seed)
        if kind in IN_ENV and kind is not Kind.GRADER_HANGS and once(f"{kind} {seed}"):
            fail(kind)
        return whole(seed=seed, **others)

    def act(word: str) -> tuple[str, float]:
        if kinds.get(env.seed) is Kind.GRADER_HANGS and once(f"{Kind.GRADER_HANGS} {env.seed}"):
            ask_stopped_grader()
        made: tuple[str, float] = acts(word)
        return made

    env.reset, env._act = reset, act
    made: TextEnv = env
    return made


@cache
def grader_that_is_up() -> Grader:
    grader = Grader(memory_mib=1024)
    assert grader.equal("1", "1", timeout_s=60.0)
    return grader


def ask_stopped_grader() -> None:
    """As an environment that has answers compared meets it. Raises Failure."""
    grader = grader_that_is_up()
    os.kill(grader.process_id or 0, signal.SIGSTOP)
    grader.equal("1", "1", timeout_s=0.5)


def fail(kind: Kind) -> None:
    if kind is Kind.ENV_RAISES:
        raise RuntimeError("the environment is broken")
    if kind is Kind.ENV_HANGS:
        time.sleep(FOR_EVER_S)
    eaten = []
    while True:
        eaten.append(bytearray(1 << 24))
