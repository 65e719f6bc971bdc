"""Lists of solutions of a scripted policy, and what tests ask of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from actors.samplers.build import build_sampler
from configs.samplers import SequentialSettings
from envs.base import TextEnv
from envs.codec import encode_group
from envs.trajectory import Row
from learner.rows import training_rows
from tests.builders import Said, Sampled, Scene, ScriptedPolicy, plan

OPENED = "<|im_start|>system\nSay win.<|im_end|>\n<|im_start|>user\nEpisode 11."
ASKED = "<|im_end|>\n<|im_start|>assistant\n"
AGAIN = f"<|im_end|>\n<|im_start|>user\nAnother one.\nEpisode 11.{ASKED}"

LISTED: dict[str, Said] = {
    "list/0/solution/0/0/1": "win 1",
    "list/0/solution/1/0/1": "lose 0",
    "list/0/solution/2/0/1": "lose 0.25",
}
REPEATED: dict[str, Said] = {**LISTED, "list/0/solution/1/0/1": "win 1"}


class Lists(Sampled):
    @property
    def lineage(self) -> list[tuple[int | None, int | None]]:
        return [(t.parent, t.pivot) for t in self.group.trajectories]

    @property
    def rows(self) -> list[tuple[int, int, list[int] | None]]:
        """(trajectory, first target, training context if it is another than the sampling one) of each row."""
        return [(r.trajectory, r.first, None if r.context_ids is None else r.context_ids.tolist()) for r in self._rows]

    @property
    def rewards(self) -> list[list[float]]:
        """Of the credits of each row."""
        return [[credit.reward for credit in row.credits] for row in self._rows]

    @property
    def _rows(self) -> tuple[Row, ...]:
        return self.group.rows

    def trained(self) -> list[list[int]]:
        """The tokens the learner trains in each row."""
        return [r.token_ids[r.targets].tolist() for r in training_rows([self.group], self.rollout._shared.config)]

    def said(self, *words: str) -> list[int]:
        return [token for said in words for token in self.policy.encode(said)]


async def sample(
    scene: Scene,
    said: Mapping[str, Said],
    solutions: int = 3,
    make_env: Callable[[], TextEnv] | None = None,
    **settings: Any,
) -> Lists:
    policy = ScriptedPolicy(lambda _: None, plan(said))
    rollout = await scene.rollout(policy, make_env)
    group = await build_sampler(SequentialSettings(solutions=solutions, **settings)).sample_group(rollout)
    encode_group(group)
    assert group.sampled_tokens == sum(len(c.token_ids) for c in policy.completions.values())
    return Lists(group, rollout, policy)
