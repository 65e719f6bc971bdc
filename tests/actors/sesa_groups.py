"""SESA's groups of a scripted policy, and what tests ask of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from actors.chat import Frame
from actors.samplers.build import build_sampler
from configs.samplers import SesaSettings
from envs.base import TextEnv
from envs.codec import encode_group
from envs.trajectory import Row, Stream, Trajectory
from tests.builders import Said, Sampled, Scene, ScriptedPolicy, plan, token_ids_of

SKETCHES: dict[str, Said] = {"sketch/0/0": "plan up", "sketch/1/0": "plan down", "sketch/2/0": "plan left"}
SOLUTIONS: dict[str, Said] = {"expansion/0/0/1": "win 1", "expansion/1/0/1": "lose 0", "expansion/2/0/1": "lose 0.25"}


@dataclass(frozen=True)
class SesaSampled(Sampled):
    """frame: the opening of stage II."""

    frame: Frame

    def guided(self, *sketch: int) -> list[int]:
        """The prompt of stage II around a sketch's tokens."""
        return [*self.frame.before.tolist(), *sketch, *self.frame.after.tolist()]

    def words(self, said: str) -> list[int]:
        return self.policy.encode(said)[:-1]

    def credits(self, stream: Stream, baseline: str | None = None) -> list[tuple[int, float, float]]:
        """(trajectory, reward, weight) of each credit of the stream, in the baseline if one is named."""
        return [
            (row.trajectory, credit.reward, credit.weight)
            for row in self.group.rows
            for credit in row.credits
            if credit.stream is stream and baseline in (None, credit.baseline)
        ]

    def baselines(self) -> set[tuple[Stream, str]]:
        return {(c.stream, c.baseline) for row in self.group.rows for c in row.credits}


async def sample(
    scene: Scene,
    *said: Mapping[str, Said],
    sketches: int = 3,
    make_env: Callable[[], TextEnv] | None = None,
    **settings: Any,
) -> SesaSampled:
    policy = ScriptedPolicy(lambda _: None, plan({k: v for part in said for k, v in part.items()}))
    rollout = await scene.rollout(policy, make_env)
    group = await build_sampler(SesaSettings(sketches=sketches, **settings)).sample_group(rollout)
    encode_group(group)
    return SesaSampled(group, rollout, policy, await rollout.guided_frame())


def prompt_ids(trajectory: Trajectory) -> list[int]:
    return token_ids_of(trajectory.segments[:1])


def context_ids(row: Row) -> list[int] | None:
    return None if row.context_ids is None else row.context_ids.tolist()
