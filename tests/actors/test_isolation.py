"""Groups whose environments live in workers: the same as without, and the same beside episodes that go wrong."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from actors.chat import Chat
from actors.engine import Completion
from actors.env_workers import EnvWorkers
from actors.remote_env import Workers
from actors.rollout import Rollout, Shared
from actors.samplers.parallel import ParallelSampler
from configs.schema import RunConfig
from envs.codec import encode_group
from envs.registry import make_env
from envs.trajectory import Group, Ints, Ticket, Verdict
from tests.actors.poisoned_lake import POISON, PoisonedLake
from tests.builders import ScriptedPolicy, ThreadWorkers

MOVES = ("Left", "Up", "Right", "Down")


class Walking(ScriptedPolicy):
    """Moves by the request's seed; `poisons`: what to say instead to requests of these seeds."""

    def __init__(self, poisons: dict[int, str]) -> None:
        super().__init__(lambda _: None)
        self._poisons = poisons

    async def sample(self, context_ids: Ints, max_tokens: int, seed: int) -> Completion | None:
        said = self._poisons.get(seed, f"<answer>{MOVES[seed % 4]}</answer>")
        token_ids = np.array(self.encode(said), np.int32)
        n = len(token_ids)
        return Completion(token_ids, np.full(n, -0.5, np.float32), np.zeros(n, np.int32), True)


def configured(**rollout: Any) -> RunConfig:
    settings = {"env": {"name": "frozen_lake", "slip": 0.2}, "rollout": rollout, "model": {"max_model_len": 4096}}
    return RunConfig.model_validate(settings)


async def sampled(config: RunConfig, chat: Chat, workers: Workers, poisons: dict[int, str], number: int) -> Group:
    rollout = Rollout(Ticket(number, "frozen_lake", 2 * number), Shared(config, chat, Walking(poisons), workers))
    await rollout.start()
    return await ParallelSampler(len(POISON) + 4).sample_group(rollout)


async def test_a_group_is_the_same_wherever_its_environments_live(chat: Chat) -> None:
    config = configured()
    make = partial(make_env, config.env)
    here = await sampled(config, chat, ThreadWorkers(make, 10.0), {}, 1)
    workers = EnvWorkers(make, config.rollout)
    try:
        there = await sampled(config, chat, workers, {}, 1)
    finally:
        workers.close()
    assert encode_group(there) == encode_group(here)
    assert len({t.answer for t in here.trajectories}) > 1


@pytest.mark.parametrize("env_workers", [1, 3])
async def test_episodes_that_go_wrong_leave_their_neighbours_as_they_were(chat: Chat, env_workers: int) -> None:
    config = configured(env_timeout_s=4.0, env_memory_mib=64, env_workers=env_workers)
    alone = await sampled(config, chat, ThreadWorkers(partial(PoisonedLake, config.env), 10.0), {}, 2)
    workers = EnvWorkers(partial(PoisonedLake, config.env), config.rollout)
    rollout = Rollout(Ticket(2, "frozen_lake", 4), Shared(config, chat, Walking({}), workers))
    # In their second answer; the first is segment 1, what the environment says to it segment 2.
    poisons = {rollout.seed(f"solution/{2 + i}/3"): poison for i, poison in enumerate(POISON)}
    try:
        group = await sampled(config, chat, workers, poisons, 2)
        assert len(workers.process_ids) <= env_workers
    finally:
        workers.close()
    failed = [i for i, t in enumerate(group.trajectories) if t.verdict is Verdict.FAILED]
    reached = [2 + i for i in range(len(POISON)) if len(alone.trajectories[2 + i].segments) > 2]
    assert failed == reached
    assert len(reached) >= 3
    for number, trajectory in enumerate(group.trajectories):
        if number in failed:
            assert trajectory.cause.startswith("frozen_lake ")
            assert trajectory.reward == 0.0
        else:
            expected = alone.trajectories[number]
            assert (trajectory.verdict, trajectory.reward, trajectory.answer) == (
                expected.verdict,
                expected.reward,
                expected.answer,
            )
            assert [s.token_ids.tolist() for s in trajectory.segments] == [
                s.token_ids.tolist() for s in expected.segments
            ]
